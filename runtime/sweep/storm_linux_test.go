package sweep_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// startHerd starts a PID 1 that makes zombies by the thousand.
func startHerd(t testing.TB) *pid1 {
	t.Helper()
	testutil.Root(t)
	return start(t, testutil.Victim(t, "herd"), "herd")
}

// startCountedHerd is startHerd, with all that is read of /proc counted.
func startCountedHerd(t testing.TB) (*pid1, *counted) {
	t.Helper()
	p, proc := startHerd(t), &counted{FS: os.DirFS("/proc")}
	p.proc = procfs.New(proc)
	return p, proc
}

func (p *pid1) herd(what string, n int) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, what, n); err != nil {
		p.t.Fatal(err)
	}
	p.expect("done")
}

// take has PID 1 wait for these zombies, and no others.
func (p *pid1) take(zs []tracer.Zombie) {
	p.t.Helper()
	for _, z := range zs {
		st, err := p.proc.Status(z.PID)
		if err != nil {
			p.t.Fatal(err)
		}
		p.herd("take", int(st.NSpid[len(st.NSpid)-1]))
	}
}

// aged waits until all that herd has forked is old enough to be identified by its start time.
func (p *pid1) aged() {
	p.t.Helper()
	born := sweep.BootTicks()
	testutil.Eventually(p.t, 5*time.Second, func() (bool, string) {
		now := sweep.BootTicks()
		return now > born+lineage.MinTicks, fmt.Sprint(now)
	})
}

// counted is /proc, and counts what is read of it.
type counted struct {
	fs.FS
	opened, status, pages atomic.Int64 // files of single processes, those of them that are status files, reads of children files
	roots                 atomic.Int64 // times that /proc itself was opened
	held                  sync.RWMutex // by whoever keeps looks waiting
}

// hold keeps the reads of children files, and who opens /proc, waiting until open is called.
func (c *counted) hold() (open func()) {
	c.held.Lock()
	return c.held.Unlock
}

func (c *counted) Open(name string) (fs.File, error) {
	if name == "." {
		c.held.RLock()
		defer c.held.RUnlock()
		c.roots.Add(1)
	}
	f, err := c.FS.Open(name)
	if strings.HasSuffix(name, "/children") && err == nil {
		return countedFile{f, c}, nil
	}
	c.opened.Add(1)
	if strings.HasSuffix(name, "/status") {
		c.status.Add(1)
	}
	return f, err
}

type countedFile struct {
	fs.File
	all *counted
}

func (f countedFile) Read(p []byte) (int, error) {
	f.all.held.RLock()
	defer f.all.held.RUnlock()
	f.all.pages.Add(1)
	return f.File.Read(p)
}

// The work of a sweep grows with the number of zombies and not faster: one stat file for each that is new, one status file for each
// that is asked for, and for the list of children a read for each page of it.
func TestWorkIsLinear(t *testing.T) {
	const asked = 1 // attach takes all that it is asked for
	for _, n := range []int{10, 100, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			p, proc := startCountedHerd(t)
			p.herd("adopted", n)
			p.aged()
			r := &recorder{}
			released := 0
			r.answer = func(req tracer.Request) tracer.Report {
				p.herd("reap", len(req.Zombies)) // the oldest come first, there and here
				released += len(req.Zombies)
				return answerAll(tracer.Reaped, "")(req)
			}
			s, c := p.sweeper(r, time.Hour)
			s.SetCgroups(nil)
			proc.opened.Store(0)
			mustSweep(t, s)
			if got, want := proc.opened.Load(), int64(n+5); got > want {
				t.Errorf("the first sweep opened %d files, want at most %d", got, want)
			}
			if got, want := proc.pages.Load(), int64(n*7/4096+3); got > want { // at most six digits and a space each
				t.Errorf("the first sweep took %d reads of children files, want at most %d", got, want)
			}
			if got := proc.status.Load(); got > 3 {
				t.Errorf("%d status files were read though nothing was asked for", got)
			}
			if st := s.Stats(); st.Adopted != n {
				t.Fatalf("%d adopted zombies found, want %d", st.Adopted, n)
			}

			c.now = c.now.Add(2 * time.Hour)
			proc.opened.Store(0)
			proc.status.Store(0)
			for released < n {
				before := released
				mustSweep(t, s)
				if released == before {
					t.Fatalf("%d of %d asked for, and no more", released, n)
				}
			}
			// Each is looked at once more, now that the last look is two hours ago, and asked for.
			if got, want := proc.opened.Load(), int64((2+asked)*n+20); got > want {
				t.Errorf("%d files opened to have %d zombies reaped, want at most %d", got, n, want)
			}
			if got, want := proc.status.Load(), int64(asked*n+20); got > want {
				t.Errorf("%d status files read, want at most %d", got, want)
			}
			if most := int64(3 * (n/sweep.MaxBatch + 8)); int64(len(r.requests)) > most {
				t.Errorf("%d requests, want at most %d", len(r.requests), most)
			}
			mustSweep(t, s)
			if s.Tracked() != 0 {
				t.Errorf("%d zombies are remembered, and none is left", s.Tracked())
			}
		})
	}
}

