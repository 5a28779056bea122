package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestZombies makes orphans in every way that the field reports, below a PID 1 that never waits. The same under runc.v2
// has to leave them, or the test would prove nothing.
func TestZombies(t *testing.T) {
	ways := []struct {
		name  string
		args  []string
		count int
		life  time.Duration
	}{
		// kubectl exec, exec probes: the orphans are in the session that the exec began.
		{name: "exec leaves children", args: []string{"/bin/leak", "-n", "5"}, count: 5},
		{name: "shell in the background", args: []string{"/bin/sh", "-c", "(true & true & true &) ; sleep 0.2"}, count: 3},
		{name: "double-forked daemons", args: []string{"/bin/leak", "-n", "5", "-s"}, count: 5},
		// Longer than the shim's slowest sweep of a container with something in it.
		{name: "orphans that lived on", args: []string{"/bin/leak", "-n", "5", "-l", "3000"}, count: 5, life: 3 * time.Second},
		{name: "killed by a signal", args: []string{"/bin/leak", "-n", "5", "-k", "9"}, count: 5},
	}
	bothRuntimes(t, func(t *testing.T, d *harness.Daemon, runtime string, ours bool) {
		for _, way := range ways {
			t.Run(way.name, func(t *testing.T) {
				c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
				var before harness.Identity
				testutil.Eventually(t, 5*time.Second, func() (bool, string) { // until runc init has become the entrypoint
					var err error
					before, err = harness.IdentityOf(c.PID)
					return err == nil && before.Exe == "/bin/pause1", fmt.Sprintf("%+v, %v", before, err)
				})
				exec(t, c, way.args...)
				gone(t, c, way.count, way.life, ours)
				after, err := harness.IdentityOf(c.PID)
				if err != nil {
					t.Fatal(err)
				}
				if before != after {
					t.Errorf("PID 1 was %+v and is %+v", before, after)
				}
				if after.NSPID != 1 {
					t.Errorf("init has number %d in its PID namespace, want 1", after.NSPID)
				}
			})
		}
	})
}

// gone checks that count zombies of c appear and, under our shim, are gone within grace + 1 s of their death, while under
// runc.v2 they are all still there.
func gone(t *testing.T, c *harness.Container, count int, life time.Duration, ours bool) {
	t.Helper()
	if !ours {
		testutil.Eventually(t, life+5*time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) >= count, describe(zs)
		})
	}
	if ours {
		// All have ended life after the exec that forked them.
		testutil.Eventually(t, life+grace+time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == 0 && len(children(t, c)) == 0, fmt.Sprintf("%s, children %v", describe(zs), children(t, c))
		})
		return
	}
	left := testutil.StableFor(t, grace+time.Second, 20*time.Second, func() int { return len(zombies(t, c)) })
	if left != count {
		t.Errorf("runc.v2 has %d zombies, want all %d: this test would not notice a reaper that does nothing", left, count)
	}
}

// children lists the living children of init.
func children(t *testing.T, c *harness.Container) []int {
	t.Helper()
	pids, err := c.Task.Pids(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, p := range pids {
		if int(p.Pid) != c.PID {
			out = append(out, int(p.Pid))
		}
	}
	return out
}

// TestZombiesOfOwnSession has the orphans in PID 1's session, where only having been seen below another parent proves that
// they were adopted (rule L).
func TestZombiesOfOwnSession(t *testing.T) {
	bothRuntimes(t, func(t *testing.T, d *harness.Daemon, runtime string, ours bool) {
		// The helper is a child of PID 1 and goes on living; each orphan lives through several sweeps.
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{
			"/bin/pause1", "poll", "--", "/bin/leak", "-n", "2", "-p", "6000", "-w", "100000",
		}})
		testutil.Eventually(t, 40*time.Second, func() (bool, string) {
			n := len(children(t, c))
			zs := zombies(t, c)
			if ours {
				return n == 1 && len(zs) == 0, fmt.Sprintf("%d living processes beside init, %s", n, describe(zs))
			}
			return n == 1 && len(zs) == 2, fmt.Sprintf("%d living processes beside init, %s", n, describe(zs))
		})
	})
}

// TestModes checks that only assist reaps.
func TestModes(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	for _, mode := range []string{"observe", "off"} {
		t.Run(mode, func(t *testing.T) {
			c := run(t, d, harness.Spec{
				Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
				Annotations: map[string]string{"io.containerd.reaper.mode": mode},
			})
			exec(t, c, "/bin/leak", "-n", "5")
			left := testutil.StableFor(t, grace+2*time.Second, 20*time.Second, func() int { return len(zombies(t, c)) })
			if left != 5 {
				t.Errorf("mode %s: %d zombies left, want all 5", mode, left)
			}
		})
	}
	t.Run("grace", func(t *testing.T) {
		c := run(t, d, harness.Spec{
			Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
			Annotations: map[string]string{"io.containerd.reaper.grace": "6s"},
		})
		exec(t, c, "/bin/leak", "-n", "5")
		begin := time.Now()
		testutil.Eventually(t, 8*time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == 0, describe(zs)
		})
		if took := time.Since(begin); took < 4*time.Second {
			t.Errorf("zombies gone after %v, want not before the grace period of 6s", took)
		}
	})
}

// TestSaturated: a PID 1 that always has something to do, and so is never parked, is made to reap between two of its calls.
func TestSaturated(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{Runtime: reaper(t), Args: []string{"/bin/pause1", "work"}})
	exec(t, c, "/bin/leak", "-n", "20")
	testutil.Eventually(t, grace+4*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		return len(zs) == 0, describe(zs)
	})
	if final := finalStats(t, events, c); final.GetReapedByTracer() != 20 {
		t.Errorf("%d reaped, want 20: %v", final.GetReapedByTracer(), final)
	}
}
