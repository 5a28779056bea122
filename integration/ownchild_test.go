package integration

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// TestOwnChildren has a PID 1 that forks children which end at once, is busy for ten seconds (and longer where deadlines are), and then asks for the status
// of each. All that time orphans keep the tracer at work below it. Whoever reaped one of the children would be found out.
func TestOwnChildren(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	const children = 20
	c := run(t, d, harness.Spec{
		Runtime: runtime, Args: []string{"/bin/latewaiter", "-n", "20", "-d", milliseconds(testutil.Slow(10 * time.Second))},
		Annotations: map[string]string{"io.containerd.reaper.grace": "100ms"},
	})
	exec(t, c, "/bin/leak", "-n", "80", "-r", "10")
	if zs := zombies(t, c); len(zs) < children {
		t.Fatalf("%s, want at least PID 1's own %d: the orphans were not made while it was busy", describe(zs), children)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Slow(30*time.Second))
	defer cancel()
	status, err := c.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := c.Stdout.String()
	if n := strings.Count(out, " PASS "); n != children || status.ExitCode() != 0 {
		t.Errorf("PID 1 got %d of %d statuses right and ended with %d:\n%s", n, children, status.ExitCode(), out)
	}
	if s := finalStats(t, events, c); s.GetReapedByTracer() == 0 || s.GetContradictions() != 0 {
		t.Errorf("%d orphans reaped, %d contradictions: want some and none, or the test proves nothing",
			s.GetReapedByTracer(), s.GetContradictions())
	}
}

// TestOwnChildrenOnly is the same without any orphan: nothing below PID 1 is ours to touch, so PID 1 is never stopped.
func TestOwnChildrenOnly(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{
		Runtime: runtime, Args: []string{"/bin/latewaiter", "-n", "10", "-d", milliseconds(testutil.Slow(5 * time.Second))},
		Annotations: map[string]string{"io.containerd.reaper.grace": "100ms"},
	})
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Slow(30*time.Second))
	defer cancel()
	status, err := c.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.ExitCode() != 0 {
		t.Errorf("PID 1 ended with %d:\n%s", status.ExitCode(), c.Stdout)
	}
	if s := finalStats(t, events, c); s.GetAttaches() != 0 {
		t.Errorf("PID 1 was stopped %d times, want never", s.GetAttaches())
	}
}