// While there is plenty to be done nobody waits for a look: it goes on beside the attaches, now and then, and finds what is new. Whoever
// asks is told of all there is.
func TestLookBeside(t *testing.T) {
	t.Run("one thread", func(t *testing.T) { testLookBeside(t, false) })
	t.Run("several threads", func(t *testing.T) { testLookBeside(t, true) })
}

func testLookBeside(t *testing.T, threads bool) {
	const zombies, look, each = 200, 160, 60
	p, proc := startCountedHerd(t)
	if threads {
		p.herd("park", 1)
	}
	p.herd("adopted", zombies)
	p.aged()
	r := &recorder{}
	s, c := p.sweeper(r, time.Hour)
	s.SetLimits(look, 2*zombies, zombies, 1024)
	s.SetCgroups(nil)
	for s.Tracked() < zombies {
		if res := mustSweep(t, s); !res.More && s.Tracked() < zombies {
			t.Fatalf("%d of %d zombies found, and no more", s.Tracked(), zombies)
		}
	}
	c.now = c.now.Add(2 * time.Hour)

	// run has at most n reaped, and says whether it has read the list.
	run := func(n int, sweep func(context.Context) (sweep.Result, error)) bool {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		r.answer = func(req tracer.Request) tracer.Report {
			rep := answerAll(tracer.Left, tracer.ReasonBudget)(req)
			some := min(n, len(req.Zombies))
			p.herd("reap", some)
			for i := range some {
				rep.Results[i] = tracer.Result{PID: req.Zombies[i].PID, Outcome: tracer.Reaped}
			}
			if n -= some; n == 0 {
				cancel()
			}
			return rep
		}
		before := proc.pages.Load() + proc.roots.Load()
		if _, err := sweep(ctx); err != nil {
			t.Fatal(err)
		}
		return proc.pages.Load()+proc.roots.Load() > before
	}
	left := zombies
	known := func(what string) {
		t.Helper()
		if s.Tracked() != left {
			t.Errorf("%s: %d zombies are known, want %d", what, s.Tracked(), left)
		}
	}
	if !run(each, s.SweepNow) {
		t.Error("no look for somebody who asks")
	}
	left -= each
	p.herd("adopted", 1)
	if run(1, s.Sweep) {
		t.Errorf("a look with %d zombies due", s.Tracked()+1)
	}
	left--
	known("without a look")
	if !run(1, s.SweepNow) {
		t.Error("no look for somebody who asks")
	}
	known("after a look and another one reaped")

	c.now = c.now.Add(sweep.LookBeside)
	p.herd("adopted", 1)
	if threads {
		// PID 1's own, which could not be told from an orphan if it were not on the list of its thread alone.
		p.herd("other", 1)
	}
	roots := proc.roots.Load()
	r.requests, r.answer = nil, answerAll(tracer.Left, tracer.ReasonBudget)
	open := proc.hold()
	mustSweep(t, s)
	open()
	if len(r.requests) == 0 {
		t.Error("nothing was asked for during the look")
	}
	known("with the look still going on")
	left++
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		mustSweep(t, s)
		return s.Tracked() == left, fmt.Sprintf("%d zombies are known, want %d", s.Tracked(), left)
	})
	if went := proc.roots.Load() > roots; went == threads {
		t.Errorf("a look at all processes: %v, with several threads: %v", went, threads)
	}
	if run(1, s.Sweep) {
		t.Error("a second look at once")
	}
	left--
	if run(left-look/16, s.Sweep); !run(1, s.Sweep) {
		t.Errorf("no look with %d zombies due", s.Tracked())
	}
}

