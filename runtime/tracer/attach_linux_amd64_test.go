package tracer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// fakeTracee replays a sequence of stops and writes down what is done to it. It is strict where the kernel is: a call at the
// wrong time is an error of the state machine.
type fakeTracee struct {
	t     *testing.T
	stops []fakeStop // what wait returns, in order
	log   []string

	regs    registers // current
	at      fakeStop
	running bool
	orig    registers // the parked thread's own, as first shown

	stopInfo   sigInfo
	pending    []int // answers of pendingStops (inside), the last one for ever
	suspendErr error
	seizeErr   error
	pinErr     error
	pinned     bool // a pin was sent and not shown
	unpinAt    int  // the stop, counted from 1, by which the pin is gone without having been shown
	waits      int
	masked     bool
}

// fakeStop is one answer of wait: a stop with the registers and syscall info that go with it, or an error.
type fakeStop struct {
	stop stop
	err  error
	regs *registers // nil: as they were written
	info syscallInfo
	pin  bool // the delivery of the pin
	ran  bool // a call has ended, with the result of info
}

func (f *fakeTracee) note(format string, args ...any) {
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fakeTracee) needStopped(what string) {
	f.t.Helper()
	if f.running {
		f.t.Errorf("%s while the thread runs; so far: %v", what, f.log)
	}
}

func (f *fakeTracee) seize() error     { f.note("seize"); f.running = true; return f.seizeErr }
func (f *fakeTracee) interrupt() error { f.note("interrupt"); return nil }
func (f *fakeTracee) sendCont() error  { f.note("SIGCONT"); return nil }

func (f *fakeTracee) wait(time.Duration) (stop, error) {
	if len(f.stops) == 0 {
		f.t.Fatalf("a wait too many; so far: %v", f.log)
	}
	f.at, f.stops = f.stops[0], f.stops[1:]
	if f.at.err != nil {
		f.note("%v", f.at.err)
		return stop{}, f.at.err
	}
	f.note("<%v>", f.at.stop)
	if f.waits++; f.at.pin || f.waits == f.unpinAt {
		f.pinned = false
	}
	f.running = f.at.stop.kind == stopGone
	if f.at.regs != nil {
		f.regs = *f.at.regs
	}
	if f.at.ran {
		f.regs.Rax = uint64(f.at.info.value)
	}
	return f.at.stop, nil
}

func (f *fakeTracee) getRegs(r *registers) error {
	f.needStopped("getRegs")
	*r = f.regs
	return nil
}

func (f *fakeTracee) setRegs(r *registers) error {
	f.needStopped("setRegs")
	f.regs = *r
	f.note("set %s", f.describe(r))
	return nil
}

// describe says which of the register sets of an attach r is.
func (f *fakeTracee) describe(r *registers) string {
	own := r.args() == f.orig.args() && r.Rsp == f.orig.Rsp
	switch {
	case r.nr() == unix.SYS_WAITID && r.args() == [6]uint64{unix.P_ALL, 0, 0, unix.WEXITED | unix.WNOHANG | unix.WNOWAIT | unix.WCLONE, 0, 0}:
		return "question"
	case r.nr() == unix.SYS_WAITID && !own:
		return fmt.Sprintf("waitid %d", r.Rsi)
	case !own:
		return "garbage"
	case r.nr() == -1 && r.Rip == f.orig.Rip-insnSize && int64(r.Rax) >= 0:
		return "rewound"
	case r.Rip != f.orig.Rip:
		return "garbage"
	case r.nr() >= 0 && r.result() == -int64(unix.ENOSYS):
		return "own call"
	case r.nr() >= 0:
		return fmt.Sprintf("restart %d", r.result())
	}
	return "garbage"
}

func (f *fakeTracee) syscallInfo() (syscallInfo, error) {
	f.needStopped("syscallInfo")
	info := f.at.info
	info.nr, info.args = f.regs.nr(), f.regs.args()
	info.pc, info.sp = f.regs.place()
	return info, nil
}

func (f *fakeTracee) resume(how string, sig int) error {
	f.needStopped(how)
	f.note("%s %d", how, sig)
	f.running = true
	return nil
}

func (f *fakeTracee) cont(sig int) error    { return f.resume("cont", sig) }
func (f *fakeTracee) syscall(sig int) error { return f.resume("syscall", sig) }

func (f *fakeTracee) detach(sig int) error {
	if d := f.describe(&f.regs); strings.HasPrefix(d, "waitid") || d == "question" || d == "garbage" || d == "rewound" {
		f.t.Errorf("detached with registers %q", d)
	}
	if f.masked {
		f.t.Error("detached with signals blocked")
	}
	if f.pinned && f.at.stop.kind != stopGroup {
		f.t.Error("detached with a pin that will stop the process")
	}
	return f.resume("detach", sig)
}

func (f *fakeTracee) suspendSeccomp(on bool) error {
	f.needStopped("suspendSeccomp")
	f.note("suspend %v", on)
	if on {
		return f.suspendErr
	}
	return nil
}

func (f *fakeTracee) sigInfo() (sigInfo, error) {
	if f.at.pin {
		return sigInfo{code: siQueue, mark: true}, nil
	}
	return f.stopInfo, nil
}

