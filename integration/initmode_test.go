package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

var initMode = map[string]string{"io.containerd.reaper.mode": "init"}

func initContainer(t *testing.T, d *harness.Daemon, spec harness.Spec) *harness.Container {
	t.Helper()
	spec.Runtime = reaper(t)
	testutil.Tool(t, "reaper-init")
	if spec.Annotations == nil {
		spec.Annotations = initMode
	}
	return run(t, d, spec)
}

// noZombiesSoon waits until reaper-init has taken what is dead. It does so at once.
func noZombiesSoon(t *testing.T, c *harness.Container) {
	t.Helper()
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		return len(zs) == 0, describe(zs)
	})
}

// TestInitMode: reaper-init is PID 1 and reaps, the entrypoint runs below it; each orphan is reported with its command and
// status, and counted.
func TestInitMode(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	c := initContainer(t, d, harness.Spec{Args: []string{"/bin/pause1", "poll"}})
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		id, err := harness.IdentityOf(c.PID)
		return err == nil && id.Exe == "/dev/.reaper/init" && id.NSPID == 1, fmt.Sprintf("%+v, %v", id, err)
	})
	if n := len(children(t, c)); n != 1 {
		t.Errorf("%d children of reaper-init, want the entrypoint alone", n)
	}
	want := map[string]uint32{}
	for _, leak := range []struct {
		args   []string
		status uint32
	}{{[]string{"-e", "0"}, 0}, {[]string{"-e", "7"}, 7}, {[]string{"-k", "9"}, 137}, {[]string{"-s", "-e", "3"}, 3}} {
		res := exec(t, c, append([]string{"/bin/leak", "-v", "-n", "3"}, leak.args...)...)
		for _, pid := range orphans(res.Stdout) {
			want[fmt.Sprintf("orphan-%d", pid)] = leak.status
		}
	}
	if len(want) != 12 {
		t.Fatalf("%d orphans, want 12", len(want))
	}
	noZombiesSoon(t, c)
	// The parents of the orphans are reaped by reaper-init as well where they end after the exec itself.
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		got := map[string]uint32{}
		for _, x := range events.OrphanExits(c.ID()) {
			got[x.ID] = x.ExitStatus
		}
		for id, status := range want {
			if s, ok := got[id]; !ok || s != status {
				return false, fmt.Sprintf("%s: status %d, reported %v; have %v", id, status, ok, got)
			}
		}
		return true, ""
	})
	stats := finalStats(t, events, c)
	if stats.GetMode() != "init" || stats.GetEffectiveMode() != "init" || stats.GetReapedByInit() < 12 ||
		stats.GetReapedByTracer() != 0 || stats.GetAttaches() != 0 {
		t.Errorf("statistics %v, want 12 orphans reaped by reaper-init and PID 1 never stopped", stats)
	}
}

// TestInitModeExits: the task ends with the entrypoint and its status, however many orphans live on.
func TestInitModeExits(t *testing.T) {
	d := daemon(t)
	for _, tt := range []struct {
		name   string
		script string
		kill   syscall.Signal
		want   uint32
	}{
		{name: "0", script: "exit 0"},
		{name: "7", script: "exit 7", want: 7},
		{name: "by a signal", script: "kill -9 $$", want: 137},
		{name: "orphans live on", script: "(sleep 1000 & sleep 1000 &) ; exit 3", want: 3},
		{name: "TERM without a handler", script: "exec sleep 1000", kill: syscall.SIGTERM, want: 143},
		{name: "TERM with a handler", script: "trap 'exit 5' TERM; while :; do sleep 0.1; done", kill: syscall.SIGTERM, want: 5},
		{name: "KILL", script: "exec sleep 1000", kill: syscall.SIGKILL, want: 137},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := initContainer(t, d, harness.Spec{Args: []string{"/bin/sh", "-c", tt.script}})
			if tt.kill != 0 {
				testutil.Eventually(t, 10*time.Second, func() (bool, string) {
					var names []string
					for _, pid := range children(t, c) {
						comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
						names = append(names, strings.TrimSpace(string(comm)))
					}
					return slices.Contains(names, "sleep"), fmt.Sprint(names)
				})
				if err := c.Kill(t.Context(), tt.kill); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			status, err := c.Wait(ctx)
			if err != nil || status.ExitCode() != tt.want {
				t.Errorf("status %d, %v, want %d", status.ExitCode(), err, tt.want)
			}
		})
	}
	t.Run("not found", func(t *testing.T) {
		c := initContainer(t, d, harness.Spec{Args: []string{"no-such-program"}})
		status, err := c.Wait(t.Context())
		if err != nil || status.ExitCode() != 127 || !strings.Contains(c.Stderr.String(), "no-such-program") {
			t.Errorf("status %d, %v, stderr %q, want 127 and the name", status.ExitCode(), err, c.Stderr.String())
		}
	})
}

