package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/reaperctl"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// ctl runs reaperctl as a user would, outside of the daemon's mount namespace, and returns what it printed.
func ctl(t *testing.T, d *harness.Daemon, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	bin := testutil.Tool(t, "reaperctl")
	cmd := osexec.CommandContext(t.Context(), bin, append([]string{"--address", d.Address}, args...)...)
	cmd.Env = append(d.Env(), "NO_COLOR=1")
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("reaperctl %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// ctlJSON is ctl for a document, and fails the test unless the exit code is 0.
func ctlJSON[T any](t *testing.T, d *harness.Daemon, args ...string) T {
	t.Helper()
	out, errOut, code := ctl(t, d, append(args, "-o", "json")...)
	if code != 0 {
		t.Fatalf("reaperctl %s: exit code %d: %s%s", strings.Join(args, " "), code, out, errOut)
	}
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("reaperctl %s: %v in %s", strings.Join(args, " "), err, out)
	}
	return v
}

func taskIn(list reaperctl.TaskList, id string) *reaperctl.Task {
	for i := range list.Tasks {
		if list.Tasks[i].ID == id {
			return &list.Tasks[i]
		}
	}
	return nil
}

// TestReaperctl: each command on a container whose PID 1 never waits, under our runtime and under runc.v2.
func TestReaperctl(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	const hour = "1h"
	leaky := patient("", hour)
	leaky.Runtime, leaky.Labels = runtime, map[string]string{"nerdctl/name": "leaky"}
	c := run(t, d, leaky)
	foreign := run(t, d, harness.Spec{Runtime: harness.RuncRuntime, Args: []string{"/bin/pause1", "poll"}})
	exec(t, c, "/bin/leak", "-n", "3", "-e", "7")
	exec(t, foreign, "/bin/leak", "-n", "2", "-k", "9")

	var task *reaperctl.Task
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		task = taskIn(ctlJSON[reaperctl.TaskList](t, d, "ps"), c.ID())
		return task != nil && task.Reaper != nil && task.Reaper.Zombies.Adopted == 3, fmt.Sprintf("%+v", task)
	})
	if task.Name != "leaky" || task.PID != c.PID || task.Reaper.Mode != "assist" || task.Reaper.Zombies.Total != 3 || task.PIDs.Current != 4 ||
		task.Reaper.OldestSeconds <= 0 || task.Reaper.GraceSeconds != 3600 || task.Reaper.ForkLog.Source == "" {
		t.Errorf("ps: %+v, %+v", task, task.Reaper)
	}
	if other := taskIn(ctlJSON[reaperctl.TaskList](t, d, "ps"), foreign.ID()); other == nil || other.Reaper != nil || other.Error != "" || other.PIDs.Current != 3 {
		t.Errorf("ps of a container of runc.v2: %+v", other)
	}
	out, _, code := ctl(t, d, "ps")
	if code != 0 || !strings.Contains(out, "leaky") || strings.Contains(out, "\x1b") {
		t.Errorf("ps: exit code %d\n%s", code, out)
	}

	list := ctlJSON[reaperctl.ZombieList](t, d, "zombies", "leaky")
	there := map[uint32]harness.Zombie{}
	for _, z := range zombies(t, c) {
		there[uint32(z.PID)] = z
	}
	if len(list.Zombies) != 3 || len(there) != 3 {
		t.Errorf("zombies: %+v; there are %v", list, there)
	}
	for _, z := range list.Zombies {
		is := there[z.PID]
		if int(z.NSPID) != is.NSPID || z.Command != is.Comm || z.Verdict != "adopted" || z.ExitStatus != 7 || z.ParentCommand != "pause1" ||
			z.Container.ID != c.ID() || z.AgeSeconds == nil {
			t.Errorf("zombie %+v; there is %+v", z, is)
		}
	}
	if all := ctlJSON[reaperctl.ZombieList](t, d, "zombies"); len(all.Zombies) < 3 {
		t.Errorf("zombies of all containers: %+v", all)
	}

	checkScan(t, d, c, foreign, runtime)

	follow := osexec.CommandContext(t.Context(), testutil.Tool(t, "reaperctl"), "--address", d.Address, "events", "leaky", "--count", "3", "--for", "1m", "-o", "json")
	events := new(harness.Output)
	follow.Stdout, follow.Stderr = events, events
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- follow.Wait() }()

	// The subscription may come later than a first orphan's exit: reap, leave others behind, and so on.
	res := ctlJSON[reaperctl.ReapResult](t, d, "reap", "leaky", "--wait", "10s")
	if res.Reaped != 3 || res.Left != 0 || res.Container.ID != c.ID() || len(zombies(t, c)) != 0 {
		t.Errorf("reap: %+v, then %s", res, describe(zombies(t, c)))
	}
	testutil.Eventually(t, 40*time.Second, func() (bool, string) {
		select {
		case err := <-ended:
			return err == nil, fmt.Sprintf("%v: %s", err, events)
		default:
		}
		exec(t, c, "/bin/leak", "-e", "9")
		_, _, _ = ctl(t, d, "reap", "leaky")
		return false, events.String()
	})
	var orphans int
	for line := range strings.Lines(events.String()) {
		var ev reaperctl.Event
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatalf("events: %v in %q", err, line)
		}
		if ev.Container.ID != c.ID() || ev.Container.Name != "leaky" || ev.Orphan == nil && ev.Reaper == nil {
			t.Errorf("event %+v", ev)
		}
		if ev.Orphan != nil {
			orphans++
		}
	}
	if orphans == 0 {
		t.Errorf("no orphan among the events\n%s", events)
	}
}

