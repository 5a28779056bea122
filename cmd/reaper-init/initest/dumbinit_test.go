package initest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	dumbCLI     = "dumb-init: tests/cli_test.py"
	dumbKids    = "dumb-init: tests/child_processes_test.py"
	dumbSignals = "dumb-init: tests/proxies_signals_test.py"
	dumbShell   = "dumb-init: tests/shell_background_test.py"
	dumbTTY     = "dumb-init: tests/tty_test.py"
	dumbExit    = "dumb-init: tests/exit_status_test.py"
	dumbCwd     = "dumb-init: tests/cwd_test.py"
	dumbZombies = "dumb-init: tests/test-zombies"
)

var suspendSignals = []syscall.Signal{syscall.SIGTSTP, syscall.SIGTTOU, syscall.SIGTTIN}

// rewrites are the maps of dumb-init's test, with what is sent and what arrives.
var rewrites = []struct {
	opts       []string
	send, want []syscall.Signal
}{
	{nil, []syscall.Signal{15, 3, 18, 2}, []syscall.Signal{15, 3, 18, 2}},
	{[]string{"-r", "15:2"}, []syscall.Signal{15, 3, 18, 2}, []syscall.Signal{2, 3, 18, 2}},
	{[]string{"-r", "15:2", "-r", "2:15", "-r", "3:3"}, []syscall.Signal{15, 3, 18, 2}, []syscall.Signal{2, 3, 18, 15}},
	{[]string{"-r", "1:31", "-r", "31:1"}, []syscall.Signal{1, 31}, []syscall.Signal{31, 1}},
}

func with(m mode, opts ...string) []string { return append(append([]string{}, m.opts...), opts...) }

// signals starts prog signals below reaper-init, not as PID 1: as in dumb-init's tests.
func signals(t *testing.T, opts []string) *proc {
	t.Helper()
	p := start(t, setup{sub: true, opts: opts, program: prog("signals")})
	p.number("ready")
	return p
}

