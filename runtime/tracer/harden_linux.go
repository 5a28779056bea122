package tracer

import (
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// priority of the thread that traces, of what its cgroup gets (setpriority(2)). Where the cpu controller is not used, of what its session
// gets: the session has a nice value itself (sched(7), "The autogroup feature").
const priority = -10

// Harden prepares the process for being a tracer whose sudden end would harm its tracee: it must not be ended by a signal
// that can be ignored, nor by the OOM killer, nor wait for its own memory. All of it is best effort: an unprivileged
// worker can do none of it and works all the same.
func Harden() {
	// SIGCHLD is not ignored, since that is part of how wait(2) works, but not sent for stops: each would wake another thread to
	// run the handler, several times for every zombie. The first thread, which traces, has every signal blocked (the runtime's
	// SIGURG too, so that nothing interrupts it); the others of the runtime take what cannot be ignored.
	_ = changeSigaction(unix.SIGCHLD, saNoCldStop, 0)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGUSR1,
		unix.SIGUSR2, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGPROF,
		unix.SIGIO, unix.SIGPWR)
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	_ = unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil)

	// A worker that is started by its file descriptor is named after that (proc_pid_comm(5)).
	_ = os.WriteFile("/proc/self/comm", []byte(WorkerName), 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	// What waits for a CPU while PID 1 stands still must not wait for long, least of all for what leaks.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, priority)
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() { // started by hand, that is the session of a shell
		_ = os.WriteFile("/proc/self/autogroup", strconv.AppendInt(nil, priority, 10), 0)
	}
	// On fault, or the Go runtime's reservations would all become memory (mlock2(2), Linux 4.4).
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	// The runtime's watching thread (sysmon) naps for 20 µs at a time while this one is at work, for others that are none here.
	relaxOthers()
	// Naps of 50 µs are meant as such: the default slack is 50 µs (PR_SET_TIMERSLACK(2const)).
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0)
}

// otherSlack is by how much naps of the runtime's threads may be longer.
const otherSlack = 10 * time.Millisecond

// relaxOthers gives every thread but the calling one more timer slack. The file is that of a thread as well, although only processes are
// listed (proc_pid_timerslack_ns(5); fs/proc/base.c, proc_pid_lookup).
func relaxOthers() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	self := strconv.Itoa(unix.Gettid())
	for _, t := range threads {
		if t.Name() != self {
			_ = os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", strconv.AppendInt(nil, otherSlack.Nanoseconds(), 10), 0)
		}
	}
}
