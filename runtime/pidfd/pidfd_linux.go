package pidfd

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// None of these calls waits for anybody. To tell Go's scheduler of them, as package unix does, takes as long as they do and wakes its
// other threads.

// Supported reports whether this kernel tells enough.
var Supported = sync.OnceValue(func() bool {
	_, err := Of(procfs.HostPID(unix.Getpid()))
	return err == nil
})

// Open returns a file descriptor for a process, to be closed with Close.
func Open(pid procfs.HostPID) (fd int, err error) {
	n, _, errno := unix.RawSyscall(unix.SYS_PIDFD_OPEN, uintptr(pid), 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.ESRCH, unix.EINVAL, unix.ENOENT: // the latter two for the number of a thread that leads no group, depending on the kernel
		return -1, procfs.ErrVanished // as it is: numbers are tried by the thousand, and half of them are nobody's
	}
	return -1, fmt.Errorf("open pidfd of process %d: %w", pid, errno)
}

// Close closes what Open has returned.
func Close(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// Look returns the facts of the process that fd is for. The last of them is whether it is dead: what was told before is then told of a
// zombie.
func Look(fd int) (f Facts, err error) {
	var st unix.Stat_t
	if _, _, errno := unix.RawSyscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(&st)), 0); errno != 0 {
		return Facts{}, fmt.Errorf("fstat of a pidfd: %w", errno)
	}
	// What was written for 6.13 says less, at the same places.
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
	switch errno {
	case 0:
	case unix.ESRCH:
		return Facts{}, fmt.Errorf("PIDFD_GET_INFO: %w", procfs.ErrVanished)
	default:
		return Facts{}, fmt.Errorf("PIDFD_GET_INFO: %w", errno)
	}
	// POLLHUP: it has been waited for (pidfd_poll() in fs/pidfs.c).
	poll, at := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}, unix.Timespec{}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&at)), 0, 0, 0); errno != 0 {
		return Facts{}, fmt.Errorf("poll a pidfd: %w", errno)
	}
	if poll.Revents&unix.POLLHUP != 0 {
		return Facts{}, fmt.Errorf("poll a pidfd: %w", procfs.ErrVanished)
	}
	return Facts{ID: st.Ino, Parent: procfs.HostPID(info.Ppid), Dead: poll.Revents&unix.POLLIN != 0}, nil
}
