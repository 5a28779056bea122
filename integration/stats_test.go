package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/shim/api"
)

// statsOf returns all statistics of a container that its shim has published, in their order.
func statsOf(events *harness.Events, c *harness.Container) []*api.ZombieStats {
	return harness.Payloads(events, func(s *api.ZombieStats) bool { return s.GetContainerId() == c.ID() })
}

// finalStats deletes a container and returns the last statistics that its shim publishes.
func finalStats(t *testing.T, events *harness.Events, c *harness.Container) *api.ZombieStats {
	t.Helper()
	id := c.ID()
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	var final []*api.ZombieStats
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		final = harness.Payloads(events, func(s *api.ZombieStats) bool { return s.GetContainerId() == id && s.GetFinal() })
		return len(final) > 0, "no final statistics"
	})
	if len(final) != 1 {
		t.Errorf("%d final statistics, want one", len(final))
	}
	return final[0]
}

// TestOrphanEvents: each reaped orphan has a TaskExit with its real status and its numbers on both sides, and none has the ID
// of the container or of an exec.
func TestOrphanEvents(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})

	want := map[string]uint32{} // exit status by ID
	var execs []string
	onHost := map[string]uint32{} // number on the host by ID
	for _, leak := range []struct {
		args   []string
		status uint32
	}{
		{[]string{"-e", "0"}, 0}, {[]string{"-e", "7"}, 7}, {[]string{"-e", "255"}, 255},
		{[]string{"-k", "9"}, 137}, {[]string{"-k", "15"}, 143}, {[]string{"-k", "11"}, 139}, {[]string{"-s", "-e", "3"}, 3},
	} {
		res := exec(t, c, append([]string{"/bin/leak", "-v", "-n", "3"}, leak.args...)...)
		execs = append(execs, res.ID)
		pids := orphans(res.Stdout)
		if len(pids) != 3 {
			t.Fatalf("leak printed %q, want three orphans", res.Stdout)
		}
		// They stay for the grace period: time enough to learn their numbers on the host.
		testutil.Eventually(t, grace/2, func() (bool, string) {
			zs := zombies(t, c)
			for _, z := range zs {
				onHost[fmt.Sprintf("orphan-%d", z.NSPID)] = uint32(z.PID)
			}
			missing := slices.ContainsFunc(pids, func(pid int) bool { return onHost[fmt.Sprintf("orphan-%d", pid)] == 0 })
			return !missing, describe(zs)
		})
		for _, pid := range pids {
			want[fmt.Sprintf("orphan-%d", pid)] = leak.status
		}
	}
	var got []*apievents.TaskExit
	testutil.Eventually(t, grace+3*time.Second, func() (bool, string) {
		got = events.OrphanExits(c.ID())
		return len(got) >= len(want), fmt.Sprintf("%d of %d orphan exits", len(got), len(want))
	})
	seen := map[string]bool{}
	for _, e := range got {
		status, ok := want[e.GetID()]
		if !ok || seen[e.GetID()] {
			t.Errorf("exit of %s: unexpected, or a second one", e.GetID())
			continue
		}
		seen[e.GetID()] = true
		if e.GetExitStatus() != status {
			t.Errorf("%s: exit status %d, want %d", e.GetID(), e.GetExitStatus(), status)
		}
		if age := time.Since(e.GetExitedAt().AsTime()); age < 0 || age > time.Minute {
			t.Errorf("%s: exited %v ago", e.GetID(), age)
		}
		if e.GetPid() != onHost[e.GetID()] {
			t.Errorf("%s: number %d on the host, want %d", e.GetID(), e.GetPid(), onHost[e.GetID()])
		}
	}

	final := finalStats(t, events, c)
	if final.GetReapedByTracer() != uint64(len(want)) || final.GetAttaches() == 0 || final.GetContradictions() != 0 ||
		final.GetOrphanEventsDropped() != 0 || final.GetMode() != "assist" || final.GetEffectiveMode() != "assist" {
		t.Errorf("final statistics %v; want %d reaped by the tracer", final, len(want))
	}
	for _, id := range execs {
		if n := len(events.ExitsOf(c.ID(), id)); n != 1 {
			t.Errorf("%d exits carry the ID of exec %s, want one", n, id)
		}
	}
	inits := events.ExitsOf(c.ID(), c.ID())
	if len(inits) != 1 {
		t.Errorf("%d exits carry the ID of the container, want one", len(inits))
	}
}

