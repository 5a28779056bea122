package tracer

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// classifyCall says what may be done with a thread that is parked in call nr. The argument registers are those of
// syscall(2) on x86-64.
func classifyCall(nr int64, args [6]uint64) call {
	switch nr {
	case unix.SYS_FUTEX:
		c := call{name: "futex", class: classUnsafe}
		if op := args[1] & futexCmdMask; op == futexWait || op == futexWaitBitset {
			c.class = classFutex
		}
		return c
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

func epollCall(name string, endless bool) call {
	c := call{name: name, class: classEpollFinite, plainEINTR: true, endless: endless}
	if endless {
		c.class = classRisky
	}
	return c
}

func waitCall(name string, t waitTarget) call {
	c := call{name: name, class: classUnsafe, waits: t}
	if !t.any {
		c.class = classWaitOther // of one child; that it is none of ours is for the caller to check
	}
	return c
}

// wait4Target: below -1 a process group, -1 every child, 0 our own group, else one child (wait(2)).
func wait4Target(pid int32) waitTarget {
	if pid <= 0 {
		return waitTarget{any: true}
	}
	return waitTarget{nspid: procfs.NSPID(pid)}
}

func waitidTarget(idtype, id int32) waitTarget {
	switch {
	case idtype == unix.P_PID && id > 0:
		return waitTarget{nspid: procfs.NSPID(id)}
	case idtype == unix.P_PIDFD && id >= 0:
		return waitTarget{fd: int(id), isFD: true}
	}
	return waitTarget{any: true}
}
