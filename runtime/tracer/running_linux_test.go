package tracer

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const sigRTMin = 34 // SIGRTMIN of glibc, which keeps two for itself

// A PID 1 that never waits for anything: victim.c, "serve".

// served ends the server and checks that each of its calls has done what it must. A finite epoll_wait may end with EINTR when it is
// stopped; that happens where an attach ends without having come to anything.
func served(t *testing.T, v *victim, mayEINTR, signals int) {
	t.Helper()
	v.poke()
	var rounds, eintr, bad, got int
	line := v.expect("served")
	if _, err := fmt.Sscanf(line, "%d %d %d %d", &rounds, &eintr, &bad, &got); err != nil {
		t.Fatalf("served %q: %v", line, err)
	}
	if rounds == 0 || bad != 0 || eintr > mayEINTR || got != signals {
		t.Errorf("%d rounds, %d EINTR (at most %d), %d wrong results, %d of %d signals", rounds, eintr, mayEINTR, bad, got, signals)
	}
}

// TestRunning: a PID 1 that is never parked is made to reap between two of its calls, if that is asked for.
func TestRunning(t *testing.T) {
	n := 300 / int(testutil.Slow(1))
	v := startVictim(t, "serve", fmt.Sprint(n))
	v.expect("ready")
	zs := v.orphans(n)
	c := newClient(t)
	declined := 0
	for range 20 {
		// By chance it may sleep: nobody has written to its event counter yet.
		if rep := reap(t, c, v.request(zs[0])); rep.Reason == ReasonBusy && !rep.Attached {
			declined++
		} else if rep.Count(Reaped) == 1 {
			zs = zs[1:]
		}
	}
	if declined == 0 {
		t.Error("never found at work: the test shows nothing")
	}
	attaches, busy, signals := 0, 0, 0
	var longest time.Duration
	for deadline := time.Now().Add(patience); len(zs) > 0 && time.Now().Before(deadline); {
		req := v.request(zs...)
		req.MaxStop, req.Running = 500*time.Microsecond, true
		// Real-time signals are queued, each of them.
		for range 3 {
			if err := unix.Kill(int(v.pid), unix.Signal(sigRTMin)); err != nil {
				t.Fatal(err)
			}
			signals++
		}
		rep := reap(t, c, req)
		if rep.Attached {
			attaches++
			longest = max(longest, rep.Stopped)
		}
		switch rep.Reason {
		case "":
			if !strings.HasPrefix(rep.Syscall, "epoll_") {
				t.Errorf("stopped in %q", rep.Syscall)
			}
		case ReasonBusy, ReasonSignal, ReasonTimeout: // timeout: it had no CPU
			busy++
		default:
			t.Fatalf("%+v", rep)
		}
		zs = slices.DeleteFunc(zs, func(z Zombie) bool {
			return slices.ContainsFunc(rep.Results, func(r Result) bool { return r.PID == z.PID && r.Outcome == Reaped })
		})
	}
	if len(zs) > 0 {
		t.Errorf("%d zombies left after %d attaches", len(zs), attaches)
	}
	t.Logf("%d reaped in %d attaches (%d busy), longest stop %v", n, attaches, busy, longest)
	served(t, v, busy+signals, signals)
}

// TestRunningSpin: a loop without system calls is let go again at once.
func TestRunningSpin(t *testing.T) {
	v := startVictim(t, "spin", "1")
	v.expect("ready")
	req := v.request(v.orphans(1)...)
	req.Running = true
	c := newClient(t)
	for range 20 {
		rep := reap(t, c, req)
		if rep.Reason != ReasonBusy || rep.Results[0].Outcome != Left {
			t.Fatalf("%+v, want reason %q", rep, ReasonBusy)
		}
	}
	if st, err := liveProc.Status(v.pid); err != nil || st.TracerPid != 0 {
		t.Errorf("traced by %d afterwards (%v)", st.TracerPid, err)
	}
}

// TestRunningWaits: what goes into a call that may not be touched is not stopped in it. This one would end with EINTR.
func TestRunningWaits(t *testing.T) {
	const attaches = 60
	v := startVictim(t, "sigwaiter", "1")
	v.expect("ready")
	req := v.request(v.orphans(1)...)
	req.Running = true
	c := newClient(t)
	attached, reasons := 0, map[Reason]int{}
	for deadline := time.Now().Add(patience); attached < attaches && time.Now().Before(deadline); {
		if rep := reap(t, c, req); rep.Attached {
			attached++
			reasons[rep.Reason]++
		}
	}
	v.poke()
	var rounds, cut int
	if _, err := fmt.Sscanf(v.expect("waited"), "%d %d", &rounds, &cut); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d attaches, %v; %d waits, %d of them cut short", attached, reasons, rounds, cut)
	// What stops it first may find it on its way into the wait, where it does not show, and does so most of the time where that is slow. Else
	// all of them would be.
	limit := attached / 3
	if testutil.Slow(1) > 1 {
		limit = 9 * attached / 10
	}
	if cut > limit || attached < attaches/2 {
		t.Errorf("%d waits cut short in %d attaches", cut, attached)
	}
}

// TestRunningCrash: the worker dies at each step of an attach to a PID 1 that runs.
func TestRunningCrash(t *testing.T) {
	v := startVictim(t, "serve", fmt.Sprint(20*len(swapSteps)))
	v.expect("ready")
	attaches := 0
	for _, step := range swapSteps {
		for _, at := range []string{"1", "2"} {
			t.Run(step+"/"+at, func(t *testing.T) {
				marker := filepath.Join(t.TempDir(), "died")
				c := hookedClient(step, at, deedDie, marker)
				defer c.Close()
				for deadline := time.Now().Add(patience); !done(marker); attaches++ {
					if time.Now().After(deadline) {
						t.Fatal("the worker never came to that step")
					}
					req := v.request(v.children(orphanCode)[:3]...)
					req.Running = true
					if _, err := c.Reap(t.Context(), req); err != nil {
						t.Error(err)
					}
				}
				if c.Recovered() == 0 {
					t.Error("nothing was recovered")
				}
			})
		}
	}
	served(t, v, 2*attaches, 0)
}
