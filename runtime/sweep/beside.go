package sweep

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// strangers are processes that were no zombie children of PID 1, since a time. From mark on are those in the list of all processes that have
// not been seen yet.
type strangers struct {
	pids  map[procfs.HostPID]struct{}
	since time.Time
	mark  procfs.Mark
}

// besideLook is a look for zombies that are not known yet, which goes on while others are reaped. It finds out nothing about those that
// are: where a child is collected while the list is read, the kernel leaves others out.
type besideLook struct {
	done  chan struct{} // closed at its end; what follows is read after that
	found []*zombie
	mark  procfs.Mark
	err   error
}

// lookBeside begins a look by number where that can be, and else one at the list of the leader, which is where adopted children hang. If
// there is no other thread, it goes over all processes of the machine instead: with many children that takes the kernel a fraction of the
// time, and no lock that others need. As long as the numbers go up it begins with those that were given since the last time.
func (s *Sweeper) lookBeside(ctx context.Context, leader procfs.Stat, now time.Time) {
	if leader.NumThreads <= maxLists && pidfd.Supported() && s.forks != nil && s.forks.Exact() && s.lookByNumber(ctx, leader, now) {
		return
	}
	s.numbers = nil
	if now.Sub(s.strangers.since) >= strangersFor {
		s.strangers = strangers{pids: make(map[procfs.HostPID]struct{}), since: now}
	}
	known := s.known()
	began := time.Now()
	from, until := s.strangers.mark, began.Add(maxReap)
	b := &besideLook{done: make(chan struct{})}
	s.beside, s.looked = b, now
	init, budget, others := s.cfg.Init.PID, s.limits.tracked-len(known), s.strangers.pids // until done nobody else has these
	go func() {
		defer close(b.done)
		child := func(pid procfs.HostPID) bool {
			if _, ok := known[pid]; ok {
				return true
			}
			if _, ok := others[pid]; ok {
				return true
			}
			if budget == 0 || ctx.Err() != nil {
				return false
			}
			st, err := s.cfg.Proc.Stat(pid)
			if err != nil {
				return true
			}
			if z := s.sight(st, init, now.Add(time.Since(began))); z != nil {
				b.found = append(b.found, z)
				budget--
			} else {
				others[pid] = struct{}{}
			}
			return true
		}
		if leader.NumThreads == 1 {
			last, _ := s.cfg.Proc.LastPID() // if it cannot be read, the next look begins at the beginning
			b.err = s.cfg.Proc.EachPIDFrom(from, func(pid procfs.HostPID, at procfs.Mark) bool {
				if pid <= last { // others are from before the numbers began again
					b.mark = at
				}
				// Processes can be forked as fast as they are looked at.
				if time.Now().After(until) || !child(pid) {
					b.mark = at
					return false
				}
				return true
			})
		} else {
			b.err = s.cfg.Proc.EachChild(init, init, child)
		}
	}()
}

// take takes in what such a look has found, if it has ended, or, with wait, when it has.
func (s *Sweeper) take(wait bool) error {
	b := s.beside
	select {
	case <-b.done:
	default:
		if !wait {
			return nil
		}
		<-b.done
	}
	s.beside = nil
	s.strangers.mark = b.mark
	for _, z := range b.found {
		switch old := s.zombies[z.pid]; {
		case old == nil:
			s.remember(z)
		case z.id != 0 && s.numbers != nil && !old.identity().of(z.id, z.startTime):
			// That is gone, and we have not been told yet.
			s.numbers.young = append(s.numbers.young, stranger{z.pid, z.startTime, z.firstSeen.Add(strangersFor)})
		}
	}
	if errors.Is(b.err, procfs.ErrVanished) || errors.Is(b.err, procfs.ErrNoChildren) {
		return nil // the next sweep finds out, or looks elsewhere
	}
	return b.err
}

// identity tells a zombie from others that had or will have its number.
type identity struct{ id, startTime uint64 }

func (z *zombie) identity() identity { return identity{z.id, z.startTime} }

// of reports whether it can be that of a process with an ID that was not born before a tick.
func (i identity) of(id, born uint64) bool { return i.id == id || i.id == 0 && i.startTime >= born }

