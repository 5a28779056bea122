package shim

import (
	"fmt"
	"time"

	"github.com/containerd/log"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// ForkLog names the source of the fork log.
type ForkLog string

// The sources.
const (
	ForkLogAuto      ForkLog = "auto"      // perf, and the connector where that cannot be had
	ForkLogPerf      ForkLog = "perf"      // the perf task log only
	ForkLogConnector ForkLog = "connector" // the proc connector only
	ForkLogOff       ForkLog = "off"       // none: the other rules decide
)

var forkLogs = []ForkLog{ForkLogAuto, ForkLogPerf, ForkLogConnector, ForkLogOff}

const (
	// maxPerfEvents bounds the kernel memory of a perf task log, which is not charged to the container: an event of 1352
	// bytes (Linux 6.18) for each thread of PID 1 and CPU. 16384 are 22 MB.
	maxPerfEvents = 16384
	// maxPerfCPUs is the number of possible CPUs up to which perf is the first choice. Each takes 36 KB of locked memory for
	// each container, and 1.2 µs of each thread that PID 1 creates (docs/fork-log.md).
	maxPerfCPUs = 64
	// perfSync is how often a perf log is asked at least whether it still lives.
	perfSync = 5 * time.Second
	// connectorWarmup is how long a new container's forks are listened to; its first processes are born then.
	connectorWarmup = time.Minute
	// connectorQuiet is how long nothing must have been seen that a connector may decide before it is closed.
	connectorQuiet = 5 * time.Minute
	// maxPastLogs bounds the logs that were closed and still answer for those born in their time. There are few: what was
	// missed once because of a closed connector keeps the next one open.
	maxPastLogs = 4
)

// forks is the fork log of one PID 1: which source is used, and when. It is the one that package sweep asks, and knows what the
// sources knew that were closed: a child that one of them has seen born does not become an orphan by that. A single goroutine
// owns it.
type forks struct {
	id     string // of the task, for the log
	pid    procfs.HostPID
	policy ForkLog
	perf   *forklog.Perf
	conn   *forklog.Connector
	past   []forklog.Log // closed, the oldest first
	// reason says why there is no perf log, connReason why there is no connector.
	reason, connReason string
	// closeAt is when the connector is closed if nothing unproven turns up.
	closeAt time.Time
	retryAt time.Time // of opening the connector
	syncAt  time.Time // when the perf log is looked at whether there are zombies or not
	decided uint64    // sweep.Stats.LogDecided at the last update
	// A connector was closed because there was nothing to decide, and: something unproven has turned up since then. The next
	// one is kept. What a PID 1 does once in ten minutes it does for as long as it lives, and each time something would stay.
	paused, keep bool
}

// openForks begins the log of a PID 1 that was born at startTime. fresh says that it has not run its first instruction.
func openForks(id string, pid procfs.HostPID, startTime uint64, policy ForkLog, fresh bool, now time.Time) *forks {
	f := &forks{id: id, pid: pid, policy: policy}
	if policy == ForkLogOff {
		f.reason = "switched off"
		return f
	}
	if policy != ForkLogConnector {
		switch {
		case !fresh:
			f.reason = "perf: PID 1 already ran when it was first seen"
		case policy == ForkLogAuto && !affordable():
			f.reason = fmt.Sprintf("perf: more than %d possible CPUs", maxPerfCPUs)
		default:
			var err error
			if f.perf, err = forklog.OpenPerf(pid, startTime); err == nil {
				return f
			}
			f.reason = err.Error()
		}
	}
	complete := uint64(0)
	if fresh {
		complete = startTime
	}
	f.openConnector(complete, now, connectorWarmup)
	if f.log() == nil {
		log.L.WithField("id", id).Warnf("no log of the forks of PID 1: %s", f.why())
	}
	return f
}

// affordable reports whether this machine has few enough CPUs for perf.
func affordable() bool {
	cpus, err := forklog.PossibleCPUs()
	return err == nil && len(cpus) <= maxPerfCPUs
}

func (f *forks) openConnector(complete uint64, now time.Time, keep time.Duration) {
	if f.policy != ForkLogAuto && f.policy != ForkLogConnector {
		return
	}
	conn, err := forklog.OpenConnector(f.pid, complete)
	if err != nil {
		f.connReason = err.Error()
		f.retryAt = now.Add(connectorQuiet)
		return
	}
	f.conn, f.connReason, f.closeAt = conn, "", now.Add(keep)
}

// log returns the log in use, nil when there is none.
func (f *forks) log() forklog.Log {
	switch {
	case f.perf != nil:
		return f.perf
	case f.conn != nil:
		return f.conn
	}
	return nil
}

// Sync implements sweep.ForkLog.
func (f *forks) Sync() {
	if l := f.log(); l != nil {
		l.Sync()
	}
}

// Lookup implements sweep.ForkLog. Each log is right about those whom it vouches for; a record weighs more than the lack of one.
func (f *forks) Lookup(pid procfs.HostPID, startTime uint64) lineage.Fork {
	logs := f.past
	if l := f.log(); l != nil {
		logs = append(logs[:len(logs):len(logs)], l)
	}
	answer := lineage.ForkUnknown
	for _, l := range logs {
		switch l.Lookup(pid, startTime) {
		case lineage.ForkedByInit:
			return lineage.ForkedByInit
		case lineage.ForkedByOther:
			answer = lineage.ForkedByOther
		case lineage.ForkUnknown:
		}
	}
	return answer
}

// Exact implements sweep.ForkLog. A connector is not: it is opened and closed by what the walks for rule L find.
func (f *forks) Exact() bool { return f.perf != nil && f.perf.Stats().Gaps == 0 }

// update draws the consequences of a sweep and reports whether another log is in use now.
func (f *forks) update(st sweep.Stats, now time.Time) (changed bool) {
	if f.perf != nil {
		if !now.Before(f.syncAt) {
			// Otherwise it is brought up to date only when there are zombies, and its end would be found with the first one
			// that it cannot vouch for.
			f.perf.Sync()
			f.syncAt = now.Add(perfSync)
		}
		ps := f.perf.Stats()
		switch cpus := f.perf.CPUs(); {
		case ps.Ended:
			f.drop("perf: " + ps.Reason)
		case st.Threads*cpus > maxPerfEvents:
			f.drop(fmt.Sprintf("perf: %d threads on %d CPUs take more than %d events", st.Threads, cpus, maxPerfEvents))
		default:
			return false
		}
		// What PID 1 forks from now on is worth a listener for as long as after a birth.
		f.openConnector(0, now, connectorWarmup)
		return true
	}
	unproven := st.Unproven > 0 && st.Oldest > st.Grace
	// Who needs the connector: zombies that it alone has an answer for, and whoever lives in the session of PID 1, since what
	// he leaves cannot be told from a child of PID 1 by anything else. PID 1 alone, and what is executed, do not.
	needed := unproven || st.Companions > 0 || st.LogDecided > f.decided
	f.decided = st.LogDecided
	f.keep = f.keep || f.paused && unproven
	switch {
	case f.conn != nil && f.conn.Stats().Ended:
		f.connReason = "connector: " + f.conn.Stats().Reason
		f.closeConnector()
		f.retryAt = now.Add(connectorQuiet)
		return true
	case f.conn != nil && needed:
		f.closeAt = later(f.closeAt, now.Add(connectorQuiet))
	case f.conn != nil && !f.keep && now.After(f.closeAt):
		f.closeConnector()
		f.connReason = "connector: nothing to decide for a while"
		f.paused = true
		return true
	case f.conn == nil && needed && now.After(f.retryAt):
		f.openConnector(0, now, connectorQuiet)
		return f.conn != nil
	}
	return false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// drop gives the perf log up while PID 1 goes on.
func (f *forks) drop(reason string) {
	log.L.WithField("id", f.id).Infof("the log of the forks of PID 1 has ended: %s", reason)
	f.reason = reason
	f.closePerf()
}

func (f *forks) closePerf() {
	if err := f.perf.Close(); err != nil {
		log.L.WithError(err).Debug("close the perf task log")
	}
	f.remember(f.perf)
	f.perf = nil
}

func (f *forks) closeConnector() {
	if err := f.conn.Close(); err != nil {
		log.L.WithError(err).Debug("close the proc connector")
	}
	f.remember(f.conn)
	f.conn = nil
}

// remember keeps what a closed log knows.
func (f *forks) remember(l forklog.Log) {
	if f.past = append(f.past, l); len(f.past) > maxPastLogs {
		f.past = f.past[1:]
	}
}

// stats returns the state of the log in use.
func (f *forks) stats() forklog.Stats {
	switch {
	case f.perf != nil:
		return f.perf.Stats()
	case f.conn != nil:
		st := f.conn.Stats()
		if st.Reason == "" {
			st.Reason = f.reason
		}
		return st
	}
	return forklog.Stats{Source: "none", Reason: f.why()}
}

// why says why there is no log.
func (f *forks) why() string {
	if f.reason == "" || f.connReason == "" {
		return f.reason + f.connReason
	}
	return f.reason + "; " + f.connReason
}

// close ends it.
func (f *forks) close() {
	if f.perf != nil {
		f.closePerf()
	}
	if f.conn != nil {
		f.closeConnector()
	}
}
