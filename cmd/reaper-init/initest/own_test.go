package initest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
)

func ownCases() []testCase {
	cases := []testCase{
		{"PID 1 forwards every signal there is, real-time ones included", "", func(t *testing.T) { everySignal(t, setup{}) }},
		{"a subreaper forwards every signal there is", "", func(t *testing.T) { everySignal(t, setup{sub: true}) }},
		{"-g forwards every signal there is", "", func(t *testing.T) { everySignal(t, setup{opts: []string{"-g"}}) }},
		{"the value of sigqueue(3) arrives", "", func(t *testing.T) {
			p := start(t, setup{program: prog("signals")})
			p.number("ready")
			for _, sig := range []syscall.Signal{syscall.SIGUSR1, 34, 64} {
				sigqueue(t, p.pid(), sig, 4711)
				p.expect(fmt.Sprintf("%d -1 4711", sig))
			}
		}},
		{"-r takes names and real-time signals", "", func(t *testing.T) {
			p := start(t, setup{opts: []string{"-r", "SIGRTMIN+3:USR1", "-rHUP:RTMAX-1"}, program: prog("signals")})
			p.number("ready")
			p.gets(37, syscall.SIGUSR1)
			p.gets(syscall.SIGHUP, 63)
		}},
		{"a program that ignores SIGTERM goes on, and so does reaper-init", "", func(t *testing.T) {
			p := start(t, setup{program: shell(`trap "echo term" TERM; echo ready; while :; do sleep 1000 & wait $!; done`)})
			p.expect("ready")
			for range 3 {
				p.signal(syscall.SIGTERM)
				p.expect("term")
			}
		}},
		{"a program that is stopped and continued is not taken for one that ended", "", func(t *testing.T) {
			p := start(t, setup{program: prog("signals")})
			p.number("ready")
			pid := p.program()
			syscall.Kill(pid, syscall.SIGSTOP)
			p.hasState(pid, "T")
			syscall.Kill(pid, syscall.SIGCONT)
			p.expectSignal(syscall.SIGCONT)
			p.gets(syscall.SIGUSR1, syscall.SIGUSR1)
		}},
		{"SIGCHLD ignored by whoever started it: the exit code is the program's", "", func(t *testing.T) {
			run(t, 9, setup{before: prog("sigconf"), program: shell("exit 9")})
		}},

		{"options end at the program: its own are its own", "", func(t *testing.T) {
			if out, _ := run(t, 0, setup{program: []string{"echo", "-e", "-v", "--", "-h"}}); !strings.HasSuffix(out, "-v -- -h") {
				t.Errorf("standard output: %q", out)
			}
		}},
		{"options can share a word, and have their value in it", "", func(t *testing.T) {
			run(t, 0, setup{opts: []string{"-sgwe5"}, program: shell("exit 5")})
			run(t, 5, setup{opts: []string{"-e6", "-pTERM"}, program: shell("exit 5")})
		}},
		{"-e remaps what a signal ended", "", func(t *testing.T) {
			run(t, 0, setup{opts: []string{"-e", "143"}, program: shell("kill -TERM $$")})
		}},
		{"the environment is the program's, but for the report's variable", "", func(t *testing.T) {
			out, _ := run(t, 0, setup{env: []string{"A=1", "REAPER_INIT_REPORT=", "B=2", "REAPER_INIT_REPORTS=x"}, program: []string{"env"}})
			if !strings.Contains(out, "A=1\nB=2\nREAPER_INIT_REPORTS=x") || strings.Contains(out, "REAPER_INIT_REPORT=") {
				t.Errorf("environment: %s", out)
			}
		}},

		{"idle: no wake-up", "", func(t *testing.T) {
			p := start(t, setup{program: prog("signals")})
			p.number("ready")
			pid := p.pid()
			p.hasState(pid, "S")
			// tini would wake up twice and more in this time.
			if n := testutil.StableFor(t, 2500*time.Millisecond, deadline, func() string { return switches(t, pid) }); n == "" {
				t.Error("no count of switches")
			}
		}},
		{"one thread, at most 100 kB resident", "", func(t *testing.T) {
			p := start(t, setup{sub: true, opts: []string{"-w"}, program: append(shell(`"$1" orphans 100 0; echo done; exec sleep 1000`), progBin)})
			p.expect("gone")
			p.expect("done")
			if n := statusLine(t, p.pid(), "Threads"); n != "1" {
				t.Errorf("%s threads", n)
			}
			var kb int
			if _, err := fmt.Sscanf(statusLine(t, p.pid(), "VmRSS"), "%d kB", &kb); err != nil || kb > 100 {
				t.Errorf("%d kB resident, %v", kb, err)
			}
		}},
		{"the binary is at most 100 kB, and static", "", func(t *testing.T) {
			info, err := os.Stat(initBin)
			if err != nil || info.Size() > 100e3 {
				t.Errorf("%d bytes, %v", info.Size(), err)
			}
			data, err := os.ReadFile(initBin)
			if err != nil || bytes.Contains(data, []byte("/ld-linux")) {
				t.Errorf("has an interpreter, %v", err)
			}
		}},
		{"it keeps only standard error open", "", func(t *testing.T) {
			p := start(t, setup{stdin: strings.NewReader(""), files: []*os.File{os.Stderr, os.Stderr}, program: prog("signals")})
			p.number("ready")
			testutil.Eventually(t, deadline, func() (bool, string) {
				entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
				return err == nil && len(entries) == 1 && entries[0].Name() == "2", fmt.Sprint(entries, err)
			})
		}},

		{"a child in state D: the others are reaped, signals forwarded, and the end is the program's", "", stateD},
		{"the program ends: so does a subreaper, at once, whatever else lives", "", func(t *testing.T) {
			p := start(t, setup{sub: true, program: append(shell(`"$1" leave-stubborn 3; exit 3`), progBin)})
			for range 3 {
				p.number("left")
			}
			p.exits(3)
		}},
		{"a storm of orphans delays neither the end", "", func(t *testing.T) {
			began := time.Now()
			run(t, 5, setup{program: append(shell(`"$1" storm 20 & "$1" storm 20 & sleep 0.2; exit 5`), progBin)})
			if d := time.Since(began); d > 15*time.Second {
				t.Errorf("ended after %v", d)
			}
		}},
		{"nor a signal", "", func(t *testing.T) {
			p := start(t, setup{program: append(shell(`"$1" storm 20 >/dev/null & exec "$1" signals`), progBin)})
			p.number("ready")
			began := time.Now()
			for range 10 {
				p.gets(syscall.SIGUSR1, syscall.SIGUSR1)
			}
			if d := time.Since(began); d > 15*time.Second {
				t.Errorf("10 signals took %v", d)
			}
		}},

		{"a message that nobody reads does not hold up the reaping", "", func(t *testing.T) {
			r, w := fullPipe(t)
			defer r.Close()
			defer w.Close()
			run(t, 0, setup{opts: []string{"-vvv", "-w"}, stderr: w, program: prog("orphans", "50", "0")})
		}},
		{"a closed standard error: the program gets no SIGPIPE of it", "", func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			defer w.Close()
			p := start(t, setup{opts: []string{"-vvv"}, stderr: w, program: prog("signals")})
			p.number("ready")
			p.gets(syscall.SIGUSR1, syscall.SIGUSR1)
			p.gets(syscall.SIGUSR2, syscall.SIGUSR2)
		}},
		{"what a program calls itself cannot command a terminal", "", func(t *testing.T) {
			_, stderr := run(t, 0, setup{opts: []string{"-w"}, program: prog("name", "\x1b[2J\na\x07", "4")})
			if !strings.Contains(stderr, "(?[2J?a?), exit code 4") {
				t.Errorf("standard error: %q", stderr)
			}
		}},

		{"on a terminal the program is in the foreground, in a group of its own", "", func(t *testing.T) {
			onTerminal(t, setup{program: prog("tty")}, "tty 1 foreground 1 group 1 sid 0")
		}},
		{"a session leader gives the program a terminal that was not controlling yet", "", func(t *testing.T) {
			onTerminal(t, setup{sub: true, noctty: true, before: prog("setsid"), program: prog("tty")}, "tty 1 foreground 1 group 1 sid 0")
		}},
		{"started in the background it does not take the terminal", "", func(t *testing.T) {
			onTerminal(t, setup{program: append([]string{"bash", "--norc", "-m", "-c", `"$1" "$2" tty & wait`, "bash"}, initBin, progBin)},
				"tty 1 foreground 0 group 1 sid 0")
		}},
		{"a job of a shell: ^Z stops it, fg continues it, ^C ends it", "", jobControl},

		{"-W: ends when all have ended, with the program's exit code", "", func(t *testing.T) {
			for _, sub := range []bool{false, true} {
				out, _ := run(t, 6, setup{sub: sub, opts: []string{"-W"}, program: shell(`(sleep 0.3; echo late) & exit 6`)})
				if out != "late" {
					t.Errorf("standard output: %q", out)
				}
			}
		}},
		{"-W: signals after the program's end go to what is left", "", func(t *testing.T) {
			for _, sub := range []bool{false, true} {
				p := start(t, setup{sub: sub, opts: []string{"-W"}, program: append(shell(`"$1" leave-term 2; exit 6`), progBin)})
				p.number("left")
				p.number("left")
				testutil.Eventually(t, deadline, func() (bool, string) {
					kids := children(p.pid())
					return len(kids) == 2, fmt.Sprint("children: ", kids)
				})
				p.signal(syscall.SIGTERM)
				p.number("term")
				p.number("term")
				p.exits(6)
			}
		}},
		{"-k: what is left is killed, also what ignores SIGTERM, and nothing else", "", func(t *testing.T) {
			p := start(t, setup{sub: true, before: shell(`"$@"; echo "ended $?"; exec sleep 1000`), opts: []string{"-k"},
				program: append(shell(`"$1" leave-stubborn 3; exit 6`), progBin)})
			for range 3 {
				p.number("left")
			}
			if code := p.number("ended"); code != 6 {
				t.Errorf("exit code %d, want 6", code)
			}
			testutil.Eventually(t, deadline, func() (bool, string) {
				all := descendants(p.cmd.Process.Pid)
				return len(all) == 1 && comm(all[0]) == "sleep", fmt.Sprint("left: ", all)
			})
		}},
		{"-k as PID 1", "", func(t *testing.T) {
			run(t, 6, setup{opts: []string{"-k"}, program: append(shell(`"$1" leave-stubborn 3; exit 6`), progBin)})
		}},
		{"-W -k: SIGTERM for what is left, and its end is waited for", "", func(t *testing.T) {
			for _, sub := range []bool{false, true} {
				out, _ := run(t, 6, setup{sub: sub, opts: []string{"-W", "-k"}, program: append(shell(`"$1" leave-term 3; exit 6`), progBin)})
				if n := strings.Count(out, "term "); n != 3 {
					t.Errorf("%d of 3 got SIGTERM: %s", n, out)
				}
			}
		}},
	}
	for _, v := range []string{"256", "-1", "x", "", "5x", "18446744073709551621"} {
		cases = append(cases, testCase{fmt.Sprintf("-e %q is refused", v), "", func(t *testing.T) { refused(t, "-e", v) }})
	}
	for _, v := range []string{"SIGNOTHING", "0", "65", "RTMIN+99", ""} {
		cases = append(cases, testCase{fmt.Sprintf("-p %q is refused", v), "", func(t *testing.T) { refused(t, "-p", v) }})
	}
	for _, v := range []string{"15", "15:", ":15", "15:99", "KILL:TERM", "STOP:TERM", "CHLD:TERM", "0:1"} {
		cases = append(cases, testCase{fmt.Sprintf("-r %q is refused", v), "", func(t *testing.T) { refused(t, "-r", v) }})
	}
	for _, v := range []string{"TERM", "15", "SIGTERM"} {
		cases = append(cases, testCase{"-p " + v + " at the parent's end", "", func(t *testing.T) { parentDeath(t, v, syscall.SIGTERM) }})
	}
	for _, e := range []struct {
		name string
		ns   []string
	}{
		{"without /proc", []string{"-P"}},
		{"with another namespace's /proc", []string{"-f"}},
		{"with a read-only root", []string{"-r"}},
		{"with no_new_privs", []string{"-n"}},
		{"without capabilities", []string{"-d"}},
		{"as another user, without capabilities, no_new_privs, read-only root", []string{"-d", "-n", "-r", "-u", "65534"}},
		{"on a kernel without openat2 and close_range", []string{"-o"}},
	} {
		cases = append(cases, testCase{"works " + e.name, "", func(t *testing.T) {
			for _, sub := range []bool{false, true} {
				s := setup{ns: e.ns, sub: sub, opts: []string{"-w"}, program: shell(
					`trap "echo term; exit 4" TERM; sh -c "(exit 3) & exit 0"; echo ready; while :; do sleep 0.02; done`)}
				p := start(t, s)
				p.expect("ready")
				testutil.Eventually(t, deadline, func() (bool, string) {
					return strings.Contains(p.stderr.String(), "exit code 3"), "the orphan is not reaped"
				})
				p.signal(syscall.SIGTERM)
				p.expect("term")
				p.exits(4)
			}
		}})
	}
	cases = append(cases, pathCases()...)
	return append(cases, reportCases()...)
}

