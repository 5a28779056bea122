package integration

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// The programs that people use, each with the same commands under both runtimes.

var digits = regexp.MustCompile(`[0-9]+`)

// masked is a program's output with what differs from run to run taken out: numbers, and the runs of blanks that line them up.
func masked(out string) string {
	return strings.Join(strings.Fields(digits.ReplaceAllString(out, "N")), " ")
}

// firstWords returns the first words of the lines of a table.
func firstWords(out string) []string {
	var words []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 0 {
			words = append(words, f[0])
		}
	}
	return words
}

func TestCtr(t *testing.T) {
	want := []string{"run --rm: exit code 3, \"hello\\n\"", "exec: exit code 4, \"there\\n\"", "task ls: RUNNING"}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		ctr := func(args ...string) (string, int) {
			return command(t, d, "ctr", append([]string{"--address", d.Address, "--namespace", harness.Namespace}, args...)...)
		}
		// The same name under both runtimes, one after the other.
		const id = "ctr-parity"
		base := []string{"run", "--snapshotter", d.Snapshotter, "--runtime", runtime, "--cgroup", d.CgroupParent + "/" + id,
			"--fifo-dir", d.FIFODir()}
		runArgs := func(extra ...string) []string { return append(append([]string{}, base...), extra...) }

		out, code := ctr(runArgs("--rm", harness.TestImage, id, "/bin/sh", "-c", "echo hello; exit 3")...)
		tr.add("run --rm: exit code %d, %q", code, out)

		events, stop := background(t, d, "ctr", "--address", d.Address, "--namespace", harness.Namespace, "events")
		defer stop()
		out, code = ctr(runArgs("--detach", harness.TestImage, id, "/bin/goodinit")...)
		tr.add("run --detach: exit code %d, %q", code, out)
		defer ctr("container", "rm", id)
		defer ctr("task", "rm", "--force", id)

		out, code = ctr("task", "exec", "--exec-id", "x1", "--fifo-dir", d.FIFODir(), id, "/bin/sh", "-c", "echo there; exit 4")
		tr.add("exec: exit code %d, %q", code, out)
		out, code = ctr("task", "ps", id)
		tr.add("task ps: exit code %d, %s", code, masked(out))
		out, code = ctr("task", "metrics", id)
		tr.add("task metrics: exit code %d, %v", code, firstWords(strings.ReplaceAll(out, id, "ID")))
		out, _ = ctr("task", "ls")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == id {
				tr.add("task ls: %s", f[2])
			}
		}
		for _, args := range [][]string{{"task", "pause", id}, {"task", "resume", id}, {"task", "kill", "--signal", "SIGTERM", id}} {
			out, code = ctr(args...)
			tr.add("%s: exit code %d, %q", args[1], code, out)
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			out, _ := ctr("task", "ls")
			return strings.Contains(out, "STOPPED"), out
		})
		out, code = ctr("task", "rm", id)
		tr.add("task rm: exit code %d, %q", code, out)
		out, code = ctr("container", "rm", id)
		tr.add("container rm: exit code %d, %q", code, out)

		var topics []string
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			topics = nil
			for line := range strings.Lines(events.String()) {
				for word := range strings.FieldsSeq(line) {
					// A shim that ends loses the event of the deletion now and then, runc.v2's as well.
					if strings.HasPrefix(word, "/tasks/") && word != "/tasks/zombies" && word != "/tasks/delete" {
						topics = append(topics, word)
					}
				}
			}
			return strings.Contains(events.String(), "/containers/delete"), strings.Join(topics, " ")
		})
		tr.add("events: %v", topics)
	})
}

// background starts a program that goes on, waits until it prints or a moment has passed without its ending, and returns what
// it prints.
func background(t *testing.T, d *harness.Daemon, name string, args ...string) (out *harness.Output, stop func()) {
	t.Helper()
	testutil.Tool(t, name)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := d.Command(ctx, name, args...)
	out = new(harness.Output)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	// It has subscribed when it shows an event of ours.
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		probe := d.Command(ctx, "ctr", "--address", d.Address, "namespaces", "label", harness.Namespace, "probe="+fmt.Sprint(time.Now().UnixNano()))
		if b, err := probe.CombinedOutput(); err != nil {
			return false, fmt.Sprintf("%v: %s", err, b)
		}
		return strings.Contains(out.String(), "/namespaces/update"), out.String()
	})
	return out, func() {
		cancel()
		<-done
	}
}

