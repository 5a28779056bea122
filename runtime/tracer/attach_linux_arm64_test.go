package tracer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// TestNumbers: the portable constants are this architecture's.
func TestNumbers(t *testing.T) {
	for got, want := range map[int]int{
		arm64EpollPwait: unix.SYS_EPOLL_PWAIT, arm64Pselect6: unix.SYS_PSELECT6, arm64Ppoll: unix.SYS_PPOLL,
		arm64Waitid: unix.SYS_WAITID, arm64Futex: unix.SYS_FUTEX, arm64Nanosleep: unix.SYS_NANOSLEEP,
		arm64ClockNanosleep: unix.SYS_CLOCK_NANOSLEEP, arm64RestartSyscall: unix.SYS_RESTART_SYSCALL,
		arm64RtSigsuspend: unix.SYS_RT_SIGSUSPEND, arm64Getpid: unix.SYS_GETPID, arm64Wait4: unix.SYS_WAIT4,
		arm64EpollPwait2: unix.SYS_EPOLL_PWAIT2,
	} {
		if got != want {
			t.Errorf("number %d, want %d", got, want)
		}
	}
}

// simKernel does with registers what arch/arm64 does: do_signal(), the entry and exit of system calls. updates says that it
// is of the kind that takes orig_x0 from what the tracer leaves at an entry stop.
type simKernel struct {
	t       *testing.T
	updates bool
	code    int64 // what the thread's own call returns when it is interrupted
	seen    procfs.Syscall

	r       registers
	orig    uint64 // orig_x0
	where   string // sleep, event, entry, exit
	pending bool   // an interrupt
	pinned  bool   // our SIGSTOP is pending
	blocked procfs.SignalSet
	retval  int64 // as do_signal() has taken it down
	restart uint64
	next    stop
	reaped  []uint64
	log     []string
}

func newSim(t *testing.T, updates bool, nr int64, args [6]uint64, code int64) *simKernel {
	seen, r := parkedARM64(nr, args)
	return &simKernel{t: t, updates: updates, code: code, seen: seen, r: r, orig: args[0], where: "sleep"}
}

func (k *simKernel) stopAt(where string, kind stopKind) {
	k.where, k.next = where, stop{kind: kind}
	k.log = append(k.log, where)
}

func (k *simKernel) doSignal(stops bool) {
	inCall := k.r.sysno >= 0
	k.r.sysno, k.restart, k.retval = -1, 0, 0
	if inCall {
		k.retval, k.restart = int64(k.r.x[0]), k.r.pc-4
		switch k.retval {
		case -512, -513, -514, -516:
			k.r.x[0], k.r.pc = k.orig, k.restart
		}
	}
	if !stops || !k.trap() {
		k.endSignal()
	}
}

// trap makes the next stop inside of get_signal(), if there is one.
func (k *simKernel) trap() bool {
	switch {
	case k.pending:
		k.pending = false
		k.stopAt("event", stopEvent)
	case k.pinned:
		k.pinned = false
		k.stopAt("signal", stopSignal)
		k.next.sig = sigStop
	default:
		return false
	}
	return true
}

func (k *simKernel) endSignal() {
	if k.r.pc == k.restart && k.retval == -516 {
		k.r.x[8] = arm64RestartSyscall
	}
}

// user executes the svc that the thread is at.
func (k *simKernel) user(trace bool) {
	if k.r.pc != k.seen.PC-4 {
		k.t.Fatalf("the thread runs at %#x with x0 %#x; so far %v", k.r.pc, k.r.x[0], k.log)
	}
	k.r.pc += 4
	k.orig, k.r.sysno = k.r.x[0], int32(k.r.x[8])
	if trace {
		k.stopAt("entry", stopSyscall)
		return
	}
	k.execute()
}

