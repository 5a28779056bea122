package tracer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Deadlines of the waits. They bound how long a worker can be busy with one thread: all of them together stay far below
// killGrace, so that the client never has to kill a worker that is at work.
const (
	// stopWait is for a stop that a parked thread makes at once: longer means that it is in uninterruptible sleep
	// (vfork(2), a hung file system) or gets no CPU time. In the latter case it is given maxTurns times that: giving up costs
	// more CPU time than waiting, of which there is not enough already.
	stopWait = 50 * time.Millisecond
	maxTurns = 8
	// backWait is for a thread that goes once through user mode: longer means that it is frozen. On a busy machine it may
	// have to wait for its turn, and it is not us who holds it.
	backWait = 200 * time.Millisecond
	// swapWait is for the exit of waitid(WNOHANG), which waits for locks of the kernel at most. Letting go before would
	// leave PID 1 with the result of a call that it did not make.
	swapWait = time.Second
	// catchWait is for a thread that runs, until it enters or leaves its next call, and catchFor for all of the way to one in which it
	// may be stopped. A server at work makes some ten calls in it.
	catchWait = time.Millisecond
	catchFor  = 2 * time.Millisecond
	// scrubWait is for the delivery of a signal that is known to be pending.
	scrubWait = 5 * time.Millisecond
)

// maxSignals is how many signals that mean nothing to PID 1 are passed on in one attach before it is given up, if the stop
// budget lasts that long: a flood of them may not hold PID 1.
const maxSignals = 256

// maxScrubs is how many SIGSTOPs from inside are taken out at the end of an attach.
const maxScrubs = 8

// undoLooks is how often undoStop looks at a thread that stays running.
const undoLooks = 20

// allSignals is a mask of all of them. The kernel leaves SIGKILL and SIGSTOP out of it (PTRACE_SETSIGMASK in ptrace(2)).
const (
	allSignals  = ^procfs.SignalSet(0)
	unblockable = procfs.SignalSet(1<<(sigKill-1) | 1<<(sigStop-1))
)

// options are what a worker gives to all its attaches.
type options struct {
	journal *Journal
	// exitStop has registers restored at the exit stop of waitid; without, that is done where the pin is delivered.
	exitStop bool
	// unpinned exchanges the call without pin and mask: if the worker dies meanwhile, nobody can put it right.
	unpinned bool
	hook     func(step string) // for tests: is told of every step of the swap
}

// noZombie stands in place of a zombie, and askNumber in place of its number, where PID 1 is asked whether it traces any process.
const (
	noZombie  = -1
	askNumber = -1
)

// archOptions are what this architecture needs.
func archOptions(j *Journal) options {
	return options{journal: j, exitStop: restoreAtExit}
}

func (o *options) step(name string) {
	if o.hook != nil {
		o.hook(name)
	}
}

var (
	errGone  = errors.New("the thread is gone")
	errStuck = errors.New("the thread did not stop in time")
	errPerm  = errors.New("ptrace is not permitted")

	errAtSyscall = errors.New("a syscall stop came first")
)

// Which syscall stop PTRACE_GET_SYSCALL_INFO says it is (include/uapi/linux/ptrace.h).
const (
	opNone  = 0
	opEntry = 1
	opExit  = 2
)

type syscallInfo struct {
	op     uint8
	arch   uint32
	pc, sp uint64
	nr     int64     // opEntry
	args   [6]uint64 // opEntry
	value  int64     // opExit: the result
}

// entryOf reports whether it is the entry of the same call from the same place as r.
func (i *syscallInfo) entryOf(r *registers) bool {
	pc, sp := r.place()
	return i.op == opEntry && i.arch == auditArch && i.nr == r.nr() && i.args == r.args() && i.pc == pc && i.sp == sp
}

// sigInfo is the part of siginfo_t (sigaction(2)) that tells where a signal came from.
type sigInfo struct {
	code int32
	pid  int32 // sender's PID in the receiver's namespace; 0 if it has none there
	mark bool  // queued with our value
}

// Codes of signals (sigaction(2)).
const (
	siUser   = 0
	siTkill  = -6
	siKernel = 0x80
)

// fromOutside reports whether the signal was sent from an ancestor of the receiver's PID namespace, or by the kernel. Codes
// below zero other than SI_TKILL can be forged by any sender (rt_sigqueueinfo(2)); they count as inside.
func (s sigInfo) fromOutside() bool {
	return s.code == siKernel || (s.code == siUser || s.code == siTkill) && s.pid == 0
}

// tracee is one thread under ptrace(2). errGone stands for the thread's death wherever that shows (ESRCH, ECHILD, an exit
// status). Methods that resume it take the signal to be delivered, 0 for none.
type tracee interface {
	// seize attaches with PTRACE_O_TRACESYSGOOD and nothing else; the thread goes on running. errPerm: refused.
	seize() error
	interrupt() error
	// wait returns the next stop, or errStuck after d.
	wait(d time.Duration) (stop, error)
	// getRegs fills in r; errNotNative if the thread has another register set than r.
	getRegs(r *registers) error
	setRegs(r *registers) error
	syscallInfo() (syscallInfo, error)
	cont(sig int) error
	syscall(sig int) error
	// suspendSeccomp turns the thread's seccomp filters off or on again.
	suspendSeccomp(on bool) error
	sigInfo() (sigInfo, error)
	// pendingStops counts the SIGSTOPs in the queues of thread and process by where they came from.
	pendingStops() (ours, inside, outside int, err error)
	// pin makes a SIGSTOP pending for the thread. It bears our mark.
	pin() error
	mask() (procfs.SignalSet, error)
	setMask(m procfs.SignalSet) error
	detach(sig int) error
	// sendCont sends SIGCONT to the process, traced or not.
	sendCont() error
}

// haste has a thread that stands still go first among its like.
type haste interface {
	begin(tid int)
	end()
}

// facts are what is looked up in /proc again while the thread is stopped.
type facts interface {
	// sameProcess returns an error if PID 1 has ended or is not the process of the request any more.
	sameProcess() error
	// traced reports whether the leader of PID 1 has a tracer.
	traced() bool
	// thread returns the status of the thread, with the signals pending for the process.
	thread() (procfs.Status, error)
	// syscall returns the system call that the thread is blocked in.
	syscall() procfs.Syscall
	// gone reports whether zombie i has been released. For as long as it is there, all that was found out before the attach stays
	// true: its number, whose child it is, and that it has no tracer, since a zombie cannot get one (ptrace_attach() in
	// kernel/ptrace.c).
	gone(i int) bool
	// zombieTraced reports whether zombie i has a tracer, or whether that cannot be told.
	zombieTraced(i int) bool
}