// A zombie that is known and reaped while a look goes on beside is not found once more: it would be taken for one that vanished by itself.
func TestLookBesideFindsNothingTwice(t *testing.T) {
	t.Run("on the list", func(t *testing.T) { testLookBesideFindsNothingTwice(t, nil) })
	t.Run("by number", func(t *testing.T) {
		requireNumbers(t)
		testLookBesideFindsNothingTwice(t, &exactLog{})
	})
}

func testLookBesideFindsNothingTwice(t *testing.T, log sweep.ForkLog) {
	const zombies, each = 100, 40
	p, _ := startCountedHerd(t)
	p.herd("adopted", zombies)
	p.aged()
	r := &recorder{answer: answerAll(tracer.Left, tracer.ReasonBudget)}
	s, c := p.sweeper(r, 0)
	if log != nil {
		s.SetForkLog(log)
	}
	s.SetLimits(160, 2*zombies, zombies, 1024)
	s.SetCgroups(nil)
	mustSweep(t, s)
	c.now = c.now.Add(sweep.LookBeside)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r.answer = func(req tracer.Request) tracer.Report {
		<-s.LookedBeside()
		rep := answerAll(tracer.Left, tracer.ReasonBudget)(req)
		n := min(each, len(req.Zombies))
		p.take(req.Zombies[:n])
		for i := range n {
			rep.Results[i] = tracer.Result{PID: req.Zombies[i].PID, Outcome: tracer.Reaped}
		}
		cancel()
		return rep
	}
	res, err := s.Sweep(ctx)
	if err != nil || len(res.Reaped) == 0 || !s.Beside() {
		t.Fatalf("%d reaped, a look beside: %v, %v", len(res.Reaped), s.Beside(), err)
	}
	r.answer = answerAll(tracer.Left, tracer.ReasonBudget)
	mustSweep(t, s)
	if got, want := s.Tracked(), zombies-len(res.Reaped); got != want {
		t.Errorf("%d zombies are known, want %d", got, want)
	}
}

// Waiting for a look that goes on beside is no load, which the next sweep would be put off for.
func TestLookBesideIsNoLoad(t *testing.T) {
	const zombies, look, held = 100, 160, 300 * time.Millisecond
	p, proc := startCountedHerd(t)
	p.herd("adopted", zombies)
	p.aged()
	st, err := p.proc.Stat(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{answer: answerAll(tracer.Left, tracer.ReasonBudget)}
	s, err := sweep.New(sweep.Config{
		Proc: p.proc, Init: lineage.Init{PID: p.pid(), SessionLeader: true}, InitStartTime: st.StartTime, Reaper: r,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.SetLimits(look, 2*zombies, zombies, 1024)
	mustSweep(t, s)
	open := proc.hold()
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		mustSweep(t, s)
		return s.Beside(), "no look goes on beside"
	})
	r.answer = func(req tracer.Request) tracer.Report {
		p.herd("reap", len(req.Zombies))
		return answerAll(tracer.Reaped, "")(req)
	}
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		mustSweep(t, s)
		return s.Tracked() == 0, fmt.Sprintf("%d are left", s.Tracked())
	})
	time.AfterFunc(held, open)
	began := time.Now()
	res := mustSweep(t, s)
	if took := time.Since(began); took < held/2 || res.Looking > took/2 {
		t.Errorf("a sweep took %v, of it %v for looking", took, res.Looking)
	}
}

