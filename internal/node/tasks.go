package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/shim/api"
)

// Labels of containers, and annotations of their specs, that carry names. The labels are set by the kubelet and by nerdctl; the
// annotations by CRI, also for pods that crictl made.
const (
	labelPod          = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
	labelPodUID       = "io.kubernetes.pod.uid"
	labelContainer    = "io.kubernetes.container.name"
	labelKind         = "io.cri-containerd.kind" // "sandbox" or "container"
	labelNerdctlName  = "nerdctl/name"

	annotationSandboxName      = "io.kubernetes.cri.sandbox-name"
	annotationSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	annotationSandboxUID       = "io.kubernetes.cri.sandbox-uid"
	annotationContainerName    = "io.kubernetes.cri.container-name"

	kindSandbox = "sandbox"
)

// Names are what people call a container. Each may be empty.
type Names struct {
	// Pod, PodNamespace, PodUID and Container are Kubernetes'.
	Pod, PodNamespace, PodUID, Container string
	// Sandbox: it is the pod's own (pause) container, which has no name in Kubernetes.
	Sandbox bool
	// Nerdctl is the name of nerdctl run --name.
	Nerdctl string
}

// String returns "namespace/pod/container" for what Kubernetes made, with "(pod)" for its sandbox, else nerdctl's name, else "".
func (n Names) String() string {
	switch {
	case n.Pod == "":
		return n.Nerdctl
	case n.Sandbox:
		return n.PodNamespace + "/" + n.Pod + "/(pod)"
	default:
		return n.PodNamespace + "/" + n.Pod + "/" + n.Container
	}
}

// PIDs are the numbers of the pids controller for a task's cgroup, threads and zombies included.
type PIDs struct {
	// Current is 0 when it is not known.
	Current int64
	// Max is 0 when there is no limit or none is known.
	Max int64
}

// Task is a task of containerd's.
type Task struct {
	Namespace string // of containerd
	ID        string
	Names     Names
	Image     string
	Runtime   string // as the container asks for it: a name as io.containerd.runc.v2, or the path of a shim
	// PID of its init process on the host; 0 when it has ended.
	PID procfs.HostPID
	// Status is "created", "running", "stopped", "paused", "pausing" or "unknown".
	Status string
	PIDs   PIDs

	// Ours: its shim answers the Reaper service. False also where the shim could not be asked: then Err is set.
	Ours bool
	// Stats is what the shim said, nil unless Ours.
	Stats *api.ZombieStats
	// Revision of the shim's Reaper service.
	Revision uint32
	// Err says why the shim could not be asked.
	Err error
}

// Name returns the task's Names as a string, or its ID where it has none.
func (t *Task) Name() string { return cmp.Or(t.Names.String(), t.ID) }

// List returns the tasks of containerd, sorted by namespace and ID, with all but what their shims say. A task whose shim hangs has the
// status "unknown".
func (n *Node) List(ctx context.Context) ([]*Task, error) {
	names, err := n.listNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	if n.skipStates {
		// Bundles in the wrong place look like no tasks at all.
		if _, err := os.Stat(n.bundles()); err != nil {
			return nil, fmt.Errorf("find the bundles of tasks: %w: is containerd's state in %s?", err, n.daemon.StateDir)
		}
	}
	var all []*Task
	for _, ns := range names {
		tasks, err := n.listNamespace(namespaces.WithNamespace(ctx, ns), ns)
		if err != nil {
			return nil, fmt.Errorf("namespace %q: %w", ns, err)
		}
		all = append(all, tasks...)
	}
	slices.SortFunc(all, func(a, b *Task) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

func (n *Node) listNamespace(ctx context.Context, ns string) ([]*Task, error) {
	byID := make(map[string]*Task)
	if !n.skipStates {
		tasks, err := n.tasks().List(ctx, &tasksapi.ListTasksRequest{})
		if err != nil {
			return nil, fmt.Errorf("list tasks of containerd: %w", err)
		}
		for _, p := range tasks.GetTasks() {
			// The answer has a task's ID in one field or the other, by version (containerd, api/types/task).
			id := cmp.Or(p.GetContainerID(), p.GetID())
			t := &Task{Namespace: ns, ID: id, Status: strings.ToLower(p.GetStatus().String())}
			if t.Status != "stopped" {
				t.PID = procfs.HostPID(p.GetPid())
			}
			t.PIDs = n.pidsOf(t.PID)
			byID[id] = t
		}
	}
	containers, err := n.containers().List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers of containerd: %w", err)
	}
	for _, c := range containers.GetContainers() {
		t := byID[c.GetID()]
		if t == nil {
			// containerd leaves out a task whose shim does not answer; its bundle is there as long as the task is.
			if _, err := os.Stat(n.bundle(ns, c.GetID())); err != nil {
				continue
			}
			t = &Task{Namespace: ns, ID: c.GetID(), Status: "unknown"}
			byID[t.ID] = t
		}
		t.Runtime, t.Image, t.Names = c.GetRuntime().GetName(), c.GetImage(), namesOf(c.GetLabels(), c.GetSpec().GetValue())
	}
	return slices.Collect(maps.Values(byID)), nil
}

// namesOf reads the labels, and the annotations of the OCI spec where a container is CRI's and its labels have no names.
func namesOf(labels map[string]string, spec []byte) Names {
	names := Names{
		Pod: labels[labelPod], PodNamespace: labels[labelPodNamespace], PodUID: labels[labelPodUID],
		Container: labels[labelContainer], Sandbox: labels[labelKind] == kindSandbox, Nerdctl: labels[labelNerdctlName],
	}
	if labels[labelKind] == "" || names.Pod != "" {
		return names
	}
	var s struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return names
	}
	names.Pod, names.PodNamespace = s.Annotations[annotationSandboxName], s.Annotations[annotationSandboxNamespace]
	names.PodUID, names.Container = s.Annotations[annotationSandboxUID], s.Annotations[annotationContainerName]
	return names
}