func checkScan(t *testing.T, d *harness.Daemon, ours, foreign *harness.Container, runtime string) {
	t.Helper()
	res := ctlJSON[reaperctl.ScanResult](t, d, "scan")
	for _, want := range []struct {
		c       *harness.Container
		runtime string
		zombies int
		status  string
	}{{ours, runtime, 3, "7"}, {foreign, harness.RuncRuntime, 2, "137"}} {
		found := false
		for _, g := range res.Groups {
			if g.Container == nil || g.Container.ID != want.c.ID() {
				continue
			}
			found = true
			p := g.Parents[0]
			if g.Engine != "containerd" || g.Runtime != want.runtime || g.Zombies != want.zombies || len(g.Parents) != 1 || !p.Init || p.PID != want.c.PID ||
				p.NSPID != 1 || p.Command != "pause1" || len(p.Commands) != 1 || p.Commands[0].Command != "leak" || p.Commands[0].ExitStatuses[want.status] != want.zombies {
				t.Errorf("scan: %+v; want %+v", g, want)
			}
		}
		if !found {
			t.Errorf("scan: container %s is not there: %+v", want.c.ID(), res)
		}
	}
	// Without a containerd the zombies are found as well.
	out, errOut, code := ctl(t, d, "scan", "--address", "/nowhere.sock")
	if code != 0 || !strings.Contains(out, "pause1 (PID 1)") || !strings.Contains(errOut, "/nowhere.sock") {
		t.Errorf("scan without containerd: exit code %d: %s%s", code, out, errOut)
	}
}

