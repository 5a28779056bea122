package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

const (
	// stormEnv is how long the leak of TestStormLong goes on; without it, it does not run. stormZombiesEnv is the number of
	// zombies that it begins with.
	stormEnv        = "REAPER_STORM"
	stormZombiesEnv = "REAPER_STORM_ZOMBIES"
)

// backlog counts the children of a PID 1 that has none but zombies, at the cost of one read for 600 of them.
func backlog(t *testing.T, c *harness.Container) int {
	t.Helper()
	n := 0
	pid := procfs.HostPID(c.PID)
	err := procfs.New(os.DirFS("/proc")).EachChild(pid, pid, func(procfs.HostPID) bool {
		n++
		return true
	})
	if err != nil {
		t.Fatalf("children of container %s: %v", c.ID(), err)
	}
	return n
}

// tasks counts the tasks of the machine, zombies included (proc_loadavg(5)): to count the children of a PID 1 that has very many stops who
// forks and who reaps.
func tasks(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	_, rest, _ := strings.Cut(string(data), "/")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatalf("/proc/loadavg: %q: %v", data, err)
	}
	return n
}

// workedOff waits until PID 1 has no more than left children, and calls seen from time to time. It looks at the first ones only: to read on in a long
// list the kernel walks it from its beginning for each page, with tasklist_lock held (get_children_pid() in fs/proc/array.c), and those
// who reap wait.
func workedOff(t *testing.T, c *harness.Container, left int, within time.Duration, seen func()) {
	t.Helper()
	pid := procfs.HostPID(c.PID)
	testutil.Eventually(t, within, func() (bool, string) {
		seen()
		n := 0
		err := procfs.New(os.DirFS("/proc")).EachChild(pid, pid, func(procfs.HostPID) bool {
			n++
			return n <= left
		})
		if err != nil {
			t.Fatalf("children of container %s: %v", c.ID(), err)
		}
		return n <= left, fmt.Sprintf("PID 1 has more than %d children", left)
	})
}

// TestStorm: thousands of zombies at once are gone soon, PID 1 is never stopped for long, and neither events nor the log become a
// storm of their own.
func TestStorm(t *testing.T) {
	const (
		count = 2500
		// A stop is meant to take 5 ms; the machine may have other things to do than to let it end.
		maxStop = 250 * time.Millisecond
		burst   = 200 // the defaults of orphanEventBurst and orphanEventRate
		rate    = 50
	)
	d := daemon(t)
	name := reaper(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{Runtime: name, Args: []string{"/bin/pause1", "poll"}})
	began := time.Now()
	if r := exec(t, c, "/bin/storm", "-n", fmt.Sprint(count), "-j", "2"); r.Stdout != fmt.Sprintf("orphans %d\n", count) {
		t.Fatalf("the storm says %q", r.Stdout)
	}
	forked, most := time.Since(began), backlog(t, c)
	workedOff(t, c, 0, time.Minute, func() {})
	took := time.Since(began)
	final := finalStats(t, events, c)
	if final.GetReapedByTracer() != count || final.GetVanished() != 0 || final.GetContradictions() != 0 {
		t.Errorf("%d reaped, %d vanished, %d contradictions; want %d, 0 and 0", final.GetReapedByTracer(), final.GetVanished(),
			final.GetContradictions(), count)
	}
	stop := final.GetLongestStop().AsDuration()
	if stop > maxStop {
		t.Errorf("PID 1 was stopped for %v, want at most %v", stop, maxStop)
	}
	// Two attaches for each zombie would mean that batches are none.
	if n := final.GetAttaches(); n == 0 || n > count/2 {
		t.Errorf("%d attaches for %d zombies", n, count)
	}
	sent, dropped := len(events.OrphanExits(c.ID())), int(final.GetOrphanEventsDropped())
	limit := burst + int(rate*(took+time.Second).Seconds())
	if sent+dropped != count || sent > limit {
		t.Errorf("%d exits sent and %d left out of %d, want at most %d sent", sent, dropped, count, limit)
	}
	lines := 0
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(line, "id="+c.ID()+" ") || strings.Contains(line, "id="+c.ID()+"\n") {
			lines++
		}
	}
	if lines > limit+50 {
		t.Errorf("%d lines in the log, want at most %d", lines, limit+50)
	}
	t.Logf("%d orphans forked in %v, at most %d at once, all gone after %v: %d attaches, longest stop %v, refusals %v, %d log lines",
		count, forked.Round(time.Millisecond), most, took.Round(time.Millisecond), final.GetAttaches(), stop, final.GetRefusals(), lines)
}

