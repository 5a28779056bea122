package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"sync"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// runtimes are compared, ours the second.
var runtimes = []string{harness.RuncRuntime, harness.ReaperRuntime}

// programs are their shims.
var programs = map[string]string{harness.RuncRuntime: "containerd-shim-runc-v2", harness.ReaperRuntime: "containerd-shim-reaper-v2"}

// measureStart measures latencies, the cases of each round in a new order.
func measureStart(ctx context.Context, d *harness.Daemon, o options) (_ *startPart, err error) {
	part := &startPart{Rounds: o.rounds}
	for _, op := range []string{opStart, opRun, opExec, opInfo} {
		for _, parallel := range []int{1, o.parallel} {
			if op == opInfo && parallel > 1 {
				continue
			}
			for _, r := range runtimes {
				part.Cases = append(part.Cases, startCase{Op: op, Parallel: parallel, Runtime: r})
			}
		}
	}
	// Where execs run.
	hosts := make(map[string]*bare)
	defer func() {
		for _, b := range hosts {
			err = errors.Join(err, b.remove(ctx))
		}
	}()
	for _, r := range runtimes {
		b, err := prepare(ctx, d, r, idle)
		if err != nil {
			return nil, err
		}
		hosts[r] = b
		if _, err := b.start(ctx); err != nil {
			return nil, err
		}
	}
	// The first round fills caches and does not count.
	for round := range o.rounds + 1 {
		for _, i := range rand.Perm(len(part.Cases)) {
			c := &part.Cases[i]
			times := 1
			if c.Parallel == 1 {
				times = o.repeat
			}
			for range times {
				ms, err := c.measure(ctx, d, hosts[c.Runtime])
				if err != nil {
					return nil, fmt.Errorf("%s, %d in parallel, %s: %w", c.Op, c.Parallel, c.Runtime, err)
				}
				if round > 0 {
					c.MS = append(c.MS, ms...)
				}
			}
		}
	}
	return part, nil
}

// measure does it once, and returns how long each took.
func (c *startCase) measure(ctx context.Context, d *harness.Daemon, host *bare) (ms []float64, err error) {
	var containers []*bare
	defer func() { err = errors.Join(err, removeAll(ctx, containers)) }()
	if c.Op == opStart {
		for range c.Parallel {
			b, err := prepare(ctx, d, c.Runtime, idle)
			if err != nil {
				return nil, err
			}
			containers = append(containers, b)
		}
	}
	var mu sync.Mutex
	err = inParallel(c.Parallel, c.Parallel, func(i int) error {
		began := time.Now()
		var err error
		switch c.Op {
		case opStart:
			_, err = containers[i].start(ctx)
		case opRun:
			err = runOnce(ctx, d, c.Runtime)
		case opExec:
			err = host.exec(ctx)
		default:
			err = info(ctx, d, c.Runtime)
		}
		took := time.Since(began)
		mu.Lock()
		defer mu.Unlock()
		ms = append(ms, millis(took))
		return err
	})
	return ms, err
}

func runOnce(ctx context.Context, d *harness.Daemon, runtime string) error {
	b, err := prepare(ctx, d, runtime, []string{"/bin/true"})
	if err != nil {
		return err
	}
	exit, err := b.start(ctx)
	if err == nil {
		err = done(ctx, exit)
	}
	return errors.Join(err, b.remove(ctx))
}

// info runs the program as CRI does before it uses a runtime for the first time.
func info(ctx context.Context, d *harness.Daemon, runtime string) error {
	program, err := testutil.FindTool(programs[runtime])
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-info")
	cmd.Stdin, cmd.Env = bytes.NewReader(nil), d.Env()
	out, err := cmd.Output()
	if err == nil && len(out) == 0 {
		err = errors.New("it told nothing")
	}
	return err
}
