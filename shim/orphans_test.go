package shim

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	goruntime "runtime"
	"testing"
	"testing/fstest"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// dead starts a program and waits until it is a zombie.
func dead(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // an error where the test has waited
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		st, err := hostProc.Stat(procfs.HostPID(cmd.Process.Pid))
		return err == nil && st.Zombie(), fmt.Sprint(st, err)
	})
	return cmd
}

// The exit of a runc command stays with who waits for it, and hides nobody else's.
func TestChildrenOfAShimWithoutHostPIDTasks(t *testing.T) {
	c := newChildren(&service{proc: hostProc})
	if pid := firstDead(); pid != 0 {
		t.Fatalf("%d is dead before the test", pid)
	}
	if c.look() {
		t.Error("somebody has died")
	}

	command := dead(t, "false")
	c.command(procfs.HostPID(command.Process.Pid), true)
	if pid := firstDead(); int(pid) != command.Process.Pid {
		t.Errorf("%d is dead, want %d", pid, command.Process.Pid)
	}
	if c.look() {
		t.Error("the end of a runc command counts")
	}
	if _ = command.Wait(); command.ProcessState == nil || command.ProcessState.ExitCode() != 1 {
		t.Errorf("the command ended with %v, want status 1", command.ProcessState)
	}

	for _, order := range []string{"alone", "behind a command"} {
		if order == "behind a command" {
			command := dead(t, "true")
			c.command(procfs.HostPID(command.Process.Pid), true)
		}
		exits := reaper.Default.Subscribe()
		other := dead(t, "sh", "-c", "exit 3")
		if !c.look() {
			t.Errorf("%s: nobody has died", order)
		}
		status := -1
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			select {
			case e := <-exits:
				if e.Pid == other.Process.Pid {
					status = e.Status
				}
			default:
			}
			return status >= 0, order + ": its exit is lost"
		})
		reaper.Default.Unsubscribe(exits)
		if status != 3 {
			t.Errorf("%s: status %d, want 3", order, status)
		}
	}
}

// blind is a /proc whose children files leave everybody out, as they may while children go (proc_tid_children(5)).
type blind struct{ fs.FS }

func (b blind) Open(name string) (fs.File, error) {
	if path.Base(name) == "children" {
		return fstest.MapFS{name: {}}.Open(name)
	}
	return b.FS.Open(name)
}

// TestExitThatTheListLeavesOut: the end of a container is told also if the list of children has not got it. When a child is collected
// while the list is read, the kernel leaves the next one out (get_children_pid() in fs/proc/array.c counts anew from the front), and the
// signal that told of its death may be the one that is being handled.
func TestExitThatTheListLeavesOut(t *testing.T) {
	// waitid(2) looks at the children of one thread after the other, in the order of their birth: the command is to come first.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	for _, withCommand := range []bool{false, true} {
		s := newTestService()
		s.proc = procfs.New(blind{os.DirFS("/proc")})
		c := s.children
		exits := reaper.Default.Subscribe()
		defer reaper.Default.Unsubscribe(exits)

		var command *exec.Cmd
		if withCommand {
			command = dead(t, "true")
			c.command(procfs.HostPID(command.Process.Pid), true)
		}
		init := dead(t, "true")
		c.look()
		if withCommand {
			if err := command.Wait(); err != nil {
				t.Fatalf("the command has been taken from who waits for it: %v", err)
			}
			c.command(procfs.HostPID(command.Process.Pid), false)
			select {
			case <-c.wake:
				c.look()
			default:
			}
		}
		select {
		case e := <-exits:
			if e.Pid != init.Process.Pid {
				t.Errorf("with a command %v: exit of %d, want %d", withCommand, e.Pid, init.Process.Pid)
			}
		default:
			t.Errorf("with a command %v: nobody was told of the exit", withCommand)
		}
	}
}
