package sweep

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// ErrInitGone is returned by Sweep when PID 1 of the namespace has ended: there is nothing left to watch.
var ErrInitGone = errors.New("pid 1 of the namespace has ended")

// Reaper makes PID 1 reap zombies, request after request: it may be given the next one before it has answered. [tracer.Client] is one.
type Reaper interface {
	Reap(ctx context.Context, req tracer.Request) (tracer.Report, error)
}

// ForkLog knows which children PID 1 forked. Package forklog has two.
type ForkLog interface {
	// Sync takes in all that happened before the call.
	Sync()
	Lookup(pid procfs.HostPID, startTime uint64) lineage.Fork
	// Exact says that the log has heard of every fork since it began, and goes on: rule L then has nothing to add.
	Exact() bool
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
	// Tell returns how many orphans somebody would be told of by name now; nil: of all. In a storm the names of others are not read
	// ([Orphan.Unnamed]).
	Tell func() int
	// Now and BootTicks are the clocks; nil means time.Now and the kernel's CLOCK_BOOTTIME.
	Now       func() time.Time
	BootTicks func() uint64
}

// limits bound the work of a sweep and the memory of a Sweeper.
type limits struct {
	// look is how many children are looked at in one sweep, at some 12 µs each. What is left is looked at in the next, which comes
	// at once if there was something new.
	look int
	// tracked bounds the memory for zombies, some 200 bytes each. useless is the part of it for those that nobody may reap: what
	// is beyond is counted and not remembered, or they would be in the way of others for ever.
	tracked, useless int
	// verify zombies that are known already are looked at again in each sweep, if they were not for verifyEvery, or, where there are
	// not more and nobody may reap them, for verifyFew: on the list of children only their number says that they are still the same.
	// The tracer makes sure of it before it touches one.
	verify int
}

var defaultLimits = limits{look: 8192, tracked: 49152, useless: 24576, verify: 1024}

// More limits of one sweep.
const (
	// fullEvery is the interval of the sweeps that read what changes seldom or matters only to the statistics.
	fullEvery = 10 * time.Second

	// lookBeside is the interval of looks while there is plenty to be done. strangersFor is for how long other processes of the machine
	// are then left alone: one of them may be orphaned, or its number have another owner.
	lookBeside   = 250 * time.Millisecond
	strangersFor = 2 * time.Second

	verifyEvery = 10 * time.Second
	verifyFew   = time.Second

	// maxBatch and minBatch bound the number of zombies asked for in one attach. In between it is what fits in maxStop: the
	// tracer's checks of those that it does not come to would be for nothing.
	maxBatch = tracer.MaxBatch
	minBatch = 8
	newBatch = 64
	// worthAsking is how many zombies are worth asking PID 1 whether it traces anybody: their statuses take ten times as long to be read.
	worthAsking = 16
	// maxStop is the time that PID 1 may be stopped in one attach.
	maxStop = 5 * time.Millisecond
	// maxAttaches bounds the attaches that one request allows, where more is due than one can do: one, and twice as many with each
	// request that comes to an orderly end.
	maxAttaches = 32
	// restFactor times the length of its last stop is what PID 1 gets to run before the next attach, if it has a use for it
	// (tracer.Request.Rest); while more than one attach can do is due it is only tracer.RestAfter.
	restFactor = 4
	// overdueAfter is for how long PID 1 may be too busy to be stopped at leisure.
	overdueAfter = time.Second
	// gatherFor is how long after the last of its attaches a sweep that has had all reaped is followed by the next attach: each costs
	// as much as a dozen zombies more in another.
	gatherFor   = 300 * time.Millisecond
	gatherBelow = 64 // more than these at once were worth an attach
	// maxReap is how long a sweep goes on with its attaches before it reports.
	maxReap = 500 * time.Millisecond
	// walkShare is the part of one CPU, as 1/n, that the walks for rule L may take.
	walkShare = 200
	// maxSightings bounds the memory of rule L per namespace.
	maxSightings = 8192

	// LearnedGrace is the least grace period of a namespace whose PID 1 has been seen to collect adopted orphans itself: it
	// may want their statuses, and is given the time.
	LearnedGrace = 30 * time.Second

	retryFirst = 200 * time.Millisecond
	retryMax   = 5 * time.Second
	// What comes from PID 1 being at work is over in a moment.
	quickFirst = 20 * time.Millisecond
	quickMax   = 500 * time.Millisecond
	// quickTries is how often it is tried again in the same sweep, the first time after quickWait and then after twice as long. Below a PID 1
	// that had to be stopped in the middle of its work the last time it is not tried again before quickMax.
	quickTries = 3
	quickWait  = time.Millisecond
)