// TestRateLimit: what is left out is counted.
func TestRateLimit(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	const burst, made = 200, 500
	c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
	exec(t, c, "/bin/leak", "-n", fmt.Sprint(made))
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		return len(zs) == 0, describe(zs)
	})
	final := finalStats(t, events, c)
	sent := len(events.OrphanExits(c.ID()))
	if dropped := int(final.GetOrphanEventsDropped()); dropped == 0 || sent+dropped != made || sent < burst {
		t.Errorf("%d exits sent and %d left out of %d, want at least %d and the rest", sent, dropped, made, burst)
	}
}

// TestModesInStatistics: what is asked for, what is in force, and what is seen.
func TestModesInStatistics(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
		Annotations: map[string]string{"io.containerd.reaper.mode": "observe"}})
	exec(t, c, "/bin/leak", "-n", "4")
	testutil.Eventually(t, 15*time.Second, func() (bool, string) {
		stats := statsOf(events, c)
		if len(stats) == 0 {
			return false, "no statistics yet"
		}
		last := stats[len(stats)-1]
		return last.GetAdopted() == 4 && last.GetPidsCurrent() == 5, fmt.Sprint(last)
	})
	if final := finalStats(t, events, c); final.GetAttaches() != 0 || final.GetReapedByTracer() != 0 || final.GetEffectiveMode() != "observe" {
		t.Errorf("observe: final statistics %v", final)
	}
}

// TestWithoutTracer: the task starts, its zombies are observed, and log and statistics say why.
func TestWithoutTracer(t *testing.T) {
	d := daemon(t)
	reaper(t)
	events := subscribe(t, d)

	// A shim with no tracer beside it, nor on the PATH that it is started with.
	dir := t.TempDir()
	alone := filepath.Join(dir, "alone", "containerd-shim-reaper-v2")
	if err := os.Mkdir(filepath.Dir(alone), 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(testutil.Tool(t, "containerd-shim-reaper-v2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(alone, data, 0o755); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nPATH=%s:/usr/sbin:/usr/bin:/sbin:/bin exec %s \"$@\"\n", filepath.Dir(testutil.Tool(t, "runc")), alone)
	entry := filepath.Join(dir, "containerd-shim-reaper-v2")
	if err := os.WriteFile(entry, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}

	c := run(t, d, harness.Spec{Runtime: entry, Args: []string{"/bin/pause1", "poll"}})
	exec(t, c, "/bin/leak", "-n", "2")
	if left := testutil.StableFor(t, grace+time.Second, 20*time.Second, func() int { return len(zombies(t, c)) }); left != 2 {
		t.Errorf("%d zombies, want both: there is no tracer", left)
	}
	final := finalStats(t, events, c)
	if final.GetMode() != "assist" || final.GetEffectiveMode() != "observe" || !strings.Contains(final.GetEffectiveModeReason(), "reaper-tracer") {
		t.Errorf("final statistics %v; want assist asked for, observe in force, and reaper-tracer in the reason", final)
	}
	if !strings.Contains(d.Log(), "no tracer: zombies will be observed and not reaped") {
		t.Error("the log does not say that there is no tracer")
	}
}

// TestTracerKilled: the next sweep starts a new one.
func TestTracerKilled(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
	shim, err := c.Shim()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		exec(t, c, "/bin/leak", "-n", "2")
		testutil.Eventually(t, grace+3*time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == 0, fmt.Sprintf("round %d: %s", round, describe(zs))
		})
		victims := harness.Children(shim.PID, "reaper-tracer")
		if len(victims) != 1 {
			t.Fatalf("the shim has tracers %v right after a reap, want one", victims)
		}
		if err := syscall.Kill(victims[0].PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 5*time.Second, func() (bool, string) { return !victims[0].Alive(), "the killed tracer is still there" })
	}
}

// TestTracerEndsByItself: an idle node runs no tracers.
func TestTracerEndsByItself(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
	shim, err := c.Shim()
	if err != nil {
		t.Fatal(err)
	}
	exec(t, c, "/bin/leak", "-n", "2")
	testutil.Eventually(t, grace+3*time.Second, func() (bool, string) {
		return len(harness.Children(shim.PID, "reaper-tracer")) == 1, "no tracer was started"
	})
	testutil.Eventually(t, 30*time.Second, func() (bool, string) {
		left := harness.Children(shim.PID, "reaper-tracer")
		return len(left) == 0, fmt.Sprint(left)
	})
}
