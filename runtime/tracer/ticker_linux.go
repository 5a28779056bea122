package tracer

import (
	"fmt"
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

	sigevThreadID = 4 // SIGEV_THREAD_ID (include/uapi/asm-generic/siginfo.h)
)

// ticker makes the waits of one OS thread end from time to time, since waitid(2) knows no time-out. A tracer that asks again
// and again instead takes the CPU from the thread that it waits for: on a busy machine that costs both of them a time slice
// for every stop.
type ticker struct {
	timer int32 // timer_t of the system call, which is an int
}

// sigevent is struct sigevent (include/uapi/asm-generic/siginfo.h) on a 64-bit architecture.
type sigevent struct {
	value  uint64
	signo  int32
	notify int32
	tid    int32
	_      [44]byte
}

// newTicker returns a ticker for the calling OS thread, to which the caller has to be locked. Nothing ticks yet.
func newTicker() (*ticker, error) {
	// Its handler is the runtime's, and its only use is that it is one. A wait that is restarted has not ended.
	if err := changeSigaction(tickSignal, 0, saRestart); err != nil {
		return nil, err
	}
	var set unix.Sigset_t
	set.Val[0] = 1 << (tickSignal - 1)
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil); err != nil {
		return nil, fmt.Errorf("unblock signal %d: %w", tickSignal, err)
	}
	k := &ticker{}
	ev := sigevent{signo: int32(tickSignal), notify: sigevThreadID, tid: int32(unix.Gettid())}
	_, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&k.timer)))
	if errno != 0 {
		return nil, fmt.Errorf("create a timer: %w", errno)
	}
	return k, nil
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
}
