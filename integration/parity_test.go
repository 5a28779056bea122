package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// transcript is what a client sees, with everything taken out that differs from run to run.
type transcript struct {
	lines []string
}

func (tr *transcript) add(format string, args ...any) {
	tr.lines = append(tr.lines, fmt.Sprintf(format, args...))
}

// err notes the kind of an error, not its text: that names containers and numbers.
func (tr *transcript) err(what string, err error) {
	kind := "another error"
	switch {
	case err == nil:
		kind = "ok"
	case errdefs.IsNotFound(err):
		kind = "not found"
	case errdefs.IsFailedPrecondition(err):
		kind = "failed precondition"
	case errdefs.IsAlreadyExists(err):
		kind = "already exists"
	case errdefs.IsInvalidArgument(err):
		kind = "invalid argument"
	case errors.Is(err, context.DeadlineExceeded):
		kind = "deadline exceeded"
	}
	tr.add("%s: %s", what, kind)
}

// sameOnBoth runs a script under runc.v2 and under ours and compares what it has seen. The lines in want have to be there.
func sameOnBoth(t *testing.T, want []string, script func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript)) {
	t.Helper()
	d := daemon(t)
	var seen [2]transcript
	for i, runtime := range []string{harness.RuncRuntime, reaper(t)} {
		if !t.Run(strings.TrimPrefix(runtime, "io.containerd."), func(t *testing.T) { script(t, d, runtime, &seen[i]) }) {
			return
		}
	}
	runc, ours := seen[0].lines, seen[1].lines
	t.Logf("under runc.v2:\n%s", strings.Join(runc, "\n"))
	for i := range max(len(runc), len(ours)) {
		var a, b string
		if i < len(runc) {
			a = runc[i]
		}
		if i < len(ours) {
			b = ours[i]
		}
		if a != b {
			t.Errorf("line %d:\n  runc.v2: %s\n  ours:    %s", i+1, a, b)
		}
	}
	for _, line := range want {
		if !slices.Contains(runc, line) {
			t.Errorf("no line %q in what runc.v2 gave:\n%s", line, strings.Join(runc, "\n"))
		}
	}
}

func status(t *testing.T, p client.Process) string {
	t.Helper()
	s, err := p.Status(t.Context())
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %d", s.Status, s.ExitStatus)
}

