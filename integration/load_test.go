package integration

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
)

// TestLoad runs twenty containers at once, each with twenty orphans a second for thirty seconds, under runc.v2 and under
// ours. Ours keeps none longer than the grace period and 2 s, and needs at most 1.3 times the memory.
func TestLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute and a half")
	}
	const (
		containers = 20
		rate       = 20
		seconds    = 30
		every      = 500 * time.Millisecond
		maxAge     = grace + 2*time.Second
	)
	worst := map[bool]int64{} // resident memory by ours
	bothRuntimes(t, func(t *testing.T, d *harness.Daemon, runtime string, ours bool) {
		var cs []*harness.Container
		var shims []harness.Process
		for range containers {
			c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
			shim, err := c.Shim()
			if err != nil {
				t.Fatal(err)
			}
			cs, shims = append(cs, c), append(shims, shim)
		}
		ctx, cancel := context.WithTimeout(t.Context(), (seconds+60)*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for _, c := range cs {
			wg.Go(func() {
				r, err := c.Exec(ctx, "/bin/leak", "-n", fmt.Sprint(rate*seconds), "-r", fmt.Sprint(rate))
				if err != nil || r.Code != 0 {
					t.Errorf("leak in %s: %v, exit code %d: %s", c.ID(), err, r.Code, r.Stderr)
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()

		// A zombie's age counts from the first sample that had it; a number alone may be used again.
		firstSeen := map[harness.Process]time.Time{}
		var oldest time.Duration
		seen, samples, peak := 0, 0, 0
		sample := func() int {
			now := time.Now()
			present := map[harness.Process]bool{}
			for _, c := range cs {
				for _, z := range zombies(t, c) {
					present[z.Process] = true
					if _, known := firstSeen[z.Process]; !known {
						firstSeen[z.Process] = now
						seen++
					}
					oldest = max(oldest, now.Sub(firstSeen[z.Process]))
				}
			}
			for p := range firstSeen {
				if !present[p] {
					delete(firstSeen, p)
				}
			}
			samples++
			peak = max(peak, len(present))
			return len(present)
		}
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for running := true; running; {
			select {
			case <-ticker.C:
				if ours {
					sample() // under runc.v2 it would only be a load of its own
				}
			case <-done:
				running = false
			}
		}
		var sizes []int64
		for i, shim := range shims {
			m, err := harness.MemoryOf(shim.PID)
			if err != nil {
				t.Fatalf("memory of the shim of %s: %v", cs[i].ID(), err)
			}
			sizes = append(sizes, m.RSS)
		}
		worst[ours] = slices.Max(sizes)
		left := sample()
		if !ours {
			t.Logf("%d zombies at the end; resident memory of a shim %d to %d KiB", left, slices.Min(sizes)>>10, slices.Max(sizes)>>10)
			if want := containers * rate * seconds; left != want {
				t.Errorf("%d zombies under runc.v2, want all %d: the load was not what it should be", left, want)
			}
			return
		}
		for end := time.Now().Add(maxAge); time.Now().Before(end) && left > 0; {
			<-ticker.C
			left = sample()
		}
		t.Logf("%d samples saw %d zombies, at most %d at a time, the oldest for %v; resident memory of a shim %d to %d KiB",
			samples, seen, peak, oldest, slices.Min(sizes)>>10, slices.Max(sizes)>>10)
		if oldest > maxAge || left != 0 {
			t.Errorf("the oldest zombie was %v old, %d are left; want at most %v and none", oldest, left, maxAge)
		}
		if seen == 0 {
			t.Error("no sample has seen a zombie: the test proves nothing")
		}
	})
	if limit := worst[false] * 13 / 10; worst[true] > limit {
		t.Errorf("largest shim: %d KiB, with runc.v2 %d KiB: more than 1.3 times that", worst[true]>>10, worst[false]>>10)
	}
}