// pidsOf reads the cgroup of a process.
func (n *Node) pidsOf(pid procfs.HostPID) PIDs {
	if pid == 0 {
		return PIDs{}
	}
	lines, err := n.proc.Cgroups(pid)
	if err != nil {
		return PIDs{}
	}
	c := sweep.FindCgroup(n.cgroups, lines)
	if c == nil {
		return PIDs{}
	}
	current, _ := c.Current()
	limit, _ := c.Max()
	return PIDs{Current: current, Max: limit}
}

const (
	// parallel is how many shims are asked at once.
	parallel = 16
	// DefaultShimTimeout is long: Stats waits for nothing.
	DefaultShimTimeout = 2 * time.Second
)

// Snapshot is List and what the reaper shims say. A shim that cannot be asked is no error: its tasks have Err set.
func (n *Node) Snapshot(ctx context.Context) ([]*Task, error) {
	tasks, err := n.List(ctx)
	if err != nil {
		return nil, err
	}
	// The containers of a pod have one shim.
	byShim := make(map[shimKey][]*Task)
	for _, t := range tasks {
		key, err := n.shimOf(t)
		if err != nil {
			t.Err = err
			continue
		}
		byShim[key] = append(byShim[key], t)
	}
	n.forget(byShim)
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for key, of := range byShim {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			n.ask(ctx, key, of)
		})
	}
	wg.Wait()
	tasks = slices.DeleteFunc(tasks, func(t *Task) bool { return t.Err != nil && n.deleted(t) })
	return tasks, ctx.Err()
}

// deleted reports whether the task has been deleted since it was listed: its bundle is gone, and not because the bundles are
// somewhere else.
func (n *Node) deleted(t *Task) bool {
	bundle := n.bundle(t.Namespace, t.ID)
	_, err := os.Stat(bundle)
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = os.Stat(filepath.Dir(bundle))
	return err == nil
}

// ask has one shim tell about its tasks.
func (n *Node) ask(ctx context.Context, key shimKey, tasks []*Task) {
	ctx, cancel := context.WithTimeout(ctx, n.shimTimeout)
	defer cancel()
	resp, err := call(ctx, n, key, func(r api.ReaperService) (*api.StatsResponse, error) {
		return r.Stats(ctx, &api.StatsRequest{})
	})
	byID := make(map[string]*api.ZombieStats)
	for _, s := range resp.GetTasks() {
		byID[s.GetContainerId()] = s
	}
	for _, t := range tasks {
		switch {
		case err == nil:
			// A shim is of one namespace; a task without statistics ended in this moment.
			t.Ours, t.Stats, t.Revision = true, byID[t.ID], resp.GetRevision()
			if t.Stats == nil {
				t.Stats = &api.ZombieStats{ContainerId: t.ID}
			}
		case !isForeign(err):
			t.Err = fmt.Errorf("ask the shim of %s: %w", t.ID, err)
		}
	}
}