func refused(t *testing.T, opts ...string) {
	t.Helper()
	out, stderr := run(t, 1, setup{opts: opts, program: []string{"echo", "ran"}})
	if out != "" || stderr == "" {
		t.Errorf("standard output %q, standard error %q", out, stderr)
	}
}

func everySignal(t *testing.T, s setup) {
	s.program = prog("signals")
	p := start(t, s)
	p.number("ready")
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		switch sig {
		case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGCHLD:
		case syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
			// They stop it, or it would be no job: dumb-init's cases. PID 1 cannot be stopped.
			if len(s.opts) == 0 && !s.sub {
				p.gets(sig, sig)
			}
		default:
			p.gets(sig, sig)
		}
	}
}

func sigqueue(t *testing.T, pid int, sig syscall.Signal, value int) {
	t.Helper()
	// siginfo_t of sigqueue(3): signo, errno, code, padding, pid, uid, value; rt_sigqueueinfo(2).
	var info [128]byte
	binary.LittleEndian.PutUint32(info[0:], uint32(sig))
	binary.LittleEndian.PutUint32(info[8:], ^uint32(0))
	binary.LittleEndian.PutUint32(info[16:], uint32(os.Getpid()))
	binary.LittleEndian.PutUint64(info[24:], uint64(value))
	if _, _, errno := unix.Syscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(pid), uintptr(sig), uintptr(unsafe.Pointer(&info))); errno != 0 {
		t.Fatal("rt_sigqueueinfo:", errno)
	}
}