func (f *fakeTracee) pendingStops() (ours, inside, outside int, err error) {
	f.needStopped("pendingStops")
	if f.pinned {
		ours = 1
	}
	if len(f.pending) == 0 {
		return ours, 0, 0, nil
	}
	inside = f.pending[0]
	if len(f.pending) > 1 {
		f.pending = f.pending[1:]
	}
	return ours, inside, 0, nil
}

func (f *fakeTracee) pin() error {
	f.needStopped("pin")
	f.note("pin")
	f.pinned = f.pinErr == nil
	return f.pinErr
}

// ownMask is what the thread blocks.
const ownMask = procfs.SignalSet(0x4000)

func (f *fakeTracee) mask() (procfs.SignalSet, error) {
	f.needStopped("mask")
	return ownMask, nil
}

func (f *fakeTracee) setMask(m procfs.SignalSet) error {
	f.needStopped("setMask")
	switch m {
	case allSignals:
		f.note("mask all")
	case ownMask:
		f.note("mask own")
	default:
		f.note("mask %#x", uint64(m))
	}
	f.masked = m != ownMask
	return nil
}

type fakeFacts struct {
	k       *fakeTracee
	numbers []procfs.NSPID // of the zombies
	status  procfs.Status
	gones   map[int][]bool // per zombie, the first answers; then whether it was waited for
	there   map[int]bool   // zombies that stay
	leader  bool           // has a tracer
	held    bool           // zombies that are not taken have a tracer
}

func (f *fakeFacts) syscall() procfs.Syscall { return procfs.Syscall{} }

func (f *fakeFacts) sameProcess() error             { return nil }
func (f *fakeFacts) thread() (procfs.Status, error) { return f.status, nil }
func (f *fakeFacts) traced() bool                   { return f.leader }
func (f *fakeFacts) zombieTraced(int) bool          { return f.held }
func (f *fakeFacts) gone(i int) bool {
	if g := f.gones[i]; len(g) > 0 {
		f.gones[i] = g[1:]
		return g[0]
	}
	return !f.there[i] && slices.Contains(f.k.log, fmt.Sprintf("set waitid %d", f.numbers[i]))
}

