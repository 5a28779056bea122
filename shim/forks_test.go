package shim

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// somebody returns a process that lives until the end of the test.
func somebody(t *testing.T) (pid procfs.HostPID, startTime uint64) {
	t.Helper()
	testutil.Root(t)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	pid = procfs.HostPID(cmd.Process.Pid)
	st, err := procfs.New(os.DirFS("/proc")).Stat(pid)
	if err != nil {
		t.Fatal(err)
	}
	return pid, st.StartTime
}

func TestForkLogPolicies(t *testing.T) {
	pid, start := somebody(t)
	for _, tt := range []struct {
		policy ForkLog
		fresh  bool
		source string
		reason string
	}{
		{ForkLogAuto, true, "perf", ""},
		{ForkLogPerf, true, "perf", ""},
		{ForkLogConnector, true, "connector", ""},
		{ForkLogOff, true, "none", "switched off"},
		// Restored from a checkpoint: its threads are there before the log.
		{ForkLogAuto, false, "connector", "already ran"},
		{ForkLogPerf, false, "none", "already ran"},
	} {
		f := openForks("c", pid, start, tt.policy, tt.fresh, time.Now())
		if st := f.stats(); st.Source != tt.source || !strings.Contains(st.Reason, tt.reason) || tt.reason == "" && st.Reason != "" {
			t.Errorf("%s, fresh %v: source %q, reason %q; want %q, %q", tt.policy, tt.fresh, st.Source, st.Reason, tt.source, tt.reason)
		}
		if (f.log() == nil) != (tt.source == "none") {
			t.Errorf("%s, fresh %v: log %v", tt.policy, tt.fresh, f.log())
		}
		f.close()
	}
}

// B9 of the attacks on the design: the kernel memory of the log grows with the threads of PID 1 and is not charged to its
// container, so a container must not be able to make us take any amount of it.
func TestForkLogThreadCap(t *testing.T) {
	pid, start := somebody(t)
	now := time.Now()
	f := openForks("c", pid, start, ForkLogAuto, true, now)
	defer f.close()
	if f.update(sweep.Stats{Threads: 10}, now) || f.stats().Source != "perf" {
		t.Fatal("ten threads are too many")
	}
	if !f.update(sweep.Stats{Threads: maxPerfEvents}, now) {
		t.Error("no change at the cap")
	}
	if st := f.stats(); st.Source != "connector" || !strings.Contains(st.Reason, "threads") {
		t.Errorf("state %+v, want the connector, and the threads as the reason", st)
	}
}

// A log that an exec has ended, or anything else, is noticed without a zombie that asks for it.
func TestForkLogEnds(t *testing.T) {
	testutil.Root(t)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	f := openForks("c", procfs.HostPID(cmd.Process.Pid), 1, ForkLogAuto, true, now)
	defer f.close()
	if f.update(sweep.Stats{}, now) || f.stats().Source != "perf" {
		t.Errorf("state %+v, want perf", f.stats())
	}
	in.Close()
	_ = cmd.Wait()
	if !f.update(sweep.Stats{}, now.Add(perfSync)) || f.stats().Source != "connector" || !strings.HasPrefix(f.stats().Reason, "perf: ") {
		t.Errorf("state %+v, want the connector, and perf's end as the reason", f.stats())
	}
}

// The connector costs the host something for each fork: it is listened to for as long as it may matter.
func TestConnectorIsNotKeptForEver(t *testing.T) {
	pid, start := somebody(t)
	now := time.Now()
	f := openForks("c", pid, start, ForkLogConnector, true, now)
	defer f.close()
	step := func(after time.Duration, st sweep.Stats, source string) {
		t.Helper()
		now = now.Add(after)
		f.update(st, now)
		if got := f.stats().Source; got != source {
			t.Errorf("source %q, want %q", got, source)
		}
	}
	quiet := sweep.Stats{Grace: time.Second}
	unproven := sweep.Stats{Grace: time.Second, Unproven: 1, Oldest: 2 * time.Second}
	young := sweep.Stats{Grace: time.Second, Unproven: 1, Oldest: time.Second / 2}

	step(connectorWarmup-time.Second, quiet, "connector")
	step(2*time.Second, quiet, "none")
	step(time.Hour, young, "none")
	// What turned up while it was closed shows that it is needed: it is kept from then on.
	step(time.Hour, unproven, "connector")
	step(time.Hour, quiet, "connector")
	step(time.Hour, quiet, "connector")
}

