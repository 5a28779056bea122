package pidfd

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

func TestOf(t *testing.T) {
	if !Supported() {
		testutil.Lacks(t, "no PIDFD_GET_INFO", "Linux 6.13")
	}
	self := procfs.HostPID(os.Getpid())
	own, err := Of(self)
	if err != nil || own.Dead || own.Parent != procfs.HostPID(os.Getppid()) || own.ID == 0 {
		t.Errorf("of ourselves: %+v, %v", own, err)
	}
	var last Facts
	for range 3 {
		cmd := exec.Command("cat")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := procfs.HostPID(cmd.Process.Pid)
		fd, err := Open(pid)
		if err != nil {
			t.Fatal(err)
		}
		alive, err := Look(fd)
		if err != nil || alive.Dead || alive.Parent != self || alive.ID == own.ID || alive.ID == last.ID {
			t.Errorf("of a child: %+v, %v", alive, err)
		}
		in.Close()
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			st, err := procfs.New(os.DirFS("/proc")).Stat(pid)
			return err == nil && st.Zombie(), "the child has not ended"
		})
		last = alive
		last.Dead = true
		if dead, err := Look(fd); err != nil || dead != last {
			t.Errorf("of a zombie: %+v, %v, want %+v", dead, err, last)
		}
		if dead, err := Of(pid); err != nil || dead != last {
			t.Errorf("of a zombie, by its number: %+v, %v, want %+v", dead, err, last)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if f, err := Look(fd); !errors.Is(err, procfs.ErrVanished) {
			t.Errorf("waited for: %+v, %v", f, err)
		}
		if f, err := Of(pid); err == nil && f.ID == last.ID || err != nil && !errors.Is(err, procfs.ErrVanished) {
			t.Errorf("waited for, by its number: %+v, %v", f, err)
		}
		Close(fd)
	}
}

// TestNotOne: what is no process is nobody, and what cannot be told is an error of another kind.
func TestNotOne(t *testing.T) {
	if !Supported() {
		testutil.Lacks(t, "no PIDFD_GET_INFO", "Linux 6.13")
	}
	tid := make(chan int)
	end := make(chan struct{})
	go func() {
		// A thread that is not the first.
		done := make(chan struct{})
		go func() {
			defer close(done)
			lockedThread(tid, end)
		}()
		lockedThread(tid, end)
		<-done
	}()
	for range 2 {
		if n := <-tid; n != os.Getpid() {
			if _, err := Of(procfs.HostPID(n)); !errors.Is(err, procfs.ErrVanished) {
				t.Errorf("of a thread: %v", err)
			}
		}
	}
	close(end)
	for _, pid := range []procfs.HostPID{0, -1, 1 << 30} {
		if _, err := Of(pid); !errors.Is(err, procfs.ErrVanished) {
			t.Errorf("of %d: %v", pid, err)
		}
	}
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := Look(int(file.Fd())); err == nil || errors.Is(err, procfs.ErrVanished) {
		t.Errorf("of /dev/null: %v", err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err = Of(procfs.HostPID(os.Getpid()))
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("without room for a descriptor: %v", err)
	}
}

func lockedThread(tid chan<- int, end <-chan struct{}) {
	runtime.LockOSThread()
	tid <- unix.Gettid()
	<-end
}