func dumbInitCases() []testCase {
	var cases []testCase
	add := func(more []testCase) { cases = append(cases, more...) }

	add(each(all, "no program: usage, not 0", dumbCLI, func(t *testing.T, m mode) {
		if _, stderr := run(t, 1, setup{sub: true, opts: m.opts}); !strings.Contains(stderr, "Usage: reaper-init") {
			t.Errorf("standard error: %s", stderr)
		}
	}))
	for _, flag := range []string{"-h", "--help"} {
		add(each(all, flag+": help, 0", dumbCLI, func(t *testing.T, m mode) {
			if out, _ := run(t, 0, setup{sub: true, opts: with(m, flag)}); !strings.Contains(out, "-r OLD:NEW") {
				t.Errorf("standard output: %s", out)
			}
		}))
	}
	add(each(all, "--version: version, 0", dumbCLI, func(t *testing.T, m mode) {
		if out, _ := run(t, 0, setup{sub: true, opts: with(m, "--version")}); !strings.HasPrefix(out, "reaper-init ") {
			t.Errorf("standard output: %s", out)
		}
	}))
	add(each([]mode{loud, gloud}, "verbose: says what happens, on standard error only", dumbCLI, func(t *testing.T, m mode) {
		// One that ends at once may be found dead before its signal is read.
		out, stderr := run(t, 0, setup{sub: true, opts: m.opts, program: []string{"sh", "-c", "sleep 0.2; echo oh, hi"}})
		if out != "oh, hi" {
			t.Errorf("standard output: %q", out)
		}
		for _, want := range []string{"Spawned child process 'sh' with pid", "Received SIGCHLD", "The program has ended"} {
			if !strings.Contains(stderr, want) {
				t.Errorf("standard error lacks %q: %s", want, stderr)
			}
		}
	}))

	add(each(groups, "SIGTERM ends a whole pipeline", dumbKids, func(t *testing.T, m mode) { signalPipeline(t, m, 0) }))
	add(each(single, "without -g only the program gets SIGTERM", dumbKids, func(t *testing.T, m mode) { signalPipeline(t, m, 4) }))
	add(each(all, "-W -k: all that is left gets SIGTERM when the program ends (dumb-init: its setsid mode)", dumbKids, func(t *testing.T, m mode) {
		out, _ := run(t, 3, setup{sub: true, opts: with(m, "-W", "-k"), program: append(shell(`"$1" leave-term 2; exit 3`), progBin)})
		if n := strings.Count(out, "term "); n != 2 {
			t.Errorf("%d of 2 got SIGTERM: %s", n, out)
		}
	}))
	add(each(all, "nobody gets SIGTERM when the program ends (dumb-init: not in setsid mode)", dumbKids, func(t *testing.T, m mode) {
		p := start(t, setup{sub: true, before: shell(`"$@"; echo ended; exec sleep 1000`), opts: m.opts, program: append(shell(`"$1" leave-term 1; exit 0`), progBin)})
		p.number("left")
		p.expect("ended")
		var left int
		for _, pid := range descendants(p.cmd.Process.Pid) {
			if comm(pid) == "prog" {
				left = pid
			}
		}
		if left == 0 {
			t.Fatal("the orphan is gone")
		}
		// It takes SIGTERM now, so it did not before.
		syscall.Kill(left, syscall.SIGTERM)
		p.number("term")
	}))
	for _, args := range [][]string{{"/doesnotexist"}, {"--", "/doesnotexist"}} {
		add(each(all, "127 and a message for "+strings.Join(args, " "), dumbKids, func(t *testing.T, m mode) {
			_, stderr := run(t, 127, setup{sub: true, opts: m.opts, program: args})
			if !strings.Contains(stderr, "exec /doesnotexist failed: No such file or directory") {
				t.Errorf("standard error: %s", stderr)
			}
		}))
	}

	add(each(all, "forwards each of the first 31 signals but KILL, STOP, CHLD and those of job control", dumbSignals, func(t *testing.T, m mode) {
		p := signals(t, m.opts)
		for _, sig := range normalSignals() {
			p.gets(sig, sig)
		}
	}))
	for _, r := range rewrites {
		name := strings.Join(r.opts, " ")
		if name == "" {
			name = "no -r"
		}
		add(each(all, "rewrites signals: "+name, dumbSignals, func(t *testing.T, m mode) {
			p := signals(t, with(m, r.opts...))
			for i, sig := range r.send {
				p.gets(sig, r.want[i])
			}
		}))
	}
	add(each(groups, "-r of job control signals sends the others, and still stops", dumbSignals, func(t *testing.T, m mode) {
		p := signals(t, with(m, "-r", "TTIN:TERM", "-r", "TTOU:INT", "-r", "TSTP:HUP"))
		for _, r := range [][2]syscall.Signal{{syscall.SIGTTIN, syscall.SIGTERM}, {syscall.SIGTTOU, syscall.SIGINT}, {syscall.SIGTSTP, syscall.SIGHUP}} {
			p.hasState(p.pid(), "RS")
			p.gets(r[0], r[1])
			p.hasState(p.pid(), "T")
			p.gets(syscall.SIGCONT, syscall.SIGCONT)
			p.hasState(p.pid(), "RS")
		}
	}))
	add(each(all, "-r OLD:0 drops", dumbSignals, func(t *testing.T, m mode) {
		p := signals(t, with(m, "-r", "15:3", "-r", "2:0", "-r", "28:0"))
		p.signal(syscall.SIGTERM)
		p.expectSignal(syscall.SIGQUIT)
		p.signal(syscall.SIGINT)
		p.signal(syscall.SIGWINCH)
		p.gets(syscall.SIGHUP, syscall.SIGHUP)
	}))

	add(each(groups, "job control signals stop the group and reaper-init, SIGCONT continues both", dumbShell, func(t *testing.T, m mode) {
		p := signals(t, m.opts)
		for _, sig := range suspendSignals {
			p.signal(sig)
			p.hasState(p.pid(), "T")
			p.hasState(p.program(), "T")
			p.gets(syscall.SIGCONT, syscall.SIGCONT)
			p.hasState(p.pid(), "RS")
			p.hasState(p.program(), "RS")
		}
	}))
	add(each(single, "job control signals are forwarded, and stop reaper-init", dumbShell, func(t *testing.T, m mode) {
		p := signals(t, m.opts)
		for _, sig := range suspendSignals {
			p.gets(sig, sig)
			p.hasState(p.pid(), "T")
			p.gets(syscall.SIGCONT, syscall.SIGCONT)
			p.hasState(p.pid(), "RS")
		}
	}))

	cases = append(cases, testCase{"a program on a terminal can read and write", dumbTTY, func(t *testing.T) {
		term := openPTY(t)
		p := start(t, setup{tty: term.slave, program: []string{"tac"}})
		term.started()
		term.write("1\n2\n3\n\x04")
		p.exits(0)
		if got := term.all(); got != "3\n2\n1\n" {
			t.Errorf("output %q", got)
		}
	}})
	add(each(all, "a shell on a terminal has job control", dumbTTY, func(t *testing.T, m mode) {
		term := openPTY(t)
		p := start(t, setup{opts: m.opts, tty: term.slave, program: []string{"bash", "--norc", "-m", "-i"}})
		term.started()
		term.write("echo \"flags are: [[$-]]\"\nsleep 0.01 & fg; echo \"fg gave $?\"\nexit 4\n")
		p.exits(4)
		out := term.all()
		_, flags, _ := strings.Cut(out, "flags are: [[")
		flags, _, _ = strings.Cut(flags, "]]")
		if !strings.Contains(flags, "m") || !strings.Contains(out, "fg gave 0") || strings.Contains(out, "no job control") {
			t.Errorf("output %q", out)
		}
	}))
	cases = append(cases, testCase{"on a terminal of which reaper-init is session leader no SIGHUP or SIGCONT of its hand-over comes; a real one does", dumbTTY, func(t *testing.T) {
		term := openPTY(t)
		p := start(t, setup{tty: term.slave, program: prog("signals")})
		term.started()
		term.contains("ready 2")
		p.signal(syscall.SIGHUP)
		term.contains("1 0 0")
		_ = p.cmd.Process.Kill() // it forwards everything else
		p.wait()
		if out := term.all(); strings.Contains(out, "18 ") {
			t.Errorf("the program got SIGCONT: %q", out)
		}
	}})

	for _, code := range []int{0, 1, 2, 32, 64, 127, 254, 255} {
		add(each(all, fmt.Sprintf("exit code %d is the program's", code), dumbExit, func(t *testing.T, m mode) {
			run(t, code, setup{sub: true, opts: m.opts, program: shell("exit " + strconv.Itoa(code))})
		}))
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		add(each(all, fmt.Sprintf("exit code %d for signal %d", 128+sig, sig), dumbExit, func(t *testing.T, m mode) {
			run(t, 128+int(sig), setup{sub: true, opts: m.opts, program: shell(fmt.Sprintf("kill -%d $$", sig))})
		}))
	}
	add(each(all, "the program has the working directory, reaper-init is in /", dumbCwd, func(t *testing.T, m mode) {
		out, _ := run(t, 0, setup{sub: true, opts: m.opts, dir: os.TempDir(), program: shell(`while [ "$(readlink /proc/$PPID/cwd)" != / ]; do :; done; readlink /proc/$$/cwd`)})
		if out != os.TempDir() {
			t.Errorf("the program is in %q", out)
		}
	}))
	cases = append(cases, testCase{"PID 1: no zombies below background shells", dumbZombies, func(t *testing.T) {
		p := start(t, setup{program: shell(`sh -c "sh -c 'echo i am a zombie' &" & sleep 0.1; wait; echo waited; exec sleep 1000`)})
		for p.line() != "waited" {
		}
		testutil.Eventually(t, deadline, func() (bool, string) {
			all := descendants(p.pid())
			return len(all) == 1, fmt.Sprint("processes: ", all)
		})
	}})
	return cases
}

