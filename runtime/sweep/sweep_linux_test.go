package sweep_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// The test binary is its own victim: started under this name it is a PID 1 that runs commands from its standard input and
// reaps nothing that it was not told to.
const victimName = "sweep-victim"

func TestMain(m *testing.M) {
	if os.Args[0] == victimName {
		victim()
		return
	}
	os.Exit(m.Run())
}

// victim reads lines "HOW COMMAND" and runs the command with sh: "session" in a new session and waits for it, as an exec does;
// "plain" in its own session and waits for it; "own" and never waits. It answers each with a line.
func victim() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		how, command, _ := strings.Cut(in.Text(), " ")
		cmd := exec.Command("/bin/sh", "-c", command)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: how == "session"}
		err := cmd.Start()
		if err == nil && how != "own" {
			err = cmd.Wait()
		}
		fmt.Println("done", cmd.Process.Pid, err)
	}
}

type pid1 struct {
	t      testing.TB
	cmd    *exec.Cmd
	in     io.Writer
	out    *bufio.Reader
	proc   *procfs.FS
	cgroup *sweep.Cgroup
}

// start runs a program as PID 1 of a new PID namespace and session, in a cgroup of its own.
func start(t testing.TB, path string, args ...string) *pid1 {
	t.Helper()
	testutil.Root(t)
	cmd := &exec.Cmd{Path: path, Args: args, Stderr: os.Stderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &pid1{t: t, cmd: cmd, in: in, out: bufio.NewReader(out), proc: procfs.New(os.DirFS("/proc"))}

	dir := ""
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			dir = filepath.Join(root, fmt.Sprintf("reaper-sweep-%d", os.Getpid()))
			break
		}
	}
	if dir == "" {
		testutil.Lacks(t, "no cgroup hierarchy counts processes", "mount the pids controller (v1) or cgroup v2")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		testutil.Eventually(t, 5*time.Second, func() (bool, string) {
			err := os.Remove(dir)
			return err == nil, fmt.Sprint(err)
		})
	})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	lines, err := p.proc.Cgroups(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	if p.cgroup = sweep.FindCgroup(os.DirFS("/sys/fs/cgroup"), lines); p.cgroup == nil {
		t.Fatalf("no cgroup found in %+v", lines)
	}
	return p
}

func startVictim(t *testing.T) *pid1 {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, self, victimName)
}

func (p *pid1) pid() procfs.HostPID { return procfs.HostPID(p.cmd.Process.Pid) }

// do has the victim run a command and waits for its answer.
func (p *pid1) do(how, command string) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, "%s %s\n", how, command); err != nil {
		p.t.Fatal(err)
	}
	p.expect("done ")
}

func (p *pid1) expect(prefix string) {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, prefix) {
		p.t.Fatalf("the victim said %q, %v; want %q", line, err, prefix)
	}
}

// recorder is a Reaper that notes what it is asked and answers what answer says, one after the other.
type recorder struct {
	mu       sync.Mutex
	requests []tracer.Request
	answer   func(tracer.Request) tracer.Report
}

func (r *recorder) Reap(_ context.Context, req tracer.Request) (tracer.Report, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req)
	if r.answer == nil {
		return tracer.Report{}, errors.New("not asked for in this test")
	}
	return r.answer(req), nil
}

func (r *recorder) asked() []procfs.HostPID {
	var pids []procfs.HostPID
	for _, req := range r.requests {
		for _, z := range req.Zombies {
			pids = append(pids, z.PID)
		}
	}
	return pids
}

func answerAll(o tracer.Outcome, reason tracer.Reason) func(tracer.Request) tracer.Report {
	return func(req tracer.Request) tracer.Report {
		rep := tracer.Report{Attached: true, Attaches: 1, Stopped: time.Millisecond}
		for _, z := range req.Zombies {
			rep.Results = append(rep.Results, tracer.Result{PID: z.PID, Outcome: o, Reason: reason})
		}
		return rep
	}
}

// answerBusy declines the whole request, PID 1 being at work.
func answerBusy(req tracer.Request) tracer.Report {
	rep := answerAll(tracer.Left, tracer.ReasonDeclined)(req)
	rep.Attached, rep.Attaches, rep.Reason = false, 0, tracer.ReasonBusy
	return rep
}