// zombie is one zombie child of PID 1, from its first sight on.
type zombie struct {
	pid procfs.HostPID
	// startTime is only a lower bound, and session, comm and status are not known, for one that is bare. id is that of its pidfd, of those
	// that were found by their numbers, which identifies it in place of the start time; else 0.
	startTime uint64
	id        uint64
	session   procfs.HostPID
	thread    procfs.HostPID // of PID 1, on whose list it was found
	comm      string
	status    int // wait(2)
	firstSeen time.Time
	checked   time.Time // last seen as this process, not just as a number
	retryAt   time.Time
	retryWait time.Duration
	judgement lineage.Judgement
	number    uint64 // in the order in which they were found, which is the kernel's
	round     uint32 // of the last look that found it on a list
	tried     bool   // an attempt to have it reaped ended without an answer
	inFlight  bool   // it has been asked for
	useless   bool   // nobody may reap it
	detailed  bool   // there is an id, and all is known
}

// Sweeper watches one PID namespace. It is not safe for concurrent use; a single goroutine owns it.
type Sweeper struct {
	cfg       Config
	limits    limits
	level     int // index in NSpid of the namespace
	cgroups   []*Cgroup
	shared    bool
	zombies   map[procfs.HostPID]*zombie
	useless   int // of these, nobody may reap
	sightings *lineage.Sightings
	walked    map[procfs.HostPID]bool // sighted at the last walk and still listed then; whether in the session of PID 1
	forks     ForkLog
	grace     time.Duration // cfg.Grace, or what was learned
	impatient bool          // in SweepNow: proven orphans are due at first sight

	nextFull, nextWalk time.Time
	looked             time.Time   // the last time that the lists of children were read
	beside             *besideLook // nil: none
	flights            []*flight   // in the order in which they were sent
	cutShort           bool        // the last of other looks did not get to the end of the lists
	strangers          strangers
	numbers            *numbers
	retryAt            time.Time // of whole requests
	retryWait          time.Duration

	round   uint32
	ordinal uint64    // of the next zombie that is found
	fresh   []*zombie // found in this look
	cursor  int       // children at the front of the list that the next look passes over: the last one ended behind them
	removed int       // from the list since, by us or by PID 1
	listed  int       // children that this look has met on the lists
	// surplus counts the zombies that are not remembered, counting those that this pass over the list has met.
	surplus, counting surplus

	batch     int           // zombies asked for in the next attach
	attaches  int           // that the next request allows
	perZombie time.Duration // of the time that PID 1 is stopped
	quick     int           // times that it was tried again at once
	tries     int           // times that it may be
	restUntil time.Time     // by the machine's clock
	gather    time.Time     // until then what falls due is left to fall due together

	stats Stats
	// In this sweep.
	declined  Declined
	undidStop bool
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
		limits:    defaultLimits,
		level:     status.Level(),
		zombies:   make(map[procfs.HostPID]*zombie),
		batch:     newBatch,
		attaches:  1,
		tries:     quickTries,
		sightings: lineage.NewSightings(maxSightings),
		walked:    make(map[procfs.HostPID]bool),
		grace:     cfg.Grace,
	}
	s.stats.Refusals = make(map[tracer.Reason]uint64)
	return s, nil
}

