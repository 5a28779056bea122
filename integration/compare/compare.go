// Package compare runs somebody else's tests under two runtimes, containerd's own and that of this project, and says what
// differs. A test that passes under the first has to pass under the second.
package compare

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/uname"
)

// State is how a test ended.
type State string

// States of a test. Absent is that of a test which did not run at all.
const (
	Passed  State = "passed"
	Failed  State = "failed"
	Skipped State = "skipped"
	Absent  State = "absent"
)

// Result is what became of one test.
type Result struct {
	State  State
	Detail string // why it failed or was skipped, one line
}

// Run is a run of all tests under one runtime.
type Run struct {
	Runtime string
	Results map[string]Result // by name
	Took    time.Duration
}

// Count returns how many tests ended so.
func (r Run) Count(s State) int {
	n := 0
	for _, result := range r.Results {
		if result.State == s {
			n++
		}
	}
	return n
}

func (r Run) result(name string) Result {
	if result, ok := r.Results[name]; ok {
		return result
	}
	return Result{State: Absent}
}

// Difference is a test that ended otherwise under the second runtime than under the first.
type Difference struct {
	Name        string
	First, Then Result
}

// Regression reports whether the test passes under the first runtime only.
func (d Difference) Regression() bool { return d.First.State == Passed && d.Then.State != Passed }

// Differences lists them by name.
func Differences(first, then Run) []Difference {
	names := maps.Clone(first.Results)
	maps.Copy(names, then.Results)
	var out []Difference
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if a, b := first.result(name), then.result(name); a.State != b.State {
			out = append(out, Difference{Name: name, First: a, Then: b})
		}
	}
	return out
}

// Suite is a set of tests.
type Suite struct {
	Name string
	// Run runs the tests with these names, all of them with none, under a runtime.
	Run func(runtime string, only []string) (Run, error)
}

// Report is what came of a suite.
type Report struct {
	Suite       string
	First, Then Run
	// Repeated are the tests that differed in the first run: each was run a second time under both runtimes, and First and
	// Then hold what came then.
	Repeated []Difference
	Versions []string // lines for the page
}

// Compare runs the suite under both runtimes, and what differed once more: real kernels on a machine that others share let a test
// fail now and then, and the question is whether the runtime makes the difference.
func (s Suite) Compare(first, then string, log io.Writer) (Report, error) {
	report := Report{Suite: s.Name}
	var err error
	for _, side := range []struct {
		runtime string
		run     *Run
	}{{first, &report.First}, {then, &report.Then}} {
		if *side.run, err = s.Run(side.runtime, nil); err != nil {
			return report, fmt.Errorf("%s under %s: %w", s.Name, side.runtime, err)
		}
		if side.run.Count(Passed) == 0 {
			return report, fmt.Errorf("%s under %s: no test passed", s.Name, side.runtime)
		}
		fmt.Fprintln(log, side.run.summary())
	}
	report.Repeated = Differences(report.First, report.Then)
	if len(report.Repeated) == 0 {
		return report, nil
	}
	var names []string
	for _, d := range report.Repeated {
		names = append(names, d.Name)
		fmt.Fprintf(log, "again: %s\n", d)
	}
	for _, side := range []*Run{&report.First, &report.Then} {
		again, err := s.Run(side.Runtime, names)
		if err != nil {
			return report, fmt.Errorf("%s under %s once more: %w", s.Name, side.Runtime, err)
		}
		for _, name := range names {
			if result := again.result(name); result.State != Absent {
				side.Results[name] = result
			}
		}
		side.Took += again.Took
	}
	return report, nil
}

// String shows a difference on one line.
func (d Difference) String() string { return fmt.Sprintf("%s: %s, %s", d.Name, d.First, d.Then) }

// String shows state and detail.
func (r Result) String() string {
	if r.Detail == "" {
		return string(r.State)
	}
	return fmt.Sprintf("%s (%s)", r.State, r.Detail)
}

func (r Run) summary() string {
	return fmt.Sprintf("%s: %d passed, %d failed, %d skipped in %v", r.Runtime, r.Count(Passed), r.Count(Failed), r.Count(Skipped),
		r.Took.Round(time.Second))
}

