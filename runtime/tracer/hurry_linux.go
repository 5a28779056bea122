package tracer

import "golang.org/x/sys/unix"

// hurryNice is the nice value of a thread that stands still for us: of several threads in a cgroup (or session, sched(7)) it gets the CPU
// first. The value is the thread's alone, and it makes no child meanwhile that could inherit it.
const hurryNice = -20

// hurrier returns what sets and restores the nice value of a thread. Where it may not be set there is nothing to restore, which
// restoreNice sees.
func hurrier(tid int, j *Journal) func(on bool) {
	own := hurryNice
	return func(on bool) {
		if !on {
			restoreNice(tid, own)
			j.giveBack()
		} else if n, err := niceOf(tid); err == nil && n != hurryNice {
			own = n
			j.lend(own)
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, hurryNice)
		}
	}
}

// restoreNice gives a thread its own nice value back, unless somebody has given it another one meanwhile.
func restoreNice(tid, own int) {
	if now, err := niceOf(tid); err == nil && now == hurryNice {
		_ = unix.Setpriority(unix.PRIO_PROCESS, tid, own)
	}
}

// niceOf returns the nice value of a thread: the system call's own result is 20 minus that (getpriority(2)).
func niceOf(tid int) (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	return 20 - n, err
}
