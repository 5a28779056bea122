package initest

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/reaper-shim/reaper/internal/testutil"
)

var casesFile = flag.String("write-cases", "", "write the table of cases and their results to this file")

// testCase is one thing that must hold, and whose expectation it is.
type testCase struct {
	name   string
	source string // "tini: file, test" and so on, or "" for our own
	run    func(t *testing.T)
}

// mode is one of the ways in which dumb-init's tests run each test: its debug and setsid modes. Our counterparts are -vv and -g.
type mode struct {
	name string
	opts []string
}

var (
	plain  = mode{"plain", nil}
	loud   = mode{"-vv", []string{"-vv"}}
	group  = mode{"-g", []string{"-g"}}
	gloud  = mode{"-g -vv", []string{"-g", "-vv"}}
	all    = []mode{plain, loud, group, gloud}
	single = []mode{plain, loud}
	groups = []mode{group, gloud}
)

// each makes a case of every mode.
func each(modes []mode, name, source string, run func(t *testing.T, m mode)) []testCase {
	var cases []testCase
	for _, m := range modes {
		cases = append(cases, testCase{fmt.Sprintf("%s [%s]", name, m.name), source, func(t *testing.T) { run(t, m) }})
	}
	return cases
}

func allCases() []testCase {
	var cases []testCase
	for _, list := range [][]testCase{tiniCases(), dumbInitCases(), catatonitCases(), ownCases()} {
		cases = append(cases, list...)
	}
	return cases
}

func TestCases(t *testing.T) {
	testutil.Root(t)
	cases := allCases()
	results := make([]string, len(cases))
	for i, c := range cases {
		results[i] = "fails"
		whose := "own"
		if c.source != "" {
			whose, _, _ = strings.Cut(c.source, ":")
		}
		if t.Run(whose+"/"+c.name, c.run) {
			results[i] = "passes"
		}
	}
	if *casesFile == "" {
		return
	}
	if err := writeCases(*casesFile, cases, results); err != nil {
		t.Fatal(err)
	}
}

func writeCases(name string, cases []testCase, results []string) error {
	var b strings.Builder
	counts := map[string]int{}
	var order []string
	for _, c := range cases {
		whose := whoseCase(c)
		if counts[whose] == 0 {
			order = append(order, whose)
		}
		counts[whose]++
	}
	b.WriteString("# Cases of reaper-init\n\nWritten by `make init-cases`. Each is a test with real processes in a PID namespace (`cmd/reaper-init/initest`). " +
		"The expectations of\ntini and dumb-init are those of their own test suites, written anew; what is expected differently says so. ")
	for i, whose := range order {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s: %d", whose, counts[whose])
	}
	fmt.Fprintf(&b, "; %d in all.\n\n| case | whose | from | result |\n|---|---|---|---|\n", len(cases))
	for i, c := range cases {
		_, from, _ := strings.Cut(c.source, ": ")
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.ReplaceAll(c.name, "|", "\\|"), whoseCase(c), from, results[i])
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}

func whoseCase(c testCase) string {
	if c.source == "" {
		return "ours"
	}
	whose, _, _ := strings.Cut(c.source, ":")
	return whose
}

// normalSignals are the signals that dumb-init's tests forward: all of the first 31 but KILL, STOP, CHLD and those of job control.
func normalSignals() []syscall.Signal {
	var list []syscall.Signal
	for s := syscall.Signal(1); s < 32; s++ {
		switch s {
		case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGCHLD, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		default:
			list = append(list, s)
		}
	}
	return list
}