// Err returns an error that names what passes under the first runtime only.
func (r Report) Err() error {
	var errs []error
	for _, d := range Differences(r.First, r.Then) {
		if d.Regression() {
			errs = append(errs, fmt.Errorf("%s passes under %s, and not under %s: %s", d.Name, r.First.Runtime, r.Then.Runtime, d.Then))
		}
	}
	return errors.Join(errs...)
}

// Print writes counts and differences for a terminal.
func (r Report) Print(w io.Writer) {
	for _, run := range []Run{r.First, r.Then} {
		fmt.Fprintln(w, run.summary())
	}
	differences := Differences(r.First, r.Then)
	fmt.Fprintf(w, "%d differences\n", len(differences))
	for _, d := range differences {
		fmt.Fprintf(w, "  %s\n", d)
	}
}

// Markdown returns the report for a page.
func (r Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s. %s.\n\n", time.Now().UTC().Format(time.DateOnly), uname.Get().Release, strings.Join(r.Versions, ", "))
	b.WriteString("| runtime | passed | failed | skipped | took |\n|---|--:|--:|--:|--:|\n")
	for _, run := range []Run{r.First, r.Then} {
		fmt.Fprintf(&b, "| `%s` | %d | %d | %d | %v |\n", run.Runtime, run.Count(Passed), run.Count(Failed), run.Count(Skipped),
			run.Took.Round(time.Second))
	}
	differences := Differences(r.First, r.Then)
	if len(differences) == 0 {
		b.WriteString("\nNo test ends differently under the two.\n")
	} else {
		b.WriteString("\nDifferences:\n\n")
		for _, d := range differences {
			fmt.Fprintf(&b, "- %s: %s; %s\n", code(d.Name), cell(r.First.Runtime, d.First), cell(r.Then.Runtime, d.Then))
		}
	}
	if len(r.Repeated) > 0 {
		b.WriteString("\nDiffered in the first run, and were run once more under both; the second result counts above:\n\n")
		for _, d := range r.Repeated {
			fmt.Fprintf(&b, "- %s: first %s; %s\n", code(d.Name), cell(r.First.Runtime, d.First), cell(r.Then.Runtime, d.Then))
		}
	}
	for _, both := range []struct {
		state State
		title string
	}{{Failed, "Fail under both"}, {Skipped, "Skipped under both"}} {
		// By reason: dozens of tests lack the same thing.
		byDetail := map[string][]string{}
		for name, result := range r.First.Results {
			if result.State == both.state && r.Then.result(name).State == both.state {
				byDetail[result.Detail] = append(byDetail[result.Detail], name)
			}
		}
		if len(byDetail) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n\n", both.title)
		for _, detail := range slices.Sorted(maps.Keys(byDetail)) {
			names := byDetail[detail]
			slices.Sort(names)
			for i := range names {
				names[i] = code(names[i])
			}
			if detail == "" {
				detail = "no reason given"
			}
			fmt.Fprintf(&b, "- %s: %s\n", code(detail), strings.Join(names, ", "))
		}
	}
	return b.String()
}

func cell(runtime string, r Result) string {
	if r.Detail == "" {
		return fmt.Sprintf("%s under `%s`", r.State, runtime)
	}
	return fmt.Sprintf("%s under `%s` (%s)", r.State, runtime, code(r.Detail))
}

// code quotes text for Markdown, whatever a test has printed.
func code(text string) string { return "`" + strings.ReplaceAll(OneLine(text), "`", "'") + "`" }

// OneLine returns text on one line of at most 200 bytes, control characters replaced.
func OneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	const most = 200
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// ToolVersion returns a program of bin/tools and its version as the program tells it.
func ToolVersion(root, tool string) string {
	out, err := exec.Command(filepath.Join(root, "bin/tools", tool), "--version").Output()
	first, _, _ := strings.Cut(string(out), "\n")
	fields := strings.Fields(first)
	if err != nil || len(fields) < 3 {
		return tool + " of unknown version"
	}
	return tool + " " + benchreport.Version(fields[2])
}
