package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/reaper-shim/reaper/integration/harness"
)

const (
	handler        = "reaper" // of the harness' configuration, and the name of the RuntimeClass
	modeAnnotation = "io.containerd.reaper.mode"
	podsPath       = "/api/v1/namespaces/default/pods"
	deployments    = "/apis/apps/v1/namespaces/default/deployments"
)

// Parts of the objects of the API that are looked at.
type (
	condition struct {
		Type, Status, Reason string
		LastHeartbeatTime    time.Time
	}
	node struct {
		Spec   struct{ Taints []struct{ Key string } }
		Status struct {
			Conditions []condition
			NodeInfo   struct{ KubeletVersion, ContainerRuntimeVersion string }
		}
	}
	pod struct {
		Metadata struct {
			Name, UID         string
			DeletionTimestamp string
		}
		Status struct {
			Phase, Reason, Message string
			Conditions             []condition
			ContainerStatuses      []struct {
				ContainerID  string
				RestartCount int
			}
		}
	}
	event struct {
		Reason, Message string
	}
)

func (n node) condition(name string) condition { return find(n.Status.Conditions, name) }

func (p pod) ready() bool { return find(p.Status.Conditions, "Ready").Status == "True" }

func find(conditions []condition, name string) condition {
	for _, c := range conditions {
		if c.Type == name {
			return c
		}
	}
	return condition{}
}

type object = map[string]any

// podSpec returns the spec of a pod whose PID 1 never waits. An empty class is the default runtime, an empty probe none.
func podSpec(class, probe string) object {
	container := object{
		"name": "main", "image": harness.TestImage, "imagePullPolicy": "Never", "command": []string{"/bin/pause1", "poll", "-t"},
	}
	if probe != "" {
		container["readinessProbe"] = object{
			"exec": object{"command": []string{"/bin/sh", "-c", probe}}, "periodSeconds": 2, "timeoutSeconds": 10,
		}
	}
	spec := object{"containers": []any{container}, "terminationGracePeriodSeconds": 5, "enableServiceLinks": false}
	if class != "" {
		spec["runtimeClassName"] = class
	}
	return spec
}

// createPod makes a pod.
func (c *controlPlane) createPod(ctx context.Context, name string, annotations map[string]string, spec object) error {
	return c.call(ctx, http.MethodPost, podsPath, object{
		"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "labels": object{"app": name}, "annotations": annotations}, "spec": spec,
	}, nil)
}

// createDeployment makes a Deployment of one pod, which has the label app=name.
func (c *cluster) createDeployment(ctx context.Context, name string, spec object) error {
	labels := object{"app": name}
	return c.call(ctx, http.MethodPost, deployments, object{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": object{"name": name},
		"spec": object{
			"replicas": 1, "selector": object{"matchLabels": labels},
			"template": object{"metadata": object{"labels": labels}, "spec": spec},
		},
	}, nil)
}

// podsOf returns the pods with the label app=name.
func (c *cluster) podsOf(ctx context.Context, app string) ([]pod, error) {
	var list struct{ Items []pod }
	err := c.get(ctx, podsPath+"?labelSelector="+url.QueryEscape("app="+app), &list)
	return list.Items, err
}

// events returns the messages of a pod's events of one kind.
func (c *cluster) events(ctx context.Context, podName string) ([]event, error) {
	var list struct{ Items []event }
	err := c.get(ctx, "/api/v1/namespaces/default/events?fieldSelector="+url.QueryEscape("involvedObject.name="+podName), &list)
	return list.Items, err
}

// livePod is a running pod, as the machine sees it.
type livePod struct {
	pod
	runtime     string // the container's, as containerd knows it
	containerID string
	annotations map[string]string // of the container's OCI spec
	init        harness.Process
	shim        harness.Process
	cgroups     []string
	dir         string // the kubelet's for the pod
}

