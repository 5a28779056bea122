package tracer

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

const archSupported = true

// restoreAtExit: whether registers must be put back at the exit stop of waitid. Here the kernel looks for a restart code
// after the signal path (arch_do_signal_or_restart()), so that the stop where the pin is delivered is as good.
const restoreAtExit = false

// auditArch is AUDIT_ARCH_X86_64 (include/uapi/linux/audit.h), what PTRACE_GET_SYSCALL_INFO says of a native call. An
// int $0x80 from 64-bit code says AUDIT_ARCH_I386; x32 calls say the same as native ones, with bit 30 in the number, and so
// fall out as unknown calls.
const auditArch = 0xc000003e

// registers is struct user_regs_struct (arch/x86/include/uapi/asm/ptrace.h): 27 words, NT_PRSTATUS of a 64-bit task. A
// 32-bit task has 68 bytes.
type registers unix.PtraceRegs

// restartsBeforeStop: the signal path looks for a restart code after the stops that it makes.
const restartsBeforeStop = false

// nrNothing is not needed where that is so.
const nrNothing = -1

// userCS is __USER_CS (arch/x86/include/asm/segment.h), the code segment of 64-bit user mode.
const userCS = 0x33

// insnSize is the length of the instruction that enters the kernel: syscall is 0f 05, int $0x80 is cd 80.
const insnSize = 2

// The kernel's internal results that make it issue a call again (include/linux/errno.h). A tracer sees them in rax at a
// stop inside get_signal(), before arch_do_signal_or_restart() has acted on them.
const (
	errRestartSys    = -512 // ERESTARTSYS
	errRestartNoIntr = -513 // ERESTARTNOINTR
	errRestartNoHand = -514 // ERESTARTNOHAND: again, but EINTR if a handler runs
	errRestartBlock  = -516 // ERESTART_RESTARTBLOCK: again by way of restart_syscall(2)
)

const (
	resultEINTR  = -int64(unix.EINTR)
	resultECHILD = -int64(unix.ECHILD)
)

const nrRestartSyscall = unix.SYS_RESTART_SYSCALL

// native reports whether the thread is in 64-bit mode.
func (r *registers) native() bool { return r.Cs == userCS }

// mode returns what says whether the thread is in 64-bit user mode, for people.
func (r *registers) mode() uint64 { return r.Cs }

// nr returns the number of the system call that the thread is in, or -1 (orig_rax).
func (r *registers) nr() int64 { return int64(r.Orig_rax) }

func (r *registers) args() [6]uint64 {
	return [6]uint64{r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9}
}

func (r *registers) result() int64 { return int64(r.Rax) }

// place returns where the thread is: instruction pointer and stack pointer.
func (r *registers) place() (pc, sp uint64) { return r.Rip, r.Rsp }

// restartCode returns the code that makes the kernel restart the interrupted call. A plain EINTR of a call that gives one
// on any stop is turned into ERESTARTNOHAND: no handler has run yet, so that a real signal still makes it EINTR.
func (r *registers) restartCode(c call) (code int64, ok bool) {
	if r.nr() < 0 {
		return 0, false
	}
	switch code := r.result(); code {
	case errRestartSys, errRestartNoIntr, errRestartNoHand, errRestartBlock:
		return code, true
	case resultEINTR:
		return errRestartNoHand, c.plainEINTR
	}
	return 0, false
}

// interrupted returns the registers that a thread had when the stop interrupted its call: here they are not changed.
func (r *registers) interrupted(procfs.Syscall) registers { return *r }

// restart returns the registers to go on with at the event stop.
func (r *registers) restart(code int64) (next registers, byHand bool) {
	return r.withResult(code), false
}

// restarted reports whether r, taken at the entry stop to which a restart by that code has led, are of the call that was
// interrupted.
func (r *registers) restarted(parked *registers, code int64) (int64, bool) {
	want := parked.nr()
	if code == errRestartBlock {
		want = nrRestartSyscall
	}
	return code, r.nr() == want && r.args() == parked.args()
}

// fill takes from a stop of the signal path what the entry stop does not show.
func (r *registers) fill(*registers) {}

// withResult returns r with another result of the system call.
func (r registers) withResult(v int64) registers {
	r.Rax = uint64(v)
	return r
}

// withCall returns r, taken at a syscall-entry stop, with another call and its arguments.
func (r registers) withCall(nr int64, args [6]uint64) registers {
	r.Orig_rax = uint64(nr)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = args[0], args[1], args[2], args[3], args[4], args[5]
	return r
}

// rewound returns r, taken at a syscall-entry stop, such that the thread executes the same instruction once more: rip back
// on it, the number in rax, and no call to be restarted.
func (r registers) rewound() registers {
	r.Rip -= insnSize
	r.Rax = r.Orig_rax
	r.Orig_rax = ^uint64(0)
	return r
}

// swapped reports whether r, taken at a stop inside the signal path, are the registers of entry with waitid swapped in, run
// or not.
func (r *registers) swapped(entry *registers, nspid int) bool {
	nr, args := waitidCall(nspid)
	return r.nr() == nr && r.args() == args && r.Rip == entry.Rip && r.Rsp == entry.Rsp
}

// recovered returns what to replace such registers with: the thread then goes on as if waitid had never been there. parked
// are those of the event stop before entry, end those of entry with a result for the kernel's signal path.
func recovered(parked, entry, end *registers) registers { return *end }

// asks: PID 1 can be made to ask whether it traces anybody.
const asks = true

// waitidCall is waitid(P_PID, pid, NULL, WEXITED|WNOHANG|__WALL, NULL). It returns 0 whether it reaped or the child lives,
// and -ECHILD if there is no such child. __WALL also takes children that were cloned without SIGCHLD.
//
// For askNumber it is waitid(P_ALL, 0, NULL, WEXITED|WNOHANG|WNOWAIT|__WCLONE, NULL), which takes nobody. It returns -ECHILD if the
// process has no child that was cloned without SIGCHLD and none of its threads traces anybody: __WCLONE leaves out all other children but
// those (eligible_child() in kernel/exit.c). Whom it adopts has SIGCHLD (reparent_leader()).
func waitidCall(pid int) (nr int64, args [6]uint64) {
	if pid == askNumber {
		return unix.SYS_WAITID, [6]uint64{unix.P_ALL, 0, 0, unix.WEXITED | unix.WNOHANG | unix.WNOWAIT | unix.WCLONE, 0, 0}
	}
	return unix.SYS_WAITID, [6]uint64{unix.P_PID, uint64(pid), 0, unix.WEXITED | unix.WNOHANG | unix.WALL, 0, 0}
}

var errNotNative = errors.New("not a native 64-bit task")

func (t *thread) getRegs(r *registers) error {
	t.iov.Base = (*byte)(unsafe.Pointer(r))
	t.iov.SetLen(int(unsafe.Sizeof(*r)))
	_, err := t.ptrace(unix.PTRACE_GETREGSET, ntPRStatus, uintptr(unsafe.Pointer(&t.iov)))
	if err != nil {
		return err
	}
	if uintptr(t.iov.Len) != unsafe.Sizeof(*r) {
		return fmt.Errorf("%w: %d bytes of registers", errNotNative, t.iov.Len)
	}
	return nil
}

func (t *thread) setRegs(r *registers) error {
	t.iov.Base = (*byte)(unsafe.Pointer(r))
	t.iov.SetLen(int(unsafe.Sizeof(*r)))
	_, err := t.ptrace(unix.PTRACE_SETREGSET, ntPRStatus, uintptr(unsafe.Pointer(&t.iov)))
	return err
}
