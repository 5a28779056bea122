package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/shim/api"
)

// span is a span as the receiver got it.
type span struct {
	*trace.Span
	service string // service.name of its sender
	scope   string
}

// value returns an attribute, nil for none.
func (s span) value(key string) any { return valueOf(s.GetAttributes(), key) }

func valueOf(attributes []*common.KeyValue, key string) any {
	for _, kv := range attributes {
		if kv.GetKey() != key {
			continue
		}
		switch v := kv.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			return v.StringValue
		case *common.AnyValue_IntValue:
			return v.IntValue
		case *common.AnyValue_BoolValue:
			return v.BoolValue
		default:
			return v
		}
	}
	return nil
}

// collectorOf receives traces as an OpenTelemetry collector does, by OTLP over HTTP.
type collectorOf struct {
	t   *testing.T
	url string

	mu    sync.Mutex
	spans []span
}

func newCollector(t *testing.T) *collectorOf {
	t.Helper()
	c := &collectorOf{t: t}
	server := httptest.NewServer(http.HandlerFunc(c.receive))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *collectorOf) receive(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	var msg collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(data, &msg)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		c.t.Errorf("%s %s (%s): %v", r.Method, r.URL, r.Header.Get("Content-Type"), err)
		http.Error(w, "not a trace", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range msg.GetResourceSpans() {
		service, _ := valueOf(resource.GetResource().GetAttributes(), "service.name").(string)
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, span{Span: s, service: service, scope: scope.GetScope().GetName()})
			}
		}
	}
}

// all returns the spans whose sender's name begins with service.
func (c *collectorOf) all(service string) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []span
	for _, s := range c.spans {
		if strings.HasPrefix(s.service, service) {
			out = append(out, s)
		}
	}
	return out
}

// wait returns the spans that are sent by the shim of a container and that want wants, once there is one.
func (c *collectorOf) wait(shim string, what string, want func(span) bool) []span {
	c.t.Helper()
	var found []span
	testutil.Eventually(c.t, 20*time.Second, func() (bool, string) {
		var names []string
		found = nil
		for _, s := range c.all(shimService + shim) {
			names = append(names, s.GetName())
			if want(s) {
				found = append(found, s)
			}
		}
		return len(found) > 0, fmt.Sprintf("no span of %s by %s among %d: %v", what, shim, len(names), names)
	})
	return found
}

const (
	// shimService is what the name of a shim begins with, before its ID.
	shimService = "containerd-shim-"
	reaperScope = "github.com/reaper-shim/reaper/shim"
)

// exportTo is the environment of a daemon that sends traces there.
func (c *collectorOf) exportTo(more ...string) []string {
	return append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_BSP_SCHEDULE_DELAY=100"}, more...)
}

// tracingBuild returns the directory of the programs that make build-tracing makes.
func tracingBuild(t *testing.T) string {
	t.Helper()
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "bin/tracing")
	for _, name := range []string{"containerd-shim-reaper-v2", "reaper-tracer"} {
		if !exists(filepath.Join(bin, name)) {
			testutil.Lacks(t, "no bin/tracing/"+name, "make build-tracing")
		}
	}
	return bin
}

