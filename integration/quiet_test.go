package integration

import (
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
)

// quietLook is how late an orphan may be noticed of somebody who was brought into the PID namespace past containerd.
const quietLook = 10 * time.Second

// perfEvents counts the perf events that a process has open.
func perfEvents(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("descriptors of %d: %v", pid, err)
	}
	n := 0
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && to == "anon_inode:[perf_event]" {
			n++
		}
	}
	return n
}

// inQuiet waits until a shim does not look at the PID 1 of any of its containers, each of which has one thread: besides the events of
// their fork logs it then has a tripwire for each.
func inQuiet(t *testing.T, shim, containers int) {
	t.Helper()
	cpus, err := forklog.PossibleCPUs()
	if err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 30*time.Second, func() (bool, string) {
		n := perfEvents(t, shim)
		if n == 0 {
			testutil.Lacks(t, "no perf events", "run as root on Linux 6.0 or newer")
		}
		return n == containers*(len(cpus)+1), fmt.Sprintf("%d perf events for %d containers on %d CPUs", n, containers, len(cpus))
	})
}

// TestQuiet: a PID 1 that is alone is not looked at, and what is left below it then is gone as early as ever.
func TestQuiet(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	const orphans = 3
	// Their parent, which PID 1 forked, stays.
	leaks := func(args ...string) []string {
		return append([]string{"/bin/pause1", "poll", "-u", "--", "/bin/leak", "-n", fmt.Sprint(orphans)}, args...)
	}
	quiet := func(t *testing.T, args []string) (*harness.Container, int) {
		t.Helper()
		t.Parallel()
		c := run(t, d, harness.Spec{Runtime: runtime, Args: args})
		shim, err := c.Shim()
		if err != nil {
			t.Fatal(err)
		}
		inQuiet(t, shim.PID, 1)
		return c, shim.PID
	}
	// forked checks that orphans and their parent become zombies, and that the orphans are gone within grace + 1 s of their death.
	forked := func(t *testing.T, c *harness.Container, life time.Duration) {
		t.Helper()
		if err := c.Kill(t.Context(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		seen := 0
		testutil.Eventually(t, life+grace+time.Second, func() (bool, string) {
			zs := zombies(t, c)
			seen = max(seen, len(zs))
			return seen == orphans+1 && len(zs) == 1 && time.Since(began) > life, fmt.Sprintf("%d seen, %s", seen, describe(zs))
		})
	}

	t.Run("the first fork after a long time", func(t *testing.T) {
		c, shim := quiet(t, leaks())
		began := time.Now() // looks go on all the same, seldom
		testutil.Eventually(t, 2*quietLook, func() (bool, string) { return time.Since(began) > quietLook+2*time.Second, "it is quiet" })
		inQuiet(t, shim, 1)
		forked(t, c, 0)
	})
	t.Run("orphans that live on", func(t *testing.T) {
		c, _ := quiet(t, leaks("-l", "3000"))
		forked(t, c, 3*time.Second)
	})
	t.Run("exec", func(t *testing.T) {
		c, shim := quiet(t, leaks())
		exec(t, c, "/bin/leak", "-n", fmt.Sprint(orphans), "-l", "1500")
		gone(t, c, orphans, 1500*time.Millisecond, true)
		inQuiet(t, shim, 1)
		exec(t, c, "/bin/leak", "-n", fmt.Sprint(orphans))
		gone(t, c, orphans, 0, true)
	})
	t.Run("while an exec runs", func(t *testing.T) {
		c, _ := quiet(t, leaks())
		e, err := c.StartExec(t.Context(), "/bin/leak", "-n", fmt.Sprint(orphans), "-l", "2500", "-w", "9000")
		if err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 2500*time.Millisecond, func() (bool, string) {
			n := len(children(t, c))
			return n == 1+orphans, fmt.Sprintf("%d processes besides PID 1", n)
		})
		testutil.Eventually(t, 2500*time.Millisecond+grace+time.Second, func() (bool, string) { // and before the exec ends
			zs := zombies(t, c)
			return len(children(t, c)) == 1 && len(zs) == 0, describe(zs)
		})
		if r, err := e.Finish(t.Context()); err != nil || r.Code != 0 {
			t.Errorf("exec: %+v, %v", r, err)
		}
	})
	t.Run("paused and resumed", func(t *testing.T) {
		c, _ := quiet(t, leaks())
		if err := c.Task.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Kill(t.Context(), syscall.SIGUSR1); err != nil { // it forks as soon as it can
			t.Fatal(err)
		}
		if err := c.Task.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, grace+time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == 1 && zs[0].Comm == "leak" && len(children(t, c)) == 0, describe(zs)
		})
	})
	t.Run("somebody from outside", func(t *testing.T) {
		c, _ := quiet(t, leaks())
		// Not the children of an exec, nor in the container's cgroup.
		cmd := osexec.CommandContext(t.Context(), testutil.Tool(t, "nsenter"), "-t", fmt.Sprint(c.PID), "-p", "-m", "/bin/leak", "-n", fmt.Sprint(orphans))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nsenter: %v: %s", err, out)
		}
		// The last of them may still be on its way out.
		testutil.Eventually(t, grace, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == orphans, describe(zs)
		})
		testutil.Eventually(t, quietLook+grace+time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == 0, describe(zs)
		})
	})
	t.Run("a pod with its sandbox", func(t *testing.T) {
		t.Parallel()
		pod := map[string]string{harness.SandboxAnnotation: "quiet"}
		a := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "pause"}, Annotations: pod})
		b := run(t, d, harness.Spec{Runtime: runtime, Args: leaks(), Annotations: pod})
		shim, err := a.Shim()
		if err != nil {
			t.Fatal(err)
		}
		inQuiet(t, shim.PID, 2)
		forked(t, b, 0)
	})
}
