package tracer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// someRequest is about a process that does not exist: it is declined without any privilege.
func someRequest() Request {
	r := validRequest()
	r.PID, r.StartTime = maxPID, 1
	return r
}

func ask(t *testing.T, c *Client) Report {
	t.Helper()
	rep, err := c.Reap(t.Context(), someRequest())
	if err != nil {
		t.Fatal(err)
	}
	if err := rep.answers(someRequest()); err != nil {
		t.Error(err)
	}
	if why := Supported(); why != "" && rep.Reason != why {
		t.Errorf("reason %q, want %q", rep.Reason, why)
	}
	return rep
}

// alive reports whether a process exists and is no zombie.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(data), ") Z ")
}

func TestClientKeepsAndReplacesWorkers(t *testing.T) {
	c := newClient(t, "-idle", "1m")
	if pid := c.WorkerPID(); pid != 0 {
		t.Errorf("worker %d before the first request", pid)
	}
	ask(t, c)
	first := c.WorkerPID()
	ask(t, c)
	if pid := c.WorkerPID(); pid != first || pid == 0 {
		t.Errorf("worker %d for the second request, %d for the first", pid, first)
	}
	if sid, err := unix.Getsid(first); err != nil || sid != first {
		t.Errorf("session of the worker: %d, %v, want its own", sid, err)
	}
	for range 5 {
		before := c.WorkerPID()
		unix.Kill(before, unix.SIGKILL)
		// No waiting: the next request must cope with a worker in any state of dying.
		ask(t, c)
		if pid := c.WorkerPID(); pid == before || pid == 0 {
			t.Errorf("worker %d after the death of %d", pid, before)
		}
	}
	last := c.WorkerPID()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if alive(last) {
		t.Error("the worker outlives Close")
	}
	if _, err := c.Reap(t.Context(), someRequest()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestClientReaperElsewhere: the statuses of all children are taken by somebody else, as in a shim. It runs in a process of
// its own, since the other tests want theirs.
func TestClientReaperElsewhere(t *testing.T) {
	if os.Getenv("REAPER_TRACER_TEST_WAIT4") == "" {
		build()
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestClientReaperElsewhere$", "-test.v")
		cmd.Env = append(os.Environ(), "REAPER_TRACER_TEST_WAIT4=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	c := newClient(t)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			var ws unix.WaitStatus
			if pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil); pid <= 0 || err != nil {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	for range 10 {
		ask(t, c)
		unix.Kill(c.WorkerPID(), unix.SIGKILL)
	}
}

func TestWorkerIgnoresSignals(t *testing.T) {
	c := newClient(t, "-idle", "1m")
	ask(t, c)
	pid := c.WorkerPID()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE, unix.SIGQUIT, unix.SIGUSR1} {
		unix.Kill(pid, sig)
	}
	ask(t, c)
	if c.WorkerPID() != pid {
		t.Error("a signal ended the worker")
	}
	// The journal and what the runtime has touched.
	if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil || !regexp.MustCompile(`(?m)^VmLck:\s+[1-9][0-9]{3,} kB$`).Match(st) {
		t.Errorf("its memory is not locked: %v, %s", err, st)
	}
	// Needs CAP_SYS_RESOURCE, which root in a container may not have: the test process says whether we do.
	if os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) == nil {
		defer func() {
			if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
				t.Error(err)
			}
		}()
		if score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); strings.TrimSpace(string(score)) != "-1000" {
			t.Errorf("oom_score_adj %s, %v", score, err)
		}
	}
}

// What waits while PID 1 stands still must not wait behind others.
func TestWorkerGoesFirst(t *testing.T) {
	own, err := os.ReadFile("/proc/self/autogroup")
	if err != nil {
		testutil.Lacks(t, err.Error(), "a kernel with CONFIG_SCHED_AUTOGROUP")
	}
	c := newClient(t, "-idle", "1m")
	ask(t, c)
	if nice := niceOfThread(t, procfs.HostPID(c.WorkerPID())); nice != priority {
		t.Errorf("nice %d, want %d", nice, priority)
	}
	session, err := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", c.WorkerPID()))
	if want := fmt.Sprintf(" nice %d\n", priority); err != nil || !strings.HasSuffix(string(session), want) {
		t.Errorf("autogroup %q, %v, want %q at its end", session, err, want)
	}
	if now, err := os.ReadFile("/proc/self/autogroup"); err != nil || string(now) != string(own) {
		t.Errorf("our own autogroup was %q and is %q, %v", own, now, err)
	}
}

func TestWorkerEndsWhenIdle(t *testing.T) {
	c := newClient(t, "-idle", "20ms")
	ask(t, c)
	pid := c.WorkerPID()
	eventually(t, "the idle worker's end", func() bool { return !alive(pid) })
	ask(t, c)
	// And right at that moment: no request may be lost.
	for i := range 30 {
		time.Sleep(15*time.Millisecond + time.Duration(i)*300*time.Microsecond)
		ask(t, c)
	}
}