// It is kept while its word decides something: what is unproven, what nothing but it proves, and what may come from processes in
// the session of PID 1.
func TestConnectorIsKeptWhileItDecides(t *testing.T) {
	pid, start := somebody(t)
	for name, need := range map[string]func(st *sweep.Stats, round uint64){
		"unproven":   func(st *sweep.Stats, _ uint64) { st.Unproven, st.Oldest = 1, time.Hour },
		"companions": func(st *sweep.Stats, _ uint64) { st.Companions = 1 },
		"decided":    func(st *sweep.Stats, round uint64) { st.LogDecided = round },
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			f := openForks("c", pid, start, ForkLogConnector, true, now)
			defer f.close()
			var st sweep.Stats
			for round := range uint64(10) {
				st = sweep.Stats{Grace: time.Second}
				need(&st, round+1)
				now = now.Add(connectorQuiet - time.Second)
				if f.update(st, now); f.stats().Source != "connector" {
					t.Fatalf("closed: %+v", f.stats())
				}
			}
			now = now.Add(connectorQuiet + time.Second)
			if f.update(sweep.Stats{Grace: time.Second, LogDecided: st.LogDecided}, now); f.stats().Source != "none" {
				t.Errorf("not closed when nothing needs it: %+v", f.stats())
			}
			// Somebody else than PID 1 is there again: open before he leaves anything.
			if f.update(sweep.Stats{Grace: time.Second, LogDecided: st.LogDecided, Companions: 1}, now.Add(time.Second)); f.stats().Source != "connector" {
				t.Errorf("not opened again: %+v", f.stats())
			}
		})
	}
}

