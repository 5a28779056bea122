package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// isolate hides from the kubelet what it would change on the machine: /var/lib/kubelet, /var/log/containers and CNI's cache are in
// memory. All of it is in the mount namespace of containerd.
const isolate = `set -e
mount -t tmpfs -o mode=0755 tmpfs /var/lib
mount -t tmpfs -o mode=0755 tmpfs /var/log
` + ownSysctls

// ownSysctls makes the sysctls that a kubelet sets (k8s.io/kubernetes, pkg/kubelet/cm, setupKernelTunables) files in directory $1.
const ownSysctls = `mkdir -p "$1"
for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	[ -e /proc/sys/$f ] || continue
	copy=$1/$(echo $f | tr / .)
	cat /proc/sys/$f > "$copy"
	mount --bind "$copy" /proc/sys/$f
done
`

// cluster is a Kubernetes cluster of one node, whose containerd is a private one of the harness. close ends it.
type cluster struct {
	controlPlane
	d *harness.Daemon
}

// up starts the cluster and waits until its node is ready.
func (c *cluster) up(ctx context.Context) error {
	if out, err := c.d.Command(ctx, "/bin/sh", "-c", isolate, "sh", c.file("sysctl")).CombinedOutput(); err != nil {
		return fmt.Errorf("prepare the node's file system: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	return c.startKubelet(ctx, -1)
}

// startKubelet starts the kubelet and waits until the node is ready. -1 is no limit.
func (c *cluster) startKubelet(ctx context.Context, podPidsLimit int) error {
	if err := c.makeCgroups(); err != nil {
		return err
	}
	config, err := kubeletConfig(map[string]any{
		"containerRuntimeEndpoint": "unix://" + c.d.Address, "cgroupDriver": "cgroupfs", "cgroupRoot": c.d.CgroupParent,
		"podPidsLimit": podPidsLimit, "podLogsDir": c.file("pods"), "volumePluginDir": c.file("plugins"),
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file("kubelet.json"), config, 0o600); err != nil {
		return err
	}
	before, err := c.heartbeat(ctx)
	if err != nil {
		return err
	}
	if err := c.start("kubelet", "--config", c.file("kubelet.json"), "--kubeconfig", c.file("kubeconfig"), "--root-dir", c.file("kubelet"),
		"--cert-dir", c.file("kubelet-certs"), "--hostname-override", nodeName, "--node-ip", nodeAddress); err != nil {
		return err
	}
	return c.waitNode(ctx, before)
}

// makeCgroups makes the kubelet's root in each hierarchy: it has to be there.
func (c *cluster) makeCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		roots = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	for _, procs := range roots {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(procs), c.d.CgroupParent), 0o755); err != nil {
			return fmt.Errorf("make the kubelet's cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroups removes the kubelet's own cgroups. What it keeps below them for pods stays, and is found as left behind.
func (c *cluster) removeCgroups() error {
	var errs []error
	for _, class := range []string{"kubepods/besteffort", "kubepods/burstable", "kubepods"} {
		for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			dirs, err := filepath.Glob(filepath.Join(pattern, c.d.CgroupParent, class))
			errs = append(errs, err)
			for _, dir := range dirs {
				errs = append(errs, os.Remove(dir))
			}
		}
	}
	return errors.Join(errs...)
}

// stopKubelet stops the kubelet; pods live on.
func (c *cluster) stopKubelet() error {
	i := slices.IndexFunc(c.running, func(p *component) bool { return p.name == "kubelet" })
	if i < 0 {
		return errors.New("no kubelet is running")
	}
	return c.stop(c.running[i])
}

// removePods has the kubelet end all pods that are still there, as after a step that failed.
func (c *cluster) removePods() error {
	if len(podCgroups(c.d.CgroupParent)) == 0 || len(c.running) < len(components) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(stopTimeout))
	defer cancel()
	return errors.Join(
		c.call(ctx, http.MethodDelete, "/apis/apps/v1/namespaces/default/deployments", nil, nil),
		c.call(ctx, http.MethodDelete, "/api/v1/namespaces/default/pods?gracePeriodSeconds=1", nil, nil),
		c.wait(ctx, "the end of all pods", stopTimeout, func() (bool, string) {
			left := podCgroups(c.d.CgroupParent)
			return len(left) == 0, fmt.Sprint(left)
		}))
}

// close ends all pods and stops all components, the last one first. Pods that are there all the same are left to containerd's harness.
func (c *cluster) close() error {
	errs := []error{c.removePods(), c.stopAll()}
	// The kubelet makes its directory a mount of its own (and shared), and leaves it.
	if out, err := c.d.Command(context.Background(), "umount", c.file("kubelet")).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("not mounted")) {
		errs = append(errs, fmt.Errorf("unmount the kubelet's directory: %w: %s", err, bytes.TrimSpace(out)))
	}
	leftovers := podCgroups(c.d.CgroupParent)
	if len(leftovers) == 0 {
		errs = append(errs, c.removeCgroups())
	}
	return errors.Join(errs...)
}

// podCgroups lists the directories of the kubelet's cgroups for pods.
func podCgroups(parent string) []string {
	var out []string
	for _, pattern := range []string{"kubepods/pod*", "kubepods/*/pod*"} {
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			found, _ := filepath.Glob(filepath.Join(mount, parent, pattern))
			out = append(out, found...)
		}
	}
	return out
}