func TestAttachSequences(t *testing.T) {
	own := registers{Rip: 0x401002, Rsp: 0x7ffe0000, Cs: userCS, Rdi: 0xd1, Rsi: 0, Rdx: 0xd3, R10: 0xd4, R8: 0xd5, R9: 0xd6, Rbx: 0xb}
	parkedIn := func(nr, result int64) registers {
		r := own
		if nr == unix.SYS_EPOLL_WAIT {
			r.R10 = ^uint64(0)
		}
		r.Orig_rax, r.Rax = uint64(nr), uint64(result)
		return r
	}
	var (
		enosys    = -int64(unix.ENOSYS)
		futex     = parkedIn(unix.SYS_FUTEX, errRestartSys)
		nanosleep = parkedIn(unix.SYS_NANOSLEEP, errRestartBlock)
		epoll     = parkedIn(unix.SYS_EPOLL_WAIT, resultEINTR)
		epollFin  = parkedIn(unix.SYS_EPOLL_WAIT, resultEINTR)
		reading   = parkedIn(unix.SYS_READ, errRestartSys)
		returned  = parkedIn(unix.SYS_FUTEX, 0)
	)
	epollFin.R10 = 1000
	event := func(r registers) fakeStop { return fakeStop{stop: stop{kind: stopEvent}, regs: &r} }
	again := fakeStop{stop: stop{kind: stopEvent}}
	entry := func(parked registers) fakeStop {
		r := parked
		if parked.result() == errRestartBlock {
			r.Orig_rax = nrRestartSyscall
		}
		r.Rax = uint64(enosys)
		return fakeStop{stop: stop{kind: stopSyscall}, regs: &r, info: syscallInfo{op: opEntry, arch: auditArch, nr: r.nr()}}
	}
	// waited is the end of waitid, where the pin is shown.
	waited := func(value int64) fakeStop {
		return fakeStop{stop: stop{kind: stopSignal, sig: sigStop}, info: syscallInfo{value: value}, pin: true, ran: true}
	}
	exit := func(value int64) fakeStop {
		return fakeStop{stop: stop{kind: stopSyscall}, info: syscallInfo{op: opExit, arch: auditArch, value: value}, ran: true}
	}
	// notified is the end of waitid when a SIGCONT came.
	notified := func(value int64) fakeStop {
		return fakeStop{stop: stop{kind: stopEvent}, info: syscallInfo{value: value}, ran: true}
	}
	// shown is the delivery of the pin in another call.
	shown := func(r registers) fakeStop {
		return fakeStop{stop: stop{kind: stopSignal, sig: sigStop}, regs: &r, pin: true}
	}
	signal := func(sig int) fakeStop { return fakeStop{stop: stop{kind: stopSignal, sig: sig}} }
	group := fakeStop{stop: stop{kind: stopGroup, sig: sigStop}}
	gone := fakeStop{stop: stop{kind: stopGone}}
	stuck := fakeStop{err: errStuck}
	foreign := entry(futex)
	evil := *foreign.regs
	evil.Orig_rax = unix.SYS_OPENAT
	foreign.regs = &evil
	compat := entry(futex)
	compat.info.arch = 0x40000003 // AUDIT_ARCH_I386
	usr1Caught := procfs.Status{SigCgt: 1 << (unix.SIGUSR1 - 1), State: procfs.StateSleeping}
	sleeping := procfs.Status{State: procfs.StateSleeping}

	const (
		toEntry  = "seize interrupt <event stop> syscall 0 <syscall stop> "
		fix      = "pin mask all "
		pinStop  = "<signal-delivery stop (signal 19)> "
		reapTwo  = fix + "set waitid 2 cont 0 " + pinStop + "set restart -512 mask own "
		nextTwo  = fix + "set waitid 2 cont 0 " + pinStop + "set rewound mask own " // more to come
		reapFive = fix + "set waitid 5 cont 0 " + pinStop + "set restart -512 mask own "
		reenter  = "syscall 0 <syscall stop> "
		question = fix + "set question cont 0 " + pinStop + "set rewound mask own "
	)
	tests := []struct {
		name    string
		parked  registers
		stops   []fakeStop
		status  *procfs.Status
		zombies int // 1 or 2: the numbers 2 and 5
		threads int
		notInit bool
		// as in options
		exitStop, unpinned bool
		tune               func(f *fakeTracee, p *plan, facts *fakeFacts)
		want               string // the log
		reason             Reason
		results            []Outcome
		why                Reason // of the first result, if that is checked
		nobody             bool   // PID 1 has said that it traces nobody
	}{
		{
			name: "one zombie", parked: futex,
			stops:   []fakeStop{event(futex), entry(futex), waited(0)},
			want:    toEntry + reapTwo + "detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "two zombies", parked: futex, zombies: 2,
			stops:   []fakeStop{event(futex), entry(futex), waited(0), entry(futex), waited(0)},
			want:    toEntry + nextTwo + reenter + reapFive + "detach 0",
			results: []Outcome{Reaped, Reaped},
		},
		{
			name: "PID 1 is asked first whether it traces anybody, and does not", parked: futex,
			tune:    func(_ *fakeTracee, p *plan, _ *fakeFacts) { p.ask = true },
			stops:   []fakeStop{event(futex), entry(futex), waited(resultECHILD), entry(futex), waited(0)},
			want:    toEntry + question + reenter + reapTwo + "detach 0",
			results: []Outcome{Reaped}, nobody: true,
		},
		{
			name: "it does", parked: futex,
			tune:    func(_ *fakeTracee, p *plan, _ *fakeFacts) { p.ask = true },
			stops:   []fakeStop{event(futex), entry(futex), waited(0), entry(futex), waited(0)},
			want:    toEntry + question + reenter + reapTwo + "detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "it does, and so it has to be read whether a zombie is one of those", parked: futex,
			tune:    func(_ *fakeTracee, p *plan, f *fakeFacts) { p.ask, p.onAnswer, f.held = true, true, true },
			stops:   []fakeStop{event(futex), entry(futex), waited(0)},
			want:    toEntry + question + "set restart -512 detach 0",
			results: []Outcome{Refused}, why: ReasonZombieTraced,
		},
		{
			name: "it does, and this is none of those", parked: futex,
			tune:    func(_ *fakeTracee, p *plan, _ *fakeFacts) { p.ask, p.onAnswer = true, true },
			stops:   []fakeStop{event(futex), entry(futex), waited(0), entry(futex), waited(0)},
			want:    toEntry + question + reenter + reapTwo + "detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "it does not, which nobody has to read", parked: futex,
			tune:    func(_ *fakeTracee, p *plan, f *fakeFacts) { p.ask, p.onAnswer, f.held = true, true, true },
			stops:   []fakeStop{event(futex), entry(futex), waited(resultECHILD), entry(futex), waited(0)},
			want:    toEntry + question + reenter + reapTwo + "detach 0",
			results: []Outcome{Reaped}, nobody: true,
		},
		{
			name: "with several threads it is asked as well", parked: futex, threads: 2,
			tune:    func(_ *fakeTracee, p *plan, f *fakeFacts) { p.ask = true; f.gones = map[int][]bool{0: {false, true}} },
			stops:   []fakeStop{event(futex), entry(futex), waited(resultECHILD), entry(futex), shown(futex)},
			want:    toEntry + question + reenter + fix + "cont 0 " + pinStop + "mask own detach 0",
			results: []Outcome{Vanished}, nobody: true,
		},
		{
			name: "a signal comes with the question", parked: futex,
			tune:   func(_ *fakeTracee, p *plan, _ *fakeFacts) { p.ask = true },
			stops:  []fakeStop{event(futex), entry(futex), {stop: group.stop, ran: true}},
			want:   toEntry + fix + "set question cont 0 <group stop (signal 19)> set rewound mask own set restart -512 detach 0",
			reason: ReasonStopped, results: []Outcome{Left},
		},
		{
			name: "the question does not end", parked: futex,
			tune:   func(_ *fakeTracee, p *plan, _ *fakeFacts) { p.ask = true },
			stops:  []fakeStop{event(futex), entry(futex), stuck},
			want:   toEntry + fix + "set question cont 0 the thread did not stop in time",
			reason: ReasonTimeout, results: []Outcome{Left},
		},
		{
			name: "PID 1 dies of the question", parked: futex,
			tune:   func(_ *fakeTracee, p *plan, _ *fakeFacts) { p.ask = true },
			stops:  []fakeStop{event(futex), entry(futex), gone, gone},
			want:   toEntry + fix + "set question cont 0 <gone> <gone>",
			reason: ReasonBusy, results: []Outcome{Left},
		},
		{
			name: "a zombie that is not taken has a tracer", parked: futex,
			tune:    func(_ *fakeTracee, _ *plan, f *fakeFacts) { f.there, f.held = map[int]bool{0: true}, true },
			stops:   []fakeStop{event(futex), entry(futex), waited(0)},
			want:    toEntry + reapTwo + "detach 0",
			results: []Outcome{Refused}, why: ReasonZombieTraced,
		},
		{
			name: "a call with a restart block ends on the same code", parked: nanosleep, zombies: 1,
			stops:   []fakeStop{event(nanosleep), entry(nanosleep), waited(0)},
			want:    toEntry + fix + "set waitid 2 cont 0 " + pinStop + "set restart -516 mask own detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "the seccomp filter is off from entry to exit stop only", parked: futex, zombies: 2,
			status: &procfs.Status{Seccomp: procfs.SeccompFilter, State: procfs.StateSleeping},
			stops:  []fakeStop{event(futex), entry(futex), waited(0), entry(futex), waited(0)},
			want: toEntry + "suspend true " + nextTwo + "suspend false " +
				reenter + "suspend true " + reapFive + "suspend false detach 0",
			results: []Outcome{Reaped, Reaped},
		},
		{
			name: "the seccomp filter cannot be suspended", parked: futex,
			status: &procfs.Status{Seccomp: procfs.SeccompFilter, State: procfs.StateSleeping},
			tune:   func(f *fakeTracee, p *plan, facts *fakeFacts) { f.suspendErr = unix.EINVAL },
			stops:  []fakeStop{event(futex), entry(futex), event(futex)},
			want:   toEntry + "suspend true suspend false interrupt cont 0 <event stop> detach 0",
			reason: ReasonSeccompFilter, results: []Outcome{Left},
		},
		{
			name: "a signal with a handler comes first", parked: futex, status: &usr1Caught,
			stops:  []fakeStop{signal(int(unix.SIGUSR1))},
			tune:   func(f *fakeTracee, p *plan, facts *fakeFacts) { f.regs = futex },
			want:   "seize interrupt <signal-delivery stop (signal 10)> detach 10",
			reason: ReasonSignal, results: []Outcome{Left},
		},
		{
			name: "ignored signals are passed on", parked: futex,
			stops:   []fakeStop{signal(sigChld), event(futex), signal(sigWinch), entry(futex), waited(0)},
			want:    "seize interrupt <signal-delivery stop (signal 17)> cont 17 <event stop> syscall 0 <signal-delivery stop (signal 28)> syscall 28 <syscall stop> " + reapTwo + "detach 0",
			tune:    func(f *fakeTracee, p *plan, facts *fakeFacts) { f.regs = futex },
			results: []Outcome{Reaped},
		},
		{
			name: "a deadly signal is passed on to init, which it does not hurt", parked: futex,
			stops:   []fakeStop{event(futex), signal(15), entry(futex), waited(0)},
			want:    "seize interrupt <event stop> syscall 0 <signal-delivery stop (signal 15)> syscall 15 <syscall stop> " + reapTwo + "detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "a deadly signal ends the attach to another process", parked: futex, notInit: true,
			stops:  []fakeStop{event(futex), signal(15)},
			want:   "seize interrupt <event stop> syscall 0 <signal-delivery stop (signal 15)> detach 15",
			reason: ReasonSignal, results: []Outcome{Left},
		},
		{
			name: "a signal on the way back to the entry stop sees restartable registers", parked: futex, zombies: 2, status: &usr1Caught,
			stops:  []fakeStop{event(futex), entry(futex), waited(0), signal(int(unix.SIGUSR1))},
			want:   toEntry + nextTwo + "syscall 0 <signal-delivery stop (signal 10)> set restart -512 detach 10",
			reason: ReasonSignal, results: []Outcome{Reaped, Left},
		},
		{
			name: "an ignored signal on the way back", parked: futex, zombies: 2,
			stops:   []fakeStop{event(futex), entry(futex), waited(0), signal(sigChld), entry(futex), waited(0)},
			want:    toEntry + nextTwo + "syscall 0 <signal-delivery stop (signal 17)> set restart -512 syscall 17 <syscall stop> " + reapFive + "detach 0",
			results: []Outcome{Reaped, Reaped},
		},
		{
			name: "SIGSTOP from inside is dropped", parked: futex,
			tune:    func(f *fakeTracee, p *plan, facts *fakeFacts) { f.stopInfo = sigInfo{pid: 7} },
			stops:   []fakeStop{event(futex), signal(sigStop), entry(futex), waited(0)},
			want:    "seize interrupt <event stop> syscall 0 <signal-delivery stop (signal 19)> syscall 0 <syscall stop> " + reapTwo + "detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "SIGSTOP from outside is delivered", parked: futex,
			stops:  []fakeStop{event(futex), signal(sigStop)},
			want:   "seize interrupt <event stop> syscall 0 <signal-delivery stop (signal 19)> detach 19",
			reason: ReasonSignal, results: []Outcome{Left},
		},
		{
			name: "SIGSTOP from inside is pending at the end", parked: futex,
			tune: func(f *fakeTracee, p *plan, facts *fakeFacts) {
				f.stopInfo, f.pending = sigInfo{pid: 7}, []int{1, 1, 0}
			},
			stops:   []fakeStop{event(futex), entry(futex), waited(0), again, signal(sigStop), again},
			want:    toEntry + reapTwo + "interrupt cont 0 <event stop> cont 0 <signal-delivery stop (signal 19)> interrupt cont 0 <event stop> detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "SIGSTOP slips in at the detach", parked: futex,
			status:  &procfs.Status{State: procfs.StateStopped},
			stops:   []fakeStop{event(futex), entry(futex), waited(0)},
			want:    toEntry + reapTwo + "detach 0 SIGCONT",
			results: []Outcome{Reaped},
		},
		{
			name: "group stop at first", parked: futex,
			status: &procfs.Status{State: procfs.StateStopped},
			stops:  []fakeStop{group},
			tune:   func(f *fakeTracee, p *plan, facts *fakeFacts) { f.regs = futex },
			want:   "seize interrupt <group stop (signal 19)> detach 0",
			reason: ReasonStopped, results: []Outcome{Left},
		},
		{
			name: "group stop on the way back", parked: futex, zombies: 2,
			stops:  []fakeStop{event(futex), entry(futex), waited(0), group},
			want:   toEntry + nextTwo + "syscall 0 <group stop (signal 19)> set restart -512 detach 0",
			reason: ReasonStopped, results: []Outcome{Reaped, Left},
		},
		{
			name: "does not stop", parked: futex,
			stops:  []fakeStop{stuck},
			want:   "seize interrupt the thread did not stop in time",
			reason: ReasonTimeout, results: []Outcome{Left},
		},
		{
			name: "gets no CPU time", parked: futex, status: &procfs.Status{State: procfs.StateRunning},
			stops:   []fakeStop{stuck, stuck, event(futex), entry(futex), waited(0)},
			want:    "seize interrupt " + strings.Repeat("the thread did not stop in time ", 2) + strings.TrimPrefix(toEntry, "seize interrupt ") + reapTwo + "detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "never gets CPU time", parked: futex, status: &procfs.Status{State: procfs.StateRunning},
			stops:  slices.Repeat([]fakeStop{stuck}, maxTurns),
			want:   "seize interrupt " + strings.Repeat("the thread did not stop in time ", maxTurns-1) + "the thread did not stop in time",
			reason: ReasonTimeout, results: []Outcome{Left},
		},
		{
			name: "frozen on the way back", parked: futex, zombies: 2,
			stops:  []fakeStop{event(futex), entry(futex), waited(0), stuck, again},
			want:   toEntry + nextTwo + "syscall 0 the thread did not stop in time interrupt <event stop> set restart -512 detach 0",
			tune:   func(f *fakeTracee, p *plan, facts *fakeFacts) {},
			reason: ReasonFrozen, results: []Outcome{Reaped, Left},
		},
		{
			name: "slow on the way back", parked: futex, zombies: 2,
			stops:  []fakeStop{event(futex), entry(futex), waited(0), stuck, entry(futex), event(futex)},
			want:   toEntry + nextTwo + "syscall 0 the thread did not stop in time interrupt <syscall stop> interrupt cont 0 <event stop> detach 0",
			reason: ReasonBusy, results: []Outcome{Reaped, Left},
		},
		{
			name: "execve by another thread kills it after waitid", parked: futex,
			stops:  []fakeStop{event(futex), entry(futex), gone, gone},
			want:   toEntry + fix + "set waitid 2 cont 0 <gone> <gone>",
			reason: ReasonBusy, results: []Outcome{Reaped},
		},
		{
			name: "calls execve itself and is traced as the leader now", parked: futex,
			tune:   func(f *fakeTracee, p *plan, facts *fakeFacts) { facts.leader = true },
			stops:  []fakeStop{{err: errGone}, {err: errGone}},
			want:   "seize interrupt the thread is gone the thread is gone",
			reason: ReasonTimeout, results: []Outcome{Left},
		},
		{
			name: "execve by another thread kills it before waitid", parked: futex,
			tune:   func(f *fakeTracee, p *plan, facts *fakeFacts) { facts.there = map[int]bool{0: true} },
			stops:  []fakeStop{event(futex), entry(futex), gone, gone},
			want:   toEntry + fix + "set waitid 2 cont 0 <gone> <gone>",
			reason: ReasonBusy, results: []Outcome{Left},
		},
		{
			name: "not parked any more", parked: returned,
			stops:  []fakeStop{event(returned)},
			want:   "seize interrupt <event stop> detach 0",
			reason: ReasonBusy, results: []Outcome{Left},
		},
		{
			name: "parked in another call", parked: reading,
			stops:  []fakeStop{event(reading)},
			want:   "seize interrupt <event stop> detach 0",
			reason: ReasonUnsafeSyscall, results: []Outcome{Left},
		},
		{
			name: "not a native call", parked: futex,
			stops:  []fakeStop{event(futex), compat, event(futex)},
			want:   toEntry + "interrupt cont 0 <event stop> detach 0",
			reason: ReasonNotNative, results: []Outcome{Left},
		},
		{
			name: "endless epoll_wait goes on", parked: epoll,
			stops:   []fakeStop{event(epoll), entry(epoll), waited(0)},
			want:    "seize interrupt <event stop> set restart -514 syscall 0 <syscall stop> " + fix + "set waitid 2 cont 0 " + pinStop + "set restart -514 mask own detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "epoll_wait with a time-out ends with EINTR", parked: epollFin,
			stops:   []fakeStop{event(epollFin), entry(epollFin), waited(0)},
			want:    "seize interrupt <event stop> set restart -514 syscall 0 <syscall stop> " + fix + "set waitid 2 cont 0 " + pinStop + "set restart -4 mask own detach 0",
			results: []Outcome{Reaped},
		},
		{
			name: "declined at the entry stop, endless epoll_wait is repaired", parked: epoll,
			status: &procfs.Status{State: procfs.StateSleeping, ShdPnd: 1 << (sigChld - 1), SigCgt: 1 << (sigChld - 1)},
			stops:  []fakeStop{event(epoll), entry(epoll), event(epoll)},
			want:   "seize interrupt <event stop> set restart -514 syscall 0 <syscall stop> interrupt cont 0 <event stop> set restart -514 detach 0",
			reason: ReasonSigchldPending, results: []Outcome{Left},
		},
		{
			name: "nothing to reap after all", parked: futex, zombies: 1,
			tune:    func(f *fakeTracee, p *plan, facts *fakeFacts) { facts.gones[0] = []bool{true} },
			stops:   []fakeStop{event(futex), entry(futex), event(futex)},
			want:    toEntry + "interrupt cont 0 <event stop> detach 0",
			results: []Outcome{Vanished},
		},
		{
			name: "another thread reaps while the call is swapped", parked: futex, zombies: 2, threads: 2,
			tune:    func(f *fakeTracee, p *plan, facts *fakeFacts) { facts.gones[0] = []bool{false, true} },
			stops:   []fakeStop{event(futex), entry(futex), waited(0)},
			want:    toEntry + fix + "set waitid 5 cont 0 " + pinStop + "set restart -512 mask own detach 0",
			results: []Outcome{Vanished, Reaped},
		},
		{
			name: "the only zombie is reaped by another thread: the pin is the interrupt", parked: futex, threads: 2,
			tune:    func(f *fakeTracee, p *plan, facts *fakeFacts) { facts.gones[0] = []bool{false, true} },
			stops:   []fakeStop{event(futex), entry(futex), shown(futex)},
			want:    toEntry + fix + "cont 0 " + pinStop + "mask own detach 0",
			results: []Outcome{Vanished},
		},
		{
			name: "the pin cannot be sent", parked: futex,
			tune:   func(f *fakeTracee, p *plan, facts *fakeFacts) { f.pinErr = errPerm },
			stops:  []fakeStop{event(futex), entry(futex), event(futex)},
			want:   toEntry + "pin interrupt cont 0 <event stop> detach 0",
			reason: ReasonNoPermission, results: []Outcome{Left},
		},
		{
			name: "SIGCONT removes the pin", parked: futex, zombies: 2,
			tune:    func(f *fakeTracee, p *plan, facts *fakeFacts) { f.unpinAt = 3 },
			stops:   []fakeStop{event(futex), entry(futex), notified(0), entry(futex), waited(0)},
			want:    toEntry + fix + "set waitid 2 cont 0 <event stop> set rewound mask own " + reenter + reapFive + "detach 0",
			results: []Outcome{Reaped, Reaped},
		},
		{
			name: "the pin removes a SIGCONT that PID 1 has a handler for", parked: futex,
			status:  &procfs.Status{State: procfs.StateSleeping, SigCgt: 1 << (sigCont - 1)},
			stops:   []fakeStop{event(futex), entry(futex), notified(0), {stop: stop{kind: stopSignal, sig: sigStop}, pin: true}},
			want:    toEntry + fix + "set waitid 2 cont 0 <event stop> set restart -512 cont 0 " + pinStop + "mask own detach 0 SIGCONT",
			results: []Outcome{Reaped},
		},
		{
			name: "a SIGSTOP from outside for this thread was there before the pin", parked: futex,
			tune:    func(f *fakeTracee, p *plan, facts *fakeFacts) { f.stopInfo = sigInfo{code: siTkill}; f.unpinAt = 3 },
			stops:   []fakeStop{event(futex), entry(futex), {stop: stop{kind: stopSignal, sig: sigStop}, ran: true}},
			want:    toEntry + fix + "set waitid 2 cont 0 " + pinStop + "set restart -512 mask own detach 19",
			reason:  ReasonSignal,
			results: []Outcome{Reaped},
		},
		{
			name: "group stop instead of the pin", parked: futex, zombies: 2,
			stops:  []fakeStop{event(futex), entry(futex), {stop: group.stop, ran: true}},
			want:   toEntry + fix + "set waitid 2 cont 0 <group stop (signal 19)> set rewound mask own set restart -512 detach 0",
			reason: ReasonStopped, results: []Outcome{Reaped, Left},
		},
		{
			name: "waitid does not end", parked: futex,
			stops:  []fakeStop{event(futex), entry(futex), stuck},
			want:   toEntry + fix + "set waitid 2 cont 0 the thread did not stop in time",
			reason: ReasonTimeout, results: []Outcome{Left},
		},
		{
			name: "SIGCONT is pending and has a handler", parked: futex,
			status: &procfs.Status{State: procfs.StateSleeping, ShdPnd: 1 << (sigCont - 1), SigCgt: 1 << (sigCont - 1)},
			stops:  []fakeStop{event(futex), entry(futex), event(futex)},
			want:   toEntry + "interrupt cont 0 <event stop> detach 0",
			reason: ReasonSignal, results: []Outcome{Left},
		},
		{
			name: "restored at the exit stop", parked: futex, zombies: 2, exitStop: true,
			stops: []fakeStop{event(futex), entry(futex), exit(0), shown(futex), entry(futex), exit(0), shown(futex)},
			want: toEntry + fix + "set waitid 2 syscall 0 <syscall stop> set restart -512 cont 0 " + pinStop + "mask own syscall 0 <syscall stop> " +
				fix + "set waitid 5 syscall 0 <syscall stop> set restart -512 cont 0 " + pinStop + "mask own detach 0",
			results: []Outcome{Reaped, Reaped},
		},
		{
			name: "without a pin", parked: futex, zombies: 2, unpinned: true,
			stops: []fakeStop{event(futex), entry(futex), exit(0), entry(futex), exit(0)},
			want: toEntry + "set waitid 2 syscall 0 <syscall stop> set restart -512 set rewound syscall 0 <syscall stop> " +
				"set waitid 5 syscall 0 <syscall stop> set restart -512 detach 0",
			results: []Outcome{Reaped, Reaped},
		},
		{
			name: "ECHILD", parked: futex,
			stops:   []fakeStop{event(futex), entry(futex), waited(resultECHILD)},
			want:    toEntry + reapTwo + "detach 0",
			results: []Outcome{Vanished},
		},
		{
			name: "another call comes to the entry stop", parked: futex, zombies: 2,
			stops:  []fakeStop{event(futex), entry(futex), waited(0), foreign, event(futex)},
			want:   toEntry + nextTwo + reenter + "interrupt cont 0 <event stop> detach 0",
			reason: ReasonBusy, results: []Outcome{Reaped, Left},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := &fakeTracee{t: t, stops: tc.stops, orig: tc.parked}
			facts := &fakeFacts{k: f, numbers: []procfs.NSPID{2, 5}, status: sleeping, gones: map[int][]bool{}}
			if tc.status != nil {
				facts.status = *tc.status
			}
			n := max(1, tc.zombies)
			p := plan{
				tid: 1, threads: max(1, tc.threads), otherFD: -1, maxStop: time.Hour,
				targets: targets{reapers: facts.numbers[:n], todo: []bool{true, true}[:n], isInit: !tc.notInit},
			}
			if tc.tune != nil {
				tc.tune(f, &p, facts)
			}
			rep := decline(Request{Zombies: make([]Zombie, n)}, "", "")
			opts := options{exitStop: tc.exitStop, unpinned: tc.unpinned}
			a := &attach{t: f, f: facts, p: p, now: time.Now, rep: &rep, options: opts}
			a.run()
			if tc.why != "" && rep.Results[0].Reason != tc.why {
				t.Errorf("result %+v, want %s", rep.Results[0], tc.why)
			}
			if a.answer.none != tc.nobody {
				t.Errorf("PID 1 said %+v", a.answer)
			}
			if got := strings.Join(f.log, " "); got != strings.TrimSpace(tc.want) {
				t.Errorf("calls\n got %s\nwant %s", got, tc.want)
			}
			if rep.Reason != tc.reason {
				t.Errorf("reason %q (%s), want %q", rep.Reason, rep.Detail, tc.reason)
			}
			var got []Outcome
			for _, r := range rep.Results {
				got = append(got, r.Outcome)
			}
			if !slices.Equal(got, tc.results) {
				t.Errorf("results %v, want %v", rep.Results, tc.results)
			}
			if len(f.stops) > 0 {
				t.Errorf("%d stops left over", len(f.stops))
			}
		})
	}
}

