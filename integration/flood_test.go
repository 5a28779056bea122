package integration

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestFlood: thousands of orphans, each reported, and a containerd that is away in the middle of it, neither delay nor reorder nor
// lose or double the exits of execs and containers (B7, B8, C5 and C6 of the attacks on the design).
func TestFlood(t *testing.T) {
	const away = 3 * time.Second
	rt := reaper(t)
	d := ownDaemon(t, harness.Options{})
	events := subscribe(t, d)
	flooded := harness.Spec{
		Runtime: rt, Args: []string{"/bin/pause1", "poll"},
		Options:     &runtimeoptions.Options{ConfigBody: []byte(everyOrphan)},
		Annotations: map[string]string{"io.containerd.reaper.grace": "100ms"},
	}
	c := run(t, d, flooded)
	other := run(t, d, flooded)
	for _, c := range []*harness.Container{c, other} {
		// It ends with its container.
		if _, err := c.StartExec(t.Context(), "/bin/leak", "-n", "100000", "-r", "300"); err != nil {
			t.Fatal(err)
		}
	}
	flood := func(c *harness.Container, want int) {
		t.Helper()
		had := len(events.OrphanExits(c.ID()))
		testutil.Eventually(t, 30*time.Second, func() (bool, string) {
			n := len(events.OrphanExits(c.ID())) - had
			return n >= want, fmt.Sprintf("%d orphans reported", n)
		})
	}
	flood(c, 200)

	for i := range 10 {
		x, err := c.StartExec(t.Context(), "/bin/sh", "-c", fmt.Sprintf("exit %d", i))
		if err != nil {
			t.Fatal(err)
		}
		r, err := x.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, time.Second, func() (bool, string) {
			return len(events.ExitsOf(c.ID(), r.ID)) > 0, "no exit event of an exec, and a thousand of orphans"
		})
		if r.Code != uint32(i) {
			t.Errorf("exec ended with %d, want %d", r.Code, i)
		}
	}
	// An exec's life in the order of its events, whatever stands between them.
	steps := map[string][]string{}
	for _, e := range events.Filter(func(harness.Event) bool { return true }) {
		switch p := e.Payload.(type) {
		case *apievents.TaskExecAdded:
			steps[p.GetExecID()] = append(steps[p.GetExecID()], "added")
		case *apievents.TaskExecStarted:
			steps[p.GetExecID()] = append(steps[p.GetExecID()], "started")
		case *apievents.TaskExit:
			if _, ok := steps[p.GetID()]; ok {
				steps[p.GetID()] = append(steps[p.GetID()], "exit")
			}
		}
	}
	ended := 0
	for id, s := range steps {
		if len(s) == 2 { // the leak, which still runs
			continue
		}
		if ended++; fmt.Sprint(s) != "[added started exit]" {
			t.Errorf("events of exec %s: %v", id, s)
		}
	}
	if ended != 10 {
		t.Errorf("%d execs have ended, want 10", ended)
	}

	// containerd stands still, and one of the two ends meanwhile.
	if err := syscall.Kill(d.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			_ = syscall.Kill(d.PID(), syscall.SIGCONT)
		}
	}
	defer resume()
	if err := syscall.Kill(c.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	time.Sleep(away) // not for anything to happen: it has to be away that long
	resume()
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		return len(events.ExitsOf(c.ID(), c.ID())) > 0, "no exit event of the container"
	})
	flood(other, 200) // time enough for a second one to come
	exits := events.ExitsOf(c.ID(), c.ID())
	x := exits[len(exits)-1]
	if len(exits) != 1 || x.GetExitStatus() != 137 {
		t.Errorf("%d exit events of the container, the last with status %d; want one with 137", len(exits), x.GetExitStatus())
	}
	if late := x.GetExitedAt().AsTime().Sub(died); late > time.Second || late < -time.Second {
		t.Errorf("it says that the container ended %v later than it did", late)
	}
}

// TestNoEventsForDocker: in Docker's namespace there are none of our events, unless they are asked for: its daemon takes the exit of
// an orphan for that of an exec (moby, daemon/monitor.go).
func TestNoEventsForDocker(t *testing.T) {
	rt := reaper(t)
	d := ownDaemon(t, harness.Options{})
	events := subscribe(t, d)
	var image bytes.Buffer
	if err := d.Client.Export(t.Context(), &image, archive.WithImage(d.Client.ImageService(), harness.TestImage)); err != nil {
		t.Fatal(err)
	}
	ctx := namespaces.WithNamespace(t.Context(), "moby")
	if _, err := d.Client.Import(ctx, &image); err != nil {
		t.Fatal(err)
	}
	img, err := d.Client.GetImage(ctx, harness.TestImage)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Unpack(ctx, d.Snapshotter); err != nil {
		t.Fatal(err)
	}
	for _, asked := range []bool{false, true} {
		t.Run(fmt.Sprintf("asked %v", asked), func(t *testing.T) {
			spec := harness.Spec{Runtime: rt, Args: []string{"/bin/pause1", "poll"}}
			if asked {
				spec.Options = &runtimeoptions.Options{ConfigBody: []byte("events = true\n")}
			}
			c, err := d.Run(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := c.Remove(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
				}
			}()
			if r, err := c.Exec(ctx, "/bin/leak", "-n", "5"); err != nil || r.Code != 0 {
				t.Fatalf("leak: %+v, %v", r, err)
			}
			shim, err := c.Shim()
			if err != nil {
				t.Fatal(err)
			}
			testutil.Eventually(t, grace+2*time.Second, func() (bool, string) {
				zs := zombies(t, c)
				return len(zs) == 0, describe(zs)
			})
			if err := c.Remove(ctx); err != nil {
				t.Fatal(err)
			}
			// The shim sends what it has before it ends.
			testutil.Eventually(t, 10*time.Second, func() (bool, string) { return !shim.Alive(), "the shim is still there" })
			reports := len(statsOf(events, c))
			if got := len(events.OrphanExits(c.ID())) > 0 || reports > 0; got != asked {
				t.Errorf("%d exits of orphans and %d reports, want some: %v", len(events.OrphanExits(c.ID())), reports, asked)
			}
		})
	}
}
