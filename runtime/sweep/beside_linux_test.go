package sweep_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

func requireNumbers(t testing.TB) {
	t.Helper()
	if !pidfd.Supported() {
		testutil.Lacks(t, "no PIDFD_GET_INFO", "Linux 6.13")
	}
}

// exactLog has heard of all forks since a tick. PID 1 has forked those that are its own.
type exactLog struct {
	complete uint64
	own      map[procfs.HostPID]bool
}

func (l *exactLog) Sync()       {}
func (l *exactLog) Exact() bool { return true }
func (l *exactLog) Lookup(pid procfs.HostPID, startTime uint64) lineage.Fork {
	switch {
	case l.own[pid]:
		return lineage.ForkedByInit
	case startTime < l.complete:
		return lineage.ForkUnknown
	}
	return lineage.ForkedByOther
}

// numbered is /proc where the number that was given last, and the greatest, are what a test says, if it says so.
type numbered struct {
	counted
	last, most atomic.Int64
}

func (n *numbered) Open(name string) (fs.File, error) {
	var text string
	switch last, most := n.last.Load(), n.most.Load(); {
	case name == "loadavg" && last != 0:
		text = fmt.Sprintf("0.00 0.00 0.00 1/80 %d\n", last)
	case name == "sys/kernel/pid_max" && most != 0:
		text = fmt.Sprintln(most)
	default:
		return n.counted.Open(name)
	}
	return fstest.MapFS{name: &fstest.MapFile{Data: []byte(text)}}.Open(name)
}

// numbersTest is a Sweeper with plenty to be done, which looks by number.
type numbersTest struct {
	*testing.T
	p    *pid1
	proc *numbered
	r    *recorder
	s    *sweep.Sweeper
	c    *clock
	log  *exactLog
	want int // zombies that are known
}

const plentyOf = 100 // zombies that are known before the first look by number

func startNumbers(t *testing.T, cfg sweep.Config) *numbersTest {
	requireNumbers(t)
	n := &numbersTest{T: t, p: startHerd(t), r: &recorder{answer: answerAll(tracer.Left, tracer.ReasonBudget)}, want: plentyOf}
	n.proc = &numbered{counted: counted{FS: os.DirFS("/proc")}}
	n.p.proc = procfs.New(n.proc)
	st, err := n.p.proc.Stat(n.p.pid())
	if err != nil {
		t.Fatal(err)
	}
	n.log = &exactLog{complete: st.StartTime, own: make(map[procfs.HostPID]bool)}
	n.p.herd("adopted", plentyOf)
	n.p.aged()
	cfg.Reaper = n.r
	n.s, n.c = n.p.sweeperWith(cfg)
	n.s.SetForkLog(n.log)
	n.s.SetLimits(160, 10*plentyOf, 5*plentyOf, 1024)
	n.s.SetCgroups(nil)
	mustSweep(t, n.s)
	n.known("on the list of children")
	n.c.now = n.c.now.Add(2 * time.Hour)
	return n
}

// look makes a look by number, and takes in what it finds.
func (n *numbersTest) look() {
	n.Helper()
	n.c.now = n.c.now.Add(sweep.LookBeside)
	mustSweep(n.T, n.s)
	if !n.s.Beside() {
		n.Fatal("no look goes on beside")
	}
	<-n.s.LookedBeside()
	n.r.requests = nil
	mustSweep(n.T, n.s)
}

func (n *numbersTest) known(what string) {
	n.Helper()
	if n.s.Tracked() != n.want {
		n.Errorf("%s: %d zombies are known, want %d", what, n.s.Tracked(), n.want)
	}
}

