package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/reaperctl"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// exporterRun is a running reaper-exporter.
type exporterRun struct {
	t    *testing.T
	base string // of its URLs
	log  *harness.Output
}

var listening = regexp.MustCompile(`msg="Listening on" address=(\S+)`)

// startExporter starts cmd, a reaper-exporter that is told to listen on port 0, and ends it with the test.
func startExporter(t *testing.T, cmd *osexec.Cmd) *exporterRun {
	t.Helper()
	e := &exporterRun{t: t, log: new(harness.Output)}
	cmd.Stdout, cmd.Stderr = e.log, e.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("reaper-exporter at SIGTERM: %v", err)
			}
		case <-time.After(testutil.Slow(20 * time.Second)):
			t.Error("reaper-exporter does not end at SIGTERM")
			_ = cmd.Process.Kill()
			t.Log(<-ended)
		}
		if t.Failed() {
			t.Log(e.log)
		}
	})
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		m := listening.FindStringSubmatch(e.log.String())
		if m == nil {
			return false, e.log.String()
		}
		e.base = "http://" + m[1]
		return true, ""
	})
	return e
}

// exporterArgs are those of every exporter of the tests. It looks by itself only seldom: what a test sees comes from its scrapes.
func exporterArgs(d *harness.Daemon, args ...string) []string {
	return append([]string{"--containerd.address", d.Address, "--containerd.state", d.Dir + "/state", "--web.listen-address", "127.0.0.1:0",
		"--log.level", "debug", "--poll-interval", "2s"}, args...)
}

func exporterOf(t *testing.T, d *harness.Daemon, args ...string) *exporterRun {
	t.Helper()
	cmd := osexec.CommandContext(context.WithoutCancel(t.Context()), testutil.Tool(t, "reaper-exporter"), exporterArgs(d, args...)...)
	cmd.Env = d.Env()
	return startExporter(t, cmd)
}

func (e *exporterRun) get(path string, edit func(*http.Request)) (body string, status int) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(30*time.Second))
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, e.base+path, http.NoBody)
	if err != nil {
		e.t.Fatal(err)
	}
	if edit != nil {
		edit(r)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return string(data), resp.StatusCode
}

// scrape returns the samples by series, as they are written.
func (e *exporterRun) scrape() map[string]float64 {
	e.t.Helper()
	body, status := e.get("/metrics", nil)
	if status != http.StatusOK {
		e.t.Fatalf("scrape: status %d: %s", status, body)
	}
	samples := make(map[string]float64)
	for line := range strings.Lines(body) {
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i < 0 {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			e.t.Fatalf("%q: %v", line, err)
		}
		samples[line[:i]] = v
	}
	return samples
}

// series writes one of a container, with more labels.
func series(metric, container string, more ...string) string {
	labels := append([]string{fmt.Sprintf("container=%q", container), fmt.Sprintf("namespace=%q", harness.Namespace), `pod=""`}, more...)
	slices.Sort(labels)
	return metric + "{" + strings.Join(labels, ",") + "}"
}

// reapedSeries counts what the tracer took.
func reapedSeries(container string) string {
	return series("reaper_zombies_reaped_total", container, `mechanism="tracer"`, `outcome="adopted"`)
}

func leaky(runtime, name, mode, grace string) harness.Spec {
	spec := patient("", grace)
	spec.Runtime, spec.Labels = runtime, map[string]string{"nerdctl/name": name}
	spec.Annotations["io.containerd.reaper.mode"] = mode
	return spec
}

