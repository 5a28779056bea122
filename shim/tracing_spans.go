//go:build shim_tracing

package shim

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/reaper-shim/reaper/internal/escape"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// Names of our spans, of their attributes and of the scope that they belong to: docs/tracing.md. Values are numbers, IDs that
// containerd has checked, and words of ours; nothing that a container says of itself.
const (
	spanScope  = "github.com/reaper-shim/reaper/shim"
	spanSweep  = "reaper.Sweep"
	spanAttach = "reaper.Attach"

	attrContainer = attribute.Key("container.id")
	attrAsked     = attribute.Key("reaper.asked")
	attrAttached  = attribute.Key("reaper.attached")
	attrAttaches  = attribute.Key("reaper.attaches")
	attrDeclined  = attribute.Key("reaper.declined")
	attrLeft      = attribute.Key("reaper.left")
	attrReaped    = attribute.Key("reaper.reaped")
	attrRefusals  = attribute.Key("reaper.refusals")
	attrStopped   = attribute.Key("reaper.stopped_us")
	attrVanished  = attribute.Key("reaper.vanished")
	attrZombies   = attribute.Key("reaper.zombies")
)

// maxSpanError bounds the text of an error in a span, in bytes: the last words of a tracer may be among it.
const maxSpanError = 256

// spans makes OpenTelemetry spans of what the shim does of its own accord. Those of the task API are made by containerd's
// interceptors. A nil *spans makes none.
type spans struct {
	tracer trace.Tracer
}

// newSpans sends spans to the process-wide provider, which containerd's tracing plugin has set; it returns nil where the plugin has
// not found anything to do.
func newSpans(ic *plugin.InitContext) *spans {
	if _, err := ic.GetByID(plugins.InternalPlugin, "tracing"); err != nil {
		return nil
	}
	return &spans{tracer: otel.Tracer(spanScope)}
}

// caller is the span of a call.
type caller struct {
	context trace.SpanContext
}

func callerOf(ctx context.Context) caller { return caller{trace.SpanContextFromContext(ctx)} }

// sweepSpan is the span of one sweep. The zero value is that of a sweep which is not traced.
type sweepSpan struct {
	span trace.Span
	// refusals before the sweep.
	refusals uint64
}

// sweep begins the span of a sweep of the namespace of container id, below the call that asked for it, if one did. before are
// the refusals until then.
func (s *spans) sweep(ctx context.Context, id string, a *ask, before map[tracer.Reason]uint64) (context.Context, sweepSpan) {
	if s == nil {
		return ctx, sweepSpan{}
	}
	if a != nil {
		ctx = trace.ContextWithRemoteSpanContext(ctx, a.caller.context)
	}
	ctx, span := s.tracer.Start(ctx, spanSweep, trace.WithAttributes(attrContainer.String(id)))
	return ctx, sweepSpan{span: span, refusals: sum(before)}
}

// end ends the span of a sweep that found or did something, or that somebody asked for. All others, which are two a second, are
// left to the garbage collector: what does not end is not exported.
func (s sweepSpan) end(a *ask, res sweep.Result, after map[tracer.Reason]uint64, err error) {
	if s.span == nil || errors.Is(err, sweep.ErrInitGone) || errors.Is(err, context.Canceled) {
		return
	}
	if a == nil && err == nil && !res.Changed && len(res.Reaped) == 0 && res.Declined.Reason == "" {
		return
	}
	s.span.SetAttributes(
		attrZombies.Int(res.Zombies),
		attrReaped.Int(len(res.Reaped)),
		attrRefusals.Int64(int64(sum(after)-s.refusals)),
	)
	if res.Declined.Reason != "" {
		s.span.SetAttributes(attrDeclined.String(string(res.Declined.Reason)))
	}
	fail(s.span, err)
	s.span.End()
}

func sum(refusals map[tracer.Reason]uint64) uint64 {
	var total uint64
	for _, n := range refusals {
		total += n
	}
	return total
}

// reaper returns r with a span for each of its attaches, attempts that leave PID 1 alone included.
func (s *spans) reaper(r sweep.Reaper, id string) sweep.Reaper {
	if s == nil {
		return r
	}
	return tracedReaper{Reaper: r, spans: s, id: id}
}

type tracedReaper struct {
	sweep.Reaper
	spans *spans
	id    string
}

// Reap makes the span of one request.
func (r tracedReaper) Reap(ctx context.Context, req tracer.Request) (tracer.Report, error) {
	ctx, span := r.spans.tracer.Start(ctx, spanAttach, trace.WithAttributes(attrContainer.String(r.id), attrAsked.Int(len(req.Zombies))))
	defer span.End()
	report, err := r.Reaper.Reap(ctx, req)
	if err != nil {
		fail(span, err)
		return report, err
	}
	span.SetAttributes(
		attrAttached.Bool(report.Attached),
		attrAttaches.Int(report.Attaches),
		attrReaped.Int(report.Count(tracer.Reaped)),
		attrVanished.Int(report.Count(tracer.Vanished)),
		attrRefusals.Int(report.Count(tracer.Refused)),
		attrLeft.Int(report.Count(tracer.Left)),
		attrStopped.Int64(report.Stopped.Microseconds()),
	)
	if report.Reason != "" {
		span.SetAttributes(attrDeclined.String(string(report.Reason)))
	}
	return report, nil
}

// fail gives the span the status of an error.
func fail(span trace.Span, err error) {
	if err == nil {
		return
	}
	text := err.Error()
	if len(text) > maxSpanError {
		text = strings.ToValidUTF8(text[:maxSpanError], "") + "…"
	}
	span.SetStatus(codes.Error, escape.Text(text))
}
