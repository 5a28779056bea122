package sweep

import (
	"context"
	"slices"
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// flight is a request that is under way.
type flight struct {
	batch   []*zombie
	cgroups []string // nil, or one for each of the batch
	more    bool     // this batch is not all that is due
	running bool     // PID 1 may be stopped in the middle of its work
	done    chan struct{}
	// Set once done is closed.
	report tracer.Report
	err    error
}

// reap has what is due reaped, in as many attaches as that takes, with room for PID 1 to run between them. left says that some
// of it was not come to.
func (s *Sweeper) reap(ctx context.Context) (reaped []Orphan, left bool) {
	if s.cfg.Reaper == nil || len(s.zombies) == 0 {
		return nil, false
	}
	all, next := s.due(s.cfg.Now(), s.cfg.BootTicks()), 0 // due are those from next on
	end := time.Now().Add(maxReap)
	s.quick = 0
	for n, sensible := 0, true; ctx.Err() == nil; n++ {
		over := n > 0 && !time.Now().Before(end)
		if over && next < len(all) && len(s.flights) == 0 {
			return reaped, true
		}
		for sensible && next < len(all) && len(s.flights) < s.ahead() {
			size := s.send(ctx, all[next:])
			sensible = size > 0
			next += size
		}
		if over && len(s.flights) > 1 {
			return reaped, true // until the next sweep the Reaper has enough to do
		}
		if len(s.flights) == 0 {
			if sensible && next == len(all) && len(reaped) > 0 && len(reaped) < gatherBelow {
				s.gather = s.cfg.Now().Add(gatherFor)
			}
			break
		}
		got, undone, ok := s.land(ctx)
		reaped = append(reaped, got...)
		sensible = sensible && ok
		// What it did not come to is the first of the next batch. Of a flight from the last sweep it waits for the next.
		if next >= len(undone) {
			next -= len(undone)
			copy(all[next:], undone)
		}
	}
	if ctx.Err() != nil { // it has ended their flights, too
		reaped = append(reaped, s.landAll(ctx)...)
	}
	return reaped, false
}

// ahead returns how many requests may be under way. Where there is much to be done the Reaper is given the next one before it has answered,
// and need not wait while we are busy with the answer, or wait for a CPU ourselves.
func (s *Sweeper) ahead() int {
	if s.attaches > 1 && !s.impatient {
		return 2
	}
	return 1
}

// send asks for the first of those that are due, and returns for how many.
func (s *Sweeper) send(ctx context.Context, due []*zombie) int {
	if len(s.cgroups) > 0 && s.cgroups[0].Frozen() {
		s.refuse(tracer.ReasonFrozen, "the container's cgroup is frozen", retryFirst, retryMax)
		return 0
	}
	rest := max(0, time.Until(s.restUntil))
	if more := rest - tracer.MaxRest; more > 0 {
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(more):
		}
	}
	attaches := min(s.attaches, (len(due)+s.batch-1)/s.batch)
	size := min(len(due), s.batch*attaches, tracer.MaxZombies)
	f := &flight{
		batch: slices.Clone(due[:size]), cgroups: s.cgroupsOf(due[:size]), more: len(due) > size,
		running: s.overdue(due[0], s.cfg.Now()), done: make(chan struct{}),
	}
	s.name(f.batch)
	req := s.prepare(f.batch)
	if attaches > 1 {
		req.Attaches = attaches
	}
	req.Rest = min(rest, tracer.MaxRest)
	req.Running = f.running
	s.flights = append(s.flights, f)
	begun := make(chan struct{})
	go func() {
		defer close(f.done)
		close(begun)
		f.report, f.err = s.cfg.Reaper.Reap(ctx, req)
	}()
	<-begun // or the next might come before it
	return size
}