// TestExporter: what is served is what was leaked; counters survive their container; all of it as root without any capability.
func TestExporter(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	testutil.Tool(t, "setpriv")
	cmd := d.Command(context.WithoutCancel(t.Context()), "setpriv", append([]string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--",
		testutil.Tool(t, "reaper-exporter")}, exporterArgs(d)...)...)
	e := startExporter(t, cmd)

	quick := run(t, d, leaky(runtime, "ex-quick", "assist", "200ms"))
	kept := run(t, d, leaky(runtime, "ex-kept", "assist", "1h"))
	seen := run(t, d, leaky(runtime, "ex-seen", "observe", "200ms"))
	foreign := run(t, d, harness.Spec{Runtime: harness.RuncRuntime, Args: []string{"/bin/pause1", "poll"}})
	for c, n := range map[*harness.Container]string{quick: "5", kept: "3", seen: "2", foreign: "4"} {
		exec(t, c, "/bin/leak", "-n", n)
	}

	want := map[string]float64{
		reapedSeries("ex-quick"): 5, reapedSeries("ex-kept"): 0, reapedSeries("ex-seen"): 0,
		series("reaper_time_to_reap_seconds_count", "ex-quick"):                                  5,
		series("reaper_zombies", "ex-quick", `verdict="adopted"`):                                0,
		series("reaper_zombies", "ex-kept", `verdict="adopted"`):                                 3,
		series("reaper_zombies", "ex-kept", `verdict="own"`):                                     0,
		series("reaper_zombies", "ex-seen", `verdict="adopted"`):                                 2,
		series("reaper_grace_seconds", "ex-kept"):                                                3600,
		series("reaper_container_info", "ex-seen", `effective_mode="observe"`, `mode="observe"`): 1,
		"reaper_up": 1, `reaper_command_zombies{command="leak"}`: 5,
	}
	var got map[string]float64
	testutil.Eventually(t, 30*time.Second, func() (bool, string) {
		got = e.scrape()
		for s, n := range want {
			if v, ok := got[s]; !ok || v != n {
				return false, fmt.Sprintf("%s: %v (there: %v), want %v", s, v, ok, n)
			}
		}
		return true, ""
	})
	// The shims read these every ten seconds.
	testutil.Eventually(t, 30*time.Second, func() (bool, string) {
		got = e.scrape()
		return got[series("reaper_pids", "ex-kept")] == 4 && got[series("reaper_pids", "ex-quick")] == 1, fmt.Sprint(got[series("reaper_pids", "ex-kept")])
	})
	if got[`reaper_tasks{state="foreign"}`] < 1 || got[`reaper_tasks{state="watched"}`] < 3 || got[`reaper_tasks{state="unanswered"}`] != 0 {
		t.Errorf("tasks: %v foreign, %v watched, %v unanswered", got[`reaper_tasks{state="foreign"}`], got[`reaper_tasks{state="watched"}`], got[`reaper_tasks{state="unanswered"}`])
	}
	age, stop := got[series("reaper_oldest_zombie_age_seconds", "ex-kept")], got[series("reaper_pid1_longest_stop_seconds", "ex-quick")]
	if age <= 0 || stop <= 0 || stop > 10 || got[series("reaper_pid1_stops_total", "ex-quick")] < 1 {
		t.Errorf("oldest zombie %v s, longest stop %v s", age, stop)
	}
	if sum := got[series("reaper_time_to_reap_seconds_sum", "ex-quick")]; sum < 5*0.2 {
		t.Errorf("five zombies were reaped after %v s in all, with a grace period of 0.2 s", sum)
	}

	body, _ := e.get("/metrics", nil)
	if problems, err := promlint.New(strings.NewReader(body)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	checkContrib(t, got)
	page, status := e.get("/status", nil)
	for _, want := range []string{"ex-quick", "ex-kept", "ex-seen", "<polyline", "leak"} {
		if status != http.StatusOK || !strings.Contains(page, want) {
			t.Errorf("status page: %d, without %q: %s", status, want, page)
		}
	}

	checkReplaced(t, d, e, runtime, quick)
}

// checkReplaced: the counter of a container goes on with the next of the same name, and never back in between. What was reaped just
// before the end counts too.
func checkReplaced(t *testing.T, d *harness.Daemon, e *exporterRun, runtime string, c *harness.Container) {
	t.Helper()
	exec(t, c, "/bin/leak", "-n", "4")
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		return len(zs) == 0, describe(zs)
	})
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	node := `reaper_node_zombies_reaped_total{mechanism="tracer",outcome="adopted"}`
	last, lastNode := 0.0, 0.0
	until := func(want float64) {
		t.Helper()
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			got := e.scrape()
			v := got[reapedSeries("ex-quick")]
			if v < last || got[node] < lastNode {
				t.Fatalf("went back from %v to %v, node from %v to %v", last, v, lastNode, got[node])
			}
			last, lastNode = v, got[node]
			return v == want, fmt.Sprintf("%v, want %v", v, want)
		})
	}
	until(9)
	// A scrape right after another one gets the same answers.
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		_, there := e.scrape()[series("reaper_zombies", "ex-quick", `verdict="adopted"`)]
		return !there, "zombies are served of a container that is gone"
	})
	next := run(t, d, leaky(runtime, "ex-quick", "assist", "200ms"))
	until(9)
	exec(t, next, "/bin/leak", "-n", "2")
	until(11)
}

var metricOfOurs = regexp.MustCompile(`\breaper_[a-z0-9_]+`)

// checkContrib: all that the dashboard and the rules name is served. Some is only served where there is something.
func checkContrib(t *testing.T, got map[string]float64) {
	t.Helper()
	served := make(map[string]bool)
	for s := range got {
		name, _, _ := strings.Cut(s, "{")
		served[name] = true
	}
	conditional := map[string]bool{"reaper_pids_limit": true, "reaper_refusals_total": true}
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"contrib/grafana/reaper.json", "contrib/prometheus/reaper.rules.yml"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		found := metricOfOurs.FindAllString(string(data), -1)
		if len(found) < 8 {
			t.Errorf("%s: only %d metrics", name, len(found))
		}
		for _, metric := range found {
			if !served[metric] && !conditional[metric] {
				t.Errorf("%s: no %s is served", name, metric)
			}
		}
	}
}

