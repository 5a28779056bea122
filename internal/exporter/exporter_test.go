package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

// fakeNode is a node that says what a test gives it.
type fakeNode struct {
	mu      sync.Mutex
	tasks   []*node.Task
	err     error
	gone    bool
	closed  bool
	asked   int
	zombies map[string][]*api.Zombie
	events  chan *types.Envelope
}

func (f *fakeNode) Snapshot(ctx context.Context) ([]*node.Task, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return f.tasks, errors.Join(f.err, ctx.Err())
}

func (f *fakeNode) Zombies(_ context.Context, t *node.Task, limit uint32) ([]*api.Zombie, uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.zombies[t.ID]
	if n := uint32(len(list)); n > limit {
		return list[:limit], n - limit, nil
	}
	return list, 0, nil
}

func (f *fakeNode) Follow(ctx context.Context, _ []string, take func(*types.Envelope) (bool, error)) error {
	for {
		select {
		case env := <-f.events:
			if _, err := take(env); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fakeNode) DaemonGone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone
}

func (f *fakeNode) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

// clock stands still until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func testExporter(nodes ...*fakeNode) (*exporter, *clock) {
	c := &clock{t: start}
	return newExporter(config{
		open: func(context.Context) (source, error) {
			if len(nodes) == 0 {
				return nil, node.ErrUnavailable
			}
			n := nodes[0]
			nodes = nodes[1:]
			return n, nil
		},
		log: slog.New(slog.NewTextHandler(io.Discard, nil)), now: c.now, interval: 10 * time.Second, retain: time.Hour, topCommands: 3,
	}), c
}

// full is a node on which there is something of everything.
func full() *fakeNode {
	return &fakeNode{
		tasks: []*node.Task{
			{Namespace: "k8s.io", ID: "a1", Names: node.Names{PodNamespace: "shop", Pod: "web-0", Container: "app"}, Ours: true, Revision: 2, Stats: &api.ZombieStats{
				ContainerId: "a1", Pid: 100, Mode: "assist", EffectiveMode: "assist", Adopted: 2, Own: 3, Unproven: 1, Held: 4, Oldest: durationpb.New(1500 * time.Millisecond),
				GraceInForce: durationpb.New(time.Second), ReapedByTracer: 40, ReapedOwn: 1, Vanished: 2, Attaches: 9, LongestStop: durationpb.New(3 * time.Millisecond),
				Refusals: map[string]uint64{"busy": 5, "signal": 1}, PidsCurrent: 85, PidsMax: 100, ForkLog: &api.ForkLog{Source: "perf", Lost: 1, Gaps: 1},
				ReapTimes: &api.ReapTimes{Bounds: []float64{0.5, 1, 2}, Counts: []uint64{0, 10, 29, 1}, Sum: 61.5}, OrphanEventsDropped: 3,
			}},
			{Namespace: "k8s.io", ID: "a0", Names: node.Names{PodNamespace: "shop", Pod: "web-0", Sandbox: true}, Ours: true, Revision: 2, Stats: &api.ZombieStats{
				ContainerId: "a0", Pid: 99, Mode: "init", EffectiveMode: "assist", GraceInForce: durationpb.New(time.Second)}},
			{Namespace: "default", ID: "c1", Names: node.Names{Nerdctl: "legacy"}},
			{Namespace: "default", ID: "c2", Err: errors.New("deadline exceeded")},
		},
		zombies: map[string][]*api.Zombie{"a1": {{Command: "git"}, {Command: "git"}, {Command: "sh"}, {Command: "a\x1b[2Jb"}}},
	}
}

