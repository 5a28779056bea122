package integration

import (
	"sync"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestGoodInitIsLeftAlone: a PID 1 that reaps is never stopped, whatever it adopts. A PID 1 that does not has to be, in the
// same run.
func TestGoodInitIsLeftAlone(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	for _, init := range []struct {
		args    []string
		stopped bool
	}{
		{args: []string{"/bin/goodinit"}},
		// busybox's shell as PID 1 reaps whatever it is given while it waits for its own child.
		{args: []string{"/bin/sh", "-c", "sleep 1000; true"}},
		{args: []string{"/bin/pause1", "poll"}, stopped: true},
	} {
		t.Run(init.args[0], func(t *testing.T) {
			c := run(t, d, harness.Spec{Runtime: runtime, Args: init.args})
			exec(t, c, "/bin/leak", "-n", "100", "-r", "25")
			testutil.Eventually(t, grace+2*time.Second, func() (bool, string) {
				zs := zombies(t, c)
				return len(zs) == 0, describe(zs)
			})
			if s := finalStats(t, events, c); (s.GetAttaches() != 0) != init.stopped {
				t.Errorf("PID 1 was stopped %d times, want some: %v", s.GetAttaches(), init.stopped)
			}
		})
	}
}

// TestGrouping: containers of one sandbox share a shim, as under runc.v2, and each is looked after for itself.
func TestGrouping(t *testing.T) {
	bothRuntimes(t, func(t *testing.T, d *harness.Daemon, runtime string, ours bool) {
		start := func(sandbox string) (*harness.Container, harness.Process) {
			c := run(t, d, harness.Spec{
				Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
				Annotations: map[string]string{harness.SandboxAnnotation: sandbox},
			})
			shim, err := c.Shim()
			if err != nil {
				t.Fatal(err)
			}
			return c, shim
		}
		// The name of a sandbox is that of its shim, and unique among the containers of the namespace.
		first, shim := start("grouping-" + runtime)
		second, shim2 := start("grouping-" + runtime)
		other, shim3 := start("grouping-other-" + runtime)
		if shim != shim2 || shim == shim3 {
			t.Fatalf("shims %v and %v of one sandbox, %v of another: want the first two the same and the third not", shim, shim2, shim3)
		}
		var wg sync.WaitGroup
		for _, c := range []*harness.Container{first, second, other} {
			wg.Go(func() {
				if _, err := c.Exec(t.Context(), "/bin/leak", "-n", "5"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, c := range []*harness.Container{first, second, other} {
			gone(t, c, 5, 0, ours)
		}
		// The shim stays with the second when the first goes, and ends with the last.
		if err := first.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		exec(t, second, "/bin/leak", "-n", "5")
		if !ours {
			gone(t, second, 10, 0, ours)
		} else {
			gone(t, second, 5, 0, ours)
		}
		if err := second.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) { return !shim.Alive(), "the shim outlives its last container" })
		if !shim3.Alive() {
			t.Error("the shim of the other sandbox has ended as well")
		}
	})
}
