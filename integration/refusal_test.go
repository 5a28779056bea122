package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// lasting makes sure that the zombies of c are still there when they ought to have been reaped, after that grace period.
func lasting(t *testing.T, c *harness.Container, grace time.Duration, count int) {
	t.Helper()
	left := testutil.StableFor(t, grace+2*time.Second, 30*time.Second, func() int { return len(zombies(t, c)) })
	if left != count {
		t.Errorf("%d zombies, want %d: %s", left, count, describe(zombies(t, c)))
	}
}

func allGone(t *testing.T, c *harness.Container) {
	t.Helper()
	testutil.Eventually(t, grace+30*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		return len(zs) == 0, describe(zs)
	})
}

// state waits until PID 1 of c is in that state.
func state(t *testing.T, c *harness.Container, want string) {
	t.Helper()
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		st, err := procfs.New(os.DirFS("/proc")).Stat(procfs.HostPID(c.PID))
		return err == nil && st.State.String() == want, fmt.Sprintf("%v, %v", st.State, err)
	})
}

// setFrozen freezes the cgroup of c past containerd and its shim, or thaws it.
func setFrozen(c *harness.Container, frozen bool) error {
	lines, err := procfs.New(os.DirFS("/proc")).Cgroups(procfs.HostPID(c.PID))
	if err != nil {
		return err
	}
	const root = "/sys/fs/cgroup"
	for _, l := range lines {
		if slices.Contains(l.Controllers, "freezer") {
			state := map[bool]string{true: "FROZEN", false: "THAWED"}[frozen]
			return os.WriteFile(filepath.Join(root, "freezer", l.Path, "freezer.state"), []byte(state), 0)
		}
		file := filepath.Join(root, l.Path, "cgroup.freeze")
		if _, err := os.Stat(file); l.Hierarchy == 0 && err == nil {
			state := map[bool]string{true: "1", false: "0"}[frozen]
			return os.WriteFile(file, []byte(state), 0)
		}
	}
	return fmt.Errorf("no freezer among the cgroups of process %d: %+v", c.PID, lines)
}

// TestRefusals: a container whose PID 1 cannot be made to reap is left alone, the statistics say why, and its zombies go as soon
// as the reason has ended.
func TestRefusals(t *testing.T) {
	const n = 5
	d := daemon(t)
	runtime := reaper(t)
	leak := func(t *testing.T, c *harness.Container) { exec(t, c, "/bin/leak", "-n", fmt.Sprint(n)) }
	named := func(t *testing.T, c *harness.Container, events *harness.Events, reason string, reaped bool) {
		t.Helper()
		final := finalStats(t, events, c)
		if final.GetRefusals()[reason] == 0 {
			t.Errorf("refusals %v, want %q among them", final.GetRefusals(), reason)
		}
		if reaped != (final.GetReapedByTracer() >= n) {
			t.Errorf("%d reaped", final.GetReapedByTracer())
		}
	}
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		events := subscribe(t, d)
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
		if err := c.Kill(t.Context(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		state(t, c, "T")
		leak(t, c)
		lasting(t, c, grace, n)
		if err := c.Kill(t.Context(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		allGone(t, c)
		named(t, c, events, "stopped", true)
	})
	const long = 3 * time.Second // for the leak and the freeze
	for _, freeze := range []struct {
		name    string
		on, off func(ctx context.Context, c *harness.Container) error
		swept   bool // meanwhile: the shim does not know
	}{
		{
			name: "paused",
			on:   func(ctx context.Context, c *harness.Container) error { return c.Task.Pause(ctx) },
			off:  func(ctx context.Context, c *harness.Container) error { return c.Task.Resume(ctx) },
		},
		{
			name: "frozen", swept: true,
			on:  func(_ context.Context, c *harness.Container) error { return setFrozen(c, true) },
			off: func(_ context.Context, c *harness.Container) error { return setFrozen(c, false) },
		},
	} {
		t.Run(freeze.name, func(t *testing.T) {
			t.Parallel()
			events := subscribe(t, d)
			c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
				Annotations: map[string]string{"io.containerd.reaper.grace": long.String()}})
			leak(t, c)
			if err := freeze.on(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			thawed := false
			defer func() { // a frozen container cannot be killed
				if !thawed {
					_ = freeze.off(context.WithoutCancel(t.Context()), c)
				}
			}()
			lasting(t, c, long, n)
			if err := freeze.off(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			thawed = true
			allGone(t, c)
			if freeze.swept {
				named(t, c, events, "frozen", true)
			} else if final := finalStats(t, events, c); final.GetRefusals()["frozen"] > 0 {
				t.Errorf("refusals %v of a container that was paused", final.GetRefusals())
			}
		})
	}
	t.Run("32-bit", func(t *testing.T) {
		t.Parallel()
		root, err := testutil.RepoRoot()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		out, err := osexec.Command("gcc", "-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector", "-O1",
			"-o", filepath.Join(dir, "victim32"), filepath.Join(root, "runtime/tracer/testdata/victim32.c")).CombinedOutput()
		if err != nil {
			testutil.Lacks(t, fmt.Sprintf("gcc -m32: %v: %s", err, out), "install gcc for amd64")
		}
		probe := osexec.Command(filepath.Join(dir, "victim32"))
		probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID} // its children end with it
		if err := probe.Start(); errors.Is(err, syscall.ENOEXEC) {
			t.Skip("this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION)")
		} else if err == nil {
			_ = probe.Process.Kill()
			_ = probe.Wait()
		}
		events := subscribe(t, d)
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/mnt/victim32"},
			Extra: []oci.SpecOpts{oci.WithMounts([]specs.Mount{{Destination: "/mnt", Type: "bind", Source: dir, Options: []string{"bind", "ro"}}})}})
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			return c.Stdout.String() == "ready\n", c.Stdout.String() + c.Stderr.String()
		})
		leak(t, c)
		lasting(t, c, grace, n+1) // one of its own making
		named(t, c, events, "not-native", false)
	})
	t.Run("user namespace", func(t *testing.T) {
		t.Parallel()
		mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
			Extra: []oci.SpecOpts{oci.WithUserNamespace(mapping, mapping), oci.WithoutRunMount}})
		uids, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", c.PID))
		if err != nil || !strings.Contains(string(uids), "100000") {
			t.Fatalf("uid_map of PID 1: %q, %v", uids, err)
		}
		leak(t, c)
		testutil.Eventually(t, grace+5*time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == 0, describe(zs)
		})
	})
}
