package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
)

// measureIdle starts pods of each size under each runtime, leaves them alone, and measures all of them over the same time.
func measureIdle(ctx context.Context, d *harness.Daemon, o options) (_ *idlePart, err error) {
	part := &idlePart{Settle: o.settle.Seconds(), Seconds: o.idle.Seconds()}
	var pods []*pod
	defer func() { err = errors.Join(err, removeAll(ctx, pods)) }()
	var kinds []podIdle
	for range o.podsPerSize {
		for _, n := range o.containers {
			for _, r := range runtimes {
				kinds = append(kinds, podIdle{Runtime: r, Containers: n})
			}
		}
	}
	rand.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	for _, k := range kinds {
		p, err := startPod(ctx, d, k.Runtime, k.Containers, idle)
		pods = append(pods, p)
		if err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, o.settle); err != nil {
		return nil, err
	}
	meters := make([]*meter, len(pods))
	first, firstTracer := make([]usage, len(pods)), make([]usage, len(pods))
	began := make([]time.Time, len(pods))
	for i, p := range pods {
		if kinds[i].Memory, err = memoryOf(p.shim.PID); err != nil {
			return nil, err
		}
	}
	for i, p := range pods {
		meters[i] = newMeter(p.shim)
		began[i] = time.Now()
		if first[i], firstTracer[i], err = meters[i].read(); err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, o.idle); err != nil {
		return nil, err
	}
	for i, p := range pods {
		if err := alive(p.shim); err != nil {
			return nil, err
		}
		shim, tracing, err := meters[i].read()
		if err != nil {
			return nil, fmt.Errorf("pod of %d containers under %s: %w", kinds[i].Containers, kinds[i].Runtime, err)
		}
		seconds := time.Since(began[i]).Seconds()
		used := shim.minus(first[i])
		kinds[i].CPU, kinds[i].Switches = micros(used.cpu)/seconds, float64(used.switches)/seconds
		kinds[i].Tracer = float64(tracing.minus(firstTracer[i]).switches) / seconds
	}
	part.Pods = kinds
	return part, nil
}
