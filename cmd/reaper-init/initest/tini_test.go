package initest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const (
	tiniInner = "tini: test/run_inner_tests.py"
	tiniOuter = "tini: test/run_outer_tests.py"
	tiniSmoke = "tini: ci/run_build.sh"
)

// targets are the ways in which tini's inner tests start it.
var targets = []struct {
	name string
	s    setup
}{
	{"below a subreaper", setup{sub: true}},
	{"-s", setup{sub: true, opts: []string{"-s"}}},
	{"TINI_SUBREAPER", setup{sub: true, env: []string{"TINI_SUBREAPER="}}},
}

func target(i int, opts []string, program ...string) setup {
	s := targets[i].s
	if i == 0 {
		s.before = prog("subreaper")
	}
	s.opts = append(append([]string{}, s.opts...), opts...)
	s.program = program
	return s
}

func tiniCases() []testCase {
	cases := []testCase{
		{"-e CODE makes each of the 256 exit codes 0", tiniInner + ", exit code test", func(t *testing.T) {
			// One PID namespace for all: the loop is the shell's.
			out, _ := run(t, 0, setup{sub: true, program: shell(
				`i=0; while [ $i -lt 256 ]; do "$1" -e $i -- sh -c "exit $i" || echo "$i gave $?"; i=$((i+1)); done`, initBin)})
			if out != "" {
				t.Error(out)
			}
		}},
		{"-e of the 255 others leaves each exit code alone", tiniInner + ", exit code test", func(t *testing.T) {
			out, _ := run(t, 0, setup{sub: true, program: shell(
				`all=; i=0; while [ $i -lt 256 ]; do all="$all -e$i "; i=$((i+1)); done
				i=0; while [ $i -lt 256 ]; do "$1" ${all%%-e$i *} ${all##*-e$i } sh -c "exit $i"; [ $? = $i ] || echo "$i gave another"; i=$((i+1)); done`, initBin)})
			if out != "" {
				t.Error(out)
			}
		}},
		{"-g: the whole process group gets the signal", tiniInner + ", process group test", func(t *testing.T) {
			tiniGroup(t, setup{sub: true, opts: []string{"-g"}})
		}},
		{"TINI_KILL_PROCESS_GROUP: the whole process group gets the signal", tiniInner + ", process group test", func(t *testing.T) {
			tiniGroup(t, setup{sub: true, env: []string{"TINI_KILL_PROCESS_GROUP=1"}})
		}},
		{"neither PID 1 nor -s: reaps all the same (tini warns that it does not)", tiniInner + ", zombie reaping failure test", func(t *testing.T) {
			_, stderr := run(t, 0, setup{sub: true, env: []string{"TINI_VERBOSITY=1"}, program: prog("orphans", "100", "0")})
			if strings.Contains(stderr, "zombie reaping won't work") {
				t.Errorf("warned: %s", stderr)
			}
		}},
		{"signal mask and ignored signals are the program's as they were", tiniInner + ", signal configuration test", signalConfiguration},
		{"-p SIGNAL: the program gets it when the parent dies", tiniInner + ", parent death signal test", func(t *testing.T) {
			parentDeath(t, "SIGTERM", syscall.SIGTERM)
		}},

		{"PID 1: orphans are reaped", tiniOuter + ", reaping test", func(t *testing.T) {
			run(t, 0, setup{opts: []string{"-vvv"}, program: prog("orphans", "100", "0")})
		}},
		{"PID 1: SIGINT ends the program", tiniOuter + ", signals test", func(t *testing.T) { endedBy(t, setup{}, syscall.SIGINT) }},
		{"PID 1: SIGTERM ends the program", tiniOuter + ", signals test", func(t *testing.T) { endedBy(t, setup{}, syscall.SIGTERM) }},
		{"PID 1: an unknown option is an error", tiniOuter + ", exit code test", func(t *testing.T) {
			if _, stderr := run(t, 1, setup{opts: []string{"-z"}}); !strings.Contains(stderr, "Usage") {
				t.Errorf("no usage: %s", stderr)
			}
		}},
		{"PID 1: a program that is not there is an error", tiniOuter + ", exit code test", func(t *testing.T) {
			run(t, 127, setup{opts: []string{"--"}, program: []string{"zzzz"}})
		}},
		{"PID 1: -h ends with 0", tiniOuter + ", exit code test", func(t *testing.T) {
			if out, _ := run(t, 0, setup{opts: []string{"-h"}}); !strings.Contains(out, "Usage") {
				t.Errorf("no usage: %s", out)
			}
		}},

		{"--version says \"tini version\"", tiniSmoke, func(t *testing.T) {
			if out, _ := run(t, 0, setup{opts: []string{"--version"}}); !strings.Contains(out, "tini version") {
				t.Errorf("version: %q", out)
			}
		}},
		{"no arguments: exit code 1 and the usage", tiniSmoke, func(t *testing.T) {
			if _, stderr := run(t, 1, setup{}); !strings.Contains(stderr, "supervision of a valid init process") {
				t.Errorf("usage: %q", stderr)
			}
		}},
		{"the usage names options that exist", tiniSmoke, func(t *testing.T) {
			if _, stderr := run(t, 1, setup{}); !strings.Contains(stderr, "more verbose") {
				t.Errorf("usage: %q", stderr)
			}
		}},
		{"-l shows the license", tiniSmoke, func(t *testing.T) {
			if out, _ := run(t, 0, setup{opts: []string{"-l"}}); !strings.Contains(out, "Apache License") {
				t.Errorf("license: %q", out)
			}
		}},
		{"-vvv true", tiniSmoke, func(t *testing.T) { run(t, 0, setup{opts: []string{"-vvv"}, program: []string{"true"}}) }},
		{"-vvv false", tiniSmoke, func(t *testing.T) { run(t, 1, setup{opts: []string{"-vvv"}, program: []string{"false"}}) }},
		{"-- true", tiniSmoke, func(t *testing.T) { run(t, 0, setup{opts: []string{"-vvv", "--"}, program: []string{"true"}}) }},
		{"-- -- true fails", tiniSmoke, func(t *testing.T) { run(t, 127, setup{opts: []string{"-vvv", "--", "--"}, program: []string{"true"}}) }},
		{"TINI_VERBOSITY=3 shows SIGCHLD", tiniSmoke, func(t *testing.T) {
			// One that ends at once may be found dead before its signal is read.
			_, stderr := run(t, 0, setup{env: []string{"TINI_VERBOSITY=3"}, program: []string{"sleep", "0.2"}})
			if !strings.Contains(stderr, "Received SIGCHLD") {
				t.Errorf("standard error: %q", stderr)
			}
		}},
		{"127 for a program that does not exist", tiniSmoke, func(t *testing.T) { run(t, 127, setup{program: []string{"foobar123"}}) }},
		{"126 for what cannot be executed", tiniSmoke, func(t *testing.T) { run(t, 126, setup{program: []string{"/etc"}}) }},
		{"standard input is the program's", tiniSmoke, func(t *testing.T) {
			run(t, 7, setup{stdin: strings.NewReader("exit 7\n"), program: []string{"sh"}})
		}},
	}
	for i, tg := range targets {
		name := tg.name
		cases = append(cases,
			testCase{"orphans are reaped, silently [" + name + "]", tiniInner + ", reaping test", func(t *testing.T) {
				_, stderr := run(t, 0, target(i, nil, prog("orphans", "100", "0")...))
				if stderr != "" {
					t.Errorf("standard error: %s", stderr)
				}
			}},
			testCase{"-w: each reaped orphan is named [" + name + "]", tiniInner + ", reaping display test", func(t *testing.T) {
				_, stderr := run(t, 0, target(i, []string{"-w"}, prog("orphans", "100", "0")...))
				if n := strings.Count(stderr, "Reaped zombie process with pid="); n != 100 {
					t.Errorf("%d of 100 are named: %s", n, stderr)
				}
			}},
		)
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2} {
			cases = append(cases, testCase{fmt.Sprintf("signal %d ends the program: %d [%s]", sig, 128+sig, name), tiniInner + ", signals test",
				func(t *testing.T) { endedBy(t, target(i, nil), sig) }})
		}
	}
	return cases
}