func statusLine(t *testing.T, pid int, key string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(l, key+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func switches(t *testing.T, pid int) string {
	return statusLine(t, pid, "voluntary_ctxt_switches") + "+" + statusLine(t, pid, "nonvoluntary_ctxt_switches")
}

func stateD(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p := start(t, setup{sub: true, stdin: r, opts: []string{"-w"}, program: prog("dstate")})
	p.number("ready")
	pid := p.pid()
	var stuck int
	testutil.Eventually(t, deadline, func() (bool, string) {
		for _, kid := range children(pid) {
			if state(kid) == "D" {
				stuck = kid
			}
		}
		return stuck != 0, "no child in state D"
	})
	for range 5 {
		if _, err := w.Write([]byte{'\n'}); err != nil {
			t.Fatal(err)
		}
		p.expect("left one")
	}
	testutil.Eventually(t, deadline, func() (bool, string) {
		n := strings.Count(p.stderr.String(), "Reaped zombie")
		return n == 5, fmt.Sprintf("%d of 5 reaped", n)
	})
	if s := state(stuck); s != "D" {
		t.Fatalf("the child is in state %q now", s)
	}
	p.signal(syscall.SIGTERM)
	p.exits(143)
}

// fullPipe returns a pipe that has room for nothing.
func fullPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Write(fd, make([]byte, 4096)); err != nil {
			break
		}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	return r, w
}

func onTerminal(t *testing.T, s setup, want string) {
	t.Helper()
	term := openPTY(t)
	s.tty = term.slave
	p := start(t, s)
	term.started()
	term.contains(want)
	p.exits(0)
}

func jobControl(t *testing.T) {
	term := openPTY(t)
	p := start(t, setup{tty: term.slave, program: []string{"bash", "--norc", "-i"}})
	term.started()
	term.write(initBin + " " + progBin + " leave 0; echo first $?\n") // bash is up
	term.contains("first 0")
	term.write(initBin + " sh -c 'echo runs; exec sleep 1000'\n")
	term.contains("runs")
	inner := func() (init, sleep int) {
		for _, pid := range descendants(p.pid()) {
			switch comm(pid) {
			case "reaper-init":
				init = pid
			case "sleep":
				sleep = pid
			}
		}
		return init, sleep
	}
	var job, sleeper int
	testutil.Eventually(t, deadline, func() (bool, string) {
		job, sleeper = inner()
		return job != 0 && sleeper != 0, "the job is not up"
	})
	term.write("\x1a")
	p.hasState(job, "T")
	p.hasState(sleeper, "T")
	term.contains("Stopped")
	term.write("fg\n")
	p.hasState(job, "S")
	p.hasState(sleeper, "S")
	term.write("\x03")
	testutil.Eventually(t, deadline, func() (bool, string) {
		return state(sleeper) == "" || state(sleeper) == "Z", "^C did not end the program"
	})
	term.write("echo second $?; exit 8\n")
	term.contains("second 130")
	p.exits(8)
}

func pathCases() []testCase {
	// A directory of programs: first/no is not executable, first/dir a directory, second/ok and second/no run.
	files := func(t *testing.T) string {
		t.Helper()
		dir := t.TempDir()
		write := func(name, text string, mode os.FileMode) {
			name = filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
		write("first/no", "#!/bin/sh\nexit 1\n", 0o644)
		write("first/dir/x", "", 0o644)
		write("first/only", "", 0o644)
		write("second/no", "#!/bin/sh\nexit 12\n", 0o755)
		write("second/ok", "#!/bin/sh\nexit 11\n", 0o755)
		write("second/text", "exit 13\n", 0o755)
		write("second/badinterp", "#!/nowhere/sh\n", 0o755)
		return dir
	}
	cases := []testCase{}
	for _, c := range []struct {
		name, path, program string
		want                int
	}{
		{"a program of the second directory of PATH", "first:second", "ok", 11},
		{"a file that is not executable does not hide a later one", "first:second", "no", 12},
		{"nor does a directory", "first:second:first", "ok", 11},
		{"only a file that is not executable: 126", "first:nowhere", "only", 126},
		{"only a directory: 126", "first", "dir", 126},
		{"nothing of that name: 127", "first:second", "nothing", 127},
		{"a file without a format that the kernel knows: 126, no shell is tried", "second", "text", 126},
		{"a script whose interpreter is not there: 127", "second", "badinterp", 127},
		{"an empty element of PATH is the working directory", ":first", "here", 14},
		{"a name with a slash is not looked up", "first", "second/ok", 11},
		{"below a file instead of a directory: 127", "first", "second/ok/x", 127},
		{"an element that is too long is passed over", strings.Repeat("x", 5000) + ":second", "ok", 11},
		{"an empty name: 127", "second", "", 127},
	} {
		cases = append(cases, testCase{"PATH: " + c.name, "", func(t *testing.T) {
			dir := files(t)
			if err := os.WriteFile(filepath.Join(dir, "here"), []byte("#!/bin/sh\nexit 14\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			run(t, c.want, setup{dir: dir, env: []string{"PATH=" + c.path}, program: []string{c.program}})
		}})
	}
	return append(cases, testCase{"PATH: not set, it is /bin and /usr/bin", "", func(t *testing.T) {
		env, err := exec.LookPath("env")
		if err != nil {
			testutil.Lacks(t, err.Error(), "install coreutils")
		}
		out, _ := run(t, 0, setup{sub: true, before: []string{env, "-u", "PATH"}, program: []string{"echo", "found"}})
		if out != "found" {
			t.Errorf("standard output %q", out)
		}
	}})
}