func TestNerdctl(t *testing.T) {
	testutil.Tool(t, "ps") // nerdctl top runs it
	// nerdctl itself ends with 1 when an exec fails, whatever the code.
	want := []string{"run --rm: exit code 3, \"hello\\n\"", "logs: exit code 0, \"one\\ntwo\\n\"", "exec: exit code 1, \"there\\n\"",
		"inspect: running", "stop: exit code 0", "inspect: exited 0"}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		data := filepath.Join(d.Dir, "nerdctl")
		nerdctl := func(args ...string) (string, int) {
			return command(t, d, "nerdctl", append([]string{
				"--address", d.Address, "--namespace", harness.Namespace, "--data-root", data, "--snapshotter", d.Snapshotter,
				"--cgroup-manager", "cgroupfs", "--cni-netconfpath", filepath.Join(d.Dir, "cni/net.d"), "--cni-path", filepath.Join(d.Dir, "cni/bin"),
			}, args...)...)
		}
		const name = "nerdctl-parity"
		base := []string{"--runtime", runtime, "--net", "none", "--pull", "never", "--cgroup-parent", d.CgroupParent, "--name", name}
		run := func(extra ...string) []string { return append(append([]string{"run"}, base...), extra...) }

		out, code := nerdctl(run("--rm", harness.TestImage, "/bin/sh", "-c", "echo hello; exit 3")...)
		tr.add("run --rm: exit code %d, %q", code, out)

		out, code = nerdctl(run("--detach", harness.TestImage, "/bin/sh", "-c", "echo one; echo two; exec /bin/goodinit")...)
		tr.add("run --detach: exit code %d, an ID: %v", code, len(strings.TrimSpace(out)) == 64)
		defer nerdctl("rm", "--force", name)

		out, code = nerdctl("exec", name, "/bin/sh", "-c", "echo there; exit 4")
		tr.add("exec: exit code %d, %q", code, out)
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			out, code = nerdctl("logs", name)
			return strings.Contains(out, "two"), out
		})
		tr.add("logs: exit code %d, %q", code, out)
		out, code = nerdctl("ps", "--format", "{{.Names}} {{.Image}} {{.Command}}")
		tr.add("ps: exit code %d, %s", code, out)
		out, code = nerdctl("top", name)
		tr.add("top: exit code %d, %s", code, processes(out))
		out, code = nerdctl("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", name)
		tr.add("stats: exit code %d, %s", code, out)
		out, code = nerdctl("inspect", "--format", "{{.State.Status}}", name)
		tr.add("inspect: %s", strings.TrimSpace(out))
		if code != 0 {
			t.Errorf("inspect: exit code %d", code)
		}
		for _, args := range [][]string{{"pause", name}, {"unpause", name}} {
			_, code = nerdctl(args...)
			tr.add("%s: exit code %d", args[0], code)
		}
		begin := time.Now()
		_, code = nerdctl("stop", name)
		tr.add("stop: exit code %d", code)
		if took := time.Since(begin); took > 8*time.Second {
			t.Errorf("stop took %v: SIGTERM has not arrived", took)
		}
		out, _ = nerdctl("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name)
		tr.add("inspect: %s", strings.TrimSpace(out))
		_, code = nerdctl("start", name)
		tr.add("start again: exit code %d", code)
		_, code = nerdctl("kill", name)
		tr.add("kill: exit code %d", code)
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			out, _ = nerdctl("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name)
			return strings.HasPrefix(out, "exited"), out
		})
		tr.add("inspect: %s", strings.TrimSpace(out))
		_, code = nerdctl("rm", name)
		tr.add("rm: exit code %d", code)
		out, _ = nerdctl("ps", "--all", "--quiet", "--filter", "name="+name)
		tr.add("left: %q", out)
	})
}

// processes returns the commands of the table that ps prints.
func processes(out string) []string {
	var names []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 7 {
			names = append(names, strings.Join(f[7:], " "))
		}
	}
	return names
}

