package tracer

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Words of struct user_pt_regs (arch/arm64/include/uapi/asm/ptrace.h).
const (
	regWords     = 34
	regCallee    = 20
	regArgument  = 5
	regArgument0 = 0
	regResult    = 0
	regSP        = 31
	regFlags     = 33 // pstate
	regBase      = 0
	flagCarry    = 1 << 29
	vectorOffset = 0 // v0 in struct user_fpsimd_state
)

// Not here: the registers that amd64 has besides, what is below the stack pointer (it belongs to nobody), and what takes the
// place of a result: do_signal() in arch/arm64/kernel/signal.c has rewound the call before it is shown to a tracer.
var damages = map[string]bool{
	damageNone: true, damageCallee: true, damageArgument: true, damageFlags: true, damageVector: true, damageMemory: true,
	damageMask: true, damagePending: true, damageDropSignal: true, damageDoubleSignal: true, damageHideEINTR: true,
}

func rewindRegs(gpr []byte) {} // pc is on the instruction and x8 has the number

// hideEINTR has the call that is interrupted by sig made anew after the handler, from its signal-delivery stop, and returns what
// signal to let go with. Here the kernel has the result in hand already; it shows again where the handler returns.
func (t *thread) hideEINTR(sig int) (int, error) {
	const pc = 32
	var buf [8 * regWords]byte
	gpr, err := t.words(unix.PTRACE_GETREGSET, ntPRStatus, buf[:])
	if err != nil {
		return 0, err
	}
	call, argument := *wordAt(gpr, pc), *wordAt(gpr, regArgument0)
	for range 1000 {
		if err := t.syscall(sig); err != nil {
			return 0, err
		}
		s, err := t.wait(patience)
		if err != nil {
			return 0, err
		}
		if sig = 0; s.kind == stopSignal {
			sig = s.sig
		}
		if gpr, err = t.words(unix.PTRACE_GETREGSET, ntPRStatus, buf[:]); err != nil {
			return 0, err
		}
		if s.kind == stopSyscall && *wordAt(gpr, pc) == call+arm64InsnSize {
			*wordAt(gpr, pc), *wordAt(gpr, regArgument0) = call, argument
			_, err = t.words(unix.PTRACE_SETREGSET, ntPRStatus, gpr)
			return 0, err
		}
	}
	return 0, errors.New("the handler does not return")
}
