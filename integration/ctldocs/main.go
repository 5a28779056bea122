// Command ctldocs runs reaperctl on containers that leak and writes what it prints into docs/reaperctl.md. Run it with
// "make docs-reaperctl", as root.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/reaperctl"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/internal/uname"
)

const (
	page   = "docs/reaperctl.md"
	target = "docs-reaperctl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := write(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ctldocs:", err)
		os.Exit(1)
	}
}

// runs are the commands of the page, with what is said before each.
var runs = []struct {
	text string
	args []string
	code int
	// only shows lines with names of our containers and no others: scan sees all that runs on the machine.
	only bool
}{
	{text: "Every task. `web` is under the reaper runtime with a grace period of an hour, so that its zombies are still there; `api` with the usual " +
		"second; `legacy` under runc.v2.", args: []string{"ps"}},
	{text: "Each zombie of one of them:", args: []string{"zombies", "web"}},
	{text: "Any runtime, nothing installed (lines of the machine's other processes are left out here):", args: []string{"scan"}, only: true},
	{text: "What the owner of an image has to change. While this ran, an exec in `legacy` left four helpers behind, which were killed later:",
		args: []string{"leaks", "legacy", "--for", "8s"}},
	{text: "Not waiting for the grace period:", args: []string{"reap", "web"}},
	{text: "A container of another runtime:", args: []string{"reap", "legacy"}, code: reaperctl.ExitForeign},
	{text: "What the node lacks:", args: []string{"doctor"}},
	{text: "For programs:", args: []string{"ps", "-o", "yaml", "-n", harness.Namespace}},
	{text: "All commands:", args: []string{"--help"}},
}

func write(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run make docs-reaperctl as root")
	}
	d, err := harness.Start(ctx, harness.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	legacy, err := start(ctx, d)
	if err != nil {
		return err
	}
	bin, err := testutil.FindTool("reaperctl")
	if err != nil {
		return err
	}
	shown := strings.NewReplacer(d.Dir+"/c.sock", "/run/containerd/containerd.sock", d.Dir+"/state", "/run/containerd", d.Dir+"/config.toml", "/etc/containerd/config.toml",
		filepath.Dir(bin), "/usr/local/bin", "+unknown ", " ")
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s, %s, on a machine that others used as well. A containerd of its own; its directories are shown as those of an installed one.\n",
		time.Now().UTC().Format(time.DateOnly), uname.Get().Release, version(d))
	for _, r := range runs {
		var leak chan error
		if r.args[0] == "leaks" {
			leak = make(chan error, 1)
			go func() {
				_, err := legacy.Exec(ctx, "/bin/leak", "-n", "4", "-p", "800", "-l", "1200", "-k", "9")
				leak <- err
			}()
		}
		out, err := run(ctx, bin, d, r.args, r.code)
		if err != nil {
			return err
		}
		if leak != nil {
			if err := <-leak; err != nil {
				return err
			}
		}
		if r.only {
			out = ours(out)
		}
		fmt.Fprintf(&b, "\n%s\n\n```\n$ reaperctl %s\n%s```\n", r.text, strings.Join(r.args, " "), shown.Replace(out))
	}
	return benchreport.RenewFile(page, target, b.String())
}

// start makes the containers and waits until what they leak is there, or gone.
func start(ctx context.Context, d *harness.Daemon) (legacy *harness.Container, err error) {
	all := map[string]*harness.Container{}
	for _, s := range []struct {
		name, runtime, grace string
		args                 []string
	}{
		{name: "web", runtime: harness.ReaperRuntime, grace: "1h", args: []string{"/bin/sh", "-c", "(exit 5) & exec /bin/pause1 poll"}},
		{name: "api", runtime: harness.ReaperRuntime, grace: "1s", args: []string{"/bin/pause1", "poll"}},
		{name: "legacy", runtime: harness.RuncRuntime, args: []string{"/bin/pause1", "poll"}},
	} {
		spec := harness.Spec{Runtime: s.runtime, Args: s.args, Labels: map[string]string{"nerdctl/name": s.name}}
		if s.grace != "" {
			spec.Annotations = map[string]string{"io.containerd.reaper.grace": s.grace}
		}
		c, err := d.Run(ctx, spec)
		if err != nil {
			return nil, err
		}
		if r, err := c.Exec(ctx, "/bin/leak", "-n", "3", "-e", "7"); err != nil || r.Code != 0 {
			return nil, fmt.Errorf("leak in %s: exit code %d: %w", s.name, r.Code, err)
		}
		all[s.name] = c
	}
	return all["legacy"], testutil.Poll(20*time.Second, func() (bool, string) {
		zs, err := all["api"].Zombies()
		return err == nil && len(zs) == 0, fmt.Sprintf("%d zombies in api, %v", len(zs), err)
	})
}

// run runs reaperctl and returns what it prints; standard error only where it is to fail.
func run(ctx context.Context, bin string, d *harness.Daemon, args []string, code int) (string, error) {
	cmd := exec.CommandContext(ctx, bin, append([]string{"--address", d.Address}, args...)...)
	cmd.Env = append(d.Env(), "TZ=UTC")
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		return "", fmt.Errorf("reaperctl %s: %w, want exit code %d: %s%s", strings.Join(args, " "), err, code, out.String(), errOut.String())
	}
	return out.String() + errOut.String(), nil
}

// ours keeps the titles and the lines that begin with the name of one of our containers.
func ours(out string) string {
	lines := strings.SplitAfter(out, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool {
		name, _, _ := strings.Cut(line, " ")
		return !slices.Contains([]string{"CONTAINER", "web", "api", "legacy"}, name)
	}), "")
}

func version(d *harness.Daemon) string {
	v, err := d.Client.Version(context.Background())
	if err != nil {
		return "containerd"
	}
	return "containerd " + benchreport.Version(v.Version)
}
