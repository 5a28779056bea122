package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

const (
	budgetFile = "testdata/budgets.json"
	// budgetEnv set to "write" has the test write what it measured, with slack, instead of comparing it.
	budgetEnv = "REAPER_BUDGETS"
)

// budgets are what things may cost at most. None depends on how fast or busy the machine is, or not by as much as its slack.
type budgets struct {
	// AllocationsPerLook of a sweep that finds nothing to do.
	AllocationsPerLook float64 `json:"allocationsPerLook"`
	// SyscallsPerLook of a shim with a container in which PID 1 has a child and nothing happens, with its share of what comes every 5
	// and 10 s. System calls of Go's scheduler do not count.
	SyscallsPerLook float64 `json:"syscallsPerLook"`
	// LooksPerMinute and SyscallsPerMinute of a shim with a container in which PID 1 is alone. Context switches are no budget: on a busy
	// machine Go's runtime makes several times as many for the same work.
	LooksPerMinute    float64 `json:"looksPerMinute"`
	SyscallsPerMinute float64 `json:"syscallsPerMinute"`
	// SyscallsPerStart of a shim that starts one more container, those of runc not counted, as a multiple of runc.v2's.
	SyscallsPerStart float64 `json:"syscallsPerStartRatio"`
	// ProgramBytes is the size of the shim's program.
	ProgramBytes float64 `json:"programBytes"`
	// Resident and PrivateDirty are the memory of an idle shim as a multiple of runc.v2's.
	Resident     float64 `json:"residentRatio"`
	PrivateDirty float64 `json:"privateDirtyRatio"`
}

// slack is by what factor a budget is above what was measured for it.
var slack = budgets{
	AllocationsPerLook: 1.1, SyscallsPerLook: 1.25, LooksPerMinute: 2.5, SyscallsPerMinute: 2, SyscallsPerStart: 1.3,
	ProgramBytes: 1.03, Resident: 1.3, PrivateDirty: 1.45,
}

// TestBudgets fails when our shim costs more than it did when the budgets were written.
func TestBudgets(t *testing.T) {
	strace, err := osexec.LookPath("strace")
	if err != nil {
		testutil.Lacks(t, "no strace", "make deps")
	}
	d := daemon(t)
	var got budgets

	program, err := testutil.FindTool("containerd-shim-reaper-v2")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	got.ProgramBytes = float64(info.Size())

	off := map[string]string{"io.containerd.reaper.mode": "off"}
	got.AllocationsPerLook = allocationsPerLook(t, run(t, d, harness.Spec{Runtime: harness.ReaperRuntime, Args: []string{"/bin/pause1", "poll"}, Annotations: off}))

	parent, err := run(t, d, harness.Spec{Runtime: harness.ReaperRuntime, Args: []string{"/bin/pause1", "poll", "--", "/bin/goodinit"}}).Shim()
	if err != nil {
		t.Fatal(err)
	}
	got.SyscallsPerLook = perLook(t, strace, parent.PID)

	resident, dirty, calls := map[string]float64{}, map[string]float64{}, map[string]float64{}
	for _, runtime := range []string{harness.RuncRuntime, harness.ReaperRuntime} {
		pod := map[string]string{harness.SandboxAnnotation: "budget-" + runtime}
		spec := harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}, Annotations: pod}
		shim, err := run(t, d, spec).Shim()
		if err != nil {
			t.Fatal(err)
		}
		if runtime == harness.ReaperRuntime {
			inQuiet(t, shim.PID, 1)
		}
		waitIdle(t, shim.PID)
		if runtime == harness.ReaperRuntime {
			perMinute(t, strace, shim.PID, &got)
		}
		resident[runtime], dirty[runtime] = budgetMemory(t, shim.PID)
		var counts []float64
		for range 3 {
			counts = append(counts, traced(t, strace, shim.PID, func() { run(t, d, spec) }).sum())
		}
		slices.Sort(counts)
		calls[runtime] = counts[1]
	}
	got.Resident = resident[harness.ReaperRuntime] / resident[harness.RuncRuntime]
	got.PrivateDirty = dirty[harness.ReaperRuntime] / dirty[harness.RuncRuntime]
	got.SyscallsPerStart = calls[harness.ReaperRuntime] / calls[harness.RuncRuntime]
	t.Logf("measured: %+v (system calls of a start: %v)", got, calls)

	if os.Getenv(budgetEnv) == "write" {
		writeBudgets(t, got)
		return
	}
	text, err := os.ReadFile(budgetFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range exceeded(t, got, text) {
		t.Errorf("%s. If that is worth it: %s=write make test-integration RUN=TestBudgets, and say why in the commit", problem, budgetEnv)
	}
}

