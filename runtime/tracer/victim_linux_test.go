package tracer

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// patience bounds every wait for a condition: far more than any of them takes, since tests must not depend on how fast the
// machine is.
var patience = testutil.Slow(20 * time.Second)

// orphanCode and ownCode are the exit codes of victim.c.
const (
	orphanCode = 3
	ownCode    = 7
)

var liveProc = procfs.New(os.DirFS("/proc"))

// unable skips a test that cannot run here, with the remedy; REAPER_TEST_REQUIRE=1 makes that a failure.
func unable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("REAPER_TEST_REQUIRE") == "1" {
		t.Fatalf("REAPER_TEST_REQUIRE=1: "+format, args...)
	}
	t.Skipf(format, args...)
}

func requireKernel(t testing.TB) {
	t.Helper()
	if why := Supported(); why != "" {
		t.Skipf("%s: %s", why, runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		unable(t, "needs root for PID namespaces and ptrace: run the test as root")
	}
}

// victimsEnv names a directory that holds the victims and the worker, for machines that have no compiler. The victims are
// the C files of testdata, compiled statically, by their names without the ".c".
const victimsEnv = "REAPER_TEST_VICTIMS"

// built holds what is compiled once for the whole test binary.
var built struct {
	once           sync.Once
	dir            string // of this run, removed at its end
	given          string // by victimsEnv
	victim, worker string
	victimErr      error
	workerErr      error
}

func build() {
	built.once.Do(func() {
		if dir := os.Getenv(victimsEnv); dir != "" {
			built.victim, built.worker, built.given = filepath.Join(dir, "victim"), filepath.Join(dir, WorkerName), dir
			return
		}
		dir, err := os.MkdirTemp("", "reaper-tracer-test")
		if err != nil {
			built.victimErr, built.workerErr = err, err
			return
		}
		// The victims are run through a path that has to exist in their mount namespace; a private /tmp is not set up.
		built.dir = dir
		built.victim = filepath.Join(dir, "victim")
		built.worker = filepath.Join(dir, WorkerName)
		out, err := exec.Command("gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", built.victim, "testdata/victim.c", "-lpthread").CombinedOutput()
		if err != nil {
			built.victimErr = fmt.Errorf("gcc: %w: %s", err, out)
		}
		out, err = exec.Command("go", "build", "-o", built.worker, "../../cmd/reaper-tracer").CombinedOutput()
		if err != nil {
			built.workerErr = fmt.Errorf("go build: %w: %s", err, out)
		}
	})
}

// newClient returns a client of a real worker.
func newClient(t testing.TB, args ...string) *Client {
	t.Helper()
	build()
	if built.workerErr != nil {
		t.Fatal(built.workerErr)
	}
	c := NewClient(built.worker, args...)
	t.Cleanup(func() { c.Close() })
	return c
}

// victim is PID 1 of a PID namespace of its own.
type victim struct {
	t     testing.TB
	pid   procfs.HostPID
	start uint64
	stdin *os.File
	lines chan string
	done  chan struct{} // closed when it has ended; ws is valid then
	ws    syscall.WaitStatus
}

func startVictim(t testing.TB, args ...string) *victim {
	t.Helper()
	requireKernel(t)
	build()
	if built.victimErr != nil {
		unable(t, "cannot compile the victims: %v (install gcc and libc6-dev)", built.victimErr)
	}
	return startPID1(t, built.victim, args...)
}

func startPID1(t testing.TB, path string, args ...string) *victim {
	t.Helper()
	return startPID1With(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}, path, args...)
}

func startPID1With(t testing.TB, attr *syscall.SysProcAttr, path string, args ...string) *victim {
	t.Helper()
	stdinR, stdinW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdoutR, stdoutW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdinR, stdoutW, os.Stderr
	cmd.SysProcAttr = attr
	err = cmd.Start()
	stdinR.Close()
	stdoutW.Close()
	if err != nil {
		unable(t, "cannot start a process in a new PID namespace: %v (run as root in a container that may)", err)
	}
	v := &victim{t: t, pid: procfs.HostPID(cmd.Process.Pid), stdin: stdinW, lines: make(chan string, 64), done: make(chan struct{})}
	go func() {
		r := bufio.NewScanner(stdoutR)
		for r.Scan() {
			v.lines <- r.Text()
		}
		close(v.lines)
		stdoutR.Close()
	}()
	go func() {
		_ = cmd.Wait() // its status is what counts
		v.ws, _ = cmd.ProcessState.Sys().(syscall.WaitStatus)
		close(v.done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-v.done
		stdinW.Close()
		for range v.lines {
		}
	})
	st, err := liveProc.Stat(v.pid)
	if err != nil {
		t.Fatalf("victim: %v", err)
	}
	v.start = st.StartTime
	return v
}

// expect returns the rest of the next line, which must begin with word.
func (v *victim) expect(word string) string {
	v.t.Helper()
	line := v.line(word)
	rest, ok := strings.CutPrefix(line, word)
	if !ok {
		v.t.Fatalf("victim said %q, want %q", line, word)
	}
	return strings.TrimSpace(rest)
}

