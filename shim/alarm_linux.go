package shim

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// alarm is a timer of the kernel's. When one of Go's timers is due, the thread that waits in epoll wakes up for it, so does the one
// that watches over it (sysmon), and that one wakes a third to help: five context switches for each sweep of an idle container. A
// timer that is a file wakes one thread. Other files can be watched by the same thread.
type alarm struct {
	// C receives when the time has come, or something has happened to a file that is watched.
	C     chan struct{}
	file  *os.File // an epoll file, which can itself be waited for (epoll(7))
	epoll int
	timer int
	// watched are descriptors, of the goroutine that receives; watching: there are some.
	watched  []int
	watching atomic.Bool
	done     chan struct{}
}

// newAlarm returns an alarm that is not set. The caller must close it.
func newAlarm() (_ *alarm, err error) {
	a := &alarm{C: make(chan struct{}, 1), done: make(chan struct{})}
	if a.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(a.timer)
		}
	}()
	if a.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err = a.add(a.timer); err == nil {
		err = unix.SetNonblock(a.epoll, true)
	}
	if err != nil {
		_ = unix.Close(a.epoll)
		return nil, fmt.Errorf("wait for a timerfd: %w", err)
	}
	a.file = os.NewFile(uintptr(a.epoll), "timer of a sweep")
	conn, err := a.file.SyscallConn()
	if err != nil {
		a.file.Close()
		return nil, fmt.Errorf("wait for a timerfd: %w", err)
	}
	begun := make(chan error, 1)
	go func() {
		defer close(a.done)
		first := true
		err := conn.Read(func(uintptr) bool {
			if first { // before it waits: no news
				first = false
				begun <- nil
				return false
			}
			// Neither this call nor that of set blocks: telling the scheduler of them would wake its other threads.
			var expirations [8]byte
			n, _, _ := unix.RawSyscall(unix.SYS_READ, uintptr(a.timer), uintptr(unsafe.Pointer(&expirations)), uintptr(len(expirations)))
			if int(n) == len(expirations) || a.watching.Load() {
				select {
				case a.C <- struct{}{}:
				default:
				}
			}
			return false // until close
		})
		if first {
			begun <- err
		}
	}()
	if err := <-begun; err != nil {
		a.file.Close()
		return nil, fmt.Errorf("wait for a timerfd: %w", err)
	}
	return a, nil
}

func (a *alarm) add(fd int) error {
	return unix.EpollCtl(a.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)})
}

// watch has C receive as well when one of these becomes readable or hangs up, once or more often, until unwatch, which must come
// before they are closed. The goroutine that receives must be the one that calls either.
func (a *alarm) watch(fds []int) error {
	a.watching.Store(true) // before there is anything to hear of
	for _, fd := range fds {
		if err := a.add(fd); err != nil {
			a.unwatch()
			return fmt.Errorf("epoll_ctl: %w", err)
		}
		a.watched = append(a.watched, fd)
	}
	return nil
}

func (a *alarm) unwatch() {
	a.watching.Store(false)
	for _, fd := range a.watched {
		_ = unix.EpollCtl(a.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	}
	a.watched = nil
}

// set has C receive once, after d. A ring of the time before that is under way may still come. The goroutine that receives must be the
// one that calls it.
func (a *alarm) set(d time.Duration) { a.arm(d, 0) }

// together is set with a wait that is shortened to end at a multiple of it, so that the watchers of a shim that have nothing to do
// wake it up together: timers that are due in the same nanosecond ring at once. It returns how long that is.
func (a *alarm) together(wait time.Duration) time.Duration {
	var ts unix.Timespec
	// It does not fail for a clock that there is.
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0)
	now := time.Duration(ts.Nano())
	d := align(wait, now+phase)
	a.arm(now+d, unix.TFD_TIMER_ABSTIME)
	return d
}

// phase is another one in each shim: those of a node are not to wake up all at once.
var phase = time.Duration(os.Getpid()) * 7919 * time.Microsecond

// align shortens a wait that begins at a time to end at a multiple of it.
func align(wait, at time.Duration) time.Duration { return wait - at%wait }

func (a *alarm) arm(d time.Duration, flags uintptr) {
	select {
	case <-a.C: // it had rung before
	default:
	}
	// A value of 0 would disarm it (timerfd_settime(2)).
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(d, 1).Nanoseconds())}
	// It fails for bad arguments only.
	_, _, _ = unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(a.timer), flags, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
}

// close ends it.
func (a *alarm) close() {
	a.file.Close()
	<-a.done
	_ = unix.Close(a.timer)
}
