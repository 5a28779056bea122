package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// Shims that serve more than one pod: option grouping.

func grouped(t *testing.T, grouping string) harness.Spec {
	return harness.Spec{
		Runtime: reaper(t), Args: []string{"/bin/pause1", "poll"},
		Options: &runtimeoptions.Options{ConfigBody: []byte("grouping = '" + grouping + "'\n")},
	}
}

// ended waits until a shim that serves nobody any more has gone.
func ended(t *testing.T, shim harness.Process) {
	t.Helper()
	testutil.Eventually(t, 10*time.Second, func() (bool, string) { return !shim.Alive(), fmt.Sprintf("shim %d is still there", shim.PID) })
}

func remove(t *testing.T, c *harness.Container) {
	t.Helper()
	if err := c.Kill(t.Context(), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func reaps(t *testing.T, c *harness.Container) {
	t.Helper()
	exec(t, c, "/bin/leak", "-n", "3")
	gone(t, c, 3, 0, true)
}

// TestGroupingByNode: one shim serves all containers of the group, also when the one that it was started for has gone, and when containerd
// was started anew; it ends with the last of them. The others have their own.
func TestGroupingByNode(t *testing.T) {
	d := ownDaemon(t, harness.Options{Debug: true})
	var cs []*harness.Container
	for range 3 {
		cs = append(cs, run(t, d, grouped(t, "node")))
	}
	single := run(t, d, harness.Spec{Runtime: reaper(t), Args: []string{"/bin/pause1", "poll"}})
	shim := shimOf(t, cs[0].PID)
	for _, c := range cs {
		if got := shimOf(t, c.PID); got != shim {
			t.Errorf("container %s has shim %v, want %v", c.ID(), got, shim)
		}
		reaps(t, c)
	}
	if got := shimOf(t, single.PID); got == shim {
		t.Errorf("a container without the option has the group's shim, %v", got)
	}
	events := subscribe(t, d)
	first := cs[0]
	remove(t, first)
	if exits := events.ExitsOf(first.ID(), first.ID()); len(exits) != 1 || int(exits[0].Pid) != first.PID || exits[0].ExitStatus != 137 {
		t.Errorf("exits of the first container: %v, want one of process %d with status 137", exits, first.PID)
	}
	// Its log is that of a bundle that still exists.
	if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", shim.PID)); err != nil || strings.Contains(target, first.ID()) || !exists(target) {
		t.Errorf("the shim logs to %q (%v)", target, err)
	}
	cs = cs[1:]
	for _, c := range cs {
		reaps(t, c)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Restart(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		reloaded(t, d, c)
		reaps(t, c)
	}
	later := run(t, d, grouped(t, "node"))
	if got := shimOf(t, later.PID); got != shim {
		t.Errorf("after the restart a container has shim %v, want %v", got, shim)
	}
	for _, c := range append(cs, later) {
		if !shim.Alive() {
			t.Fatal("the shim has gone before its containers")
		}
		remove(t, c)
	}
	ended(t, shim)
	if again := run(t, d, grouped(t, "node")); shimOf(t, again.PID) == shim {
		t.Error("a container of a shim that has gone")
	}
}

// TestGroupingTurnover: groups that end all the time while others start: nobody is sent to a shim that is about to end.
func TestGroupingTurnover(t *testing.T) {
	d := daemon(t)
	spec := grouped(t, "node")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 12 {
				c, err := d.Run(t.Context(), spec)
				if err != nil {
					t.Error(err)
					return
				}
				remove(t, c)
			}
		})
	}
	wg.Wait()
}

// TestGroupingByNamespace: pods of one namespace of Kubernetes' have a shim of their own, and all containers of a pod are with it.
func TestGroupingByNamespace(t *testing.T) {
	d := ownDaemon(t, harness.Options{ReaperOptions: "grouping = 'namespace'"})
	shims := map[string]harness.Process{}
	for _, p := range []struct{ name, namespace string }{{"a", "blue"}, {"b", "blue"}, {"c", "red"}} {
		pod := startPod(t, d, reaper(t), podOptions{args: []string{"/bin/pause1", "poll"}, namespace: p.namespace})
		shim := shimOf(t, pod.sandboxPID(t))
		for _, id := range []string{pod.container, pod.add("second")} {
			if got := shimOf(t, pod.pidOf(t, id)); got != shim {
				t.Errorf("container of pod %s has shim %v, want %v", p.name, got, shim)
			}
		}
		if other, ok := shims[p.namespace]; ok && other != shim {
			t.Errorf("pods of namespace %s have shims %v and %v", p.namespace, other, shim)
		}
		shims[p.namespace] = shim
	}
	if shims["blue"] == shims["red"] {
		t.Errorf("both namespaces have shim %v", shims["red"])
	}
}

// TestGroupingShimKilled is what grouping costs: all containers of the group go with their shim, each with its exit, and the next one gets
// a new shim.
func TestGroupingShimKilled(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	cs := []*harness.Container{run(t, d, grouped(t, "node")), run(t, d, grouped(t, "node"))}
	shim := shimOf(t, cs[0].PID)
	if err := syscall.Kill(shim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			n := len(events.ExitsOf(c.ID(), c.ID()))
			return n > 0 && !exists(fmt.Sprintf("/proc/%d", c.PID)), fmt.Sprintf("container %s: %d exits", c.ID(), n)
		})
		if err := c.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	c := run(t, d, grouped(t, "node"))
	reaps(t, c)
	remove(t, c)
}

// TestGroupingUpgrade: what starts after an upgrade gets a shim of the new build; containers that run stay with the old one.
func TestGroupingUpgrade(t *testing.T) {
	bin := t.TempDir()
	install := func() {
		t.Helper()
		for _, name := range []string{"containerd-shim-reaper-v2", "reaper-tracer"} {
			installProgram(t, bin, name)
		}
	}
	install()
	d := ownDaemon(t, harness.Options{Bin: bin})
	old := run(t, d, grouped(t, "node"))
	shim := shimOf(t, old.PID)
	install()
	fresh := []*harness.Container{run(t, d, grouped(t, "node")), run(t, d, grouped(t, "node"))}
	upgraded := shimOf(t, fresh[0].PID)
	if upgraded == shim || shimOf(t, fresh[1].PID) != upgraded {
		t.Errorf("shims %v and %v after the upgrade, %v before", upgraded, shimOf(t, fresh[1].PID), shim)
	}
	for _, c := range append(fresh, old) {
		reaps(t, c)
	}
	if shimOf(t, old.PID) != shim {
		t.Error("the container that ran has another shim")
	}
	remove(t, old)
	ended(t, shim)
}

// TestGroupingMemory: what each further container costs the shim of a group.
func TestGroupingMemory(t *testing.T) {
	const more, limit = 20, 500 << 10
	d := daemon(t)
	pss := func(shim harness.Process) int64 {
		t.Helper()
		m, err := harness.MemoryOf(shim.PID)
		if err != nil {
			t.Fatal(err)
		}
		return m.PSS
	}
	first := run(t, d, grouped(t, "node"))
	shim := shimOf(t, first.PID)
	before := pss(shim)
	for range more {
		run(t, d, grouped(t, "node"))
	}
	each := (pss(shim) - before) / more
	t.Logf("PSS of the shim with one container %d KiB, %d KiB for each further one", before>>10, each>>10)
	if each > limit {
		t.Errorf("%d bytes for each further container, want %d at most", each, limit)
	}
}

// installProgram puts one of ours into a directory as package managers do: the running program keeps its file.
func installProgram(t *testing.T, dir, name string) {
	t.Helper()
	data, err := os.ReadFile(testutil.Tool(t, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".new"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}