// clock is the time of a sweeper, moved by hand.
type clock struct{ now time.Time }

func (p *pid1) sweeper(r sweep.Reaper, grace time.Duration) (*sweep.Sweeper, *clock) {
	p.t.Helper()
	return p.sweeperWith(sweep.Config{Reaper: r, Grace: grace})
}

func (p *pid1) sweeperWith(cfg sweep.Config) (*sweep.Sweeper, *clock) {
	p.t.Helper()
	st, err := p.proc.Stat(p.pid())
	if err != nil {
		p.t.Fatal(err)
	}
	c := &clock{now: time.Now()}
	cfg.Proc = p.proc
	cfg.Init = lineage.Init{PID: p.pid(), SessionLeader: st.Session == p.pid()}
	cfg.InitStartTime = st.StartTime
	cfg.Now = func() time.Time { return c.now }
	s, err := sweep.New(cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	s.SetCgroups([]*sweep.Cgroup{p.cgroup})
	return s, c
}

func mustSweep(t *testing.T, s *sweep.Sweeper) sweep.Result {
	t.Helper()
	res, err := s.Sweep(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// sweepUntil sweeps, a second of the sweeper's time apart, until done.
func sweepUntil(t *testing.T, s *sweep.Sweeper, c *clock, done func(sweep.Stats) bool) {
	t.Helper()
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		mustSweep(t, s)
		c.now = c.now.Add(time.Second)
		return done(s.Stats()), fmt.Sprintf("%+v", s.Stats())
	})
}

func TestExecOrphanIsAskedForAfterTheGracePeriod(t *testing.T) {
	p := startVictim(t)
	r := &recorder{answer: func(req tracer.Request) tracer.Report {
		rep := answerAll(tracer.Reaped, "")(req)
		for i := range rep.Results {
			rep.Results[i].NSPID = procfs.NSPID(rep.Results[i].PID) + 1 // such as nobody else could tell
		}
		return rep
	}}
	s, c := p.sweeper(r, 30*time.Second)
	p.do("session", "(sleep 0.05; exit 7) & (sleep 0.05; kill -9 $$; exec sleep 100) & exit 0")
	p.do("session", "sh -c 'kill -KILL $$' & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Adopted >= 2 })
	if len(r.requests) != 0 {
		t.Fatalf("asked for %v within the grace period", r.asked())
	}
	c.now = c.now.Add(time.Minute)
	res := mustSweep(t, s)
	var statuses []int
	for _, o := range res.Reaped {
		statuses = append(statuses, o.Status)
		if want := procfs.NSPID(o.PID) + 1; o.NSPID != want {
			t.Errorf("orphan %d: number %d inside, want %d", o.PID, o.NSPID, want)
		}
		if o.Comm != "sh" && o.Comm != "sleep" {
			t.Errorf("orphan %d: command %q", o.PID, o.Comm)
		}
	}
	if !slices.Contains(statuses, 7<<8) || !slices.Contains(statuses, 9) {
		t.Errorf("wait statuses %v, want 1792 (exit 7) and 9 (SIGKILL) among them", statuses)
	}
	st := s.Stats()
	if st.Reaped != uint64(len(res.Reaped)) || st.Attaches != 1 || st.LongestStop != time.Millisecond {
		t.Errorf("statistics %+v", st)
	}
	var timed uint64
	for _, n := range st.ReapTimes.Counts {
		timed += n
	}
	if timed != st.Reaped || st.ReapTimes.Sum < time.Duration(timed)*time.Minute {
		t.Errorf("%d reaped, %d timed, %v in all; want each, after more than a minute", st.Reaped, timed, st.ReapTimes.Sum)
	}
}

// A zombie's cgroup is what tells whose container it was in, and on cgroup v1 /proc/<pid>/cgroup no longer does.
func TestContainerPathOfAZombie(t *testing.T) {
	testutil.Root(t)
	proc := procfs.New(os.DirFS("/proc"))
	name := fmt.Sprintf("reaper-path-%d", os.Getpid())
	var dirs []string
	for _, root := range []string{"unified", "cpuset", "."} {
		dir := filepath.Join("/sys/fs/cgroup", root, name)
		if root == "." && len(dirs) > 0 {
			break
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "cgroup.procs")); err == nil {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		testutil.Lacks(t, "neither the unified hierarchy nor the cpuset controller is mounted below /sys/fs/cgroup", "mount cgroup2")
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(dir)
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // empty on v1, which then takes no process
				if data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file)); err == nil {
					_ = os.WriteFile(filepath.Join(dir, file), data, 0)
				}
			}
			cmd := exec.Command("cat")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait() //nolint:errcheck // its status is of no interest
			pid := procfs.HostPID(cmd.Process.Pid)
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid.String()), 0); err != nil {
				t.Fatal(err)
			}
			alive := sweep.ContainerPath(proc, pid)
			in.Close()
			testutil.Eventually(t, 5*time.Second, func() (bool, string) {
				st, err := proc.Stat(pid)
				return err == nil && st.Zombie(), fmt.Sprint(st, err)
			})
			if dead := sweep.ContainerPath(proc, pid); alive != "/"+name || dead != alive {
				t.Errorf("path %q while it lives and %q as a zombie, want /%s", alive, dead, name)
			}
		})
	}
}

