//go:build shim_tracing

package shim

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

func recorded(t *testing.T) (*spans, *tracetest.SpanRecorder) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(recorder))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return &spans{tracer: provider.Tracer(spanScope)}, recorder
}

func values(s trace.ReadOnlySpan) map[attribute.Key]any {
	m := make(map[attribute.Key]any)
	for _, kv := range s.Attributes() {
		m[kv.Key] = kv.Value.AsInterface()
	}
	return m
}

// TestSweepSpans: a sweep that found nothing and that nobody asked for has no span, every other has one with what came of it.
func TestSweepSpans(t *testing.T) {
	before := map[tracer.Reason]uint64{tracer.ReasonBusy: 4}
	for _, c := range []struct {
		name  string
		asked bool
		res   sweep.Result
		after map[tracer.Reason]uint64
		err   error
		want  map[attribute.Key]any // nil: no span
	}{
		{name: "nothing", after: before},
		{name: "zombies as before", res: sweep.Result{Zombies: 3}, after: before},
		{name: "pid 1 has ended", res: sweep.Result{Changed: true}, after: before, err: sweep.ErrInitGone},
		{name: "the shim ends", res: sweep.Result{Changed: true}, after: before, err: context.Canceled},
		{name: "asked", asked: true, after: before, want: map[attribute.Key]any{
			attrContainer: "c1", attrZombies: int64(0), attrReaped: int64(0), attrRefusals: int64(0)}},
		{name: "reaped", res: sweep.Result{Changed: true, Zombies: 1, Reaped: make([]sweep.Orphan, 2)}, after: before,
			want: map[attribute.Key]any{attrContainer: "c1", attrZombies: int64(1), attrReaped: int64(2), attrRefusals: int64(0)}},
		{name: "declined", res: sweep.Result{Changed: true, Zombies: 1, Declined: sweep.Declined{Reason: tracer.ReasonStopped, Detail: "any text"}},
			after: map[tracer.Reason]uint64{tracer.ReasonBusy: 5, tracer.ReasonStopped: 1},
			want: map[attribute.Key]any{attrContainer: "c1", attrZombies: int64(1), attrReaped: int64(0), attrRefusals: int64(2),
				attrDeclined: "stopped"}},
		{name: "failed", after: before, err: errors.New("no /proc"), want: map[attribute.Key]any{
			attrContainer: "c1", attrZombies: int64(0), attrReaped: int64(0), attrRefusals: int64(0)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, recorder := recorded(t)
			var a *ask
			if c.asked {
				a = newAsk(true, 1)
			}
			_, span := s.sweep(t.Context(), "c1", a, before)
			span.end(a, c.res, c.after, c.err)
			ended := recorder.Ended()
			if c.want == nil {
				if len(ended) != 0 {
					t.Errorf("a span: %v", values(ended[0]))
				}
				return
			}
			if len(ended) != 1 || ended[0].Name() != spanSweep {
				t.Fatalf("%d spans, want one of %s", len(ended), spanSweep)
			}
			if got := values(ended[0]); !equalValues(got, c.want) {
				t.Errorf("attributes %v, want %v", got, c.want)
			}
			if failed := ended[0].Status().Code == codes.Error; failed != (c.err != nil) {
				t.Errorf("status %v, error %v", ended[0].Status(), c.err)
			}
		})
	}
}

func equalValues(a, b map[attribute.Key]any) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// reaperFunc is a sweep.Reaper.
type reaperFunc func(context.Context, tracer.Request) (tracer.Report, error)

func (f reaperFunc) Reap(ctx context.Context, req tracer.Request) (tracer.Report, error) {
	return f(ctx, req)
}

// TestAttachSpans: an attach is a child of its sweep, which is a child of the call that asked for it.
func TestAttachSpans(t *testing.T) {
	s, recorder := recorded(t)
	ctx, call := s.tracer.Start(t.Context(), "call")
	a := newAsk(true, 1)
	a.caller = callerOf(ctx)
	report := tracer.Report{
		Attached: true, Attaches: 3, Reason: tracer.ReasonSignal, Stopped: 1500 * time.Microsecond,
		Results: []tracer.Result{
			{PID: 7, Outcome: tracer.Reaped}, {PID: 8, Outcome: tracer.Reaped}, {PID: 9, Outcome: tracer.Vanished, Reason: tracer.ReasonVanished},
			{PID: 10, Outcome: tracer.Refused, Reason: tracer.ReasonWaiting}, {PID: 11, Outcome: tracer.Left, Reason: tracer.ReasonBudget},
		},
	}
	ctx, span := s.sweep(context.WithoutCancel(t.Context()), "c1", a, nil)
	r := s.reaper(reaperFunc(func(context.Context, tracer.Request) (tracer.Report, error) { return report, nil }), "c1")
	if _, err := r.Reap(ctx, tracer.Request{Zombies: make([]tracer.Zombie, 5)}); err != nil {
		t.Fatal(err)
	}
	span.end(a, sweep.Result{}, nil, nil)
	call.End()

	ended := recorder.Ended()
	if len(ended) != 3 {
		t.Fatalf("%d spans, want 3", len(ended))
	}
	attach, swept := ended[0], ended[1]
	if attach.Parent().SpanID() != swept.SpanContext().SpanID() || swept.Parent().SpanID() != call.SpanContext().SpanID() ||
		attach.SpanContext().TraceID() != call.SpanContext().TraceID() {
		t.Errorf("attach %v below %v, sweep %v below %v, call %v", attach.SpanContext(), attach.Parent(), swept.SpanContext(), swept.Parent(), call.SpanContext())
	}
	want := map[attribute.Key]any{
		attrContainer: "c1", attrAsked: int64(5), attrAttached: true, attrAttaches: int64(3), attrReaped: int64(2), attrVanished: int64(1), attrRefusals: int64(1),
		attrLeft: int64(1), attrStopped: int64(1500), attrDeclined: "signal",
	}
	if got := values(attach); !equalValues(got, want) {
		t.Errorf("attributes %v, want %v", got, want)
	}
}

// TestAttachSpanError: the words of a tracer that died are cut and escaped.
func TestAttachSpanError(t *testing.T) {
	s, recorder := recorded(t)
	failure := errors.New("worker: \x1b[31m" + strings.Repeat("é", 4096))
	r := s.reaper(reaperFunc(func(context.Context, tracer.Request) (tracer.Report, error) { return tracer.Report{}, failure }), "c1")
	if _, err := r.Reap(t.Context(), tracer.Request{}); !errors.Is(err, failure) {
		t.Errorf("error %v, want %v", err, failure)
	}
	status := recorder.Ended()[0].Status()
	if status.Code != codes.Error || len(status.Description) > maxSpanError+16 || !utf8.ValidString(status.Description) ||
		!strings.HasPrefix(status.Description, `worker: \x1b[31mé`) {
		t.Errorf("status %v", status)
	}
}

// TestNoSpans: without tracing nothing is wrapped and nothing is made.
func TestNoSpans(t *testing.T) {
	var s *spans
	client := tracer.NewClient("/nowhere")
	if r := s.reaper(client, "c1"); r != sweep.Reaper(client) {
		t.Errorf("the reaper is wrapped: %T", r)
	}
	ctx := t.Context()
	if allocs := testing.AllocsPerRun(100, func() {
		spanCtx, span := s.sweep(ctx, "c1", nil, nil)
		if spanCtx != ctx {
			t.Error("another context")
		}
		span.end(nil, sweep.Result{Changed: true}, nil, nil)
	}); allocs != 0 {
		t.Errorf("%v allocations a sweep", allocs)
	}
}
