package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// upgradeEnv names the daemon, a file in bin/tools, that TestDaemonUpgrade begins with.
const upgradeEnv = "REAPER_TEST_UPGRADE_FROM"

// ownDaemon starts a containerd for one test.
func ownDaemon(t *testing.T, opts harness.Options) *harness.Daemon {
	t.Helper()
	testutil.Root(t)
	for _, tool := range []string{"containerd-shim-runc-v2", "runc", "busybox", "nsenter"} {
		testutil.Tool(t, tool)
	}
	if opts.Containerd == "" {
		opts.Containerd = harness.Containerd()
	}
	testutil.Tool(t, opts.Containerd)
	if testing.Verbose() && os.Getenv("REAPER_TEST_LOG") != "" {
		opts.Log = os.Stderr
	}
	d, err := harness.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && !testing.Verbose() {
			t.Log("log of containerd and the shims:\n" + d.Log())
		}
		if err := d.Close(); err != nil {
			t.Error("stop containerd:", err)
		}
	})
	return d
}

// exitOnTerm is an init that ends with 7 when it is asked to.
var exitOnTerm = []string{"/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"}

// reloaded is a container as a client sees it that has just come, after the daemon was started again.
func reloaded(t *testing.T, d *harness.Daemon, c *harness.Container) client.Task {
	t.Helper()
	again, err := d.Client.LoadContainer(t.Context(), c.ID())
	if err != nil {
		t.Fatal(err)
	}
	task, err := again.Task(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Container, c.Task = again, task
	return task
}

// remembered says what containerd knows of a task that ended while it was away: when it comes back, it deletes a task
// without processes (core/runtime/v2, loadShim()).
func remembered(t *testing.T, d *harness.Daemon, c *harness.Container) string {
	t.Helper()
	again, err := d.Client.LoadContainer(t.Context(), c.ID())
	if err != nil {
		t.Fatal(err)
	}
	task, err := again.Task(t.Context(), nil)
	if errdefs.IsNotFound(err) {
		return "is deleted"
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("has status %d", waitStatus(t, task))
}

// waitStatus returns the exit status of a task, of which nobody need have been told when it ended.
func waitStatus(t *testing.T, task client.Task) uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	exit, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	status := <-exit
	if err := status.Error(); err != nil {
		t.Fatal(err)
	}
	return status.ExitCode()
}

// TestDaemonRestart: containers outlive their containerd, whether it was stopped or has crashed. They are found again,
// zombies go on being reaped while it is away, a container that ends meanwhile is treated as one of runc.v2, and one that
// ends afterwards is reported once.
func TestDaemonRestart(t *testing.T) {
	for _, way := range []string{"stopped", "killed"} {
		t.Run(way, func(t *testing.T) {
			rt := reaper(t)
			d := ownDaemon(t, harness.Options{Debug: true})
			leaky := run(t, d, harness.Spec{Runtime: rt, Args: []string{"/bin/pause1", "poll", "--", "/bin/leak", "-n", "100000", "-r", "10"}})
			meanwhile := run(t, d, harness.Spec{Runtime: rt, Args: exitOnTerm})
			stock := run(t, d, harness.Spec{Runtime: harness.RuncRuntime, Args: exitOnTerm})
			later := run(t, d, harness.Spec{Runtime: rt, Args: exitOnTerm})
			for _, c := range []*harness.Container{meanwhile, stock, later} {
				testutil.Eventually(t, 10*time.Second, func() (bool, string) { // the trap is set before the first sleep
					n := len(children(t, c))
					return n > 0, fmt.Sprintf("%d children", n)
				})
			}
			if way == "stopped" {
				if err := d.Stop(); err != nil {
					t.Fatal(err)
				}
			} else if err := d.Kill(); err != nil {
				t.Fatal(err)
			}

			for _, c := range []*harness.Container{meanwhile, stock} {
				if err := syscall.Kill(c.PID, syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			seen := map[harness.Zombie]bool{}
			testutil.Eventually(t, 30*time.Second, func() (bool, string) {
				zs := zombies(t, leaky)
				for _, z := range zs {
					seen[z] = true
				}
				return len(seen)-len(zs) >= 20, fmt.Sprintf("%d of %d zombies are gone, without containerd", len(seen)-len(zs), len(seen))
			})

			if err := d.Restart(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			events := subscribe(t, d)
			for _, c := range []*harness.Container{leaky, later} {
				pid := c.PID
				if task := reloaded(t, d, c); int(task.Pid()) != pid {
					t.Errorf("container %s had pid %d before, and has %d", c.ID(), pid, task.Pid())
				}
			}
			if a, b := remembered(t, d, stock), remembered(t, d, meanwhile); a != b {
				t.Errorf("a container that ended without containerd: runc.v2 %s, ours %s", a, b)
			}
			exec(t, leaky, "/bin/true")
			exec(t, later, "/bin/leak", "-n", "5") // a shell, which reaps by itself
			if err := later.Kill(t.Context(), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := waitStatus(t, later.Task); code != 7 {
				t.Errorf("status %d, want 7", code)
			}
			exits := func(c *harness.Container) int { return len(events.ExitsOf(c.ID(), c.ID())) }
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				return exits(later) > 0, "no exit event"
			})
			// Orphans are reported again, each once, so that what follows the exit has had its time to come twice.
			testutil.Eventually(t, 20*time.Second, func() (bool, string) {
				n := len(events.OrphanExits(leaky.ID()))
				return n >= 20, fmt.Sprintf("%d orphan exits since the restart", n)
			})
			if n := exits(later); n != 1 {
				t.Errorf("%d exit events of a container, want 1", n)
			}
			if n := exits(meanwhile); n > 1 {
				t.Errorf("%d exit events of the container that ended without containerd, want at most 1", n)
			}
			pids := map[string]bool{}
			for _, x := range events.OrphanExits(leaky.ID()) {
				key := fmt.Sprint(x.ID, x.Pid, x.ExitedAt)
				if pids[key] {
					t.Errorf("orphan %s reported twice", x.ID)
				}
				pids[key] = true
			}
		})
	}
}

// TestDaemonUpgrade: the daemon is replaced by the newest below running containers and a pod.
func TestDaemonUpgrade(t *testing.T) {
	from := os.Getenv(upgradeEnv)
	if from == "" {
		from = "containerd-1.7"
	}
	rt := reaper(t)
	testutil.Tool(t, "crictl")
	d := ownDaemon(t, harness.Options{Debug: true, Containerd: from})
	c := run(t, d, harness.Spec{Runtime: rt, Args: []string{"/bin/pause1", "poll"}})
	ends := run(t, d, harness.Spec{Runtime: rt, Args: exitOnTerm})
	p := startPod(t, d, rt, podOptions{args: []string{"/bin/pause1", "poll"}})
	podPID := p.pid(t)
	exec(t, c, "/bin/leak", "-n", "5")
	gone(t, c, 5, 0, true)

	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Restart(t.Context(), "containerd"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*harness.Container{c, ends} {
		pid := c.PID
		if task := reloaded(t, d, c); int(task.Pid()) != pid {
			t.Errorf("container %s had pid %d before, and has %d", c.ID(), pid, task.Pid())
		}
	}
	exec(t, c, "/bin/leak", "-n", "5")
	gone(t, c, 5, 0, true)
	if err := ends.Kill(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := waitStatus(t, ends.Task); code != 7 {
		t.Errorf("status %d, want 7", code)
	}

	if pid := p.pid(t); pid != podPID {
		t.Errorf("the pod's container had pid %d before, and has %d", podPID, pid)
	}
	leakInPod := func(container string, pid int) {
		t.Helper()
		if out, code := p.crictl("exec", "--sync", container, "/bin/leak", "-n", "3"); code != 0 {
			t.Fatalf("exec in the pod: exit code %d: %s", code, out)
		}
		testutil.Eventually(t, grace+5*time.Second, func() (bool, string) {
			zs, err := harness.Zombies(pid)
			return err == nil && len(zs) == 0, fmt.Sprintf("%s, %v", describe(zs), err)
		})
	}
	leakInPod(p.container, podPID)
	// The shim of the pod was started by the older daemon, and serves the newer one's next container.
	second := p.add("second")
	leakInPod(second, p.pidOf(t, second))

	fresh := run(t, d, harness.Spec{Runtime: rt, Args: []string{"/bin/pause1", "poll"}})
	exec(t, fresh, "/bin/leak", "-n", "5")
	gone(t, fresh, 5, 0, true)
}

// TestShimUpgrade: our programs are replaced below running containers, by others that do not fit. The shims that run go on
// with what they were started with.
func TestShimUpgrade(t *testing.T) {
	rt := reaper(t)
	bin := t.TempDir()
	ours := []string{"containerd-shim-reaper-v2", "reaper-tracer"}
	install := func() {
		t.Helper()
		for _, name := range ours {
			installProgram(t, bin, name)
		}
	}
	install()
	d := ownDaemon(t, harness.Options{Debug: true, Bin: bin})
	c := run(t, d, harness.Spec{Runtime: rt, Args: []string{"/bin/pause1", "poll"}})
	old, err := c.Shim()
	if err != nil {
		t.Fatal(err)
	}
	// A tracer of another version: whoever starts it gets no answer that it understands.
	if err := os.Remove(filepath.Join(bin, "reaper-tracer")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/false", filepath.Join(bin, "reaper-tracer")); err != nil {
		t.Fatal(err)
	}
	exec(t, c, "/bin/leak", "-n", "5")
	gone(t, c, 5, 0, true)

	install()
	fresh := run(t, d, harness.Spec{Runtime: rt, Args: []string{"/bin/pause1", "poll"}})
	for _, c := range []*harness.Container{c, fresh} {
		exec(t, c, "/bin/leak", "-n", "5")
		gone(t, c, 5, 0, true)
	}
	if shim, err := c.Shim(); err != nil || shim != old {
		t.Errorf("the shim is %v (%v), want still %v", shim, err, old)
	}
	// The new program deletes what the old one made, also when the old one has died.
	if err := syscall.Kill(old.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID))
		return os.IsNotExist(err), "init of the container whose shim was killed is still there"
	})
	if err := c.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if pids := tracers(d); len(pids) > 1 {
		t.Errorf("tracers %v, want one at most", slices.Sorted(slices.Values(pids)))
	}
}