// SetCgroups names the cgroups of the containers that share the namespace, that of PID 1 first. They are where rule L looks
// for living processes and where processes are counted; without any the sweep does without.
func (s *Sweeper) SetCgroups(cgroups []*Cgroup) { s.cgroups = cgroups }

// SetShared says whether several containers share the namespace, so that it has to be found out whose an orphan was.
func (s *Sweeper) SetShared(shared bool) { s.shared = shared }

// SetForkLog names the fork log of PID 1, nil for none.
func (s *Sweeper) SetForkLog(log ForkLog) { s.forks = log }

// Stats returns what is known after the last sweep.
func (s *Sweeper) Stats() Stats { return s.stats.Clone() }

// Sweep looks at the namespace once and has what is due reaped. It returns ErrInitGone when PID 1 has ended; any other
// error means that this look failed and the next may not.
func (s *Sweeper) Sweep(ctx context.Context) (Result, error) {
	before := s.stats.Clone()
	s.stats.Sweeps++
	s.declined, s.undidStop = Declined{}, false

	leader, err := s.init()
	if errors.Is(err, ErrInitGone) && len(s.flights) > 0 {
		// The next sweep says so.
		return Result{Reaped: s.landAll(ctx), More: true, Changed: true}, nil
	}
	if err != nil {
		return Result{}, err
	}
	s.stats.Threads = leader.NumThreads
	now := s.cfg.Now()
	full := !now.Before(s.nextFull)
	if full {
		s.nextFull = now.Add(fullEvery)
	}
	complete := true
	s.fresh = s.fresh[:0]
	due := s.countDue(now)
	var waited time.Duration
	if s.beside != nil {
		err = s.take(due == 0 || s.impatient)
		waited = s.cfg.Now().Sub(now)
	}
	switch {
	case err != nil || s.beside != nil:
	case s.impatient || !s.plenty(leader, due):
		complete, err = s.look(leader, full, now)
		s.cutShort, s.strangers, s.numbers = !complete, strangers{}, nil
	case s.cutShort || now.Sub(s.looked) >= lookBeside:
		s.lookBeside(ctx, leader, now)
		s.cutShort = false
	}
	if err != nil {
		return Result{}, err
	}
	found := len(s.fresh)
	s.judge(leader)
	s.walk(full, now)

	res := Result{Looking: s.cfg.Now().Sub(now) - waited, Alone: s.listed == 0}
	var left bool
	res.Reaped, left = s.reap(ctx)
	res.More = left && len(res.Reaped) > 0 || !complete && found > 0
	res.Declined, res.UndidStop = s.declined, s.undidStop
	res.NextDue = s.nextDue()
	s.count(full)
	res.Zombies = s.stats.Own + s.stats.Adopted + s.stats.Unproven
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

// plenty reports whether there is so much to be done that it need not wait for a look: what is new can be looked for meanwhile, and not in
// each sweep. The kernel walks the list of children from its front for each page that is read of it, holding up every fork(2), so
// that a look costs as the square of how many there are.
func (s *Sweeper) plenty(leader procfs.Stat, due int) bool {
	// Those who are not remembered would be found again and again.
	return due > s.limits.look/16 && leaderAlive(leader) && len(s.surplus.rules)+len(s.counting.rules) == 0
}

// countDue returns how many zombies may be reaped at now, or have been asked for.
func (s *Sweeper) countDue(now time.Time) int {
	if s.cfg.Reaper == nil || len(s.zombies) == 0 {
		return 0
	}
	ticks, due := s.cfg.BootTicks(), 0
	for _, z := range s.zombies {
		if z.inFlight || s.isDue(z, now, ticks) {
			due++
		}
	}
	return due
}

func leaderAlive(st procfs.Stat) bool { return st.State != procfs.StateZombie }

// surplus counts zombies that are not remembered, by verdict and by rules.
type surplus struct {
	verdicts [lineage.Adopted + 1]int
	rules    map[lineage.Rules]int
}

// look brings s.zombies up to date with the children lists of PID 1. complete says that it got to the end of them.
func (s *Sweeper) look(leader procfs.Stat, full bool, now time.Time) (complete bool, err error) {
	init := s.cfg.Init.PID
	s.round++
	s.looked = now
	s.listed = 0
	threads := []procfs.HostPID{init}
	// While the leader lives adopted children hang on it (B1 in the design's attacks); what hangs on other threads is
	// PID 1's own and only counted. Once it has exited any thread may hold them.
	if leader.NumThreads > 1 && (full || !leaderAlive(leader)) {
		if threads, err = s.cfg.Proc.Threads(init); err != nil {
			return true, ignoreVanished(err)
		}
	}
	var (
		at      = 0
		skip    = max(0, s.cursor-s.removed)
		budget  = s.limits.look
		verify  = s.limits.verify
		few     = len(s.zombies) <= s.limits.verify
		stopped = false
	)
	if skip == 0 {
		s.counting = surplus{rules: make(map[lineage.Rules]int)}
	}
	child := func(pid, tid procfs.HostPID) bool {
		at++
		s.listed++
		z := s.zombies[pid]
		switch {
		case z != nil:
			z.round = s.round
			again := verifyEvery
			if few && z.useless {
				again = verifyFew
			}
			if verify == 0 || z.inFlight || now.Sub(z.checked) < again {
				return true
			}
			verify--
		case at <= skip:
			return true
		case budget == 0 || len(s.zombies) >= s.limits.tracked:
			stopped = true
			return false
		default:
			budget--
		}
		s.child(pid, tid, now)
		return true
	}
	for _, tid := range threads {
		err := s.cfg.Proc.EachChild(init, tid, func(pid procfs.HostPID) bool { return child(pid, tid) })
		if errors.Is(err, procfs.ErrNoChildren) {
			children, err := s.scanChildren()
			if err != nil {
				return false, err
			}
			for _, pid := range children {
				if !child(pid, 0) { // which thread they hang on is not known
					break
				}
			}
			break
		}
		if err != nil && !errors.Is(err, procfs.ErrVanished) {
			return false, err
		}
		if stopped {
			break
		}
	}
	s.removed = 0
	if stopped {
		s.cursor = at - 1
		return false, nil
	}
	s.cursor = 0
	s.surplus = s.counting
	// Absence from one read of a children list proves nothing (proc(5)): ask for each.
	for _, z := range s.zombies {
		if z.round == s.round || z.inFlight { // what became of it is told by who was asked
			continue
		}
		if !s.still(z) {
			s.vanished(z)
		}
	}
	return true, nil
}

// vanished forgets a zombie that is gone without us. A PID 1 that collects what it adopted may do so on purpose, and a little
// later the next time.
func (s *Sweeper) vanished(z *zombie) {
	s.forget(z)
	if z.judgement.Verdict != lineage.Adopted || s.ending() {
		return
	}
	s.stats.Vanished++
	if !z.tried {
		s.grace = max(s.grace, LearnedGrace)
	}
}

// ending reports whether PID 1 is gone or on its way out: its last thread then collects everybody in the namespace
// (zap_pid_ns_processes() in kernel/pid_namespace.c).
func (s *Sweeper) ending() bool {
	leader, err := s.init()
	if err != nil {
		return true
	}
	if !leader.Exiting {
		return false
	}
	// Its leader thread may be the only one that has exited.
	tids, _ := s.cfg.Proc.Threads(s.cfg.Init.PID)
	for _, tid := range tids {
		if st, err := s.cfg.Proc.ThreadStat(s.cfg.Init.PID, tid); err == nil && !st.Exiting {
			return false
		}
	}
	return true
}

// judge gives the zombies that this look has found their verdicts, which they keep: nothing can be learned of a dead process
// later. The fork log is brought up to date after all of them were seen: only then does its silence mean something.
func (s *Sweeper) judge(leader procfs.Stat) {
	if s.forks != nil && len(s.fresh) > 0 {
		s.forks.Sync()
	}
	for _, z := range s.fresh {
		if s.zombies[z.pid] != z {
			continue // met twice, and the number had a new owner
		}
		fork := s.forkOf(z)
		if z.bare() && fork != lineage.ForkedByOther { // the log has not the last word
			if !s.detail(z) {
				s.forget(z)
				continue
			}
			fork = s.forkOf(z)
		}
		e := lineage.Evidence{
			Init:        s.cfg.Init,
			LeaderAlive: leaderAlive(leader),
			PID:         z.pid,
			Session:     z.session,
			Thread:      z.thread,
			SeenUnder:   s.sightings.Parent(z.pid, z.startTime),
			Fork:        fork,
		}
		z.judgement = lineage.Judge(e)
		if j := z.judgement; j.Rules == lineage.RuleForkLog && j.Verdict == lineage.Adopted || j.Contradiction && e.Fork == lineage.ForkedByInit {
			s.stats.LogDecided++
		}
		if z.judgement.Contradiction {
			s.stats.Contradictions++
		}
		if _, ok := s.dueAt(z); ok && s.cfg.Reaper != nil {
			continue
		}
		if s.useless < s.limits.useless {
			z.useless = true
			s.useless++
			continue
		}
		delete(s.zombies, z.pid)
		to := &s.counting
		if s.cursor == 0 { // the pass has just ended, and its count is in force already
			to = &s.surplus
		}
		to.verdicts[z.judgement.Verdict]++
		to.rules[z.judgement.Rules]++
	}
}

// forkOf asks the fork log, if there is one, of a zombie.
func (s *Sweeper) forkOf(z *zombie) lineage.Fork {
	if s.forks == nil {
		return lineage.ForkUnknown
	}
	return s.forks.Lookup(z.pid, z.startTime)
}

func ignoreVanished(err error) error {
	if errors.Is(err, procfs.ErrVanished) {
		return nil
	}
	return err
}

// child looks at one child of PID 1, found on the list of thread tid (0: unknown), and tracks it if it is a zombie.
func (s *Sweeper) child(pid, tid procfs.HostPID, now time.Time) {
	if z := s.zombies[pid]; z != nil {
		if s.still(z) {
			z.checked = now
			return
		}
		s.vanished(z)
	}
	if st, err := s.cfg.Proc.Stat(pid); err == nil {
		s.remember(s.sight(st, tid, now))
	}
}

// sight returns a child of PID 1 if it is a zombie, else nil.
func (s *Sweeper) sight(st procfs.Stat, tid procfs.HostPID, now time.Time) *zombie {
	if !st.Zombie() || st.Vanishing() || st.PPID != s.cfg.Init.PID {
		return nil
	}
	return &zombie{
		pid: st.PID, startTime: st.StartTime, session: st.Session, thread: tid, comm: st.Comm, status: st.ExitCode,
		firstSeen: now, checked: now,
	}
}

// remember takes in a zombie that was not known, nil for none.
func (s *Sweeper) remember(z *zombie) {
	if z == nil {
		return
	}
	z.round, z.number = s.round, s.ordinal
	s.ordinal++
	s.zombies[z.pid] = z
	s.fresh = append(s.fresh, z)
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

// walk feeds rule L: it notes the parents of the container's living processes. Where the fork log says it all it is done now and then,
// for the day on which that ends.
func (s *Sweeper) walk(full bool, now time.Time) {
	if len(s.cgroups) == 0 || now.Before(s.nextWalk) || !full && s.forks != nil && s.forks.Exact() {
		return
	}
	pids := s.procs()
	known := make(map[procfs.HostPID]bool, len(pids))
	companions := 0
	for _, pid := range pids {
		if pid == s.cfg.Init.PID {
			continue
		}
		// Once sighted, a process stays proven: read it again only in full sweeps, in case its PID changed hands.
		if companion, ok := s.walked[pid]; ok && !full {
			known[pid] = companion
			if companion {
				companions++
			}
			continue
		}
		ticks := s.cfg.BootTicks()
		st, err := s.cfg.Proc.Stat(pid)
		if err != nil {
			continue
		}
		// Where PID 1 leads no session that is known, rule S is silent and everybody is one.
		companion := !st.Zombie() && (!s.cfg.Init.SessionLeader || st.Session == s.cfg.Init.PID)
		if companion {
			companions++
		}
		if s.sightings.Saw(st, ticks, s.cfg.Init.PID) {
			known[pid] = companion
		}
	}
	s.walked = known
	s.stats.Companions = companions
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
		if s.isDue(z, now, ticks) {
			out = append(out, z)
		}
	}
	slices.SortFunc(out, func(a, b *zombie) int { return cmp.Compare(a.number, b.number) })
	return out
}

func (s *Sweeper) isDue(z *zombie, now time.Time, ticks uint64) bool {
	at, ok := s.dueAt(z)
	// The tracer knows the zombie by (pid, start time), which identifies it from MinTicks on, or by its id.
	return ok && !at.After(now) && (z.id != 0 || ticks >= z.startTime+lineage.MinTicks)
}

// dueAt returns when a zombie may be reaped; ok is false when it may not, or has been asked for.
func (s *Sweeper) dueAt(z *zombie) (at time.Time, ok bool) {
	if z.inFlight {
		return at, false
	}
	if z.judgement.Verdict == lineage.Adopted && s.impatient {
		return z.firstSeen, true
	}
	age, ok := s.dueAge(z)
	if !ok {
		return at, false
	}
	at = z.firstSeen.Add(age)
	if z.retryAt.After(at) {
		at = z.retryAt
	}
	if s.retryAt.After(at) {
		at = s.retryAt
	}
	// What has been tried before is tried again when it is time.
	if s.gather.After(at) && z.retryWait == 0 && s.retryWait == 0 {
		at = s.gather
	}
	return at, true
}

// dueAge returns how long a zombie must have been seen before it may be reaped; ok is false when it may not.
func (s *Sweeper) dueAge(z *zombie) (age time.Duration, ok bool) {
	switch {
	case z.judgement.Verdict == lineage.Adopted:
		return s.grace, true
	case z.judgement.Contradiction: // somebody should look first
	case z.judgement.Verdict == lineage.Own && s.cfg.ReapOwn > 0:
		return s.cfg.ReapOwn, true
	case z.judgement.Verdict == lineage.Unproven && s.cfg.ReapUnproven > 0:
		return max(s.cfg.ReapUnproven, s.grace), true
	}
	return 0, false
}

// overdue reports whether a zombie has waited for so long that PID 1 is stopped in the middle of its work for it.
func (s *Sweeper) overdue(z *zombie, now time.Time) bool {
	age, _ := s.dueAge(z)
	return now.Sub(z.firstSeen) > age+overdueAfter
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

// forget drops a zombie that has left the list of children.
func (s *Sweeper) forget(z *zombie) {
	if s.zombies[z.pid] != z {
		return
	}
	delete(s.zombies, z.pid)
	s.sightings.Forget(z.pid, z.startTime)
	s.removed++
	if z.useless {
		s.useless--
	}
}

// count brings the gauges of s.stats up to date.
func (s *Sweeper) count(full bool) {
	st := &s.stats
	v := s.surplus.verdicts
	st.Own, st.Adopted, st.Unproven, st.Oldest = v[lineage.Own], v[lineage.Adopted], v[lineage.Unproven], 0
	st.Rules = make(map[lineage.Rules]int)
	maps.Copy(st.Rules, s.surplus.rules)
	st.Grace = s.grace
	now := s.cfg.Now()
	var rules [1 + math.MaxUint8]int // a map is slow where there are very many
	for _, z := range s.zombies {
		switch z.judgement.Verdict {
		case lineage.Own:
			st.Own++
		case lineage.Adopted:
			st.Adopted++
		default:
			st.Unproven++
		}
		rules[z.judgement.Rules]++
		st.Oldest = max(st.Oldest, now.Sub(z.firstSeen))
	}
	for r, n := range rules {
		if n > 0 {
			st.Rules[lineage.Rules(r)] += n
		}
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
		tasks := int64(st.Own + st.Adopted + st.Unproven)
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
