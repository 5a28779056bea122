package tracer

import "github.com/reaper-shim/reaper/runtime/procfs"

// callClass orders the system calls that a thread may be stopped in by what PID 1 would see if the tracer were killed
// while waitid stands in for the call, pin and journal failed, and so the call returned 0. The lower the better.
type callClass int

const (
	classFutex       callClass = iota + 1 // FUTEX_WAIT: a spurious wake-up, which every user of futex(2) must expect
	classPoll                             // a time-out
	classWaitOther                        // a wait for one other child: 0 is what WNOHANG returns
	classEpollFinite                      // a time-out
	// classRisky are calls that hardly ever return 0, so that some programs do not expect it: sleeps would end early,
	// pause would return, select would leave its sets as they were, and an endless epoll_wait would time out.
	classRisky
	classUnsafe // the result would be a lie (read: end of file, accept: descriptor 0, futex: a lock that is not held)
)

// call is a system call as far as the tracer needs to know it.
type call struct {
	name  string
	class callClass
	// plainEINTR marks calls that return -EINTR, not a restart code, on every stop (signal(7): "never restarted").
	plainEINTR bool
	// endless: there is no time-out that could start anew when the call is issued again.
	endless bool
	waits   waitTarget
}

// waitTarget says which children a thread is blocked in a wait for.
type waitTarget struct {
	any   bool         // several, or not known which: taken for all
	nspid procfs.NSPID // this one, if > 0
	fd    int          // the one that this pidfd refers to, if isFD
	isFD  bool
}

// The operations of futex(2) that may be interrupted: FUTEX_WAIT and FUTEX_WAIT_BITSET, which only sleep. The others take
// locks or move waiters, and their result says that this was done (include/uapi/linux/futex.h; 127 masks off
// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME).
const (
	futexCmdMask    = 127
	futexWait       = 0
	futexWaitBitset = 9
)

func futexCall(args [6]uint64) call {
	c := call{name: "futex", class: classUnsafe}
	if op := args[1] & futexCmdMask; op == futexWait || op == futexWaitBitset {
		c.class = classFutex
	}
	return c
}

// The kinds of ID that waitid(2) takes and the tracer understands (include/uapi/linux/wait.h).
const (
	idPID   = 1
	idPIDFD = 3
)

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
	case idtype == idPID && id > 0:
		return waitTarget{nspid: procfs.NSPID(id)}
	case idtype == idPIDFD && id >= 0:
		return waitTarget{fd: int(id), isFD: true}
	}
	return waitTarget{any: true}
}