func TestCollect(t *testing.T) {
	e, _ := testExporter(full())
	if err := e.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.CollectAndLint(e)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	const want = `
# HELP reaper_zombies Zombies at the last sweep, by who forked them: adopted (proven orphans of PID 1), own (PID 1 forked them), unproven, or held (children of another living process).
# TYPE reaper_zombies gauge
reaper_zombies{container="(pod)",namespace="shop",pod="web-0",verdict="adopted"} 0
reaper_zombies{container="(pod)",namespace="shop",pod="web-0",verdict="held"} 0
reaper_zombies{container="(pod)",namespace="shop",pod="web-0",verdict="own"} 0
reaper_zombies{container="(pod)",namespace="shop",pod="web-0",verdict="unproven"} 0
reaper_zombies{container="app",namespace="shop",pod="web-0",verdict="adopted"} 2
reaper_zombies{container="app",namespace="shop",pod="web-0",verdict="held"} 4
reaper_zombies{container="app",namespace="shop",pod="web-0",verdict="own"} 3
reaper_zombies{container="app",namespace="shop",pod="web-0",verdict="unproven"} 1
# HELP reaper_node_zombies_reaped_total reaper_zombies_reaped_total of all containers that there ever were since the exporter began.
# TYPE reaper_node_zombies_reaped_total counter
reaper_node_zombies_reaped_total{mechanism="init",outcome="adopted"} 0
reaper_node_zombies_reaped_total{mechanism="pid1",outcome="adopted"} 2
reaper_node_zombies_reaped_total{mechanism="shim",outcome="adopted"} 0
reaper_node_zombies_reaped_total{mechanism="tracer",outcome="adopted"} 39
reaper_node_zombies_reaped_total{mechanism="tracer",outcome="own"} 1
reaper_node_zombies_reaped_total{mechanism="tracer",outcome="unproven"} 0
# HELP reaper_time_to_reap_seconds How long zombies were seen before PID 1 was made to reap them (mechanism tracer). Shims of revision 1 do not say.
# TYPE reaper_time_to_reap_seconds histogram
reaper_time_to_reap_seconds_bucket{container="app",namespace="shop",pod="web-0",le="0.5"} 0
reaper_time_to_reap_seconds_bucket{container="app",namespace="shop",pod="web-0",le="1"} 10
reaper_time_to_reap_seconds_bucket{container="app",namespace="shop",pod="web-0",le="2"} 39
reaper_time_to_reap_seconds_bucket{container="app",namespace="shop",pod="web-0",le="+Inf"} 40
reaper_time_to_reap_seconds_sum{container="app",namespace="shop",pod="web-0"} 61.5
reaper_time_to_reap_seconds_count{container="app",namespace="shop",pod="web-0"} 40
# HELP reaper_command_zombies Zombies by command, the most frequent ones on the node; (other) for the rest. Renewed each poll interval.
# TYPE reaper_command_zombies gauge
reaper_command_zombies{command="(other)"} 0
reaper_command_zombies{command="a\\x1b[2Jb"} 1
reaper_command_zombies{command="git"} 2
reaper_command_zombies{command="sh"} 1
# HELP reaper_tasks Tasks of containerd: watched (their shim answers), foreign (of another runtime), unanswered (their shim does not answer).
# TYPE reaper_tasks gauge
reaper_tasks{state="foreign"} 1
reaper_tasks{state="unanswered"} 1
reaper_tasks{state="watched"} 2
# HELP reaper_up Whether containerd answered.
# TYPE reaper_up gauge
reaper_up 1
`
	if err := testutil.CollectAndCompare(e, strings.NewReader(want), "reaper_zombies", "reaper_node_zombies_reaped_total", "reaper_time_to_reap_seconds",
		"reaper_command_zombies", "reaper_tasks", "reaper_up"); err != nil {
		t.Error(err)
	}
}

// Everything that is described is served where there is something of everything: the page lists no metric that does not exist.
func TestDescribe(t *testing.T) {
	for _, f := range families(t) {
		if len(f.GetMetric()) == 0 {
			t.Errorf("%s has no sample", f.GetName())
		}
	}
	if got := len(families(t)); got != len(all) {
		t.Errorf("%d metrics are served, %d described", got, len(all))
	}
}

func families(t *testing.T) []*dto.MetricFamily {
	t.Helper()
	e, _ := testExporter(full())
	if err := e.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(e)
	out, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// value is that of the only sample with these labels, and whether there is one.
func value(t *testing.T, e *exporter, name string, labels map[string]string) (float64, bool) {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(e)
	fs, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			got := map[string]string{}
			for _, l := range m.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			if maps.Equal(got, labels) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue(), true
			}
		}
	}
	return 0, false
}

