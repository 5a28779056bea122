package sweep

import "time"

// Cadence decides how long to wait for the next sweep. Its limits follow from the promise that a proven orphan is gone
// within the grace period and one second. A zombie is seen one interval late at most, and acted on gatherFor late: that only where others
// are reaped, and then the interval is Near.
type Cadence struct {
	// Near is the interval while there are zombies; Far the longest interval without.
	Near, Far time.Duration
	// Alone is the longest interval while PID 1 has no child at all: whoever could leave an orphan has to be born first. 0: Far.
	Alone time.Duration

	current time.Duration
}

// Default intervals. Nothing in the kernel wakes a stranger when a process is orphaned or dies, so Far bounds how late an
// orphan is noticed that no exec left behind.
const (
	DefaultNear = 350 * time.Millisecond
	DefaultFar  = 500 * time.Millisecond
	// DefaultAlone is Alone for most containers most of the time: what a look costs them is mostly the waking up.
	DefaultAlone = 800 * time.Millisecond

	minimum = 20 * time.Millisecond
	// lookShare is the part of one CPU, as 1/n, that sweeps may take that find nothing to do; dueShare while zombies are waited
	// for.
	lookShare = 10
	dueShare  = 3
)

// Next returns the time to wait after a sweep with this result.
func (c *Cadence) Next(r Result, now time.Time) time.Duration {
	if r.More {
		c.current = c.Near
		return 0
	}
	share := time.Duration(lookShare)
	wait := c.next(r)
	// Not later than the moment at which a candidate is due, but not at once either: more than one may fall due. The time until then is
	// divided into equal parts, so that a look finds what is due and what is new together: what is found by one look falls due at the
	// same instant.
	if r.Zombies > 0 && !r.NextDue.IsZero() {
		share = dueShare
		left := max(r.NextDue.Sub(now), minimum)
		wait = left / ((left + wait - 1) / wait)
	}
	return max(wait, (share-1)*r.Looking)
}

func (c *Cadence) next(r Result) time.Duration {
	switch {
	case r.Zombies > 0, c.current == 0:
		c.current = c.Near
	case r.Alone && c.Alone > 0:
		c.current = min(2*c.current, c.Alone)
	default:
		c.current = min(2*c.current, c.Far)
	}
	return c.current
}

// Reset makes the next interval a near one: something happened that may leave zombies.
func (c *Cadence) Reset() { c.current = 0 }
