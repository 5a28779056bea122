package tracer

import (
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// executor carries out requests on one OS thread.
type executor struct {
	options
	look *observer
	tick *ticker
	hand handover    // as the last thread has left it
	cpus unix.CPUSet // where the thread may run
}

// newExecutor is for the calling OS thread.
func newExecutor(opts options) *executor {
	e := &executor{options: opts, look: newObserver(os.DirFS("/proc"), procfs.DirectFS("/sys/fs/cgroup"))}
	// Without either it works as well, only slower.
	e.tick, _ = newTicker()
	_ = unix.SchedGetaffinity(0, &e.cpus)
	return e
}

func (e *executor) close() {
	if e.tick != nil {
		e.tick.close()
	}
}

// approach moves the worker to the CPU that PID 1's thread is on, so that the two hand over to each other without waking a CPU
// and without the load balancer between them. PID 1 stays where it is. It begins to tick, too.
func (e *executor) approach(cpu int) {
	var there unix.CPUSet
	if there.Set(cpu); e.cpus.IsSet(cpu) && e.cpus.Count() > 1 {
		_ = unix.SchedSetaffinity(0, &there)
	}
	if e.tick != nil && e.tick.start() != nil {
		e.tick.close()
		e.tick = nil
	}
}

// retreat undoes approach.
func (e *executor) retreat() {
	if e.tick != nil {
		e.tick.stop()
	}
	if e.cpus.Count() > 1 {
		_ = unix.SchedSetaffinity(0, &e.cpus)
	}
}

func (e *executor) perform(req Request) Report {
	if why := Supported(); why != "" {
		return decline(req, why, "not supported on this architecture yet: "+runtime.GOARCH)
	}
	rep := decline(req, "", "")
	e.attempt(req, &rep)
	for i := range rep.Results {
		r := &rep.Results[i]
		if r.Outcome != Left {
			continue
		}
		switch rep.Reason {
		case ReasonVanished:
			// A namespace ends with its init, and so do the zombies.
			r.Outcome, r.Reason = Vanished, ReasonVanished
		case "":
			r.Reason = ReasonBudget
		}
	}
	return rep
}

func (e *executor) attempt(req Request, rep *Report) {
	until := time.Now().Add(req.Rest)
	o := e.look
	f := newLiveFacts(o, req)
	defer f.close()
	p, err := e.prepare(req, f, until, rep.Results)
	var d *declined
	if errors.As(err, &d) {
		rep.Reason, rep.Detail = d.reason, d.detail
		return
	} else if err != nil {
		rep.Reason, rep.Detail = ReasonInternal, err.Error()
		return
	}
	if p.tid == 0 {
		return
	}
	rep.TID, rep.Syscall = p.tid, p.call.name // the latter "" for a thread that runs
	where, err := o.proc.ThreadStat(req.PID, p.tid)
	if err != nil {
		rep.Reason, rep.Detail = ReasonBusy, err.Error()
		return
	}
	e.approach(where.Processor)
	defer e.retreat()
	t := &thread{tid: int(p.tid), tgid: int(req.PID), tick: e.tick, hand: e.hand}
	a := &attach{t: t, f: f, p: p, now: time.Now, rep: rep, options: e.options}
	e.journal.attached(req.PID, p.tid, req.StartTime, where.StartTime, p.isInit)
	a.run()
	e.hand = t.hand
	// With a thread that is still held the journal stays open: somebody has to look after it once we are gone.
	if rep.Reason != ReasonTimeout {
		e.journal.close()
	}
	for i := range rep.Results {
		// Only status says so, which may not have been read before.
		if r := &rep.Results[i]; r.Reason == ReasonNotZombie {
			if st, err := f.zombieStatus(i); err == nil && st.TracerPid != 0 {
				r.Reason = ReasonZombieTraced
			}
		}
	}
}

// prepare makes the plan of an attach that may begin at a time.
func (e *executor) prepare(req Request, f *liveFacts, at time.Time, results []Result) (p plan, err error) {
	o := e.look
	if err := o.process(req); err != nil {
		return p, err
	}
	// A hundred zombies are more work than all else together, and for nothing while PID 1 is busy.
	if !req.Running && !o.parked(req.PID) {
		if nap(at); !o.parked(req.PID) {
			return p, no(ReasonBusy, "no thread is parked")
		}
	}
	var unused func() bool
	if time.Now().Before(at) { // else nobody asks
		unused = e.watchIdle(req.PID)
	}
	f.openNamespace()
	if p, err = o.zombies(req, f, results); err != nil {
		return p, err
	}
	for time.Now().Before(at) && !unused() {
		nap(time.Now().Add(min(minRest, time.Until(at))))
	}
	if err := o.threads(req, &p, results); err != nil || p.tid == 0 {
		return p, err
	}
	return p, f.open(&p)
}

// minRest is how long PID 1 is left alone in any case. If it has not run in that time, more would be of no use to it.
const minRest = time.Millisecond

// watchIdle returns what tells whether no thread of a process has run for minRest, since it was last asked or, for the first time, from
// now on, nor waits for a CPU to do so.
func (e *executor) watchIdle(pid procfs.HostPID) (idle func() bool) {
	last, known := e.look.timeslices(pid)
	since := time.Now()
	return func() bool {
		if !known || time.Since(since) < minRest {
			return false
		}
		before := last
		last, known = e.look.timeslices(pid)
		since = time.Now()
		return known && last == before && e.look.parked(pid)
	}
}

// nap sleeps on this thread: time.Sleep has another one look at the clock and hand over.
func nap(until time.Time) {
	for d := time.Until(until); d > 0; d = time.Until(until) {
		ts := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&ts, nil) // EINTR: a late tick
	}
}

// awaitInput waits for something to read, or the end of the file, and reports whether there is either before idle is over.
func awaitInput(fd int, idle time.Duration) (bool, error) {
	until := time.Now().Add(idle)
	for {
		left := max(0, time.Until(until))
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int((left+time.Millisecond-1)/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue // a late tick
		}
		return n > 0, err
	}
}
