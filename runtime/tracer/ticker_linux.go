package tracer

import (
	"fmt"
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// tickSignal interrupts a wait in the kernel. The C libraries keep the first real-time signals to themselves (nptl(7)); this
	// one nobody else uses in a worker.
	tickSignal = unix.Signal(40)
	// tickEvery is how often: deadlines are kept that exactly.
	tickEvery = 2 * time.Millisecond

	sigevThreadID = 4           // SIGEV_THREAD_ID (include/uapi/asm-generic/siginfo.h)
	saRestart     = 0x1000_0000 // SA_RESTART (include/uapi/asm-generic/signal-defs.h, arch/x86/include/uapi/asm/signal.h)
)

// ticker makes the waits of one OS thread end from time to time, since waitid(2) knows no time-out. A tracer that asks again
// and again instead takes the CPU from the thread that it waits for: on a busy machine that costs both of them a time slice
// for every stop.
type ticker struct {
	timer int32 // timer_t of the system call, which is an int
	ticks chan os.Signal
}

// sigevent is struct sigevent (include/uapi/asm-generic/siginfo.h) on a 64-bit architecture.
type sigevent struct {
	value  uint64
	signo  int32
	notify int32
	tid    int32
	_      [44]byte
}

// kernelSigaction is struct sigaction of the system call on amd64 and arm64.
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// newTicker returns a ticker for the calling OS thread, to which the caller has to be locked. Nothing ticks yet.
func newTicker() (*ticker, error) {
	k := &ticker{ticks: make(chan os.Signal, 1)}
	// The runtime installs its handler, whose only use is that it is one.
	signal.Notify(k.ticks, tickSignal)
	var act kernelSigaction
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(tickSignal), 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0); errno != 0 {
		return nil, k.failed("look at the handler of signal 40", errno)
	}
	act.flags &^= saRestart // a wait that is restarted has not ended
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(tickSignal), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); errno != 0 {
		return nil, k.failed("set the handler of signal 40", errno)
	}
	var set unix.Sigset_t
	set.Val[0] = 1 << (tickSignal - 1)
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil); err != nil {
		return nil, k.failed("unblock signal 40", err)
	}
	ev := sigevent{signo: int32(tickSignal), notify: sigevThreadID, tid: int32(unix.Gettid())}
	_, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&k.timer)))
	if errno != 0 {
		return nil, k.failed("create a timer", errno)
	}
	return k, nil
}

func (k *ticker) failed(what string, err error) error {
	signal.Stop(k.ticks)
	return fmt.Errorf("%s: %w", what, err)
}

func (k *ticker) set(every time.Duration) error {
	ts := unix.NsecToTimespec(int64(every))
	spec := [2]unix.Timespec{ts, ts} // struct itimerspec: interval, first
	if _, _, errno := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(k.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// start begins to tick.
func (k *ticker) start() error { return k.set(tickEvery) }

// stop ends it. A tick that has come already may still interrupt one call.
func (k *ticker) stop() { _ = k.set(0) }

// close gives the timer back.
func (k *ticker) close() {
	_, _, _ = unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(k.timer), 0, 0)
	signal.Stop(k.ticks)
}
