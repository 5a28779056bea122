package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// runtimeEnv replaces io.containerd.reaper.v2 as the runtime under test, to see what the tests say of another one.
const runtimeEnv = "REAPER_TEST_RUNTIME"

// grace is the default of io.containerd.reaper.grace.
const grace = time.Second

// exitLeak is the exit code of a run whose tests pass but that leaves something behind.
const exitLeak = 99

var shared struct {
	once   sync.Once
	daemon *harness.Daemon
	err    error
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if d := shared.daemon; d != nil {
		if code != 0 && !testing.Verbose() {
			fmt.Fprintf(os.Stderr, "--- log of containerd and the shims\n%s---\n", d.Log())
		}
		if err := d.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stop containerd:", err)
			if code == 0 {
				code = exitLeak
			}
		}
	}
	os.Exit(code)
}

// daemon returns the containerd that the tests of this binary share. It skips the test where none can run.
func daemon(t *testing.T) *harness.Daemon {
	t.Helper()
	testutil.Root(t)
	for _, tool := range []string{"containerd", "containerd-shim-runc-v2", "runc", "busybox", "nsenter"} {
		testutil.Tool(t, tool)
	}
	testutil.Tool(t, "goodinit")
	shared.once.Do(func() {
		opts := harness.Options{Debug: true}
		if testing.Verbose() && os.Getenv("REAPER_TEST_LOG") != "" {
			opts.Log = os.Stderr
		}
		shared.daemon, shared.err = harness.Start(context.Background(), opts)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.daemon
}

// reaper returns the name of the runtime under test and skips the test when its shim has not been built.
func reaper(t *testing.T) string {
	t.Helper()
	if name := os.Getenv(runtimeEnv); name != "" {
		return name
	}
	testutil.Tool(t, "containerd-shim-reaper-v2")
	testutil.Tool(t, "reaper-tracer")
	return harness.ReaperRuntime
}

// bothRuntimes runs a test under runc.v2 and under ours. What only ours should do, a test asks with ours.
func bothRuntimes(t *testing.T, test func(t *testing.T, d *harness.Daemon, runtime string, ours bool)) {
	d := daemon(t)
	t.Run("runc.v2", func(t *testing.T) { test(t, d, harness.RuncRuntime, false) })
	t.Run("reaper.v2", func(t *testing.T) { test(t, d, reaper(t), true) })
}

// run starts a container that ends with the test.
func run(t *testing.T, d *harness.Daemon, spec harness.Spec) *harness.Container {
	t.Helper()
	c, err := d.Run(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	removeAtEnd(t, c)
	return c
}

func removeAtEnd(t *testing.T, c *harness.Container) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(30*time.Second))
		defer cancel()
		if err := c.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
}

// exec runs a process in the container and fails the test unless it exits with 0.
func exec(t *testing.T, c *harness.Container, args ...string) harness.ExecResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Slow(time.Minute))
	defer cancel()
	r, err := c.Exec(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("exec %v: exit code %d, stderr %q", args, r.Code, r.Stderr)
	}
	return r
}

func subscribe(t *testing.T, d *harness.Daemon) *harness.Events {
	t.Helper()
	e, err := d.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func zombies(t *testing.T, c *harness.Container) []harness.Zombie {
	t.Helper()
	z, err := c.Zombies()
	if err != nil {
		t.Fatalf("zombies of container %s: %v", c.ID(), err)
	}
	return z
}

// describe names zombies for a message.
func describe(zs []harness.Zombie) string {
	if len(zs) == 0 {
		return "no zombies"
	}
	var names []string
	for _, z := range zs {
		names = append(names, fmt.Sprintf("%d (%s)", z.PID, z.Comm))
	}
	if len(names) > 10 {
		names = append(names[:10], "…")
	}
	return fmt.Sprintf("%d zombies: %s", len(zs), strings.Join(names, " "))
}

// orphans returns the numbers, in the container, that leak -v has printed.
func orphans(output string) []int {
	var pids []int
	for line := range strings.Lines(output) {
		var pid int
		if _, err := fmt.Sscanf(line, "orphan %d", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// tracers lists the tracers that belong to a shim.
func tracers(d *harness.Daemon) []int {
	var pids []int
	for _, pid := range d.Processes() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) == "reaper-tracer" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// command runs a program that talks to the daemon and returns what it printed and its exit code.
func command(t *testing.T, d *harness.Daemon, name string, args ...string) (stdout string, code int) {
	t.Helper()
	stdout, stderr, code := command2(t, d, name, args...)
	if code != 0 && stdout == "" {
		return stderr, code
	}
	return stdout, code
}

// command2 is command with the two streams apart.
func command2(t *testing.T, d *harness.Daemon, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	testutil.Tool(t, name)
	// Also for what is cleaned up after the test, when its context has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testutil.Slow(2*time.Minute))
	defer cancel()
	cmd := d.Command(ctx, name, args...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	// A process that stays in the background may hold the pipes open.
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit interface{ ExitCode() int }
	switch {
	case err == nil:
	case errors.As(err, &exit):
		code = exit.ExitCode()
	default:
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	text := out.String() + errOut.String()
	if len(text) > 1000 {
		text = text[:1000] + "…"
	}
	t.Logf("%s %s: exit code %d\n%s", name, strings.Join(args, " "), code, text)
	return out.String(), errOut.String(), code
}
