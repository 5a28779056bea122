package integration

import (
	"encoding/json"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestContribConfig has containerd itself read the configurations that we hand out: both have to come out as the same
// handler.
func TestContribConfig(t *testing.T) {
	containerd := testutil.Tool(t, "containerd")
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"reaper-v2.toml", "reaper-v3.toml"} {
		t.Run(name, func(t *testing.T) {
			cmd := osexec.Command(containerd, "--config", filepath.Join(root, "contrib/containerd", name), "config", "dump")
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("containerd config dump: %v\n%s", err, stderr.String())
			}
			_, table, _ := strings.Cut(string(out), "containerd.runtimes.reaper]\n")
			for _, want := range []string{
				"runtime_type = 'io.containerd.reaper.v2'",
				"pod_annotations = ['io.containerd.reaper.*']",
				"container_annotations = ['io.containerd.reaper.*']",
				"SystemdCgroup = true",
				"mode = 'assist'",
				"grace = '1s'",
			} {
				if !strings.Contains(table, want) {
					t.Errorf("no %q in the handler's table:\n%s", want, table)
				}
			}
		})
	}
}

// TestContribClients: nerdctl reads its configuration, strictly as it does; Docker's names our runtime.
func TestContribClients(t *testing.T) {
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.Command(testutil.Tool(t, "nerdctl"), "--help")
	cmd.Env = append(os.Environ(), "NERDCTL_TOML="+filepath.Join(root, "contrib/nerdctl/nerdctl.toml"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "failed to load") {
		t.Errorf("nerdctl: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(root, "contrib/docker/daemon.json"))
	if err != nil {
		t.Fatal(err)
	}
	var daemon struct {
		Runtimes map[string]struct {
			RuntimeType string `json:"runtimeType"`
		} `json:"runtimes"`
	}
	if err := json.Unmarshal(text, &daemon); err != nil || daemon.Runtimes["reaper"].RuntimeType != harness.ReaperRuntime {
		t.Errorf("daemon.json: %v, %+v", err, daemon)
	}
}

// TestCRIOptions checks that the handler's table arrives: a node that only observes leaves the zombies, and a pod's
// annotation is stronger than the node.
func TestCRIOptions(t *testing.T) {
	daemon(t)
	runtime := reaper(t)
	if runtime != harness.ReaperRuntime {
		t.Skip("another runtime has other options")
	}
	d, err := harness.Start(t.Context(), harness.Options{ReaperOptions: "mode = 'observe'\ngrace = '200ms'\n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.Log())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	left := func(annotations map[string]string) int {
		p := startPod(t, d, runtime, podOptions{args: []string{"/bin/pause1", "poll"}, annotations: annotations})
		if _, code := p.crictl("exec", "--sync", p.container, "/bin/leak", "-n", "3"); code != 0 {
			t.Fatalf("exec: exit code %d", code)
		}
		pid := p.pid(t)
		return testutil.StableFor(t, 1500*time.Millisecond, 20*time.Second, func() int {
			zs, err := harness.Zombies(pid)
			if err != nil {
				t.Fatal(err)
			}
			return len(zs)
		})
	}
	if n := left(nil); n != 3 {
		t.Errorf("%d zombies with the option mode = 'observe', want all 3", n)
	}
	if n := left(map[string]string{"io.containerd.reaper.mode": "assist"}); n != 0 {
		t.Errorf("%d zombies with the pod's annotation assist over the option observe, want none", n)
	}
}

// TestCRIBadAnnotation: the pod does not start, and the message tells its owner why.
func TestCRIBadAnnotation(t *testing.T) {
	d := daemon(t)
	reaper(t)
	file := writeJSON(t, map[string]any{
		"metadata":    map[string]any{"name": "bad", "namespace": "default", "uid": "bad", "attempt": 1},
		"annotations": map[string]string{"io.containerd.reaper.mode": "asist"},
		"linux": map[string]any{
			"cgroup_parent":    d.CgroupParent,
			"security_context": map[string]any{"namespace_options": map[string]any{"network": 2}},
		},
	})
	out, code := command(t, d, "crictl", "--timeout", "60s", "--runtime-endpoint", "unix://"+d.Address, "runp", "--runtime", "reaper", file)
	if code == 0 {
		t.Fatal("the pod has started")
	}
	for _, want := range []string{"io.containerd.reaper.mode", "asist", "assist init observe off"} {
		if !strings.Contains(out, want) {
			t.Errorf("the message does not say %q: %s", want, out)
		}
	}
	if ps, _ := command(t, d, "crictl", "--runtime-endpoint", "unix://"+d.Address, "pods", "--quiet", "--name", "bad"); strings.TrimSpace(ps) != "" {
		t.Errorf("pod left: %s", ps)
	}
}
