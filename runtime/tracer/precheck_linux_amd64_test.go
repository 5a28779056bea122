package tracer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// tree is an invented /proc with PID 1 as process 100 and its orphan, zombie 200 with number 20 in the namespace.
type tree fstest.MapFS

func (m tree) put(name, text string) { m[name] = &fstest.MapFile{Data: []byte(text)} }

func (m tree) stat(name string, pid int, state string, ppid, threads int) {
	fields := make([]string, 53)
	for i := range fields {
		fields[i] = "0"
	}
	fields[3], fields[4], fields[6], fields[20], fields[22] = state, fmt.Sprint(ppid), "9", fmt.Sprint(threads), fmt.Sprint(pid*10)
	m.put(name, fmt.Sprintf("%d (x) %s\n", pid, strings.Join(fields[3:], " ")))
}

func (m tree) status(name string, state string, extra ...string) {
	m.put(name, "Name:\tx\nState:\t"+state+" (x)\nTgid:\t100\nPid:\t100\nTracerPid:\t0\nSeccomp:\t0\nSigPnd:\t0\nShdPnd:\t0\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0\n"+strings.Join(extra, "\n")+"\n")
}

// thread adds a thread of PID 1 that is blocked in call nr.
func (m tree) thread(tid int, nr int64, args [6]uint64, extra ...string) {
	dir := fmt.Sprintf("100/task/%d/", tid)
	m.status(dir+"status", "S", append([]string{"NSpid:\t100\t1"}, extra...)...)
	m.put(dir+"syscall", fmt.Sprintf("%d %#x %#x %#x %#x %#x %#x 0x7ffe 0x401000\n", nr, args[0], args[1], args[2], args[3], args[4], args[5]))
}

func newTree() tree {
	m := tree{}
	m.stat("100/stat", 100, "S", 1, 1)
	m.status("100/status", "S", "NSpid:\t100\t1")
	m.stat("200/stat", 200, "Z", 100, 1)
	m.status("200/status", "Z", "NSpid:\t200\t20")
	return m
}

