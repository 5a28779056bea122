package tracer

import "github.com/reaper-shim/reaper/runtime/procfs"

// What the tracer knows of arm64, without a build tag: none of it is a system call, so that its tests run everywhere.

// arm64Regs is struct user_pt_regs (arch/arm64/include/uapi/asm/ptrace.h), NT_PRSTATUS of a 64-bit task, and besides it what
// ptrace(2) shows apart.
//
// At a syscall-entry stop the call that is executed is sysno, and x8 is without effect. At syscall stops x7 holds which of
// the two it is, and what is written to it is dropped (report_syscall() and its successors in arch/arm64/kernel/ptrace.c).
type arm64Regs struct {
	x              [31]uint64
	sp, pc, pstate uint64

	sysno int32 // NT_ARM_SYSTEM_CALL; -1 outside of a call, and at every stop of the signal path
	ret   int64 // of interrupted(): the result that the call had
}

const (
	arm64RegsSize = 34 * 8 // of the part that is NT_PRSTATUS; a 32-bit task has 18 words of 4 bytes
	arm64InsnSize = 4      // svc #0

	// The mode bits of pstate are zero in 64-bit user mode (PSR_MODE_MASK, PSR_MODE_EL0t, same file).
	arm64ModeMask = 0x1f
	arm64ModeEL0t = 0
)

// Numbers of system calls (include/uapi/asm-generic/unistd.h).
const (
	arm64EpollPwait     = 22
	arm64Pselect6       = 72
	arm64Ppoll          = 73
	arm64Waitid         = 95
	arm64Futex          = 98
	arm64Nanosleep      = 101
	arm64ClockNanosleep = 115
	arm64RestartSyscall = 128
	arm64RtSigsuspend   = 133
	arm64Getpid         = 172
	arm64Wait4          = 260
	arm64EpollPwait2    = 441
)

// The kernel's internal results that make it issue a call again (include/linux/errno.h). They are the same on every
// architecture.
const (
	arm64RestartSys    = -512 // ERESTARTSYS
	arm64RestartNoIntr = -513 // ERESTARTNOINTR
	arm64RestartNoHand = -514 // ERESTARTNOHAND
	arm64RestartBlock  = -516 // ERESTART_RESTARTBLOCK
	arm64EINTR         = -4
)

func (r *arm64Regs) native() bool { return r.mode() == arm64ModeEL0t }

// mode returns what says whether the thread is in 64-bit user mode, for people.
func (r *arm64Regs) mode() uint64 { return r.pstate & arm64ModeMask }

func (r *arm64Regs) nr() int64 { return int64(r.sysno) }

func (r *arm64Regs) args() [6]uint64 { return [6]uint64(r.x[:6]) }

func (r *arm64Regs) place() (pc, sp uint64) { return r.pc, r.sp }

func (r *arm64Regs) result() int64 {
	if r.ret != 0 {
		return r.ret
	}
	return int64(r.x[0])
}

// interrupted returns the registers that a thread had when the stop interrupted the call that it was seen in, by
// /proc/PID/task/TID/syscall, right before.
//
// do_signal() in arch/arm64/kernel/signal.c forgets the number and prepares the restart before the stop is shown: pc is on
// the svc, x0 is argument 0 again, and the restart code is gone. A thread that is just about to execute that svc in user
// mode looks the same, and may be taken for the same. After a plain EINTR argument 0 is gone, and known from before only.
func (r *arm64Regs) interrupted(seen procfs.Syscall) arm64Regs {
	k := *r
	switch {
	case r.sysno >= 0 || seen.Running || seen.Nr < 0:
	case r.pc == seen.PC-arm64InsnSize:
		k.pc, k.sysno, k.ret = seen.PC, int32(r.x[8]), arm64RestartSys
	case r.pc == seen.PC && r.sp == seen.SP && int64(r.x[0]) == arm64EINTR && int64(r.x[8]) == seen.Nr &&
		[5]uint64(r.x[1:6]) == [5]uint64(seen.Args[1:]):
		k.x[0], k.sysno, k.ret = seen.Args[0], int32(seen.Nr), arm64EINTR
	}
	return k
}

// restartCode says whether the call is one that goes on, and with which result; of a restart the code is only a guess until
// the entry stop. c.plainEINTR: EINTR is turned into a restart.
func (r *arm64Regs) restartCode(c call) (code int64, ok bool) {
	switch r.ret {
	case arm64RestartSys:
		return arm64RestartSys, true
	case arm64EINTR:
		return arm64RestartNoHand, c.plainEINTR
	}
	return 0, false
}

// restart returns the registers to go on with at the event stop, and whether they rewind by hand what the kernel does not:
// its signal path must then be given back the EINTR for a handler.
func (r *arm64Regs) restart(int64) (next arm64Regs, byHand bool) {
	return r.rewound(), r.ret == arm64EINTR
}

