package sweep_test

import (
	"testing"
	"time"

	"github.com/reaper-shim/reaper/runtime/sweep"
)

// A bound belongs to the bucket that it closes, as in Prometheus' histograms.
func TestReapTimes(t *testing.T) {
	var r sweep.ReapTimes
	bounds := r.Bounds()
	var sum time.Duration
	for i, b := range bounds {
		for range i + 1 {
			r.Add(b)
			sum += b
		}
	}
	last := bounds[len(bounds)-1]
	r.Add(last + 1)
	sum += last + 1
	for i := range bounds {
		if r.Counts[i] != uint64(i+1) {
			t.Errorf("up to %v: %d, want %d", bounds[i], r.Counts[i], i+1)
		}
	}
	if n := r.Counts[len(bounds)]; n != 1 || r.Sum != sum {
		t.Errorf("above %v: %d, want 1; sum %v, want %v", last, n, r.Sum, sum)
	}
}