// TestBusyLeak: 300 orphans a second below an event loop that has a handler for SIGCHLD. Most attaches end early, with the signal of
// the next orphan; the zombies go all the same, and PID 1 misses no signal and keeps its own child.
func TestBusyLeak(t *testing.T) {
	const (
		rate    = 300
		seconds = 6
		leakers = 3
	)
	d := daemon(t)
	name := reaper(t)
	events := subscribe(t, d)
	for _, args := range [][]string{{"/bin/busy"}, {"/bin/busy", "-w", "500"}, {"/bin/busy", "-t"}} {
		t.Run(strings.TrimPrefix(strings.Join(args, " "), "/bin/"), func(t *testing.T) {
			c := run(t, d, harness.Spec{Runtime: name, Args: args})
			var child int
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				_, err := fmt.Sscanf(c.Stdout.String(), "child is %d", &child)
				return err == nil, fmt.Sprintf("busy says %q", c.Stdout.String())
			})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			var leaks []*harness.Exec
			for range leakers {
				e, err := c.StartExec(ctx, "/bin/leak", "-n", fmt.Sprint(rate*seconds/leakers), "-r", fmt.Sprint(rate/leakers))
				if err != nil {
					t.Fatal(err)
				}
				leaks = append(leaks, e)
			}
			done := make(chan error, 1)
			go func() {
				var errs []error
				for _, e := range leaks {
					r, err := e.Finish(ctx)
					if err == nil && r.Code != 0 {
						err = fmt.Errorf("leak: exit code %d, %s", r.Code, r.Stderr)
					}
					errs = append(errs, err)
				}
				done <- errors.Join(errs...)
			}()
			most := 0
			ticker := time.NewTicker(100 * time.Millisecond)
			defer ticker.Stop()
			for leaking := true; leaking; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
					leaking = false
				case <-ticker.C:
					most = max(most, backlog(t, c))
				}
			}
			ended := time.Now()
			workedOff(t, c, 1, 30*time.Second, func() {}) // the own one
			t.Logf("at most %d at once, all gone %v after the last", most, time.Since(ended).Round(time.Millisecond))

			exec(t, c, "/bin/sh", "-c", fmt.Sprintf("kill %d", child))
			status, err := c.Wait(ctx)
			if err != nil || status.ExitCode() != 0 {
				t.Errorf("PID 1 ended with %d, %v; it says %q", status.ExitCode(), err, c.Stdout.String()+c.Stderr.String())
			}
			var got, signals int
			lines := strings.SplitAfterN(c.Stdout.String(), "\n", 2)
			if _, err := fmt.Sscanf(lines[len(lines)-1], "child %d, signals %d", &got, &signals); err != nil || got != int(syscall.SIGTERM) || signals == 0 {
				t.Errorf("busy says %q, want the status of its child, killed by SIGTERM", c.Stdout.String())
			}
			final := finalStats(t, events, c)
			t.Logf("%d attaches, longest stop %v, refusals %v; %d signals", final.GetAttaches(), final.GetLongestStop().AsDuration(),
				final.GetRefusals(), signals)
			if n := final.GetReapedByTracer(); n != rate*seconds {
				t.Errorf("%d reaped, want %d", n, rate*seconds)
			}
		})
	}
}

