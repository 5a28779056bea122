package shim

import (
	"fmt"
	"time"

	"github.com/containerd/log"

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
	// connectorQuiet is how long nothing unproven must have been seen before a connector is closed.
	connectorQuiet = 5 * time.Minute
)

// forks is the fork log of one PID 1: which source is used, and when. A single goroutine owns it.
type forks struct {
	id     string // of the task, for the log
	pid    procfs.HostPID
	policy ForkLog
	perf   *forklog.Perf
	conn   *forklog.Connector
	// reason says why there is no log, or no better one.
	reason string
	// closeAt is when the connector is closed if nothing unproven turns up.
	closeAt time.Time
	retryAt time.Time // of opening the connector
	syncAt  time.Time // when the perf log is looked at whether there are zombies or not
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
		log.L.WithField("id", id).Warnf("no log of the forks of PID 1: %s", f.reason)
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
		f.reason = err.Error()
		f.retryAt = now.Add(connectorQuiet)
		return
	}
	f.conn, f.closeAt = conn, now.Add(keep)
}

// log returns the log in use as package sweep wants it, nil when there is none.
func (f *forks) log() sweep.ForkLog {
	switch {
	case f.perf != nil:
		return f.perf
	case f.conn != nil:
		return f.conn
	}
	return nil
}

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
	switch {
	case f.conn != nil && f.conn.Stats().Ended:
		f.reason = "connector: " + f.conn.Stats().Reason
		f.closeConnector()
		f.retryAt = now.Add(connectorQuiet)
		return true
	case f.conn != nil && unproven:
		f.closeAt = now.Add(connectorQuiet)
	case f.conn != nil && now.After(f.closeAt):
		f.closeConnector()
		f.reason = "connector: nothing unproven for a while"
		return true
	case f.conn == nil && unproven && now.After(f.retryAt):
		f.openConnector(0, now, connectorQuiet)
		return f.conn != nil
	}
	return false
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
	f.perf = nil
}

func (f *forks) closeConnector() {
	if err := f.conn.Close(); err != nil {
		log.L.WithError(err).Debug("close the proc connector")
	}
	f.conn = nil
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
	return forklog.Stats{Source: "none", Reason: f.reason}
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