func TestCrictl(t *testing.T) {
	want := []string{"ps: CONTAINER_RUNNING", "exec: exit code 0, \"there\\n\"", "exec that fails: exit code 1",
		`logs: "out\n" "err\n"`, "after stop: CONTAINER_EXITED 0", "left: 0 containers, 0 pods"}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		p := startPod(t, d, runtime, podOptions{args: []string{"/bin/sh", "-c", "echo out; echo err >&2; exec /bin/goodinit"}})
		tr.add("runp, create and start: ok")
		out, _ := p.crictl("ps", "--all", "--output", "json", "--id", p.container)
		tr.add("ps: %s", containerState(t, out))
		out, code := p.crictl("exec", p.container, "/bin/sh", "-c", "echo there")
		tr.add("exec: exit code %d, %q", code, out)
		out, code = p.crictl("exec", "--sync", p.container, "/bin/sh", "-c", "echo sync")
		tr.add("exec --sync: exit code %d, %q", code, out)
		_, code = p.crictl("exec", p.container, "/bin/sh", "-c", "exit 4")
		tr.add("exec that fails: exit code %d", code)
		var stdout, stderr string
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			stdout, stderr, _ = p.crictl2("logs", p.container)
			return strings.Contains(stdout, "out") && strings.Contains(stderr, "err"), stdout + stderr
		})
		tr.add("logs: %q %q", stdout, stderr)
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			out, code = p.crictl("stats", "--output", "json", "--id", p.container)
			return code == 0 && strings.Contains(out, `"usageCoreNanoSeconds"`), out
		})
		tr.add("stats: %v", statsKeys(t, out))
		_, code = p.crictl("update", "--memory", "67108864", p.container)
		tr.add("update: exit code %d", code)
		_, code = p.crictl("stop", "--timeout", "10", p.container)
		tr.add("stop: exit code %d", code)
		out, _ = p.crictl("inspect", p.container)
		tr.add("after stop: %s", inspectState(t, out))
		_, code = p.crictl("rm", p.container)
		tr.add("rm: exit code %d", code)
		_, code = p.crictl("stopp", p.pod)
		tr.add("stopp: exit code %d", code)
		_, code = p.crictl("rmp", p.pod)
		tr.add("rmp: exit code %d", code)
		cs, _ := p.crictl("ps", "--all", "--quiet")
		ps, _ := p.crictl("pods", "--quiet")
		tr.add("left: %d containers, %d pods", len(strings.Fields(cs)), len(strings.Fields(ps)))
	})
}

// TestCRIZombies: the exec probe of a pod leaves orphans, as probes do, and the handler's annotations arrive.
func TestCRIZombies(t *testing.T) {
	for _, tt := range []struct {
		name        string
		ours        bool
		annotations map[string]string
		zombies     int
	}{
		{name: "runc", zombies: 3},
		{name: "reaper", ours: true},
		{name: "reaper, off by the pod's annotation", ours: true, annotations: map[string]string{"io.containerd.reaper.mode": "off"}, zombies: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := daemon(t)
			runtime := harness.RuncRuntime
			if tt.ours {
				runtime = reaper(t)
			}
			p := startPod(t, d, runtime, podOptions{args: []string{"/bin/pause1", "poll"}, annotations: tt.annotations})
			if _, code := p.crictl("exec", "--sync", p.container, "/bin/leak", "-n", "3"); code != 0 {
				t.Fatalf("exec: exit code %d", code)
			}
			pid := p.pid(t)
			count := func() int {
				zs, err := harness.Zombies(pid)
				if err != nil {
					t.Fatal(err)
				}
				return len(zs)
			}
			if tt.zombies == 0 {
				testutil.Eventually(t, grace+time.Second, func() (bool, string) { return count() == 0, fmt.Sprintf("%d zombies", count()) })
				return
			}
			if n := testutil.StableFor(t, grace+time.Second, 20*time.Second, count); n != tt.zombies {
				t.Errorf("%d zombies, want all %d", n, tt.zombies)
			}
		})
	}
}

type podOptions struct {
	args        []string // of its first container; there is none without
	annotations map[string]string
	// namespaces are the namespace_options of the pod and its containers, as CRI numbers them. Without any the pod is in the host's
	// network, so that it needs no CNI plugin, and each container is PID 1: the sandbox would otherwise be, and it reaps.
	namespaces map[string]any
	namespace  string // of Kubernetes'; "default" when empty
}

// CRI's namespace modes.
const (
	podNamespace       = 0
	containerNamespace = 1
	nodeNamespace      = 2
)

// pod is a pod and its first container.
type pod struct {
	pod, container string
	crictl         func(args ...string) (string, int)
	crictl2        func(args ...string) (stdout, stderr string, code int)
	// add starts one more container like the first in the pod and returns its ID.
	add func(name string) string
	// start starts one more container, or the next attempt of one, as the kubelet does.
	start func(name string, args []string) string
}

