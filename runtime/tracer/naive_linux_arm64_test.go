package tracer

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
