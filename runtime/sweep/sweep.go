package sweep

import (
	"context"
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// ErrInitGone is returned by Sweep when PID 1 of the namespace has ended: there is nothing left to watch.
var ErrInitGone = errors.New("pid 1 of the namespace has ended")

// Reaper makes PID 1 reap zombies. [tracer.Client] is one.
type Reaper interface {
	Reap(ctx context.Context, req tracer.Request) (tracer.Report, error)
}

// ForkLog knows which children PID 1 forked. Package forklog has two.
type ForkLog interface {
	// Sync takes in all that happened before the call.
	Sync()
	Lookup(pid procfs.HostPID, startTime uint64) lineage.Fork
}

// Config says what to watch and how.
type Config struct {
	Proc *procfs.FS
	// Init is PID 1 of the namespace, the process that adopts orphans, with the time of its start in clock ticks.
	Init          lineage.Init
	InitStartTime uint64
	// Grace is how long an adopted zombie must have been seen before PID 1 is made to reap it.
	Grace time.Duration
	// ReapUnproven and ReapOwn are the ages from which zombies are reaped that are not proven to be orphans, or are proven
	// not to be; 0: never. They can take a status from a PID 1 that still wants it.
	ReapUnproven, ReapOwn time.Duration
	// Reaper is nil where zombies are only observed.
	Reaper Reaper
	// Now and BootTicks are the clocks; nil means time.Now and the kernel's CLOCK_BOOTTIME.
	Now       func() time.Time
	BootTicks func() uint64
}

// Limits of one sweep.
const (
	// fullEvery is the interval of the sweeps that read what changes seldom or matters only to the statistics.
	fullEvery = 10 * time.Second
	// maxBatch is the number of zombies asked for in one attach.
	maxBatch = 256
	// maxStop is the time that PID 1 may be stopped in one attach.
	maxStop = 5 * time.Millisecond
	// restFactor times the length of its last stop is what PID 1 gets to run before the next attach.
	restFactor = 4
	// maxAttaches of one sweep; what is left waits for the next.
	maxAttaches = 64
	// walkShare is the part of one CPU, as 1/n, that the walks for rule L may take.
	walkShare = 200
	// maxSightings bounds the memory of rule L per namespace.
	maxSightings = 8192

	// LearnedGrace is the least grace period of a namespace whose PID 1 has been seen to collect adopted orphans itself: it
	// may want their statuses, and is given the time.
	LearnedGrace = 30 * time.Second

	retryFirst = 200 * time.Millisecond
	retryMax   = 5 * time.Second
)

type key struct {
	pid       procfs.HostPID
	startTime uint64
}

// zombie is one zombie child of PID 1, from its first sight on.
type zombie struct {
	stat      procfs.Stat
	nspid     procfs.NSPID
	firstSeen time.Time
	judgement lineage.Judgement
	seen      bool           // in the running sweep
	thread    procfs.HostPID // of PID 1, on whose list it was found
	tried     bool           // an attempt to have it reaped ended without an answer
	retryAt   time.Time
	retryWait time.Duration
}

// Sweeper watches one PID namespace. It is not safe for concurrent use; a single goroutine owns it.
type Sweeper struct {
	cfg       Config
	level     int // index in NSpid of the namespace
	cgroups   []*Cgroup
	zombies   map[key]*zombie
	sightings *lineage.Sightings
	known     map[procfs.HostPID]struct{} // sighted at the last walk and still listed then
	forks     ForkLog
	grace     time.Duration // cfg.Grace, or what was learned
	impatient bool          // in SweepNow: proven orphans are due at first sight

	nextFull, nextWalk time.Time
	retryAt            time.Time // of whole requests
	retryWait          time.Duration

	stats    Stats
	declined Declined // in this sweep
}

// New returns a Sweeper for the namespace of cfg.Init. It reads the process once: the error says why it cannot be watched,
// and wraps procfs.ErrVanished when it is gone.
func New(cfg Config) (*Sweeper, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.BootTicks == nil {
		cfg.BootTicks = BootTicks
	}
	status, err := cfg.Proc.Status(cfg.Init.PID)
	if err != nil {
		return nil, err
	}
	s := &Sweeper{
		cfg:       cfg,
		level:     status.Level(),
		zombies:   make(map[key]*zombie),
		sightings: lineage.NewSightings(maxSightings),
		known:     make(map[procfs.HostPID]struct{}),
		grace:     cfg.Grace,
	}
	s.stats.Refusals = make(map[tracer.Reason]uint64)
	return s, nil
}

// SetCgroups names the cgroups of the containers that share the namespace, that of PID 1 first. They are where rule L looks
// for living processes and where processes are counted; without any the sweep does without.
func (s *Sweeper) SetCgroups(cgroups []*Cgroup) { s.cgroups = cgroups }

// SetForkLog names the fork log of PID 1, nil for none.
func (s *Sweeper) SetForkLog(log ForkLog) { s.forks = log }

// Stats returns what is known after the last sweep.
func (s *Sweeper) Stats() Stats { return s.stats.Clone() }

// Sweep looks at the namespace once and has what is due reaped. It returns ErrInitGone when PID 1 has ended; any other
// error means that this look failed and the next may not.
func (s *Sweeper) Sweep(ctx context.Context) (Result, error) {
	before := s.stats.Clone()
	s.stats.Sweeps++
	s.declined = Declined{}

	leader, err := s.init()
	if err != nil {
		return Result{}, err
	}
	s.stats.Threads = leader.NumThreads
	now := s.cfg.Now()
	full := !now.Before(s.nextFull)
	if full {
		s.nextFull = now.Add(fullEvery)
	}
	if err := s.look(leader, full, now); err != nil {
		return Result{}, err
	}
	s.walk(full, now)

	var res Result
	res.Reaped = s.reap(ctx)
	res.Declined = s.declined
	res.Zombies = len(s.zombies)
	res.NextDue = s.nextDue()
	s.count(full)
	res.Changed = changed(before, s.stats)
	return res, nil
}

// init reads PID 1 and makes sure that it is still the same process and alive.
func (s *Sweeper) init() (procfs.Stat, error) {
	st, err := s.cfg.Proc.Stat(s.cfg.Init.PID)
	if errors.Is(err, procfs.ErrVanished) {
		return st, ErrInitGone
	}
	if err != nil {
		return st, err
	}
	if st.StartTime != s.cfg.InitStartTime || st.Zombie() || st.State == procfs.StateDead {
		return st, ErrInitGone
	}
	return st, nil
}

func leaderAlive(st procfs.Stat) bool { return st.State != procfs.StateZombie }

// look brings s.zombies up to date with the children lists of PID 1.
func (s *Sweeper) look(leader procfs.Stat, full bool, now time.Time) error {
	init := s.cfg.Init.PID
	for _, z := range s.zombies {
		z.seen = false
	}
	threads := []procfs.HostPID{init}
	// While the leader lives adopted children hang on it (B1 in the design's attacks); what hangs on other threads is
	// PID 1's own and only counted. Once it has exited any thread may hold them.
	if leader.NumThreads > 1 && (full || !leaderAlive(leader)) {
		var err error
		if threads, err = s.cfg.Proc.Threads(init); err != nil {
			return ignoreVanished(err)
		}
	}
	for _, tid := range threads {
		children, err := s.cfg.Proc.ThreadChildren(init, tid)
		if errors.Is(err, procfs.ErrNoChildren) {
			if children, err = s.scanChildren(); err != nil {
				return err
			}
			tid = 0 // which thread they hang on is not known
			threads = nil
		}
		if err != nil {
			if errors.Is(err, procfs.ErrVanished) {
				continue
			}
			return err
		}
		for _, pid := range children {
			s.child(pid, tid, now)
		}
		if threads == nil {
			break
		}
	}
	// Absence from one read of a children list proves nothing (proc(5)): ask for each.
	for k, z := range s.zombies {
		if z.seen {
			continue
		}
		st, err := s.cfg.Proc.Stat(k.pid)
		if err == nil && st.StartTime == k.startTime && !st.Vanishing() && st.PPID == init {
			continue
		}
		s.vanished(z)
		s.forget(k)
	}
	s.judge(leader)
	return nil
}

// vanished notes that a zombie is gone without us. A PID 1 that collects what it adopted may do so on purpose, and a little
// later the next time.
func (s *Sweeper) vanished(z *zombie) {
	if z.judgement.Verdict != lineage.Adopted {
		return
	}
	s.stats.Vanished++
	if !z.tried {
		s.grace = max(s.grace, LearnedGrace)
	}
}

// judge gives every zombie its verdict. The fork log is brought up to date after all of them were seen: only then does its
// silence mean something.
func (s *Sweeper) judge(leader procfs.Stat) {
	if s.forks != nil && len(s.zombies) > 0 {
		s.forks.Sync()
	}
	for k, z := range s.zombies {
		e := lineage.Evidence{
			Init:        s.cfg.Init,
			LeaderAlive: leaderAlive(leader),
			PID:         k.pid,
			Session:     z.stat.Session,
			Thread:      z.thread,
			SeenUnder:   s.sightings.Parent(k.pid, k.startTime),
		}
		if s.forks != nil {
			e.Fork = s.forks.Lookup(k.pid, k.startTime)
		}
		j := lineage.Judge(e)
		if j.Contradiction && !z.judgement.Contradiction {
			s.stats.Contradictions++
		}
		z.judgement = j
	}
}

func ignoreVanished(err error) error {
	if errors.Is(err, procfs.ErrVanished) {
		return nil
	}
	return err
}

// child looks at one child of PID 1, found on the list of thread tid (0: unknown), and tracks it if it is a zombie.
func (s *Sweeper) child(pid, tid procfs.HostPID, now time.Time) {
	st, err := s.cfg.Proc.Stat(pid)
	if err != nil || !st.Zombie() || st.Vanishing() || st.PPID != s.cfg.Init.PID {
		return
	}
	k := key{pid, st.StartTime}
	z := s.zombies[k]
	if z == nil {
		status, err := s.cfg.Proc.Status(pid)
		if err != nil {
			return
		}
		// The number that PID 1 knows it by is the one at PID 1's own level: a zombie of a nested namespace has more.
		nspid, ok := status.At(s.level)
		if !ok {
			return
		}
		z = &zombie{nspid: nspid, firstSeen: now}
		s.zombies[k] = z
	}
	z.stat, z.seen, z.thread = st, true, tid
}

// scanChildren finds the children of PID 1 without children files, by a pass over all of /proc.
func (s *Sweeper) scanChildren() ([]procfs.HostPID, error) {
	pids, err := s.cfg.Proc.PIDs()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pids, func(pid procfs.HostPID) bool {
		st, err := s.cfg.Proc.Stat(pid)
		return err != nil || st.PPID != s.cfg.Init.PID
	}), nil
}

