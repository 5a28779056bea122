package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/typeurl/v2"

	"github.com/reaper-shim/reaper/integration/harness"
)

// grace is the default of our runtime.
const grace = time.Second

// measureDensity starts many pods at once, under one runtime and then under the other.
func measureDensity(ctx context.Context, d *harness.Daemon, o options) (*densityPart, error) {
	part := &densityPart{Pods: o.pods, Workers: o.workers, Window: o.window.Seconds(), Rate: o.rate, Grace: grace.Seconds()}
	order := rand.Perm(len(runtimes))
	part.Runtimes = make([]densityCase, len(runtimes))
	for _, i := range order {
		c := &part.Runtimes[i]
		c.Runtime = runtimes[i]
		if err := c.measure(ctx, d, o); err != nil {
			return nil, fmt.Errorf("%d pods under %s: %w", o.pods, c.Runtime, err)
		}
	}
	return part, nil
}

func (c *densityCase) measure(ctx context.Context, d *harness.Daemon, o options) (err error) {
	free, err := available()
	if err != nil {
		return err
	}
	pods := make([]*pod, o.pods)
	defer func() {
		var started []*pod
		for _, p := range pods {
			if p != nil {
				started = append(started, p)
			}
		}
		err = errors.Join(err, removeAll(ctx, started))
	}()
	began := time.Now()
	// A pod is one container here: what its sandbox takes is the same under both.
	err = inParallel(len(pods), o.workers, func(i int) error {
		p, err := startPod(ctx, d, c.Runtime, 0, idle)
		pods[i] = p
		return err
	})
	if err != nil {
		return err
	}
	c.Started = time.Since(began).Seconds()
	if err := pause(ctx, o.settle); err != nil {
		return err
	}
	now, err := available()
	if err != nil {
		return err
	}
	c.Node = free - now
	meters := make([]*meter, len(pods))
	for i, p := range pods {
		m, err := memoryOf(p.shim.PID)
		if err != nil {
			return err
		}
		c.Memory.add(m)
		meters[i] = newMeter(p.shim)
	}
	shims, tracing, seconds, err := during(ctx, meters, func() error { return pause(ctx, o.window) })
	if err != nil {
		return err
	}
	used := shims.plus(tracing)
	c.QuietCPU, c.QuietSwitches = 100*used.cpu.Seconds()/seconds, float64(used.switches)/seconds

	c.Leaking = max(1, len(pods)*o.leaking/100)
	l := newLeaks()
	stop, err := l.listen(ctx, d)
	if err != nil {
		return err
	}
	defer stop()
	shims, tracing, seconds, err = during(ctx, meters, func() error { return l.run(ctx, d, pods[:c.Leaking], o) })
	if err != nil {
		return err
	}
	used = shims.plus(tracing)
	c.LeakCPU, c.TracerCPU, c.LeakSwitches = 100*used.cpu.Seconds()/seconds, 100*tracing.cpu.Seconds()/seconds, float64(used.switches)/seconds
	// What is there later than the promise allows is left.
	if err := pause(ctx, grace+2*time.Second); err != nil {
		return err
	}
	for _, p := range pods[:c.Leaking] {
		zs, err := p.containers[0].Zombies()
		if err != nil {
			return err
		}
		c.Left += len(zs)
	}
	if c.Leaked, c.ReapMS, err = l.results(); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	if want := c.Leaking * o.rate * int(o.window.Seconds()); c.Leaked < want {
		return fmt.Errorf("%d orphans were leaked, want %d", c.Leaked, want)
	}
	return nil
}

