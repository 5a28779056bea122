package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// Pods as the kubelet makes them, by its CRI calls.

// sandboxPID returns the host's number of the pod's own init.
func (p pod) sandboxPID(t *testing.T) int {
	t.Helper()
	out, _ := p.crictl("inspectp", p.pod)
	var v struct {
		Info struct {
			PID int `json:"pid"`
		} `json:"info"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Info.PID == 0 {
		t.Fatalf("pid of pod %s: %v in %s", p.pod, err, out)
	}
	return v.Info.PID
}

// shimOf returns the shim whose child a container's init is.
func shimOf(t *testing.T, pid int) harness.Process {
	t.Helper()
	p, err := harness.ShimOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// probe runs a command in a container as the kubelet runs an exec probe.
func (p pod) probe(container, timeout string, args ...string) (string, int) {
	return p.crictl(append([]string{"exec", "--sync", "--timeout", timeout, container}, args...)...)
}

// noZombies waits until PID 1 has no dead child, longer than the grace period and a sweep take.
func noZombies(t *testing.T, pid int) {
	t.Helper()
	testutil.Eventually(t, grace+2*time.Second, func() (bool, string) {
		zs, err := harness.Zombies(pid)
		return err == nil && len(zs) == 0, fmt.Sprintf("%s, %v", describe(zs), err)
	})
}

// waitState waits until a container is in a state, as inspectState gives it.
func (p pod) waitState(t *testing.T, container, want string) {
	t.Helper()
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		out, _ := p.crictl("inspect", container)
		return inspectState(t, out) == want, inspectState(t, out)
	})
}

// TestPodShim: a pod has one shim, for the sandbox and for all containers, also those that come later, and each container with
// PID 1 of its own is watched.
func TestPodShim(t *testing.T) {
	d := daemon(t)
	p := startPod(t, d, reaper(t), podOptions{args: []string{"/bin/pause1", "poll"}})
	other := startPod(t, d, reaper(t), podOptions{args: []string{"/bin/pause1", "poll"}})
	shim := shimOf(t, p.sandboxPID(t))
	containers := []string{p.container, p.add("sidecar"), p.add("ephemeral")}
	for _, c := range containers {
		if got := shimOf(t, p.pidOf(t, c)); got != shim {
			t.Errorf("shim %v of container %s, want that of the pod, %v", got, c, shim)
		}
		if out, code := p.probe(c, "10", "/bin/leak", "-n", "3"); code != 0 {
			t.Errorf("exec in %s: exit code %d: %s", c, code, out)
		}
	}
	if got := shimOf(t, other.pid(t)); got == shim {
		t.Errorf("two pods share shim %v", got)
	}
	for _, c := range containers {
		noZombies(t, p.pidOf(t, c))
	}
	if out, code := p.crictl("rmp", "--force", p.pod); code != 0 {
		t.Fatalf("rmp: exit code %d: %s", code, out)
	}
	testutil.Eventually(t, 10*time.Second, func() (bool, string) { return !shim.Alive(), "the shim outlives its pod" })
}

// TestPodSharedProcessNamespace: with shareProcessNamespace PID 1 is the sandbox's, which reaps and is left alone.
func TestPodSharedProcessNamespace(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	p := startPod(t, d, reaper(t), podOptions{
		args: []string{"/bin/pause1", "poll"}, namespaces: map[string]any{"network": nodeNamespace, "pid": podNamespace},
	})
	sidecar := p.add("sidecar")
	sandbox := p.sandboxPID(t)
	for _, c := range []string{p.container, sidecar} {
		out, code := p.probe(c, "10", "cat", "/proc/1/comm")
		if strings.TrimSpace(out) != "pause" || code != 0 {
			t.Errorf("PID 1 seen by %s is %q (exit code %d), want pause", c, out, code)
		}
		if n, err := harness.NSPID(p.pidOf(t, c)); err != nil || n == 1 {
			t.Errorf("container %s is number %d in its namespace, %v", c, n, err)
		}
		if out, code := p.probe(c, "10", "/bin/leak", "-n", "3"); code != 0 {
			t.Errorf("exec in %s: exit code %d: %s", c, code, out)
		}
	}
	noZombies(t, sandbox)
	for _, c := range []string{p.pod, p.container, sidecar} {
		if got := events.OrphanExits(c); len(got) > 0 {
			t.Errorf("the shim reaped %v of %s: want all left to pause", got, c)
		}
	}
}

// TestPodHostPID: orphans of a pod in the host's PID namespace come to its shim, which says whose they were.
func TestPodHostPID(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	p := startPod(t, d, reaper(t), podOptions{
		args: []string{"/bin/pause1", "poll"}, namespaces: map[string]any{"network": nodeNamespace, "pid": nodeNamespace},
	})
	pid := p.pid(t)
	if out, code := p.probe(p.container, "10", "/bin/sh", "-c", "test -e /proc/"+fmt.Sprint(os.Getpid())); code != 0 {
		t.Fatalf("the container does not see the host's processes: exit code %d: %s", code, out)
	}
	if out, code := p.probe(p.container, "10", "/bin/leak", "-n", "5", "-l", "200"); code != 0 {
		t.Fatalf("exec: exit code %d: %s", code, out)
	}
	noZombies(t, shimOf(t, pid).PID)
	noZombies(t, pid)
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		got := events.OrphanExits(p.container)
		return len(got) == 5, fmt.Sprintf("exits of orphans %v, want five", got)
	})
}

// TestPodUserNamespace: PID 1 is root of a user namespace that is the pod's.
func TestPodUserNamespace(t *testing.T) {
	d := ownDaemon(t, harness.Options{Debug: true, Network: harness.LoopbackNetwork})
	mapping := []map[string]any{{"host_id": 100000, "container_id": 0, "length": 65536}}
	p := startPod(t, d, reaper(t), podOptions{
		args: []string{"/bin/pause1", "poll"},
		namespaces: map[string]any{
			"network": podNamespace, "pid": containerNamespace,
			"userns_options": map[string]any{"mode": podNamespace, "uids": mapping, "gids": mapping},
		},
	})
	pid := p.pid(t)
	if out, code := p.probe(p.container, "10", "cat", "/proc/self/uid_map"); code != 0 || strings.Join(strings.Fields(out), " ") != "0 100000 65536" {
		t.Errorf("uid_map: %q, exit code %d", out, code)
	}
	if out, code := p.probe(p.container, "10", "/bin/leak", "-n", "5"); code != 0 {
		t.Fatalf("exec: exit code %d: %s", code, out)
	}
	noZombies(t, pid)
	// Daemons in sessions of their own, that live through a sweep.
	if out, code := p.probe(p.container, "10", "/bin/leak", "-n", "5", "-s", "-l", "300"); code != 0 {
		t.Fatalf("exec: exit code %d: %s", code, out)
	}
	noZombies(t, pid)
}

// TestPodProbes: exec probes that succeed, fail and run into their time-out end as under runc.v2, and leave nothing.
func TestPodProbes(t *testing.T) {
	want := []string{"ready: exit code 0", "not ready: exit code 1", "too slow: exit code 1"}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		p := startPod(t, d, runtime, podOptions{args: []string{"/bin/pause1", "poll"}})
		for range 3 {
			_, code := p.probe(p.container, "10", "/bin/sh", "-c", "(true & true &); exit 0")
			tr.add("ready: exit code %d", code)
			_, code = p.probe(p.container, "10", "/bin/sh", "-c", "(true & true &); exit 3")
			tr.add("not ready: exit code %d", code)
		}
		// The shell becomes a process that never waits for the child that it has by then: killed, it leaves it to PID 1.
		begin := time.Now()
		_, code := p.probe(p.container, "1", "/bin/sh", "-c", "sleep 0.1 & exec sleep 600")
		tr.add("too slow: exit code %d", code)
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("the probe with a time-out of a second took %v", took)
		}
		pid := p.pid(t)
		if runtime != harness.RuncRuntime {
			noZombies(t, pid)
			return
		}
		if zs, err := harness.Zombies(pid); err != nil || len(zs) == 0 {
			t.Errorf("%s, %v: under runc.v2 the probes of this test leave none to reap", describe(zs), err)
		}
	})
}

// TestPodInitContainers: init containers in sequence, one that fails and is tried again, then containers that are restarted.
func TestPodInitContainers(t *testing.T) {
	want := []string{"first: CONTAINER_EXITED 0", "second: CONTAINER_EXITED 3", "second again: CONTAINER_EXITED 0", "main: CONTAINER_EXITED 1",
		"main again: CONTAINER_RUNNING 0"}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		p := startPod(t, d, runtime, podOptions{})
		shim := shimOf(t, p.sandboxPID(t))
		leaking := func(code int) []string {
			return []string{"/bin/sh", "-c", fmt.Sprintf("(true & true & sleep 100 &) ; exit %d", code)}
		}
		step := func(title, name string, args []string, state string) string {
			id := p.start(name, args)
			p.waitState(t, id, state)
			tr.add("%s: %s", title, state)
			return id
		}
		step("first", "first", leaking(0), "CONTAINER_EXITED 0")
		step("second", "second", leaking(3), "CONTAINER_EXITED 3")
		step("second again", "second", leaking(0), "CONTAINER_EXITED 0")
		step("main", "main", leaking(1), "CONTAINER_EXITED 1")
		id := step("main again", "main", []string{"/bin/pause1", "poll"}, "CONTAINER_RUNNING 0")
		if got := shimOf(t, p.pidOf(t, id)); got != shim {
			t.Errorf("shim %v after the init containers, want %v as before", got, shim)
		}
		if _, code := p.probe(id, "10", "/bin/leak", "-n", "3"); code != 0 {
			t.Errorf("exec: exit code %d", code)
		}
		if runtime != harness.RuncRuntime {
			noZombies(t, p.pidOf(t, id))
		}
	})
}

// TestPodAnnotations: what the pod's annotation says holds for each of its containers.
func TestPodAnnotations(t *testing.T) {
	d := daemon(t)
	p := startPod(t, d, reaper(t), podOptions{
		args: []string{"/bin/pause1", "poll"}, annotations: map[string]string{"io.containerd.reaper.mode": "observe"},
	})
	sidecar := p.add("sidecar")
	for _, c := range []string{p.container, sidecar} {
		if _, code := p.probe(c, "10", "/bin/leak", "-n", "3"); code != 0 {
			t.Errorf("exec: exit code %d", code)
		}
		pid := p.pidOf(t, c)
		n := testutil.StableFor(t, grace+time.Second, 20*time.Second, func() int {
			zs, err := harness.Zombies(pid)
			if err != nil {
				t.Fatal(err)
			}
			return len(zs)
		})
		if n != 3 {
			t.Errorf("%d zombies in container %s of a pod in mode observe, want all 3", n, c)
		}
	}
}
