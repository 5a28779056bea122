package sweep_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// leak is a /proc in which orphans die at moments of a clock moved by hand, and a Reaper and a fork log that know them.
type leak struct {
	fstest.MapFS
	zombies map[procfs.HostPID]time.Time // dead since
	ages    []time.Duration              // of those reaped
	reaps   int                          // requests
	busy    float64                      // for that part of the time PID 1 is at work
	chance  *rand.Rand
	refused int // requests
	reads   int // of a zombie's stat
	now     *time.Time
	next    procfs.HostPID
}

func (l *leak) stat(pid, parent procfs.HostPID, state string) {
	const unused = " 0 0 0 0 0 0 0 0 0 0 0 0"
	l.MapFS[fmt.Sprintf("%d/stat", pid)] = &fstest.MapFile{Data: fmt.Appendf(nil, "%d (x) %s %d %d %d%s 0 1 0 100%s%s 0 0 0 0 0 0\n",
		pid, state, parent, pid, pid, unused, unused, unused)}
	l.MapFS[fmt.Sprintf("%d/status", pid)] = &fstest.MapFile{Data: fmt.Appendf(nil, "Name:\tx\nState:\t%s\nTgid:\t%d\nPPid:\t%d\nNSpid:\t%d\t%d\n",
		state, pid, parent, pid, pid)}
}

func (l *leak) children() {
	var list strings.Builder
	for pid := range l.zombies {
		fmt.Fprintf(&list, "%d ", pid)
	}
	l.MapFS["1/task/1/children"] = &fstest.MapFile{Data: []byte(list.String())}
}

func (l *leak) die(at time.Time) {
	l.next++
	l.zombies[l.next] = at
	l.stat(l.next, 1, "Z")
	l.children()
}

func (l *leak) Reap(_ context.Context, req tracer.Request) (tracer.Report, error) {
	if l.chance.Float64() < l.busy && !req.Running {
		l.refused++
		return answerBusy(req), nil
	}
	l.reaps++
	rep := tracer.Report{Attached: true, Attaches: 1, Stopped: time.Duration(len(req.Zombies)) * 10 * time.Microsecond}
	for _, z := range req.Zombies {
		l.ages = append(l.ages, l.now.Sub(l.zombies[z.PID]))
		delete(l.zombies, z.PID)
		delete(l.MapFS, fmt.Sprintf("%d/stat", z.PID))
		delete(l.MapFS, fmt.Sprintf("%d/status", z.PID))
		rep.Results = append(rep.Results, tracer.Result{PID: z.PID, Outcome: tracer.Reaped})
	}
	l.children()
	return rep, nil
}

func (l *leak) ReadFile(name string) ([]byte, error) {
	if path.Base(name) == "stat" && name != "1/stat" {
		l.reads++
	}
	return l.MapFS.ReadFile(name)
}

func (*leak) Sync()                                      {}
func (*leak) Exact() bool                                { return true }
func (*leak) Lookup(procfs.HostPID, uint64) lineage.Fork { return lineage.ForkedByOther }

