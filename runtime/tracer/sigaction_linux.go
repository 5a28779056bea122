package tracer

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags of a signal's disposition (include/uapi/asm-generic/signal-defs.h, arch/x86/include/uapi/asm/signal.h).
const (
	saNoCldStop = 0x1         // SA_NOCLDSTOP
	saRestart   = 0x1000_0000 // SA_RESTART
)

// kernelSigaction is struct sigaction of the system call on amd64 and arm64.
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// changeSigaction sets and clears flags of the disposition that sig has, which must be a handler: the Go runtime installs one for
// every signal that it does not leave to others.
func changeSigaction(sig unix.Signal, set, clear uintptr) error {
	var act kernelSigaction
	if err := sigaction(sig, nil, &act); err != nil {
		return fmt.Errorf("look at the disposition of signal %d: %w", sig, err)
	}
	if act.handler <= 1 { // SIG_DFL, SIG_IGN
		return fmt.Errorf("signal %d has no handler", sig)
	}
	act.flags = act.flags&^clear | set
	if err := sigaction(sig, &act, nil); err != nil {
		return fmt.Errorf("set the flags of signal %d: %w", sig, err)
	}
	return nil
}

func sigaction(sig unix.Signal, act, old *kernelSigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)),
		unsafe.Sizeof(act.mask), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
