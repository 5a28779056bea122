package integration

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/internal/testutil"
)

func openNode(t *testing.T, d *harness.Daemon, opts node.Options) *node.Node {
	t.Helper()
	opts.Address = d.Address
	n, err := node.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func snapshot(t *testing.T, n *node.Node) map[string]*node.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tasks, err := n.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	byID := make(map[string]*node.Task)
	for _, task := range tasks {
		byID[task.ID] = task
	}
	return byID
}

// TestNode: what is found on a node is what was started there.
func TestNode(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	ours := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}, Labels: map[string]string{"nerdctl/name": "leaky"},
		Annotations: map[string]string{"io.containerd.reaper.mode": "observe"}, Extra: []oci.SpecOpts{oci.WithPidsLimit(33)}})
	foreign := run(t, d, harness.Spec{Runtime: harness.RuncRuntime, Args: []string{"/bin/pause1", "poll"}})
	exec(t, ours, "/bin/leak", "-n", "2")
	n := openNode(t, d, node.Options{})
	if got := n.Daemon(); int(got.PID) != d.PID() || got.StateDir != d.Dir+"/state" || got.Config != d.Dir+"/config.toml" || got.Version == "" {
		t.Errorf("daemon %+v; want PID %d, and what its configuration in %s says", got, d.PID(), d.Dir)
	}

	var task *node.Task
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		task = snapshot(t, n)[ours.ID()]
		return task != nil && task.Stats.GetAdopted() == 2, "no two adopted zombies"
	})
	if !task.Ours || task.Err != nil || task.Namespace != harness.Namespace || int(task.PID) != ours.PID || task.Status != "running" ||
		task.Runtime != runtime || task.Image != harness.TestImage || task.Name() != "leaky" || task.Revision != 2 {
		t.Errorf("ours: %+v", task)
	}
	// PID 1 and two zombies.
	if task.PIDs != (node.PIDs{Current: 3, Max: 33}) {
		t.Errorf("PIDs of ours: %+v; want 3 of 33", task.PIDs)
	}
	other := snapshot(t, n)[foreign.ID()]
	if other == nil || other.Ours || other.Err != nil || other.Stats != nil || other.PIDs.Current != 1 || other.PIDs.Max != 0 {
		t.Errorf("foreign: %+v", other)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	zs, omitted, err := n.Zombies(ctx, task, 1)
	if err != nil || len(zs) != 1 || omitted != 1 {
		t.Errorf("zombies, at most one: %v, %d omitted, %v", zs, omitted, err)
	}
	if _, _, err := n.Zombies(ctx, other, 0); !errors.Is(err, node.ErrForeign) {
		t.Errorf("zombies of a container of runc.v2: %v, want ErrForeign", err)
	}
	if _, err := n.Reap(ctx, other); !errors.Is(err, node.ErrForeign) {
		t.Errorf("reap in a container of runc.v2: %v, want ErrForeign", err)
	}

	elsewhere := openNode(t, d, node.Options{Namespaces: []string{"nowhere"}})
	if tasks, err := elsewhere.List(ctx); err != nil || len(tasks) != 0 {
		t.Errorf("tasks of another namespace: %v, %v; want none", tasks, err)
	}
}

// TestNodeFollows: a Node that is kept, as an exporter does, sees tasks end and IDs and sockets being used again.
func TestNodeFollows(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	n := openNode(t, d, node.Options{})
	for _, rt := range []string{runtime, harness.RuncRuntime, runtime} {
		c := run(t, d, harness.Spec{ID: "again", Runtime: rt, Args: []string{"/bin/pause1", "poll"}})
		task := snapshot(t, n)["again"]
		if task == nil || task.Ours != (rt == runtime) || task.Err != nil {
			t.Errorf("under %s: %+v", rt, task)
		}
		if err := c.Task.Kill(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			task = snapshot(t, n)["again"]
			return task != nil && task.Status == "stopped", "not stopped"
		})
		if task.PID != 0 || task.PIDs.Current != 0 {
			t.Errorf("ended: %+v", task)
		}
		if _, err := c.Task.Delete(t.Context(), client.WithProcessKill); err != nil {
			t.Fatal(err)
		}
		if err := c.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if task := snapshot(t, n)["again"]; task != nil {
			t.Errorf("deleted: %+v", task)
		}
	}
}

// TestNodePod: names of pods and containers, and one shim for all of a pod.
func TestNodePod(t *testing.T) {
	d := daemon(t)
	reaper(t)
	p := startPod(t, d, harness.ReaperRuntime, podOptions{args: []string{"/bin/pause1", "poll"}})
	second := p.add("second")
	tasks := snapshot(t, openNode(t, d, node.Options{Namespaces: []string{harness.CRINamespace}}))
	var names []string
	for _, id := range []string{p.pod, p.container, second} {
		task := tasks[id]
		if task == nil || !task.Ours || task.Err != nil || task.Stats.GetContainerId() != id || task.Names.PodUID == "" {
			t.Fatalf("task %s: %+v", id, task)
		}
		names = append(names, task.Name())
	}
	pod := "default/" + tasks[p.container].Names.Pod
	if want := []string{pod + "/(pod)", pod + "/main", pod + "/second"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
}
