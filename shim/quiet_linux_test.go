package shim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

var hostProc = procfs.New(os.DirFS("/proc"))

// forksWhenTold is a process that forks a child when it reads a line, which lives until the next one.
func forksWhenTold(t *testing.T) (pid procfs.HostPID, in io.Writer) {
	t.Helper()
	testutil.Root(t)
	cmd := exec.Command("/bin/sh", "-c", "echo ready; read line; sleep 1000 & read line; kill $!; wait")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
	})
	if _, err := io.ReadFull(stdout, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	return procfs.HostPID(cmd.Process.Pid), stdin
}

func alone(pid procfs.HostPID) func(bool) bool {
	return func(bool) bool {
		children, err := hostProc.ThreadChildren(pid, pid)
		return err == nil && len(children) == 0
	}
}

// nobodyIs alone.
func nobodyIs(bool) bool { return false }

func testQuiet(t *testing.T, pid procfs.HostPID, policy ForkLog) *quiet {
	t.Helper()
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	owner := newTask("c", Config{ForkLog: policy})
	owner.pid = pid
	q := newQuiet(hostProc, owner, a)
	t.Cleanup(func() {
		q.end(time.Now())
		a.close()
	})
	return q
}

// needsTripwire skips where the kernel or the caller's capabilities do not allow one.
func needsTripwire(t *testing.T, q *quiet) {
	t.Helper()
	if q.off {
		testutil.Lacks(t, "no tripwire can be had", "run as root on Linux 5.8 or newer")
	}
}

// spin is more exact than a timer.
func spin(began time.Time, d time.Duration) {
	for time.Since(began) < d {
		goruntime.Gosched()
	}
}

// PID 1 forks at any instant while the quiet begins, or later: it is seen, or it rings.
func TestQuietMissesNoFork(t *testing.T) {
	const rounds = 150
	quiets := 0
	for round := range rounds {
		pid, in := forksWhenTold(t)
		q := testQuiet(t, pid, ForkLogAuto)
		q.calm = 0
		// A fork takes a millisecond from the line on.
		lead := time.Duration(rand.IntN(4000)-500) * time.Microsecond
		told := make(chan error, 1)
		began := time.Now()
		tell := func() {
			spin(began, max(0, -lead))
			_, err := fmt.Fprintln(in)
			told <- err
		}
		go tell()
		spin(began, max(0, lead))
		only := alone(pid)
		on := q.looked(only(true), only, time.Now())
		needsTripwire(t, q)
		if on {
			quiets++
			select {
			case <-q.alarm.C:
				if !q.broken() {
					t.Errorf("round %d, %v: it rings for nothing", round, lead)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("round %d, %v: it forked, and nobody was told", round, lead)
			}
		}
		if err := <-told; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("quiet in %d of %d rounds", quiets, rounds)
	if quiets == 0 || quiets == rounds {
		t.Errorf("quiet in %d of %d rounds: the instants are badly chosen", quiets, rounds)
	}
}

func TestQuietBeginsAndEnds(t *testing.T) {
	pid, in := forksWhenTold(t)
	q := testQuiet(t, pid, ForkLogPerf)
	only, at := alone(pid), time.Now()
	look := func(nothing bool, after time.Duration) bool {
		at = at.Add(after)
		on := q.looked(nothing, only, at)
		needsTripwire(t, q)
		if on != (q.wire != nil) {
			t.Fatalf("quiet: %v, but the tripwire is %v", on, q.wire)
		}
		return on
	}
	if look(true, 0) || look(true, leastCalm-1) {
		t.Error("it begins too early")
	}
	if !look(true, 1) || !look(true, quietLook) || !q.lasts(only) || q.lasts(nobodyIs) {
		t.Error("it does not begin, or not go on")
	}
	if look(false, steadyAfter) || look(true, 0) || look(true, leastCalm-1) {
		t.Error("it goes on below a PID 1 with a child")
	}
	if !look(true, 1) {
		t.Error("it does not begin again")
	}
	if _, err := fmt.Fprintln(in); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 10*time.Second, func() (bool, string) { return q.broken() && !only(true), "no fork" })
	if q.lasts(func(bool) bool { return true }) || look(true, 0) {
		t.Error("it goes on after a fork")
	}
	// It lasted for too short a time: the next has to be worth it.
	if _, err := fmt.Fprintln(in); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		_, err := hostProc.Stat(pid)
		return err != nil || only(true), "the child is still there"
	})
	if look(true, 0) || look(true, 2*leastCalm-1) {
		t.Error("it begins as early as before")
	}
	for range 20 {
		q.longer()
	}
	if q.calm != mostCalm {
		t.Errorf("it waits for %v, want at most %v", q.calm, mostCalm)
	}
}

// Somebody in a cgroup of the namespace who is no child of PID 1.
func TestQuietNeedsToBeOnly(t *testing.T) {
	pid, _ := forksWhenTold(t)
	q := testQuiet(t, pid, ForkLogAuto)
	q.calm = 0
	if q.looked(true, nobodyIs, time.Now()) {
		t.Error("it begins while somebody else is there")
	}
	q.calm = 0
	if !q.looked(true, alone(pid), time.Now()) {
		needsTripwire(t, q)
		t.Fatal("it does not begin")
	}
	if q.looked(true, nobodyIs, time.Now().Add(quietLook)) {
		t.Error("it goes on while somebody else is there")
	}
	if !q.looked(true, alone(pid), time.Now().Add(quietLook)) {
		t.Error("it is not quiet as soon as he has gone")
	}
}

// No perf event is opened where the owner of the node does not want any.
func TestQuietPolicies(t *testing.T) {
	pid, _ := forksWhenTold(t)
	for policy, want := range map[ForkLog]bool{ForkLogAuto: true, ForkLogPerf: true, ForkLogConnector: false, ForkLogOff: false} {
		q := testQuiet(t, pid, policy)
		if want {
			needsTripwire(t, q)
		}
		q.calm = 0
		if got := q.looked(true, alone(pid), time.Now()); got != want {
			t.Errorf("%s: quiet %v, want %v", policy, got, want)
		}
	}
}