// TestPauseUnderAttaches: a container that is paused while its zombies are reaped is not frozen in the middle of an attach: its PID 1 would have
// the registers of another call for as long as it is.
func TestPauseUnderAttaches(t *testing.T) {
	const (
		pauses = 8
		pause  = 1300 * time.Millisecond // longer than the tracer waits for a stop
	)
	d := daemon(t)
	events := subscribe(t, d)
	c := run(t, d, harness.Spec{Runtime: reaper(t), Args: []string{"/bin/pause1", "poll"}})
	storm, err := c.StartExec(t.Context(), "/bin/storm", "-n", "0", "-j", "1", "-r", "5000", "-m", "60000")
	if err != nil {
		t.Fatal(err)
	}
	paused := false
	defer func() { // a frozen container cannot be killed
		if paused {
			_ = c.Task.Resume(context.WithoutCancel(t.Context()))
		}
	}()
	// Until the first are due; from then on PID 1 is in the middle of an attach for a good part of the time.
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		return len(events.OrphanExits(c.ID())) > 0, "nothing reaped so far"
	})
	for i := range pauses {
		time.Sleep(time.Duration(50+17*i%100) * time.Millisecond) // at another place of a sweep each time
		paused = true
		if err := c.Task.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause)
		if err := c.Task.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		paused = false
	}
	if err := storm.Kill(t.Context(), syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	if _, err := storm.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	workedOff(t, c, 0, time.Minute, func() {})
	final := finalStats(t, events, c)
	t.Logf("%d reaped in %d attaches, longest stop %v, refusals %v", final.GetReapedByTracer(), final.GetAttaches(),
		final.GetLongestStop().AsDuration(), final.GetRefusals())
	if n := final.GetRefusals()["timeout"]; n > 0 {
		t.Errorf("PID 1 was frozen in the middle of %d attaches", n)
	}
	if final.GetAttaches() < pauses {
		t.Errorf("%d attaches for %d pauses: the test shows little", final.GetAttaches(), pauses)
	}
}