func TestWorkerEndsWithItsInput(t *testing.T) {
	build()
	if built.workerErr != nil {
		t.Fatal(built.workerErr)
	}
	own, _ := os.ReadFile("/proc/self/autogroup")
	for _, tc := range []struct {
		name, input string
		ok          bool
	}{
		{"at once", "", true},
		{"half a request", `{"version":4`, false},
		{"garbage", "garbage\n", false},
		{"another version", fmt.Sprintf(`{"version":%d,"pid":2,"zombies":"3:0:2:0"}`+"\n", Version+1), false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := exec.CommandContext(ctx, built.worker, "-idle", "1h")
		cmd.Stdin = strings.NewReader(tc.input)
		out, err := cmd.CombinedOutput()
		cancel()
		if (err == nil) != tc.ok || tc.ok != (len(out) == 0) {
			t.Errorf("%s: %v, output %q", tc.name, err, out)
		}
	}
	// It was started in our session.
	if now, _ := os.ReadFile("/proc/self/autogroup"); string(now) != string(own) {
		t.Errorf("our own autogroup was %q and is %q", own, now)
	}
}

func TestWorkerHelp(t *testing.T) {
	build()
	for _, args := range [][]string{{"-v"}, {"-version"}} {
		out, err := exec.Command(built.worker, args...).Output()
		if err != nil || !strings.HasPrefix(string(out), WorkerName+" ") {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	if out, err := exec.Command(built.worker, "-h").CombinedOutput(); err != nil || !strings.Contains(string(out), "startTime") {
		t.Errorf("-h: %q, %v", out, err)
	}
}

// script writes an executable shell script that stands in for a worker.
func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "worker")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBadWorkers(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"says nothing and ends", "read line; exit 0", "worker: "},
		{"ends with last words", "echo oops >&2; exit 1", "oops"},
		{"talks nonsense", "read line; echo nonsense; sleep 100", "protocol error"},
		{"answers another question", `read line; echo '{"version":4,"attached":false,"stoppedNs":0,"results":""}'; sleep 100`, "0 results"},
		{"never ends its line", "read line; head -c 2000000 /dev/zero; sleep 100", "line of more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := NewClient(script(t, tc.text))
			_, err := c.Reap(t.Context(), someRequest())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			began := time.Now()
			c.Close()
			if took := time.Since(began); took > killGrace+time.Second {
				t.Errorf("Close took %v", took)
			}
		})
	}
	if _, err := NewClient("/nowhere/"+WorkerName).Reap(t.Context(), someRequest()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no executable: %v", err)
	}
}

// A worker that is not to be used any more is not killed in the middle of an attach, whatever it has said.
func TestNotKilledInAnAttach(t *testing.T) {
	t.Parallel()
	marker := filepath.Join(t.TempDir(), "go")
	c := NewClient(script(t, "read line; until [ -e "+marker+" ]; do sleep 0.01; done; echo nonsense; exec sleep 100"))
	failed := make(chan error, 1)
	go func() {
		_, err := c.Reap(t.Context(), someRequest())
		failed <- err
	}()
	eventually(t, "a worker", func() bool { return c.WorkerPID() != 0 })
	pid := c.WorkerPID()
	journal := workerJournal(t, pid)
	defer journal.Close()
	journal.page.phase.Store(uint32(phaseAttached))
	if err := os.WriteFile(marker, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, errProtocol) {
		t.Errorf("error %v", err)
	}
	time.Sleep(killGrace + killGrace/4)
	if !alive(pid) {
		t.Error("it was killed with the journal open")
	}
	journal.page.phase.Store(uint32(phaseIdle))
	eventually(t, "its end", func() bool { return !alive(pid) })
	c.Close()
}

// TestDeadline: the caller gets its answer in time, the worker more of it.
func TestDeadline(t *testing.T) {
	c := NewClient(script(t, "read line; sleep 1; echo done > "+filepath.Join(t.TempDir(), "x")+"; exec sleep 100"))
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Slow(100*time.Millisecond)) // time to start it
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.Reap(ctx, someRequest())
		done <- err
	}()
	eventually(t, "a worker", func() bool { return c.WorkerPID() != 0 })
	pid := c.WorkerPID()
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if !alive(pid) {
		t.Error("the worker was killed at once")
	}
	c.Close()
	if alive(pid) {
		t.Error("the worker is still there after Close")
	}

	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := NewClient(script(t, "sleep 100")).Reap(ctx, someRequest()); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestClientConcurrently(t *testing.T) {
	c := newClient(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				if i == 0 && j%5 == 0 {
					if pid := c.WorkerPID(); pid != 0 {
						unix.Kill(pid, unix.SIGKILL)
					}
				}
				if _, err := c.Reap(t.Context(), someRequest()); err != nil && i != 0 && !isGone(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestClientLeaksNothing counts goroutines and file descriptors over many workers.
func TestClientLeaksNothing(t *testing.T) {
	count := func() (fds, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	warm := newClient(t) // what the runtime opens once
	ask(t, warm)
	warm.Close()
	fds, goroutines := count()
	for range 10 {
		c := newClient(t)
		ask(t, c)
		unix.Kill(c.WorkerPID(), unix.SIGKILL)
		ask(t, c)
		c.Close()
	}
	eventually(t, "as many file descriptors and goroutines as before", func() bool {
		f, g := count()
		return f <= fds && g <= goroutines
	})
}