// restarted looks at r, taken at the entry stop to which a restart has led, and says which restart code it was.
//
// A guess of ERESTARTNOINTR is none: the call had not begun, and it begins whatever happens before. restart_syscall(2) says so
// itself. For the others see the calls in fs/select.c, fs/eventpoll.c, kernel/signal.c, and kernel/time/hrtimer.c
// (hrtimer_nanosleep(): an absolute time needs no block).
func (r *arm64Regs) restarted(parked *arm64Regs, guess int64) (code int64, ok bool) {
	if r.args() != parked.args() || r.pc != parked.pc || r.sp != parked.sp {
		return 0, false
	}
	switch {
	case r.sysno == arm64RestartSyscall:
		return arm64RestartBlock, true
	case r.sysno != parked.sysno:
		return 0, false
	case guess == arm64RestartNoIntr:
		return guess, true
	}
	switch r.sysno {
	case arm64Ppoll, arm64Pselect6, arm64RtSigsuspend, arm64EpollPwait, arm64EpollPwait2, arm64ClockNanosleep:
		return arm64RestartNoHand, true
	}
	return arm64RestartSys, true
}

// fill takes from a stop of the signal path what the syscall stop that r was taken at does not show. That the thread's own x7 is
// still there to be taken is due to its being out of reach at every stop at which it is hidden.
func (r *arm64Regs) fill(shown *arm64Regs) { r.x[7] = shown.x[7] }

func (r arm64Regs) withResult(v int64) arm64Regs {
	r.x[0], r.ret = uint64(v), 0
	return r
}

func (r arm64Regs) withCall(nr int64, args [6]uint64) arm64Regs {
	r.sysno, r.ret = int32(nr), 0
	copy(r.x[:], args[:])
	return r
}

// rewound returns r such that the thread executes the same svc once more. They are also what the signal path has after it
// has prepared a restart, if argument 0 is right: it takes that from orig_x0, which no tracer sees. That is x0 as it was at
// the last svc or, in kernels with update_syscall_orig_x0_after_ptrace() (Debian's 6.1.192 is one), as the tracer left it at
// the last entry stop: an argument of waitid.
func (r arm64Regs) rewound() arm64Regs {
	r.pc -= arm64InsnSize
	r.sysno, r.ret = -1, 0
	return r
}

// swapped reports whether r, taken at a stop inside the signal path, are the registers of entry with waitid's arguments swapped in and
// a call run, or with a restart prepared that has an argument 0 of waitid (see rewound), or all of them: restart_syscall needs none.
func (r *arm64Regs) swapped(entry *arm64Regs, nspid int) bool {
	_, args := waitidCall(nspid)
	switch x := [5]uint64(r.x[1:6]); {
	case r.sp != entry.sp:
		return false
	case r.pc != entry.pc && r.pc != entry.pc-arm64InsnSize:
		return false
	case x == [5]uint64(args[1:]):
		return true
	default:
		return r.pc != entry.pc && x == [5]uint64(entry.x[1:6]) && r.x[0] == args[0]
	}
}

// swappedIn reports whether that is the number of a call that is swapped in.
func swappedIn(nr int64) bool { return nr == arm64Waitid || nr == arm64Getpid }

// arm64Recovered returns what to replace such registers with.
func arm64Recovered(entry, end *arm64Regs) arm64Regs {
	if end.result() == arm64EINTR {
		return *end
	}
	return entry.rewound()
}

// classifyARM64 says what may be done with a thread that is parked in call nr. There is no poll, epoll_wait, select or pause
// here: the C library makes them of the others.
func classifyARM64(nr int64, args [6]uint64) (call, bool) {
	switch nr {
	case arm64Futex:
		return futexCall(args), true
	case arm64Ppoll:
		return call{name: "ppoll", class: classPoll}, true
	case arm64Wait4:
		return waitCall("wait4", wait4Target(int32(args[0]))), true
	case arm64Waitid:
		return waitCall("waitid", waitidTarget(int32(args[0]), int32(args[1]))), true
	case arm64EpollPwait:
		return epollCall("epoll_pwait", int32(args[3]) < 0), true
	case arm64EpollPwait2:
		return epollCall("epoll_pwait2", args[3] == 0), true
	case arm64Nanosleep:
		return call{name: "nanosleep", class: classRisky}, true
	case arm64ClockNanosleep:
		return call{name: "clock_nanosleep", class: classRisky}, true
	case arm64RtSigsuspend:
		return call{name: "rt_sigsuspend", class: classRisky}, true
	case arm64Pselect6:
		return call{name: "pselect6", class: classRisky}, true
	case arm64RestartSyscall:
		return call{name: "restart_syscall", class: classRisky}, true
	}
	return call{}, false
}