func TestExamine(t *testing.T) {
	const (
		chld   = 1 << (sigChld - 1)
		anyPID = 0xffffffff
	)
	request := Request{Version: Version, PID: 100, StartTime: 1000, Zombies: []Zombie{{PID: 200, StartTime: 2000, NSPID: 20}}}
	tests := []struct {
		name   string
		build  func(m, cg tree)
		tid    procfs.HostPID // the thread that is chosen
		reason Reason
		zombie Reason
	}{
		{
			name:  "the only thread",
			build: func(m, cg tree) { m.thread(100, unix.SYS_PAUSE, [6]uint64{}) },
			tid:   100,
		},
		{
			name: "the safest call wins over the first",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_PAUSE, [6]uint64{})
				m.thread(101, unix.SYS_POLL, [6]uint64{})
				m.thread(102, unix.SYS_FUTEX, [6]uint64{1: 128})
				m.thread(103, unix.SYS_FUTEX, [6]uint64{1: 6})
			},
			tid: 102,
		},
		{
			name: "among equals not the leader",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_FUTEX, [6]uint64{})
				m.thread(101, unix.SYS_FUTEX, [6]uint64{})
				m.thread(102, unix.SYS_FUTEX, [6]uint64{})
			},
			tid: 101,
		},
		{
			name: "a thread in strict mode is passed over",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.thread(101, unix.SYS_FUTEX, [6]uint64{}, "Seccomp:\t1")
			},
			tid: 100,
		},
		{
			name:   "all in strict mode",
			build:  func(m, cg tree) { m.thread(100, unix.SYS_POLL, [6]uint64{}, "Seccomp:\t1") },
			reason: ReasonSeccompStrict,
		},
		{
			name: "SIGCHLD is pending and caught",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{}, fmt.Sprintf("ShdPnd:\t%x", chld), fmt.Sprintf("SigCgt:\t%x", chld))
			},
			reason: ReasonSigchldPending,
		},
		{
			name: "SIGCHLD is pending for one thread and blocked by another",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{}, fmt.Sprintf("SigPnd:\t%x", chld))
				m.thread(101, unix.SYS_POLL, [6]uint64{}, fmt.Sprintf("SigBlk:\t%x", chld))
			},
			reason: ReasonSigchldPending,
		},
		{
			name:   "traced",
			build:  func(m, cg tree) { m.thread(100, unix.SYS_POLL, [6]uint64{}, "TracerPid:\t7") },
			reason: ReasonTraced,
		},
		{
			name: "a wait for any child",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.thread(101, unix.SYS_WAIT4, [6]uint64{0: anyPID})
			},
			zombie: ReasonWaiting,
		},
		{
			name: "a wait for this one",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.thread(101, unix.SYS_WAIT4, [6]uint64{0: 20})
			},
			zombie: ReasonWaiting,
		},
		{
			name:  "a wait for another",
			build: func(m, cg tree) { m.thread(100, unix.SYS_WAIT4, [6]uint64{0: 21}) },
			tid:   100,
		},
		{
			name: "a wait by pidfd for another",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_WAITID, [6]uint64{3, 4})
				m.put("100/fdinfo/4", "pos:\t0\nflags:\t02\nPid:\t201\nNSpid:\t201\t21\n")
			},
			tid: 100,
		},
		{
			name: "a wait by pidfd for this one",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_WAITID, [6]uint64{3, 4})
				m.put("100/fdinfo/4", "Pid:\t200\n")
			},
			zombie: ReasonWaiting,
		},
		{
			name:   "a wait by pidfd for we know not whom",
			build:  func(m, cg tree) { m.thread(100, unix.SYS_WAITID, [6]uint64{3, 4}) },
			zombie: ReasonWaiting,
		},
		{
			name: "frozen, cgroup v2",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.put("100/cgroup", "0::/a/b\n")
				cg.put("a/b/cgroup.events", "populated 1\nfrozen 1\n")
			},
			reason: ReasonFrozen,
		},
		{
			name: "frozen, cgroup v1",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.put("100/cgroup", "3:freezer:/a\n0::/\n")
				cg.put("freezer/a/freezer.state", "FROZEN\n")
			},
			reason: ReasonFrozen,
		},
		{
			name: "not frozen",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.put("100/cgroup", "3:freezer:/a\n0::/a\n")
				cg.put("freezer/a/freezer.state", "THAWED\n")
				cg.put("a/cgroup.events", "populated 1\nfrozen 0\n")
			},
			tid: 100,
		},
		{
			name: "a vanishing zombie",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.put("200/stat", strings.Replace(string(m["200/stat"].Data), "Z 100 0 9", "Z 0 -1 -1", 1))
			},
			zombie: ReasonVanished,
		},
		{
			name: "a zombie leader with live threads",
			build: func(m, cg tree) {
				m.thread(100, unix.SYS_POLL, [6]uint64{})
				m.stat("200/stat", 200, "Z", 100, 2)
			},
			zombie: ReasonLiveThreads,
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m, cg := newTree(), tree{}
			tc.build(m, cg)
			results := decline(request, "", "").Results
			p, err := newObserver(fstest.MapFS(m), fstest.MapFS(cg)).examine(request, results)
			reason, detail := Reason(""), ""
			var d *declined
			if errors.As(err, &d) {
				reason, detail = d.reason, d.detail
			}
			zombie := results[0].Reason
			if zombie == ReasonDeclined {
				zombie = ""
			}
			if p.tid != tc.tid || reason != tc.reason || zombie != tc.zombie {
				t.Errorf("thread %d, reason %q (%s), zombie %q; want %d, %q, %q", p.tid, reason, detail, zombie, tc.tid, tc.reason, tc.zombie)
			}
		})
	}
}

// fewFiles has room for so many open files.
type fewFiles struct {
	zombiesOf
	room *int
}

func (f fewFiles) zombieStat(i int) (procfs.Stat, error) {
	if *f.room--; *f.room < 0 {
		return procfs.Stat{}, fmt.Errorf("open stat: %w", unix.EMFILE)
	}
	return f.zombiesOf.zombieStat(i)
}

// TestFewFiles: zombies for which there is no file descriptor left are not refused, but left to the next attach.
func TestFewFiles(t *testing.T) {
	m := newTree()
	req := Request{Version: Version, PID: 100, StartTime: 1000}
	for pid := 300; pid < 303; pid++ {
		dir := fmt.Sprint(pid)
		m.stat(dir+"/stat", pid, "Z", 100, 1)
		m.status(dir+"/status", "Z", fmt.Sprintf("NSpid:\t%d\t%d", pid, pid-100))
		req.Zombies = append(req.Zombies, Zombie{PID: procfs.HostPID(pid), StartTime: uint64(10 * pid)})
	}
	results := decline(req, "", "").Results
	o, room := newObserver(fstest.MapFS(m), fstest.MapFS{}), 2
	p := newTargets(len(req.Zombies))
	err := o.zombies(req, fewFiles{zombiesOf{o, req}, &room}, &p, len(req.Zombies), results)
	if err != nil || !slices.Equal(p.todo, []bool{true, true, false}) || results[2].Outcome != Left {
		t.Errorf("to do %v, results %+v (%v)", p.todo, results, err)
	}
}

func TestBatchSize(t *testing.T) {
	for _, tc := range []struct {
		stop time.Duration
		want int
	}{{0, 1}, {time.Nanosecond, 1}, {time.Millisecond, 100}, {time.Second, MaxBatch}} {
		if got := batchSize(tc.stop); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.stop, got, tc.want)
		}
	}
}