// targets are the zombies of a request, and what was found out about them. It holds from one attach to the next, as the open files do.
type targets struct {
	reapers  []procfs.NSPID // per zombie, what to call waitid with
	todo     []bool         // per zombie: passed the checks
	examined int            // so many have been looked at
	level    int            // of PID 1 in NSpid
	untraced bool           // PID 1 traces none of those that have an ID
	ask      bool           // whether PID 1 traces anybody, in the attach to come
	onAnswer bool           // of some of those that are prepared that is all that tells whether they have a tracer
	isInit   bool           // PID 1 of a PID namespace: the kernel drops signals for it (pid_namespaces(7))
}

func newTargets(n int) targets {
	return targets{reapers: make([]procfs.NSPID, n), todo: make([]bool, n)}
}

// left returns how many are prepared and still to be done.
func (t *targets) left() int {
	n := 0
	for _, todo := range t.todo {
		if todo {
			n++
		}
	}
	return n
}

// plan is what was decided before the attach.
type plan struct {
	tid     procfs.HostPID   // 0: nothing is left to be done
	call    call             // what the thread was parked in
	threads int              // of PID 1
	blocked procfs.SignalSet // by any thread
	targets
	maxStop time.Duration
	running bool // the thread was running; call is of no meaning
	otherFD int  // a pidfd of PID 1 that is known to refer to none of the zombies, or -1
}

// attach is the state of one attach. Everything it needs between the swap of a call and its restoration is in here, so that
// nothing is allocated there.
type attach struct {
	options
	t   tracee
	f   facts
	p   plan
	now func() time.Time
	rep *Report
	// hurry, if there is one, lets the thread go first among its like while it stands still.
	hurry haste

	stopped  time.Time // when the thread was first seen stopped
	released bool      // detached, or gone

	own    procfs.SignalSet // the signals that the thread blocks
	entry  registers        // as they were at the first syscall-entry stop
	code   int64            // the restart code of the interrupted call
	call   call             // the interrupted call
	resume registers        // entry, such that the kernel's signal path restarts the call: legal at every stop but an entry
	back   registers        // entry, such that the thread re-executes the call by itself
	again  registers        // restartsBeforeStop: resume, with a result that restarts the call in any case
	swap   registers        // scratch

	inFlight   int  // the zombie that the thread is waiting for right now, or noZombie
	filtered   bool // the thread has a seccomp filter
	rewinding  bool // the registers are those of back: the signal path must not see them
	pinned     bool // our SIGSTOP is pending
	masked     bool // the thread blocks every signal
	owedCont   bool // our SIGSTOP has removed a SIGCONT that PID 1 would have noticed
	restarting bool // restartsBeforeStop: the signal path has rewound the call, with an argument 0 that may not be its own
	caught     bool // the call had not begun when it was stopped: it is executed as if nothing had been
	filled     bool // caught: fill has been given what the entry stop did not show
	ownCall    bool // at the entry stop the thread is in the call that was interrupted
	signals    int  // passed on or dropped
	answer     answer
	insideStop bool // a SIGSTOP from inside was seen
	otherStop  bool // PID 1 was stopped from outside, or in a group stop of unknown origin
}

// declined is an orderly end: PID 1 has been let go as it was.
type declined struct {
	reason Reason
	detail string
}

func (d *declined) Error() string { return string(d.reason) + ": " + d.detail }

func no(reason Reason, format string, args ...any) error {
	return &declined{reason, fmt.Sprintf(format, args...)}
}

// run attaches, reaps what it can and lets go. The results are in the report; it never fails otherwise.
func (a *attach) run() {
	a.inFlight = noZombie
	err := a.session()
	var d *declined
	switch {
	case err == nil:
	case errors.As(err, &d):
		a.rep.Reason, a.rep.Detail = d.reason, d.detail
	case errors.Is(err, errGone):
		a.bury(err)
	case errors.Is(err, errStuck):
		a.released = true // by the end of this process
		a.rep.Reason, a.rep.Detail = ReasonTimeout, err.Error()
	default:
		a.rep.Reason, a.rep.Detail = ReasonInternal, err.Error()
	}
	if a.rep.Attached && !a.released {
		// An unexpected error. Without a pin the registers are legal. With one, or if even this fails, the end of the
		// process lets go, and the journal says what is left to be done.
		if a.pinned || a.masked {
			a.rep.Reason = ReasonTimeout
		} else if err := a.letGo(0); err != nil && !errors.Is(err, errGone) {
			a.rep.Reason = ReasonTimeout
		}
	}
	if !a.stopped.IsZero() {
		a.rep.Stopped = a.now().Sub(a.stopped)
	}
	if a.rep.Attached && a.rep.Reason != ReasonVanished && a.rep.Reason != ReasonTimeout {
		a.undoStop()
		if a.owedCont && !a.otherStop { // a stop that came later has removed it for good
			_ = a.t.sendCont()
		}
	}
}

// bury ends our part in a thread that has died. Its death is shown to the tracer first: until we have waited for it, its
// parent does not learn that PID 1 has ended (wait_consider_task() in kernel/exit.c).
func (a *attach) bury(cause error) {
	a.released = true
	a.rep.Reason, a.rep.Detail = ReasonVanished, cause.Error()
	if a.rep.Attached {
		s, err := a.t.wait(stopWait)
		if errors.Is(err, errStuck) || err == nil && s.kind != stopGone {
			// Still there, whatever ptrace said, or waiting for its siblings to die: the end of this process lets go.
			a.rep.Reason = ReasonTimeout
			return
		}
	}
	var d *declined
	if err := a.f.sameProcess(); errors.As(err, &d) {
		a.rep.Reason, a.rep.Detail = d.reason, d.detail
		return
	} else if err != nil {
		return
	}
	if a.f.traced() {
		// It called execve(2) itself before it came to a stop. That gives it the leader's number, and it stays traced
		// under that one (ptrace(2), "execve(2) under ptrace"). Nothing of ours is in its registers.
		a.rep.Reason = ReasonTimeout
		return
	}
	// The thread has ended, or another one has called execve(2), which ends all others.
	a.rep.Reason = ReasonBusy
	if i := a.inFlight; i != noZombie && a.f.gone(i) {
		// waitid was the last that it did.
		a.rep.Results[i].Outcome, a.rep.Results[i].Reason = Reaped, ""
	}
}