// TestInitModeSpecs: containers that restrict themselves work, and their orphans go.
func TestInitModeSpecs(t *testing.T) {
	d := daemon(t)
	for _, tt := range []struct {
		name  string
		extra []oci.SpecOpts
		args  []string
	}{
		{name: "read-only root", extra: []oci.SpecOpts{oci.WithRootFSReadonly()}},
		{name: "not root", extra: []oci.SpecOpts{oci.WithUIDGID(1234, 1234)}},
		{name: "no capabilities", extra: []oci.SpecOpts{oci.WithCapabilities(nil), oci.WithUIDGID(1234, 1234)}},
		{name: "no_new_privs", extra: []oci.SpecOpts{oci.WithNoNewPrivileges}},
		{name: "seccomp", extra: []oci.SpecOpts{withSeccomp}},
		{name: "user namespace", extra: []oci.SpecOpts{oci.WithUserNamespace(
			[]specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}},
			[]specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}), oci.WithoutRunMount}},
		{name: "relative entrypoint", extra: []oci.SpecOpts{oci.WithProcessCwd("/bin")}, args: []string{"./pause1", "poll"}},
		{name: "entrypoint on PATH", args: []string{"pause1", "poll"}},
		{name: "PATH of its own", extra: []oci.SpecOpts{oci.WithEnv([]string{"PATH=/nowhere:/bin"})}, args: []string{"pause1", "poll"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.args == nil {
				tt.args = []string{"/bin/pause1", "poll"}
			}
			events := subscribe(t, d)
			c := initContainer(t, d, harness.Spec{Args: tt.args, Extra: tt.extra})
			exec(t, c, "/bin/leak", "-n", "3", "-e", "9")
			noZombiesSoon(t, c)
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				n := 0
				for _, x := range events.OrphanExits(c.ID()) {
					if x.ExitStatus == 9 {
						n++
					}
				}
				return n == 3, fmt.Sprintf("%d of 3 orphans were reported", n)
			})
			// Nothing of ours is in the image.
			if res := exec(t, c, "/bin/sh", "-c", "ls -d /dev/.reaper /.reaper* /reaper* 2>/dev/null; true"); strings.TrimSpace(res.Stdout) != "/dev/.reaper" {
				t.Errorf("found %q", res.Stdout)
			}
		})
	}
}

func withSeccomp(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{
			Names: []string{"ptrace", "mount", "umount2", "keyctl", "bpf", "setns", "unshare", "io_uring_setup"}, Action: specs.ActErrno,
		}},
	}
	return nil
}

// TestInitModeRefused: where /dev belongs to the image, create fails, says why, and leaves nothing behind.
func TestInitModeRefused(t *testing.T) {
	d := daemon(t)
	before := d.Processes()
	c, err := d.Create(t.Context(), harness.Spec{
		ID: "nodev", Runtime: reaper(t), Args: []string{"/bin/pause1"}, Annotations: initMode,
		Extra: []oci.SpecOpts{oci.WithoutMounts("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")},
	})
	if err == nil {
		removeAtEnd(t, c)
		t.Fatal("created")
	}
	for _, part := range []string{"mode init", "/dev", "tmpfs", "io.containerd.reaper.mode"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v is no invalid argument", err)
	}
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		after := d.Processes()
		return len(after) <= len(before), fmt.Sprintf("processes before %v, after %v", before, after)
	})
}

