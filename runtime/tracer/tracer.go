package tracer

import (
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Version is the version of the protocol between [Client] and worker. Both come from one build, so there is no
// negotiation: a difference is an error.
const Version = 4

const (
	// DefaultMaxStop is the stop budget of a request that names none.
	DefaultMaxStop = 5 * time.Millisecond
	// MaxMaxStop is the largest budget that a request may name. A second without PID 1 is more than any liveness
	// probe should have to notice.
	MaxMaxStop = time.Second
	// MaxRest is the longest rest that a request may name.
	MaxRest = time.Second
	// MaxZombies is how many zombies one request may name.
	MaxZombies = 4096
	// MaxBatch is how many zombies are tried in one attach; the rest is reported as [Left]. The worker holds three open
	// files for each.
	MaxBatch = 512
	// MaxAttaches is the largest number of attaches that a request may allow.
	MaxAttaches = 64
	// maxRun is how long after its rest a request is given another attach: twice that may pass before others' requests are heard.
	maxRun = 150 * time.Millisecond
)

// RestAfter returns how long PID 1 is left alone between two attaches of one request, if it has a use for it ([Request.Rest]): longer
// than it was stopped for.
func RestAfter(stopped time.Duration) time.Duration { return stopped + stopped/4 }

// WorkerName is the file name of the worker's executable.
const WorkerName = "reaper-tracer"

// Zombie names one zombie and says how to recognise it: by ID, or, where that is 0, by StartTime.
type Zombie struct {
	PID       procfs.HostPID
	StartTime uint64 // clock ticks since boot (proc_pid_stat(5), field 22)
	// NSPID is the zombie's number at PID 1's own PID-namespace level: the one that PID 1 itself would pass to waitid.
	// A zombie of a nested namespace has further numbers, which may belong to other children of PID 1. 0: the worker looks it up,
	// and says it in the [Result].
	NSPID procfs.NSPID
	// ID is that of its pidfd ([pidfd.Facts]).
	ID uint64
}

// Request asks for zombies to be reaped by their parent.
type Request struct {
	Version   int            `json:"version"` // [Version]; 0 is filled in by Client.Reap
	PID       procfs.HostPID `json:"pid"`     // the parent, the namespace's PID 1
	StartTime uint64         `json:"startTime"`
	Zombies   Zombies        `json:"zombies"`
	// Age is how long ago, in nanoseconds on the wire, all of the zombies were dead that have an ID; 0: not known. What PID 1 was found not to
	// do since then it has not done to them: see [Request.Probe].
	Age time.Duration `json:"ageNs,omitempty"`
	// Probe: PID 1 may be made to ask, with a waitid(2) that takes nobody, whether it traces any process (ptrace(2)). If it does not, no
	// zombie that was dead before is traced by it, and their statuses need not be read. That is worth it for a dozen. The kernel goes over
	// all its children for the answer, some 0.2 us each.
	Probe bool `json:"probe,omitempty"`
	// MaxStop is how long PID 1 may be stopped in this attach, in nanoseconds on the wire; 0 means [DefaultMaxStop]. It
	// is a budget: the zombie that is being reaped when it ends is finished, so that it can be exceeded by the time
	// that one takes (tens to hundreds of microseconds).
	MaxStop time.Duration `json:"maxStopNs,omitempty"`
	// Rest is how long PID 1 is left alone, from the receipt of the request on, in nanoseconds on the wire: or until it has let a
	// millisecond go by in which none of its threads ran. The zombies are looked at meanwhile.
	Rest time.Duration `json:"restNs,omitempty"`
	// Attaches is how many attaches may be made, with a rest ([RestAfter]) between two of them, for as long as they end for no other reason
	// than their budget or a signal, and for 150 ms at most; 0 means one. Where there is very much to be done nobody has to be asked
	// after each then. An equal part of the zombies is looked at for the first.
	Attaches int `json:"attaches,omitempty"`
	// Running: where no thread is parked, one that runs is stopped as well, and let run until it enters a call that it could be
	// parked in. For a PID 1 that has so much to do that it never waits.
	Running bool `json:"running,omitempty"`
}

func (r Request) maxStop() time.Duration {
	if r.MaxStop == 0 {
		return DefaultMaxStop
	}
	return r.MaxStop
}

// Outcome says what became of one zombie.
type Outcome string

// The outcomes.
const (
	Reaped   Outcome = "reaped"   // PID 1 waited for it, and it is gone
	Vanished Outcome = "vanished" // it was gone before we came to it: somebody else reaped it, or PID 1 ended
	Refused  Outcome = "refused"  // left alone; the Reason says why
	Left     Outcome = "left"     // not reached: the stop budget or the batch ended, or the attach was declined
)

// Reason names why a request or a zombie was declined. The values are stable: they become labels of metrics.
type Reason string

// Reasons that hold for the whole request ([Report.Reason]).
const (
	ReasonTraced          Reason = "traced"           // PID 1 has another tracer
	ReasonStopped         Reason = "stopped"          // PID 1 is in a group stop (SIGSTOP and the like)
	ReasonFrozen          Reason = "frozen"           // PID 1's cgroup is frozen
	ReasonSeccompStrict   Reason = "seccomp-strict"   // seccomp mode 1
	ReasonSeccompFilter   Reason = "seccomp-filter"   // the filter could not be suspended for waitid
	ReasonNotNative       Reason = "not-native"       // a 32-bit (or x32) task
	ReasonSigchldPending  Reason = "sigchld-pending"  // PID 1 has not been told yet that a child died
	ReasonBusy            Reason = "busy"             // no thread was parked
	ReasonUnsafeSyscall   Reason = "unsafe-syscall"   // threads were parked, none in a call that may be interrupted; see Detail
	ReasonExiting         Reason = "exiting"          // PID 1 is a zombie itself, or a thread of it is in the middle of execve(2)
	ReasonVanished        Reason = "vanished"         // PID 1 is gone, or its PID has another owner
	ReasonNoPermission    Reason = "no-permission"    // the kernel or a security module forbids ptrace
	ReasonTimeout         Reason = "timeout"          // it did not stop in time; the worker has ended
	ReasonSignal          Reason = "signal"           // a signal for PID 1 came first and was delivered
	ReasonUnsupportedArch Reason = "unsupported-arch" // see Detail
	ReasonInternal        Reason = "internal"         // an unexpected error; see Detail
)

// Reasons that hold for one zombie ([Result.Reason]). [ReasonVanished] goes with [Vanished].
const (
	ReasonWaiting      Reason = "waiting"       // a thread of PID 1 sits in a wait that covers this zombie
	ReasonZombieTraced Reason = "zombie-traced" // it belongs to its tracer until that has seen it
	ReasonNotAChild    Reason = "not-a-child"   // waitid said ECHILD although it is still there
	ReasonNotZombie    Reason = "not-zombie"    // alive, or waitid would not take it
	ReasonWrongParent  Reason = "wrong-parent"  // its parent is not PID 1
	ReasonWrongNSPID   Reason = "wrong-nspid"   // its number at PID 1's level is not the one of the request
	ReasonLiveThreads  Reason = "live-threads"  // the leader is dead, other threads of it live
	ReasonBudget       Reason = "budget"        // with Left: the stop budget or the batch ended
	ReasonDeclined     Reason = "declined"      // with Left: the whole request was declined, see Report.Reason
)

// Result is what became of one zombie of the request.
type Result struct {
	PID     procfs.HostPID
	Outcome Outcome
	Reason  Reason       // "" for Reaped
	NSPID   procfs.NSPID // at PID 1's level; 0: not looked up
}

// Report answers a Request.
type Report struct {
	Version int `json:"version"`
	// Attached says whether PID 1 was touched (PTRACE_SEIZE succeeded), and Attaches how many times.
	Attached bool `json:"attached"`
	Attaches int  `json:"attaches,omitempty"`
	// Reason is set when the whole request was declined, or its last attach ended early for a cause other than the budget:
	// zombies reaped before that are in Results all the same.
	Reason  Reason         `json:"reason,omitempty"`
	Detail  string         `json:"detail,omitempty"`  // for people
	TID     procfs.HostPID `json:"tid,omitempty"`     // the thread that was stopped
	Syscall string         `json:"syscall,omitempty"` // the call it was parked in, by name
	// Stopped is how long that thread was held, from its first stop to the detach, in nanoseconds on the wire: in the longest of
	// several attaches.
	Stopped time.Duration `json:"stoppedNs"`
	// UndidStop: a SIGSTOP that PID 1 got right at the detach was taken back with a SIGCONT. One from inside its namespace would not
	// have worked without us, and at that moment one from outside cannot be told from it: who sent that has to send it again.
	UndidStop bool `json:"undidStop,omitempty"`
	// Repeated is set by Client.Reap: an earlier worker has ended over the request, and what has vanished it may have reaped.
	Repeated bool    `json:"-"`
	Results  Results `json:"results"` // one for each Zombie of the request, in its order
}

// Count returns how many results have the outcome o.
func (r Report) Count(o Outcome) int {
	n := 0
	for _, res := range r.Results {
		if res.Outcome == o {
			n++
		}
	}
	return n
}

// add takes in the report of another attach for the same request, with which it shares the results.
func (r *Report) add(one Report) {
	r.Attached, r.Attaches = r.Attached || one.Attached, r.Attaches+one.Attaches
	r.Reason, r.Detail = one.Reason, one.Detail
	if one.TID != 0 {
		r.TID, r.Syscall = one.TID, one.Syscall
	}
	r.Stopped = max(r.Stopped, one.Stopped)
	r.UndidStop = r.UndidStop || one.UndidStop
}

// Supported says whether this build can trace at all: "" if so, else the reason that every request would be declined for.
func Supported() Reason {
	if !archSupported {
		return ReasonUnsupportedArch
	}
	return ""
}

// decline fills in a report that touches nobody.
func decline(req Request, why Reason, detail string) Report {
	rep := Report{Version: Version, Reason: why, Detail: detail, Results: make([]Result, len(req.Zombies))}
	for i, z := range req.Zombies {
		rep.Results[i] = Result{PID: z.PID, Outcome: Left, Reason: ReasonDeclined}
	}
	return rep
}