// TestStormLong begins with 100,000 zombies below one PID 1, found all at once, and goes on with two leaks: one of 2,000 orphans a
// second, whose backlog stays at what leaks within three seconds, and one as fast as the machine can fork, whose backlog grows at first and
// then no more: what leaks and who reaps share the CPUs.
func TestStormLong(t *testing.T) {
	if os.Getenv(stormEnv) == "" {
		t.Skipf("runs for the time in %s: make test-storm DURATION=1m", stormEnv)
	}
	duration, err := time.ParseDuration(os.Getenv(stormEnv))
	if err != nil {
		t.Fatalf("%s: %v", stormEnv, err)
	}
	count := 100000
	if s := os.Getenv(stormZombiesEnv); s != "" {
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", stormZombiesEnv, err)
		}
	}
	d := daemon(t)
	name := reaper(t)
	raisePIDMax(t, count+10000)

	t.Run(fmt.Sprint(count), func(t *testing.T) {
		events := subscribe(t, d)
		c := run(t, d, harness.Spec{Runtime: name, Args: []string{"/bin/pause1", "poll"}})
		shim, err := c.Shim()
		if err != nil {
			t.Fatal(err)
		}
		before, err := harness.MemoryOf(shim.PID)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(shim.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		cont := func() { _ = syscall.Kill(shim.PID, syscall.SIGCONT) }
		defer cont()
		began := time.Now()
		// Not an exec of the container's: the shim stands still, and must not know of it beforehand.
		storm := osexec.Command("nsenter", "-p", "-t", fmt.Sprint(c.PID), "setsid", "-w",
			filepath.Join("/proc", fmt.Sprint(c.PID), "root/bin/storm"), "-n", fmt.Sprint(count), "-j", fmt.Sprint(runtime.NumCPU()))
		storm.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if out, err := storm.CombinedOutput(); err != nil {
			t.Fatalf("storm: %v, %s", err, out)
		}
		n := backlog(t, c)
		t.Logf("%d zombies in %v", n, time.Since(began).Round(time.Millisecond))
		if n < count {
			t.Fatalf("%d zombies, want %d", n, count)
		}
		cont()
		began = time.Now()
		var peak int64
		// 300 µs for each, of which up to a half is the time in which PID 1 runs.
		workedOff(t, c, 0, 10*time.Second+time.Duration(count)*300*time.Microsecond, func() {
			if m, err := harness.MemoryOf(shim.PID); err == nil {
				peak = max(peak, m.RSS)
			}
		})
		took := time.Since(began)
		final := finalStats(t, events, c)
		t.Logf("gone in %v, %v for each; %d attaches, longest stop %v, refusals %v; the shim's memory %d KiB, at most %d KiB",
			took.Round(time.Millisecond), took/time.Duration(count), final.GetAttaches(), final.GetLongestStop().AsDuration(),
			final.GetRefusals(), before.RSS>>10, peak>>10)
		if grown := peak - before.RSS; grown > 48<<20 {
			t.Errorf("the shim has grown by %d KiB", grown>>10)
		}
	})

	for _, leak := range []struct {
		name string
		rate int // orphans a second; 0: what the machine can fork
		args []string
	}{{"leak", 2000, nil}, {"full rate", 0, nil}, {"full rate below 8 threads", 0, []string{"-n", "7"}}} {
		t.Run(leak.name, func(t *testing.T) {
			events := subscribe(t, d)
			c := run(t, d, harness.Spec{Runtime: name, Args: append([]string{"/bin/pause1", "poll"}, leak.args...)})
			others := tasks(t)
			storm, err := c.StartExec(t.Context(), "/bin/storm", "-n", "0", "-j", fmt.Sprint(runtime.NumCPU()),
				"-m", fmt.Sprint(duration.Milliseconds()), "-r", fmt.Sprint(leak.rate))
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			done := make(chan error, 1)
			go func() {
				_, err := storm.Finish(t.Context())
				done <- err
			}()
			var samples []int // one a second
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			ended := false
			for !ended {
				select {
				case err := <-done:
					if ended = true; err != nil {
						t.Fatal(err)
					}
				case <-ticker.C:
					n := tasks(t) - others
					samples = append(samples, n)
					if leak.rate == 0 && n > count/2 {
						// The rest of the machine needs PIDs as well.
						if err := storm.Kill(t.Context(), syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
							t.Fatal(err)
						}
						if err := <-done; err != nil {
							t.Fatal(err)
						}
						ended = true
					}
				}
			}
			leaked := time.Since(began)
			workedOff(t, c, 0, time.Minute, func() {})
			final := finalStats(t, events, c)
			all := final.GetReapedByTracer()
			t.Logf("%d orphans in %v, %.0f a second; backlog each second %v; gone %v after the end, %.0f a second in all; %d attaches, longest stop %v, refusals %v",
				all, leaked.Round(time.Millisecond), float64(all)/leaked.Seconds(), samples, (time.Since(began) - leaked).Round(time.Millisecond),
				float64(all)/time.Since(began).Seconds(), final.GetAttaches(), final.GetLongestStop().AsDuration(), final.GetRefusals())
			// What leaks within the grace period and two seconds.
			if limit := 3 * leak.rate; leak.rate > 0 && slices.Max(samples) > limit {
				t.Errorf("the backlog was %d, want %d at most: %v", slices.Max(samples), limit, samples)
			}
			if n, m := final.GetVanished(), final.GetContradictions(); n+m > 0 {
				t.Errorf("%d vanished, %d contradictions", n, m)
			}
			// After 5 s it does not grow any more, but by what the machine has others do meanwhile.
			const settled = 5
			if leak.rate > 0 {
				return
			}
			if n := len(samples); n < settled+3 {
				if duration >= 2*settled*time.Second {
					t.Errorf("the backlog was %d within %d s: %v", samples[n-1], n, samples)
				}
				return
			}
			after := samples[settled:]
			grown := (after[len(after)-1] - after[0]) / (len(after) - 1)
			limit := int(0.1 * float64(all) / leaked.Seconds())
			t.Logf("after %d s the backlog grows by %d a second (aim: 0)", settled, grown)
			if grown > limit {
				t.Errorf("after %d s the backlog grows by %d a second, want %d at most: %v", settled, grown, limit, samples)
			}
		})
	}
}

// raisePIDMax makes room for so many processes until the test ends.
func raisePIDMax(t *testing.T, want int) {
	t.Helper()
	const file = "/proc/sys/kernel/pid_max"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if threads, err := os.ReadFile("/proc/sys/kernel/threads-max"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(threads))); err == nil && n < want {
			testutil.Lacks(t, fmt.Sprintf("kernel.threads-max is %d", n), fmt.Sprintf("a machine for %d processes", want))
		}
	}
	if old >= want {
		return
	}
	if err := os.WriteFile(file, []byte(fmt.Sprint(want)), 0); err != nil {
		testutil.Lacks(t, err.Error(), fmt.Sprintf("set kernel.pid_max to %d", want))
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, data, 0); err != nil {
			t.Error(err)
		}
	})
}
