package integration

import (
	"context"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/shim/api"
)

// criu skips the test where CRIU is not there or does not know the kernel (make test-vm has one that it knows).
func criu(t *testing.T) {
	t.Helper()
	if out, err := osexec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("criu check: %v, %s", err, strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; "))
	}
}

// TestCheckpoint: a container that is restored from a checkpoint goes on where it was, and new orphans are reaped. Which of the processes that
// it had then PID 1 has forked nobody can know: those are left alone.
func TestCheckpoint(t *testing.T) {
	criu(t)
	bothRuntimes(t, func(t *testing.T, d *harness.Daemon, runtime string, ours bool) {
		spec := harness.Spec{
			Runtime: runtime, Args: []string{"/bin/pause1", "poll", "--", "/bin/tail", "-f", "/dev/null"},
			// CRIU takes down a network of its own with programs that need not be there.
			Extra: []oci.SpecOpts{oci.WithHostNamespace(specs.NetworkNamespace)},
		}
		events := subscribe(t, d)
		c := run(t, d, spec)
		exec(t, c, "/bin/sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 &")
		child(t, c, "sleep")
		images := filepath.Join(t.TempDir(), "images")
		checkpoint(t, c, images)
		leak(t, c, events, ours, 0)
		if err := c.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}

		spec.Restore = images
		restored := run(t, d, spec)
		own, orphan := child(t, restored, "tail"), child(t, restored, "sleep")
		for _, pid := range []int{own, orphan} {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		leak(t, restored, events, ours, 2)
	})
}

// TestCheckpointInModeInit: CRIU does not take down the connection of reaper-init to its shim. The container goes on.
func TestCheckpointInModeInit(t *testing.T) {
	criu(t)
	d := daemon(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{
		Runtime: reaper(t), Args: []string{"/bin/pause1", "poll"}, Annotations: initMode,
		Extra: []oci.SpecOpts{oci.WithHostNamespace(specs.NetworkNamespace)},
	})
	if _, err := c.Task.Checkpoint(t.Context(), client.WithCheckpointImagePath(filepath.Join(t.TempDir(), "images"))); err == nil {
		t.Error("docs/init-mode.md says that there is no checkpoint in mode init")
	}
	leak(t, c, events, true, 0)
}

// checkpoint writes images of the container's processes, which go on.
func checkpoint(t *testing.T, c *harness.Container, images string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Slow(time.Minute))
	defer cancel()
	if _, err := c.Task.Checkpoint(ctx, client.WithCheckpointImagePath(images)); err != nil {
		// "… path= /…/criu-dump.log"
		var log []byte
		if _, path, ok := strings.Cut(err.Error(), "path= "); ok {
			log, _ = os.ReadFile(strings.TrimSpace(path))
		}
		t.Fatalf("checkpoint: %v\n%s", err, log[max(0, len(log)-4000):])
	}
	if files, err := os.ReadDir(images); err != nil || len(files) == 0 {
		t.Fatalf("%d images, %v", len(files), err)
	}
}

// child waits for a child of PID 1 that has that name.
func child(t *testing.T, c *harness.Container, comm string) int {
	t.Helper()
	var found []harness.Process
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		found = harness.Children(c.PID, comm)
		return len(found) > 0, "PID 1 has no child " + comm
	})
	return found[0].PID
}

// leak has three orphans made in a container that has had none, and waits until all of them are reaped under our runtime, with what there was
// before unproven and still there, or until there are three more under the other.
func leak(t *testing.T, c *harness.Container, events *harness.Events, ours bool, before int) {
	t.Helper()
	const n = 3
	exec(t, c, "/bin/leak", "-n", fmt.Sprint(n))
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		if !ours {
			return len(zs) == before+n, fmt.Sprintf("%s, want %d", describe(zs), before+n)
		}
		var last *api.ZombieStats
		for _, s := range statsOf(events, c) {
			last = s
		}
		return len(zs) == before && last.GetReapedByTracer()+last.GetReapedByInit() == n && last.GetUnproven() == uint32(before),
			fmt.Sprintf("%s, want %d, and %d reaped: %v", describe(zs), before, n, last)
	})
}