// walk feeds rule L: it notes the parents of the container's living processes.
func (s *Sweeper) walk(full bool, now time.Time) {
	if len(s.cgroups) == 0 || now.Before(s.nextWalk) {
		return
	}
	pids := s.procs()
	known := make(map[procfs.HostPID]struct{}, len(pids))
	for _, pid := range pids {
		if pid == s.cfg.Init.PID {
			continue
		}
		// Once sighted, a process stays proven: read it again only in full sweeps, in case its PID changed hands.
		if _, ok := s.known[pid]; ok && !full {
			known[pid] = struct{}{}
			continue
		}
		ticks := s.cfg.BootTicks()
		st, err := s.cfg.Proc.Stat(pid)
		if err == nil && s.sightings.Saw(st, ticks, s.cfg.Init.PID) {
			known[pid] = struct{}{}
		}
	}
	s.known = known
	s.nextWalk = now.Add(walkShare * s.cfg.Now().Sub(now))
}

// procs lists the living processes of all containers in the namespace.
func (s *Sweeper) procs() []procfs.HostPID {
	var all []procfs.HostPID
	for _, c := range s.cgroups {
		// A cgroup that cannot be read costs evidence and nothing else: containers come and go while we look.
		pids, _ := c.Procs()
		all = append(all, pids...)
	}
	return all
}