func (a *attach) session() error {
	if err := a.stillRunning(); err != nil {
		return err
	}
	err := a.t.seize()
	if errors.Is(err, errPerm) {
		// Also said of a thread that is just exiting or being replaced by execve(2).
		err = a.t.seize()
	}
	if err != nil {
		return a.seizeError(err)
	}
	a.rep.Attached, a.rep.Attaches = true, 1
	var seen procfs.Syscall
	if restartsBeforeStop {
		seen = a.f.syscall() // as late as can be
	}
	if err := a.t.interrupt(); err != nil {
		return fmt.Errorf("interrupt: %w", err)
	}
	if err := a.untilEventStop(); err != nil {
		return err
	}
	if a.p.running && (!restartsBeforeStop || seen.Running) { // else it has parked since
		err = a.catch()
	} else if err = a.parked(seen); err == nil {
		a.setHurry(true)
		err = a.toEntry()
	}
	if err != nil {
		return err
	}
	// From here on the thread is at a syscall-entry stop with its own call.
	if err := a.checkEntry(); err != nil {
		return a.leaveEntry(err)
	}
	return a.batch()
}

// stillRunning looks once more, as late as can be, at a thread that was running: what it has gone into since may be a call that a stop cuts
// short, or one that it can be parked in.
func (a *attach) stillRunning() error {
	if !a.p.running {
		return nil
	}
	sc := a.f.syscall()
	if sc.Running {
		return nil
	}
	if c := classifyCall(sc.Nr, sc.Args); sc.Nr < 0 || c.class == classUnsafe || covers(&a.p, c.waits) {
		return no(ReasonBusy, "thread %d has gone into %s", a.p.tid, c.name)
	}
	a.p.running = false
	return nil
}

func (a *attach) seizeError(err error) error {
	if !errors.Is(err, errPerm) {
		return fmt.Errorf("seize thread %d: %w", a.p.tid, err)
	}
	st, serr := a.f.thread()
	switch {
	case serr != nil:
		return fmt.Errorf("seize thread %d: %w", a.p.tid, errGone)
	case st.TracerPid != 0:
		return no(ReasonTraced, "by process %d", st.TracerPid)
	case st.State == procfs.StateZombie || st.State == procfs.StateDead:
		return no(ReasonBusy, "thread %d has just exited", st.Tgid)
	}
	return no(ReasonNoPermission, "seize thread %d: %v", a.p.tid, err)
}

// wait waits for the next stop and notes when the first one came.
func (a *attach) wait(d time.Duration) (stop, error) {
	s, err := a.t.wait(d)
	if err != nil {
		return s, err
	}
	if s.kind == stopGone {
		return s, errGone
	}
	if a.stopped.IsZero() {
		a.stopped = a.now()
	}
	return s, nil
}