// prepare makes the request for a batch, which is not asked for again until its flight has landed.
func (s *Sweeper) prepare(batch []*zombie) tracer.Request {
	req := tracer.Request{
		PID:       s.cfg.Init.PID,
		StartTime: s.cfg.InitStartTime,
		MaxStop:   maxStop,
		Zombies:   make([]tracer.Zombie, len(batch)),
	}
	var youngest time.Time // of those with an id
	for i, z := range batch {
		z.inFlight = true
		req.Zombies[i] = tracer.Zombie{PID: z.pid, StartTime: z.startTime, ID: z.id}
		if z.id != 0 && z.firstSeen.After(youngest) {
			youngest = z.firstSeen
		}
	}
	// The kernel goes over all the children for an answer: here are no more than so many.
	switch {
	case !youngest.IsZero():
		req.Age = s.cfg.Now().Sub(youngest)
		req.Probe = len(s.zombies) < s.limits.tracked
	case len(batch) >= worthAsking:
		req.Probe = len(s.zombies) < s.limits.look
	}
	return req
}

// name reads the names of as many zombies of a batch as will be told.
func (s *Sweeper) name(batch []*zombie) {
	if s.cfg.Tell != nil {
		batch = batch[:min(len(batch), max(0, s.cfg.Tell()))]
	}
	for _, z := range batch {
		s.detail(z) // if it is gone, the Reaper says so
	}
}

// cgroupsOf reads where the zombies of a batch died, which cannot be read any more once they are reaped, or returns nil where nobody wants
// to know.
func (s *Sweeper) cgroupsOf(batch []*zombie) []string {
	if !s.shared {
		return nil
	}
	paths := make([]string, len(batch))
	for i, z := range batch {
		paths[i] = ContainerPath(s.cfg.Proc, z.pid)
	}
	return paths
}

// land waits for the answer to the request that was sent first. undone is what the Reaper did not come to, and ok says whether it makes
// sense to go on now.
func (s *Sweeper) land(ctx context.Context) (reaped []Orphan, undone []*zombie, ok bool) {
	f := s.flights[0]
	<-f.done
	s.flights = s.flights[1:]
	report, err, batch := f.report, f.err, f.batch
	for _, z := range batch {
		z.inFlight = false
	}
	allowed := s.attaches
	s.attaches = 1
	if err != nil {
		for _, z := range batch {
			z.tried = true
		}
		if ctx.Err() != nil {
			return nil, nil, false // nobody has refused anything
		}
		s.refuse(tracer.ReasonInternal, err.Error(), retryFirst, retryMax)
		return nil, nil, false
	}
	if report.Attached {
		s.stats.Attaches += uint64(report.Attaches)
		s.undidStop = s.undidStop || report.UndidStop
		s.stats.LongestStop = max(s.stats.LongestStop, report.Stopped)
		rest := restFactor * report.Stopped
		if f.more {
			rest = tracer.RestAfter(report.Stopped)
		}
		s.restUntil = time.Now().Add(rest)
	}
	undone = batch[:0]
	now := s.cfg.Now()
	for i, r := range report.Results {
		z := batch[i]
		if report.Repeated || report.Reason == tracer.ReasonTimeout { // an answer has been lost, or waitid was under way
			z.tried = true
		}
		switch r.Outcome {
		case tracer.Reaped:
			s.stats.Reaped++
			s.stats.ReapTimes.Add(now.Sub(z.firstSeen))
			switch z.judgement.Verdict {
			case lineage.Own:
				s.stats.ReapedOwn++
			case lineage.Unproven:
				s.stats.ReapedUnproven++
			}
			o := Orphan{PID: z.pid, NSPID: r.NSPID, Comm: z.comm, Status: z.status, FirstSeen: z.firstSeen, Unnamed: z.bare()}
			if f.cgroups != nil {
				o.Cgroup = f.cgroups[i]
			}
			reaped = append(reaped, o)
			s.forget(z)
		case tracer.Vanished:
			s.vanished(z)
		case tracer.Refused:
			s.stats.Refusals[r.Reason]++
			z.retryAt, z.retryWait = s.backOff(z.retryWait, retryFirst, retryMax)
		case tracer.Left:
			// The batch or the stop's budget was used up: it stays due.
			undone = append(undone, z)
		}
	}
	done := len(report.Results) - len(undone)
	if len(reaped) > 0 {
		s.tries = min(s.tries+1, quickTries)
		if f.running && s.retryWait > 0 { // all that was tried before it was overdue was in vain
			s.tries = 0
		}
	}
	switch {
	case report.Reason == "":
		s.retryAt, s.retryWait, s.quick = time.Time{}, 0, 0
		s.fit(report.Stopped*time.Duration(report.Attaches), done)
		if s.attaches = allowed; f.more || len(undone) > 0 {
			s.attaches = min(2*allowed, maxAttaches)
		}
	case report.Reason == tracer.ReasonSignal && len(reaped) > 0:
		// A signal came for PID 1, which was let go for it. That is no refusal: under a busy leak most attaches end with the
		// SIGCHLD of the next orphan. As many as came before it are a good guess for the next time.
		s.stats.Refusals[report.Reason]++
		s.retryAt, s.retryWait, s.quick = time.Time{}, 0, 0
		s.batch = max(minBatch, min(s.batch, 2*done))
		s.attaches = max(1, allowed/2)
		return reaped, undone, true
	case transient(report.Reason) && s.quick < s.tries:
		s.stats.Refusals[report.Reason]++
		s.attaches = max(1, allowed/2)
		s.shrink(report.Reason)
		if until := time.Now().Add(quickWait << s.quick); until.After(s.restUntil) {
			s.restUntil = until
		}
		s.quick++
		return reaped, undone, true
	default:
		first, longest := retryFirst, retryMax
		if transient(report.Reason) {
			first, longest = quickFirst, quickMax
			if s.tries == 0 {
				first = quickMax
			}
		}
		s.refuse(report.Reason, report.Detail, first, longest)
		s.shrink(report.Reason)
	}
	return reaped, undone, len(reaped) > 0 && report.Reason == ""
}