// looksAt answers each look at the thread with the next status, and in the end with the last one.
type looksAt struct {
	fakeFacts
	answers []procfs.Status
	looks   int
}

func (f *looksAt) thread() (procfs.Status, error) {
	st := f.answers[min(f.looks, len(f.answers)-1)]
	f.looks++
	return st, nil
}

// TestUndoStop: a SIGSTOP that can be from inside is taken back, and the thread is looked at no longer than it can be.
func TestUndoStop(t *testing.T) {
	running := procfs.Status{State: procfs.StateRunning}
	asleep, stopped, pending := running, running, running
	asleep.State, stopped.State = procfs.StateSleeping, procfs.StateStopped
	pending.ShdPnd = 1 << (sigStop - 1)
	for _, tc := range []struct {
		name    string
		threads int
		answers []procfs.Status
		undone  bool
		looks   int
	}{
		{"nothing", 1, []procfs.Status{asleep}, false, 1},
		{"pending", 1, []procfs.Status{pending}, true, 1},
		{"stopped", 1, []procfs.Status{stopped}, true, 1},
		{"taken out of the queue during the first look", 1, []procfs.Status{running, stopped}, true, 2},
		{"sent after the first look", 1, []procfs.Status{running, pending}, false, 2},
		{"at work", 1, []procfs.Status{running}, false, 2},
		{"another thread took it, and this one stops late", 2, []procfs.Status{running, running, stopped}, true, 3},
		{"pending beside other threads", 2, []procfs.Status{running, pending}, true, 2},
		{"at work beside other threads", 2, []procfs.Status{running}, false, undoLooks},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, k := &looksAt{answers: tc.answers}, &fakeTracee{t: t}
			a := &attach{t: k, f: f, p: plan{targets: targets{isInit: true}, threads: tc.threads}, rep: &Report{}}
			if a.undoStop(); a.rep.UndidStop != tc.undone || slices.Contains(k.log, "SIGCONT") != tc.undone || f.looks != tc.looks {
				t.Errorf("taken back: %v after %d looks, %v; want %v after %d", a.rep.UndidStop, f.looks, k.log, tc.undone, tc.looks)
			}
		})
	}
}

