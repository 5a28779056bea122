package shim

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// watcher sweeps one PID namespace for as long as its PID 1, the init process of owner, lives.
type watcher struct {
	s     *service
	owner *task
	kicks chan struct{}
	asks  chan *ask // see reaper.go
	stop  context.CancelFunc
	done  chan struct{}
	gate  gate

	mu      sync.Mutex
	members map[string]*task // by ID: the owner and those that joined its namespace
	paused  map[string]bool
	stats   sweep.Stats   // after the last sweep
	forks   forklog.Stats // same
}

// kickDelay lets what an exec left behind die before the sweep that its exit asked for, and bounds what a storm of execs can
// ask for.
const kickDelay = 100 * time.Millisecond

// kickShare times the length of the last look passes at least until the next.
const kickShare = 2

// gate lets no attach be under way while a task is being frozen: frozen in the middle of one, PID 1 keeps the registers of another call for
// as long as it is.
type gate struct {
	sync.RWMutex
	reaper sweep.Reaper
}

// gateNap is between two looks at a gate that is closed.
const gateNap = 5 * time.Millisecond

// Reap implements sweep.Reaper.
func (g *gate) Reap(ctx context.Context, req tracer.Request) (tracer.Report, error) {
	for !g.TryRLock() { // RLock would not end with the context, and who freezes may hang
		select {
		case <-ctx.Done():
			return tracer.Report{}, ctx.Err()
		case <-time.After(gateNap):
		}
	}
	defer g.RUnlock()
	return g.reaper.Reap(ctx, req)
}

func (s *service) startWatcher(owner *task, r sweep.Reaper) (*watcher, error) {
	w := &watcher{
		s:       s,
		owner:   owner,
		kicks:   make(chan struct{}, 1),
		asks:    make(chan *ask),
		done:    make(chan struct{}),
		members: map[string]*task{owner.id: owner},
		paused:  make(map[string]bool),
		gate:    gate{reaper: r},
	}
	if r != nil {
		r = &w.gate
	}
	sweeper, err := sweep.New(sweep.Config{
		Proc:          s.proc,
		Init:          owner.init,
		InitStartTime: owner.startTime,
		Grace:         owner.cfg.Grace,
		ReapUnproven:  owner.cfg.ReapUnproven,
		ReapOwn:       owner.cfg.ReapOwn,
		Reaper:        r,
		Tell:          func() int { return int(owner.limiter.Tokens()) },
	})
	if err != nil {
		return nil, err
	}
	sweeper.SetForkLog(owner.forks)
	timer, err := newAlarm()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go w.run(ctx, sweeper, timer)
	return w, nil
}

// kick asks for a sweep soon: something happened that may have left zombies.
func (w *watcher) kick() {
	select {
	case w.kicks <- struct{}{}:
	default:
	}
}

func (w *watcher) join(t *task) {
	w.mu.Lock()
	w.members[t.id] = t
	w.mu.Unlock()
	w.kick()
}

func (w *watcher) leave(t *task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.members, t.id)
	delete(w.paused, t.id)
}

// pause keeps the namespace from being swept while a task in it is frozen, and reports whether it was before; resume lifts that.
func (w *watcher) pause(t *task) (was bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was = w.paused[t.id]
	w.paused[t.id] = true
	return was
}

func (w *watcher) resume(t *task) {
	w.mu.Lock()
	delete(w.paused, t.id)
	w.mu.Unlock()
	w.kick()
}

func (w *watcher) snapshot() (sweep.Stats, forklog.Stats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats.Clone(), w.forks
}

// cgroups returns those of the members, the owner's first, whether there are several, and whether the namespace may be swept now.
func (w *watcher) cgroups() (dirs []*sweep.Cgroup, shared, sweepable bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owner.cgroupDir != nil {
		dirs = append(dirs, w.owner.cgroupDir)
	}
	for _, t := range w.members {
		if t != w.owner && t.cgroupDir != nil {
			dirs = append(dirs, t.cgroupDir)
		}
	}
	return dirs, len(w.members) > 1, len(w.paused) == 0
}

// attribute finds the task that an orphan belonged to: the one in whose cgroup it died, or else the owner.
func (w *watcher) attribute(cgroup string) *task {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.members {
		if t.holds(cgroup) {
			return t
		}
	}
	return w.owner
}

