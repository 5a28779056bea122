package shim

import (
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// alarm is a timer of the kernel's. When one of Go's timers is due, the thread that waits in epoll wakes up for it, so does the one
// that watches over it (sysmon), and that one wakes a third to help: five context switches for each sweep of an idle container. A
// timer that is a file wakes one thread.
type alarm struct {
	// C receives when the time has come.
	C    chan struct{}
	file *os.File
	fd   int
	done chan struct{}
}

// newAlarm returns an alarm that is not set. The caller must close it.
func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	a := &alarm{C: make(chan struct{}, 1), file: os.NewFile(uintptr(fd), "timer of a sweep"), fd: fd, done: make(chan struct{})}
	conn, err := a.file.SyscallConn()
	if err != nil {
		a.file.Close()
		return nil, fmt.Errorf("wait for a timerfd: %w", err)
	}
	go func() {
		defer close(a.done)
		_ = conn.Read(func(fd uintptr) bool {
			// Neither this call nor that of set blocks: telling the scheduler of them would wake its other threads.
			var expirations [8]byte
			n, _, _ := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&expirations)), uintptr(len(expirations)))
			if int(n) == len(expirations) {
				select {
				case a.C <- struct{}{}:
				default:
				}
			}
			return false // until close
		})
	}()
	return a, nil
}

// set has C receive once, after d. A ring of the time before that is under way may still come. The goroutine that receives must be the
// one that calls it.
func (a *alarm) set(d time.Duration) {
	select {
	case <-a.C: // it had rung before
	default:
	}
	// A value of 0 would disarm it (timerfd_settime(2)).
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(d, 1).Nanoseconds())}
	// It fails for bad arguments only.
	_, _, _ = unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(a.fd), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
}

// close ends it.
func (a *alarm) close() {
	a.file.Close()
	<-a.done
}