// TestInitModeKnownInit: an image that is an init itself stays PID 1.
func TestInitModeKnownInit(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	c := initContainer(t, d, harness.Spec{Args: []string{"init"}, Extra: []oci.SpecOpts{oci.WithProcessArgs("/bin/init")}})
	if id, err := harness.IdentityOf(c.PID); err != nil || strings.HasPrefix(id.Exe, "/dev/.reaper") {
		t.Errorf("init is %+v, %v", id, err)
	}
	stats := finalStats(t, events, c)
	if stats.GetMode() != "init" || stats.GetEffectiveMode() != "assist" || !strings.Contains(stats.GetEffectiveModeReason(), "init") {
		t.Errorf("mode %q, in force %q because %q", stats.GetMode(), stats.GetEffectiveMode(), stats.GetEffectiveModeReason())
	}
}

// TestInitModeSharedNamespace: where PID 1 is another's, reaper-init is the subreaper of its own task.
func TestInitModeSharedNamespace(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	first := run(t, d, harness.Spec{
		Runtime: reaper(t), Args: []string{"/bin/pause1", "poll"},
		Annotations: map[string]string{harness.SandboxAnnotation: "shared-init", "io.containerd.reaper.mode": "observe"},
	})
	for name, ns := range map[string]oci.SpecOpts{
		"pod's":  oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", first.PID)}),
		"host's": oci.WithHostNamespace(specs.PIDNamespace),
	} {
		t.Run(name, func(t *testing.T) {
			c := initContainer(t, d, harness.Spec{
				Args:  []string{"/bin/sh", "-c", "/bin/leak -n 4 -e 6 -s; exec /bin/pause1 poll"},
				Extra: []oci.SpecOpts{ns},
				Annotations: map[string]string{
					harness.SandboxAnnotation: "shared-init", "io.containerd.reaper.mode": "init",
				},
			})
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				n := 0
				for _, x := range events.OrphanExits(c.ID()) {
					if x.ExitStatus == 6 {
						n++
						if name == "host's" && x.Pid == 0 {
							t.Error("an orphan in the host's PID namespace has no number there")
						}
					}
				}
				return n == 4, fmt.Sprintf("%d of 4 orphans were reported", n)
			})
			// What the other of these containers left when its init was killed is not meant.
			if zs := zombies(t, first); slices.ContainsFunc(zs, func(z harness.Zombie) bool { return z.Comm == "leak" }) {
				t.Errorf("PID 1 of the namespace has %s", describe(zs))
			}
			stats := finalStats(t, events, c)
			if stats.GetReapedByInit() < 4 || stats.GetEffectiveMode() != "init" {
				t.Errorf("statistics %v", stats)
			}
		})
	}
}

// TestInitModeForgery: nobody but the task's first process is listened to.
func TestInitModeForgery(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	c := initContainer(t, d, harness.Spec{Args: []string{"/bin/pause1", "poll"}})
	other := initContainer(t, d, harness.Spec{Args: []string{"/bin/pause1", "poll"}})
	exec(t, c, "/bin/leak", "-n", "1", "-e", "9") // it listens by now
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		n := len(events.OrphanExits(c.ID()))
		return n >= 1, fmt.Sprintf("%d orphans were reported", n)
	})
	before := len(events.OrphanExits(c.ID()))
	// This process reaches the socket as any in the container could.
	path := fmt.Sprintf("/proc/%d/root/dev/.reaper/report/socket", c.PID)
	for range 5 {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		record := make([]byte, 64)
		copy(record, "RIN1\x01\x00\x00\x00\x63\x00\x00\x00")
		for range 100 {
			if _, err := conn.Write(record); err != nil {
				break
			}
		}
		// The shim closes it.
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(record); err == nil || os.IsTimeout(err) {
			t.Errorf("the connection of a stranger stays open: %v", err)
		}
		_ = conn.Close()
	}
	// Real ones still arrive, here and at others.
	for _, c := range []*harness.Container{c, other} {
		exec(t, c, "/bin/leak", "-n", "2", "-e", "8")
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			xs := events.OrphanExits(c.ID())
			n := len(slices.DeleteFunc(xs, func(x *apievents.TaskExit) bool { return x.ExitStatus != 8 }))
			return n == 2, fmt.Sprintf("%d of 2 orphans were reported", n)
		})
	}
	for _, x := range events.OrphanExits(c.ID()) {
		if x.ID == "orphan-99" {
			t.Error("a stranger's report became an event")
		}
	}
	if before > 1 {
		t.Logf("%d orphan exits before", before)
	}
}

