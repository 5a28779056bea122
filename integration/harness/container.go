package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// SandboxAnnotation groups containers: those with the same value share a shim (containerd's runc shim, groupLabels).
const SandboxAnnotation = "io.kubernetes.cri.sandbox-id"

// Spec describes a container.
type Spec struct {
	ID          string // made up when empty
	Runtime     string
	Options     any // runtime options, nil for none
	Args        []string
	Annotations map[string]string
	Labels      map[string]string
	Terminal    bool
	Stdin       io.Reader
	// Restore is a directory with the images of a checkpoint that the task is made from. Its process exists once it is started.
	Restore string
	// Extra is applied to the OCI spec last.
	Extra []oci.SpecOpts
}

// Container is a container with its task.
type Container struct {
	client.Container
	Task client.Task
	// PID is the host's number of the init process.
	PID int
	// Stdout holds what init has printed, Stderr likewise (empty with a terminal).
	Stdout, Stderr *Output

	daemon *Daemon
	exit   <-chan client.ExitStatus
	execs  atomic.Int64
}

// Output collects the output of a process while it runs.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

// Write appends p.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// String returns what has been written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

var containerNumber atomic.Int64

// Create creates a container and its task, and does not start it. The caller must Remove it.
func (d *Daemon) Create(ctx context.Context, spec Spec) (_ *Container, err error) {
	id := spec.ID
	if id == "" {
		id = fmt.Sprintf("c%d", containerNumber.Add(1))
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create container %s (%s): %w", id, spec.Runtime, err)
		}
	}()
	image, err := d.Client.GetImage(ctx, TestImage)
	if err != nil {
		return nil, err
	}
	opts := []oci.SpecOpts{
		oci.WithImageConfigArgs(image, spec.Args),
		oci.WithCgroup(d.CgroupParent + "/" + id),
		oci.WithAnnotations(spec.Annotations),
	}
	if spec.Terminal {
		opts = append(opts, oci.WithTTY)
	}
	runtimeOptions, err := withOCIRuntime(spec.Runtime, spec.Options)
	if err != nil {
		return nil, err
	}
	if os.Getenv(OCIRuntimeEnv) != "" {
		opts = append(opts, withSpecVersion)
	}
	container, err := d.Client.NewContainer(ctx, id,
		client.WithImage(image),
		client.WithSnapshotter(d.Snapshotter),
		client.WithNewSnapshot(id, image),
		client.WithRuntime(spec.Runtime, runtimeOptions),
		client.WithContainerLabels(spec.Labels),
		client.WithNewSpec(append(opts, spec.Extra...)...),
	)
	if err != nil {
		return nil, err
	}
	c := &Container{Container: container, Stdout: new(Output), Stderr: new(Output), daemon: d}
	streams := []cio.Opt{cio.WithStreams(spec.Stdin, c.Stdout, c.Stderr), cio.WithFIFODir(d.FIFODir())}
	if spec.Terminal {
		streams = append(streams, cio.WithTerminal)
	}
	var taskOpts []client.NewTaskOpts
	if spec.Restore != "" {
		taskOpts = append(taskOpts, client.WithRestoreImagePath(spec.Restore))
	}
	c.Task, err = container.NewTask(ctx, cio.NewCreator(streams...), taskOpts...)
	if err != nil {
		return nil, errors.Join(err, container.Delete(context.WithoutCancel(ctx), client.WithSnapshotCleanup))
	}
	c.PID = int(c.Task.Pid())
	c.exit, err = c.Task.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return nil, errors.Join(err, c.Remove(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// Run creates a container and starts it. The caller must Remove it.
func (d *Daemon) Run(ctx context.Context, spec Spec) (*Container, error) {
	c, err := d.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := c.Task.Start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start container %s (%s): %w", c.ID(), spec.Runtime, err),
			c.Remove(context.WithoutCancel(ctx)))
	}
	c.PID = int(c.Task.Pid())
	return c, nil
}

// FIFODir is where FIFOs for standard streams belong: the tests and the shims both see it.
func (d *Daemon) FIFODir() string { return filepath.Join(d.Dir, "fifo") }

// Wait waits for the end of init.
func (c *Container) Wait(ctx context.Context) (client.ExitStatus, error) {
	select {
	case status := <-c.exit:
		// The output may come after the exit: wait for its end, which a process that init has left behind may delay.
		waitIO(c.Task.IO())
		return status, status.Error()
	case <-ctx.Done():
		return client.ExitStatus{}, fmt.Errorf("wait for container %s: %w", c.ID(), ctx.Err())
	}
}