// A log that was closed, or went over into another, still has its word on those born in its time: a child of PID 1 does not
// become an orphan by it, and an orphan not a child.
func TestForksOutliveTheirLog(t *testing.T) {
	testutil.Root(t)
	for name, replace := range map[string]struct {
		policy ForkLog
		do     func(f *forks, now time.Time)
		after  string
	}{
		"connector closed": {ForkLogConnector, func(f *forks, now time.Time) {
			f.update(sweep.Stats{}, now.Add(connectorWarmup+time.Second))
		}, "none"},
		"perf given up": {ForkLogAuto, func(f *forks, now time.Time) {
			f.update(sweep.Stats{Threads: maxPerfEvents}, now)
		}, "connector"},
		"perf given up, then closed": {ForkLogAuto, func(f *forks, now time.Time) {
			f.update(sweep.Stats{Threads: maxPerfEvents}, now)
			f.update(sweep.Stats{}, now.Add(connectorWarmup+time.Second))
		}, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			// For each line: a child that it forked, and that child's own. Both end with the pipe that they read from.
			cmd := exec.Command("/bin/sh", "-c", `exec 3<&0; while read go <&3; do sh -c 'sh -c "echo ready; read end" <&4 & echo $$ $!; wait' 4<&5 & done`)
			gate, hold, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.ExtraFiles = []*os.File{nil, nil, gate}
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
			gate.Close()
			t.Cleanup(func() {
				hold.Close()
				in.Close()
				_ = cmd.Wait()
			})
			lines := bufio.NewScanner(out)
			proc := procfs.New(os.DirFS("/proc"))
			type process struct {
				pid   procfs.HostPID
				start uint64
			}
			family := func() (all [2]process) {
				t.Helper()
				if _, err := io.WriteString(in, "go\n"); err != nil {
					t.Fatal(err)
				}
				for seen := 0; seen < 2; {
					if !lines.Scan() {
						t.Fatal("the shell has ended")
					}
					seen++
					if lines.Text() == "ready" {
						continue
					}
					if _, err := fmt.Sscan(lines.Text(), &all[0].pid, &all[1].pid); err != nil {
						t.Fatal(err)
					}
				}
				for i := range all {
					st, err := proc.Stat(all[i].pid)
					if err != nil {
						t.Fatal(err)
					}
					all[i].start = st.StartTime
				}
				return all
			}
			st, err := proc.Stat(procfs.HostPID(cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			f := openForks("c", st.PID, st.StartTime, replace.policy, true, now)
			defer f.close()
			before := family()
			born := sweep.BootTicks()
			testutil.Eventually(t, 5*time.Second, func() (bool, string) {
				return sweep.BootTicks() > born+15, "the clock stands still"
			})
			replace.do(f, now)
			if got := f.stats().Source; got != replace.after {
				t.Fatalf("source %q, want %q", got, replace.after)
			}
			f.Sync()
			for i, want := range []lineage.Fork{lineage.ForkedByInit, lineage.ForkedByOther} {
				if got := f.Lookup(before[i].pid, before[i].start); got != want {
					t.Errorf("born before: %v, want %v", got, want)
				}
			}
			after := family()
			f.Sync()
			if got := f.Lookup(after[1].pid, after[1].start); got == lineage.ForkedByInit || got == lineage.ForkedByOther && replace.after == "none" {
				t.Errorf("a grandchild born afterwards: %v", got)
			}
			if got := f.Lookup(after[0].pid, after[0].start); got == lineage.ForkedByOther {
				t.Errorf("a child born afterwards: %v", got)
			}
		})
	}
}

func TestForkLogGivesAllBack(t *testing.T) {
	pid, start := somebody(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	for _, policy := range forkLogs {
		f := openForks("c", pid, start, policy, true, time.Now())
		f.close()
		f.close()
	}
	if after := count(); after != before {
		t.Errorf("%d open files, were %d", after, before)
	}
}

// refusedVariable, the number of a process, makes TestForkLogRefused say what becomes of a fork log of that process: a process cannot
// give up a capability for a while only.
const refusedVariable = "SHIM_TEST_REFUSED"

// Where neither source can be had, why is in the log once, and in the statistics for as long as it is so.
func TestForkLogRefused(t *testing.T) {
	testutil.Root(t)
	if of := os.Getenv(refusedVariable); of != "" {
		pid, err := strconv.Atoi(of)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		f := openForks("refused", procfs.HostPID(pid), 0, ForkLogAuto, true, now)
		for range 5 { // something is unproven, and it is tried again
			fmt.Printf("state %+v\n", f.stats())
			now = now.Add(connectorQuiet + time.Second)
			f.update(sweep.Stats{Unproven: 1, Oldest: time.Hour}, now)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := somebody(t)
	setpriv := testutil.Tool(t, "setpriv")
	child := []string{self, "-test.run", "^TestForkLogRefused$", "-test.v"}
	for name, tt := range map[string]struct {
		args    []string
		attr    syscall.SysProcAttr
		reasons []string
	}{
		"without capabilities": {
			append([]string{setpriv, "--bounding-set=-perfmon,-sys_admin,-sys_ptrace,-net_admin"}, child...), syscall.SysProcAttr{},
			[]string{"perf task log of process", "on cpu 0: no permission: ", "; proc connector for process", ": receive buffer: no permission: "},
		},
		"in another user namespace": {
			child, syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
			},
			[]string{"perf task log of process", "on cpu 0: no permission: ", "; proc connector for process", ": receive buffer: no permission: "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(tt.args[0], tt.args[1:]...)
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", refusedVariable, pid))
			cmd.SysProcAttr = &tt.attr
			data, err := cmd.CombinedOutput()
			out := string(data)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if n := strings.Count(out, "no log of the forks of PID 1"); n != 1 {
				t.Errorf("in the log %d times, want once\n%s", n, out)
			}
			states := 0
			for line := range strings.Lines(out) {
				if !strings.HasPrefix(line, "state ") {
					continue
				}
				states++
				for _, reason := range append(tt.reasons, "Source:none") {
					if !strings.Contains(line, reason) {
						t.Errorf("%swithout %q", line, reason)
					}
				}
			}
			if states != 5 {
				t.Errorf("%d states, want 5\n%s", states, out)
			}
		})
	}
}
