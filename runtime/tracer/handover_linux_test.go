package tracer

import (
	"testing"
	"time"
)

// TestHandover: a worker that is on PID 1's CPU sleeps for its stops, one that is not asks for them, and one that hardly gets a CPU
// does not waste it by asking.
func TestHandover(t *testing.T) {
	const slow, quick = 2 * spinFor, spinFor / 4
	// stops plays so many stops of a thread that is seen while we ask, or not, and takes so long while we sleep, and returns for how many
	// of them it was asked in vain.
	stops := func(h *handover, n int, elsewhere bool, asleep time.Duration) (missed int) {
		for range n {
			switch {
			case h.sleep:
				h.came(true, asleep)
			case elsewhere:
				h.came(false, quick)
			default:
				h.missed()
				missed++
			}
		}
		return missed
	}
	var h handover
	if missed := stops(&h, 1000, true, slow); h.sleep || missed != 0 {
		t.Errorf("on another CPU: asleep %v, %d missed", h.sleep, missed)
	}
	if missed := stops(&h, 1000, false, quick); !h.sleep || missed != 1 {
		t.Errorf("on the same CPU: asleep %v, %d missed, want 1", h.sleep, missed)
	}
	if missed := stops(&h, 3, true, slow); h.sleep || missed != 0 {
		t.Errorf("moved to another CPU: asleep %v after 3 stops, %d missed", h.sleep, missed)
	}
	if missed := stops(&h, 1000, false, slow); missed > 1000/maxPatience+8 {
		t.Errorf("on a CPU that others have: %d of 1000 missed", missed)
	}
	stops(&h, maxPatience+1, true, slow)
	h.came(false, quick)
	if h.came(false, 0); h.sleep || h.patience != 0 {
		t.Errorf("back on another CPU: asleep %v, patience %d", h.sleep, h.patience)
	}
}