// TestInitModeTerminal: the entrypoint has the terminal, its size and its signals.
func TestInitModeTerminal(t *testing.T) {
	d := daemon(t)
	in, keys := io.Pipe()
	defer keys.Close()
	c := initContainer(t, d, harness.Spec{Args: []string{"/bin/sh"}, Terminal: true, Stdin: in})
	say := func(text, want string) {
		t.Helper()
		if _, err := io.WriteString(keys, text); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			return strings.Contains(c.Stdout.String(), want), c.Stdout.String()
		})
	}
	if err := c.Task.Resize(t.Context(), 77, 33); err != nil {
		t.Fatal(err)
	}
	say("stty size; tty; echo rea''dy\n", "ready")
	if out := c.Stdout.String(); !strings.Contains(out, "33 77") || !strings.Contains(out, "/dev/pts/0") || strings.Contains(out, "job control") {
		t.Errorf("terminal: %q", out)
	}
	say("sleep 1000; echo in''terrupted\n", "sleep 1000")
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		n := len(children(t, c))
		return n == 2, fmt.Sprintf("%d processes", n)
	})
	say("\x03", "^C")
	say("echo st''ill here\n", "still here")
	say("exit 4\n", "exit 4")
	status, err := c.Wait(t.Context())
	if err != nil || status.ExitCode() != 4 {
		t.Errorf("status %d, %v, want 4", status.ExitCode(), err)
	}
}

// TestInitModeLifecycle: pause, resume, statistics, processes, and a shim that is killed.
func TestInitModeLifecycle(t *testing.T) {
	d := daemon(t)
	c := initContainer(t, d, harness.Spec{Args: []string{"/bin/sh", "-c", "echo out; echo err >&2; exec /bin/pause1 poll"}})
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		return c.Stdout.String() == "out\n" && c.Stderr.String() == "err\n", c.Stdout.String() + c.Stderr.String()
	})
	if err := c.Task.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Task.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res := exec(t, c, "/bin/sh", "-c", "echo $PPID; exit 0"); strings.TrimSpace(res.Stdout) != "0" {
		t.Errorf("parent of an exec is %q in the container, want 0, as under runc", res.Stdout)
	}
	if _, err := c.Task.Metrics(t.Context()); err != nil {
		t.Error(err)
	}
	exec(t, c, "/bin/leak", "-n", "3")
	noZombiesSoon(t, c)
	if err := c.Kill(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	status, err := c.Wait(t.Context())
	if err != nil || status.ExitCode() != 143 {
		t.Errorf("status %d, %v, want 143", status.ExitCode(), err)
	}
}