func TestOwnChildIsNeverAskedFor(t *testing.T) {
	p := startVictim(t)
	r := &recorder{}
	s, c := p.sweeper(r, 0)
	p.do("own", "exit 3")
	p.do("own", "exec setsid sh -c 'exit 4'")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Own+st.Unproven == 2 })
	for range 50 {
		c.now = c.now.Add(time.Hour)
		mustSweep(t, s)
	}
	if st := s.Stats(); len(r.requests) != 0 || st.Adopted != 0 {
		t.Errorf("asked for %v; statistics %+v", r.asked(), st)
	}
}

func TestOrphanThatLivedThroughASweep(t *testing.T) {
	p := startVictim(t)
	r := &recorder{answer: answerAll(tracer.Refused, tracer.ReasonWaiting)}
	s, c := p.sweeper(r, 0)
	// In PID 1's own session, so that only rule L can tell: the parent lives until the file is there.
	dir := t.TempDir()
	gate := func(name string) (string, *os.File) {
		path := filepath.Join(dir, name)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return path, f
	}
	parentGate, parent := gate("parent")
	childGate, child := gate("child")
	if _, err := fmt.Fprintf(p.in, "plain (read x <%s; exit 9) & read y <%s\n", childGate, parentGate); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		pids, err := p.cgroup.Procs()
		return len(pids) == 3, fmt.Sprint(pids, err)
	})
	testutil.Eventually(t, 5*time.Second, func() (bool, string) { // old enough to be identified
		now, st := sweep.BootTicks(), youngest(t, p)
		return now >= st+lineage.MinTicks, fmt.Sprint(now, st)
	})
	mustSweep(t, s)
	if _, err := parent.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	p.expect("done ") // the parent is gone, and could not reap the child on its way out
	if _, err := child.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Adopted == 1 && len(r.requests) > 0 })
	proven := r.asked()[0]

	// And one that no sweep has seen alive: nothing proves that PID 1 did not fork it.
	p.do("plain", "(exit 9) & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Unproven == 1 })
	c.now = c.now.Add(time.Minute)
	mustSweep(t, s)
	for _, pid := range r.asked() {
		if pid != proven {
			t.Errorf("asked for %d, want the proven one (%d) only", pid, proven)
		}
	}
}

func youngest(t *testing.T, p *pid1) uint64 {
	pids, err := p.cgroup.Procs()
	if err != nil {
		t.Fatal(err)
	}
	var latest uint64
	for _, pid := range pids {
		if st, err := p.proc.Stat(pid); err == nil {
			latest = max(latest, st.StartTime)
		}
	}
	return latest
}

