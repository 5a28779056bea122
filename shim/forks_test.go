package shim

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
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
	step(time.Hour, unproven, "connector")
	step(connectorQuiet-time.Second, unproven, "connector")
	step(connectorQuiet-time.Second, quiet, "connector")
	step(2*time.Second, quiet, "none")
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