// line returns the next line, in which word is waited for.
func (v *victim) line(word string) string {
	v.t.Helper()
	select {
	case line, ok := <-v.lines:
		if !ok {
			<-v.done
			v.t.Fatalf("victim ended (status %#x) before it said %q", v.ws, word)
		}
		return line
	case <-time.After(patience):
		st, _ := liveProc.Stat(v.pid)
		sc, _ := liveProc.ThreadSyscall(v.pid, v.pid)
		v.t.Fatalf("victim did not say %q; it is in state %v, system call %+v", word, st.State, sc)
	}
	panic("unreachable")
}

// poke sends the byte that the victim's standard input waits for.
func (v *victim) poke() {
	v.t.Helper()
	if _, err := v.stdin.Write([]byte("x")); err != nil {
		v.t.Fatal(err)
	}
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// parked waits until some thread of the victim is blocked in a system call of that name ("" for any).
func (v *victim) parked(name string) {
	v.t.Helper()
	eventually(v.t, "a thread parked in "+name, func() bool {
		tids, _ := liveProc.Threads(v.pid)
		for _, tid := range tids {
			sc, err := liveProc.ThreadSyscall(v.pid, tid)
			if err != nil || sc.Running || sc.Nr < 0 {
				continue
			}
			// Any wake-up, such as a sibling's exit, can have turned poll into restart_syscall.
			got := classifyCall(sc.Nr, sc.Args).name
			if name == "" || got == name || name == "poll" && got == "restart_syscall" {
				return true
			}
			if runtime.GOARCH == "arm64" && got == "ppoll" && (name == "poll" || name == "pause") {
				return true
			}
		}
		return false
	})
}

// children returns the zombies among the children of all threads that ended with code.
func (v *victim) children(code int) []Zombie {
	v.t.Helper()
	var zs []Zombie
	status, err := liveProc.Status(v.pid)
	if err != nil {
		return nil
	}
	tids, _ := liveProc.Threads(v.pid)
	for _, tid := range tids {
		kids, _ := liveProc.ThreadChildren(v.pid, tid)
		for _, pid := range kids {
			st, err := liveProc.Stat(pid)
			if err != nil || st.State != procfs.StateZombie || st.ExitCode != code<<8 {
				continue
			}
			ks, err := liveProc.Status(pid)
			if err != nil {
				continue
			}
			nspid, ok := ks.At(status.Level())
			if !ok {
				v.t.Fatalf("zombie %d is not visible to PID 1", pid)
			}
			zs = append(zs, Zombie{PID: pid, StartTime: st.StartTime, NSPID: nspid})
		}
	}
	return zs
}

// orphans waits until the victim has n orphans that are zombies, and returns them.
func (v *victim) orphans(n int) []Zombie {
	v.t.Helper()
	var zs []Zombie
	eventually(v.t, fmt.Sprintf("%d orphans", n), func() bool {
		zs = v.children(orphanCode)
		return len(zs) == n
	})
	return zs
}

func (v *victim) request(zs ...Zombie) Request {
	return Request{Version: Version, PID: v.pid, StartTime: v.start, Zombies: zs, MaxStop: MaxMaxStop}
}

// identified returns zombies by the IDs of their pidfds alone.
func identified(t testing.TB, zs []Zombie) []Zombie {
	t.Helper()
	out := slices.Clone(zs)
	for i, z := range out {
		f, err := pidfd.Of(z.PID)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = Zombie{PID: z.PID, ID: f.ID}
	}
	return out
}

// withQuestion returns a request for the same zombies by their IDs, for which PID 1 is asked first whether it traces anybody, where that can be.
func withQuestion(t testing.TB, req Request) Request {
	t.Helper()
	if asks && pidfd.Supported() {
		req.Zombies, req.Age, req.Probe = identified(t, req.Zombies), time.Nanosecond, true
	}
	return req
}

func (v *victim) state() procfs.State {
	st, err := liveProc.Stat(v.pid)
	if err != nil {
		return procfs.StateDead
	}
	return st.State
}

// reap has one request carried out and checks what holds for every report.
func reap(t testing.TB, c *Client, req Request) Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	rep, err := c.Reap(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Reason == ReasonInternal {
		t.Errorf("internal error: %s", rep.Detail)
	}
	if !rep.Attached && (rep.Stopped != 0 || rep.Count(Reaped) != 0) {
		t.Errorf("not attached, and yet %+v", rep)
	}
	return rep
}

// reapAll repeats requests until all zombies are gone. An attach may be declined for reasons that pass.
func reapAll(t testing.TB, c *Client, v *victim, zs []Zombie) (attaches int, longest time.Duration) {
	t.Helper()
	deadline := time.Now().Add(4 * patience)
	for len(zs) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d zombies left after %d attaches", len(zs), attaches)
		}
		req := v.request(zs...)
		req.MaxStop = 0
		rep := reap(t, c, req)
		if rep.Attached {
			attaches++
		}
		longest = max(longest, rep.Stopped)
		var left []Zombie
		for i, r := range rep.Results {
			switch r.Outcome {
			case Refused:
				t.Fatalf("zombie refused: %s (report: %s %s)", r.Reason, rep.Reason, rep.Detail)
			case Left:
				left = append(left, zs[i])
			}
		}
		if len(left) == len(zs) {
			switch rep.Reason {
			case ReasonBusy, ReasonSignal, ReasonSigchldPending, ReasonTimeout, ReasonFrozen: // frozen: or had no CPU
			default:
				t.Fatalf("no progress: %s %s", rep.Reason, rep.Detail)
			}
		}
		zs = left
	}
	return attaches, longest
}