// known returns the zombies that are known. Found once more, one that is reaped meanwhile would be taken for one that has vanished by itself.
func (s *Sweeper) known() map[procfs.HostPID]identity {
	known := make(map[procfs.HostPID]identity, len(s.zombies))
	for pid, z := range s.zombies {
		known[pid] = z.identity()
	}
	return known
}

// numbers are what a look by number goes by. One tries the numbers that were given since the last, one after the other. That tells nothing
// of a process but whose child it is, and whether it is dead, by its pidfd; the fork log says that PID 1 has not forked it. The rest is
// read where somebody wants to know it.
type numbers struct {
	last procfs.HostPID // up to it they have been tried
	// born is the clock, in ticks since boot, before that was the one given last: whoever has got a number since was not born earlier. The
	// kernel takes the start time after the number (copy_process() in kernel/fork.c).
	born uint64
	// young and old are processes that were no zombie children of PID 1. Most that will be are so in a moment, and others are looked at
	// seldom.
	young, old []stranger
	nextOld    time.Time
	// rest are processes that were there at the beginning and have not been looked at, once they are listed, and ahead are those of them whose
	// number is still to be tried.
	listed bool
	rest   []procfs.HostPID
	ahead  map[procfs.HostPID]struct{}
}

// stranger is a process that may become a zombie child of PID 1.
type stranger struct {
	pid   procfs.HostPID
	born  uint64    // not before, in ticks since boot
	until time.Time // it is young
}

// maxLists is of how many threads of PID 1 a look by number reads the lists of children.
const maxLists = 256

// lookByNumber begins such a look; false if it cannot.
func (s *Sweeper) lookByNumber(ctx context.Context, leader procfs.Stat, now time.Time) bool {
	born := s.cfg.BootTicks()
	last, err := s.cfg.Proc.LastPID()
	if err != nil {
		return false
	}
	n := s.numbers
	if n == nil {
		n = &numbers{last: last, born: born, ahead: make(map[procfs.HostPID]struct{})}
		s.numbers = n
	}
	ranges := [][2]procfs.HostPID{{n.last, last}}
	if last < n.last { // they have begun again
		most, err := s.cfg.Proc.PIDMax()
		if err != nil {
			return false
		}
		ranges = [][2]procfs.HostPID{{n.last, most}, {0, last}}
	}
	l := &numberLook{
		besideLook: besideLook{done: make(chan struct{})}, s: s, n: n, ctx: ctx, now: now, began: time.Now(), budget: s.limits.tracked - len(s.zombies),
	}
	if !n.listed || len(n.rest) > 0 || len(ranges) > 1 {
		l.known = s.known()
	}
	s.beside, s.looked = &l.besideLook, now
	go func() {
		defer close(l.done)
		l.list()
		l.strangers()
		if l.numbers(ranges, born) {
			l.others()
		}
		if leader.NumThreads > 1 && len(l.found) > 0 {
			l.threads()
		}
	}()
	return true
}

// numberLook is a look by number that goes on. Until it is done nobody else has n.
type numberLook struct {
	besideLook
	s          *Sweeper
	n          *numbers
	ctx        context.Context
	now, began time.Time                   // by the clock of the Sweeper, and by the machine's
	budget     int                         // of zombies
	known      map[procfs.HostPID]identity // nil where all that is found is new
}

// over reports whether the look has taken its time: processes can be forked as fast as they are looked at.
func (l *numberLook) over() bool {
	return l.budget == 0 || l.ctx.Err() != nil || time.Since(l.began) > maxReap
}

// seen is the time of what is seen now.
func (l *numberLook) seen() time.Time { return l.now.Add(time.Since(l.began)) }

// look looks at one process, and reports whether to do so again.
func (l *numberLook) look(st stranger) bool {
	facts, err := pidfd.Of(st.pid)
	if err != nil {
		return !errors.Is(err, procfs.ErrVanished)
	}
	init := l.s.cfg.Init.PID
	if !facts.Dead || facts.Parent != init || l.budget == 0 {
		return true
	}
	if i, ok := l.known[st.pid]; ok && i.of(facts.ID, st.born) {
		return false
	}
	l.budget--
	at := l.seen()
	l.found = append(l.found, &zombie{pid: st.pid, id: facts.ID, startTime: st.born, thread: init, firstSeen: at, checked: at})
	return false
}