// TestTracing: with containerd's own settings the shim sends spans of the task API, below containerd's, and of its sweeps and
// attaches, with numbers and nothing that the container says.
func TestTracing(t *testing.T) {
	reaper(t)
	c := newCollector(t)
	d := ownDaemon(t, harness.Options{Bin: tracingBuild(t), Env: c.exportTo()})
	begin := time.Now()

	leaky := run(t, d, harness.Spec{ID: "leaky", Runtime: harness.ReaperRuntime, Args: []string{"/bin/pause1", "poll"}})
	exec(t, leaky, "/bin/leak", "-n", "3")
	allGone(t, leaky)
	stopped := run(t, d, harness.Spec{ID: "stopped", Runtime: harness.ReaperRuntime, Args: []string{"/bin/pause1", "poll"}})
	if err := stopped.Kill(t.Context(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	state(t, stopped, "T")
	exec(t, stopped, "/bin/leak", "-n", "2")
	spec := patient("patient", "1h")
	spec.Runtime = harness.ReaperRuntime
	patience := run(t, d, spec)
	exec(t, patience, "/bin/leak", "-n", "2")
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		resp, err := reaperClient(t, shimSocket(t, d, patience)).Reap(t.Context(), &api.ReapRequest{ContainerId: patience.ID()})
		zs := zombies(t, patience)
		return err == nil && len(zs) == 0, fmt.Sprint(resp, err, describe(zs))
	})
	if err := leaky.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}

	for _, method := range []string{"Create", "Start", "Delete"} {
		call := c.wait(leaky.ID(), method, func(s span) bool { return strings.HasSuffix(s.GetName(), ".Task/"+method) })[0]
		if call.GetKind() != trace.Span_SPAN_KIND_SERVER {
			t.Errorf("%s: kind %v", method, call.GetKind())
		}
		parent := func(s span) bool { return string(s.GetSpanId()) == string(call.GetParentSpanId()) }
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			for _, s := range c.all("containerd") {
				if parent(s) && !strings.HasPrefix(s.service, shimService) && string(s.GetTraceId()) == string(call.GetTraceId()) {
					return true, ""
				}
			}
			return false, fmt.Sprintf("%s is not below a span of containerd's", method)
		})
	}

	sweeps := func(id string) []span {
		return c.wait(id, "a sweep that reaped", func(s span) bool {
			n, _ := s.value("reaper.reaped").(int64)
			return s.GetName() == "reaper.Sweep" && n > 0
		})
	}
	reaped := int64(0)
	for _, s := range sweeps(leaky.ID()) {
		reaped += s.value("reaper.reaped").(int64)
		if len(s.GetParentSpanId()) != 0 || s.value("container.id") != leaky.ID() {
			t.Errorf("sweep: %v", s)
		}
		attach := c.wait(leaky.ID(), "an attach of that sweep", func(a span) bool {
			return a.GetName() == "reaper.Attach" && string(a.GetParentSpanId()) == string(s.GetSpanId()) && a.value("reaper.attached") == true
		})[0]
		if n, _ := attach.value("reaper.reaped").(int64); n < 1 || attach.GetStartTimeUnixNano() < s.GetStartTimeUnixNano() ||
			attach.GetEndTimeUnixNano() > s.GetEndTimeUnixNano() || int64(attach.GetStartTimeUnixNano()) < begin.UnixNano() {
			t.Errorf("attach %v of sweep %v", attach, s)
		}
	}
	if reaped != 3 {
		t.Errorf("%d reaped in all sweeps, want 3", reaped)
	}
	declined := c.wait(stopped.ID(), "a sweep that declined", func(s span) bool {
		n, _ := s.value("reaper.refusals").(int64)
		return s.GetName() == "reaper.Sweep" && n > 0
	})[0]
	if zombies := declined.value("reaper.zombies"); zombies != int64(2) || declined.value("reaper.declined") != "stopped" {
		t.Errorf("declined sweep: %v", declined)
	}
	asked := sweeps(patience.ID())[0]
	c.wait(patience.ID(), "the call that asked for it", func(s span) bool {
		return s.GetName() == "containerd.reaper.v1.Reaper/Reap" && string(s.GetSpanId()) == string(asked.GetParentSpanId())
	})

	for _, s := range c.all(shimService) {
		if s.scope != reaperScope {
			continue
		}
		for _, kv := range s.GetAttributes() {
			if text, ok := s.value(kv.GetKey()).(string); ok && len(text) > 64 || strings.Contains(text, "leak") && kv.GetKey() != "container.id" {
				t.Errorf("%s of %s: %q", kv.GetKey(), s.GetName(), text)
			}
		}
	}
}

// TestTracingOff: without being asked, or asked for what there is not, a shim sends nothing and works as ever; the usual build has
// nothing to send with.
func TestTracingOff(t *testing.T) {
	reaper(t)
	bin := tracingBuild(t)
	for _, test := range []struct {
		name, bin string
		env       []string
		daemon    bool // containerd itself sends
		says      string
	}{
		{name: "usual build", daemon: true},
		{name: "disabled", bin: bin, env: []string{"OTEL_SDK_DISABLED=true"}},
		{name: "another exporter", bin: bin, env: []string{"OTEL_TRACES_EXPORTER=none"}, says: `no tracing: OTEL_TRACES_EXPORTER=\"none\": want otlp`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCollector(t)
			d := ownDaemon(t, harness.Options{Bin: test.bin, Env: c.exportTo(test.env...)})
			leaky := run(t, d, harness.Spec{ID: "leaky", Runtime: harness.ReaperRuntime, Args: []string{"/bin/pause1", "poll"}})
			exec(t, leaky, "/bin/leak", "-n", "2")
			allGone(t, leaky)
			shim, err := leaky.Shim()
			if err != nil {
				t.Fatal(err)
			}
			if err := leaky.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			// What it had to send it sent when it ended.
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				return !exists(fmt.Sprintf("/proc/%d", shim.PID)), fmt.Sprintf("shim %d is alive", shim.PID)
			})
			if test.daemon {
				testutil.Eventually(t, 10*time.Second, func() (bool, string) { return len(c.all("")) > 0, "containerd has sent nothing" })
			} else if spans := c.all(""); len(spans) != 0 {
				t.Errorf("%d spans, one is %s by %s", len(spans), spans[0].GetName(), spans[0].service)
			}
			if spans := c.all(shimService); len(spans) != 0 {
				t.Errorf("%d spans of the shim, one is %s", len(spans), spans[0].GetName())
			}
			if test.says != "" && !strings.Contains(d.Log(), test.says) {
				t.Errorf("the shim's log does not say %s", test.says)
			}
		})
	}
}

// TestTracingHungCollector: a collector that takes connections and says nothing keeps no container from starting, being reaped below
// and ending, and no shim from going.
func TestTracingHungCollector(t *testing.T) {
	reaper(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	d := ownDaemon(t, harness.Options{Bin: tracingBuild(t), Env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + listener.Addr().String(),
		"OTEL_BSP_SCHEDULE_DELAY=100"}})
	// Connections wait in the backlog (listen(2)), as they do for a collector that hangs.
	leaky := run(t, d, harness.Spec{Runtime: harness.ReaperRuntime, Args: []string{"/bin/pause1", "poll"}})
	exec(t, leaky, "/bin/leak", "-n", "2")
	allGone(t, leaky)
	shim, err := leaky.Shim()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Slow(5*time.Second)) // the exporter's own time-out is ten
	defer cancel()
	if err := leaky.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		return !exists(fmt.Sprintf("/proc/%d", shim.PID)), fmt.Sprintf("shim %d is alive", shim.PID)
	})
}
