package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// systemdDaemons is how many services the container has. Service N ends with exit code N.
const systemdDaemons = 8

// daemonScript is the main program of a service: it leaves a daemon, which PID 1 adopts, and ends.
const daemonScript = `setsid sh -c '
echo $$ >/run/daemon.$0
until [ -e /test/$1 ]; do sleep 0.1; done
exit $0' "$1" "$2" </dev/null >/dev/null 2>&1 &
until [ -s /run/daemon.$1 ]; do sleep 0.02; done
`

// TestSystemd has systemd as PID 1, with services that daemonise (Type=forking): it asks for the statuses of processes that it
// adopted, so nothing but time tells that they are wanted. It is held up when they end, longer than the grace period, has every
// status nevertheless, and is given more time from then on.
func TestSystemd(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	const systemd = "/lib/systemd/systemd"
	if _, err := os.Stat(systemd); err != nil {
		testutil.Lacks(t, err.Error(), "apt-get install systemd")
	}
	events := subscribe(t, d)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// An /etc of its own: the machine's names services of the machine.
	write("etc/passwd", "root:x:0:0::/:/bin/sh\n")
	write("etc/group", "root:x:0:\n")
	write("etc/machine-id", strings.Repeat("0123456789abcdef", 2)+"\n")
	write("test/daemon", daemonScript)
	var wants strings.Builder
	for n := 1; n <= systemdDaemons; n++ {
		fmt.Fprintf(&wants, " test%d.service", n)
		write(fmt.Sprintf("etc/systemd/system/test%d.service", n), fmt.Sprintf(`[Unit]
DefaultDependencies=no
[Service]
Type=forking
PIDFile=/run/daemon.%[1]d
ExecStart=/bin/sh /test/daemon %[1]d go%[2]d
ExecStartPost=/bin/touch /test/started.%[1]d
ExecStopPost=/bin/sh -c 'echo $EXIT_CODE $EXIT_STATUS >/test/new.%[1]d; mv /test/new.%[1]d /test/stopped.%[1]d'
`, n, n%2))
	}
	write("etc/systemd/system/test.target", "[Unit]\nDefaultDependencies=no\nWants="+wants.String()+"\n")

	mounts := realMounts(t, systemd, "/sbin")
	for i := range mounts {
		if mounts[i].Destination == "/etc" {
			mounts[i].Source = filepath.Join(dir, "etc")
		}
	}
	mounts = append(mounts,
		specs.Mount{Type: "bind", Source: filepath.Join(dir, "test"), Destination: "/test", Options: []string{"rbind", "rw"}},
		specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/run/lock", Options: []string{"nosuid", "noexec", "nodev"}},
		specs.Mount{Type: "cgroup", Source: "cgroup", Destination: "/sys/fs/cgroup", Options: []string{"nosuid", "noexec", "nodev", "rw"}},
	)
	c := run(t, d, harness.Spec{
		Runtime: runtime, Options: table("statsInterval = '1s'"),
		Args: []string{systemd, "--system", "--unit=test.target", "--show-status=no", "--log-target=console"}, Terminal: true,
		Extra: []oci.SpecOpts{
			oci.WithMounts(mounts), oci.WithEnv([]string{"container=oci"}), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}),
		},
	})
	// files waits until there is one for every service of this half.
	files := func(name string, half int) {
		t.Helper()
		testutil.Eventually(t, time.Minute, func() (bool, string) {
			for n := 1; n <= systemdDaemons; n++ {
				if _, err := os.Stat(filepath.Join(dir, "test", fmt.Sprint(name, ".", n))); err != nil && n%2 == half {
					return false, fmt.Sprintf("%v\n%s%s", err, c.Stdout, c.Stderr)
				}
			}
			return true, ""
		})
	}
	files("started", 0)
	files("started", 1) // systemd knows the daemons: ExecStartPost comes after the PID file

	for half := range 2 {
		// Their SIGCHLD waits as long as systemd is stopped: what ends meanwhile stays.
		if err := syscall.Kill(c.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprintf("test/go%d", half), "")
		testutil.Eventually(t, 20*time.Second, func() (bool, string) {
			zs := zombies(t, c)
			return len(zs) >= systemdDaemons/2, describe(zs)
		})
		if n := testutil.StableFor(t, 3*grace, time.Minute, func() int { return len(zombies(t, c)) }); n < systemdDaemons/2 {
			t.Errorf("%d zombies while systemd is stopped, want %d or more: somebody else has collected them", n, systemdDaemons/2)
		}
		if err := syscall.Kill(c.PID, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		files("stopped", half)
	}
	for n := 1; n <= systemdDaemons; n++ {
		got, err := os.ReadFile(filepath.Join(dir, "test", fmt.Sprintf("stopped.%d", n)))
		if want := fmt.Sprintf("exited %d\n", n); err != nil || string(got) != want {
			t.Errorf("service %d: systemd has the status %q, %v; want %q", n, got, err, want)
		}
	}
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		zs := zombies(t, c)
		return len(zs) == 0, describe(zs)
	})
	final := finalStats(t, events, c)
	if final.GetVanished() == 0 || final.GetReapedByTracer() != 0 || final.GetGraceInForce().AsDuration() != sweep.LearnedGrace {
		t.Errorf("statistics %v; want orphans that vanished, none reaped, and a grace of %v in force", final, sweep.LearnedGrace)
	}
}