// While containerd does not answer counters stay, and nothing is said of now.
func TestUnavailable(t *testing.T) {
	f := full()
	e, c := testExporter(f)
	app := map[string]string{"namespace": "shop", "pod": "web-0", "container": "app"}
	with := func(k, v string) map[string]string {
		m := maps.Clone(app)
		m[k] = v
		return m
	}
	if v, ok := value(t, e, "reaper_up", map[string]string{}); v != 0 || !ok {
		t.Errorf("up before anything was asked: %v, %v", v, ok)
	}
	for _, err := range []error{nil, node.ErrUnavailable, nil} {
		f.mu.Lock()
		f.err = err
		tasks := full().tasks
		if err != nil {
			tasks = nil
		}
		f.tasks = tasks
		f.mu.Unlock()
		c.advance(time.Minute)
		if got := e.poll(t.Context()); !errors.Is(got, err) {
			t.Fatalf("poll: %v, want %v", got, err)
		}
		if v, ok := value(t, e, "reaper_up", map[string]string{}); !ok || (v == 1) != (err == nil) {
			t.Errorf("up is %v with error %v", v, err)
		}
		if v, ok := value(t, e, "reaper_refusals_total", with("reason", "busy")); !ok || v != 5 {
			t.Errorf("refusals: %v, %v with error %v; want 5", v, ok, err)
		}
		if _, ok := value(t, e, "reaper_zombies", with("verdict", "own")); ok != (err == nil) {
			t.Errorf("zombies are served: %v, with error %v", ok, err)
		}
	}
}

// A containerd that was restarted is connected to anew: the files of the old one are out of reach.
func TestDaemonRestarted(t *testing.T) {
	first, second := full(), full()
	e, _ := testExporter(first, second)
	if err := e.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.mu.Lock()
	first.gone = true
	first.mu.Unlock()
	if err := e.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if first.asked != 1 || !first.closed || second.asked != 1 {
		t.Errorf("the old one was asked %d times, closed: %v; the new one was asked %d times", first.asked, first.closed, second.asked)
	}
}

// Nothing waits longer than its scrape for a look that hangs, and what is served then says so.
func TestLookHangs(t *testing.T) {
	e, _ := testExporter(full())
	e.looking <- struct{}{} // somebody else is at it
	h, err := e.handler("test")
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, metricsPath, http.NoBody)
	r.Header.Set(timeoutHeader, "0.2")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "\nreaper_up 0\n") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}

// Two scrapes within a second ask once.
func TestScrapesShare(t *testing.T) {
	f := full()
	e, c := testExporter(f)
	h, err := e.handler("test")
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
		return w
	}
	for _, path := range []string{metricsPath, metricsPath, statusPath} {
		if w := get(path); w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	c.advance(fresh)
	get(metricsPath)
	if f.asked != 2 {
		t.Errorf("asked %d times, want 2", f.asked)
	}
	if w := get("/"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "status") {
		t.Errorf("landing page: %d %s", w.Code, w.Body)
	}
	if w := get("/none"); w.Code != http.StatusNotFound {
		t.Errorf("no such page: %d", w.Code)
	}
}

// However many names a container gives its processes, few get a series.
func TestCommandsBounded(t *testing.T) {
	f := full()
	e, c := testExporter(f)
	seen := make(map[string]bool)
	const rounds = 200
	for round := range rounds {
		f.mu.Lock()
		f.zombies["a1"] = nil
		for i := range 300 {
			f.zombies["a1"] = append(f.zombies["a1"], &api.Zombie{Command: fmt.Sprintf("x%d-%d", round, i)})
		}
		f.mu.Unlock()
		c.advance(10 * time.Second)
		if err := e.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
		sum := 0
		for command, n := range e.commands {
			seen[command] = true
			sum += n
		}
		if len(e.commands) > 4 || sum != 300 {
			t.Fatalf("round %d: %v", round, e.commands)
		}
	}
	// One a minute, the three of the beginning, and (other).
	if most := rounds*10/60 + 3 + 1; len(seen) > most {
		t.Errorf("%d series in all, want %d at most", len(seen), most)
	}
}