// TestReaperctlErrors: each exit code, with a message that says what to do.
func TestReaperctlErrors(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	foreign := run(t, d, harness.Spec{Runtime: harness.RuncRuntime, Args: []string{"/bin/pause1", "poll"}})
	own := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}, Annotations: map[string]string{"io.containerd.reaper.mode": "observe"}})
	for _, tt := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"no such command", []string{"psst"}, reaperctl.ExitUsage, []string{`"psst"`, "--help"}},
		{"no such flag", []string{"ps", "--all"}, reaperctl.ExitUsage, []string{"--all", "--help"}},
		{"no such format", []string{"ps", "-o", "xml"}, reaperctl.ExitUsage, []string{"xml", "table, wide, json, yaml"}},
		{"no container", []string{"reap"}, reaperctl.ExitUsage, []string{"1 arg"}},
		{"no containerd", []string{"ps", "--address", "/nowhere.sock"}, reaperctl.ExitUnavailable, []string{"/nowhere.sock", "--address", "CONTAINERD_ADDRESS"}},
		{"no such container", []string{"zombies", "no-such"}, reaperctl.ExitNoContainer, []string{`"no-such"`, "reaperctl ps"}},
		{"runc.v2: zombies", []string{"zombies", foreign.ID()}, reaperctl.ExitForeign, []string{foreign.ID(), "reaperctl scan"}},
		{"runc.v2: reap", []string{"reap", foreign.ID()}, reaperctl.ExitForeign, []string{foreign.ID(), "reaperctl scan"}},
		{"mode observe: reap", []string{"reap", own.ID()}, reaperctl.ExitNotOK, []string{"mode observe"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, errOut, code := ctl(t, d, tt.args...)
			if code != tt.code || out != "" {
				t.Errorf("exit code %d, want %d; %q on standard output", code, tt.code, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(errOut, want) {
					t.Errorf("%q is missing from %q", want, errOut)
				}
			}
		})
	}
	t.Run("not root", func(t *testing.T) {
		bin, err := os.ReadFile(testutil.Tool(t, "reaperctl"))
		if err != nil {
			t.Fatal(err)
		}
		// In a place that another user can get to.
		exe := d.Dir + "/reaperctl"
		if err := os.WriteFile(exe, bin, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(exe, 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := osexec.CommandContext(t.Context(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", exe, "--address", d.Address, "ps").CombinedOutput()
		var exit *osexec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != reaperctl.ExitUnavailable || !strings.Contains(string(out), "run reaperctl as root") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestReaperctlHostile: what a container says of itself reaches a terminal, and a document, escaped.
func TestReaperctlHostile(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	spec := patient("", "1h")
	spec.Runtime, spec.Labels = runtime, map[string]string{"nerdctl/name": "evil\x1b[2J\u202ename"}
	c := run(t, d, spec)
	// A program whose name clears the screen.
	exec(t, c, "/bin/sh", "-c", `cp /bin/leak "/tmp/$(printf 'a\033[2Jb')" && "/tmp/$(printf 'a\033[2Jb')"`)
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		list := ctlJSON[reaperctl.ZombieList](t, d, "zombies", c.ID())
		return len(list.Zombies) == 1 && list.Zombies[0].Command == "a\x1b[2Jb", fmt.Sprintf("%+v", list)
	})
	for _, args := range [][]string{{"ps"}, {"ps", "-o", "wide"}, {"ps", "-o", "json"}, {"ps", "-o", "yaml"}, {"zombies"}, {"zombies", "-o", "yaml"},
		{"zombies", "-o", "json"}, {"scan"}, {"scan", "-o", "json"}, {"__complete", "zombies", ""}, {"reap", "evil"}} {
		out, errOut, _ := ctl(t, d, args...)
		if strings.ContainsAny(out+errOut, "\x1b\u202e") || !strings.Contains(out+errOut, "evil") && args[0] != "__complete" {
			t.Errorf("reaperctl %v: %q%q", args, out, errOut)
		}
	}
}

// TestReaperctlCompletion: a shell is offered the names of containers.
func TestReaperctlCompletion(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	run(t, d, harness.Spec{ID: "complete-1", Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
	run(t, d, harness.Spec{ID: "complete-2", Runtime: runtime, Args: []string{"/bin/pause1", "poll"}, Labels: map[string]string{"nerdctl/name": "web"}})
	for _, tt := range []struct{ prefix, want string }{{"complete", "complete-1 complete-2"}, {"we", "web"}, {"nothing", ""}} {
		out, _, code := ctl(t, d, "__complete", "zombies", tt.prefix)
		var names []string
		for line := range strings.Lines(out) {
			if name, _, ok := strings.Cut(line, "\t"); ok && !strings.HasPrefix(line, ":") {
				names = append(names, name)
			}
		}
		if got := strings.Join(names, " "); code != 0 || got != tt.want {
			t.Errorf("completion of %q: exit code %d, %q; want %q", tt.prefix, code, got, tt.want)
		}
	}
}

// diagnose runs doctor and returns its checks by status, name and what was found, and the exit code.
func diagnose(t *testing.T, d *harness.Daemon) (reaperctl.Diagnosis, int) {
	t.Helper()
	out, errOut, code := ctl(t, d, "doctor", "-o", "json")
	var v reaperctl.Diagnosis
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("doctor: exit code %d, %v in %s%s", code, err, out, errOut)
	}
	return v, code
}

// TestReaperctlDoctor: nothing fails on a node where all is there; each thing that is broken is named, with what to do.
func TestReaperctlDoctor(t *testing.T) {
	runtime := reaper(t)
	if runtime != harness.ReaperRuntime {
		t.Skip("another runtime has other programs")
	}
	bin := t.TempDir()
	install := func(names ...string) {
		for _, name := range names {
			data, err := os.ReadFile(testutil.Tool(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(bin, name), data, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) {
		if err := os.Remove(filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	install("containerd-shim-reaper-v2", "reaper-tracer", "reaper-init")
	d := ownDaemon(t, harness.Options{Bin: bin})
	// finds fails the test unless doctor says so, and what to do.
	finds := func(name, status, found string) {
		t.Helper()
		v, code := diagnose(t, d)
		if (code == reaperctl.ExitNotOK) == v.OK || code != reaperctl.ExitNotOK && code != reaperctl.ExitOK {
			t.Errorf("exit code %d, ok %v", code, v.OK)
		}
		for _, c := range v.Checks {
			if strings.HasPrefix(c.Name, name) && c.Status == status && strings.Contains(c.Found, found) && c.Remedy != "" {
				return
			}
		}
		t.Errorf("no %s of %q with %q: %+v", status, name, found, v.Checks)
	}

	v, code := diagnose(t, d)
	for _, c := range v.Checks {
		if c.Status == "fail" || c.Status == "unknown" {
			t.Errorf("where all is there: %+v", c)
		}
	}
	if code != reaperctl.ExitOK || !v.OK || len(v.Checks) < 10 {
		t.Errorf("where all is there: exit code %d, %+v", code, v)
	}

	// A process of an exec that holds a zombie: a shell that has executed another program in its place.
	c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
	holder, err := c.StartExec(t.Context(), "/bin/sh", "-c", "(exit 3) & exec /bin/pause1 poll")
	if err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		v, _ := diagnose(t, d)
		for _, check := range v.Checks {
			if strings.HasPrefix(check.Name, "task ") && strings.Contains(check.Found, "held by another process") && strings.Contains(check.Found, "pause1") {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", v.Checks)
	})
	if err := holder.Kill(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}

	remove("reaper-init")
	finds("programs: reaper-init", "note", "mode init fails")
	remove("reaper-tracer")
	finds("programs: reaper-tracer", "fail", "can only observe")
	run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
	finds("task ", "note", "is not in force")
	remove("containerd-shim-reaper-v2")
	finds("programs", "fail", "containerd-shim-reaper-v2 is not on containerd's PATH")
	install("containerd-shim-reaper-v2", "reaper-tracer", "reaper-init")

	config := filepath.Join(d.Dir, "config.toml")
	data, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(data), "pod_annotations = ['io.containerd.reaper.*']", "", 1)
	if edited == string(data) {
		t.Fatalf("no pod_annotations in %s", data)
	}
	if err := os.WriteFile(config, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	finds("containerd's configuration", "fail", "without pod_annotations")
	if err := os.WriteFile(config, data, 0o600); err != nil {
		t.Fatal(err)
	}

	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	finds("containerd", "fail", "cannot be reached")
	if err := d.Restart(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	v, code = diagnose(t, d)
	if code != reaperctl.ExitOK {
		t.Errorf("all is there again: exit code %d, %+v", code, v)
	}
}

// TestReaperctlLeaks: the report names the command, who left it behind and what to change, under our runtime and under runc.v2; and
// a program that holds its own children.
func TestReaperctlLeaks(t *testing.T) {
	d := daemon(t)
	spec := patient("", "1h")
	spec.Runtime = reaper(t)
	ours := run(t, d, spec)
	foreign := run(t, d, harness.Spec{Runtime: harness.RuncRuntime, Args: []string{"/bin/pause1", "poll"}})
	own := run(t, d, harness.Spec{Runtime: spec.Runtime, Args: []string{"/bin/sh", "-c", "(exit 5) & exec /bin/pause1 poll"}})
	exec(t, ours, "/bin/leak", "-n", "2")

	bin := testutil.Tool(t, "reaperctl")
	cmd := osexec.CommandContext(t.Context(), bin, "--address", d.Address, "leaks", "--for", "5m", "-o", "json")
	var out, errOut harness.Output
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Orphans that live, below a parent that lives long enough to be seen.
	for _, c := range []*harness.Container{ours, foreign} {
		exec(t, c, "/bin/leak", "-n", "3", "-e", "7", "-p", "800", "-l", "1200")
	}
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		a, b := zombies(t, ours), zombies(t, foreign)
		return len(a) == 5 && len(b) == 3, describe(a) + ", " + describe(b)
	})
	// It counts what stays for half a second.
	testutil.StableFor(t, 2*time.Second, 20*time.Second, func() int { return len(zombies(t, ours)) + len(zombies(t, foreign)) })
	// Interrupted, it reports what it has seen by then.
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("leaks: %v: %s", err, errOut.String())
	}
	var report reaperctl.LeakReport
	if err := json.Unmarshal([]byte(out.String()), &report); err != nil {
		t.Fatalf("leaks: %v in %s", err, out.String())
	}
	find := func(id string, match func(reaperctl.Leak) bool) *reaperctl.Leak {
		for i, l := range report.Leaks {
			if l.Container != nil && l.Container.ID == id && match(l) {
				return &report.Leaks[i]
			}
		}
		return nil
	}
	for _, tt := range []struct {
		c      *harness.Container
		remedy string
	}{{ours, "the shim reaps"}, {foreign, "give the image an init"}} {
		l := find(tt.c.ID(), func(l reaperctl.Leak) bool { return l.New > 0 })
		if l == nil || l.New != 3 || l.Command != "leak" || l.LeftBy != "leak" || l.Verdict != "adopted" || !l.ParentInit || l.Parent != "pause1" ||
			l.ParentPID != tt.c.PID || l.PerHour <= 0 || l.ExitStatuses["7"] != 3 || !strings.Contains(l.Remedy, tt.remedy) {
			t.Errorf("leaks of %s: %+v; want three, left by leak, and %q", tt.c.ID(), report.Leaks, tt.remedy)
		}
	}
	if l := find(ours.ID(), func(l reaperctl.Leak) bool { return l.Before > 0 }); l == nil || l.Before != 2 || l.New != 0 || l.Verdict != "adopted" {
		t.Errorf("what was there before: %+v", report.Leaks)
	}
	if l := find(own.ID(), func(reaperctl.Leak) bool { return true }); l == nil || l.Verdict == "adopted" || l.Command != "sh" || l.ExitStatuses["5"] != 1 {
		t.Errorf("PID 1's own child: %+v", report.Leaks)
	}
}

// TestReaperctlTop: on a terminal it draws and leaves when it is told; elsewhere it says so.
func TestReaperctlTop(t *testing.T) {
	d := daemon(t)
	spec := patient("", "1h")
	spec.Runtime, spec.Labels = reaper(t), map[string]string{"nerdctl/name": "watched"}
	c := run(t, d, spec)
	exec(t, c, "/bin/leak", "-n", "2")
	if _, errOut, code := ctl(t, d, "top"); code != reaperctl.ExitError || !strings.Contains(errOut, "needs a terminal") {
		t.Errorf("without a terminal: exit code %d, %q", code, errOut)
	}
	// script(1) makes the terminal.
	cmd := osexec.CommandContext(t.Context(), testutil.Tool(t, "script"), "--quiet", "--return", "--command",
		testutil.Tool(t, "reaperctl")+" top --every 200ms --address "+d.Address, "/dev/null")
	cmd.Env = append(d.Env(), "TERM=xterm")
	out := new(harness.Output)
	cmd.Stdout, cmd.Stderr = out, out
	keys, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		s := out.String()
		return strings.Contains(s, "watched") && strings.Contains(s, "assist"), s
	})
	if _, err := keys.Write([]byte("q")); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after q: %v: %q", err, out)
	}
}