// landAll takes in what became of all that has been asked for.
func (s *Sweeper) landAll(ctx context.Context) (reaped []Orphan) {
	for len(s.flights) > 0 {
		got, _, _ := s.land(ctx)
		reaped = append(reaped, got...)
	}
	return reaped
}

// fit makes the next batch as large as a stop allows, going by the last ones, and never more than twice the last.
func (s *Sweeper) fit(stopped time.Duration, done int) {
	if done == 0 || stopped <= 0 {
		return
	}
	per := max(stopped/time.Duration(done), time.Microsecond)
	if s.perZombie > 0 {
		per = (3*s.perZombie + per) / 4
	}
	s.perZombie = per
	// A little more than fits, so that it can turn out to be faster.
	s.batch = max(minBatch, min(maxBatch, 2*s.batch, int(maxStop*5/4/per)))
}

// shrink halves the next batch after a refusal. Where PID 1 was at work it is not the batch's fault, and what is overdue by the time it may
// be stopped in the middle of that had best go in one attach.
func (s *Sweeper) shrink(why tracer.Reason) {
	if why != tracer.ReasonBusy {
		s.batch = max(minBatch, s.batch/2)
	}
}

// transient reports whether a reason comes from what PID 1 does at the moment.
func transient(r tracer.Reason) bool {
	return r == tracer.ReasonBusy || r == tracer.ReasonSignal || r == tracer.ReasonSigchldPending
}

// refuse notes that a whole request was refused and puts the next one off.
func (s *Sweeper) refuse(reason tracer.Reason, detail string, first, longest time.Duration) {
	s.declined = Declined{reason, detail}
	s.stats.Refusals[reason]++
	s.retryAt, s.retryWait = s.backOff(s.retryWait, first, longest)
}

// backOff doubles the wait after each refusal: what made it is often gone after a moment (a busy PID 1), and asking costs
// little, but must not become a load.
func (s *Sweeper) backOff(wait, first, longest time.Duration) (at time.Time, next time.Duration) {
	wait = min(max(first, 2*wait), longest)
	return s.cfg.Now().Add(wait), wait
}