// signalPipeline ends a program that is a shell with two pipelines, and expects so many of their four processes to remain. The shell
// above keeps the PID namespace, which would end them all.
func signalPipeline(t *testing.T, m mode, want int) {
	t.Helper()
	p := start(t, setup{sub: true, before: shell(`"$@"; exec sleep 1000`), opts: m.opts, program: shell("yes 'oh, hi' | tail & yes error | tail >&2")})
	named := func(names ...string) (pids []int) {
		for _, pid := range descendants(p.cmd.Process.Pid) {
			if slices.Contains(names, comm(pid)) {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	var pids []int
	testutil.Eventually(t, deadline, func() (bool, string) {
		pids = named("yes", "tail")
		return len(pids) == 4, fmt.Sprintf("%d of 4 in the pipelines", len(pids))
	})
	syscall.Kill(named("reaper-init")[0], syscall.SIGTERM)
	testutil.Eventually(t, deadline, func() (bool, string) { return len(named("reaper-init")) == 0, "reaper-init is there" })
	alive(t, pids, want)
	if n := testutil.StableFor(t, 100*time.Millisecond, deadline, func() int { return count(pids) }); n != want {
		t.Errorf("%d are alive, want %d", n, want)
	}
}

func count(pids []int) int {
	n := 0
	for _, pid := range pids {
		if s := state(pid); s != "" && s != "Z" && s != "X" {
			n++
		}
	}
	return n
}

func alive(t *testing.T, pids []int, want int) {
	t.Helper()
	testutil.Eventually(t, deadline, func() (bool, string) {
		return count(pids) == want, fmt.Sprintf("%d are alive, want %d", count(pids), want)
	})
}