// strangers looks at those that were no zombies.
func (l *numberLook) strangers() {
	var young []stranger
	for _, st := range l.n.young {
		switch {
		case !l.look(st):
		case l.now.Before(st.until):
			young = append(young, st)
		default:
			l.n.old = append(l.n.old, st)
		}
	}
	l.n.young = young
	if !l.now.Before(l.n.nextOld) {
		l.n.old = slices.DeleteFunc(l.n.old, func(st stranger) bool { return !l.look(st) })
		l.n.nextOld = l.now.Add(strangersFor)
	}
}

// numbers tries the numbers in the ranges, each without its first. It returns false if it did not come to the end.
func (l *numberLook) numbers(ranges [][2]procfs.HostPID, born uint64) bool {
	n := l.n
	for _, r := range ranges {
		for n.last = r[0]; n.last < r[1]; {
			if n.last%64 == 0 && l.over() {
				return false
			}
			n.last++
			if _, ok := n.ahead[n.last]; ok {
				continue
			}
			if st := (stranger{n.last, n.born, l.now.Add(strangersFor)}); l.look(st) {
				n.young = append(n.young, st)
			}
		}
	}
	n.born = born
	if len(n.rest) == 0 {
		clear(n.ahead)
	}
	return true
}

// list lists those that are there at the beginning.
func (l *numberLook) list() {
	if l.n.listed {
		return
	}
	l.n.rest = nil
	l.err = l.s.cfg.Proc.EachPID(func(pid procfs.HostPID) bool {
		if _, ok := l.known[pid]; !ok {
			l.n.rest = append(l.n.rest, pid)
			if pid > l.n.last {
				l.n.ahead[pid] = struct{}{} // or it could be found twice
			}
		}
		return true
	})
	l.n.listed = l.err == nil
}

// others looks at those. Nothing is known of their age, and so the stat files of zombies are read.
func (l *numberLook) others() {
	n := l.n
	for len(n.rest) > 0 && !l.over() {
		pid := n.rest[0]
		n.rest = n.rest[1:]
		found := len(l.found)
		switch again := l.look(stranger{pid: pid}); {
		case !again && len(l.found) > found && !l.s.detail(l.found[found]): // gone
			l.found = l.found[:found]
		case !again:
		case pid > n.last: // just forked
			n.young = append(n.young, stranger{pid: pid, until: l.now.Add(strangersFor)})
		default:
			n.old = append(n.old, stranger{pid: pid})
		}
	}
}

// threads looks for those that have been found on the lists of other threads than the leader: what hangs on them is PID 1's own.
func (l *numberLook) threads() {
	proc, init := l.s.cfg.Proc, l.s.cfg.Init.PID
	found := make(map[procfs.HostPID]*zombie, len(l.found))
	for _, z := range l.found {
		found[z.pid] = z
	}
	// Threads come and go, and so do children: whom that hides from us the fork log tells of.
	tids, _ := proc.Threads(init)
	for _, tid := range tids {
		if tid == init {
			continue
		}
		_ = proc.EachChild(init, tid, func(pid procfs.HostPID) bool {
			if z := found[pid]; z != nil {
				z.thread = tid
			}
			return true
		})
	}
}

// still reports whether a zombie is still there, as a child of PID 1.
func (s *Sweeper) still(z *zombie) bool {
	if z.id != 0 {
		f, err := pidfd.Of(z.pid)
		return err == nil && f.ID == z.id && f.Parent == s.cfg.Init.PID
	}
	st, err := s.cfg.Proc.Stat(z.pid)
	return err == nil && st.StartTime == z.startTime && !st.Vanishing() && st.PPID == s.cfg.Init.PID
}

// detail reads what is not known of a zombie that was found by its number; false if it is gone.
func (s *Sweeper) detail(z *zombie) bool {
	if !z.bare() {
		return true
	}
	st, err := s.cfg.Proc.Stat(z.pid)
	if err != nil || !s.still(z) { // a zombie is the same before and after
		return false
	}
	z.startTime, z.session, z.comm, z.status, z.detailed = st.StartTime, st.Session, st.Comm, st.ExitCode, true
	return true
}

// bare reports whether nothing is known of a zombie but that it is one, and not PID 1's own.
func (z *zombie) bare() bool { return z.id != 0 && !z.detailed }
