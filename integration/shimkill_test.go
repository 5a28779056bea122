package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestShimKilled: containerd notices that a shim has died, kills the container and says so; the tracer of ours goes as well.
func TestShimKilled(t *testing.T) {
	d := daemon(t)
	outcome := map[string]string{}
	bothRuntimes(t, func(t *testing.T, d *harness.Daemon, runtime string, ours bool) {
		events := subscribe(t, d)
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
		shim, err := c.Shim()
		if err != nil {
			t.Fatal(err)
		}
		init, err := harness.IdentityOf(c.PID)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, c, "/bin/leak", "-n", "5")
		if ours {
			gone(t, c, 5, 0, ours)
			if len(tracers(d)) == 0 {
				t.Fatal("no tracer right after it was needed: the test proves nothing")
			}
		}
		if err := syscall.Kill(shim.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var exits []*apievents.TaskExit
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			exits = events.ExitsOf(c.ID(), c.ID())
			return len(exits) > 0 && !init.Alive(), fmt.Sprintf("%d exits, init alive: %v", len(exits), init.Alive())
		})
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			return len(tracers(d)) == 0, fmt.Sprintf("tracers left: %v", tracers(d))
		})
		deletes := harness.Payloads(events, func(x *apievents.TaskDelete) bool { return x.ContainerID == c.ID() })
		_, err = c.Task.Delete(t.Context(), client.WithProcessKill)
		outcome[runtime] = fmt.Sprintf("%d exits, status %d, pid right: %v, %d deletes, then delete: %v",
			len(exits), exits[0].ExitStatus, int(exits[0].Pid) == c.PID, len(deletes), err == nil)
		t.Log(outcome[runtime], err)
	})
	if a, b := outcome[harness.RuncRuntime], outcome[reaper(t)]; a != b {
		t.Errorf("runc.v2: %s\nours:    %s", a, b)
	}
	if len(d.Mounts()) != 0 {
		t.Errorf("mounts left: %v", d.Mounts())
	}
}
