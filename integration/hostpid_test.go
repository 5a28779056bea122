package integration

import (
	"fmt"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

func hostPID(runtime string, annotations map[string]string) harness.Spec {
	return harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}, Annotations: annotations,
		Extra: []oci.SpecOpts{oci.WithHostNamespace(specs.PIDNamespace)}}
}

// TestHostPIDOrphans: orphans of a task in the host's PID namespace come to the shim, which reaps them at once and says whose
// they were and how they ended.
func TestHostPIDOrphans(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	// Two in one shim: an orphan has to be told of the right one.
	group := map[string]string{harness.SandboxAnnotation: "hostpid-" + t.Name()}
	one := run(t, d, hostPID(runtime, group))
	two := run(t, d, hostPID(runtime, group))
	shim, err := one.Shim()
	if err != nil {
		t.Fatal(err)
	}

	want := map[string]map[string]uint32{one.ID(): {}, two.ID(): {}}
	for i, c := range []*harness.Container{one, two, one, two} {
		res := exec(t, c, "/bin/leak", "-v", "-n", "5", "-e", fmt.Sprint(10+i), "-l", fmt.Sprint(100*(i/2)))
		for _, pid := range orphans(res.Stdout) {
			want[c.ID()][fmt.Sprintf("orphan-%d", pid)] = uint32(10 + i)
		}
	}
	for _, c := range []*harness.Container{one, two} {
		if len(want[c.ID()]) != 10 {
			t.Fatalf("%s made orphans %v, want ten", c.ID(), want[c.ID()])
		}
		var got []*apievents.TaskExit
		testutil.Eventually(t, 5*time.Second, func() (bool, string) {
			got = events.OrphanExits(c.ID())
			return len(got) >= 10, fmt.Sprintf("%d orphan exits of %s", len(got), c.ID())
		})
		for _, e := range got {
			status, ok := want[c.ID()][e.GetID()]
			if !ok || status != e.GetExitStatus() || e.GetID() != fmt.Sprintf("orphan-%d", e.GetPid()) {
				t.Errorf("%s: exit %v; want status %d (known %v)", c.ID(), e, status, ok)
			}
		}
	}
	zs, err := harness.Zombies(shim.PID)
	if err != nil || len(zs) != 0 {
		t.Errorf("the shim has %s, %v", describe(zs), err)
	}
	if final := finalStats(t, events, two); final.GetReapedByShim() != 10 || final.GetReapedByTracer() != 0 {
		t.Errorf("final statistics %v, want ten reaped by the shim", final)
	}
}

// TestHostPIDExecsUnderAFlood: a flood of orphans neither delays nor loses the exits of execs, and no exit of an exec is taken for
// an orphan's.
func TestHostPIDExecsUnderAFlood(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	c := run(t, d, hostPID(runtime, nil))
	flood, err := c.StartExec(t.Context(), "/bin/leak", "-n", "3000", "-r", "300")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		begin := time.Now()
		if res, err := c.Exec(t.Context(), "/bin/sh", "-c", fmt.Sprintf("exit %d", i)); err != nil || int(res.Code) != i {
			t.Errorf("exec %d: exit code %d, %v", i, res.Code, err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("exec %d took %v", i, took)
		}
	}
	if res, err := flood.Finish(t.Context()); err != nil || res.Code != 0 {
		t.Errorf("flood: %+v, %v", res, err)
	}
	final := finalStats(t, events, c)
	t.Logf("orphans reaped by the shim and named: %d of 3000", final.GetReapedByShim())
	if final.GetReapedByShim() < 2900 {
		t.Errorf("%d of 3000 orphans were named, want nearly all", final.GetReapedByShim())
	}
}

// TestHostPIDOff: in mode off the shim does what runc.v2 does, and says nothing.
func TestHostPIDOff(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	c := run(t, d, hostPID(runtime, map[string]string{"io.containerd.reaper.mode": "off"}))
	shim, err := c.Shim()
	if err != nil {
		t.Fatal(err)
	}
	exec(t, c, "/bin/leak", "-n", "5")
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		zs, err := harness.Zombies(shim.PID)
		return err == nil && len(zs) == 0, fmt.Sprint(describe(zs), err)
	})
	if got := events.OrphanExits(c.ID()); len(got) != 0 {
		t.Errorf("exits of orphans in mode off: %v", got)
	}
}
