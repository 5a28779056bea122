package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/iotest"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
)

// dribble gives the text of its files a byte at a time, and then an error.
type dribble struct {
	fs.FS
	err error
}

type dribbleFile struct {
	fs.File
	err error
}

func (d dribble) Open(name string) (fs.File, error) {
	f, err := d.FS.Open(name)
	return dribbleFile{f, d.err}, err
}

func (f dribbleFile) Read(p []byte) (int, error) {
	n, err := iotest.OneByteReader(f.File).Read(p)
	if n == 0 && f.err != nil {
		err = f.err
	}
	return n, err
}

func TestEachChild(t *testing.T) {
	var text strings.Builder
	var want []HostPID
	for pid := HostPID(1); pid < 4000; pid += 7 {
		want = append(want, pid)
		fmt.Fprintf(&text, "%d ", pid)
	}
	files := fstest.MapFS{"4/task/4/children": {Data: []byte(text.String())}}
	for name, fsys := range map[string]fs.FS{"at once": files, "byte by byte": dribble{files, nil}} {
		var got []HostPID
		if err := New(fsys).EachChild(4, 4, func(pid HostPID) bool { got = append(got, pid); return true }); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
		got = nil
		if err := New(fsys).EachChild(4, 4, func(pid HostPID) bool { got = append(got, pid); return len(got) < 3 }); err != nil || !slices.Equal(got, want[:3]) {
			t.Errorf("%s: %v, %v after a stop; want %v", name, got, err, want[:3])
		}
	}
	// The thread ends while its list is read.
	n := 0
	err := New(dribble{files, syscall.ESRCH}).EachChild(4, 4, func(HostPID) bool { n++; return true })
	if !errors.Is(err, ErrVanished) || n == 0 {
		t.Errorf("%d children and %v, want some and ErrVanished", n, err)
	}
	for _, bad := range []string{"x", "1 2 -3 ", "1 99999999999 ", strings.Repeat("1", 10000)} {
		p := New(dribble{fstest.MapFS{"4/task/4/children": {Data: []byte(bad)}}, nil})
		err := p.EachChild(4, 4, func(HostPID) bool { return true })
		if err == nil || !strings.Contains(err.Error(), "4/task/4/children") {
			t.Errorf("%.20q: %v, want an error that names the file", bad, err)
		}
	}
}

// The two ways of reading say the same.
func TestDirectReads(t *testing.T) {
	dir := os.DirFS("/proc")
	direct, plain := New(dir), New(dribble{dir, nil})
	if runtime.GOOS == "linux" && (direct.dir == "" || plain.dir != "") {
		t.Fatal("os.DirFS(\"/proc\") is not read directly, or something else is")
	}
	// A process that stands still.
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	pid := HostPID(cmd.Process.Pid)
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		st, err := direct.Stat(pid)
		return err == nil && st.Comm == "sleep" && st.State == StateSleeping, fmt.Sprintf("%+v, %v", st, err)
	})
	same(t, "stat", pid, direct.Stat, plain.Stat)
	same(t, "status", pid, direct.Status, plain.Status)
	same(t, "cgroup", pid, direct.Cgroups, plain.Cgroups)
	same(t, "cpuset", pid, direct.Cpuset, plain.Cpuset)
	const nobody = 1 << 30
	if _, err := direct.Stat(nobody); !errors.Is(err, ErrVanished) {
		t.Errorf("stat of nobody: %v, want ErrVanished", err)
	}
	if err := direct.EachChild(nobody, nobody, func(HostPID) bool { return true }); !errors.Is(err, ErrVanished) {
		t.Errorf("children of nobody: %v, want ErrVanished", err)
	}
}

func same[T any](t *testing.T, what string, pid HostPID, direct, plain func(HostPID) (T, error)) {
	t.Helper()
	a, err1 := direct(pid)
	b, err2 := plain(pid)
	if !reflect.DeepEqual(a, b) || (err1 == nil) != (err2 == nil) {
		t.Errorf("%s: %+v, %v read directly; %+v, %v otherwise", what, a, err1, b, err2)
	}
}

// A text that is longer than the buffer.
func TestDirectReadGrows(t *testing.T) {
	if !direct {
		t.Skip("not on this system")
	}
	name := filepath.Join(t.TempDir(), "long")
	for _, size := range []int{0, 1, 63, 64, 65, 10000} {
		want := strings.Repeat("x", size)
		if err := os.WriteFile(name, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readDirect(name, make([]byte, 64), atOnce); err != nil || string(got) != want {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
	}
}

// More children than fit in one page of text, with the real kernel.
func TestEachChildOfTheKernel(t *testing.T) {
	const children = 900
	testutil.Tool(t, "python3")
	cmd := exec.Command("python3", "-c", `
import os, sys
for i in range(int(sys.argv[1])):
    if os.fork() == 0:
        os._exit(0)
print("done", flush=True)
sys.stdin.read()`, fmt.Sprint(children))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	p, pid := New(os.DirFS("/proc")), HostPID(cmd.Process.Pid)
	seen := make(map[HostPID]bool)
	if err := p.EachChild(pid, pid, func(child HostPID) bool { seen[child] = true; return true }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != children {
		t.Errorf("%d children, want %d", len(seen), children)
	}
	for child := range seen {
		if st, err := p.Stat(child); err != nil || st.PPID != pid {
			t.Fatalf("child %d: %+v, %v", child, st, err)
		}
	}
}

func BenchmarkStat(b *testing.B) {
	dir := os.DirFS("/proc")
	self := HostPID(os.Getpid())
	for name, p := range map[string]*FS{"direct": New(dir), "os": {fsys: dir}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Stat(self); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestDirectFS(t *testing.T) {
	dir := t.TempDir()
	want := strings.Repeat("1\n", 5000) // more than one read takes
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	fsys := DirectFS(dir)
	if got, err := fs.ReadFile(fsys, "cgroup.procs"); err != nil || string(got) != want {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
	if _, err := fs.ReadFile(fsys, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v, want fs.ErrNotExist", err)
	}
	if _, err := fs.ReadFile(fsys, "../x"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a file above the directory: %v, want fs.ErrInvalid", err)
	}
	if entries, err := fs.ReadDir(fsys, "."); err != nil || len(entries) != 1 {
		t.Errorf("entries %v, %v; want the file", entries, err)
	}
	if _, err := fs.Stat(fsys, "cgroup.procs"); err != nil {
		t.Error(err)
	}
}
