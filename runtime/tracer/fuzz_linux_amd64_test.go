package tracer

import (
	"errors"
	"testing"
	"testing/fstest"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// FuzzExamine: PID 1 is attached to only where every file of /proc says in so many words that it may be.
func FuzzExamine(f *testing.F) {
	m := newTree()
	m.thread(100, 202, [6]uint64{})
	text := func(name string) []byte { return m[name].Data }
	f.Add(text("100/stat"), text("100/status"), text("100/task/100/status"), text("100/task/100/syscall"), text("200/stat"), text("200/status"),
		[]byte("0::/a\n"), []byte("frozen 0\n"), []byte("Pid:\t200\n"))
	f.Add(text("100/stat"), text("100/status"), text("100/task/100/status"), []byte("247 0x3 0x4 0 0 0 0 0 0\n"), text("200/stat"), text("200/status"),
		[]byte("0::/../..\n"), []byte("frozen 1\n"), []byte("Pid:\t-1\n"))
	f.Fuzz(func(t *testing.T, stat, status, threadStatus, call, zstat, zstatus, cgroup, events, fdinfo []byte) {
		m, cg := tree{}, tree{}
		for name, data := range map[string][]byte{"100/stat": stat, "100/status": status, "100/task/100/status": threadStatus,
			"100/task/100/syscall": call, "200/stat": zstat, "200/status": zstatus, "100/cgroup": cgroup, "100/fdinfo/4": fdinfo} {
			m.put(name, string(data))
		}
		cg.put("a/cgroup.events", string(events))
		req := Request{Version: Version, PID: 100, StartTime: 1000, Zombies: []Zombie{{PID: 200, StartTime: 2000, NSPID: 20}}}
		rep := decline(req, "", "")
		p, err := newObserver(fstest.MapFS(m), fstest.MapFS(cg)).examine(req, rep.Results)
		var d *declined
		if err != nil && !errors.As(err, &d) {
			t.Fatalf("an error that is no refusal: %v", err)
		}
		if err != nil || p.tid == 0 {
			return
		}
		if !p.todo[0] {
			t.Fatal("a thread without a zombie")
		}
		s, err := procfs.ParseStat(stat)
		if err != nil || s.StartTime != 1000 || s.State == procfs.StateZombie && s.NumThreads <= 1 {
			t.Errorf("attached to %+v, %v", s, err)
		}
		z, err := procfs.ParseStat(zstat)
		if err != nil || z.State != procfs.StateZombie || z.PPID != 100 || z.StartTime != 2000 || z.NumThreads > 1 {
			t.Errorf("would reap %+v, %v", z, err)
		}
		ts, err := procfs.ParseStatus(threadStatus)
		if err != nil || ts.TracerPid != 0 || ts.State != procfs.StateSleeping || ts.Seccomp == procfs.SeccompStrict {
			t.Errorf("attached to a thread with %+v, %v", ts, err)
		}
		sc, err := procfs.ParseSyscall(call)
		if err != nil || sc.Running || classifyCall(sc.Nr, sc.Args).class == classUnsafe {
			t.Errorf("attached to a thread in %+v, %v", sc, err)
		}
	})
}