func TestRefusalIsTriedAgainWithBackOff(t *testing.T) {
	p := startVictim(t)
	refusal := answerAll(tracer.Refused, tracer.ReasonWaiting)
	r := &recorder{answer: refusal}
	s, c := p.sweeper(r, 0)
	p.do("session", "(exit 7) & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Adopted == 1 && st.Refusals[tracer.ReasonWaiting] > 0 })
	c.now = c.now.Add(time.Minute)
	mustSweep(t, s)
	asked := len(r.requests)
	mustSweep(t, s)
	if len(r.requests) != asked {
		t.Error("asked again at once")
	}
	for range 100 { // in 10 s of the sweeper's time
		c.now = c.now.Add(100 * time.Millisecond)
		mustSweep(t, s)
	}
	if n := len(r.requests) - asked; n < 2 || n > 20 {
		t.Errorf("asked %d times in 10 s, want a few", n)
	}
	// By now it has waited for long enough to be taken from a PID 1 that is at work, which it was not at first.
	if r.requests[0].Running || !r.requests[len(r.requests)-1].Running {
		t.Errorf("running threads: asked for at first: %v, in the end: %v; want false and true", r.requests[0].Running, r.requests[len(r.requests)-1].Running)
	}
	// A whole request that is declined is put off in the same way, and its reason counted.
	r.answer = answerBusy
	c.now = c.now.Add(time.Minute)
	mustSweep(t, s)
	if n := s.Stats().Refusals[tracer.ReasonBusy]; n < 1 || n > 5 {
		t.Errorf("refusals %v, want one and a few quick ones more for %q", s.Stats().Refusals, tracer.ReasonBusy)
	}
	asked = len(r.requests)
	mustSweep(t, s)
	if len(r.requests) != asked {
		t.Error("asked again at once after the whole request was declined")
	}
	r.answer = func(req tracer.Request) tracer.Report {
		rep := answerAll(tracer.Reaped, "")(req)
		rep.UndidStop = true
		return rep
	}
	c.now = c.now.Add(time.Minute)
	if res := mustSweep(t, s); len(res.Reaped) != 1 || !res.UndidStop {
		t.Errorf("a refused zombie lost its chance, or nobody hears of a stop that was undone: %+v", res)
	}
	if res := mustSweep(t, s); res.UndidStop {
		t.Error("a stop that was undone is told twice")
	}
}

// cancelled is a Reaper whose caller ends while it is at work.
type cancelled struct{ cancel context.CancelFunc }

func (c cancelled) Reap(ctx context.Context, req tracer.Request) (tracer.Report, error) {
	c.cancel()
	return tracer.Report{}, fmt.Errorf("reap in pid %d: %w", req.PID, ctx.Err())
}

// A task that ends in the middle of an attach was refused nothing.
func TestCancelIsNoRefusal(t *testing.T) {
	p := startVictim(t)
	ctx, cancel := context.WithCancel(t.Context())
	s, c := p.sweeper(cancelled{cancel}, time.Minute)
	p.do("session", "(exit 7) & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Adopted == 1 })
	c.now = c.now.Add(time.Hour)
	var res sweep.Result
	testutil.Eventually(t, 10*time.Second, func() (bool, string) { // nobody is asked for in the tick of its birth
		var err error
		if res, err = s.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		return ctx.Err() != nil, fmt.Sprintf("%+v", s.Stats())
	})
	if st := s.Stats(); res.Declined.Reason != "" || len(st.Refusals) != 0 || st.Adopted != 1 {
		t.Errorf("declined %+v, statistics %+v", res.Declined, st)
	}
}

func TestInitGone(t *testing.T) {
	p := startVictim(t)
	s, _ := p.sweeper(nil, 0)
	mustSweep(t, s)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// A zombie first, as it is for the shim, and then gone.
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		_, err := s.Sweep(context.Background())
		return errors.Is(err, sweep.ErrInitGone), fmt.Sprint(err)
	})
	_ = p.cmd.Wait()
	if _, err := s.Sweep(context.Background()); !errors.Is(err, sweep.ErrInitGone) {
		t.Errorf("got %v, want ErrInitGone", err)
	}
}

// B1 of the attacks on the design: with the leader thread gone, orphans hang on another thread.
func TestDeadLeader(t *testing.T) {
	testutil.Root(t)
	bin := testutil.Victim(t, "deadleader")
	p := start(t, bin, "deadleader")
	r := &recorder{answer: answerAll(tracer.Reaped, "")}
	s, c := p.sweeper(r, 0)
	if _, err := fmt.Fprintln(p.in, "go"); err != nil {
		t.Fatal(err)
	}
	p.expect("ready")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Reaped == 1 && st.Unproven+st.Own == 1 })
	if st := s.Stats(); st.Contradictions != 0 {
		t.Errorf("%d contradictions: rule T spoke without a leader", st.Contradictions)
	}
}