// However many zombies there are that nobody may reap, memory and the work of one sweep stay bounded, all are counted, and the
// orphans behind them are found.
func TestMemoryIsBounded(t *testing.T) {
	const own, adopted, look, tracked, useless, verify = 700, 40, 50, 100, 60, 20
	p, proc := startCountedHerd(t)
	p.herd("own", own)
	p.herd("adopted", adopted)
	r := &recorder{answer: answerAll(tracer.Reaped, "")}
	s, c := p.sweeper(r, 0)
	s.SetLimits(look, tracked, useless, verify)
	s.SetForkLog(sessionLog{p})
	s.SetCgroups(nil)
	asked := func() map[procfs.HostPID]bool {
		set := make(map[procfs.HostPID]bool)
		for _, pid := range r.asked() {
			set[pid] = true
		}
		return set
	}
	more := 0
	for i := 0; len(asked()) < adopted; i++ {
		if i > 10*(own+adopted)/look {
			t.Fatalf("%d of %d orphans found in %d sweeps: %+v", len(asked()), adopted, i, s.Stats())
		}
		proc.opened.Store(0)
		pages := proc.pages.Load()
		res := mustSweep(t, s)
		if res.More {
			more++
		}
		c.now = c.now.Add(time.Second)
		if s.Tracked() > tracked {
			t.Fatalf("%d zombies are remembered, want at most %d", s.Tracked(), tracked)
		}
		// Looks and those of the test's fork log, second looks, the status of what is asked for, and PID 1.
		if got := proc.opened.Load(); got > 2*look+verify+adopted+10 {
			t.Fatalf("a sweep opened %d files", got)
		}
		if got := proc.pages.Load() - pages; got > 5 {
			t.Fatalf("a sweep took %d reads of the list", got)
		}
	}
	if more == 0 {
		t.Error("no sweep asked for the next at once, although it had ended at a limit")
	}
	// The recorder has released none: they are found again, and every own one is counted once in each pass.
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		mustSweep(t, s)
		c.now = c.now.Add(time.Second)
		return s.Stats().Own == own, fmt.Sprintf("%+v", s.Stats())
	})
	for _, req := range r.requests {
		for _, z := range req.Zombies {
			if st, err := p.proc.Stat(z.PID); err != nil || st.Session == p.pid() {
				t.Fatalf("asked for process %d of PID 1's own session: %+v, %v", z.PID, st, err)
			}
		}
	}
	// PID 1 changes its mind and reaps them: all are forgotten.
	p.herd("reap", own+adopted)
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		mustSweep(t, s)
		c.now = c.now.Add(time.Second)
		st := s.Stats()
		return s.Tracked() == 0 && st.Own+st.Adopted+st.Unproven == 0, fmt.Sprintf("%d tracked, %+v", s.Tracked(), st)
	})
}

// sessionLog is a fork log that knows what herd forks by its session.
type sessionLog struct{ p *pid1 }

func (sessionLog) Sync()       {}
func (sessionLog) Exact() bool { return true }

func (l sessionLog) Lookup(pid procfs.HostPID, _ uint64) lineage.Fork {
	if st, err := l.p.proc.Stat(pid); err == nil && st.Session == l.p.pid() {
		return lineage.ForkedByInit
	}
	return lineage.ForkUnknown
}

