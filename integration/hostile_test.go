package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestHostileCommands: a process calls itself what it likes. Whatever that is, its status is the right one and nobody else's
// orphans are mistaken for it.
func TestHostileCommands(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{Runtime: reaper(t), Args: []string{"/bin/pause1", "poll"}})
	want := map[uint32]int{} // number of orphans by status
	for i, name := range []string{
		`a) Z 1 1 1 (b`, `x)\n1 (y) Z`, `\n\n\n`, `\033[2J\007`, `\377\376\375`, `) S 1 1 1 0 -1 `, `NSpid:\t1\t1`, `fifteen bytes..`,
	} {
		status := uint32(40 + i)
		want[status] = 2
		r := exec(t, c, "/bin/sh", "-c", `d=$(mktemp -d) && f="$d/$(printf "$1.")" && cp /bin/leak "${f%.}" && "${f%.}" -n 2 -e "$2"`, "sh", name, fmt.Sprint(status))
		if r.Code != 0 {
			t.Fatalf("%q: exit code %d: %s", name, r.Code, r.Stderr)
		}
	}
	testutil.Eventually(t, grace+5*time.Second, func() (bool, string) {
		got := map[uint32]int{}
		for _, x := range events.OrphanExits(c.ID()) {
			got[x.GetExitStatus()]++
		}
		return fmt.Sprint(got) == fmt.Sprint(want), fmt.Sprintf("orphans by exit status: %v, want %v", got, want)
	})
	if s := finalStats(t, events, c); s.GetReapedByTracer() != uint64(2*len(want)) || s.GetContradictions() != 0 {
		t.Errorf("%d reaped, %d contradictions; want %d and 0", s.GetReapedByTracer(), s.GetContradictions(), 2*len(want))
	}
}

// TestHostileAnnotations: they are the pod's, so neither an error nor the log may become as long as they are, nor hold their control
// characters.
func TestHostileAnnotations(t *testing.T) {
	const most = 1024
	d := daemon(t)
	rt := reaper(t)
	long := strings.Repeat("\x1b[2J\n", 1<<16)
	for key, fails := range map[string]bool{
		"io.containerd.reaper.mode": true, "io.containerd.reaper.grace": true, "io.containerd.reaper.reapOwn": true,
		"io.containerd.reaper.unknown": false, "io.containerd.reaper." + long: false,
	} {
		name, _, _ := strings.Cut(key, "\x1b")
		t.Run(name, func(t *testing.T) {
			from := len(d.Log())
			c, err := d.Create(t.Context(), harness.Spec{Runtime: rt, Args: []string{"/bin/pause1"}, Annotations: map[string]string{key: long}})
			if err == nil {
				removeAtEnd(t, c)
			}
			if fails != (err != nil) {
				t.Fatalf("error %.200v, want one: %v", err, fails)
			}
			if fails && (len(err.Error()) > most || strings.Contains(err.Error(), "\x1b") || !strings.Contains(err.Error(), key)) {
				t.Errorf("error of %d bytes: %.200q", len(err.Error()), err)
			}
			for line := range strings.Lines(d.Log()[from:]) {
				if strings.Contains(line, "io.containerd.reaper.") && (len(line) > most || strings.Contains(line, "\x1b")) {
					t.Errorf("a line of %d bytes in the log: %.200q", len(line), line)
				}
			}
		})
	}
}

// TestInitModeHostileMounts: what the container's own mounts put at /dev/.reaper, and what a privileged one mounts there later, is not
// what runs as PID 1, and costs nobody a report.
func TestInitModeHostileMounts(t *testing.T) {
	d := daemon(t)
	events := subscribe(t, d)
	dir := t.TempDir()
	for _, name := range []string{"init", "report"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexit 99\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(source, destination string) specs.Mount {
		return specs.Mount{Type: "bind", Source: source, Destination: destination, Options: []string{"rbind", "rw"}}
	}
	for name, mounts := range map[string][]specs.Mount{
		"the directory": {{Type: "tmpfs", Source: "tmpfs", Destination: "/dev/.reaper", Options: []string{"rw"}}},
		"the program":   {bind(filepath.Join(dir, "init"), "/dev/.reaper/init")},
	} {
		t.Run(name, func(t *testing.T) {
			c := initContainer(t, d, harness.Spec{Args: []string{"/bin/pause1", "poll"}, Extra: []oci.SpecOpts{oci.WithPrivileged, oci.WithMounts(mounts)}})
			ours, err := os.ReadFile(testutil.Tool(t, "reaper-init"))
			if err != nil {
				t.Fatal(err)
			}
			// runc says that it has started before it has executed the program.
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				runs, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", c.PID))
				return err == nil && bytes.Equal(runs, ours), fmt.Sprintf("PID 1 is another program than ours (%v)", err)
			})
			if r := exec(t, c, "/bin/sh", "-c", "mount -t tmpfs none /dev/.reaper && /bin/leak -n 3 -e 6"); r.Code != 0 {
				t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
			}
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				n := 0
				for _, x := range events.OrphanExits(c.ID()) {
					if x.GetExitStatus() == 6 {
						n++
					}
				}
				return n == 3, fmt.Sprintf("%d of 3 orphans were reported", n)
			})
		})
	}
}

// TestInitModeIsReadOnly: the container's root cannot write to the program that is its PID 1 and that of other containers.
func TestInitModeIsReadOnly(t *testing.T) {
	d := daemon(t)
	c := initContainer(t, d, harness.Spec{Args: []string{"/bin/pause1", "poll"}})
	name := testutil.Tool(t, "reaper-init")
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, try := range []string{
		"echo x >/proc/1/exe", "echo x >/dev/.reaper/init", "echo x >/dev/.reaper/report/x", "rm -f /dev/.reaper/init", "rmdir /dev/.reaper/report",
	} {
		if r, err := c.Exec(t.Context(), "/bin/sh", "-c", try); err != nil || r.Code == 0 {
			t.Errorf("%s: exit code %d, %v", try, r.Code, err)
		}
	}
	if after, err := os.ReadFile(name); err != nil || !bytes.Equal(before, after) {
		t.Errorf("%s has changed (%v)", name, err)
	}
}
