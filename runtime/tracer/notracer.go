package tracer

import (
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// answer is what PID 1 said when it was made to ask whether it traces anybody.
type answer struct {
	at   time.Time // before it was asked; zero: it was not
	took time.Duration
	none bool
}

const (
	// askShare is the part of the time that the question may take, as 1/n: there is nothing else that PID 1 does meanwhile.
	askShare = 100
	// askAgain is after how long a process that traces somebody, or may do so, is asked again.
	askAgain = 10 * time.Second
)

// noTracer remembers when a process traced nobody. No zombie that was dead by then is traced by it for as long as it is there, since one
// cannot be attached to (ptrace_attach() in kernel/ptrace.c).
type noTracer struct {
	pid       procfs.HostPID
	startTime uint64
	at        time.Time // the last time; zero: not known of any
	next      time.Time // when to ask again
}

func (u *noTracer) isOf(req Request) bool { return u.pid == req.PID && u.startTime == req.StartTime }

// covers reports whether the zombies of a request with an ID, which came at received or before, are not traced by PID 1.
func (u *noTracer) covers(req Request, received time.Time) bool {
	return req.Age > 0 && u.isOf(req) && !received.Add(-req.Age).After(u.at)
}

// due reports whether PID 1 is to be asked in the next attach: of those with an ID well before they would be too young for the last answer.
func (u *noTracer) due(req Request, now time.Time) bool {
	return asks && req.Probe && (!u.isOf(req) || !now.Before(u.next))
}

// heard takes in an answer.
func (u *noTracer) heard(req Request, a answer) {
	if a.at.IsZero() {
		return
	}
	if !u.isOf(req) {
		*u = noTracer{pid: req.PID, startTime: req.StartTime}
	}
	u.next = a.at.Add(askAgain)
	if a.none { // else what was true earlier still is
		u.at, u.next = a.at, a.at.Add(max(req.Age/2, askShare*a.took))
	}
}
