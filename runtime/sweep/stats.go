package sweep

import (
	"maps"
	"slices"
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// Stats is what a Sweeper knows after its last sweep. Counters start at 0 with the Sweeper and never go back.
type Stats struct {
	// Zombies below PID 1 at the last sweep, by verdict.
	Own, Adopted, Unproven int
	// Held are zombies whose living parent is not PID 1; Holders names up to maxHolders such parents.
	Held    int
	Holders []Holder
	// Oldest is how long ago the oldest zombie below PID 1 was first seen.
	Oldest time.Duration

	// Rules counts these zombies by the rules that gave them their verdict.
	Rules map[lineage.Rules]int

	Reaped   uint64 // zombies that PID 1 was made to reap
	Vanished uint64 // adopted zombies that PID 1 reaped itself
	// ReapTimes are those of Reaped.
	ReapTimes ReapTimes
	// ReapedUnproven and ReapedOwn are the part of Reaped that no rule had proven to be orphans, or that PID 1 had forked.
	ReapedUnproven, ReapedOwn uint64
	// LogDecided are the zombies, reaped or not, that nothing but the fork log gave a verdict of its own: adopted, or not adopted
	// as another rule says.
	LogDecided uint64
	// Companions are the living processes in the session of PID 1 besides it, as of the last walk through the containers.
	Companions int
	// Grace is the grace period in force: that of the configuration, or a longer one that was learned.
	Grace    time.Duration
	Threads  int    // of PID 1
	Attaches uint64 // times that PID 1 was stopped for it
	// LongestStop is the longest time that PID 1 was stopped in one attach.
	LongestStop    time.Duration
	Contradictions uint64                   // zombies on which two rules said opposite things
	Refusals       map[tracer.Reason]uint64 // by reason, whole requests and single zombies alike

	PIDsCurrent int64 // pids.current, the sum over the containers of the namespace; 0 when unknown
	PIDsMax     int64 // pids.max of a container that has the namespace for itself; 0 when unknown or without limit
	Sweeps      uint64
}

// Clone returns a copy that shares nothing with s.
func (s Stats) Clone() Stats {
	s.Refusals = maps.Clone(s.Refusals)
	s.Rules = maps.Clone(s.Rules)
	s.Holders = slices.Clone(s.Holders)
	return s
}

// Holder is a living process, not PID 1, that has zombie children.
type Holder struct {
	PID     procfs.HostPID
	Comm    string // as the process calls itself
	Zombies int
}

const maxHolders = 5

// Orphan is an adopted process that was reaped.
type Orphan struct {
	PID       procfs.HostPID
	NSPID     procfs.NSPID // its number for PID 1
	Comm      string       // as the process called itself
	Status    int          // wait(2) status
	FirstSeen time.Time    // as a zombie; it died at most one sweep earlier
	Unnamed   bool         // Comm and Status were not read: nobody would be told of it (Config.Tell)
	Cgroup    string       // see ContainerPath; "" while no other container shares the namespace (SetShared)
}

// Result is the outcome of one sweep.
type Result struct {
	Reaped  []Orphan
	Zombies int // below PID 1 now
	// Alone: this look has found no child of PID 1, living or dead.
	Alone bool
	// More: there is more to be done at once. This sweep has ended at one of its limits, and not in vain.
	More bool
	// Looking is how long it took to read and judge, in which nobody was stopped; what is read beside attaches is not counted.
	Looking time.Duration
	// NextDue is when the grace period of the next candidate ends; zero when there is none.
	NextDue time.Time
	// Declined says why the Reaper declined a whole request; its zero value: it did not.
	Declined Declined
	// UndidStop: PID 1 was stopped right at the end of an attach, and that was undone ([tracer.Report]).
	UndidStop bool
	// Changed: a counter or a number of zombies differs from the sweep before.
	Changed bool
}

// Declined is a request that the Reaper did not carry out, or not to its end.
type Declined struct {
	Reason tracer.Reason
	Detail string // for people
}
