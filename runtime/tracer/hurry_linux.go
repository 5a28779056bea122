package tracer

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hurryNice is the nice value of a thread in a hurry: of several threads in a cgroup (or session, sched(7)) it gets the CPU first. The value
// is the thread's alone.
const hurryNice = -20

// schedOther and resetOnFork are SCHED_OTHER and SCHED_RESET_ON_FORK (sched(7)).
const (
	schedOther  = 0
	resetOnFork = 0x40000000
)

// hurry says which thread has been lent hurryNice, so that it need not wait behind what leaks: 0 for none.
//
// Whatever it forks meanwhile has to be as without us, and be it because the tracer has died. The kernel gives a child of a thread that is to
// reset its scheduling on fork(2) the policy SCHED_OTHER and, instead of a negative nice value, 0 (sched_fork() in kernel/sched/core.c). So it
// is only for threads that have both themselves.
type hurry struct {
	journal *Journal
	allowed bool // mayHurry
	tgid    int  // the process whose threads it is for
	tid     int
}

// mayHurry reports whether what hurry does can be undone, by trying it on the calling thread: anybody may have his threads reset their
// scheduling on a fork, but to end that takes CAP_SYS_NICE, as a negative nice value does (sched(7)).
func mayHurry() bool {
	policy, err := policyOf(0)
	if err != nil || policy != schedOther || setPolicy(0, schedOther|resetOnFork) != nil {
		return false
	}
	return setPolicy(0, schedOther) == nil
}

func (h *hurry) begin(tid int) {
	if h.tid == tid || !h.allowed {
		return
	}
	if own, err := niceOf(tid); err != nil || own != 0 {
		return
	}
	if policy, err := policyOf(tid); err != nil || policy != schedOther {
		return
	}
	h.tid = tid
	h.journal.lend()
	err := setPolicy(tid, schedOther|resetOnFork)
	if err == nil {
		err = unix.Setpriority(unix.PRIO_PROCESS, tid, hurryNice)
	}
	if err != nil {
		h.end()
	}
}

func (h *hurry) end() {
	if h.tid != 0 {
		unhurry(h.tgid, h.tid)
	}
	h.forget()
}

// forget is end for a thread that is gone.
func (h *hurry) forget() {
	h.tid = 0
	h.journal.giveBack()
}

// unhurry gives a thread its own nice value and policy back, unless somebody has given it others meanwhile. One that has called execve(2)
// has the number of the process since (ptrace(2), "execve(2) under ptrace").
func unhurry(tgid, tid int) {
	if _, err := policyOf(tid); err != nil {
		tid = tgid
	}
	if nice, err := niceOf(tid); err == nil && nice == hurryNice {
		_ = unix.Setpriority(unix.PRIO_PROCESS, tid, 0)
	}
	if policy, err := policyOf(tid); err == nil && policy == schedOther|resetOnFork {
		_ = setPolicy(tid, schedOther)
	}
}

// niceOf returns the nice value of a thread: the system call's own result is 20 minus that (getpriority(2)).
func niceOf(tid int) (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	return 20 - n, err
}

// policyOf returns the scheduling policy of a thread, with resetOnFork.
func policyOf(tid int) (int, error) {
	policy, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(tid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(policy), nil
}

// setPolicy leaves all else that sched_setattr(2) knows of as it is.
func setPolicy(tid, policy int) error {
	var priority int32 // struct sched_param
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(tid), uintptr(policy), uintptr(unsafe.Pointer(&priority)))
	if errno != 0 {
		return errno
	}
	return nil
}
