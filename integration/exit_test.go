package integration

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// TestExitUnderAttaches: while PID 1 is being made to reap one zombie after the other, the end of a container reaches containerd as
// soon as it does under runc.v2, or within 100 ms.
func TestExitUnderAttaches(t *testing.T) {
	const (
		rounds = 9
		bound  = 100 * time.Millisecond
	)
	d := daemon(t)
	events := subscribe(t, d)
	took := map[bool][]time.Duration{} // by ours
	for round := range 2 * rounds {
		ours := round%2 == 1
		spec := harness.Spec{Runtime: harness.RuncRuntime, Args: []string{"/bin/pause1", "poll"}}
		if ours {
			spec.Runtime = reaper(t)
			spec.Annotations = map[string]string{"io.containerd.reaper.grace": "100ms"}
		}
		c := run(t, d, spec)
		leak, err := c.StartExec(t.Context(), "/bin/leak", "-n", "100000", "-r", "200")
		if err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			n := backlog(t, c)
			return n > 20 && (!ours || len(events.OrphanExits(c.ID())) > 0), fmt.Sprintf("%d children", n)
		})
		if ours {
			underTracer(t, c)
		}
		began := time.Now()
		if err := syscall.Kill(c.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var exits []*apievents.TaskExit
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			exits = events.ExitsOf(c.ID(), c.ID())
			return len(exits) > 0, "no exit"
		})
		took[ours] = append(took[ours], time.Since(began))
		if status := exits[len(exits)-1].GetExitStatus(); status != 128+uint32(syscall.SIGKILL) {
			t.Errorf("exit status %d, want 137", status)
		}
		if _, err := leak.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range took {
		slices.Sort(s)
	}
	t.Logf("until the event came: runc.v2 %v, ours %v", took[false], took[true])
	if got, limit := took[true][rounds/2], max(bound, took[false][rounds/2]); got > limit {
		t.Errorf("half of them took %v or more, want %v at most", got, limit)
	}
	// All but the longest: the machine has other things to do now and then.
	if got, limit := took[true][rounds-2], took[false][rounds-2]+bound; got > limit {
		t.Errorf("one took %v, want %v at most", got, limit)
	}
}

// underTracer waits for a moment at which PID 1 is being traced.
func underTracer(t *testing.T, c *harness.Container) {
	t.Helper()
	proc := procfs.New(os.DirFS("/proc"))
	for end := time.Now().Add(testutil.Slow(20 * time.Second)); time.Now().Before(end); {
		if st, err := proc.Status(procfs.HostPID(c.PID)); err != nil {
			t.Fatal(err)
		} else if st.TracerPid != 0 {
			return
		}
	}
	t.Fatalf("container %s: PID 1 was never traced", c.ID())
}
