package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/shim/api"
)

func table(body string) *runtimeoptions.Options {
	return &runtimeoptions.Options{ConfigBody: []byte(body)}
}

// early is a PID 1 in whose own session five orphans are born that no sweep sees alive: by their sessions and by what was seen
// they could be children of PID 1. Their parent, which PID 1 forked and does not wait for, is the sixth zombie.
func early() []string { return []string{"/bin/pause1", "poll", "--", "/bin/leak", "-n", "5"} }

// TestForkLogProvesEarlyOrphans: with the fork log every orphan is provable, from the first moment on; without one these stay.
func TestForkLogProvesEarlyOrphans(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	for _, tt := range []struct {
		name, options string
		source        string
		own, unproven uint32
	}{
		{"auto", "", "perf", 1, 0},
		{"perf", "forkLog = 'perf'", "perf", 1, 0},
		{"connector", "forkLog = 'connector'", "connector", 1, 0},
		{"off", "forkLog = 'off'", "none", 0, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			events := subscribe(t, d)
			c := run(t, d, harness.Spec{Runtime: runtime, Options: table(tt.options + "\nstatsInterval = '1s'"), Args: early()})
			left := int(tt.own + tt.unproven)
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				zs := zombies(t, c)
				return len(zs) > 0, describe(zs)
			})
			if stays := testutil.StableFor(t, 3*time.Second, 20*time.Second, func() int { return len(zombies(t, c)) }); stays != left {
				t.Errorf("%d zombies stay, want %d", stays, left)
			}
			var last *api.ZombieStats
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				for _, s := range statsOf(events, c) {
					last = s
				}
				return last != nil && last.GetUnproven() == tt.unproven && last.GetOwn() == tt.own && last.GetAdopted() == 0, fmt.Sprint(last)
			})
			if src := last.GetForkLog().GetSource(); src != tt.source {
				t.Errorf("source %q, want %q: %v", src, tt.source, last.GetForkLog())
			}
			if last.GetReapedByTracer() != uint64(6-left) || last.GetContradictions() != 0 {
				t.Errorf("statistics %v, want %d reaped and no contradiction", last, 6-left)
			}
			if tt.source == "none" && last.GetForkLog().GetReason() == "" {
				t.Error("no reason why there is no log")
			}
		})
	}
}

// TestForkLogRefused: a shim that may not listen to the connector says so, in its log once and in the statistics always, and the
// other rules still work.
func TestForkLogRefused(t *testing.T) {
	d := daemon(t)
	reaper(t)
	shim := testutil.Tool(t, "containerd-shim-reaper-v2")
	entry := filepath.Join(t.TempDir(), "containerd-shim-reaper-v2")
	script := fmt.Sprintf("#!/bin/sh\nexec %s --bounding-set=-net_admin %s \"$@\"\n", testutil.Tool(t, "setpriv"), shim)
	if err := os.WriteFile(entry, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	events := subscribe(t, d)
	// With the host's network: runc itself needs the capability to set up another.
	c := run(t, d, harness.Spec{Runtime: entry, Options: table("forkLog = 'connector'\nstatsInterval = '1s'"), Args: early(),
		Extra: []oci.SpecOpts{oci.WithHostNamespace(specs.NetworkNamespace)}})
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		return len(zs) == 6, describe(zs)
	})
	exec(t, c, "/bin/leak", "-n", "20")
	testutil.Eventually(t, 20*time.Second, func() (bool, string) { // the early ones stay, what was executed goes
		zs := zombies(t, c)
		return len(zs) == 6, describe(zs)
	})
	const reason = "no permission"
	final := finalStats(t, events, c)
	if l := final.GetForkLog(); l.GetSource() != "none" || !strings.Contains(l.GetReason(), reason) {
		t.Errorf("fork log %v, want none and why", l)
	}
	if final.GetReapedByTracer() != 20 {
		t.Errorf("statistics %v, want 20 reaped", final)
	}
	for _, s := range statsOf(events, c) {
		if !strings.Contains(s.GetForkLog().GetReason(), reason) {
			t.Errorf("statistics without a reason: %v", s)
		}
	}
	said := 0
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(line, "no log of the forks of PID 1") && strings.Contains(line, "id="+c.ID()) {
			said++
		}
	}
	if said != 1 {
		t.Errorf("in the log %d times, want once", said)
	}
}

// TestLearningGrace: a PID 1 that collects adopted orphans itself, and by their numbers, keeps every status, however late it
// asks, once it has been seen to do so.
func TestLearningGrace(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{Runtime: runtime, Options: table("statsInterval = '1s'"),
		Args: []string{"/bin/supervisor", "0.8", "0.8", "0.8", "4", "6"}})
	testutil.Eventually(t, 30*time.Second, func() (bool, string) {
		out := c.Stdout.String()
		return strings.Contains(out, "PASS") || strings.Contains(out, "FAIL"), out
	})
	if out := c.Stdout.String(); !strings.Contains(out, "PASS") {
		t.Errorf("the supervisor lost a status:\n%s", out)
	}
	final := finalStats(t, events, c)
	if final.GetGraceInForce().AsDuration() != 30*time.Second || final.GetVanished() == 0 || final.GetReapedByTracer() != 0 {
		t.Errorf("statistics %v; want a grace of 30 s in force, orphans that vanished, none reaped", final)
	}
}

// TestReapUnprovenAndOwn: what only the owner of the image can allow, and only then.
func TestReapUnprovenAndOwn(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	ownChild := []string{"/bin/pause1", "poll", "--", "/bin/true"} // forked by PID 1, which never waits
	for _, tt := range []struct {
		name          string
		options       string
		annotations   map[string]string
		args          []string
		made, left    int
		own, unproven uint64
	}{
		{"own children stay by default", "", nil, ownChild, 1, 1, 0, 0},
		{"reapOwn", "reapOwn = '2s'", nil, ownChild, 1, 0, 1, 0},
		{"reapOwn by annotation", "", map[string]string{"io.containerd.reaper.reapOwn": "2s"}, ownChild, 1, 0, 1, 0},
		{"reapUnproven takes no own ones", "reapUnproven = '2s'", nil, ownChild, 1, 1, 0, 0},
		{"unproven stay by default", "forkLog = 'off'", nil, early(), 6, 6, 0, 0},
		{"reapUnproven", "forkLog = 'off'\nreapUnproven = '2s'", nil, early(), 6, 0, 0, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			events := subscribe(t, d)
			c := run(t, d, harness.Spec{Runtime: runtime, Options: table(tt.options), Annotations: tt.annotations, Args: tt.args})
			testutil.Eventually(t, 5*time.Second, func() (bool, string) {
				zs := zombies(t, c)
				return len(zs) == tt.made, describe(zs)
			})
			begin := time.Now()
			if tt.left == 0 {
				testutil.Eventually(t, 6*time.Second, func() (bool, string) {
					zs := zombies(t, c)
					return len(zs) == 0, describe(zs)
				})
				if took := time.Since(begin); took < 1500*time.Millisecond {
					t.Errorf("gone after %v, want not before 2 s", took)
				}
			} else if left := testutil.StableFor(t, 5*time.Second, 20*time.Second, func() int { return len(zombies(t, c)) }); left != tt.left {
				t.Errorf("%d left, want %d", left, tt.left)
			}
			final := finalStats(t, events, c)
			if final.GetReapedOwn() != tt.own || final.GetReapedUnproven() != tt.unproven || final.GetReapedByTracer() != tt.own+tt.unproven {
				t.Errorf("statistics %v; want %d own and %d unproven reaped", final, tt.own, tt.unproven)
			}
		})
	}
}
