package tracer

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

func niceOfThread(t testing.TB, tid procfs.HostPID) int {
	t.Helper()
	n, err := niceOf(int(tid))
	if err != nil {
		t.Fatalf("nice value of thread %d: %v", tid, err)
	}
	return n
}

// held has n zombies reaped by a worker that comes to a step and stays there for holdFor, and returns when it is there.
func (v *crashVictim) held(step string, n int) <-chan Report {
	v.t.Helper()
	marker := filepath.Join(v.t.TempDir(), "held")
	c := hookedClient(step, "1", deedHold, marker)
	v.t.Cleanup(func() { c.Close() })
	zs := v.take(n)
	reports := make(chan Report, 1)
	go func() {
		for !done(marker) && v.t.Context().Err() == nil {
			rep, _ := v.reapDying(c, zs)
			if done(marker) {
				reports <- rep
			}
		}
		close(reports)
	}()
	eventually(v.t, "the worker is at "+step, func() bool { return done(marker) })
	return reports
}

// While PID 1 stands still for us its thread goes first, and only then, if its nice value is the default. What somebody else has given it
// meanwhile it keeps.
func TestHurry(t *testing.T) {
	for _, tc := range []struct {
		name        string
		own, middle int // nice values, middle in the middle of an attach
		given       int // then, by somebody else; hurryNice: none is
	}{
		{"default", 0, hurryNice, hurryNice}, {"polite", 7, 7, hurryNice}, {"first already", hurryNice, hurryNice, hurryNice},
		{"reniced meanwhile", 0, hurryNice, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := startCrash(t, "poll", 0)
			pid := int(v.pid)
			if err := unix.Setpriority(unix.PRIO_PROCESS, pid, tc.own); err != nil {
				t.Fatal(err)
			}
			reports := v.held("swapped", 3)
			if n := niceOfThread(t, v.pid); n != tc.middle {
				t.Errorf("nice value %d in the middle of an attach, want %d", n, tc.middle)
			}
			want := tc.own
			if tc.given != hurryNice {
				want = tc.given
				if err := unix.Setpriority(unix.PRIO_PROCESS, pid, want); err != nil {
					t.Fatal(err)
				}
			}
			if rep := <-reports; rep.Count(Reaped) == 0 {
				t.Errorf("nothing was reaped: %+v", rep)
			}
			v.nice = want
			v.ownSched(v.pid)
		})
	}
}

// TestHurryNeedsItsRight: a worker that could not end it does not begin it.
func TestHurryNeedsItsRight(t *testing.T) {
	v := startCrash(t, "poll", 0)
	v.some = 4
	rep, err := v.reapDying(without(t, unix.CAP_SYS_NICE), v.take(100))
	if err != nil || rep.Count(Reaped) == 0 {
		t.Errorf("report %+v, %v", rep, err)
	}
	v.check()
}

// Where a request allows several attaches the thread goes first from the first of them to the end of the last, unless what it forks then
// could inherit something.
func TestHurryLasts(t *testing.T) {
	for _, tc := range []struct {
		name         string
		own, between int // nice values
		policy       int
	}{
		{"default", 0, hurryNice, schedOther}, {"polite", 7, 7, schedOther}, {"resets its children itself", 0, 0, schedOther | resetOnFork},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := startCrash(t, "poll", 0)
			v.nice, v.some = tc.own, 4
			if err := errors.Join(unix.Setpriority(unix.PRIO_PROCESS, int(v.pid), tc.own), setPolicy(int(v.pid), tc.policy)); err != nil {
				t.Fatal(err)
			}
			reports := v.held("between", 100)
			if n := niceOfThread(t, v.pid); n != tc.between {
				t.Errorf("nice value %d between two attaches, want %d", n, tc.between)
			}
			// What it forks meanwhile is as it would be without us.
			v.usr1++
			unix.Kill(int(v.pid), unix.SIGUSR1)
			if got, want := v.expect("back"), v.well(); got != want {
				t.Errorf("PID 1 says %s, want %s", got, want)
			}
			if rep := <-reports; rep.Count(Reaped) == 0 {
				t.Errorf("nothing was reaped: %+v", rep)
			}
			if n := niceOfThread(t, v.pid); n != tc.own {
				t.Errorf("nice value %d after the request, want %d", n, tc.own)
			}
			if policy, err := policyOf(int(v.pid)); err != nil || policy != tc.policy {
				t.Errorf("policy %#x after the request, want %#x; %v", policy, tc.policy, err)
			}
		})
	}
}

// A worker that dies leaves no thread with a nice value that is not its own; crashVictim.check looks at it, here also with another than the
// default, and where it was to last.
func TestHurryOfTheDead(t *testing.T) {
	for _, tc := range []struct {
		step, at   string
		nice, some int
	}{
		{"entry", "1", 7, 0}, {"swapped", "1", 7, 0}, {"unmasked", "1", 7, 0},
		{"entry", "1", 0, 4}, {"swapped", "2", 0, 4}, {"between", "1", 0, 4}, {"between", "2", 0, 4},
	} {
		t.Run(fmt.Sprintf("%s %s nice %d attaches %d", tc.step, tc.at, tc.nice, tc.some), func(t *testing.T) {
			v := startCrash(t, "poll", 0)
			v.nice, v.some = tc.nice, tc.some
			if err := unix.Setpriority(unix.PRIO_PROCESS, int(v.pid), v.nice); err != nil {
				t.Fatal(err)
			}
			v.outlives(tc.step, tc.at, deedDie)
		})
	}
}

// Where PID 1 is gone there is nothing to put back, and nobody waits for it.
func TestHurryOfTheGone(t *testing.T) {
	for _, step := range []string{"between", "swapped"} {
		t.Run(step, func(t *testing.T) {
			v := startCrash(t, "poll", 0)
			v.some = 4
			marker := filepath.Join(t.TempDir(), "died")
			c := hookedClient(step, "1", deedEnd, marker)
			began := time.Now()
			rep, err := v.dieAt(c, 60, marker)
			c.Close()
			if took := time.Since(began); took > testutil.Slow(recoverPatience/4) {
				t.Errorf("%v until %+v, %v", took, rep, err)
			}
			<-v.done
		})
	}
}