// endedBy expects a signal that the program does not handle to end it, and the exit code to say so.
func endedBy(t *testing.T, s setup, sig syscall.Signal) {
	t.Helper()
	s.program = shell("echo ready; exec sleep 1000")
	p := start(t, s)
	p.expect("ready")
	p.signal(sig)
	p.exits(128 + int(sig))
}

func tiniGroup(t *testing.T, s setup) {
	t.Helper()
	s.program = prog("group")
	p := start(t, s)
	p.number("ready")
	// The program ignores the signal and waits for its child, which does not.
	p.signal(syscall.SIGUSR1)
	p.exits(0)
}

// masks returns the signal sets of a /proc/PID/status.
func masks(t *testing.T, status string) map[string]uint64 {
	t.Helper()
	sets := map[string]uint64{}
	for _, l := range strings.Split(status, "\n") {
		key, value, _ := strings.Cut(l, ":")
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil && strings.HasPrefix(key, "Sig") {
			sets[key] = n
		}
	}
	if len(sets) == 0 {
		t.Fatalf("no signal sets in %q", status)
	}
	return sets
}

func signalConfiguration(t *testing.T) {
	out, _ := run(t, 0, setup{before: prog("sigconf"), program: []string{"cat", "/proc/self/status"}})
	got := masks(t, out)
	set := func(sigs ...int) (m uint64) {
		for _, s := range sigs {
			m |= 1 << (s - 1)
		}
		return m
	}
	wantIgn := set(int(syscall.SIGTTOU), int(syscall.SIGSEGV), int(syscall.SIGINT), int(syscall.SIGCHLD))
	wantBlk := set(int(syscall.SIGTTIN), int(syscall.SIGILL), int(syscall.SIGTERM), 34+3)
	// What the test itself was started with stays ignored as well.
	if got["SigIgn"]&wantIgn != wantIgn {
		t.Errorf("ignored %#x, want %#x", got["SigIgn"], wantIgn)
	}
	if got["SigBlk"] != wantBlk {
		t.Errorf("blocked %#x, want %#x", got["SigBlk"], wantBlk)
	}
}

func parentDeath(t *testing.T, name string, want syscall.Signal) {
	t.Helper()
	in, gate, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer gate.Close()
	// The parent is a shell that lives until its standard input ends.
	keep := `sh -c '"$@" </dev/null & read x' sh "$@"; exec sleep 1000`
	p := start(t, setup{sub: true, stdin: in, before: shell(keep), opts: []string{"-p", name}, program: prog("signals")})
	p.number("ready")
	_ = gate.Close()
	p.expectSignal(want)
}
