package initest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
)

// deadline is how long anything may take on a busy machine before a test gives up.
const deadline = 30 * time.Second

// initBin is the reaper-init that is tested, and progBin testdata/prog.c; TestMain builds both.
var initBin, progBin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "initest")
	if err == nil {
		// Programs that run as another user must reach what is in it.
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "initest:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "initest:", err)
	}
	os.Exit(code)
}

// build makes reaper-init as "make build" does, from the sources that are there now.
func build(dir string) error {
	root, err := testutil.RepoRoot()
	if err != nil {
		return err
	}
	initBin, progBin = filepath.Join(dir, "reaper-init"), filepath.Join(dir, "prog")
	maker := exec.Command("make", "-s", "BIN="+dir, initBin)
	maker.Dir = root
	// A make above this test would pass its own variables and job server on.
	maker.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "MAKE") || strings.HasPrefix(s, "MFLAGS") })
	for _, cmd := range []*exec.Cmd{maker, exec.Command("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", progBin, "testdata/prog.c")} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return nil
}

// setup is how reaper-init is started.
type setup struct {
	ns      []string // flags of "prog ns"
	sub     bool     // as subreaper: below a PID 1 that reaps nothing
	before  []string // commands that become reaper-init, e.g. prog sigconf
	opts    []string // options of reaper-init
	env     []string // added to the environment
	dir     string   // working directory
	tty     *os.File // standard streams, and controlling terminal
	noctty  bool     // not controlling
	stderr  *os.File // instead of a buffer
	stdin   io.Reader
	files   []*os.File // inherited as 3, 4, …
	program []string
}

// proc is a reaper-init that runs. It, and all below it, is in a PID namespace of its own, which ends with the test.
type proc struct {
	t      *testing.T
	cmd    *exec.Cmd
	sub    bool
	lines  chan string // of standard output; closed at its end
	stderr *buffer
	done   chan struct{}
	code   int
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, s setup) *proc {
	t.Helper()
	args := append([]string{progBin, "ns"}, s.ns...)
	if s.sub {
		args = append(args, progBin, "outer")
	}
	args = append(args, s.before...)
	args = append(args, initBin)
	args = append(args, s.opts...)
	args = append(args, s.program...)
	p := &proc{t: t, cmd: exec.Command(args[0], args[1:]...), sub: s.sub, lines: make(chan string, 4096), stderr: new(buffer), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), s.env...)
	p.cmd.Dir = s.dir
	p.cmd.ExtraFiles = s.files
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = deadline
	if s.tty != nil {
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = s.tty, s.tty, s.tty
		p.cmd.SysProcAttr.Setsid, p.cmd.SysProcAttr.Setctty = !s.noctty, !s.noctty
		close(p.lines)
	} else {
		p.cmd.Stdin, p.cmd.Stderr = s.stdin, p.stderr
		if s.stderr != nil {
			p.cmd.Stderr = s.stderr
		}
		r, w := io.Pipe()
		p.cmd.Stdout = w
		go func() {
			defer close(p.lines)
			for in := bufio.NewScanner(r); in.Scan(); {
				p.lines <- in.Text()
			}
		}()
		defer func() {
			go func() {
				<-p.done
				_ = w.Close() // a pipe in memory: nothing can fail
			}()
		}()
	}
	// Pdeathsig is of the thread that started the process: Go's main thread lives as long as the test.
	if err := p.cmd.Start(); err != nil {
		close(p.done)
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code says it all
		p.code = p.cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() && p.stderr.String() != "" {
			t.Logf("standard error:\n%s", p.stderr.String())
		}
	})
	return p
}

// line returns the next line of standard output.
func (p *proc) line() string {
	p.t.Helper()
	select {
	case l, ok := <-p.lines:
		if !ok {
			p.t.Fatalf("standard output ended; standard error: %s", p.stderr)
		}
		return l
	case <-time.After(deadline):
		p.t.Fatalf("no line within %v; standard error: %s", deadline, p.stderr)
	}
	return ""
}