func TestHeldByAnotherParent(t *testing.T) {
	p := startVictim(t)
	s, c := p.sweeper(nil, 0)
	p.do("own", "sleep 0.01 & exec tail -f /dev/null")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Held == 1 })
	h := s.Stats().Holders
	if len(h) != 1 || h[0].Comm != "tail" || h[0].Zombies != 1 {
		t.Errorf("holders %+v, want tail with one zombie", h)
	}
}

func TestVanishedIsCounted(t *testing.T) {
	p := startVictim(t)
	s, c := p.sweeper(&recorder{answer: answerAll(tracer.Vanished, tracer.ReasonVanished)}, time.Hour)
	p.do("session", "(sleep 0.05; exit 7) & exit 0") // old enough to be identified
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Adopted == 1 })
	c.now = c.now.Add(2 * time.Hour)
	mustSweep(t, s)
	if st := s.Stats(); st.Vanished != 1 || st.Reaped != 0 {
		t.Errorf("statistics %+v, want one vanished", st)
	}
}

// A PID 1 that ends collects everybody in its namespace on the way (zap_pid_ns_processes() in kernel/pid_namespace.c), which can take a
// while. That is not what the statistics mean by it.
func TestEndOfInitIsNoCollecting(t *testing.T) {
	p := startVictim(t)
	s, c := p.sweeper(nil, 0)
	p.do("own", "exec sleep 1000")
	living, err := p.cgroup.Procs()
	child := slices.DeleteFunc(living, func(pid procfs.HostPID) bool { return pid == p.pid() })
	if err != nil || len(child) != 1 {
		t.Fatalf("children %v, %v", child, err)
	}
	p.do("session", "(exit 7) & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Adopted == 1 })

	// A dead process belongs to its tracer until that has waited for it: PID 1 has to stay for it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(child[0]), 0, 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	released := false
	defer func() {
		if !released {
			_, _ = unix.Wait4(int(child[0]), nil, unix.WALL, nil)
		}
	}()
	zombies, _ := s.Zombies(10)
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		_, err := p.proc.Stat(zombies[0].PID)
		return errors.Is(err, procfs.ErrVanished), fmt.Sprint(zombies[0].PID, err)
	})
	if _, err := s.Sweep(t.Context()); err != nil && !errors.Is(err, sweep.ErrInitGone) {
		t.Error(err)
	}
	if st := s.Stats(); st.Vanished != 0 || st.Grace > sweep.LearnedGrace/2 {
		t.Errorf("statistics %+v: want none vanished", st)
	}
	if _, err := unix.Wait4(int(child[0]), nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	released = true
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		_, err := s.Sweep(t.Context())
		return errors.Is(err, sweep.ErrInitGone), fmt.Sprint(err)
	})
}

// log is a ForkLog that says the same of everybody.
type log struct {
	says  lineage.Fork
	syncs int
}

func (l *log) Sync()                                      { l.syncs++ }
func (l *log) Lookup(procfs.HostPID, uint64) lineage.Fork { return l.says }
func (l *log) Exact() bool                                { return false }

// The fork log is asked only after it has been brought up to date, its word counts, and a contradiction is left alone for ever.
func TestForkLogDecides(t *testing.T) {
	for _, tt := range []struct {
		how  string // the victim makes the zombie
		says lineage.Fork
		want func(sweep.Stats) bool
		asks bool
	}{
		{"plain", lineage.ForkedByOther, func(st sweep.Stats) bool { return st.Adopted == 1 }, true},
		{"plain", lineage.ForkUnknown, func(st sweep.Stats) bool { return st.Unproven == 1 }, false},
		{"plain", lineage.ForkedByInit, func(st sweep.Stats) bool { return st.Own == 1 }, false},
		{"session", lineage.ForkedByInit, func(st sweep.Stats) bool { return st.Unproven == 1 && st.Contradictions == 1 }, false},
	} {
		t.Run(tt.how+", "+tt.says.String(), func(t *testing.T) {
			p := startVictim(t)
			r := &recorder{answer: answerAll(tracer.Refused, tracer.ReasonWaiting)}
			s, c := p.sweeper(r, 0)
			l := &log{says: tt.says}
			s.SetForkLog(l)
			mustSweep(t, s)
			if l.syncs != 0 {
				t.Error("the log was asked although there are no zombies")
			}
			p.do(tt.how, "(sleep 0.05; exit 9) & exit 0")
			sweepUntil(t, s, c, tt.want)
			for range 5 {
				c.now = c.now.Add(time.Hour)
				mustSweep(t, s)
			}
			if !tt.want(s.Stats()) || l.syncs == 0 {
				t.Errorf("statistics %+v, %d syncs", s.Stats(), l.syncs)
			}
			if asked := len(r.requests) > 0; asked != tt.asks {
				t.Errorf("asked for: %v, want %v", asked, tt.asks)
			}
		})
	}
}

