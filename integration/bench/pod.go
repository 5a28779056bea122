package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/reaper-shim/reaper/integration/harness"
)

// idle is a PID 1 that does nothing and waits for nobody.
var idle = []string{"/bin/pause1", "poll"}

var number atomic.Int64

// bare is a container without streams, so that what is timed is the runtime's work.
type bare struct {
	client.Container
	task client.Task
}

// prepare makes the container and its snapshot: what is the same under every runtime.
func prepare(ctx context.Context, d *harness.Daemon, runtime string, args []string) (*bare, error) {
	id := fmt.Sprintf("b%d", number.Add(1))
	image, err := d.Client.GetImage(ctx, harness.TestImage)
	if err != nil {
		return nil, err
	}
	c, err := d.Client.NewContainer(ctx, id, client.WithImage(image), client.WithSnapshotter(d.Snapshotter), client.WithNewSnapshot(id, image),
		client.WithRuntime(runtime, nil), client.WithNewSpec(oci.WithImageConfigArgs(image, args), oci.WithCgroup(d.CgroupParent+"/"+id)))
	if err != nil {
		return nil, fmt.Errorf("make container %s: %w", id, err)
	}
	return &bare{Container: c}, nil
}

// start creates the task and starts it.
func (b *bare) start(ctx context.Context) (exit <-chan client.ExitStatus, err error) {
	if b.task, err = b.NewTask(ctx, cio.NullIO); err != nil {
		return nil, fmt.Errorf("create task of %s: %w", b.ID(), err)
	}
	if exit, err = b.task.Wait(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("wait for %s: %w", b.ID(), err)
	}
	if err := b.task.Start(ctx); err != nil {
		return nil, fmt.Errorf("start %s: %w", b.ID(), err)
	}
	return exit, nil
}

// remove ends the container.
func (b *bare) remove(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs error
	if b.task != nil {
		_, errs = b.task.Delete(ctx, client.WithProcessKill)
	}
	return errors.Join(errs, b.Delete(ctx, client.WithSnapshotCleanup))
}

// exec runs true in the container.
func (b *bare) exec(ctx context.Context) error {
	spec, err := b.Spec(ctx)
	if err != nil {
		return err
	}
	process := *spec.Process
	process.Args = []string{"/bin/true"}
	p, err := b.task.Exec(ctx, fmt.Sprintf("x%d", number.Add(1)), &process, cio.NullIO)
	if err != nil {
		return err
	}
	exit, err := p.Wait(context.WithoutCancel(ctx))
	if err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		_, derr := p.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		return errors.Join(err, derr)
	}
	if err := done(ctx, exit); err != nil {
		return err
	}
	_, err = p.Delete(ctx)
	return err
}

// done waits for an exit with 0.
func done(ctx context.Context, exit <-chan client.ExitStatus) error {
	select {
	case status := <-exit:
		code, _, err := status.Result()
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pod is a shim with its containers, the first of which is the sandbox.
type pod struct {
	runtime    string
	containers []*harness.Container
	shim       harness.Process
}

// startPod starts a sandbox with n containers beside it, all with one shim. What it has started is in the pod, also when it fails.
func startPod(ctx context.Context, d *harness.Daemon, runtime string, n int, args []string) (*pod, error) {
	p := &pod{runtime: runtime}
	sandbox := fmt.Sprintf("p%d", number.Add(1))
	for i := range n + 1 {
		spec := harness.Spec{
			ID: fmt.Sprintf("%s-%d", sandbox, i), Runtime: runtime, Args: args,
			Annotations: map[string]string{harness.SandboxAnnotation: sandbox},
		}
		if i == 0 {
			spec.Args = idle
		}
		c, err := d.Run(ctx, spec)
		if err != nil {
			return p, err
		}
		p.containers = append(p.containers, c)
		shim, err := c.Shim()
		if err != nil {
			return p, err
		}
		if i > 0 && shim != p.shim {
			return p, fmt.Errorf("container %s has a shim of its own", c.ID())
		}
		p.shim = shim
	}
	return p, nil
}

func (p *pod) remove(ctx context.Context) error {
	var errs error
	for i := len(p.containers) - 1; i >= 0; i-- { // the sandbox last
		errs = errors.Join(errs, p.containers[i].Remove(context.WithoutCancel(ctx)))
	}
	return errs
}

// inParallel calls f for 0 to n-1 from so many goroutines, until one fails.
func inParallel(n, workers int, f func(i int) error) error {
	var (
		next   atomic.Int64
		failed atomic.Bool
		mu     sync.Mutex
		errs   error
		wg     sync.WaitGroup
	)
	for range min(n, workers) {
		wg.Go(func() {
			for !failed.Load() {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					failed.Store(true)
					mu.Lock()
					errs = errors.Join(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// removeAll removes side by side, whatever fails.
func removeAll[T interface{ remove(context.Context) error }](ctx context.Context, all []T) error {
	errs := make([]error, len(all))
	err := inParallel(len(all), 4, func(i int) error {
		errs[i] = all[i].remove(ctx)
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// alive fails where a process that is measured has ended.
func alive(p harness.Process) error {
	if !p.Alive() {
		return fmt.Errorf("shim %d has ended: %w", p.PID, syscall.ESRCH)
	}
	return nil
}
