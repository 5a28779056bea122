package compare

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func runOf(runtime string, states map[string]State) Run {
	r := Run{Runtime: runtime, Results: map[string]Result{}}
	for name, s := range states {
		r.Results[name] = Result{State: s}
	}
	return r
}

func TestDifferences(t *testing.T) {
	first := runOf("a", map[string]State{"same": Passed, "both fail": Failed, "lost": Passed, "worse": Passed, "better": Failed, "gone": Failed})
	then := runOf("b", map[string]State{"same": Passed, "both fail": Failed, "worse": Failed, "lost": Skipped, "better": Passed, "new": Failed})
	var got []string
	for _, d := range Differences(first, then) {
		got = append(got, d.Name)
		if want := d.Name == "worse" || d.Name == "lost"; d.Regression() != want {
			t.Errorf("%s: regression %v, want %v", d.Name, d.Regression(), want)
		}
	}
	if want := []string{"better", "gone", "lost", "new", "worse"}; !slices.Equal(got, want) {
		t.Errorf("differences %q, want %q", got, want)
	}
}

// script is a suite that answers each run with the next states of its runtime.
type script map[string][]map[string]State

func (s script) run(t *testing.T) func(string, []string) (Run, error) {
	return func(runtime string, only []string) (Run, error) {
		if len(s[runtime]) == 0 {
			t.Fatalf("one run too many under %s", runtime)
		}
		r := runOf(runtime, s[runtime][0])
		s[runtime] = s[runtime][1:]
		for name := range r.Results {
			if only != nil && !slices.Contains(only, name) {
				t.Errorf("%s is answered, and only %q were asked for", name, only)
			}
		}
		return r, nil
	}
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name      string
		runs      script
		repeated  int
		regressed bool
	}{
		{
			name: "the same",
			runs: script{"a": {{"x": Passed, "y": Failed}}, "b": {{"x": Passed, "y": Failed}}},
		},
		{
			name:     "fails now and then",
			runs:     script{"a": {{"x": Passed, "y": Passed}, {"y": Passed}}, "b": {{"x": Passed, "y": Failed}, {"y": Passed}}},
			repeated: 1,
		},
		{
			name:     "fails again",
			runs:     script{"a": {{"x": Passed, "y": Passed}, {"y": Passed}}, "b": {{"x": Passed, "y": Failed}, {"y": Failed}}},
			repeated: 1, regressed: true,
		},
		{
			name:     "does not run again",
			runs:     script{"a": {{"x": Passed, "y": Passed}, {"y": Passed}}, "b": {{"x": Passed, "y": Failed}, {}}},
			repeated: 1, regressed: true,
		},
		{
			name:     "fails under the first, and then under both",
			runs:     script{"a": {{"x": Passed, "y": Failed}, {"y": Failed}}, "b": {{"x": Passed, "y": Passed}, {"y": Failed}}},
			repeated: 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			report, err := Suite{Name: "s", Run: tt.runs.run(t)}.Compare("a", "b", io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Repeated) != tt.repeated || (report.Err() != nil) != tt.regressed {
				t.Errorf("%d repeated, error %v; want %d, %v", len(report.Repeated), report.Err(), tt.repeated, tt.regressed)
			}
		})
	}
}

func TestCompareFails(t *testing.T) {
	broken := errors.New("broken")
	for name, run := range map[string]func(string, []string) (Run, error){
		"no run":  func(string, []string) (Run, error) { return Run{}, broken },
		"no test": func(r string, _ []string) (Run, error) { return runOf(r, map[string]State{"x": Failed}), nil },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := (Suite{Name: "s", Run: run}).Compare("a", "b", io.Discard); err == nil {
				t.Error("no error, though nothing was compared")
			}
		})
	}
}

func TestMarkdown(t *testing.T) {
	report := Report{First: runOf("a", map[string]State{"x": Passed}), Then: runOf("b", map[string]State{"x": Passed})}
	report.Then.Results["x`; <b>"] = Result{State: Failed, Detail: "one\ntwo\x1b[31m"}
	text := report.Markdown()
	for _, want := range []string{"| `a` | 1 | 0 | 0 |", "| `b` | 1 | 1 | 0 |", "- `x'; <b>`: absent under `a`; failed under `b` (`one two [31m`)"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