// What the fork log has said of a zombie stays said when it has ended, or has a gap: a child of PID 1 that looks adopted to
// another rule (CLONE_PARENT) does not become an orphan by it, nor a proven orphan a doubtful one.
func TestForkLogsWordStays(t *testing.T) {
	for _, tt := range []struct {
		how     string
		says    lineage.Fork
		want    func(sweep.Stats) bool
		asks    bool
		decided uint64
	}{
		{"session", lineage.ForkedByInit, func(st sweep.Stats) bool { return st.Unproven == 1 && st.Contradictions == 1 }, false, 1},
		{"plain", lineage.ForkedByInit, func(st sweep.Stats) bool { return st.Own == 1 }, false, 0},
		{"plain", lineage.ForkedByOther, func(st sweep.Stats) bool { return st.Adopted == 1 }, true, 1},
		{"session", lineage.ForkedByOther, func(st sweep.Stats) bool { return st.Adopted == 1 }, true, 0},
	} {
		for name, end := range map[string]func(*sweep.Sweeper, *log){
			"gap": func(_ *sweep.Sweeper, l *log) { l.says = lineage.ForkUnknown },
			"end": func(s *sweep.Sweeper, _ *log) { s.SetForkLog(nil) },
		} {
			t.Run(tt.how+", "+tt.says.String()+", "+name, func(t *testing.T) {
				p := startVictim(t)
				r := &recorder{answer: answerAll(tracer.Refused, tracer.ReasonWaiting)}
				s, c := p.sweeper(r, time.Hour)
				l := &log{says: tt.says}
				s.SetForkLog(l)
				p.do(tt.how, "(sleep 0.05; exit 9) & exit 0")
				sweepUntil(t, s, c, tt.want)
				end(s, l)
				for range 5 {
					c.now = c.now.Add(time.Hour)
					mustSweep(t, s)
				}
				if st := s.Stats(); !tt.want(st) || st.LogDecided != tt.decided {
					t.Errorf("statistics %+v, want %d decided by the log", st, tt.decided)
				}
				if asked := len(r.requests) > 0; asked != tt.asks {
					t.Errorf("asked for: %v, want %v", asked, tt.asks)
				}
			})
		}
	}
}

// Whoever lives in the session of PID 1 may leave what only a fork log can prove; an exec may not.
func TestCompanions(t *testing.T) {
	p := startVictim(t)
	s, c := p.sweeper(&recorder{}, time.Second)
	mustSweep(t, s)
	if n := s.Stats().Companions; n != 0 {
		t.Errorf("PID 1 alone has %d companions", n)
	}
	p.do("session", "sleep 1000 >/dev/null 2>&1 & exit 0")
	c.now = c.now.Add(time.Hour)
	mustSweep(t, s)
	if n := s.Stats().Companions; n != 0 {
		t.Errorf("%d companions in another session", n)
	}
	p.do("own", "exec sleep 1000")
	p.do("plain", "sleep 1000 >/dev/null 2>&1 & exit 0")
	for range 3 { // read, and remembered
		c.now = c.now.Add(time.Hour)
		mustSweep(t, s)
		if n := s.Stats().Companions; n != 2 {
			t.Errorf("%d companions, want 2", n)
		}
		c.now = c.now.Add(time.Second)
		mustSweep(t, s)
	}
}

