package tracer

import (
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// executor carries out requests on one OS thread.
type executor struct {
	options
	look  *observer
	tick  *ticker
	hand  handover // as the last thread has left it
	hurry hurry
	cpus  unix.CPUSet // where the thread may run
	// For so long this process is left alone: a request that was there before the end of the last cannot know of it.
	resting      procfs.HostPID
	restingUntil time.Time
	noTracer     noTracer
}

// newExecutor is for the calling OS thread.
func newExecutor(opts options) *executor {
	e := &executor{options: opts, look: newObserver(os.DirFS("/proc"), procfs.DirectFS("/sys/fs/cgroup"))}
	e.hurry.journal, e.hurry.allowed = e.journal, mayHurry()
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

// attempt makes as many attaches as the request allows and has zombies for.
func (e *executor) attempt(req Request, rep *Report) {
	allowed, received := max(1, req.Attaches), time.Now()
	until := received.Add(req.Rest)
	if e.resting == req.PID && e.restingUntil.After(until) {
		until = e.restingUntil
	}
	rest := e.rest(req.PID, until)
	end := rest.until.Add(maxRun)
	f := newLiveFacts(e.look, req)
	defer f.close()
	defer func() {
		if rep.Reason != ReasonTimeout { // else the thread is still held, and somebody has to look after it once we are gone
			e.hurry.end()
		}
	}()
	t, most := newTargets(len(req.Zombies)), batchSize(req.maxStop())
	for want := (len(req.Zombies) + allowed - 1) / allowed; ; {
		one := Report{Results: rep.Results}
		t.untraced = e.noTracer.covers(req, received)
		e.attachOnce(req, f, &t, min(want, most), rest, &one)
		rep.add(one)
		if one.Attached {
			e.resting, e.restingUntil = req.PID, time.Now().Add(RestAfter(one.Stopped))
		}
		allowed--
		over := !one.Attached || allowed == 0 || one.Reason != "" && one.Reason != ReasonSignal || time.Now().After(end)
		if one.Attached && req.Attaches > 1 {
			e.awaitBack(req.PID, one.TID)
		}
		if !over {
			rest = e.rest(req.PID, e.restingUntil)
		}
		done := settle(f, &t, rep.Results)
		left := t.left()
		// A signal has PID 1 do something, for which there is the rest.
		if over || left == 0 && t.examined == len(req.Zombies) || one.Reason == ReasonSignal && done == 0 {
			return
		}
		// As many as before, and a few more, so that it can turn out to be faster: what is not come to stays prepared.
		if want = done + done/4; left == 0 {
			want = 2 * done
		}
		want = max(want, minWanted)
		e.step("between")
	}
}

// minWanted is how many are prepared at least for each attach but the first.
const minWanted = 8

// settle takes the zombies off the list that an attach has dealt with, returns how many they were, and closes the files of all that are
// not on it.
func settle(f *liveFacts, t *targets, results []Result) (done int) {
	for i := range t.examined {
		r := &results[i]
		switch {
		case !t.todo[i]:
		case r.Outcome == Left:
			continue
		default:
			t.todo[i] = false
			done++
		}
		f.drop(i)
	}
	return done
}

// attachOnce makes one attach, after the rest, with so many zombies prepared.
func (e *executor) attachOnce(req Request, f *liveFacts, t *targets, want int, rest rest, rep *Report) {
	o := e.look
	p, err := e.prepare(req, f, t, want, rest, rep.Results)
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
	th := &thread{tid: int(p.tid), tgid: int(req.PID), tick: e.tick, hand: e.hand}
	a := &attach{t: th, f: f, p: p, now: time.Now, rep: rep, options: e.options}
	if e.hurry.tid != th.tid {
		e.hurry.end()
		e.hurry.tgid = th.tgid
	}
	e.journal.attached(req.PID, p.tid, req.StartTime, where.StartTime, p.isInit)
	if req.Attaches > 1 {
		// There is very much to be done: it goes first also on its way to its first stop and back to its call.
		e.hurry.begin(th.tid)
	} else {
		a.hurry = &e.hurry
	}
	a.run()
	e.hand = th.hand
	if e.noTracer.heard(req, a.answer); a.answer.none {
		t.onAnswer = false
	}
	// With a thread that is still held the journal stays open: somebody has to look after it once we are gone.
	if rep.Reason != ReasonTimeout {
		if a.hurry != nil {
			e.hurry.forget() // if nobody has let go of it
		}
		e.journal.close()
	}
}

// prepare makes the plan of an attach and prepares so many zombies for it, in the time of the rest if that is enough.
func (e *executor) prepare(req Request, f *liveFacts, t *targets, want int, rest rest, results []Result) (p plan, err error) {
	o := e.look
	if err := o.process(req); err != nil {
		return p, err
	}
	// A hundred zombies are more work than all else together, and for nothing while PID 1 is busy.
	if !req.Running && !o.parked(req.PID) {
		if nap(rest.until); !o.parked(req.PID) {
			return p, no(ReasonBusy, "no thread is parked")
		}
	}
	// On a kernel that does not tell numbers the statuses are read in any case.
	t.ask = t.onAnswer || pidfd.Supported() && e.noTracer.due(req, time.Now())
	if err := o.zombies(req, f, t, want, results); err != nil {
		return p, err
	}
	rest.wait()
	p = t.plan(req)
	if err := o.threads(req, &p, results); err != nil || p.tid == 0 {
		return p, err
	}
	return p, f.open(&p)
}

// minRest is how long PID 1 is left alone in any case. If it has not run in that time, more would be of no use to it.
const minRest = time.Millisecond

// rest is a time in which PID 1 is left alone: until it is over, or no thread has run for minRest of it, nor waits for a CPU to do so.
type rest struct {
	look  *observer
	pid   procfs.HostPID
	until time.Time
	since time.Time // so far back is known how often its threads were given a CPU: so often
	turns uint64
	known bool
}

// awaitBack gives a thread that has just been let go the time to be back in its call, which is no use for a rest: on our CPU, it gets
// nowhere while we work.
func (e *executor) awaitBack(pid, tid procfs.HostPID) {
	const looks, between = 4, 50 * time.Microsecond
	for range looks {
		nap(time.Now().Add(between))
		if sc, err := e.look.proc.ThreadSyscall(pid, tid); err != nil || !sc.Running {
			return
		}
	}
}

// rest begins one.
func (e *executor) rest(pid procfs.HostPID, until time.Time) rest {
	r := rest{look: e.look, pid: pid, until: until}
	if time.Now().Before(until) { // else nobody asks
		r.count()
	}
	return r
}

func (r *rest) count() {
	r.turns, r.known = r.look.timeslices(r.pid)
	r.since = time.Now()
}

// wait waits for its end.
func (r *rest) wait() {
	for now := time.Now(); now.Before(r.until); now = time.Now() {
		at := r.since.Add(minRest)
		switch {
		case !r.known || at.After(r.until):
			nap(r.until)
		case now.Before(at):
			nap(at)
		default:
			before := r.turns
			if r.count(); r.known && r.turns == before && r.look.parked(r.pid) {
				return
			}
		}
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