// TestParityLifecycle goes through every state of a task.
func TestParityLifecycle(t *testing.T) {
	want := []string{
		"after create: created 0", "running: running 0", "paused: paused 0", "resumed: running 0",
		"killed: stopped 137", "delete: ok", "delete again: not found", "pids.max 77",
	}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		ctx := t.Context()
		c, err := d.Create(ctx, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
		if err != nil {
			t.Fatal(err)
		}
		removeAtEnd(t, c)
		tr.add("after create: %s", status(t, c.Task))
		_, err = c.NewTask(ctx, cio.NullIO)
		tr.err("second task", err)
		tr.err("start", c.Task.Start(ctx))
		tr.err("start again", c.Task.Start(ctx))
		tr.add("running: %s", status(t, c.Task))
		// Start returns when runc's init has been told to go on, a moment before it executes the program.
		var id harness.Identity
		testutil.Eventually(t, 5*time.Second, func() (bool, string) {
			id, err = harness.IdentityOf(c.PID)
			return err == nil && id.Exe == "/bin/pause1", fmt.Sprintf("%+v, error %v", id, err)
		})
		tr.add("init has number %d", id.NSPID)

		pids, err := c.Task.Pids(ctx)
		tr.add("%d pids, init among them: %v, error %v", len(pids),
			slices.ContainsFunc(pids, func(p client.ProcessInfo) bool { return int(p.Pid) == c.PID }), err)

		tr.err("pause", c.Task.Pause(ctx))
		tr.add("paused: %s", status(t, c.Task))
		pids, err = c.Task.Pids(ctx)
		tr.add("paused: %d pids, error %v", len(pids), err)
		tr.err("resume", c.Task.Resume(ctx))
		tr.add("resumed: %s", status(t, c.Task))

		limit := int64(77)
		tr.err("update", c.Task.Update(ctx, client.WithResources(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}})))
		pidsMax, err := harness.PIDsMax(c.PID)
		if err != nil {
			t.Fatal(err)
		}
		tr.add("pids.max %s", pidsMax)
		metric, err := c.Task.Metrics(ctx)
		if err != nil {
			t.Fatal(err)
		}
		tr.add("metrics of type %s, some: %v", metric.GetData().GetTypeUrl(), len(metric.GetData().GetValue()) > 0)

		loaded, err := d.Client.LoadContainer(ctx, c.ID())
		if err != nil {
			t.Fatal(err)
		}
		task, err := loaded.Task(ctx, nil)
		tr.err("load task", err)
		tr.add("loaded task has the same pid: %v", err == nil && task.Pid() == c.Task.Pid())

		_, err = c.Task.Delete(ctx)
		tr.err("delete while running", err)
		tr.err("unknown signal", c.Task.Kill(ctx, syscall.Signal(200)))
		// No handler, and init of a PID namespace: SIGTERM does nothing.
		tr.err("SIGTERM", c.Task.Kill(ctx, syscall.SIGTERM))
		tr.add("after SIGTERM: %s", status(t, c.Task))
		begin := time.Now()
		tr.err("SIGKILL", c.Task.Kill(ctx, syscall.SIGKILL))
		exit, err := c.Wait(ctx)
		tr.err("wait", err)
		tr.add("exit status %d, time right: %v", exit.ExitCode(), within(exit.ExitTime(), begin, time.Now()))
		tr.add("killed: %s", status(t, c.Task))
		tr.err("kill the dead", c.Task.Kill(ctx, syscall.SIGKILL))
		_, err = c.Exec(ctx, "/bin/true")
		tr.err("exec in the dead", err)
		deleted, err := c.Task.Delete(ctx)
		tr.err("delete", err)
		tr.add("delete says %d", deleted.ExitCode())
		_, err = c.Task.Delete(ctx)
		tr.err("delete again", err)
	})
}

// within reports whether an exit time lies between two moments, give or take the resolution of a tick.
func within(at, begin, end time.Time) bool {
	const slack = 20 * time.Millisecond
	return at.After(begin.Add(-slack)) && at.Before(end.Add(slack))
}

// TestParityExits compares exit codes and signals of init and of execs, in the API and in the events.
func TestParityExits(t *testing.T) {
	want := []string{"init exit 7: 7, event 7", "init kill -9 from outside: 137, event 137", "exec exit 255: 255, event 255", "exec dies of 11: 139, event 139"}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		ctx := t.Context()
		events := subscribe(t, d)
		exitOf := func(container, id string) *apievents.TaskExit {
			var found []*apievents.TaskExit
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				found = nil
				for _, x := range events.Exits(container) {
					if x.ID == id {
						found = append(found, x)
					}
				}
				return len(found) > 0, "no exit event of " + id
			})
			if len(found) != 1 {
				t.Errorf("%d exit events of %s, want one", len(found), id)
			}
			return found[0]
		}
		for _, code := range []string{"0", "1", "7", "126", "255"} {
			c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/sh", "-c", "exit " + code}})
			s, err := c.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			x := exitOf(c.ID(), c.ID())
			tr.add("init exit %s: %d, event %d", code, s.ExitCode(), x.ExitStatus)
			tr.add("pid right %v, same time %v", int(x.Pid) == c.PID, x.ExitedAt.AsTime().Equal(s.ExitTime()))
		}
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGUSR1} {
			c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/sh", "-c", "trap 'exit 3' TERM; trap 'exit 4' USR1; echo ready; while :; do sleep 0.1; done"}})
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				return strings.Contains(c.Stdout.String(), "ready"), c.Stdout.String()
			})
			if err := c.Kill(ctx, sig); err != nil {
				t.Fatal(err)
			}
			s, err := c.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			tr.add("init kill -%d from outside: %d, event %d", int(sig), s.ExitCode(), exitOf(c.ID(), c.ID()).ExitStatus)
		}
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "futex"}})
		for _, code := range []string{"0", "1", "42", "255"} {
			r, err := c.Exec(ctx, "/bin/sh", "-c", "exit "+code)
			if err != nil {
				t.Fatal(err)
			}
			x := exitOf(c.ID(), r.ID)
			tr.add("exec exit %s: %d, event %d", code, r.Code, x.ExitStatus)
			tr.add("pid right %v, same time %v", int(x.Pid) == r.PID, x.ExitedAt.AsTime().Equal(r.ExitedAt))
		}
		for _, sig := range []string{"9", "15", "11"} {
			r, err := c.Exec(ctx, "/bin/sh", "-c", "kill -"+sig+" $$")
			if err != nil {
				t.Fatal(err)
			}
			tr.add("exec dies of %s: %d, event %d", sig, r.Code, exitOf(c.ID(), r.ID).ExitStatus)
		}
		e, err := c.StartExec(ctx, "/bin/sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		tr.err("kill exec", e.Kill(ctx, syscall.SIGTERM))
		r, err := e.Finish(ctx)
		tr.err("finish", err)
		tr.add("killed exec: %d, event %d", r.Code, exitOf(c.ID(), r.ID).ExitStatus)

		_, err = c.Exec(ctx, "/bin/no-such-program")
		tr.err("exec of nothing", err)
		_, err = d.Run(ctx, harness.Spec{Runtime: runtime, Args: []string{"/bin/no-such-program"}})
		tr.err("container of nothing", err)
	})
}