// What only the owner can allow is taken at its age and not before, and counted.
func TestReapUnprovenAndOwn(t *testing.T) {
	for _, tt := range []struct {
		name          string
		says          lineage.Fork
		unproven, own time.Duration
		wantUnproven  uint64
		wantOwn       uint64
	}{
		{"own, allowed", lineage.ForkedByInit, 0, time.Hour, 0, 1},
		{"own, only unproven allowed", lineage.ForkedByInit, time.Hour, 0, 0, 0},
		{"unproven, allowed", lineage.ForkUnknown, time.Hour, 0, 1, 0},
		{"unproven, only own allowed", lineage.ForkUnknown, 0, time.Hour, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startVictim(t)
			r := &recorder{answer: answerAll(tracer.Reaped, "")}
			s, c := p.sweeperWith(sweep.Config{Reaper: r, ReapUnproven: tt.unproven, ReapOwn: tt.own})
			s.SetForkLog(&log{says: tt.says})
			p.do("plain", "(sleep 0.05; exit 9) & exit 0")
			sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Own+st.Unproven == 1 })
			c.now = c.now.Add(50 * time.Minute)
			mustSweep(t, s)
			if len(r.requests) != 0 {
				t.Error("asked for before its age")
			}
			c.now = c.now.Add(20 * time.Minute)
			mustSweep(t, s)
			if st := s.Stats(); st.ReapedUnproven != tt.wantUnproven || st.ReapedOwn != tt.wantOwn || st.Reaped != tt.wantOwn+tt.wantUnproven {
				t.Errorf("statistics %+v", st)
			}
		})
	}
}

// A9 of the attacks on the design: a PID 1 that collects an adopted orphan by itself is given more time for the next.
// forgetful is a /proc whose children files leave everybody out while blind, as they may while tasks come and go (proc_tid_children(5)).
type forgetful struct {
	fs.FS
	blind bool
}

func (f *forgetful) Open(name string) (fs.File, error) {
	if f.blind && path.Base(name) == "children" {
		return fstest.MapFS{name: {}}.Open(name)
	}
	return f.FS.Open(name)
}

// C10: absence from one read of a children file proves nothing: the zombie keeps its age, and PID 1 is not taken for one that
// collects orphans.
func TestAbsenceFromTheListIsNoEvidence(t *testing.T) {
	p := startVictim(t)
	proc := &forgetful{FS: os.DirFS("/proc")}
	p.proc = procfs.New(proc)
	r := &recorder{answer: answerAll(tracer.Reaped, "")}
	s, c := p.sweeper(r, time.Hour)
	p.do("session", "(sleep 0.05; exit 7) & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Adopted == 1 })
	first, _ := s.Zombies(10)
	proc.blind = true
	for range 3 {
		c.now = c.now.Add(time.Minute)
		mustSweep(t, s)
	}
	if st := s.Stats(); st.Adopted != 1 || st.Vanished != 0 || st.Grace != time.Hour {
		t.Errorf("statistics %+v, want one adopted zombie still and nothing learned", st)
	}
	proc.blind = false
	c.now = c.now.Add(time.Hour)
	mustSweep(t, s)
	if got := r.asked(); len(first) != 1 || len(got) != 1 || got[0] != first[0].PID {
		t.Errorf("asked for %v, want %v alone, an hour after it was first seen", got, first)
	}
}

// Where an answer was lost, what has vanished may have been reaped before, and says nothing of PID 1.
func TestLostAnswerTeachesNothing(t *testing.T) {
	p := startVictim(t)
	vanished := answerAll(tracer.Vanished, tracer.ReasonVanished)
	r := &recorder{answer: func(req tracer.Request) tracer.Report {
		rep := vanished(req)
		rep.Repeated = true
		return rep
	}}
	s, c := p.sweeper(r, time.Second)
	mustSweep(t, s)
	p.do("session", "(sleep 0.05; exit 7) & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Vanished > 0 })
	if got := s.Stats().Grace; got != time.Second {
		t.Errorf("grace %v, want %v", got, time.Second)
	}
}

func TestLearnedGrace(t *testing.T) {
	p := startVictim(t)
	r := &recorder{answer: answerAll(tracer.Vanished, tracer.ReasonVanished)}
	s, c := p.sweeper(r, time.Second)
	if mustSweep(t, s); s.Stats().Grace != time.Second {
		t.Errorf("grace %v before anything was learned", s.Stats().Grace)
	}
	p.do("session", "(sleep 0.05; exit 7) & exit 0")
	sweepUntil(t, s, c, func(st sweep.Stats) bool { return st.Vanished > 0 })
	if got := s.Stats().Grace; got != sweep.LearnedGrace {
		t.Errorf("grace %v after PID 1 has collected one itself, want %v", got, sweep.LearnedGrace)
	}
}
