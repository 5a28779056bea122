package sweep

import "github.com/reaper-shim/reaper/runtime/tracer"

// SetLimits makes the bounds of a sweeper small, so that a test need not make 100,000 zombies to get to them.
func (s *Sweeper) SetLimits(look, tracked, useless, verify int) {
	s.limits = limits{look: look, tracked: tracked, useless: useless, verify: verify}
}

// Tracked returns how many zombies are remembered.
func (s *Sweeper) Tracked() int { return len(s.zombies) }

// InFlight returns how many requests are under way.
func (s *Sweeper) InFlight() int { return len(s.flights) }

// Beside says whether a look goes on beside attaches.
func (s *Sweeper) Beside() bool { return s.beside != nil }

// LookedBeside is closed at the end of the look that goes on beside attaches.
func (s *Sweeper) LookedBeside() <-chan struct{} { return s.beside.done }

// MaxStop is the stop budget of a request, MaxBatch its largest batch, QuickFirst the first wait after a transient refusal,
// GatherFor that after an attach, LookBeside the interval of looks while there is plenty to be done, MaxReap how long a sweep
// goes on with its requests, WorthAsking of how many zombies PID 1 may be asked.
const (
	MaxStop     = maxStop
	MaxBatch    = tracer.MaxBatch
	QuickFirst  = quickFirst
	LookBeside  = lookBeside
	GatherFor   = gatherFor
	MaxReap     = maxReap
	WorthAsking = worthAsking
)