// TestRegistersLayout: the kernel fills the structure by position.
func TestRegistersLayout(t *testing.T) {
	r := registers{Orig_rax: unix.SYS_FUTEX, Rax: 1, Rip: 0x1002, Rdi: 1, Rsi: 2, Rdx: 3, R10: 4, R8: 5, R9: 6}
	if b := r.rewound(); b.Rip != 0x1000 || b.Rax != unix.SYS_FUTEX || b.nr() != -1 || b.args() != r.args() {
		t.Errorf("rewound: %+v", b)
	}
	nr, args := waitidCall(77)
	if s := r.withCall(nr, args); s.nr() != 247 || s.Rsi != 77 || s.Rdi != 1 || s.Rdx != 0 || s.R10 != 0x40000005 || s.Rip != r.Rip {
		t.Errorf("waitid: %+v", s)
	}
}

func TestClassifyCall(t *testing.T) {
	minus1 := uint64(0xffffffff) // as an int argument arrives, upper half unspecified
	tests := []struct {
		name  string
		nr    int64
		args  [6]uint64
		class callClass
		waits waitTarget
	}{
		{name: "FUTEX_WAIT", nr: unix.SYS_FUTEX, class: classFutex},
		{name: "FUTEX_WAIT_PRIVATE", nr: unix.SYS_FUTEX, args: [6]uint64{1: 128}, class: classFutex},
		{name: "FUTEX_WAIT_BITSET with a clock", nr: unix.SYS_FUTEX, args: [6]uint64{1: 9 | 128 | 256}, class: classFutex},
		{name: "FUTEX_LOCK_PI", nr: unix.SYS_FUTEX, args: [6]uint64{1: 6 | 128}, class: classUnsafe},
		{name: "FUTEX_WAIT_REQUEUE_PI", nr: unix.SYS_FUTEX, args: [6]uint64{1: 11 | 128}, class: classUnsafe},
		{name: "poll", nr: unix.SYS_POLL, class: classPoll},
		{name: "wait4 of one", nr: unix.SYS_WAIT4, args: [6]uint64{0: 9}, class: classWaitOther, waits: waitTarget{nspid: 9}},
		{name: "wait4 of any", nr: unix.SYS_WAIT4, args: [6]uint64{0: minus1}, class: classUnsafe, waits: waitTarget{any: true}},
		{name: "wait4 of the own group", nr: unix.SYS_WAIT4, class: classUnsafe, waits: waitTarget{any: true}},
		{name: "wait4 of a group", nr: unix.SYS_WAIT4, args: [6]uint64{0: minus1 - 7}, class: classUnsafe, waits: waitTarget{any: true}},
		{name: "waitid of all", nr: unix.SYS_WAITID, class: classUnsafe, waits: waitTarget{any: true}},
		{name: "waitid of one", nr: unix.SYS_WAITID, args: [6]uint64{1, 9}, class: classWaitOther, waits: waitTarget{nspid: 9}},
		{name: "waitid of a group", nr: unix.SYS_WAITID, args: [6]uint64{2, 9}, class: classUnsafe, waits: waitTarget{any: true}},
		{name: "waitid of a pidfd", nr: unix.SYS_WAITID, args: [6]uint64{3, 0}, class: classWaitOther, waits: waitTarget{isFD: true}},
		{name: "epoll_wait for a while", nr: unix.SYS_EPOLL_WAIT, args: [6]uint64{3: 5}, class: classEpollFinite},
		{name: "epoll_wait for ever", nr: unix.SYS_EPOLL_WAIT, args: [6]uint64{3: minus1}, class: classRisky},
		{name: "epoll_pwait2 for ever", nr: unix.SYS_EPOLL_PWAIT2, class: classRisky},
		{name: "pause", nr: unix.SYS_PAUSE, class: classRisky},
		{name: "read", nr: unix.SYS_READ, class: classUnsafe},
		{name: "accept", nr: unix.SYS_ACCEPT, class: classUnsafe},
		{name: "rt_sigtimedwait", nr: unix.SYS_RT_SIGTIMEDWAIT, class: classUnsafe},
		{name: "x32 poll", nr: unix.SYS_POLL | 1<<30, class: classUnsafe},
		{name: "none", nr: -1, class: classUnsafe},
	}
	for _, tc := range tests {
		c := classifyCall(tc.nr, tc.args)
		if c.class != tc.class || c.waits != tc.waits || c.name == "" {
			t.Errorf("%s: %+v, want class %d, waits %+v", tc.name, c, tc.class, tc.waits)
		}
	}
}