func (p *proc) expect(want string) {
	p.t.Helper()
	if got := p.line(); got != want {
		p.t.Fatalf("line %q, want %q; standard error: %s", got, want, p.stderr)
	}
}

// number expects a line "WORD NUMBER" and returns the number.
func (p *proc) number(word string) int {
	p.t.Helper()
	l := p.line()
	rest, ok := strings.CutPrefix(l, word+" ")
	n, err := strconv.Atoi(rest)
	if !ok || err != nil {
		p.t.Fatalf("line %q, want %q and a number", l, word)
	}
	return n
}

// exits waits for the end and compares the exit code.
func (p *proc) exits(want int) {
	p.t.Helper()
	if got := p.wait(); got != want {
		p.t.Fatalf("exit code %d, want %d; standard error: %s", got, want, p.stderr)
	}
}

func (p *proc) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(deadline):
		p.t.Fatalf("still runs after %v; standard error: %s", deadline, p.stderr)
	}
	return p.code
}

// rest returns what is left of standard output, after the end.
func (p *proc) rest() string {
	p.wait()
	var all []string
	for l := range p.lines {
		all = append(all, l)
	}
	return strings.Join(all, "\n")
}

// pid is reaper-init's host PID, once it is there.
func (p *proc) pid() int {
	p.t.Helper()
	pid := 0
	testutil.Eventually(p.t, deadline, func() (bool, string) {
		pid = p.cmd.Process.Pid
		if p.sub {
			kids := children(pid)
			if len(kids) == 0 {
				return false, "PID 1 has no child"
			}
			pid = kids[0]
		}
		name := comm(pid)
		return name == "reaper-init", "it is " + name
	})
	return pid
}

// program is the host PID of reaper-init's first child.
func (p *proc) program() int {
	p.t.Helper()
	pid, program := p.pid(), 0
	testutil.Eventually(p.t, deadline, func() (bool, string) {
		if kids := children(pid); len(kids) > 0 {
			program = kids[0]
		}
		return program != 0, "no child"
	})
	return program
}

func (p *proc) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(p.pid(), sig); err != nil {
		p.t.Fatalf("signal %d to reaper-init: %v", sig, err)
	}
}

// gets sends a signal to reaper-init and expects the program, prog signals, to print the other.
func (p *proc) gets(send, want syscall.Signal) {
	p.t.Helper()
	p.signal(send)
	p.expectSignal(want)
}

func (p *proc) expectSignal(want syscall.Signal) {
	p.t.Helper()
	l := p.line()
	if number, _, _ := strings.Cut(l, " "); number != strconv.Itoa(int(want)) {
		p.t.Fatalf("the program got %q, want signal %d; standard error: %s", l, want, p.stderr)
	}
}

func (p *proc) hasState(pid int, want string) {
	p.t.Helper()
	testutil.Eventually(p.t, deadline, func() (bool, string) {
		got := state(pid)
		return got != "" && strings.Contains(want, got), fmt.Sprintf("process %d is %q, want one of %q", pid, got, want)
	})
}

// run starts reaper-init and expects an exit code. It returns standard output and standard error.
func run(t *testing.T, want int, s setup) (stdout, stderr string) {
	t.Helper()
	p := start(t, s)
	p.exits(want)
	return p.rest(), p.stderr.String()
}

func prog(args ...string) []string { return append([]string{progBin}, args...) }

func shell(script string, args ...string) []string {
	return append([]string{"sh", "-c", script, "sh"}, args...)
}

// stat returns the fields of /proc/PID/stat behind the name, or none.
func stat(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

func state(pid int) string {
	if f := stat(pid); len(f) > 0 {
		return f[0]
	}
	return ""
}

func comm(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(data), "\n")
}

func children(pid int) []int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, f := range strings.Fields(string(data)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// descendants are all below a process, children before their children.
func descendants(pid int) []int {
	all := children(pid)
	for i := 0; i < len(all); i++ {
		all = append(all, children(all[i])...)
	}
	return all
}