// The last words of a task are only in an event.
func TestFinalEvent(t *testing.T) {
	f := full()
	f.events = make(chan *types.Envelope)
	e, _ := testExporter(f)
	if err := e.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.follow(ctx); close(done) }()
	send := func(kind string, s *api.ZombieStats) {
		value, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		f.events <- &types.Envelope{Topic: topicZombies, Namespace: "k8s.io", Event: &anypb.Any{TypeUrl: kind, Value: value}}
	}
	send("something.else", &api.ZombieStats{ContainerId: "a1", Pid: 100, ReapedByTracer: 1000})
	send(statsMessage, &api.ZombieStats{ContainerId: "a1", Pid: 100, ReapedByTracer: 50, ReapedOwn: 1, Final: true})
	send(statsMessage, &api.ZombieStats{}) // once it is taken the one before has been
	cancel()
	<-done
	if v, _ := value(t, e, "reaper_zombies_reaped_total", map[string]string{"namespace": "shop", "pod": "web-0", "container": "app", "mechanism": "tracer", "outcome": "adopted"}); v != 49 {
		t.Errorf("%v reaped, want 49", v)
	}
}

// What containers call themselves does not become markup, nor anything that does not print.
func TestStatusHostile(t *testing.T) {
	f := full()
	f.tasks[0].Names = node.Names{Nerdctl: "<script>alert(1)</script>\x1b[2J\u202e"}
	f.zombies["a1"] = []*api.Zombie{{Command: `"><img src=x>`}, {Command: "\u202eevil\x00"}}
	e, _ := testExporter(f)
	if err := e.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	e.status(w)
	body := w.Body.String()
	if strings.Contains(body, "<script") || strings.Contains(body, "<img") || strings.ContainsAny(body, "\x1b\x00\u202e") {
		t.Errorf("unescaped: %s", body)
	}
	for _, want := range []string{"&lt;script&gt;", "&lt;img", "10 zombies in 2 watched tasks", "1 whose shim does not answer", "85 of 100", "<polyline points="} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing from %s", want, body)
		}
	}
	if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %q", csp)
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(e)
	if problems, err := testutil.GatherAndLint(r); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestSparkline(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   line
	}{
		{nil, line{}},
		{[]float64{0}, line{"90.0,23.0", "0"}},
		{[]float64{0, 4}, line{"88.5,23.0 90.0,1.0", "4"}},
	} {
		if got := sparkline(tt.values); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.values, got, tt.want)
		}
	}
}

func TestTimeFor(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": 9500 * time.Millisecond, "10": 9500 * time.Millisecond, "2.5": 2 * time.Second, "0.4": 200 * time.Millisecond,
		"-1": 9500 * time.Millisecond, "NaN": 9500 * time.Millisecond, "x": 9500 * time.Millisecond, "1e99": 9500 * time.Millisecond,
	} {
		if got := timeFor(header); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"--poll-interval 10ms", []string{"--poll-interval", "10ms", "1s or more"}},
		{"--shim-timeout 0s", []string{"--shim-timeout", "0s", "more than"}},
		{"--retain -1s", []string{"--retain", "-1s", "0s or more"}},
		{"--top-commands -1", []string{"--top-commands", "-1", "0 or more"}},
		{"--log.level loud", []string{"--log.level", `"loud"`, "debug, info, warn or error"}},
		{"--nothing", []string{"--nothing"}},
		{"word", []string{`"word"`}},
	} {
		var out, errOut strings.Builder
		code := Main(t.Context(), "test", strings.Fields(tt.args), &out, &errOut)
		if code != exitUsage || out.Len() > 0 {
			t.Errorf("%s: exit code %d, want %d; %q", tt.args, code, exitUsage, out.String())
		}
		for _, want := range append(tt.want, "--help") {
			if !strings.Contains(errOut.String(), want) {
				t.Errorf("%s: %q is missing from %q", tt.args, want, errOut.String())
			}
		}
	}
}