// untilEventStop waits for the event stop that an interrupt asked for. What comes before is passed on or ends the attach.
func (a *attach) untilEventStop() error {
	for turns := 1; ; {
		s, err := a.wait(stopWait)
		if errors.Is(err, errStuck) && turns < maxTurns {
			if st, ferr := a.f.thread(); ferr == nil && st.State == procfs.StateRunning {
				turns++
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("wait for the event stop: %w", err)
		}
		switch s.kind {
		case stopEvent:
			return nil
		case stopSyscall:
			return errAtSyscall
		case stopSignal:
			sig, err := a.signal(s.sig)
			if err != nil {
				return err
			}
			// The interrupt is still pending: the kernel looks at traps before signals (get_signal()).
			if err := a.t.cont(sig); err != nil {
				return fmt.Errorf("pass on signal %d: %w", s.sig, err)
			}
		default:
			return a.surprise(s)
		}
	}
}

// surprise ends the attach at a stop that nothing can be done with.
func (a *attach) surprise(s stop) error {
	if err := a.letGo(0); err != nil {
		return err
	}
	if s.kind == stopGroup {
		if !a.insideStop {
			a.noteOtherStop()
		}
		return no(ReasonStopped, "by signal %d", s.sig)
	}
	return no(ReasonInternal, "unexpected %v", s)
}

// signal decides about a signal that is being delivered: the signal to resume with, or, after letting PID 1 go with it, the
// error that ends the attach.
//
// A traced thread is shown signals that it would never have got: the kernel drops ignored ones when they are sent, unless
// the receiver is traced (sig_ignored() in kernel/signal.c), and for a namespace's init that means everything without a
// handler. Passing such a signal on has it dropped now (get_signal()). SIGSTOP is the exception: it works on init once it
// is in the queue, so that one from inside, which would have been dropped, must be dropped by us.
func (a *attach) signal(sig int) (resume int, err error) {
	if err := a.legal(); err != nil {
		return 0, err
	}
	a.signals++
	end := func(why string) (int, error) {
		if err := a.letGo(sig); err != nil {
			return 0, err
		}
		return 0, no(ReasonSignal, "signal %d: %s", sig, why)
	}
	if sig == sigStop {
		if !a.p.isInit {
			return end("delivered")
		}
		info, err := a.t.sigInfo()
		if err != nil {
			return 0, fmt.Errorf("look at SIGSTOP: %w", err)
		}
		if info.fromOutside() {
			a.noteOtherStop()
			return end("delivered")
		}
		a.insideStop = true
		sig = 0
	} else {
		st, err := a.f.thread()
		if err != nil {
			return 0, fmt.Errorf("look at signal %d: %w", sig, errGone)
		}
		if st.SigCgt.Has(sig) {
			return end("delivered to its handler")
		}
		if !a.p.isInit && !st.SigIgn.Has(sig) && sig != sigChld && sig != sigCont && sig != sigURG && sig != sigWinch {
			return end("delivered")
		}
	}
	if a.signals > maxSignals || a.signals > 1 && a.now().Sub(a.stopped) > a.p.maxStop {
		return end("more than this attach can take")
	}
	return sig, nil
}

// nativeRegs reads the registers. A thread of another kind is let go.
func (a *attach) nativeRegs(r *registers) error {
	if err := a.t.getRegs(r); errors.Is(err, errNotNative) {
		return a.leave(no(ReasonNotNative, "%v", err))
	} else if err != nil {
		return fmt.Errorf("get registers: %w", err)
	}
	if !r.native() {
		return a.leave(no(ReasonNotNative, "mode %#x", r.mode()))
	}
	return nil
}

// parked checks, at the event stop, that the thread is blocked in a call that may be interrupted, and prepares its restart.
func (a *attach) parked(seen procfs.Syscall) error {
	if err := a.f.sameProcess(); err != nil {
		return a.leave(err)
	}
	var r registers
	if err := a.nativeRegs(&r); err != nil {
		return err
	}
	k := r.interrupted(seen)
	c := classifyCall(k.nr(), k.args())
	code, ok := k.restartCode(c)
	if !ok {
		return a.leave(no(ReasonBusy, "thread %d was not parked any more", a.p.tid))
	}
	if covers(&a.p, c.waits) || c.class == classUnsafe {
		// It has moved on since we looked. Its restart is the kernel's business.
		return a.leave(no(ReasonUnsafeSyscall, "%s", c.name))
	}
	a.call, a.code, a.entry = c, code, k
	a.rep.Syscall = c.name
	if k.result() != code {
		a.resume = r
		a.back, a.rewinding = k.restart(code)
		if err := a.t.setRegs(&a.back); err != nil {
			return fmt.Errorf("set registers for a restart of %s: %w", c.name, err)
		}
	}
	return nil
}

// catch takes a thread that runs from the event stop to the entry of a call that it could be parked in. At the entry stop nothing of the
// call has been done: exchanged and put back, it is executed for the first time. What is in a call that may not be touched is not stopped
// any more: if it does not come out in time it is left to the end of this process, of which a running thread notices nothing.
func (a *attach) catch() error {
	if err := a.f.sameProcess(); err != nil {
		return a.leave(err)
	}
	var r registers
	began := a.now()
	sig := 0
	inside := false // of a call that may not be touched
	busy := func() error { return no(ReasonBusy, "thread %d enters no call that it could be parked in", a.p.tid) }
	for {
		if err := a.nativeRegs(&r); err != nil {
			return err
		}
		if err := a.t.syscall(sig); err != nil {
			return fmt.Errorf("resume to a system call: %w", err)
		}
		sig = 0
		limit := catchWait
		if inside {
			limit = stopWait
		}
		s, err := a.wait(limit)
		if errors.Is(err, errStuck) && inside {
			a.stopped = a.now() // it has run since the first stop
			return fmt.Errorf("wait for the end of a call that may not be touched: %w", err)
		} else if errors.Is(err, errStuck) {
			// It computes.
			if err := a.t.interrupt(); err != nil {
				return fmt.Errorf("interrupt: %w", err)
			}
			if err := a.untilEventStop(); errors.Is(err, errAtSyscall) {
				return a.leaveInterrupted(busy()) // the interrupt is still to come
			} else if err != nil {
				return err
			}
			return a.leave(busy())
		} else if err != nil {
			return fmt.Errorf("wait for a system call: %w", err)
		}
		switch s.kind {
		case stopEvent: // a SIGCONT that PID 1 had no use for
		case stopSignal:
			if sig, err = a.signal(s.sig); err != nil {
				return err
			}
		case stopSyscall:
			info, err := a.t.syscallInfo()
			if err != nil {
				return fmt.Errorf("get syscall info: %w", err)
			}
			if info.op == opExit {
				inside = false
				if a.now().Sub(began) > catchFor {
					if err := a.letGo(0); err != nil {
						return err
					}
					return busy()
				}
				continue
			}
			if err := a.t.getRegs(&a.entry); err != nil {
				return fmt.Errorf("get registers: %w", err)
			}
			c := classifyCall(a.entry.nr(), a.entry.args())
			if info.op != opEntry || info.arch != auditArch || c.class == classUnsafe || covers(&a.p, c.waits) {
				inside = true
				continue
			}
			a.atEntry()
			a.call, a.code, a.caught = c, errRestartNoIntr, true
			a.rep.Syscall = c.name
			a.stopped = a.now() // it has run since the first stop
			return nil
		default:
			return a.surprise(s)
		}
	}
}

// toEntry resumes the thread up to its next syscall-entry stop.
func (a *attach) toEntry() error {
	// Rewound by hand where the kernel would not do it, a signal without a handler changes nothing; with one, the attach ends.
	byHand := restartsBeforeStop && a.rewinding
	sig := 0
	for {
		if err := a.t.syscall(sig); err != nil {
			return fmt.Errorf("resume to the syscall-entry stop: %w", err)
		}
		s, err := a.wait(backWait)
		if errors.Is(err, errStuck) {
			// Frozen in the meantime, most likely: a frozen thread still makes event stops.
			if err := a.t.interrupt(); err != nil {
				return fmt.Errorf("interrupt: %w", err)
			}
			err := a.untilEventStop()
			if errors.Is(err, errAtSyscall) {
				// Only slow. The interrupt is still to come.
				a.atEntry()
				return a.leaveEntry(no(ReasonBusy, "thread %d took its time", a.p.tid))
			} else if err != nil {
				return err
			}
			return a.leave(no(ReasonFrozen, "thread %d did not come back to its system call", a.p.tid))
		}
		if err != nil {
			return fmt.Errorf("wait for the syscall-entry stop: %w", err)
		}
		switch s.kind {
		case stopSyscall:
			a.atEntry()
			return nil
		case stopEvent: // a SIGCONT that PID 1 had no use for
			if err := a.legal(); err != nil {
				return err
			}
			if a.signals++; a.signals > maxSignals {
				return a.leave(no(ReasonSignal, "SIGCONT: more than this attach can take"))
			}
			sig = 0
		case stopSignal:
			if sig, err = a.signal(s.sig); err != nil {
				return err
			}
		default:
			return a.surprise(s)
		}
		if byHand {
			if err := a.t.setRegs(&a.back); err != nil {
				return fmt.Errorf("rewind: %w", err)
			}
			a.rewinding = true
		}
	}
}

// atEntry notes that the thread has been in user mode and is at an entry stop: every SIGSTOP that was pending for it has
// been shown on the way.
func (a *attach) atEntry() {
	a.rewinding, a.pinned, a.ownCall = false, false, false
	a.journal.pin(false)
}

// legal makes sure that the registers are good for the kernel's signal path: with those of back a signal's handler would
// run and the call would then be entered anew, where it has to end with EINTR.
//
// Where the kernel prepares a restart before the stop, argument 0 has to be put back as well: everything else is right.
func (a *attach) legal() error {
	if a.restarting {
		if a.caught && !a.filled {
			if err := a.t.getRegs(&a.swap); err != nil {
				return fmt.Errorf("get registers: %w", err)
			}
			for _, r := range []*registers{&a.entry, &a.resume, &a.back, &a.again} {
				r.fill(&a.swap)
			}
			a.filled = true
		}
		if err := a.t.setRegs(&a.back); err != nil {
			return fmt.Errorf("restore registers: %w", err)
		}
		a.restarting = false
	}
	if !a.rewinding {
		return nil
	}
	if err := a.t.setRegs(&a.resume); err != nil {
		return fmt.Errorf("restore registers: %w", err)
	}
	a.rewinding = false
	return nil
}

// checkEntry verifies the first syscall-entry stop and takes down the registers.
func (a *attach) checkEntry() error {
	info, err := a.t.syscallInfo()
	if err != nil {
		return fmt.Errorf("get syscall info: %w", err)
	}
	if info.op != opEntry {
		return no(ReasonInternal, "expected a syscall-entry stop, got kind %d", info.op)
	}
	if info.arch != auditArch {
		return no(ReasonNotNative, "system call of architecture %#x", info.arch)
	}
	parked := a.entry
	if err := a.t.getRegs(&a.entry); err != nil {
		return fmt.Errorf("get registers: %w", err)
	}
	var ok bool
	if a.code, ok = a.entry.restarted(&parked, a.code); !ok {
		return no(ReasonBusy, "%s became call %d", a.call.name, a.entry.nr())
	}
	if !a.caught {
		a.entry.fill(&parked)
	}
	a.ownCall = true
	end := a.code
	if a.call.plainEINTR && !a.call.endless && !a.caught {
		// Issued again, its relative time-out would start anew, and a busy leak could keep PID 1 from ever seeing it
		// elapse. So it gets the EINTR that any stop gives.
		end = resultEINTR
	}
	a.resume = a.entry.withResult(end)
	a.back = a.entry.rewound()
	a.again = a.entry.withResult(a.code)

	st, err := a.f.thread()
	if err != nil {
		return fmt.Errorf("look at thread %d: %w", a.p.tid, errGone)
	}
	if sigchldPending(st, a.p.blocked) {
		return no(ReasonSigchldPending, "at the syscall-entry stop")
	}
	if pnd := st.SigPnd | st.ShdPnd; !a.unpinned && pnd.Has(sigCont) && (st.SigCgt | st.SigBlk | a.p.blocked).Has(sigCont) {
		return no(ReasonSignal, "SIGCONT is pending, and the pin would remove it") // prepare_signal() in kernel/signal.c
	}
	if st.Seccomp == procfs.SeccompStrict {
		return no(ReasonSeccompStrict, "thread %d", a.p.tid)
	}
	if a.own, err = a.t.mask(); err != nil {
		return fmt.Errorf("get signal mask: %w", err)
	}
	if !a.unpinned { // without a pin a recovery could not tell
		a.journal.arm(&parked, &a.entry, &a.resume, a.own)
	}
	a.filtered = st.Seccomp != procfs.SeccompDisabled
	return nil
}

// sigchldPending reports whether PID 1 has a SIGCHLD coming that it will notice.
func sigchldPending(st procfs.Status, blocked procfs.SignalSet) bool {
	return (st.SigPnd | st.ShdPnd).Has(sigChld) && (st.SigCgt | st.SigBlk | blocked).Has(sigChld)
}

// batch reaps one zombie after the other, beginning at the syscall-entry stop, and lets go.
func (a *attach) batch() error {
	a.setHurry(true)
	atEntry := true // else past the last waitid, with the registers of resume or back
	var last time.Duration
	if a.p.ask {
		tried, err := a.reap(noZombie, true)
		if err != nil && !tried {
			return a.leaveEntry(err)
		}
		if err != nil {
			return err
		}
		atEntry = !tried
	}
	for i, todo := range a.p.todo {
		if !todo {
			continue
		}
		began := a.now()
		// The first is tried in any case, or a small budget would never get anywhere.
		if last > 0 && began.Sub(a.stopped)+last > a.p.maxStop {
			break
		}
		if a.f.gone(i) {
			a.refuse(i, ReasonVanished)
			continue
		}
		if a.p.onAnswer && !a.answer.none && a.f.zombieTraced(i) {
			a.refuse(i, ReasonZombieTraced)
			continue
		}
		if !atEntry {
			if err := a.reenter(); err != nil {
				return err
			}
		}
		tried, err := a.reap(i, slices.Contains(a.p.todo[i+1:], true))
		if err != nil && !tried {
			return a.leaveEntry(err)
		}
		if err != nil {
			return err
		}
		atEntry = !tried
		last = max(last, a.now().Sub(began))
	}
	if atEntry {
		return a.leaveEntry(nil)
	}
	return a.leaveExit()
}

// reenter brings the thread from where reap has left it to the entry stop of its own call.
func (a *attach) reenter() error {
	switch {
	case restartsBeforeStop && a.unpinned:
		// By way of the kernel's restart: a signal that comes meanwhile finds the call interrupted, as it has to be.
		if err := a.restart(&a.again); err != nil {
			return err
		}
	// Where restoreAtExit holds, the kernel has taken the result of resume for what it says: it restarts the call.
	case !a.rewinding && (a.unpinned || !a.exitStop):
		if err := a.t.setRegs(&a.back); err != nil {
			return fmt.Errorf("rewind: %w", err)
		}
		a.rewinding = true
	}
	if err := a.toEntry(); err != nil {
		return err
	}
	// One instruction of PID 1 has run, and another thread can have written a different one there.
	info, err := a.t.syscallInfo()
	if err != nil {
		return fmt.Errorf("get syscall info: %w", err)
	}
	if !info.entryOf(&a.entry) {
		return a.leaveEntry(no(ReasonBusy, "%s did not come back", a.call.name))
	}
	a.ownCall = true
	return nil
}

// restart brings the thread from the exit stop of a call that was swapped in to an event stop of the signal path, which it
// enters with the registers r; they restart its own call.
func (a *attach) restart(r *registers) error {
	if err := a.t.setRegs(r); err != nil {
		return fmt.Errorf("set registers for a restart: %w", err)
	}
	a.restarting = true
	if err := a.toEventStop(0); err != nil {
		return err
	}
	return a.legal()
}

// reap makes the thread wait for zombie i, or ask whom it traces. tried says that waitid has run: the thread is then past it, with registers and
// mask that are good for letting go. Otherwise it is at the entry stop with its own call. more says that this is not the
// last.
//
// From the pin to the restoration the thread has registers and a signal mask that are not its own. If the tracer dies then,
// the SIGSTOP stops it before it executes an instruction: SIGSTOP cannot be blocked, and since everything else is, no
// handler's frame is built from the wrong registers either. The journal says how to go on.
func (a *attach) reap(i int, more bool) (tried bool, err error) {
	// Only now, and only until the exit stop: PID 1 executes nothing of its own in between. Set at the attach, it would
	// let PID 1 run without its filter until the first stop.
	if a.filtered {
		if err := a.t.suspendSeccomp(true); errors.Is(err, errGone) {
			return false, err
		} else if err != nil {
			return false, no(ReasonSeccompFilter, "suspend: %v", err)
		}
	}
	number := procfs.NSPID(askNumber)
	if i != noZombie {
		number = a.p.reapers[i]
	}
	if err := a.fix(number); err != nil {
		return false, err
	}
	if a.p.threads > 1 && i != noZombie {
		// Another thread may have reaped it since we looked, and its number may have a new owner.
		if a.f.gone(i) {
			a.refuse(i, ReasonVanished)
			return false, nil
		}
	}
	nr, args := waitidCall(int(number))
	a.swap = a.entry.withCall(nr, args)
	began := a.now()
	if err := a.t.setRegs(&a.swap); err != nil {
		return false, errors.Join(fmt.Errorf("swap in waitid: %w", err), a.unswap())
	}
	a.step("swapped")
	a.inFlight = i
	atExit := a.exitStop || a.unpinned
	run := a.t.cont // up to the delivery of the pin: one stop for two purposes
	if atExit {
		run = a.t.syscall
	}
	if err := run(0); err != nil {
		a.inFlight = noZombie
		return false, errors.Join(fmt.Errorf("run waitid: %w", err), a.unswap())
	}
	a.step("running")
	s, err := a.wait(swapWait)
	if err != nil {
		return true, fmt.Errorf("wait for the exit of waitid: %w", err)
	}
	a.step("waited")
	var value int64
	var info syscallInfo
	var ierr error
	if atExit {
		info, ierr = a.t.syscallInfo()
		value = info.value
	} else {
		ierr = a.t.getRegs(&a.swap)
		value = a.swap.result()
	}
	next, rewinding := a.atExit(), false
	switch {
	case more && !atExit:
		next, rewinding = &a.back, true
	case more && restartsBeforeStop && !a.unpinned:
		next = &a.again
	}
	if err := a.t.setRegs(next); err != nil { // errGone: killed meanwhile
		return true, fmt.Errorf("restore registers: %w", err)
	}
	a.rewinding = rewinding
	a.step("restored")
	ended, err := a.unpinRestarted(s, next)
	if err != nil {
		return true, err
	}
	if err := a.unmask(); err != nil {
		return true, err
	}
	if a.filtered {
		if err := a.t.suspendSeccomp(false); err != nil {
			return true, fmt.Errorf("resume seccomp: %w", err)
		}
	}
	if ierr != nil {
		return true, fmt.Errorf("look at the result of waitid: %w", ierr)
	}
	if a.unpinned && (s.kind != stopSyscall || info.op != opExit) {
		return true, a.surprise(s)
	}
	if !atExit && a.swap.nr() != nr {
		return true, fmt.Errorf("call %d where waitid was expected, at %v", a.swap.nr(), s)
	}
	if i == noZombie {
		a.answer = answer{at: began, took: a.now().Sub(began), none: value == resultECHILD}
	} else {
		a.judge(i, value)
	}
	a.inFlight = noZombie
	if ended != nil {
		return true, ended()
	}
	return true, nil
}

// fix pins the thread at the entry stop and blocks its signals.
func (a *attach) fix(nspid procfs.NSPID) error {
	a.step("entry")
	if a.unpinned {
		return nil
	}
	a.journal.aim(nspid)
	if !a.pinned {
		a.journal.pin(true)
		a.step("journalled")
		if err := a.t.pin(); errors.Is(err, errGone) {
			return err
		} else if err != nil {
			a.journal.pin(false)
			return no(ReasonNoPermission, "send SIGSTOP: %v", err)
		}
		a.pinned = true
		a.step("pinned")
	}
	if !a.masked {
		if err := a.t.setMask(allSignals); err != nil {
			return fmt.Errorf("block signals: %w", err)
		}
		a.masked = true
		a.step("masked")
	}
	return nil
}

func (a *attach) unmask() error {
	if !a.masked {
		return nil
	}
	if err := a.t.setMask(a.own); err != nil {
		return fmt.Errorf("restore signal mask: %w", err)
	}
	a.masked = false
	a.step("unmasked")
	return nil
}

// unpin takes the pin back, beginning at stop s behind a call, with registers that are the thread's own. It ends at the
// pin's signal-delivery stop, where resuming without a signal drops it, or at a stop that came instead. Should the tracer
// die before it resumes the thread, the SIGSTOP is delivered (see thread.wait), and the process stops: the journal says that
// it was us.
//
// ended is what to do, once the mask is restored, if the attach cannot go on.
func (a *attach) unpin(s stop) (ended func() error, err error) {
	for a.pinned {
		switch {
		case s.kind == stopSignal && s.sig == sigStop:
			info, err := a.t.sigInfo()
			if err != nil {
				return nil, fmt.Errorf("look at SIGSTOP: %w", err)
			}
			a.pinned = false
			switch {
			case a.ours(info):
			case a.p.isInit && !info.fromOutside():
				a.insideStop = true
			default:
				// A SIGSTOP for this very thread was pending, and the kernel keeps one of each.
				a.noteOtherStop()
				return func() error {
					if err := a.letGo(sigStop); err != nil {
						return err
					}
					return no(ReasonSignal, "signal %d: delivered", sigStop)
				}, nil
			}
			return nil, nil
		case s.kind == stopGroup:
			// The pin stays where it is: the SIGCONT that ends the group stop removes it.
			a.pinned = false
			return func() error { return a.surprise(s) }, nil
		case s.kind == stopEvent:
			// A SIGCONT. It has removed the pin, or the pin has removed it.
			ours, _, _, err := a.t.pendingStops()
			if err != nil {
				return nil, fmt.Errorf("look at pending signals: %w", err)
			}
			if a.signals++; ours == 0 {
				a.pinned = false
				return nil, nil
			}
			if st, err := a.f.thread(); err == nil && !(st.SigPnd | st.ShdPnd).Has(sigCont) && (st.SigCgt | a.own).Has(sigCont) {
				a.owedCont = true
			}
		case s.kind == stopSyscall && a.exitStop:
		default:
			return nil, fmt.Errorf("%w: unexpected %v before the pin", errStuck, s)
		}
		if err := a.t.cont(0); err != nil {
			return nil, fmt.Errorf("resume to the delivery of the pin: %w", err)
		}
		if s, err = a.wait(swapWait); err != nil {
			return nil, fmt.Errorf("wait for the delivery of the pin: %w", err)
		}
	}
	return nil, nil
}

// ours reports whether the SIGSTOP that is being delivered is the pin. If the user that PID 1 runs as has used up
// RLIMIT_SIGPENDING, the kernel forgets what came with a signal and says SI_USER (__send_signal_locked(), collect_signal()
// in kernel/signal.c); a real one of these is queued for the process and comes after the thread's own.
func (a *attach) ours(info sigInfo) bool {
	return info.mark || info.code == siUser && info.pid == 0
}

func (a *attach) noteOtherStop() {
	a.otherStop = true
	a.journal.foreignStop()
}

// unpinRestarted is unpin from the exit stop of a call that was swapped in, with registers r.
func (a *attach) unpinRestarted(s stop, r *registers) (ended func() error, err error) {
	a.restarting = restartsBeforeStop && a.pinned && r.result() != resultEINTR
	if ended, err = a.unpin(s); err != nil || !a.restarting {
		return ended, err
	}
	return ended, a.legal()
}

// atExit returns the registers that are good at an exit stop, should the tracer die there: those of a restart, or, where a
// restart has an argument 0 that may not be the thread's own and there is no pin, those that execute the call once more.
func (a *attach) atExit() *registers {
	if restartsBeforeStop && a.unpinned {
		return &a.back
	}
	return &a.resume
}

// unswap puts the thread's own call back at the entry stop. Pin and mask stay.
func (a *attach) unswap() error {
	if err := a.t.setRegs(&a.entry); err != nil {
		return fmt.Errorf("restore registers: %w", err)
	}
	if a.filtered {
		if err := a.t.suspendSeccomp(false); err != nil {
			return fmt.Errorf("resume seccomp: %w", err)
		}
	}
	return nil
}

// judge records what waitid made of zombie i. It returns 0 for a child that it did not take as well, so that /proc decides.
func (a *attach) judge(i int, value int64) {
	gone := a.f.gone(i)
	switch {
	case value == 0 && gone:
		a.rep.Results[i].Outcome, a.rep.Results[i].Reason = Reaped, ""
	case value == 0 && a.f.zombieTraced(i):
		a.refuse(i, ReasonZombieTraced)
	case value == 0:
		a.refuse(i, ReasonNotZombie)
	case value == resultECHILD && gone:
		a.refuse(i, ReasonVanished)
	case value == resultECHILD:
		a.refuse(i, ReasonNotAChild)
	default:
		a.refuse(i, ReasonInternal)
		a.rep.Detail = fmt.Sprintf("waitid for process %d returned %d", a.rep.Results[i].PID, value)
	}
}

func (a *attach) refuse(i int, why Reason) {
	a.rep.Results[i].Outcome, a.rep.Results[i].Reason = outcomeOf(why), why
}

func outcomeOf(why Reason) Outcome {
	if why == ReasonVanished {
		return Vanished
	}
	return Refused
}

// leave lets go at an event stop and returns why, which may be nil.
func (a *attach) leave(why error) error {
	if err := a.legal(); err != nil {
		return err
	}
	if err := a.repair(); err != nil {
		return err
	}
	if err := a.scrub(); err != nil {
		return err
	}
	if !a.released {
		if err := a.letGo(0); err != nil {
			return err
		}
	}
	return why
}

// repair hides the stop from an endless call that gives EINTR on any. One with a time-out keeps the EINTR.
func (a *attach) repair() error {
	if restartsBeforeStop {
		return nil // it would take a restart by hand, and a signal with a handler could still come: see leaveIdle
	}
	var r registers
	if err := a.t.getRegs(&r); errors.Is(err, errNotNative) {
		return nil
	} else if err != nil {
		return fmt.Errorf("get registers: %w", err)
	}
	if !r.native() {
		return nil
	}
	c := classifyCall(r.nr(), r.args())
	if !c.plainEINTR {
		return nil
	}
	want := r.result()
	switch {
	case want == resultEINTR && c.endless:
		want = errRestartNoHand
	case want == errRestartNoHand && !c.endless: // our own doing
		want = resultEINTR
	}
	if want == r.result() {
		return nil
	}
	r = r.withResult(want)
	if err := a.t.setRegs(&r); err != nil {
		return fmt.Errorf("repair %s: %w", c.name, err)
	}
	return nil
}

// leaveEntry lets go at a syscall-entry stop with the thread's own call in place: the call is entered with an interrupt
// pending and ends at once the way it ends at any stop, in an event stop. A detach right here would do the same without
// the event stop, and epoll_wait's EINTR could not be repaired.
func (a *attach) leaveEntry(why error) error {
	if errors.Is(why, errGone) || a.released {
		return why
	}
	if a.filtered {
		if err := a.t.suspendSeccomp(false); err != nil {
			return fmt.Errorf("resume seccomp: %w", err)
		}
	}
	if restartsBeforeStop && a.call.plainEINTR && a.ownCall {
		return a.leaveIdle(why)
	}
	return a.leaveInterrupted(why)
}

// leaveIdle lets go at the entry stop of a call that gives a plain EINTR on any stop, where that could not be repaired: by
// way of a call that does nothing, to whose exit stop registers belong that say how the thread's own ends.
func (a *attach) leaveIdle(why error) error {
	if err := a.fix(0); errors.Is(err, errGone) {
		return err
	} else if err != nil {
		return a.leaveInterrupted(why)
	}
	if a.filtered {
		if err := a.t.suspendSeccomp(true); err != nil {
			return a.leaveInterrupted(why)
		}
	}
	_, args := waitidCall(0) // by which a recovery knows it; the call ignores them
	a.swap = a.entry.withCall(nrNothing, args)
	if err := a.t.setRegs(&a.swap); err != nil {
		return errors.Join(fmt.Errorf("swap in a call that does nothing: %w", err), a.unswap())
	}
	if err := a.t.syscall(0); err != nil {
		return errors.Join(fmt.Errorf("run a call that does nothing: %w", err), a.unswap())
	}
	s, err := a.wait(swapWait)
	if err != nil {
		return fmt.Errorf("wait for the exit of a call that does nothing: %w", err)
	}
	if err := a.t.setRegs(a.atExit()); err != nil {
		return fmt.Errorf("restore registers: %w", err)
	}
	ended, err := a.unpinRestarted(s, a.atExit())
	if err != nil {
		return err
	}
	if err := a.unmask(); err != nil {
		return err
	}
	if a.filtered {
		if err := a.t.suspendSeccomp(false); err != nil {
			return fmt.Errorf("resume seccomp: %w", err)
		}
	}
	if ended != nil {
		return ended()
	}
	if a.unpinned && s.kind != stopSyscall {
		return a.surprise(s)
	}
	if err := a.leaveExit(); err != nil {
		return err
	}
	return why
}

// leaveInterrupted lets go at the entry stop by interrupting the call.
func (a *attach) leaveInterrupted(why error) error {
	if !a.pinned {
		if err := a.toEventStop(0); err != nil {
			return err
		}
		return a.leave(why)
	}
	// The pin is what interrupts the call.
	if err := a.t.cont(0); err != nil {
		return fmt.Errorf("resume to the delivery of the pin: %w", err)
	}
	s, err := a.wait(swapWait)
	if err != nil {
		return fmt.Errorf("wait for the delivery of the pin: %w", err)
	}
	ended, err := a.unpin(s)
	if err != nil {
		return err
	}
	if err := a.unmask(); err != nil {
		return err
	}
	if ended != nil {
		if err := a.repair(); err != nil {
			return err
		}
		return ended()
	}
	return a.leave(why)
}

// leaveExit lets go past waitid, with the registers of resume or back in place. The detach sends the thread through
// the kernel's signal path (__ptrace_unlink() kicks it), which restarts the call or ends it with EINTR for a handler.
func (a *attach) leaveExit() error {
	switch {
	case !restartsBeforeStop:
	case a.resume.result() == resultEINTR:
		if err := a.t.setRegs(&a.resume); err != nil {
			return fmt.Errorf("restore registers: %w", err)
		}
	case !a.unpinned: // done on the way to the pin
	default:
		if err := a.restart(&a.resume); err != nil {
			return err
		}
		return a.leave(nil)
	}
	_, inside, _, err := a.t.pendingStops()
	if err != nil {
		return fmt.Errorf("look at pending signals: %w", err)
	}
	if inside == 0 || !a.p.isInit {
		return a.letGo(0)
	}
	if err := a.toEventStop(0); err != nil {
		return err
	}
	return a.leave(nil)
}

// toEventStop resumes the thread with a signal and brings it to an event stop inside the kernel's signal path.
func (a *attach) toEventStop(sig int) error {
	if err := a.t.interrupt(); err != nil {
		return fmt.Errorf("interrupt: %w", err)
	}
	if err := a.t.cont(sig); err != nil {
		return fmt.Errorf("resume to the event stop: %w", err)
	}
	return a.untilEventStop()
}

// scrub takes SIGSTOPs from inside the namespace out of the queue. Without us they would have been dropped when they were
// sent; left there, they would stop PID 1 as soon as it is let go. To be called at an event stop, and ends at one unless
// the thread has been released.
func (a *attach) scrub() error {
	if !a.p.isInit {
		return nil
	}
	for range maxScrubs {
		_, inside, outside, err := a.t.pendingStops()
		if err != nil {
			return fmt.Errorf("look at pending signals: %w", err)
		}
		if outside > 0 {
			a.noteOtherStop()
			return nil
		}
		if inside == 0 {
			return nil
		}
		a.insideStop = true
		if err := a.t.cont(0); err != nil {
			return fmt.Errorf("resume to the delivery of SIGSTOP: %w", err)
		}
		s, err := a.wait(scrubWait)
		if errors.Is(err, errStuck) {
			// Another thread has taken it.
			if err := a.t.interrupt(); err != nil {
				return fmt.Errorf("interrupt: %w", err)
			}
			if err := a.untilEventStop(); err != nil {
				return err
			}
			if err := a.repair(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the delivery of SIGSTOP: %w", err)
		}
		sig := 0
		switch s.kind {
		case stopEvent:
			continue
		case stopSignal:
			if sig, err = a.signal(s.sig); err != nil {
				return err
			}
		default:
			return a.surprise(s)
		}
		if err := a.toEventStop(sig); err != nil {
			return err
		}
	}
	return nil // undoStop does the rest
}

// letGo detaches with a signal.
func (a *attach) letGo(sig int) error {
	if err := a.legal(); err != nil {
		return err
	}
	if a.p.isInit {
		// The last moment at which one from outside can be told from one from inside, for undoStop.
		_, _, outside, err := a.t.pendingStops()
		if err != nil {
			return fmt.Errorf("look at pending signals: %w", err)
		}
		a.otherStop = a.otherStop || outside > 0
	}
	a.setHurry(false)
	a.journal.restored()
	a.step("leaving")
	if err := a.t.detach(sig); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	a.released = true
	a.step("left")
	return nil
}

// setHurry is for the time in which all that the thread executes is waitid and the way to its own call. Where it has to wait for a CPU in
// between, behind whatever leaks, PID 1 stands still for nothing.
func (a *attach) setHurry(on bool) {
	switch {
	case a.hurry == nil:
	case on:
		a.hurry.begin(int(a.p.tid))
	default:
		a.hurry.end()
	}
}

// undoStop looks, after the detach, whether a SIGSTOP from inside has slipped into the queue at the last moment, and takes
// it back: SIGCONT removes what is pending and wakes what is stopped (signal(7)). A stop from outside is left alone as far
// as it can be told, and so it looks no longer than it must: whatever comes after the detach is from outside.
func (a *attach) undoStop() {
	if !a.p.isInit || a.otherStop {
		return
	}
	for look := range undoLooks {
		st, err := a.f.thread()
		if err != nil {
			return
		}
		// A thread takes a SIGSTOP out of the queue and stops in one go (get_signal() and do_signal_stop() in
		// kernel/signal.c), and the status names the state before the queues. So a single thread has had none if there is none
		// in the queues at the first look and it is not stopped at the second.
		alone := a.p.threads == 1
		switch {
		case st.State == procfs.StateStopped, (look == 0 || !alone) && (st.SigPnd | st.ShdPnd).Has(sigStop):
			a.rep.UndidStop = a.t.sendCont() == nil
			return
		case alone && look > 0, st.State != procfs.StateRunning: // parked again: it has gone through its signals
			return
		}
	}
}