// numbers returns the fields by their JSON names.
func (b budgets) numbers(t *testing.T) map[string]float64 {
	t.Helper()
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// exceeded compares what was measured with a budget file, which has to name all of it.
func exceeded(t *testing.T, got budgets, file []byte) []string {
	t.Helper()
	var allowed map[string]float64
	if err := json.Unmarshal(file, &allowed); err != nil {
		t.Fatalf("%s: %v", budgetFile, err)
	}
	var problems []string
	for name, n := range got.numbers(t) {
		most, ok := allowed[name]
		switch {
		case !ok:
			problems = append(problems, fmt.Sprintf("%s: no budget in %s", name, budgetFile))
		case n > most || math.IsNaN(n):
			problems = append(problems, fmt.Sprintf("%s: %.4g, the budget is %.4g", name, n, most))
		}
	}
	slices.Sort(problems)
	return problems
}

func writeBudgets(t *testing.T, got budgets) {
	t.Helper()
	factors := slack.numbers(t)
	numbers := got.numbers(t)
	for name := range numbers {
		// Three digits are enough, rounded up.
		scale := math.Pow(10, math.Floor(math.Log10(numbers[name]*factors[name]))-2)
		numbers[name] = math.Round(math.Ceil(numbers[name]*factors[name]/scale)*scale*1000) / 1000
	}
	text, err := json.MarshalIndent(numbers, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(budgetFile, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// exactForks is a fork log that has heard of everything.
type exactForks struct{}

func (exactForks) Sync()                                      {}
func (exactForks) Lookup(procfs.HostPID, uint64) lineage.Fork { return lineage.ForkUnknown }
func (exactForks) Exact() bool                                { return true }

// allocationsPerLook looks at an idle container as its shim would.
func allocationsPerLook(t *testing.T, c *harness.Container) float64 {
	t.Helper()
	proc := procfs.New(os.DirFS("/proc"))
	pid := procfs.HostPID(c.PID)
	st, err := proc.Stat(pid)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := proc.Cgroups(pid)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s, err := sweep.New(sweep.Config{
		Proc: proc, Init: lineage.Init{PID: pid, SessionLeader: true}, InitStartTime: st.StartTime, Grace: time.Second,
		Now: func() time.Time { return now }, // so that no look is one of those that come every 10 s
	})
	if err != nil {
		t.Fatal(err)
	}
	s.SetForkLog(exactForks{})
	if cgroup := sweep.FindCgroup(procfs.DirectFS("/sys/fs/cgroup"), lines); cgroup != nil {
		s.SetCgroups([]*sweep.Cgroup{cgroup})
	}
	return testing.AllocsPerRun(100, func() {
		if _, err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// waitIdle waits until a shim has done what it does after a start, which ours knows by letting pages of the program go.
func waitIdle(t *testing.T, pid int) {
	t.Helper()
	last, since := int64(-1), time.Now()
	testutil.Eventually(t, 30*time.Second, func() (bool, string) {
		if n := voluntary(t, pid); n > last+20 || last < 0 {
			last, since = n, time.Now()
		}
		return time.Since(since) > 8*time.Second, "it is at work"
	})
}

// perLook traces a shim that looks for a while. Each look sets one timer.
func perLook(t *testing.T, strace string, pid int) float64 {
	t.Helper()
	const looks = 22 // 11 s, with one of those that come every 10 s
	during(t, 8*time.Second)
	c := traced(t, strace, pid, func() { during(t, looks*sweep.DefaultFar) })
	n := c["timerfd_settime"]
	if n < looks/2 {
		t.Fatalf("%v looks while %d were expected: %v", n, looks, c)
	}
	return c.sum() / n
}

// perMinute traces an idle shim for a while.
func perMinute(t *testing.T, strace string, pid int, got *budgets) {
	t.Helper()
	const while = 2 * quietLook
	c := traced(t, strace, pid, func() { during(t, while) })
	got.SyscallsPerMinute = c.sum() / while.Minutes()
	got.LooksPerMinute = c["timerfd_settime"] / while.Minutes()
	if got.LooksPerMinute == 0 {
		t.Fatalf("no look in %v: %v", while, c)
	}
}

// during is for what is counted over time.
func during(t *testing.T, while time.Duration) {
	t.Helper()
	began := time.Now()
	testutil.Eventually(t, while+30*time.Second, func() (bool, string) { return time.Since(began) > while, "counting" })
}

// voluntary adds up the voluntary context switches of all threads.
func voluntary(t *testing.T, pid int) (sum int64) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
				if err != nil {
					t.Fatalf("%s: %v", f, err)
				}
				sum += n
			}
		}
	}
	return sum
}

func budgetMemory(t *testing.T, pid int) (resident, privateDirty float64) {
	t.Helper()
	m, err := harness.MemoryOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Private_Dirty:"); ok {
			kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			privateDirty = float64(kb) * 1024
		}
	}
	if m.RSS == 0 || privateDirty == 0 {
		t.Fatalf("memory of %d: %+v, private dirty %v", pid, m, privateDirty)
	}
	return float64(m.RSS), privateDirty
}

// calls are numbers of system calls by name.
type calls map[string]float64

// schedulers are the calls of Go's scheduler: how many there are is a matter of chance and of load.
var schedulers = []string{
	"futex", "nanosleep", "epoll_pwait", "sched_yield", "tgkill", "getpid", "rt_sigreturn", "madvise", "restart_syscall", "rt_sigprocmask", "clock_gettime",
}

func (c calls) sum() (sum float64) {
	for name, n := range c {
		if !slices.Contains(schedulers, name) {
			sum += n
		}
	}
	return sum
}

// traced counts the system calls of the threads that a process has, while f runs. Its children are not followed.
func traced(t *testing.T, strace string, pid int, f func()) calls {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	out := filepath.Join(t.TempDir(), "calls")
	args := []string{"-c", "-U", "calls,name", "-o", out}
	for _, thread := range threads {
		args = append(args, "-p", filepath.Base(thread))
	}
	cmd := osexec.Command(strace, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Discard, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(syscall.SIGINT)
			_ = cmd.Wait() // it ends by the signal
		}
	}
	t.Cleanup(end)
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		for _, thread := range threads {
			text, err := os.ReadFile(thread + "/status")
			if err == nil && strings.Contains(string(text), "TracerPid:\t0\n") {
				return false, "strace has not begun"
			}
		}
		return true, ""
	})
	f()
	end()
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatalf("strace: %v: %s", err, said.Bytes())
	}
	c := parseCalls(string(text))
	if len(c) == 0 {
		t.Fatalf("strace counted nothing: %s", text)
	}
	return c
}

// parseCalls reads the table of strace -c -U calls,name.
func parseCalls(table string) calls {
	c := calls{}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) != 2 || f[1] == "total" {
			continue
		}
		if n, err := strconv.ParseFloat(f[0], 64); err == nil {
			c[f[1]] += n
		}
	}
	return c
}

func TestBudgetsExceeded(t *testing.T) {
	one := budgets{1, 1, 1, 1, 1, 1, 1, 1}
	all, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	if p := exceeded(t, one, all); len(p) > 0 {
		t.Errorf("what is just within its budget: %q", p)
	}
	more := one
	more.Resident = 1.1
	if p := exceeded(t, more, all); len(p) != 1 || !strings.Contains(p[0], "residentRatio: 1.1") {
		t.Errorf("more resident memory: %q", p)
	}
	if n := len(slack.numbers(t)); len(exceeded(t, one, []byte("{}"))) != n || n != 8 {
		t.Errorf("no budgets at all: want %d complaints", n)
	}
	c := parseCalls("    calls syscall\n--------- ----------------\n       44 openat\n       12 futex\n--------- ----------------\n       56 total\n")
	if c.sum() != 44 || c["futex"] != 12 {
		t.Errorf("%v, want 44 calls besides the scheduler's", c)
	}
}