// PID 1 gets to run: where the whole rest is kept it is stopped for less than half of the time however much is due. A request is for what
// fits in the attaches that it allows, and for several of them where there is much to be done.
func TestRoomBetweenAttaches(t *testing.T) {
	const zombies, perZombie = 1500, 100 * time.Microsecond
	const fits = int(sweep.MaxStop / perZombie)
	p := startHerd(t)
	p.herd("adopted", zombies)
	p.aged()
	var (
		stops   []time.Time // their beginnings
		sizes   []int
		stopped time.Duration
		done    int
		rested  time.Time // as the worker, which knows of its last attach what a request that is there already cannot
	)
	r := &recorder{}
	r.answer = func(req tracer.Request) tracer.Report {
		if req.MaxStop != sweep.MaxStop {
			t.Errorf("a stop of %v was asked for", req.MaxStop)
		}
		rep := answerAll(tracer.Left, tracer.ReasonBudget)(req)
		rep.Attaches, rep.Stopped = 0, 0
		rest := max(req.Rest, time.Until(rested))
		for at := 0; at < len(req.Zombies) && rep.Attaches < max(1, req.Attaches); rep.Attaches++ {
			time.Sleep(rest)
			stops = append(stops, time.Now())
			n := min(len(req.Zombies)-at, fits)
			for i := at; i < at+n; i++ {
				rep.Results[i] = tracer.Result{PID: req.Zombies[i].PID, Outcome: tracer.Reaped}
			}
			stop := time.Duration(n) * perZombie
			rep.Stopped = max(rep.Stopped, stop)
			stopped += stop
			done += n
			at += n
			sizes = append(sizes, n)
			p.take(req.Zombies[at-n : at])
			time.Sleep(time.Until(stops[len(stops)-1].Add(stop)))
			rest = tracer.RestAfter(stop)
			rested = time.Now().Add(rest)
		}
		return rep
	}
	s, _ := p.sweeper(r, 0)
	began := time.Now()
	for done < zombies {
		before := done
		if res := mustSweep(t, s); done == before {
			t.Fatalf("%d of %d reaped, and no more: %+v", done, zombies, res)
		}
	}
	if wall := time.Since(began); 2*stopped >= wall {
		t.Errorf("PID 1 was stopped for %v of %v", stopped, wall)
	}
	for i := 1; i < len(stops); i++ {
		n := sizes[i-1]
		if gap := stops[i].Sub(stops[i-1]) - time.Duration(n)*perZombie; gap < time.Duration(n)*perZombie {
			t.Errorf("%v between a stop of %v and the next", gap, time.Duration(n)*perZombie)
		}
	}
	// What is asked for beyond what fits is checked for nothing.
	for i, req := range r.requests[5:] {
		if n, fit := len(req.Zombies), fits*max(1, req.Attaches); n > 2*fit {
			t.Errorf("request %d names %d zombies, and %d fit", i+5, n, fit)
		}
	}
	if n := len(r.requests); n > len(stops)/2 {
		t.Errorf("%d requests for %d attaches", n, len(stops))
	}
}