// TestInitModeNerdctl: what a person does with nerdctl works with an entrypoint that is not PID 1.
func TestInitModeNerdctl(t *testing.T) {
	d := daemon(t)
	testutil.Tool(t, "ps") // nerdctl top runs it
	testutil.Tool(t, "reaper-init")
	rt := reaper(t)
	nerdctl := func(args ...string) (string, int) {
		return command(t, d, "nerdctl", append([]string{
			"--address", d.Address, "--namespace", harness.Namespace, "--data-root", filepath.Join(d.Dir, "nerdctl-init"),
			"--snapshotter", d.Snapshotter, "--cgroup-manager", "cgroupfs",
			"--cni-netconfpath", filepath.Join(d.Dir, "cni/net.d"), "--cni-path", filepath.Join(d.Dir, "cni/bin"),
		}, args...)...)
	}
	const name = "nerdctl-init"
	run := []string{
		"run", "--runtime", rt, "--annotation", "io.containerd.reaper.mode=init", "--net", "none", "--pull", "never",
		"--cgroup-parent", d.CgroupParent, "--name", name,
	}
	if out, code := nerdctl(append(run, "--rm", harness.TestImage, "/bin/sh", "-c", "echo $$; exit 3")...); code != 3 || strings.TrimSpace(out) == "1" {
		t.Errorf("run --rm: exit code %d, the shell has PID %q, want 3 and another than 1", code, strings.TrimSpace(out))
	}
	if _, code := nerdctl(append(run, "--detach", harness.TestImage, "/bin/sh", "-c", "echo one; exec /bin/goodinit")...); code != 0 {
		t.Fatalf("run --detach: exit code %d", code)
	}
	defer nerdctl("rm", "--force", name)
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		out, _ := nerdctl("logs", name)
		return strings.Contains(out, "one"), out
	})
	if out, code := nerdctl("exec", name, "/bin/sh", "-c", "/bin/leak -n 3; echo there"); code != 0 || out != "there\n" {
		t.Errorf("exec: exit code %d, %q", code, out)
	}
	testutil.Eventually(t, 10*time.Second, func() (bool, string) { // the entrypoint and reaper-init, and no orphan
		out, _ := nerdctl("top", name)
		return strings.Contains(out, "/dev/.reaper/init") && strings.Contains(out, "goodinit") && !strings.Contains(out, "leak"), out
	})
	for _, args := range [][]string{{"pause", name}, {"unpause", name}, {"stop", "--time", "10", name}} {
		begin := time.Now()
		if out, code := nerdctl(args...); code != 0 || time.Since(begin) > 9*time.Second {
			t.Errorf("%s: exit code %d after %v: %s", args[0], code, time.Since(begin), out)
		}
	}
	if out, _ := nerdctl("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name); strings.TrimSpace(out) != "exited 0" {
		t.Errorf("after stop: %s", out)
	}
}

// TestInitModePod: the annotation of a pod makes reaper-init the first process of its containers and not of the pod itself;
// exec, attach, logs and the grace period of a stop work through CRI.
func TestInitModePod(t *testing.T) {
	d := daemon(t)
	testutil.Tool(t, "crictl")
	testutil.Tool(t, "reaper-init")
	p := startPod(t, d, reaper(t), podOptions{
		args:        []string{"/bin/sh", "-c", "trap 'echo bye; exit 5' TERM; while :; do echo tick; sleep 0.2; done"},
		annotations: initMode,
	})
	pid := p.pid(t)
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		id, err := harness.IdentityOf(pid)
		return err == nil && id.Exe == "/dev/.reaper/init", fmt.Sprintf("%+v, %v", id, err)
	})
	if out, code := p.crictl("exec", "--sync", p.container, "/bin/leak", "-n", "3"); code != 0 {
		t.Errorf("exec: exit code %d: %s", code, out)
	}
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		zs, err := harness.Zombies(pid)
		return err == nil && len(zs) == 0, fmt.Sprintf("%s, %v", describe(zs), err)
	})
	attached := make(chan string, 1)
	go func() {
		out, code := p.crictl("attach", p.container)
		attached <- fmt.Sprintf("exit code %d: %s", code, out)
	}()
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		out, _ := p.crictl("logs", p.container)
		return strings.Count(out, "tick") > 10, out
	})
	begin := time.Now()
	if out, code := p.crictl("stop", "--timeout", "10", p.container); code != 0 || time.Since(begin) > 9*time.Second {
		t.Errorf("stop: exit code %d after %v: %s", code, time.Since(begin), out)
	}
	select {
	case out := <-attached:
		if !strings.Contains(out, "tick") {
			t.Errorf("attach: %s", out)
		}
	case <-time.After(20 * time.Second):
		t.Error("attach goes on after the end of the container")
	}
	if out, _ := p.crictl("inspect", p.container); inspectState(t, out) != "CONTAINER_EXITED 5" {
		t.Errorf("after stop: %s, want CONTAINER_EXITED 5", inspectState(t, out))
	}
	if out, _ := p.crictl("logs", p.container); !strings.Contains(out, "bye") {
		t.Error("the last words are not in the log")
	}
}