func (k *simKernel) execute() {
	switch k.r.sysno {
	case arm64Waitid:
		if k.seen.Nr != arm64Waitid {
			k.reaped = append(k.reaped, k.r.x[1])
			k.r.x[0] = 0
			return
		}
	case arm64Getpid:
		k.r.x[0] = 1
		return
	}
	k.ownCall()
	if k.where = "sleep"; k.pending || k.pinned {
		k.r.x[0] = uint64(k.code)
		k.doSignal(true)
	}
}

func (k *simKernel) ownCall() {
	k.t.Helper()
	want := k.seen.Nr
	if k.code == -516 {
		want = arm64RestartSyscall
	}
	if k.r.nr() != want || k.r.args() != k.seen.Args || k.orig != k.seen.Args[0] || k.r.x[7] != 77 {
		k.t.Errorf("call %d, arguments %#x, x7 %d, orig_x0 %#x; want %d, %#x; so far %v", k.r.sysno, k.r.args(), k.r.x[7], k.orig, want, k.seen.Args, k.log)
	}
}

func (k *simKernel) resume(trace bool) error {
	k.next = stop{}
	switch k.where {
	case "event", "signal":
		if !k.trap() {
			k.endSignal()
			k.user(trace)
		}
	case "entry":
		if k.updates {
			k.orig = k.r.x[0]
		}
		own := k.r.sysno != arm64Waitid && k.r.sysno != arm64Getpid
		k.execute()
		switch {
		case own:
		case trace:
			k.stopAt("exit", stopSyscall)
		default:
			k.t.Fatalf("a swapped call without its exit stop; so far %v", k.log)
		}
	case "exit":
		if k.pending || k.pinned {
			k.doSignal(true)
		} else {
			k.user(trace)
		}
	}
	return nil
}

func (k *simKernel) seize() error { return nil }

func (k *simKernel) interrupt() error { k.pending = true; return nil }

func (k *simKernel) wait(time.Duration) (stop, error) {
	if k.where == "sleep" && k.pending {
		k.r.x[0] = uint64(k.code)
		k.doSignal(true)
	}
	return k.next, nil
}

func (k *simKernel) getRegs(r *registers) error {
	*r = k.r
	if k.where == "entry" || k.where == "exit" {
		r.x[7] = 0
	}
	return nil
}

func (k *simKernel) setRegs(r *registers) error {
	x7 := k.r.x[7]
	k.r = *r
	k.r.ret = 0
	if k.where == "entry" || k.where == "exit" {
		k.r.x[7] = x7
	}
	return nil
}

func (k *simKernel) syscallInfo() (syscallInfo, error) {
	i := syscallInfo{arch: auditArch}
	switch k.where {
	case "entry":
		i.op, i.nr, i.args = opEntry, k.r.nr(), k.r.args()
		i.args[0] = k.orig // syscall_get_arguments() in arch/arm64/include/asm/syscall.h
		i.pc, i.sp = k.r.place()
	case "exit":
		i.op, i.value = opExit, int64(k.r.x[0])
	}
	return i, nil
}

func (k *simKernel) cont(int) error            { return k.resume(false) }
func (k *simKernel) syscall(int) error         { return k.resume(true) }
func (k *simKernel) suspendSeccomp(bool) error { return nil }
func (k *simKernel) sendCont() error           { return nil }

func (k *simKernel) sigInfo() (sigInfo, error)        { return sigInfo{mark: true}, nil }
func (k *simKernel) pin() error                       { k.pinned = true; return nil }
func (k *simKernel) mask() (procfs.SignalSet, error)  { return k.blocked, nil }
func (k *simKernel) setMask(m procfs.SignalSet) error { k.blocked = m; return nil }
func (k *simKernel) pendingStops() (ours, inside, outside int, err error) {
	if k.pinned {
		ours = 1
	}
	return ours, 0, 0, nil
}

// detach lets the thread go, which ends in its own call, or with EINTR from it.
func (k *simKernel) detach(int) error {
	k.log = append(k.log, "detach")
	switch k.where {
	case "event", "signal":
		k.endSignal()
	case "exit":
		k.doSignal(false)
	default:
		k.t.Errorf("detached at %s", k.where)
	}
	if int64(k.r.x[0]) == arm64EINTR && k.r.pc == k.seen.PC {
		k.where = "EINTR"
		return nil
	}
	k.user(false)
	return nil
}

