package shim

import (
	"io/fs"
	"os"
	"os/exec"
	"path"
	"testing"
	"testing/fstest"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// blind is a /proc whose children files leave everybody out, as they may while children go (proc_tid_children(5)).
type blind struct{ fs.FS }

func (b blind) Open(name string) (fs.File, error) {
	if path.Base(name) == "children" {
		return fstest.MapFS{name: {}}.Open(name)
	}
	return b.FS.Open(name)
}

// dead starts a process and waits until it is a zombie.
func dead(t *testing.T, proc *procfs.FS) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		st, err := proc.Stat(procfs.HostPID(cmd.Process.Pid))
		return err == nil && st.Zombie(), "the process lives"
	})
	return cmd
}

// TestExitThatTheListLeavesOut: the end of a container is told also if the list of children has not got it. When a child is collected
// while the list is read, the kernel leaves the next one out (get_children_pid() in fs/proc/array.c counts anew from the front), and the
// signal that told of its death may be the one that is being handled.
func TestExitThatTheListLeavesOut(t *testing.T) {
	for _, withCommand := range []bool{false, true} {
		s := newTestService()
		s.proc = procfs.New(blind{os.DirFS("/proc")})
		c := s.children
		exits := reaper.Default.Subscribe()
		defer reaper.Default.Unsubscribe(exits)

		var command *exec.Cmd
		if withCommand {
			command = dead(t, s.proc)
			c.command(procfs.HostPID(command.Process.Pid), true)
		}
		init := dead(t, s.proc)
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