// during measures what all shims and tracers use while f runs.
func during(ctx context.Context, meters []*meter, f func() error) (shims, tracing usage, seconds float64, err error) {
	sum := func() (a, b usage, err error) {
		for _, m := range meters {
			shim, tracer, err := m.read()
			if err != nil {
				return a, b, err
			}
			a, b = a.plus(shim), b.plus(tracer)
		}
		return a, b, nil
	}
	shims0, tracing0, err := sum()
	if err != nil {
		return usage{}, usage{}, 0, err
	}
	began := time.Now()
	result := make(chan error, 1)
	go func() { result <- f() }()
	// Tracers end when there is nothing to do for some seconds: look at them more often than that.
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for running := true; running; {
		select {
		case err = <-result:
			running = false
		case <-ticker.C:
			for _, m := range meters {
				if _, _, err := m.read(); err != nil {
					return usage{}, usage{}, 0, errors.Join(err, <-result)
				}
			}
		}
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return usage{}, usage{}, 0, err
	}
	seconds = time.Since(began).Seconds()
	shims1, tracing1, err := sum()
	return shims1.minus(shims0), tracing1.minus(tracing0), seconds, err
}

// leaks are orphans that say when they die, and events that say when they were reaped.
type leaks struct {
	mu     sync.Mutex
	died   map[string]time.Time // by container and the orphan's number in it
	reaped map[string]time.Time
	err    error // of the subscription
}

func newLeaks() *leaks {
	return &leaks{died: make(map[string]time.Time), reaped: make(map[string]time.Time)}
}

func (l *leaks) listen(ctx context.Context, d *harness.Daemon) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	events, errs := d.Client.Subscribe(ctx, `topic=="/tasks/exit"`)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case e := <-events:
				v, err := typeurl.UnmarshalAny(e.Event)
				if err != nil {
					continue
				}
				x, ok := v.(*eventsapi.TaskExit)
				if !ok {
					continue
				}
				if orphan, ok := strings.CutPrefix(x.ID, "orphan-"); ok {
					l.mu.Lock()
					l.reaped[x.ContainerID+" "+orphan] = e.Timestamp
					l.mu.Unlock()
				}
			case err := <-errs:
				l.mu.Lock()
				l.err = err
				l.mu.Unlock()
				return
			}
		}
	}()
	return func() { cancel(); <-ended }, nil
}

// run leaks at o.rate in each pod for o.window.
func (l *leaks) run(ctx context.Context, d *harness.Daemon, pods []*pod, o options) error {
	return inParallel(len(pods), len(pods), func(i int) error {
		c := pods[i].containers[0]
		w := &lines{f: func(line string) {
			if n, ok := strings.CutPrefix(line, "orphan "); ok {
				l.mu.Lock()
				l.died[c.ID()+" "+n] = time.Now()
				l.mu.Unlock()
			}
		}}
		count := o.rate * int(o.window.Seconds())
		return execTo(ctx, d, c, w, "/bin/leak", "-v", "-n", fmt.Sprint(count), "-r", fmt.Sprint(o.rate))
	})
}

// results returns how many died, and how long each was dead that was reaped.
func (l *leaks) results() (leaked int, ms []float64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, died := range l.died {
		if reaped, ok := l.reaped[key]; ok {
			ms = append(ms, millis(reaped.Sub(died)))
		}
	}
	slices.Sort(ms)
	return len(l.died), ms, l.err
}

// lines calls f for each line that is written.
type lines struct {
	f    func(line string)
	rest string
}

// Write implements io.Writer.
func (w *lines) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, ok := strings.Cut(w.rest, "\n")
		if !ok {
			return len(p), nil
		}
		w.f(line)
		w.rest = rest
	}
}

// execTo runs a program in a container to its end, its output to w.
func execTo(ctx context.Context, d *harness.Daemon, c *harness.Container, w io.Writer, args ...string) error {
	spec, err := c.Spec(ctx)
	if err != nil {
		return err
	}
	process := *spec.Process
	process.Args = args
	p, err := c.Task.Exec(ctx, fmt.Sprintf("x%d", number.Add(1)), &process,
		cio.NewCreator(cio.WithStreams(nil, w, io.Discard), cio.WithFIFODir(d.FIFODir())))
	if err != nil {
		return err
	}
	exit, err := p.Wait(context.WithoutCancel(ctx))
	if err == nil {
		err = p.Start(ctx)
	}
	if err == nil {
		err = done(ctx, exit)
	}
	if err != nil {
		_, derr := p.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		return errors.Join(fmt.Errorf("%s in %s: %w", args[0], c.ID(), err), derr)
	}
	p.IO().Wait()
	_, err = p.Delete(ctx)
	return err
}
