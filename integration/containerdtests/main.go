// containerdtests runs the integration tests of containerd's client (integration/client of its module) under runc.v2 and under
// our runtime, and writes what differs to docs/containerd-tests.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/integration/compare"
	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	page   = "docs/containerd-tests.md"
	target = "test-containerd"
	module = "github.com/containerd/containerd/v2"
	// cgroup is where the tests' containers are: it is named after their namespace.
	cgroup = "/testing"
)

var (
	focus   = flag.String("focus", "", "run only tests whose name matches this `regexp`, and write no page")
	timeout = flag.Duration("timeout", 15*time.Minute, "for the tests under one runtime")
)

func main() {
	flag.Parse()
	compare.Main("containerdtests", run)
}

func run(ctx context.Context) error {
	root, err := testutil.RepoRoot()
	if err != nil {
		return err
	}
	s := &suite{root: root, logs: filepath.Join(root, "bin/containerdtests")}
	if s.binary, err = testutil.FindTool("containerd-client.test"); err != nil {
		return err
	}
	if s.source, err = sourceDir(root); err != nil {
		return err
	}
	if err := os.MkdirAll(s.logs, 0o755); err != nil {
		return err
	}
	images, err := imageList(root)
	if err != nil {
		return err
	}
	registry, err := harness.NewRegistry(images...)
	if err != nil {
		return err
	}
	server, authority, err := serveTLS(registry)
	if err != nil {
		return err
	}
	defer server.Close()
	s.authority = authority
	criu, err := criuWorks(ctx)
	s.noCRIU = err != nil

	fmt.Printf("containerd's client tests, logs in %s\n", s.logs)
	report, err := compare.Suite{Name: "containerd's client tests", Run: func(runtime string, only []string) (compare.Run, error) {
		return s.run(ctx, runtime, only)
	}}.Compare(harness.RuncRuntime, harness.ReaperRuntime, os.Stdout)
	if err != nil {
		return err
	}
	report.Print(os.Stdout)
	if *focus == "" {
		report.Versions = []string{compare.ToolVersion(root, "containerd"), compare.ToolVersion(root, "runc"), criu}
		if err := benchreport.RenewFile(filepath.Join(root, page), target, report.Markdown()); err != nil {
			return err
		}
	}
	return report.Err()
}

// sourceDir returns the directory of the tests' source, which they read files from.
func sourceDir(root string) (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = filepath.Join(root, "integration/tools")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "integration/client"), nil
}

// criuWorks returns how criu is, for the page, and an error when it can do nothing with this kernel: a checkpoint that fails
// leaves a container behind, which makes other tests fail.
func criuWorks(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "criu", "check").CombinedOutput()
	if err != nil {
		text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if text == "" {
			text = err.Error()
		}
		return fmt.Sprintf("criu unfit for this kernel (`criu check`: `%s`)", strings.ReplaceAll(compare.OneLine(text), "`", "'")), err
	}
	return "criu", nil
}

type suite struct {
	root, binary, source, logs string
	authority                  []byte // certificate of the registry, PEM
	noCRIU                     bool
	runs                       int
}

// private hides from the tests, which start a containerd with fixed directories, those of the machine. $0 is the mark of a
// scratch directory, $1 the directory, and what follows it the command.
const private = `set -e
d=$1; shift
for m in lib opt; do mkdir -p "$d/$m"; done
mount --bind "$d/lib" /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 711 /run/containerd
: > "$0"
mount --bind "$d/opt" /opt
mount --bind "$d/hosts" /etc/hosts
exec "$@"`