// due returns the zombies that may be reaped at now, the ones seen first in front.
func (s *Sweeper) due(now time.Time, ticks uint64) []*zombie {
	var out []*zombie
	for _, z := range s.zombies {
		at, ok := s.dueAt(z)
		if !ok || at.After(now) {
			continue
		}
		// The tracer knows the zombie by (pid, start time), which identifies it from MinTicks on.
		if ticks < z.stat.StartTime+lineage.MinTicks {
			continue
		}
		out = append(out, z)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].firstSeen.Before(out[j].firstSeen) })
	return out
}

// dueAt returns when a zombie may be reaped; ok is false when it may not.
func (s *Sweeper) dueAt(z *zombie) (at time.Time, ok bool) {
	age := time.Duration(0)
	switch {
	case z.judgement.Verdict == lineage.Adopted && s.impatient:
		return z.firstSeen, true
	case z.judgement.Verdict == lineage.Adopted:
		age = s.grace
	case z.judgement.Contradiction:
		return at, false // somebody should look first
	case z.judgement.Verdict == lineage.Own && s.cfg.ReapOwn > 0:
		age = s.cfg.ReapOwn
	case z.judgement.Verdict == lineage.Unproven && s.cfg.ReapUnproven > 0:
		age = max(s.cfg.ReapUnproven, s.grace)
	default:
		return at, false
	}
	at = z.firstSeen.Add(age)
	for _, t := range []time.Time{z.retryAt, s.retryAt} {
		if t.After(at) {
			at = t
		}
	}
	return at, true
}