// TestParityManyExecs has a hundred execs at once that each leave an orphan: every exit arrives, and arrives right.
func TestParityManyExecs(t *testing.T) {
	sameOnBoth(t, []string{"100 right"}, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
		const execs, atOnce = 100, 10
		slots := make(chan struct{}, atOnce)
		results := make(chan error, execs)
		for i := range execs {
			go func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				code := uint32(i % 100)
				r, err := c.Exec(t.Context(), "/bin/sh", "-c", fmt.Sprintf("/bin/leak; exit %d", code))
				if err == nil && r.Code != code {
					err = fmt.Errorf("exec %d: exit code %d, want %d", i, r.Code, code)
				}
				results <- err
			}()
		}
		right := 0
		for range execs {
			if err := <-results; err != nil {
				t.Error(err)
				continue
			}
			right++
		}
		tr.add("%d right", right)
	})
}

// TestParityStreams compares standard streams: much output, input, a terminal and its size.
func TestParityStreams(t *testing.T) {
	want := []string{"1048576 bytes", `cat "through stdin\n" 0`, `tty "1\r\n40 132\r\n"`}
	sameOnBoth(t, want, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		ctx := t.Context()
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/sh", "-c", "head -c 1048576 /dev/zero; echo err >&2"}})
		if _, err := c.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		tr.add("%d bytes", len(c.Stdout.String()))
		tr.add("stderr %q", c.Stderr)

		stdin, w := io.Pipe()
		c = run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/cat"}, Stdin: stdin})
		if _, err := io.Copy(w, bytes.NewBufferString("through stdin\n")); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) { return c.Stdout.String() != "", "no output" })
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.Task.CloseIO(ctx, client.WithStdinCloser); err != nil {
			t.Fatal(err)
		}
		s, err := c.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		tr.add("cat %q %d", c.Stdout, s.ExitCode())

		c = run(t, d, harness.Spec{
			Runtime: runtime, Terminal: true,
			Args: []string{"/bin/sh", "-c", "tty -s && echo 1; while [ \"$(stty size 2>/dev/null)\" != '40 132' ]; do sleep 0.05; done; stty size"},
		})
		tr.err("resize", c.Task.Resize(ctx, 132, 40))
		wctx, cancel := context.WithTimeout(ctx, testutil.Slow(20*time.Second))
		defer cancel()
		_, err = c.Wait(wctx)
		tr.err("wait", err)
		tr.add("tty %q", c.Stdout)

		c = run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1"}})
		e, err := c.StartExecSpec(ctx, func(p *specs.Process) {
			p.Terminal, p.Args = true, []string{"/bin/sh", "-c", "tty -s && echo terminal"}
		})
		if err != nil {
			t.Fatal(err)
		}
		r, err := e.Finish(ctx)
		tr.err("exec with a terminal", err)
		tr.add("%q %d", r.Stdout, r.Code)
	})
}