// Where there is much to be done the next request is there before the answer to the last has been dealt with, and a sweep ends with two under
// way. No zombie is asked for twice, and all answers are heard.
func TestAhead(t *testing.T) {
	const zombies = 900
	type bench struct {
		*pid1
		s       *sweep.Sweeper
		asked   atomic.Int64 // zombies
		started atomic.Int64 // requests
		open    func()       // lets the third request and those after it go on
	}
	begin := func(t *testing.T) *bench {
		b := &bench{pid1: startHerd(t)}
		b.herd("adopted", zombies)
		b.aged()
		gate := make(chan struct{})
		b.open = sync.OnceFunc(func() { close(gate) })
		t.Cleanup(b.open)
		r := &recorder{answer: func(req tracer.Request) tracer.Report {
			b.asked.Add(int64(len(req.Zombies)))
			if b.started.Add(1) < 3 {
				time.Sleep(sweep.MaxReap * 3 / 5)
			} else {
				<-gate
			}
			return answerAll(tracer.Reaped, "")(req)
		}}
		b.s, _ = b.sweeper(r, 0)
		b.s.SetCgroups(nil)
		return b
	}
	// first is a sweep that ends with a request under way.
	first := func(t *testing.T, b *bench) int {
		t.Helper()
		res := mustSweep(t, b.s)
		if len(res.Reaped) == 0 || !res.More || b.s.InFlight() == 0 || b.s.Tracked() != zombies-len(res.Reaped) {
			t.Fatalf("%d reaped, more %v, %d in flight, %d left", len(res.Reaped), res.More, b.s.InFlight(), b.s.Tracked())
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			return b.started.Load() == 3, fmt.Sprintf("%d requests are under way or answered, want 3", b.started.Load())
		})
		return len(res.Reaped)
	}
	t.Run("goes on", func(t *testing.T) {
		b := begin(t)
		seen := first(t, b)
		b.open()
		for seen < zombies {
			before := seen
			if seen += len(mustSweep(t, b.s).Reaped); seen == before {
				t.Fatalf("%d of %d reaped, and no more", seen, zombies)
			}
		}
		if n := b.asked.Load(); n != zombies || seen != zombies || b.s.Tracked() != 0 {
			t.Errorf("%d asked for, %d reaped, %d left, of %d", n, seen, b.s.Tracked(), zombies)
		}
	})
	t.Run("somebody asks", func(t *testing.T) {
		b := begin(t)
		seen := first(t, b)
		b.open()
		res, err := b.s.SweepNow(context.Background())
		if err != nil || b.s.InFlight() != 0 || b.asked.Load() != int64(seen+len(res.Reaped)) {
			t.Errorf("%d asked for, %d and %d reaped, %d in flight, %v", b.asked.Load(), seen, len(res.Reaped), b.s.InFlight(), err)
		}
	})
	t.Run("PID 1 ends", func(t *testing.T) {
		b := begin(t)
		seen := first(t, b)
		if err := b.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = b.cmd.Wait()
		b.open()
		res, err := b.s.Sweep(context.Background())
		if err != nil || !res.More || b.asked.Load() != int64(seen+len(res.Reaped)) {
			t.Errorf("%d asked for, %d and %d reaped, more %v, %v", b.asked.Load(), seen, len(res.Reaped), res.More, err)
		}
		if _, err := b.s.Sweep(context.Background()); !errors.Is(err, sweep.ErrInitGone) {
			t.Errorf("then %v, want %v", err, sweep.ErrInitGone)
		}
	})
}

// A signal for PID 1 ends an attach. As long as the attaches get somewhere the next one comes at once, and smaller.
func TestSignalIsNoRefusal(t *testing.T) {
	const zombies, got = 60, 3
	p := startHerd(t)
	p.herd("adopted", zombies)
	p.aged()
	r := &recorder{}
	progress := true
	r.answer = func(req tracer.Request) tracer.Report {
		rep := answerAll(tracer.Left, tracer.ReasonDeclined)(req)
		rep.Reason, rep.Stopped = tracer.ReasonSignal, time.Microsecond
		if progress {
			for i := range min(got, len(req.Zombies)) {
				rep.Results[i] = tracer.Result{PID: req.Zombies[i].PID, Outcome: tracer.Reaped}
			}
			p.herd("reap", min(got, len(req.Zombies)))
		}
		return rep
	}
	s, c := p.sweeper(r, 0)
	// At one moment of the sweeper's time: nothing is put off.
	testutil.Eventually(t, 30*time.Second, func() (bool, string) {
		mustSweep(t, s)
		return s.Stats().Reaped == zombies, fmt.Sprintf("%+v", s.Stats())
	})
	if n := len(r.requests[1].Zombies); n > 8 {
		t.Errorf("the request after one that came to %d names %d", got, n)
	}
	// Without progress it is put off, but not for long.
	progress = false
	c.now = c.now.Add(sweep.GatherFor)
	p.herd("adopted", 1)
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		asked := len(r.requests)
		mustSweep(t, s)
		return len(r.requests) > asked, fmt.Sprintf("%+v", s.Stats())
	})
	asked := len(r.requests)
	mustSweep(t, s)
	if len(r.requests) != asked {
		t.Error("asked again at once")
	}
	c.now = c.now.Add(sweep.QuickFirst)
	mustSweep(t, s)
	if len(r.requests) == asked {
		t.Errorf("not asked again after %v", sweep.QuickFirst)
	}
}