func (s *Sweeper) nextDue() time.Time {
	var next time.Time
	if s.cfg.Reaper == nil {
		return next
	}
	for _, z := range s.zombies {
		if at, ok := s.dueAt(z); ok && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// reap has all that is due reaped, in as many attaches as that takes, with room for PID 1 to run between them.
func (s *Sweeper) reap(ctx context.Context) []Orphan {
	if s.cfg.Reaper == nil {
		return nil
	}
	var reaped []Orphan
	for range maxAttaches {
		batch := s.due(s.cfg.Now(), s.cfg.BootTicks())
		if len(batch) == 0 || ctx.Err() != nil {
			break
		}
		if len(s.cgroups) > 0 && s.cgroups[0].Frozen() {
			s.refuse(tracer.ReasonFrozen, "the container's cgroup is frozen")
			break
		}
		if len(batch) > maxBatch {
			batch = batch[:maxBatch]
		}
		orphans, report, ok := s.attach(ctx, batch)
		reaped = append(reaped, orphans...)
		if !ok {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(restFactor * report.Stopped):
		}
	}
	return reaped
}

// attach asks the Reaper for one batch. ok says whether it makes sense to go on with the next.
func (s *Sweeper) attach(ctx context.Context, batch []*zombie) (reaped []Orphan, report tracer.Report, ok bool) {
	req := tracer.Request{
		PID:       s.cfg.Init.PID,
		StartTime: s.cfg.InitStartTime,
		MaxStop:   maxStop,
		Zombies:   make([]tracer.Zombie, len(batch)),
	}
	orphans := make([]Orphan, len(batch))
	for i, z := range batch {
		req.Zombies[i] = tracer.Zombie{PID: z.stat.PID, StartTime: z.stat.StartTime, NSPID: z.nspid}
		// Read now what cannot be read any more once it is reaped.
		orphans[i] = Orphan{
			PID: z.stat.PID, NSPID: z.nspid, Comm: z.stat.Comm, Status: z.stat.ExitCode,
			FirstSeen: z.firstSeen, Cgroup: ContainerPath(s.cfg.Proc, z.stat.PID),
		}
	}
	report, err := s.cfg.Reaper.Reap(ctx, req)
	if err != nil {
		for _, z := range batch {
			z.tried = true
		}
		s.refuse(tracer.ReasonInternal, err.Error())
		return nil, report, false
	}
	if report.Attached {
		s.stats.Attaches++
		s.stats.LongestStop = max(s.stats.LongestStop, report.Stopped)
	}
	if report.Reason == "" {
		s.retryAt, s.retryWait = time.Time{}, 0
	} else {
		s.refuse(report.Reason, report.Detail)
	}

	progress := false
	for i, r := range report.Results {
		z := batch[i]
		switch r.Outcome {
		case tracer.Reaped:
			s.stats.Reaped++
			switch z.judgement.Verdict {
			case lineage.Own:
				s.stats.ReapedOwn++
			case lineage.Unproven:
				s.stats.ReapedUnproven++
			}
			reaped = append(reaped, orphans[i])
			s.forget(key{z.stat.PID, z.stat.StartTime})
			progress = true
		case tracer.Vanished:
			s.vanished(z)
			s.forget(key{z.stat.PID, z.stat.StartTime})
		case tracer.Refused:
			s.stats.Refusals[r.Reason]++
			z.retryAt, z.retryWait = s.backOff(z.retryWait)
		case tracer.Left:
			// The batch or the stop's budget was used up: it stays due.
		}
	}
	return reaped, report, progress && report.Reason == ""
}

// refuse notes that a whole request was refused and puts the next one off.
func (s *Sweeper) refuse(reason tracer.Reason, detail string) {
	s.declined = Declined{reason, detail}
	s.stats.Refusals[reason]++
	s.retryAt, s.retryWait = s.backOff(s.retryWait)
}

// backOff doubles the wait after each refusal: what made it is often gone after a moment (a busy PID 1), and asking costs
// little, but must not become a load.
func (s *Sweeper) backOff(wait time.Duration) (at time.Time, next time.Duration) {
	if wait == 0 {
		wait = retryFirst
	} else {
		wait = min(2*wait, retryMax)
	}
	return s.cfg.Now().Add(wait), wait
}

func (s *Sweeper) forget(k key) {
	delete(s.zombies, k)
	s.sightings.Forget(k.pid, k.startTime)
}

// count brings the gauges of s.stats up to date.
func (s *Sweeper) count(full bool) {
	st := &s.stats
	st.Own, st.Adopted, st.Unproven, st.Oldest = 0, 0, 0, 0
	st.Rules = make(map[lineage.Rules]int)
	st.Grace = s.grace
	now := s.cfg.Now()
	for _, z := range s.zombies {
		switch z.judgement.Verdict {
		case lineage.Own:
			st.Own++
		case lineage.Adopted:
			st.Adopted++
		default:
			st.Unproven++
		}
		st.Rules[z.judgement.Rules]++
		st.Oldest = max(st.Oldest, now.Sub(z.firstSeen))
	}
	if len(s.cgroups) == 0 || !full {
		return
	}
	st.PIDsCurrent, st.PIDsMax = 0, 0
	for _, c := range s.cgroups {
		n, _ := c.Current()
		st.PIDsCurrent += n
	}
	if len(s.cgroups) == 1 {
		st.PIDsMax, _ = s.cgroups[0].Max()
	}
	st.Held, st.Holders = s.held()
}

// held counts the zombies that hang on living processes other than PID 1. Nobody but those processes can release them.
func (s *Sweeper) held() (int, []Holder) {
	pids := s.procs()
	// pids.current counts every thread, zombies included: where the living and the zombies that are known make it up,
	// there is nothing to look for.
	if st := s.stats; st.PIDsCurrent > 0 {
		tasks := int64(len(s.zombies))
		for _, pid := range pids {
			if p, err := s.cfg.Proc.Stat(pid); err == nil {
				tasks += int64(p.NumThreads)
			}
		}
		if tasks >= st.PIDsCurrent {
			return 0, nil
		}
	}
	var (
		total   int
		holders []Holder
	)
	for _, pid := range pids {
		if pid == s.cfg.Init.PID {
			continue
		}
		if n := s.zombiesOf(pid); n > 0 {
			total += n
			h := Holder{PID: pid, Zombies: n}
			if st, err := s.cfg.Proc.Stat(pid); err == nil {
				h.Comm = st.Comm
			}
			holders = append(holders, h)
		}
	}
	sort.Slice(holders, func(i, j int) bool { return holders[i].Zombies > holders[j].Zombies })
	if len(holders) > maxHolders {
		holders = holders[:maxHolders]
	}
	return total, holders
}

// zombiesOf counts the zombie children of a process.
func (s *Sweeper) zombiesOf(pid procfs.HostPID) int {
	tids, err := s.cfg.Proc.Threads(pid)
	if err != nil {
		return 0
	}
	n := 0
	for _, tid := range tids {
		children, err := s.cfg.Proc.ThreadChildren(pid, tid)
		if err != nil {
			continue
		}
		for _, child := range children {
			if st, err := s.cfg.Proc.Stat(child); err == nil && st.Zombie() && st.PPID == pid {
				n++
			}
		}
	}
	return n
}

// changed reports whether anything that a reader of the statistics would want to know is different.
func changed(a, b Stats) bool {
	if a.Own != b.Own || a.Adopted != b.Adopted || a.Unproven != b.Unproven || a.Held != b.Held ||
		a.Reaped != b.Reaped || a.Vanished != b.Vanished || a.Contradictions != b.Contradictions {
		return true
	}
	for reason, n := range b.Refusals {
		if a.Refusals[reason] != n {
			return true
		}
	}
	return false
}