// run runs tests under a runtime. The daemon is one that the tests start.
func (s *suite) run(ctx context.Context, runtime string, only []string) (_ compare.Run, err error) {
	if pids := harness.InCgroup(cgroup); len(pids) > 0 {
		return compare.Run{}, fmt.Errorf("processes %v are in cgroup %s: the tests' containers would be among them", pids, cgroup)
	}
	dir, env, err := harness.Scratch()
	if err != nil {
		return compare.Run{}, err
	}
	s.runs++
	defer func() {
		var leaks *harness.LeakError
		if cerr := harness.Clear(dir, cgroup); errors.As(cerr, &leaks) {
			fmt.Printf("%s: %v\n", runtime, leaks)
		} else {
			err = errors.Join(err, cerr)
		}
	}()
	hosts := "127.0.0.1 localhost"
	for _, host := range registries {
		hosts += " " + host
	}
	for name, text := range map[string]string{"hosts": hosts + "\n", "ca.pem": string(s.authority)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return compare.Run{}, err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "t"), 0o777|os.ModeSticky); err != nil {
		return compare.Run{}, err
	}

	args := []string{
		"-c", private, harness.MountMark(dir), dir, s.binary, "-test.root", "-test.v=test2json", "-test.parallel=2", "-test.timeout", timeout.String(),
	}
	if s.noCRIU {
		args = append(args, "-no-criu")
	}
	switch {
	case len(only) > 0:
		args = append(args, "-test.run", pattern(only))
	case *focus != "":
		args = append(args, "-test.run", *focus)
	}
	log, err := os.Create(filepath.Join(s.logs, fmt.Sprintf("%d-%s.log", s.runs, runtime)))
	if err != nil {
		return compare.Run{}, err
	}
	defer log.Close()
	// test2json turns what the binary prints into events.
	cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "test2json", "-t", "/bin/sh"}, args...)...)
	cmd.Dir = s.source
	cmd.Env = append(environment(s.root), env, "TMPDIR="+filepath.Join(dir, "t"), "SSL_CERT_FILE="+filepath.Join(dir, "ca.pem"),
		"TEST_RUNTIME="+runtime)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return compare.Run{}, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return compare.Run{}, err
	}
	results, perr := parse(stdout, log)
	werr := cmd.Wait()
	if err := errors.Join(perr, ctx.Err()); err != nil {
		return compare.Run{}, err
	}
	if len(results) == 0 {
		return compare.Run{}, fmt.Errorf("no test ran: %w, see %s", werr, log.Name())
	}
	return compare.Run{Runtime: runtime, Results: results, Took: time.Since(began)}, nil
}

// environment is that of the tests: our programs and those of bin/tools come first, and no proxy and no other daemon is known.
func environment(root string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch strings.ToUpper(name) {
		case "PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "NOTIFY_SOCKET", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE",
			"SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR":
		default:
			env = append(env, kv)
		}
	}
	bin := filepath.Join(root, "bin")
	return append(env, "PATH="+strings.Join([]string{bin, filepath.Join(bin, "tools"), os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":"))
}

// pattern selects tests, not their subtests, by name.
func pattern(names []string) string {
	var top []string
	for _, name := range names {
		test, _, _ := strings.Cut(name, "/")
		if quoted := regexp.QuoteMeta(test); !slices.Contains(top, quoted) {
			top = append(top, quoted)
		}
	}
	return "^(" + strings.Join(top, "|") + ")$"
}

// event is one of go test -json (go doc test2json).
type event struct {
	Action, Test, Output string
}

// parse reads events and copies what the tests print to log. A test with subtests is represented by these, and by itself only if
// it fails where none of them does.
func parse(events io.Reader, log io.Writer) (map[string]compare.Result, error) {
	results := map[string]compare.Result{}
	r := bufio.NewReader(events)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read events: %w", err)
		}
		if len(line) == 0 {
			break
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			_, _ = log.Write(line)
			continue
		}
		_, _ = io.WriteString(log, e.Output)
		if e.Test == "" {
			continue
		}
		result := results[e.Test]
		if detail, ok := message(e.Output); ok {
			result.Detail = detail
		}
		switch e.Action {
		case "run":
			// Until it says how it ended: the binary may end first.
			result.State = compare.Failed
		case "pass":
			result = compare.Result{State: compare.Passed}
		case "fail":
			result.State = compare.Failed
		case "skip":
			result.State = compare.Skipped
		}
		results[e.Test] = result
	}
	parents, failed := map[string]bool{}, map[string]bool{}
	for name, result := range results {
		for i, r := range name {
			if r == '/' {
				parents[name[:i]] = true
				failed[name[:i]] = failed[name[:i]] || result.State == compare.Failed
			}
		}
	}
	for name := range parents {
		if results[name].State != compare.Failed || failed[name] {
			delete(results, name)
		}
	}
	return results, nil
}

// place is how the testing package begins what a test logs.
var place = regexp.MustCompile(`^\s+[A-Za-z0-9_]+\.go:\d+: (.*)`)

// message returns what a test has logged by itself, or testify's error, without the place.
func message(output string) (string, bool) {
	text, isError := strings.CutPrefix(strings.TrimSpace(output), "Error:")
	if !isError {
		found := place.FindStringSubmatch(output)
		if found == nil || strings.HasPrefix(found[1], "time=") {
			return "", false
		}
		text = found[1]
	}
	text = compare.OneLine(text)
	return text, text != ""
}
