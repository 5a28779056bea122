//go:build !shim_tracing

package shim

import (
	"context"

	"github.com/containerd/plugin"

	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// Without the tag nothing of OpenTelemetry is linked in, and these do nothing: see tracing_on.go and tracing_spans.go.
type (
	spans     struct{}
	sweepSpan struct{}
	caller    struct{}
)

func settleTracing() (off string) { return "" }

func newSpans(*plugin.InitContext) *spans { return nil }

func callerOf(context.Context) caller { return caller{} }

func (*spans) sweep(ctx context.Context, _ string, _ *ask, _ map[tracer.Reason]uint64) (context.Context, sweepSpan) {
	return ctx, sweepSpan{}
}

func (sweepSpan) end(*ask, sweep.Result, map[tracer.Reason]uint64, error) {}

func (*spans) reaper(r sweep.Reaper, _ string) sweep.Reaper { return r }