// TestExporterHangingShim: a shim that hangs costs its own numbers and no one else's.
func TestExporterHangingShim(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	hung := run(t, d, leaky(runtime, "ex-hung", "assist", "1h"))
	fine := run(t, d, leaky(runtime, "ex-fine", "assist", "1h"))
	e := exporterOf(t, d)
	exec(t, fine, "/bin/leak", "-n", "2")
	there := func(name string) string { return series("reaper_zombies", name, `verdict="adopted"`) }
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		got := e.scrape()
		_, ok := got[there("ex-hung")]
		return ok && got[there("ex-fine")] == 2, fmt.Sprint(ok, got[there("ex-fine")])
	})
	shim, err := hung.Shim()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(shim.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := func() { _ = syscall.Kill(shim.PID, syscall.SIGCONT) }
	t.Cleanup(resume)
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		began := time.Now()
		got := e.scrape()
		took := time.Since(began)
		_, ok := got[there("ex-hung")]
		if got[there("ex-fine")] != 2 || got["reaper_up"] != 1 || took > testutil.Slow(5*time.Second) {
			t.Fatalf("with a hanging shim: %v zombies of the other container, up %v, after %v", got[there("ex-fine")], got["reaper_up"], took)
		}
		return !ok && got[`reaper_tasks{state="unanswered"}`] == 1 && got["reaper_shim_failures_total"] >= 1 && got[reapedSeries("ex-hung")] == 0,
			fmt.Sprint(ok, got[`reaper_tasks{state="unanswered"}`])
	})
	// containerd does not list its task; we do.
	out, _, code := ctl(t, d, "ps", "-o", "json")
	var list reaperctl.TaskList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("reaperctl ps: %v in %s", err, out)
	}
	if task := taskIn(list, hung.ID()); code != reaperctl.ExitError || task == nil || task.Status != "unknown" || task.Error == "" {
		t.Errorf("reaperctl ps: exit code %d, and of the hanging shim's task %+v", code, task)
	}
	resume()
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		got := e.scrape()
		_, ok := got[there("ex-hung")]
		return ok && got[`reaper_tasks{state="unanswered"}`] == 0, fmt.Sprint(ok)
	})
}

// TestExporterDaemonRestart: the exporter starts without a containerd, says so, and finds it when it comes and after it was restarted.
func TestExporterDaemonRestart(t *testing.T) {
	d := ownDaemon(t, harness.Options{})
	runtime := reaper(t)
	c := run(t, d, leaky(runtime, "ex-stays", "assist", "1h"))
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	e := exporterOf(t, d)
	zombies := series("reaper_zombies", "ex-stays", `verdict="adopted"`)
	for i := range 2 {
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			got := e.scrape()
			_, ok := got[zombies]
			return got["reaper_up"] == 0 && !ok, fmt.Sprint(got["reaper_up"], ok)
		})
		if err := d.Restart(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 30*time.Second, func() (bool, string) {
			got := e.scrape()
			v, ok := got[zombies]
			return got["reaper_up"] == 1 && ok && v == float64(i), fmt.Sprint(got["reaper_up"], v, ok)
		})
		exec(t, c, "/bin/leak", "-n", "1")
		if i == 0 {
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestExporterAuth: with a password in the web configuration nobody gets anything without.
func TestExporterAuth(t *testing.T) {
	d := daemon(t)
	reaper(t)
	config := filepath.Join(t.TempDir(), "web.yml")
	// bcrypt of "secret".
	if err := os.WriteFile(config, []byte("basic_auth_users:\n  prometheus: '$2a$04$Yo98AllFDTG2CxVHGlxITuGuY8lScVSxjEH5FB88trM4OydiE/xAa'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := exporterOf(t, d, "--web.config.file", config)
	for _, path := range []string{"/", "/metrics", "/status"} {
		if body, status := e.get(path, nil); status != http.StatusUnauthorized || strings.Contains(body, "reaper_") {
			t.Errorf("%s without a password: %d %s", path, status, body)
		}
		for password, want := range map[string]int{"secret": http.StatusOK, "guess": http.StatusUnauthorized} {
			if _, status := e.get(path, func(r *http.Request) { r.SetBasicAuth("prometheus", password) }); status != want {
				t.Errorf("%s with password %q: %d, want %d", path, password, status, want)
			}
		}
	}
}