type simFacts struct {
	k      *simKernel
	status procfs.Status
	none   bool // no zombie is left
}

func (f *simFacts) sameProcess() error             { return nil }
func (f *simFacts) traced() bool                   { return false }
func (f *simFacts) thread() (procfs.Status, error) { return f.status, nil }
func (f *simFacts) syscall() procfs.Syscall        { return f.k.seen }
func (f *simFacts) zombieTraced(int) bool          { return false }
func (f *simFacts) gone(i int) bool                { return f.none || slices.Contains(f.k.reaped, uint64(i+2)) }

// TestRestarts: on both kinds of kernels the thread goes back to its own call with its own argument 0, however the call is
// restarted.
func TestRestarts(t *testing.T) {
	minus1 := uint64(0xffffffff)
	calls := []struct {
		name string
		nr   int64
		args [6]uint64
		code int64
		end  string
	}{
		{"futex", arm64Futex, [6]uint64{0xf00, 128}, -512, "sleep"},
		{"futex with a time-out", arm64Futex, [6]uint64{0xf00, 128, 0, 0xbee}, -516, "sleep"},
		{"ppoll", arm64Ppoll, [6]uint64{0xf00, 1}, -514, "sleep"},
		{"nanosleep", arm64Nanosleep, [6]uint64{0xf00, 1}, -516, "sleep"},
		{"wait4", arm64Wait4, [6]uint64{99}, -512, "sleep"},
		{"endless epoll_pwait", arm64EpollPwait, [6]uint64{5, 0xf00, 1, minus1}, -4, "sleep"},
		{"epoll_pwait for a while", arm64EpollPwait, [6]uint64{5, 0xf00, 1, 1000}, -4, "EINTR"},
	}
	chld := procfs.SignalSet(1 << (sigChld - 1))
	for _, tc := range calls {
		for _, updates := range []bool{false, true} {
			for _, n := range []int{0, 1, 3} {
				for variant := range 4 {
					late, unpinned := variant&1 != 0, variant&2 != 0 // late: declined at the entry stop
					t.Run(fmt.Sprintf("%s/%v/%d/%v/%v", tc.name, updates, n, late, unpinned), func(t *testing.T) {
						k := newSim(t, updates, tc.nr, tc.args, tc.code)
						f := &simFacts{k: k, status: procfs.Status{State: procfs.StateSleeping}}
						want := n
						if late {
							f.status.ShdPnd, f.status.SigCgt, want = chld, chld, 0
						}
						p := plan{tid: 1, threads: 1, targets: targets{isInit: true}, otherFD: -1, maxStop: time.Hour}
						if n == 0 {
							f.none, n = true, 1
						}
						for i := range n {
							p.reapers, p.todo = append(p.reapers, procfs.NSPID(i+2)), append(p.todo, true)
						}
						rep := decline(Request{Zombies: make([]Zombie, n)}, "", "")
						a := &attach{t: k, f: f, p: p, now: time.Now, rep: &rep, options: options{exitStop: restoreAtExit, unpinned: unpinned}}
						a.run()
						if rep.Reason != "" && (!late || rep.Reason != ReasonSigchldPending) {
							t.Errorf("report: %s %s", rep.Reason, rep.Detail)
						}
						if len(k.reaped) != want || rep.Count(Reaped) != want {
							t.Errorf("reaped %v, report %+v; want %d", k.reaped, rep.Results, want)
						}
						if k.pinned || k.blocked != 0 || a.restarting {
							t.Errorf("left behind: pin %v, mask %v, argument 0 %v", k.pinned, k.blocked, a.restarting)
						}
						if k.where != tc.end || !a.released {
							t.Errorf("ended at %s (%v), want %s; %v", k.where, a.released, tc.end, k.log)
						}
					})
				}
			}
		}
	}
}