// waitPod waits until the one pod with the label app=name is ready, but for one that is not wanted.
func (c *cluster) waitPod(ctx context.Context, app, but string) (livePod, error) {
	var p pod
	if err := c.wait(ctx, "pod "+app, startTimeout, func() (bool, string) {
		pods, err := c.podsOf(ctx, app)
		if err != nil {
			return false, err.Error()
		}
		for _, p = range pods {
			if p.Metadata.UID != but && p.Metadata.DeletionTimestamp == "" && p.ready() {
				return true, ""
			}
		}
		return false, fmt.Sprintf("pods %+v", pods)
	}); err != nil {
		return livePod{}, err
	}
	live, err := c.look(ctx, p)
	if err != nil {
		return livePod{}, fmt.Errorf("pod %s: %w", p.Metadata.Name, err)
	}
	return live, nil
}

// look finds the processes of a pod of one container.
func (c *cluster) look(ctx context.Context, p pod) (livePod, error) {
	if len(p.Status.ContainerStatuses) != 1 {
		return livePod{}, fmt.Errorf("%d containers, want one", len(p.Status.ContainerStatuses))
	}
	live := livePod{pod: p, dir: filepath.Join(c.file("kubelet"), "pods", p.Metadata.UID)}
	live.containerID = strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	ctx = namespaces.WithNamespace(ctx, harness.CRINamespace)
	container, err := c.d.Client.LoadContainer(ctx, live.containerID)
	if err != nil {
		return livePod{}, err
	}
	info, err := container.Info(ctx)
	if err != nil {
		return livePod{}, err
	}
	live.runtime = info.Runtime.Name
	spec, err := container.Spec(ctx)
	if err != nil {
		return livePod{}, err
	}
	live.annotations = spec.Annotations
	task, err := container.Task(ctx, nil)
	if err != nil {
		return livePod{}, err
	}
	identity, err := harness.IdentityOf(int(task.Pid()))
	if err != nil {
		return livePod{}, err
	}
	live.init = identity.Process
	if live.shim, err = harness.ShimOf(live.init.PID); err != nil {
		return livePod{}, err
	}
	for _, dir := range podCgroups(c.d.CgroupParent) {
		if strings.Contains(dir, p.Metadata.UID) {
			live.cgroups = append(live.cgroups, dir)
		}
	}
	if len(live.cgroups) == 0 {
		return livePod{}, errors.New("it has no cgroup")
	}
	if _, err := os.Stat(live.dir); err != nil {
		return livePod{}, err
	}
	return live, nil
}

// waitGone waits until nothing is left of a pod: not in the API, not in containerd, no process, cgroup or directory.
func (c *cluster) waitGone(ctx context.Context, p livePod) error {
	return c.wait(ctx, "the end of pod "+p.Metadata.Name, startTimeout, func() (bool, string) {
		var left []string
		var now pod
		err := c.get(ctx, podsPath+"/"+p.Metadata.Name, &now)
		if (err == nil && now.Metadata.UID == p.Metadata.UID) || (err != nil && !errors.Is(err, errNotFound)) {
			left = append(left, fmt.Sprintf("the API's object (%v)", err))
		}
		if _, err := c.d.Client.LoadContainer(namespaces.WithNamespace(ctx, harness.CRINamespace), p.containerID); err == nil {
			left = append(left, "container "+p.containerID)
		}
		if p.init.Alive() {
			left = append(left, fmt.Sprintf("PID 1 (%d)", p.init.PID))
		}
		if p.shim.Alive() {
			left = append(left, fmt.Sprintf("the shim (%d)", p.shim.PID))
		}
		for _, dir := range append([]string{p.dir}, p.cgroups...) {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				left = append(left, dir)
			}
		}
		return len(left) == 0, strings.Join(left, ", ")
	})
}

// read returns how the pod stands.
func (c *cluster) read(ctx context.Context, p livePod) (reading, error) {
	var now pod
	if err := c.get(ctx, podsPath+"/"+p.Metadata.Name, &now); err != nil {
		return reading{}, err
	}
	zombies, err := harness.Zombies(p.init.PID)
	if err != nil {
		return reading{}, fmt.Errorf("zombies of pod %s: %w", p.Metadata.Name, err)
	}
	pids, err := harness.PIDsCurrent(p.init.PID)
	return reading{Zombies: len(zombies), PIDs: pids, Ready: now.ready()}, err
}