// Remove kills init, if it still runs, and deletes task and container. Removing twice is no error.
func (c *Container) Remove(ctx context.Context) error {
	if c.Task != nil {
		if _, err := c.Task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete task %s: %w", c.ID(), err)
		}
	}
	if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", c.ID(), err)
	}
	return nil
}

// Exec is a process that was started in a container.
type Exec struct {
	client.Process
	Stdout, Stderr *Output

	exit <-chan client.ExitStatus
}

// ExecResult is how an exec ended.
type ExecResult struct {
	ID       string
	PID      int // on the host
	Code     uint32
	ExitedAt time.Time
	Stdout   string
	Stderr   string
}

// StartExec starts a process in the container.
func (c *Container) StartExec(ctx context.Context, args ...string) (*Exec, error) {
	return c.StartExecSpec(ctx, func(p *specs.Process) { p.Args = args })
}

// StartExecSpec starts a process like init, but as edit changes it.
func (c *Container) StartExecSpec(ctx context.Context, edit func(*specs.Process)) (*Exec, error) {
	spec, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	process := spec.Process
	process.Terminal = false
	edit(process)
	id := fmt.Sprintf("%s-x%d", c.ID(), c.execs.Add(1))
	e := &Exec{Stdout: new(Output), Stderr: new(Output)}
	streams := []cio.Opt{cio.WithStreams(nil, e.Stdout, e.Stderr), cio.WithFIFODir(c.daemon.FIFODir())}
	if process.Terminal {
		streams = append(streams, cio.WithTerminal)
	}
	e.Process, err = c.Task.Exec(ctx, id, process, cio.NewCreator(streams...))
	if err != nil {
		return nil, fmt.Errorf("exec %v in %s: %w", process.Args, c.ID(), err)
	}
	e.exit, err = e.Wait(context.WithoutCancel(ctx))
	if err == nil {
		err = e.Start(ctx)
	}
	if err != nil {
		_, derr := e.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		return nil, errors.Join(fmt.Errorf("exec %v in %s: %w", process.Args, c.ID(), err), derr)
	}
	return e, nil
}

// Finish waits for the end of the process and deletes it.
func (e *Exec) Finish(ctx context.Context) (ExecResult, error) {
	select {
	case status := <-e.exit:
		code, at, err := status.Result()
		if err != nil {
			return ExecResult{}, err
		}
		waitIO(e.IO())
		if _, err := e.Delete(ctx); err != nil {
			return ExecResult{}, err
		}
		return ExecResult{
			ID: e.ID(), PID: int(e.Pid()), Code: code, ExitedAt: at,
			Stdout: e.Stdout.String(), Stderr: e.Stderr.String(),
		}, nil
	case <-ctx.Done():
		return ExecResult{}, fmt.Errorf("wait for exec %s: %w", e.ID(), ctx.Err())
	}
}

// Exec runs a process in the container to its end.
func (c *Container) Exec(ctx context.Context, args ...string) (ExecResult, error) {
	e, err := c.StartExec(ctx, args...)
	if err != nil {
		return ExecResult{}, err
	}
	return e.Finish(ctx)
}

// waitIO waits for the end of the streams, but not for long: a process that outlives the one that was waited for may hold
// them open for ever.
func waitIO(streams cio.IO) {
	done := make(chan struct{})
	go func() {
		streams.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

// Zombies lists the zombies among the children of init.
func (c *Container) Zombies() ([]Zombie, error) { return Zombies(c.PID) }

// Shim returns the shim of the container: the parent of init, which runc leaves to it.
func (c *Container) Shim() (Process, error) { return ShimOf(c.PID) }

// ShimOf returns the shim that is the parent of a container's init.
func ShimOf(init int) (Process, error) {
	s, err := procStat(init)
	if err != nil {
		return Process{}, err
	}
	shim, err := procStat(int(s.PPID))
	if err != nil {
		return Process{}, err
	}
	if !strings.HasPrefix(shim.Comm, "containerd-shim") {
		return Process{}, fmt.Errorf("parent of pid %d is %q, no shim", init, shim.Comm)
	}
	return Process{PID: int(s.PPID), StartTime: shim.StartTime}, nil
}

// ReadFile reads a file of the container's root file system while init lives.
func (c *Container) ReadFile(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join("/proc", fmt.Sprint(c.PID), "root", name))
}

// Kill sends a signal to init.
func (c *Container) Kill(ctx context.Context, sig syscall.Signal) error { return c.Task.Kill(ctx, sig) }
