package tracer

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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

// While PID 1 stands still for us its thread goes first, and only then. What somebody else has given it meanwhile it keeps.
func TestHurry(t *testing.T) {
	for _, tc := range []struct {
		name       string
		own, given int // nice values; given in the middle of an attach, hurryNice: none is
	}{
		{"default", 0, hurryNice}, {"polite", 7, hurryNice}, {"first already", hurryNice, hurryNice}, {"reniced meanwhile", 0, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := startCrash(t, "poll", 0)
			pid := int(v.pid)
			if err := unix.Setpriority(unix.PRIO_PROCESS, pid, tc.own); err != nil {
				t.Fatal(err)
			}
			marker := filepath.Join(t.TempDir(), "held")
			c := hookedClient("swapped", "1", deedHold, marker)
			defer c.Close()
			zs := v.take(3)
			reports := make(chan Report, 1)
			go func() {
				for !done(marker) && t.Context().Err() == nil {
					rep, _ := v.reapDying(c, zs)
					if done(marker) {
						reports <- rep
					}
				}
				close(reports)
			}()
			eventually(t, "the middle of an attach", func() bool { return done(marker) })
			if n := niceOfThread(t, v.pid); n != hurryNice {
				t.Errorf("nice value %d in the middle of an attach, want %d", n, hurryNice)
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
			if n := niceOfThread(t, v.pid); n != want {
				t.Errorf("nice value %d after the attach, want %d", n, want)
			}
		})
	}
}

// A worker that dies leaves no thread with a nice value that is not its own; crashVictim.check looks at it, here with another than the
// default.
func TestHurryOfTheDead(t *testing.T) {
	for _, step := range []string{"entry", "swapped", "unmasked"} {
		t.Run(step, func(t *testing.T) {
			v := startCrash(t, "poll", 0)
			v.nice = 7
			if err := unix.Setpriority(unix.PRIO_PROCESS, int(v.pid), v.nice); err != nil {
				t.Fatal(err)
			}
			v.outlives(step, "1", deedDie)
		})
	}
}
