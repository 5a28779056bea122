package lineage

import (
	"container/list"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// MinTicks is how old, in clock ticks, a process must be when it is seen for the sighting to identify it. A start time
// has a resolution of one tick (10 ms), and a PID can be used again within it (clone3(2) with set_tid, or a small
// kernel.pid_max): (pid, start time) is then shared by two processes. A process that is seen two ticks after its start
// cannot share its pair: whoever gets the PID afterwards starts later than the sighting.
const MinTicks = 2

type process struct {
	pid       procfs.HostPID
	startTime uint64
}

type sighting struct {
	process
	parent procfs.HostPID
}

// Sightings remembers under which parent processes were seen, for rule L. It holds at most a fixed number of processes
// and forgets the one that was seen longest ago first; forgetting costs a proof, never a wrong one. It is not safe for
// concurrent use.
type Sightings struct {
	max   int
	byID  map[process]*list.Element // of *sighting
	order *list.List                // most recently seen first
}

// NewSightings returns an empty memory for at most limit processes.
func NewSightings(limit int) *Sightings {
	return &Sightings{max: limit, byID: make(map[process]*list.Element), order: list.New()}
}

// Saw records that a living process with this stat was seen while the clock stood at nowTicks (CLOCK_BOOTTIME in clock
// ticks, read before the stat was). It ignores what identifies nobody or proves nothing, and reports whether the process
// is now remembered under a parent other than init.
func (s *Sightings) Saw(st procfs.Stat, nowTicks uint64, init procfs.HostPID) bool {
	if st.PPID <= 0 || st.PPID == init || st.Vanishing() || nowTicks < st.StartTime+MinTicks {
		return false
	}
	id := process{st.PID, st.StartTime}
	if e, ok := s.byID[id]; ok {
		s.order.MoveToFront(e)
		return true
	}
	if s.order.Len() >= s.max {
		oldest := s.order.Back()
		delete(s.byID, oldest.Value.(*sighting).process)
		s.order.Remove(oldest)
	}
	s.byID[id] = s.order.PushFront(&sighting{process: id, parent: st.PPID})
	return true
}

// Parent returns the parent under which the process was first seen, 0 when it never was.
func (s *Sightings) Parent(pid procfs.HostPID, startTime uint64) procfs.HostPID {
	if e, ok := s.byID[process{pid, startTime}]; ok {
		return e.Value.(*sighting).parent
	}
	return 0
}

// Forget drops a process that has been released by the kernel.
func (s *Sightings) Forget(pid procfs.HostPID, startTime uint64) {
	id := process{pid, startTime}
	if e, ok := s.byID[id]; ok {
		delete(s.byID, id)
		s.order.Remove(e)
	}
}

// Len returns the number of processes remembered.
func (s *Sightings) Len() int { return s.order.Len() }