// TestParityEvents compares the sequences of events of a container's life. Ours may add /tasks/zombies and the exits of
// orphans, and nothing else.
func TestParityEvents(t *testing.T) {
	sameOnBoth(t, []string{"/tasks/exit init 137", "/tasks/exit exec 5"}, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		ctx := t.Context()
		events := subscribe(t, d)
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
		id := c.ID()
		r, err := c.Exec(ctx, "/bin/sh", "-c", "/bin/leak -n 3; exit 5")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Task.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Task.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Kill(ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		role := func(container, process string) string {
			switch {
			case container != id:
				return ""
			case process == id || process == "":
				return "init"
			case process == r.ID:
				return "exec"
			case strings.HasPrefix(process, "orphan-"):
				return ""
			}
			return "unknown process " + process
		}
		read := func() []string {
			var lines []string
			for _, e := range events.Filter(func(harness.Event) bool { return true }) {
				var who, more string
				switch p := e.Payload.(type) {
				case *apievents.TaskCreate:
					who, more = role(p.ContainerID, ""), fmt.Sprint(int(p.Pid) == c.PID)
				case *apievents.TaskStart:
					who, more = role(p.ContainerID, ""), fmt.Sprint(int(p.Pid) == c.PID)
				case *apievents.TaskExit:
					who, more = role(p.ContainerID, p.ID), fmt.Sprint(p.ExitStatus)
				case *apievents.TaskDelete:
					// That of init is published while the shim already shuts down, and either runtime may lose it: the task
					// service closes its publisher without waiting for what is queued.
					if who = role(p.ContainerID, p.ID); who == "init" {
						who = ""
					}
					more = fmt.Sprint(p.ExitStatus)
				case *apievents.TaskExecAdded:
					who = role(p.ContainerID, p.ExecID)
				case *apievents.TaskExecStarted:
					who, more = role(p.ContainerID, p.ExecID), fmt.Sprint(int(p.Pid) == r.PID)
				case *apievents.TaskPaused:
					who = role(p.ContainerID, "")
				case *apievents.TaskResumed:
					who = role(p.ContainerID, "")
				case *apievents.ContainerCreate:
					who = role(p.ID, "")
				case *apievents.ContainerDelete:
					who = role(p.ID, "")
				}
				// The shim ends with its last task, and this event is lost with it now and then: runc.v2 closes its
				// publisher without waiting for what is queued.
				if e.Topic == "/tasks/delete" && who == "init" {
					continue
				}
				if who != "" {
					lines = append(lines, strings.TrimSpace(e.Topic+" "+who+" "+more))
				}
			}
			return lines
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			lines := read()
			return slices.Contains(lines, "/containers/delete init"), strings.Join(lines, "\n")
		})
		testutil.StableFor(t, 300*time.Millisecond, 10*time.Second, func() int { return len(read()) })
		tr.lines = read()
	})
}

// TestParityHostPID has a task in the host PID namespace, whose orphans come to the shim under both runtimes.
func TestParityHostPID(t *testing.T) {
	sameOnBoth(t, []string{"exec 5", "exit 137"}, func(t *testing.T, d *harness.Daemon, runtime string, tr *transcript) {
		ctx := t.Context()
		c := run(t, d, harness.Spec{
			Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
			Extra: []oci.SpecOpts{oci.WithHostNamespace(specs.PIDNamespace)},
		})
		r, err := c.Exec(ctx, "/bin/sh", "-c", "/bin/leak -n 3; exit 5")
		if err != nil {
			t.Fatal(err)
		}
		tr.add("exec %d", r.Code)
		testutil.Eventually(t, 5*time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) == 0, describe(zs)
		})
		if err := c.Kill(ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s, err := c.Wait(ctx)
		tr.err("wait", err)
		tr.add("exit %d", s.ExitCode())
		tr.err("remove", c.Remove(ctx))
	})
}
