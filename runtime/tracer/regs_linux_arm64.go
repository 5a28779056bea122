package tracer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const archSupported = true

// auditArch is AUDIT_ARCH_AARCH64 (include/uapi/linux/audit.h).
const auditArch = 0xc00000b7

// restartsBeforeStop: the signal path prepares the restart of a call before a stop is shown (see arm64Regs.rewound).
const restartsBeforeStop = true

// restoreAtExit: behind the exit stop of waitid the signal path acts on its result, before the next stop is shown.
const restoreAtExit = true

const (
	errRestartNoIntr = arm64RestartNoIntr
	errRestartNoHand = arm64RestartNoHand
	resultEINTR      = -int64(unix.EINTR)
	resultECHILD     = -int64(unix.ECHILD)
	nrNothing        = unix.SYS_GETPID // a call that ignores its arguments and has no effect
)

type registers = arm64Regs

var errNotNative = errors.New("not a native 64-bit task")

// asks: the registers of a call are written in two steps, and what PID 1 is in may be a call that the arguments of that question mean
// something to (setRegs).
const asks = false

func recovered(_, entry, end *registers) registers { return arm64Recovered(entry, end) }

func waitidCall(pid int) (nr int64, args [6]uint64) {
	return unix.SYS_WAITID, [6]uint64{unix.P_PID, uint64(pid), 0, unix.WEXITED | unix.WNOHANG | unix.WALL, 0, 0}
}

func classifyCall(nr int64, args [6]uint64) call {
	if c, ok := classifyARM64(nr, args); ok {
		return c
	}
	return call{name: fmt.Sprintf("syscall %d", nr), class: classUnsafe}
}
