package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestVanishedIsAValue(t *testing.T) {
	p := New(fstest.MapFS{})
	_, statErr := p.Stat(4)
	_, threadsErr := p.Threads(4)
	_, childrenErr := p.ThreadChildren(4, 4)
	_, nsErr := p.PIDNamespace(4)
	for name, err := range map[string]error{"stat": statErr, "task": threadsErr, "children": childrenErr, "ns": nsErr} {
		if !errors.Is(err, ErrVanished) {
			t.Errorf("%s: %v, want ErrVanished", name, err)
		}
	}
}

func TestMissingChildrenFile(t *testing.T) {
	p := New(fstest.MapFS{"4/task/4/stat": {Data: []byte("x")}})
	if _, err := p.ThreadChildren(4, 4); !errors.Is(err, ErrNoChildren) {
		t.Errorf("got %v, want ErrNoChildren", err)
	}
}

func TestParseErrorNamesTheFile(t *testing.T) {
	p := New(fstest.MapFS{"4/stat": {Data: []byte("garbage")}})
	_, err := p.Stat(4)
	if err == nil || errors.Is(err, ErrVanished) || !strings.Contains(err.Error(), "4/stat") {
		t.Errorf("got %v, want an error that names 4/stat", err)
	}
}

func TestEachPID(t *testing.T) {
	const n = 2*namesAtOnce + 100
	m := fstest.MapFS{"uptime": {}, "self/stat": {}, "12x": {}}
	for pid := 1; pid <= n; pid++ {
		m[fmt.Sprintf("%d/stat", pid)] = &fstest.MapFile{}
	}
	p, seen, left := New(m), make(map[HostPID]bool), namesAtOnce+5
	if err := p.EachPID(func(pid HostPID) bool { seen[pid] = true; return true }); err != nil || len(seen) != n {
		t.Errorf("%d processes, want %d: %v", len(seen), n, err)
	}
	if err := p.EachPID(func(HostPID) bool { left--; return left > 0 }); err != nil || left != 0 {
		t.Errorf("%d left of those to see, %v", left, err)
	}
	if err := New(fstest.MapFS{".": {Data: []byte("a file")}}).EachPID(func(HostPID) bool { return true }); err == nil {
		t.Error("no error for a root that is no directory")
	}
}

// The kernel goes on from any place in the list of processes, and finds there who was forked since.
func TestEachPIDFrom(t *testing.T) {
	p := New(os.DirFS("/proc"))
	var all []HostPID
	marks := make(map[HostPID]Mark)
	if err := p.EachPIDFrom(0, func(pid HostPID, at Mark) bool {
		all, marks[pid] = append(all, pid), at
		return true
	}); err != nil || len(all) < 2 || !slices.IsSorted(all) {
		t.Fatalf("processes %v, %v", all, err)
	}
	self := HostPID(os.Getpid())
	next := HostPID(0)
	if err := p.EachPIDFrom(marks[self], func(pid HostPID, at Mark) bool {
		if pid == self && at == marks[self] {
			return true
		}
		next = pid
		return false
	}); err != nil || next != 0 && next <= self {
		t.Errorf("behind %d comes %d, %v", self, next, err)
	}
	for range 3 { // the kernel may begin again with the low numbers, once
		last, err := p.LastPID()
		if err != nil {
			t.Fatal(err)
		}
		from := Mark(0)
		if err := p.EachPIDFrom(0, func(pid HostPID, at Mark) bool {
			if pid <= last {
				from = at
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		child := exec.Command("sleep", "1000")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		found, seen := false, 0
		err = p.EachPIDFrom(from, func(pid HostPID, _ Mark) bool {
			seen++
			found = found || pid == HostPID(child.Process.Pid)
			return true
		})
		now, lerr := p.LastPID()
		_ = child.Process.Kill()
		_ = child.Wait()
		if err != nil || lerr != nil {
			t.Fatal(err, lerr)
		}
		if now < last {
			continue
		}
		if !found || seen >= len(all) && from != 0 {
			t.Errorf("%d processes behind %d, %d among them: %v", seen, last, child.Process.Pid, found)
		}
		return
	}
	t.Error("the numbers begin again and again")
}

// The live /proc of the kernel that the tests run on, read through every reader.
func TestLive(t *testing.T) {
	p := New(os.DirFS("/proc"))
	self := HostPID(os.Getpid())
	if link, err := os.Readlink("/proc/self"); err != nil || link != self.String() {
		t.Skipf("/proc belongs to another PID namespace than this process (/proc/self -> %q): run with a /proc of its own", link)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	st, err := p.Stat(self)
	if err != nil || st.PID != self || st.PPID != HostPID(os.Getppid()) || st.StartTime == 0 || st.NumThreads < 1 {
		t.Errorf("stat %+v, %v", st, err)
	}
	if want := filepath.Base(os.Args[0]); !strings.Contains(want, st.Comm) {
		t.Errorf("command %q, want the start of %q", st.Comm, want)
	}
	status, err := p.Status(self)
	if err != nil || status.Tgid != self || len(status.NSpid) == 0 || status.NSpid[0] != NSPID(self) {
		t.Errorf("status %+v, %v", status, err)
	}
	tids, err := p.Threads(self)
	if err != nil || !slices.Contains(tids, self) {
		t.Errorf("threads %v, %v", tids, err)
	}
	pids, err := p.PIDs()
	if err != nil || !slices.Contains(pids, self) {
		t.Errorf("pids %v, %v", pids, err)
	}
	seen := 0
	if err := p.EachPID(func(HostPID) bool { seen++; return false }); err != nil || seen != 1 {
		t.Errorf("%d processes instead of the first, %v", seen, err)
	}
	if _, err := p.Cgroups(self); err != nil {
		t.Errorf("cgroups: %v", err)
	}
	if ino, err := p.PIDNamespace(self); err != nil || ino == 0 {
		t.Errorf("pid namespace %d, %v", ino, err)
	}
	if _, err := p.ThreadChildren(self, self); err != nil {
		t.Errorf("children: %v", err)
	}
	if _, err := p.ThreadSyscall(self, self); err != nil && !errors.Is(err, fs.ErrPermission) {
		t.Errorf("syscall: %v", err)
	}
}