// newLeak returns a leak and who watches it.
func newLeak(t *testing.T, grace time.Duration) (*leak, *sweep.Sweeper) {
	t.Helper()
	now := time.Unix(1000, 0)
	l := &leak{
		MapFS: fstest.MapFS{}, zombies: make(map[procfs.HostPID]time.Time), now: &now, next: 100, chance: rand.New(rand.NewPCG(3, 4)),
	}
	l.stat(1, 0, "S")
	l.children()
	s, err := sweep.New(sweep.Config{
		Proc: procfs.New(l), Init: lineage.Init{PID: 1}, InitStartTime: 100, Grace: grace, Reaper: l,
		Now: func() time.Time { return now }, BootTicks: func() uint64 { return 1 << 20 },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.SetForkLog(l)
	return l, s
}

// watch leaks so many orphans a second for a time, sweeps until all of them are gone, and returns how many there were of either.
func (l *leak) watch(t *testing.T, s *sweep.Sweeper, rate float64, even bool, lasts time.Duration) (leaked, looks int) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	end := l.now.Add(lasts)
	cadence := sweep.Cadence{Near: sweep.DefaultNear, Far: sweep.DefaultFar, Alone: sweep.DefaultAlone}
	interval := func() time.Duration {
		d := time.Duration(float64(time.Second) / rate)
		if !even {
			d = time.Duration(random.ExpFloat64() * float64(d))
		}
		return d
	}
	death := l.now.Add(interval())
	for l.now.Before(end) || len(l.zombies) > 0 {
		for ; !death.After(*l.now) && death.Before(end); death = death.Add(interval()) {
			l.die(death)
			leaked++
		}
		res, err := s.Sweep(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		looks++
		// The timer rings late, and a look takes a moment.
		*l.now = l.now.Add(cadence.Next(res, *l.now) + time.Duration(random.IntN(10))*time.Millisecond)
		if l.now.Sub(end) > time.Minute {
			t.Fatalf("%d zombies are never reaped", len(l.zombies))
		}
	}
	if len(l.ages) != leaked || leaked == 0 {
		t.Fatalf("%d of %d were reaped", len(l.ages), leaked)
	}
	return leaked, looks
}

// inTime checks that those reaped were gone after the grace period and not later than so long after it.
func (l *leak) inTime(t *testing.T, grace, late time.Duration) {
	t.Helper()
	for _, age := range l.ages {
		if age < grace || age > grace+late {
			t.Errorf("reaped after %v", age)
		}
	}
}

// Whatever the rate of a leak, each orphan is gone within the grace period and a second, of which a tenth is left to a busy machine; and
// a slow leak does not take an attach for each.
func TestLeakIsReapedTogetherAndInTime(t *testing.T) {
	const late = 900 * time.Millisecond
	for _, grace := range []time.Duration{0, 100 * time.Millisecond, time.Second, 1300 * time.Millisecond, 5 * time.Second} {
		for _, rate := range []float64{0.2, 1, 5, 20, 100} {
			for _, even := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v/%g a second/even %v", grace, rate, even), func(t *testing.T) {
					l, s := newLeak(t, grace)
					began := *l.now
					leaked, looks := l.watch(t, s, rate, even, max(20*time.Second, time.Duration(20/rate)*time.Second))
					l.inTime(t, grace, late)
					seconds := l.now.Sub(began).Seconds()
					if most := int(seconds*3.5) + 1; l.reaps > most {
						t.Errorf("%d attaches for %d orphans in %.0f s, want at most %d", l.reaps, leaked, seconds, most)
					}
					if most := int(seconds*7) + 1; looks > most {
						t.Errorf("%d looks in %.0f s, want at most %d", looks, seconds, most)
					}
					t.Logf("%d orphans, %d attaches, %.1f looks a second", leaked, l.reaps, float64(looks)/seconds)
				})
			}
		}
	}
}

// A PID 1 that never waits is asked for what is overdue, all at once, and seldom before that. Once it waits again the promise holds again.
func TestBusyPID1IsAskedSeldom(t *testing.T) {
	const grace, rate = time.Second, 100
	l, s := newLeak(t, grace)
	l.busy = 1
	l.watch(t, s, rate, true, 2*time.Second) // until that is known
	l.ages, l.reaps, l.refused, l.reads = nil, 0, 0, 0
	began := *l.now
	leaked, looks := l.watch(t, s, rate, true, 20*time.Second)
	l.inTime(t, grace, 2*time.Second)
	seconds := l.now.Sub(began).Seconds()
	if most := int(1.2 * seconds); l.reaps > most {
		t.Errorf("%d attaches for %d orphans in %.0f s, want at most %d", l.reaps, leaked, seconds, most)
	}
	if most := int(2 * seconds); l.refused > most {
		t.Errorf("%d requests in vain in %.0f s, want at most %d", l.refused, seconds, most)
	}
	if most := int(5 * seconds); looks > most {
		t.Errorf("%d looks in %.0f s, want at most %d", looks, seconds, most)
	}
	// The tracer looks at each zombie itself.
	if l.reads > leaked+leaked/20 {
		t.Errorf("the state of %d zombies was read %d times", leaked, l.reads)
	}
	t.Logf("%d orphans, %d attaches, %d in vain, %.1f looks a second, %d reads", leaked, l.reaps, l.refused, float64(looks)/seconds, l.reads)

	l.busy, l.ages = 0, nil
	l.watch(t, s, rate, true, 5*time.Second)
	l.inTime(t, grace, time.Second)
}

// A PID 1 that is at work for half of the time is tried until it is found waiting.
func TestHalfBusyPID1(t *testing.T) {
	const grace, rate = time.Second, 20
	l, s := newLeak(t, grace)
	l.busy = 0.5
	l.watch(t, s, rate, true, 60*time.Second)
	l.inTime(t, grace, time.Second)
}