// children returns the children of PID 1 that are in a state.
func (n *numbersTest) children(state procfs.State) (pids []procfs.HostPID) {
	n.Helper()
	all, err := n.p.proc.ThreadChildren(n.p.pid(), n.p.pid())
	if err != nil {
		n.Fatal(err)
	}
	for _, pid := range all {
		if st, err := n.p.proc.Stat(pid); err == nil && st.State == state {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestLookByNumber: where the fork log has heard of all forks, zombies are found by their numbers, without a file of theirs. They have
// IDs, their names are read as far as somebody is told, and PID 1's own are left to it.
func TestLookByNumber(t *testing.T) {
	const adopted, living, own, told = 60, 5, 3, plentyOf + 2
	n := startNumbers(t, sweep.Config{Grace: time.Minute, Tell: func() int { return told }})
	n.look() // goes over the list of all processes as well
	n.known("nothing new")

	n.p.herd("orphans", living)
	orphans := n.children(procfs.StateSleeping)
	if len(orphans) != living {
		t.Fatalf("%d orphans live, want %d", len(orphans), living)
	}
	n.look()
	n.known("orphans that live")

	before := n.proc.opened.Load()
	n.p.herd("adopted", adopted)
	n.look()
	n.want += adopted
	n.known("by number")
	if opened := n.proc.opened.Load() - before; opened > 10 {
		t.Errorf("%d files opened for %d zombies", opened, adopted)
	}
	seen := make(map[procfs.HostPID]bool)
	for _, pid := range n.children(procfs.StateZombie) {
		seen[pid] = true
	}
	n.p.herd("own", own)
	for _, pid := range n.children(procfs.StateZombie) {
		n.log.own[pid] = !seen[pid]
	}
	for _, pid := range orphans {
		if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	dead := n.want + own + living
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		zombies := len(n.children(procfs.StateZombie))
		return zombies == dead, fmt.Sprintf("%d zombies, want %d", zombies, dead)
	})
	n.look()
	n.want += own + living
	n.known("orphans that have died, and own children")
	if st := n.s.Stats(); st.Own != own || st.Adopted != n.want-own || st.Vanished != 0 || st.Contradictions != 0 {
		t.Errorf("%+v, want %d own", st, own)
	}

	n.c.now = n.c.now.Add(2 * time.Minute)
	ids, named, unnamed := 0, 0, 0
	var reaped []sweep.Orphan
	n.r.answer = func(req tracer.Request) tracer.Report {
		youngest := false
		for _, z := range req.Zombies {
			if z.ID == 0 {
				continue
			}
			ids++
			youngest = true
			if f, err := pidfd.Of(z.PID); err != nil || f.ID != z.ID {
				t.Errorf("zombie %+v has the facts %+v, %v", z, f, err)
			}
		}
		if req.Probe != youngest || (req.Age >= time.Minute) != youngest {
			t.Errorf("a request with age %v, probe %v; IDs: %v", req.Age, req.Probe, youngest)
		}
		n.p.take(req.Zombies)
		return answerAll(tracer.Reaped, "")(req)
	}
	n.r.requests = nil
	for range 20 {
		n.c.now = n.c.now.Add(time.Second)
		reaped = append(reaped, mustSweep(t, n.s).Reaped...)
	}
	for _, o := range reaped {
		switch {
		case o.Unnamed:
			unnamed++
			if o.Comm != "" || o.Status != 0 {
				t.Errorf("%+v", o)
			}
		default:
			named++
			if o.Comm != "herd" || o.Status != 3<<8 && o.Status != int(syscall.SIGKILL) {
				t.Errorf("%+v", o)
			}
		}
	}
	if ids != adopted+living || len(reaped) != plentyOf+adopted+living || unnamed == 0 || named <= plentyOf {
		t.Errorf("%d of %d reaped had IDs, %d were named and %d not, in %d requests", ids, len(reaped), named, unnamed, len(n.r.requests))
	}
	if st := n.s.Stats(); st.Own != own || st.Vanished != 0 || n.s.Tracked() != own {
		t.Errorf("%+v is left, want %d own", st, own)
	}
}

// Whoever asks for the zombies is told their names, and a zombie that has gone is missed, whatever has its number now.
func TestNumbersInDetail(t *testing.T) {
	const adopted = 20
	n := startNumbers(t, sweep.Config{Grace: time.Hour})
	n.look()
	n.p.herd("adopted", adopted)
	n.look()
	n.want += adopted
	n.known("by number")
	list, omitted := n.s.Zombies(1000)
	if len(list) != n.want || omitted != 0 {
		t.Fatalf("%d zombies listed, %d omitted, want %d", len(list), omitted, n.want)
	}
	for _, z := range list {
		if z.Comm != "herd" || z.Session == 0 || z.Status != 3<<8 || z.NSPID == 0 {
			t.Errorf("%+v", z)
		}
	}
	n.p.herd("adopted", adopted)
	n.look()
	n.want += adopted
	n.known("by number again")
	n.p.herd("reap", n.want-adopted/2) // the oldest: some of those that were found by number and not looked at since
	n.c.now = n.c.now.Add(time.Hour / 2)
	if _, err := n.s.SweepNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.want = adopted / 2
	n.known("after others were reaped")
	if st := n.s.Stats(); st.Vanished == 0 {
		t.Errorf("%+v: none vanished", st)
	}
}

// The kernel begins again with the low numbers when it has given the greatest.
func TestNumbersBeginAgain(t *testing.T) {
	const adopted = 10
	t.Run("the last ones", func(t *testing.T) {
		n := startNumbers(t, sweep.Config{Grace: time.Minute})
		n.look()
		now, err := n.p.proc.LastPID()
		if err != nil {
			t.Fatal(err)
		}
		n.p.herd("adopted", adopted)
		n.proc.last.Store(1)
		n.proc.most.Store(int64(now) + 5000)
		n.look()
		n.want += adopted
		n.known("between the last one and the greatest")
	})
	t.Run("the first ones", func(t *testing.T) {
		n := startNumbers(t, sweep.Config{Grace: time.Minute})
		now, err := n.p.proc.LastPID()
		if err != nil {
			t.Fatal(err)
		}
		n.proc.last.Store(int64(now) + 5000)
		n.look()
		n.known("as if many numbers had been given")
		n.p.herd("adopted", adopted)
		n.look()
		n.known("with low numbers")
		n.proc.last.Store(0)
		n.proc.most.Store(int64(now) + 5010)
		n.want += adopted
		for range 40 { // there may be very many numbers to try, and a look takes half a second at most
			if n.look(); n.s.Tracked() == n.want {
				break
			}
		}
		n.known("once they have begun again")
		n.look()
		n.known("and once more")
		if st := n.s.Stats(); st.Vanished != 0 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("no greatest one", func(t *testing.T) {
		n := startNumbers(t, sweep.Config{Grace: time.Minute})
		n.look()
		n.p.herd("adopted", adopted)
		n.proc.last.Store(1)
		n.proc.most.Store(-1)
		n.look()
		n.want += adopted
		n.known("on the list of all processes")
	})
}

// With several threads a child on the list of another than the leader is PID 1's own, and left alone where the fork log says otherwise
// (CLONE_PARENT in clone(2)).
func TestNumbersAndThreads(t *testing.T) {
	const adopted, other = 10, 3
	n := startNumbers(t, sweep.Config{Grace: time.Minute})
	n.p.herd("park", 2)
	n.look()
	n.p.herd("adopted", adopted)
	n.p.herd("other", other)
	n.look()
	n.want += adopted + other
	n.known("by number")
	if st := n.s.Stats(); st.Adopted != n.want-other || st.Unproven != other || st.Contradictions != other {
		t.Errorf("%+v, want %d adopted and %d contradictions", st, n.want-other, other)
	}
	if n.proc.pages.Load() == 0 {
		t.Error("no list of children was read")
	}
}
