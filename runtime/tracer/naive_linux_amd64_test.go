package tracer

// Words of struct user_regs_struct (arch/x86/include/asm/user_64.h).
const (
	regWords     = 27
	regCallee    = 5  // rbx
	regArgument  = 9  // r9
	regArgument0 = 14 // rdi
	regResult    = 10 // rax
	regSP        = 19
	regFlags     = 18
	regBase      = 22 // gs_base
	flagCarry    = 1
	vectorOffset = 160 // xmm0 in struct user_fpregs_struct
)

var damages = map[string]bool{
	damageNone: true, damageCallee: true, damageArgument: true, damageFlags: true, damageBase: true, damageVector: true,
	damageWideVector: true, damageResult: true, damageEINTR: true, damageMemory: true, damageStack: true, damageMask: true,
	damagePending: true, damageTimeout: true, damageEarly: true, damageDropSignal: true, damageDoubleSignal: true, damageHideEINTR: true,
}

func rewindRegs(gpr []byte) {
	const origRax, rip = 15, 16
	if nr := *wordAt(gpr, origRax); int64(nr) >= 0 {
		if nr == 219 { // restart_syscall, of an earlier round: its arguments are still those of nanosleep
			nr = 35
		}
		*wordAt(gpr, regResult) = nr
		*wordAt(gpr, origRax) = ^uint64(0)
		*wordAt(gpr, rip) -= 2
	}
}

// hideEINTR has the call that is interrupted by sig made anew after the handler, from its signal-delivery stop, and returns what
// signal to let go with.
func (t *thread) hideEINTR(sig int) (int, error) { return sig, t.rewind() }
