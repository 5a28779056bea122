package scan

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// addIn is add for a process in the session of another.
func (p tree) addIn(session, pid, ppid int, state, comm string, exit int, nspid, cgroup string) {
	p.add(pid, ppid, state, comm, exit, nspid, cgroup)
	f := p[fmt.Sprint(pid)+"/stat"]
	old := fmt.Sprintf("%s %d %d %d 0 -1", state, ppid, pid, pid)
	f.Data = []byte(strings.Replace(string(f.Data), old, fmt.Sprintf("%s %d %d %d 0 -1", state, ppid, pid, session), 1))
}

func (p tree) remove(pid int) {
	for name := range p {
		if strings.HasPrefix(name, fmt.Sprint(pid)+"/") {
			delete(p, name)
		}
	}
}

func TestWatch(t *testing.T) {
	const c1 = "/test/c1"
	p := tree{}
	p.add(1, 0, "S", "systemd", 0, "1", "/init.scope")
	p.addIn(50, 50, 1, "S", "node", 0, "50 1", c1)
	p.addIn(50, 51, 50, "Z", "old", 0, "51 2", c1)     // there already
	p.addIn(60, 60, 1, "S", "bash", 0, "60 10", c1)    // an exec
	p.addIn(60, 61, 60, "S", "git", 0, "61 11", c1)    // which starts git
	p.addIn(60, 62, 61, "S", "helper", 0, "62 12", c1) // which starts a helper
	p.addIn(50, 53, 50, "S", "worker", 0, "53 9", c1)
	w := NewWatch(procfs.New(fstest.MapFS(p)), []string{c1})
	now := time.Unix(1e9, 0)
	look := func(after time.Duration) {
		t.Helper()
		now = now.Add(after)
		if err := w.Look(now); err != nil {
			t.Fatal(err)
		}
	}
	look(0)
	// git is killed, its parent does not wait for it at once; the helper goes on below PID 1 and ends later.
	p.addIn(60, 62, 50, "S", "helper", 0, "62 12", c1)
	p.addIn(60, 61, 60, "Z", "git", 9, "61 11", c1)
	look(100 * time.Millisecond)
	p.remove(61)
	p.remove(60) // and so does the exec
	p.addIn(60, 62, 50, "Z", "helper", 3<<8, "62 12", c1)
	// What came and went between two looks: nobody saw its parent, but it is in the session of the exec.
	p.addIn(60, 63, 50, "Z", "curl", 0, "63 13", c1)
	p.addIn(50, 54, 53, "Z", "job", 1<<8, "54 14", c1)
	p.addIn(50, 55, 50, "Z", "own", 0, "55 15", c1)
	look(100 * time.Millisecond)
	if leaks, _ := w.Leaks(); len(leaks) != 1 {
		t.Errorf("%v; want only what was there when it began: the others may yet be waited for", leaks)
	}
	look(lingering)
	look(lingering)

	leaks, omitted := w.Leaks()
	if omitted != 0 {
		t.Errorf("%d omitted", omitted)
	}
	pid1 := Leak{Cgroup: c1, Parent: "node", ParentPID: 50, Init: true}
	with := func(l Leak, command string, origin Origin, leftBy string) Leak {
		l.Command, l.Origin, l.LeftBy = command, origin, leftBy
		return l
	}
	want := map[Leak][2]map[int]int{
		with(pid1, "old", Unknown, ""):                                           {{0: 1}, {}},
		with(pid1, "helper", Orphan, "git"):                                      {{}, {3 << 8: 1}},
		with(pid1, "curl", Orphan, "bash"):                                       {{}, {0: 1}},
		with(pid1, "own", Unknown, ""):                                           {{}, {0: 1}},
		with(Leak{Cgroup: c1, Parent: "worker", ParentPID: 53}, "job", Held, ""): {{}, {1 << 8: 1}},
	}
	for l, counts := range want {
		got := leaks[l]
		if got == nil || !maps.Equal(got.Before, counts[0]) || !maps.Equal(got.New, counts[1]) {
			t.Errorf("%+v: %+v, want %v", l, got, counts)
		}
		delete(leaks, l)
	}
	for l := range leaks {
		t.Errorf("not expected: %+v", l)
	}
}
