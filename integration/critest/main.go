// critest runs critest, the conformance tests of the Container Runtime Interface (sigs.k8s.io/cri-tools), under runc.v2 and
// under our runtime, and writes what differs to docs/cri-conformance.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/integration/compare"
	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	page   = "docs/cri-conformance.md"
	target = "critest"
)

// handlers are the runtime handlers of the harness' configuration.
var handlers = map[string]string{harness.RuncRuntime: "runc", harness.ReaperRuntime: "reaper"}

var (
	focus = flag.String("focus", "", "run only specs whose name matches this `regexp`, and write no page")
	mode  = flag.String("mode", "assist", "`mode` of our runtime; no page is written for another")
	seed  = flag.Int64("seed", time.Now().Unix(), "of the order of the specs, the same under both runtimes")
)

func main() {
	flag.Parse()
	compare.Main("critest", run)
}

func run(ctx context.Context) error {
	root, err := testutil.RepoRoot()
	if err != nil {
		return err
	}
	tool, err := testutil.FindTool("critest")
	if err != nil {
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
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: registry, ReadHeaderTimeout: time.Minute}
	defer server.Close()
	go func() { _ = server.Serve(listener) }()

	out := filepath.Join(root, "bin/critest")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	s := &suite{tool: tool, registry: "http://" + listener.Addr().String(), out: out}
	fmt.Printf("critest with seed %d, logs in %s\n", *seed, out)
	report, err := compare.Suite{Name: "critest", Run: func(runtime string, only []string) (compare.Run, error) {
		return s.run(ctx, runtime, only)
	}}.Compare(harness.RuncRuntime, harness.ReaperRuntime, os.Stdout)
	if err != nil {
		return err
	}
	report.Print(os.Stdout)
	if *focus == "" && *mode == "assist" {
		report.Versions = []string{
			compare.ToolVersion(root, "containerd"), compare.ToolVersion(root, "runc"), "critest " + s.version, fmt.Sprintf("seed %d", *seed),
		}
		if err := benchreport.RenewFile(filepath.Join(root, page), target, report.Markdown()); err != nil {
			return err
		}
	}
	return report.Err()
}

type suite struct {
	tool, registry, out string
	version             string
	runs                int
}

// run runs specs under a runtime, in a containerd of their own.
func (s *suite) run(ctx context.Context, runtime string, only []string) (_ compare.Run, err error) {
	d, err := harness.Start(ctx, harness.Options{
		Registry: s.registry, Network: harness.BridgeNetwork, ReaperOptions: s.handlerOptions(),
	})
	if err != nil {
		return compare.Run{}, err
	}
	s.runs++
	name := fmt.Sprintf("%d-%s", s.runs, handlers[runtime])
	defer func() {
		// What a spec that failed leaves behind says nothing about the others.
		var leaks *harness.LeakError
		if cerr := d.Close(); errors.As(cerr, &leaks) {
			fmt.Printf("%s: %v\n", runtime, leaks)
		} else {
			err = errors.Join(err, cerr)
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(s.out, name+".containerd.log"), []byte(d.Log()), 0o644))
	}()

	reportFile := filepath.Join(s.out, name+".json")
	endpoint := "unix://" + d.Address
	args := []string{
		"-runtime-endpoint", endpoint, "-image-endpoint", endpoint, "-runtime-handler", handlers[runtime],
		"-ginkgo.json-report", reportFile, "-ginkgo.no-color", "-ginkgo.timeout", "1h", fmt.Sprintf("-ginkgo.seed=%d", *seed),
	}
	for _, spec := range only {
		args = append(args, "-ginkgo.focus", "^"+regexp.QuoteMeta(spec)+"$")
	}
	if len(only) == 0 && *focus != "" {
		args = append(args, "-ginkgo.focus", *focus)
	}
	log, err := os.Create(filepath.Join(s.out, name+".log"))
	if err != nil {
		return compare.Run{}, err
	}
	defer log.Close()
	cmd := d.Command(ctx, s.tool, args...)
	cmd.Stdout, cmd.Stderr = log, log
	began := time.Now()
	werr := cmd.Run()
	var exit *exec.ExitError
	if werr != nil && !errors.As(werr, &exit) {
		return compare.Run{}, werr
	}
	if err := ctx.Err(); err != nil {
		return compare.Run{}, err
	}
	data, err := os.Open(reportFile)
	if err != nil {
		return compare.Run{}, errors.Join(fmt.Errorf("%s: %w", s.tool, werr), err)
	}
	defer data.Close()
	results, err := parse(data)
	if err != nil {
		return compare.Run{}, fmt.Errorf("read %s: %w", reportFile, err)
	}
	if s.version == "" {
		s.version = version(log.Name())
	}
	return compare.Run{Runtime: runtime, Results: results, Took: time.Since(began)}, nil
}

// report is the part of ginkgo's JSON report (github.com/onsi/ginkgo/v2/types, Report) that is needed here.
type report struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText            string
		State                   string
		Failure                 struct{ Message string }
	}
}

// parse reads a report. Specs that the filters left out are not in the result.
func parse(r io.Reader) (map[string]compare.Result, error) {
	var reports []report
	if err := json.NewDecoder(r).Decode(&reports); err != nil {
		return nil, err
	}
	results := map[string]compare.Result{}
	for _, rep := range reports {
		for _, spec := range rep.SpecReports {
			detail := compare.OneLine(spec.Failure.Message)
			var state compare.State
			switch {
			case spec.State == "passed":
				state = compare.Passed
			case spec.State == "skipped" && detail == "", spec.State == "pending":
				continue
			case spec.State == "skipped":
				state = compare.Skipped
			default: // failed, panicked, timedout, interrupted, aborted
				state, detail = compare.Failed, compare.OneLine(spec.State+": "+detail)
			}
			if spec.LeafNodeType != "It" {
				if state == compare.Failed {
					return nil, fmt.Errorf("%s: %s", spec.LeafNodeType, detail)
				}
				continue
			}
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			if _, twice := results[name]; twice {
				return nil, fmt.Errorf("two specs named %q", name)
			}
			results[name] = compare.Result{State: state, Detail: detail}
		}
	}
	return results, nil
}

// version reads the line that critest begins with.
// handlerOptions are none for the default mode: a handler without options is what most have, and pods with user namespaces need one.
func (s *suite) handlerOptions() string {
	if *mode == "assist" {
		return ""
	}
	return fmt.Sprintf("mode = %q", *mode)
}

func version(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return "of unknown version"
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "critest version: "); ok {
			return strings.TrimSpace(v)
		}
	}
	return "of unknown version"
}
