// matrix runs integration tests with several versions of containerd and writes the table in docs/containerd.md.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/internal/uname"
)

const (
	page   = "docs/containerd.md"
	target = "test-matrix"
)

// result is what one version made of the tests.
type result struct {
	version                 string
	passed, failed, skipped int
	failures                []string
	took                    time.Duration
	err                     error // the run as a whole
}

// event is one of go test -json (go doc test2json).
type event struct {
	Action, Test, Output string
}

func main() {
	run := flag.String("run", ".", "tests to run, a `regexp` as for go test")
	timeout := flag.String("timeout", "20m", "for one version, as for go test")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Usage: matrix [flags] DAEMON...\n\nDAEMON is a file in bin/tools.")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := matrix(*run, *timeout, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func matrix(run, timeout string, daemons []string) error {
	root, err := testutil.RepoRoot()
	if err != nil {
		return err
	}
	var results []result
	var errs []error
	for _, d := range daemons {
		r := test(root, run, timeout, d)
		results = append(results, r)
		if r.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d, r.err))
		}
		fmt.Printf("%s: %d passed, %d failed, %d skipped in %v\n", r.version, r.passed, r.failed, r.skipped, r.took.Round(time.Second))
		// After each, so that a run that is broken off has not been for nothing.
		if err := benchreport.RenewFile(filepath.Join(root, page), target, table(results)); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func test(root, run, timeout, daemon string) result {
	r := result{version: daemon}
	out, err := exec.Command(filepath.Join(root, "bin/tools", daemon), "--version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) >= 3 {
		r.version = benchreport.Version(fields[2])
	} else {
		r.err = fmt.Errorf("--version: %w, %q", err, out)
		return r
	}
	begin := time.Now()
	cmd := exec.Command("go", "test", "-json", "-count=1", "-timeout", timeout, "-run", run, "./integration")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "REAPER_TEST_REQUIRE=1", "REAPER_TEST_CONTAINERD="+daemon, "REAPER_TEST_UPGRADE_FROM="+daemon)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.err = err
		return r
	}
	output := r.count(stdout)
	r.err = cmd.Wait()
	r.took = time.Since(begin)
	if r.err != nil {
		_, _ = os.Stdout.Write(output)
	}
	if r.err == nil && r.passed == 0 {
		r.err = errors.New("no test ran")
	}
	return r
}

// count reads the events of a run and returns what its tests printed.
func (r *result) count(events io.Reader) []byte {
	var output bytes.Buffer
	s := bufio.NewScanner(events)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil {
			continue
		}
		output.WriteString(e.Output)
		if e.Test == "" || strings.Contains(e.Test, "/") {
			continue
		}
		switch e.Action {
		case "pass":
			r.passed++
		case "fail":
			r.failed++
			r.failures = append(r.failures, e.Test)
		case "skip":
			r.skipped++
		}
	}
	return output.Bytes()
}

// table returns the results for the page.
func table(results []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s:\n\n", time.Now().UTC().Format(time.DateOnly), uname.Get().Release)
	b.WriteString("| containerd | passed | failed | skipped | took |\n|---|--:|--:|--:|--:|\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %v |\n", r.version, r.passed, r.failed, r.skipped, r.took.Round(time.Second))
	}
	for _, r := range results {
		if len(r.failures) > 0 {
			slices.Sort(r.failures)
			fmt.Fprintf(&b, "\nFailed with %s: %s.\n", r.version, strings.Join(r.failures, ", "))
		}
	}
	return b.String()
}
