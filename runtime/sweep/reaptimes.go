package sweep

import (
	"slices"
	"time"
)

// reapBounds are the upper bounds of ReapTimes. The first ones tell what lies around the default grace period of a second apart.
var reapBounds = [...]time.Duration{
	500 * time.Millisecond, time.Second, 1250 * time.Millisecond, 1500 * time.Millisecond, 2 * time.Second, 3 * time.Second, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute,
}

// ReapTimes is a histogram of how long zombies were seen before PID 1 was made to reap them. The time before the first sight is not in
// it: it is at most that between two sweeps.
type ReapTimes struct {
	// Counts has an entry for each of Bounds and one more for what is above the last. None includes another.
	Counts [len(reapBounds) + 1]uint64
	Sum    time.Duration
}

// Bounds are the upper bounds of Counts, included and ascending.
func (ReapTimes) Bounds() []time.Duration { return slices.Clone(reapBounds[:]) }

// Add takes in one zombie.
func (r *ReapTimes) Add(d time.Duration) {
	i, _ := slices.BinarySearch(reapBounds[:], d)
	r.Counts[i]++
	r.Sum += d
}