// helperOrder tells a helper process what to do. The helper is this test binary: the test process is the parent of the
// victims, and a parent that is the tracer as well takes stops for exits.
type helperOrder struct {
	Seize   procfs.HostPID // hold this thread until standard input ends
	Naive   string         // attach to that thread and do it this damage
	Request Request        // else attach once, as a worker would
	Blind   bool           // with no look at /proc before
	NSPID   procfs.NSPID   // have PID 1 wait for this number instead
}

const helperEnv = "REAPER_TRACER_TEST_HELPER"

func TestMain(m *testing.M) {
	if hookedMain() {
		os.Exit(0)
	}
	if os.Getenv(helperEnv) != "" {
		runtime.LockOSThread()
		if err := helper(json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			unix.Exit(1)
		}
		unix.Exit(0) // as in hookedMain
	}
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func helper(in *json.Decoder, out *json.Encoder) error {
	var order helperOrder
	if err := in.Decode(&order); err != nil {
		return err
	}
	if order.Naive != "" {
		return naive(order, out)
	}
	if order.Seize != 0 {
		if err := (&thread{tid: int(order.Seize)}).seize(); err != nil {
			return err
		}
		if err := out.Encode("seized"); err != nil {
			return err
		}
		return in.Decode(&order) // until it ends
	}
	req := order.Request
	rep := decline(req, "", "")
	o := newObserver(os.DirFS("/proc"), os.DirFS("/sys/fs/cgroup"))
	p := plan{tid: req.PID, targets: newTargets(len(req.Zombies))}
	if !order.Blind {
		var err error
		if p, err = o.examine(req, rep.Results); err != nil {
			return err
		}
		p.reapers[0] = order.NSPID
	}
	f := newLiveFacts(o, req)
	defer f.close()
	for i := range req.Zombies {
		if _, err := f.zombieStat(i); err != nil {
			return err
		}
	}
	if err := f.open(&p); err != nil {
		return err
	}
	(&attach{options: archOptions(nil), t: &thread{tid: int(p.tid), tgid: int(req.PID)}, f: f, p: p, now: time.Now, rep: &rep}).run()
	return out.Encode(rep)
}

// zombiesOf reads from the observer's own /proc.
type zombiesOf struct {
	o   *observer
	req Request
}

func (z zombiesOf) zombieStat(i int) (procfs.Stat, error)  { return z.o.proc.Stat(z.req.Zombies[i].PID) }
func (z zombiesOf) zombieFacts(i int) (pidfd.Facts, error) { return pidfd.Of(z.req.Zombies[i].PID) }
func (z zombiesOf) zombieNumber(int) procfs.NSPID          { return 0 }
func (z zombiesOf) zombieStatus(i int) (procfs.Status, error) {
	return z.o.proc.Status(z.req.Zombies[i].PID)
}

// examine is all steps of the checks before PID 1 is touched.
func (o *observer) examine(req Request, results []Result) (plan, error) {
	err := o.process(req)
	if err != nil {
		return plan{}, err
	}
	t := newTargets(len(req.Zombies))
	if err := o.zombies(req, zombiesOf{o, req}, &t, len(req.Zombies), results); err != nil {
		return plan{}, err
	}
	p := t.plan(req)
	return p, o.threads(req, &p, results)
}

func startHelper(t testing.TB, order helperOrder) (cmd *exec.Cmd, stdin io.Closer, answer *json.Decoder) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(in).Encode(order); err != nil {
		t.Fatal(err)
	}
	return cmd, in, json.NewDecoder(out)
}

func helperAttach(t testing.TB, order helperOrder) (rep Report) {
	t.Helper()
	helperAnswer(t, order, &rep)
	return rep
}

// helperAnswer has a process carry out an order, and returns when that has ended.
func helperAnswer(t testing.TB, order helperOrder, to any) {
	t.Helper()
	cmd, stdin, answer := startHelper(t, order)
	err := answer.Decode(to)
	stdin.Close()
	if werr := cmd.Wait(); err != nil || werr != nil {
		t.Fatalf("helper: %v, %v", err, werr)
	}
}

// helperSeize has a process seize a thread, and returns what makes it let go.
func helperSeize(t testing.TB, tid procfs.HostPID) (release func()) {
	t.Helper()
	cmd, stdin, answer := startHelper(t, helperOrder{Seize: tid})
	var word string
	if err := answer.Decode(&word); err != nil {
		t.Fatalf("helper: %v", err)
	}
	release = sync.OnceFunc(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(release)
	return release
}
