package forklog

import (
	"slices"
	"sync"

	"github.com/reaper-shim/reaper/internal/fault"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Stats is the state of a log.
type Stats struct {
	Source  string // "perf" or "connector"
	Forks   uint64 // forks of children heard of
	Lost    uint64 // records that the kernel says it lost
	Gaps    uint64 // times that the log had to begin anew
	Ended   bool   // it hears nothing any more
	Reason  string // of the last gap, or of the end
	Entries int    // children remembered
}

// Log is a source of evidence.
type Log interface {
	// Sync takes in all that the kernel has told up to now, and finds out whether something was lost. A child that was
	// seen dead before Sync was called is judged rightly afterwards.
	Sync()
	// Lookup says whether the process forked this child. startTime is field 22 of its stat file, in clock ticks.
	Lookup(pid procfs.HostPID, startTime uint64) lineage.Fork
	// Stats returns the state of the log.
	Stats() Stats
	// Close ends the log. What it knows stays: Lookup answers as before for whoever was born until shortly before, and does
	// not know of those born later.
	Close() error
}

// maxEntries bounds the memory of a log. A child is forgotten when it has been remembered longest; the log is then no longer
// complete for those born before the youngest that was forgotten.
const maxEntries = 1 << 16

// birth is one fork of the watched process: the clock stood at ticks when the kernel told of it, after the child's start.
type birth struct {
	pid   procfs.HostPID
	ticks uint64
}

// memory is what both sources share: the births heard of, and since when they are complete. It is safe for concurrent use.
type memory struct {
	mu sync.Mutex
	// complete: every child born at this tick or later is in births. Guarded by mu, as all below.
	complete uint64
	// until: those born at this tick or later are not; 0 while the log goes on.
	until  uint64
	births map[procfs.HostPID][]uint64 // ticks, ascending
	order  []birth                     // in the order in which they were heard of
	stats  Stats
}

func newMemory(source string, complete uint64) *memory {
	return &memory{complete: complete, births: make(map[procfs.HostPID][]uint64), stats: Stats{Source: source}}
}

// born notes a fork. m.mu is held.
func (m *memory) born(pid procfs.HostPID, ticks uint64) {
	if fault.ForgetsFork(int(pid)) {
		return
	}
	m.stats.Forks++
	m.births[pid] = append(m.births[pid], ticks)
	m.order = append(m.order, birth{pid, ticks})
	if len(m.order) <= maxEntries {
		return
	}
	// Half at once: forgetting one by one would copy the rest each time.
	forget := m.order[:len(m.order)/2]
	for _, b := range forget {
		times := m.births[b.pid]
		if i := slices.Index(times, b.ticks); i >= 0 {
			times = slices.Delete(times, i, i+1)
		}
		if len(times) == 0 {
			delete(m.births, b.pid)
		} else {
			m.births[b.pid] = times
		}
		m.complete = max(m.complete, b.ticks+1)
	}
	m.order = slices.Clone(m.order[len(forget):])
}

// gap says that forks up to nowTicks may be missing. m.mu is held. What was heard of stays: a record is true whatever was lost.
func (m *memory) gap(nowTicks uint64, reason string) {
	m.stats.Gaps++
	m.stats.Reason = reason
	// A child that was born in the running tick may be among the lost.
	m.complete = max(m.complete, nowTicks+1)
}

// lookup is Log.Lookup. The record comes after the child's start time was taken (copy_process, kernel/fork.c: start_boottime is
// set before perf_event_fork and proc_fork_connector), so a birth is the child's own when it is not earlier than its start.
func (m *memory) lookup(pid procfs.HostPID, startTime uint64) lineage.Fork {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ticks := range m.births[pid] {
		if ticks >= startTime {
			return lineage.ForkedByInit
		}
	}
	if startTime < m.complete || m.stats.Ended && startTime >= m.until {
		return lineage.ForkUnknown
	}
	return lineage.ForkedByOther
}

// settle is how many ticks before a log was closed, and after one was opened late, births are not vouched for: a fork takes a
// while from the start time to the record (copy_process, kernel/fork.c).
const settle = 10

// close is the end of a log that was complete up to nowTicks, which were read before it was brought up to date for the last
// time. m.mu is held.
func (m *memory) close(nowTicks uint64) {
	if m.stats.Ended {
		return
	}
	m.end(max(nowTicks, settle)-settle, "closed")
}

// end says that nothing is heard any more, and that all was heard up to goodTicks. m.mu is held.
func (m *memory) end(goodTicks uint64, reason string) {
	m.stats.Ended, m.stats.Reason, m.until = true, reason, goodTicks
}

func (m *memory) snapshot() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stats
	s.Entries = len(m.order)
	return s
}
