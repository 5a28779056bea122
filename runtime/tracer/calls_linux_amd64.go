package tracer

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// classifyCall says what may be done with a thread that is parked in call nr. The argument registers are those of
// syscall(2) on x86-64.
func classifyCall(nr int64, args [6]uint64) call {
	switch nr {
	case unix.SYS_FUTEX:
		return futexCall(args)
	case unix.SYS_POLL:
		return call{name: "poll", class: classPoll}
	case unix.SYS_PPOLL:
		return call{name: "ppoll", class: classPoll}
	case unix.SYS_WAIT4:
		return waitCall("wait4", wait4Target(int32(args[0])))
	case unix.SYS_WAITID:
		return waitCall("waitid", waitidTarget(int32(args[0]), int32(args[1])))
	case unix.SYS_EPOLL_WAIT:
		return epollCall("epoll_wait", int32(args[3]) < 0)
	case unix.SYS_EPOLL_PWAIT:
		return epollCall("epoll_pwait", int32(args[3]) < 0)
	case unix.SYS_EPOLL_PWAIT2:
		return epollCall("epoll_pwait2", args[3] == 0) // a timespec; NULL waits for ever
	case unix.SYS_NANOSLEEP:
		return call{name: "nanosleep", class: classRisky}
	case unix.SYS_CLOCK_NANOSLEEP:
		return call{name: "clock_nanosleep", class: classRisky}
	case unix.SYS_PAUSE:
		return call{name: "pause", class: classRisky}
	case unix.SYS_RT_SIGSUSPEND:
		return call{name: "rt_sigsuspend", class: classRisky}
	case unix.SYS_SELECT:
		return call{name: "select", class: classRisky}
	case unix.SYS_PSELECT6:
		return call{name: "pselect6", class: classRisky}
	case unix.SYS_RESTART_SYSCALL:
		// Once more in a sleep, poll or futex wait that was interrupted before; the kernel does not say which. No
		// other call uses the restart block in a way that would matter (uses of set_restart_fn() in the kernel).
		return call{name: "restart_syscall", class: classRisky}
	}
	return call{name: fmt.Sprintf("syscall %d", nr), class: classUnsafe}
}