func startPod(t *testing.T, d *harness.Daemon, runtime string, opts podOptions) pod {
	t.Helper()
	handler := "reaper"
	if runtime == harness.RuncRuntime {
		handler = "runc"
	}
	// No configuration of the machine's.
	config := filepath.Join(d.Dir, "crictl.yaml")
	if err := os.WriteFile(config, []byte("timeout: 60\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	global := []string{
		"--config", config, "--runtime-endpoint", "unix://" + d.Address, "--image-endpoint", "unix://" + d.Address,
	}
	p := pod{
		crictl: func(args ...string) (string, int) {
			return command(t, d, "crictl", append(slices.Clip(global), args...)...)
		},
		crictl2: func(args ...string) (string, string, int) {
			return command2(t, d, "crictl", append(slices.Clip(global), args...)...)
		},
	}
	namespaces := map[string]any{"namespace_options": opts.namespaces}
	if opts.namespaces == nil {
		namespaces["namespace_options"] = map[string]any{"network": nodeNamespace, "pid": containerNamespace}
	}
	name := strings.ToLower(digits.FindString(fmt.Sprint(time.Now().UnixNano())))
	logs := filepath.Join(d.Dir, "logs", name)
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	podFile := writeJSON(t, map[string]any{
		"metadata":      map[string]any{"name": "pod-" + name, "namespace": cmp.Or(opts.namespace, "default"), "uid": name, "attempt": 1},
		"log_directory": logs,
		"annotations":   opts.annotations,
		"linux": map[string]any{
			"cgroup_parent":    d.CgroupParent,
			"security_context": namespaces,
		},
	})
	must := func(args ...string) string {
		t.Helper()
		out, code := p.crictl(args...)
		if code != 0 {
			t.Fatalf("crictl %s: exit code %d: %s", strings.Join(args, " "), code, out)
		}
		return strings.TrimSpace(out)
	}
	p.pod = must("runp", "--runtime", handler, podFile)
	t.Cleanup(func() {
		// A test that has removed it leaves nothing to do.
		if out, code := p.crictl("rmp", "--force", p.pod); code != 0 && !strings.Contains(out, "not found") {
			t.Errorf("crictl rmp: exit code %d: %s", code, out)
		}
	})
	attempts := map[string]int{}
	p.start = func(name string, args []string) string {
		t.Helper()
		id := must("create", "--no-pull", p.pod, writeJSON(t, map[string]any{
			"metadata": map[string]any{"name": name, "attempt": attempts[name]},
			"image":    map[string]any{"image": harness.TestImage},
			"command":  args,
			"log_path": name + ".log",
			"linux":    map[string]any{"resources": map[string]any{}, "security_context": namespaces},
		}), podFile)
		attempts[name]++
		must("start", id)
		return id
	}
	p.add = func(name string) string {
		t.Helper()
		return p.start(name, opts.args)
	}
	if opts.args != nil {
		p.container = p.add("main")
	}
	return p
}

// pid returns the host's number of the container's init.
func (p pod) pid(t *testing.T) int { return p.pidOf(t, p.container) }

func (p pod) pidOf(t *testing.T, container string) int {
	t.Helper()
	out, _ := p.crictl("inspect", container)
	var v struct {
		Info struct {
			PID int `json:"pid"`
		} `json:"info"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Info.PID == 0 {
		t.Fatalf("pid of container %s: %v in %s", container, err, out)
	}
	return v.Info.PID
}

func writeJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func containerState(t *testing.T, out string) string {
	t.Helper()
	var v struct {
		Containers []struct {
			State string `json:"state"`
		} `json:"containers"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || len(v.Containers) != 1 {
		t.Fatalf("crictl ps: %v in %s", err, out)
	}
	return v.Containers[0].State
}

func inspectState(t *testing.T, out string) string {
	t.Helper()
	var v struct {
		Status struct {
			State    string `json:"state"`
			ExitCode int    `json:"exitCode"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("crictl inspect: %v in %s", err, out)
	}
	return fmt.Sprintf("%s %d", v.Status.State, v.Status.ExitCode)
}

// statsKeys returns the names of all values in a JSON document, in order, without the values.
func statsKeys(t *testing.T, out string) []string {
	t.Helper()
	var keys []string
	s := bufio.NewScanner(strings.NewReader(out))
	for s.Scan() {
		if name, _, found := strings.Cut(strings.TrimSpace(s.Text()), ":"); found {
			keys = append(keys, strings.Trim(name, `"`))
		}
	}
	// containerd computes it from two samples, and has it or not by chance.
	if i := slices.Index(keys, "usageNanoCores"); i >= 0 && i+1 < len(keys) {
		keys = slices.Delete(keys, i, i+2) // with its "value"
	}
	return keys
}