// The real tracer, and all that the limits allow for: every zombie goes, and PID 1 runs in between.
func TestManyZombiesAreReaped(t *testing.T) {
	zombies := 2000 / int(testutil.Slow(1))
	worker := buildWorker(t)
	if why := tracer.Supported(); why != "" {
		t.Skipf("the tracer: %s", why)
	}
	// herd sits in read(2), which the tracer leaves alone; its sibling in pause(2) does not.
	p := startHerd(t)
	p.herd("park", 1)
	p.herd("adopted", zombies)
	client := tracer.NewClient(worker)
	defer client.Close()
	s, c := p.sweeper(client, 0)
	seen := 0
	testutil.Eventually(t, time.Minute, func() (bool, string) {
		res, err := s.Sweep(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		seen += len(res.Reaped)
		c.now = c.now.Add(sweep.GatherFor)
		return seen == zombies, fmt.Sprintf("%d reaped, %+v", seen, s.Stats())
	})
	st := s.Stats()
	t.Logf("%d attaches, longest stop %v", st.Attaches, st.LongestStop)
	if children, err := p.proc.ThreadChildren(p.pid(), p.pid()); err != nil || len(children) != 0 {
		t.Errorf("%d children are left, %v", len(children), err)
	}
}

// BenchmarkSweep is the time of the first look at so many zombies, and of the next one, which knows them.
func BenchmarkSweep(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 5000, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := startHerd(b)
			p.herd("own", n)
			var first, next time.Duration
			for b.Loop() {
				s, c := p.sweeper(nil, time.Hour)
				s.SetLimits(n, n, n, 1024)
				s.SetCgroups(nil)
				for _, d := range []*time.Duration{&first, &next} {
					began := time.Now()
					if _, err := s.Sweep(context.Background()); err != nil {
						b.Fatal(err)
					}
					*d += time.Since(began)
					c.now = c.now.Add(time.Second)
				}
				if s.Tracked() != n {
					b.Fatalf("%d zombies found, want %d", s.Tracked(), n)
				}
			}
			per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(b.N) / float64(n) / 1000 }
			b.ReportMetric(per(first), "µs/zombie-first")
			b.ReportMetric(per(next), "µs/zombie-next")
		})
	}
}

// TestAsking: PID 1 may be asked whether it traces anybody where that takes less than to read the statuses of those that are due, and where
// it has not so many children that it takes long.
func TestAsking(t *testing.T) {
	for _, tc := range []struct {
		zombies, look int
		want          bool
	}{{sweep.WorthAsking - 1, 100, false}, {sweep.WorthAsking, 100, true}, {sweep.WorthAsking, sweep.WorthAsking, false}} {
		t.Run(fmt.Sprintf("%d of %d", tc.zombies, tc.look), func(t *testing.T) {
			p, r := startHerd(t), &recorder{answer: answerAll(tracer.Left, tracer.ReasonBudget)}
			s, c := p.sweeper(r, time.Second)
			s.SetLimits(tc.look, 100, 50, 1024)
			p.herd("adopted", tc.zombies)
			p.aged()
			mustSweep(t, s)
			c.now = c.now.Add(time.Minute)
			mustSweep(t, s)
			if len(r.requests) == 0 {
				t.Fatal("no request")
			}
			if req := r.requests[0]; len(req.Zombies) != tc.zombies || req.Probe != tc.want || req.Age != 0 {
				t.Errorf("%d zombies, probe %v, age %v; want %d, %v", len(req.Zombies), req.Probe, req.Age, tc.zombies, tc.want)
			}
		})
	}
}
