package forklog_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
)

func (s *subject) openTripwire() *forklog.Tripwire {
	s.t.Helper()
	var wire *forklog.Tripwire
	testutil.Eventually(s.t, 5*time.Second, func() (bool, string) { // a program that has just begun may still gain threads
		var err error
		wire, err = forklog.OpenTripwire(proc, s.pid())
		if errors.Is(err, forklog.ErrUnsupported) || errors.Is(err, forklog.ErrPermission) {
			testutil.Lacks(s.t, err.Error(), "run as root on Linux 5.8 or newer")
		}
		return err == nil, fmt.Sprint(err)
	})
	s.t.Cleanup(wire.Close)
	return wire
}

// trips waits for the descriptors as who uses a tripwire does, and then asks it.
func trips(t *testing.T, wire *forklog.Tripwire, most time.Duration) bool {
	t.Helper()
	var fds []unix.PollFd
	for _, fd := range wire.FDs() {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for end := time.Now().Add(most); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if woken, tripped := n > 0, wire.Tripped(); woken != tripped {
			t.Errorf("woken %v, tripped %v", woken, tripped)
		}
		return n > 0
	}
}

// Whatever a process does that could make an orphan trips the wire, once it was opened, and nothing else does.
func TestTripwire(t *testing.T) {
	bin := compiled(t)
	for _, tt := range []struct {
		does  string
		args  []string
		trips bool
	}{
		{"fork", []string{"flood", "1"}, true},
		{"every way to fork", []string{"mix", "1"}, true},
		{"threads", []string{"threads", "1"}, true},
		{"exec", []string{"exec", bin, "pause"}, false},
		{"exec that ends perf events", []string{"lesscap", "exec", bin, "pause"}, true},
		{"end", nil, true},
		{"nothing", []string{"pause"}, false},
	} {
		t.Run(tt.does, func(t *testing.T) {
			s := newSubject(t, append([]string{bin, "pause"}, tt.args...)...)
			s.goOn()
			s.children() // up to the pause
			wire := s.openTripwire()
			if wire.Tripped() {
				t.Fatal("it trips by itself")
			}
			s.goOn()
			most := 10 * time.Second
			if !tt.trips {
				s.children() // done
				most = 100 * time.Millisecond
			}
			if got := trips(t, wire, most); got != tt.trips {
				t.Errorf("it trips: %v, want %v", got, tt.trips)
			}
			if !wire.Tripped() && tt.trips {
				t.Error("it has forgotten")
			}
		})
	}
}

// Forks by a thread that was there before, and by one that comes later, in a process with many of them; and the end of one.
func TestTripwireThreads(t *testing.T) {
	testutil.Root(t)
	python, err := exec.LookPath("python3")
	if err != nil {
		testutil.Lacks(t, "no python3", "make deps")
	}
	const program = `
import os, sys, threading
go, out = threading.Event(), threading.Event()
def idle(first):
    if first:
        go.wait()
        if sys.argv[1] == "fork" and os.fork() == 0: os._exit(0)
        if sys.argv[1] == "end": return
    out.wait()
for i in range(int(sys.argv[2])): threading.Thread(target=idle, args=(i == 0,), daemon=True).start()
print("pause", flush=True); sys.stdin.readline()
if sys.argv[1] == "born": threading.Thread(target=out.wait, daemon=True).start()
go.set(); sys.stdin.readline()
`
	for _, does := range []string{"fork", "end", "born"} {
		t.Run(does, func(t *testing.T) {
			s := newSubject(t, python, "-c", program, does, "20")
			s.goOn()
			s.children()
			wire := s.openTripwire()
			if n := len(wire.FDs()); n != 21 {
				t.Fatalf("%d threads, want 21", n)
			}
			if trips(t, wire, 50*time.Millisecond) {
				t.Fatal("it trips by itself")
			}
			s.goOn()
			if !trips(t, wire, 10*time.Second) {
				t.Error("it does not trip")
			}
		})
	}
	t.Run("too many", func(t *testing.T) {
		s := newSubject(t, python, "-c", program, "none", fmt.Sprint(forklog.MaxTripwireThreads))
		s.goOn()
		s.children()
		if wire, err := forklog.OpenTripwire(proc, s.pid()); !errors.Is(err, forklog.ErrUnsettled) || !strings.Contains(err.Error(), "65 threads") {
			t.Errorf("%v, %v; want no tripwire and why", wire, err)
		}
	})
}