func (w *watcher) run(ctx context.Context, sweeper *sweep.Sweeper, timer *alarm) {
	defer close(w.done)
	defer w.owner.forks.close()
	var (
		cadence = sweep.Cadence{Near: sweep.DefaultNear, Far: sweep.DefaultFar, Alone: sweep.DefaultAlone}
		next    = time.Now().Add(cadence.Near)
		failing bool
		// declined holds the reasons that have been logged.
		declined = make(map[tracer.Reason]bool)
		byInit   uint64    // orphans that reaper-init reported until the last sweep
		pending  bool      // statistics have changed since they were published
		told     time.Time // when they were published last
		// notBefore keeps execs that come one after the other from making a long look at many children a load.
		notBefore time.Time
		quiet     = newQuiet(w.s.proc, w.owner, timer)
	)
	defer timer.close()
	defer func() { quiet.end(time.Now()) }()
	timer.set(cadence.Near)
	// soon puts the next look near. Never later than it would have been: what comes faster than this must not put it off for ever.
	soon := func() {
		cadence.Reset()
		now := time.Now()
		at := now.Add(kickDelay)
		if at.Before(notBefore) {
			at = notBefore
		}
		if at.Before(next) {
			next = at
			timer.set(at.Sub(now))
		}
	}
	for {
		var now *ask // somebody waits for this sweep
		select {
		case <-ctx.Done():
			return
		case a := <-w.asks:
			if !a.reap {
				a.list(sweeper)
				continue
			}
			now = a
		case <-w.kicks:
			soon()
			continue
		case <-timer.C:
			if quiet.broken() {
				at := time.Now()
				quiet.end(at)
				if at.Before(next) {
					soon()
					continue
				}
			}
		}
		dirs, shared, sweepable := w.cgroups()
		if !sweepable {
			now.refuse(errPaused)
			// Resume kicks.
			next = time.Now().Add(quietLook)
			timer.set(quietLook)
			continue
		}
		sweeper.SetCgroups(dirs)
		sweeper.SetShared(shared)
		if now == nil && !pending && w.owner.forks.conn == nil && quiet.lasts(sweeper.OnlyInit) {
			next = time.Now().Add(timer.together(quietLook))
			if quiet.broken() { // it may have rung before the alarm was set
				w.kick()
			}
			continue
		}
		spanCtx, span := w.s.spans.sweep(ctx, w.owner.id, now, w.stats.Refusals) // written by this goroutine alone
		res, err := now.sweep(spanCtx, sweeper)
		stats := sweeper.Stats()
		span.end(now, res, stats.Refusals, err)
		now.answer(sweeper, res, err)
		if errors.Is(err, sweep.ErrInitGone) {
			return
		}
		if err != nil && !failing {
			// Once per spell: it will be tried again twice a second.
			log.L.WithField("id", w.owner.id).WithError(err).Warn("sweep for zombies failed")
		}
		failing = err != nil
		if res.UndidStop {
			log.L.WithField("id", w.owner.id).Warn("PID 1 was stopped by a SIGSTOP right at the end of an attach, and woken again with a SIGCONT, " +
				"since it cannot be told whether that came from inside, where it has no effect: who stopped it from outside has to do it again")
		}
		if d := res.Declined; d.Reason != "" && !declined[d.Reason] {
			declined[d.Reason] = true // the first of each kind; the statistics count them all
			log.L.WithField("id", w.owner.id).Infof("PID 1 was not made to reap: %s (%s); it will be tried again", d.Reason, d.Detail)
		}

		if w.owner.forks.update(stats, time.Now()) {
			res.Changed = true
		}
		forks := w.owner.forks.stats()
		w.mu.Lock()
		w.stats, w.forks = stats, forks
		w.mu.Unlock()
		for _, o := range res.Reaped {
			w.s.publishOrphan(orphan{
				task: w.attribute(o.Cgroup), pid: int(o.PID), inner: int(o.NSPID),
				command: o.Comm, status: o.Status, died: o.FirstSeen, unnamed: o.Unnamed,
			})
		}
		if n := w.owner.reports.totalsNow().Reaped; n != byInit {
			byInit, res.Changed = n, true
		}
		pending = pending || res.Changed
		at := time.Now()
		if pending && at.Sub(told) >= w.owner.cfg.StatsInterval {
			w.s.publishStats(w.owner, w.owner.message(stats, forks, false))
			pending, told = false, at
		}
		wait := cadence.Next(res, at)
		switch {
		case quiet.looked(err == nil && res.Alone && res.Zombies == 0 && !res.More, sweeper.OnlyInit, at):
			wait = quietLook
			if pending { // somebody has to publish them
				wait = min(wait, max(cadence.Near, w.owner.cfg.StatsInterval-at.Sub(told)))
			}
			wait = timer.together(wait)
		case res.Zombies == 0 && wait >= cadence.Far:
			wait = timer.together(wait)
		default:
			timer.set(wait)
		}
		notBefore = at.Add(kickShare * res.Looking)
		next = at.Add(wait)
		if quiet.broken() { // as above
			w.kick()
		}
	}
}

// end stops the watcher and waits for it.
func (w *watcher) end() {
	w.stop()
	<-w.done
}
