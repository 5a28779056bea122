package forklog

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// MaxTripwireThreads is up to how many threads of a process a Tripwire is opened for: each takes two pages of locked memory.
const MaxTripwireThreads = 64

// ErrUnsettled is returned where a process cannot be given a Tripwire now, because threads come and go or are more than MaxTripwireThreads.
var ErrUnsettled = errors.New("threads come and go, or are too many")

// Tripwire tells when a process forks, or gains or loses a thread, once. It costs the process nothing before: a Perf is what
// remembers, and wakes nobody for each fork.
//
// It is a perf event for each thread, on all CPUs and not inherited: a thread that is born later comes from one that has an event.
type Tripwire struct {
	wires []ring
}

// OpenTripwire opens one on the threads that the process has. What it forked before may have gone unnoticed. The errors are those
// of OpenPerf, ErrUnsettled and procfs.ErrVanished. The caller must close it.
func OpenTripwire(proc *procfs.FS, pid procfs.HostPID) (_ *Tripwire, err error) {
	t := &Tripwire{}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	threads, err := proc.Threads(pid)
	if err != nil {
		return nil, err
	}
	if len(threads) > MaxTripwireThreads {
		return nil, fmt.Errorf("tripwire of process %d: %d threads: %w", pid, len(threads), ErrUnsettled)
	}
	for _, tid := range threads {
		w, err := openWire(int(tid))
		if errors.Is(err, unix.ESRCH) {
			err = ErrUnsettled
		}
		if err != nil {
			return nil, fmt.Errorf("tripwire of thread %d of process %d: %w", tid, pid, err)
		}
		t.wires = append(t.wires, w)
	}
	// The second list: these numbers are still those of threads of this process. The count: a list may miss a thread when others
	// end (proc_task_readdir, fs/proc/base.c). No wire has tripped: all of those counted were alive when they were counted, so
	// there was no other.
	again, err := proc.Threads(pid)
	if err != nil {
		return nil, err
	}
	st, err := proc.Stat(pid)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(threads, again) || st.NumThreads != len(threads) || t.Tripped() {
		return nil, fmt.Errorf("tripwire of process %d: %w", pid, ErrUnsettled)
	}
	return t, nil
}

func openWire(tid int) (ring, error) {
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_SOFTWARE,
		Config: unix.PERF_COUNT_SW_DUMMY,
		Bits:   unix.PerfBitTask | unix.PerfBitExcludeKernel | unix.PerfBitWatermark,
		Wakeup: 1, // byte: each record wakes
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	return openEvent(&attr, tid, -1, 1)
}

// FDs are what can be waited for, with epoll(7): each becomes readable, or hangs up, when the wire trips. A poll(2) consumes that;
// Tripped does not forget.
func (t *Tripwire) FDs() []int {
	fds := make([]int, len(t.wires))
	for i, w := range t.wires {
		fds[i] = w.fd
	}
	return fds
}

// Tripped reports whether anything has happened since it was opened, the end of the process included.
func (t *Tripwire) Tripped() bool {
	hungUp, woken := poll(t.wires)
	if hungUp || woken {
		return true
	}
	for _, w := range t.wires {
		if atomic.LoadUint64(&w.page.Data_head) != 0 {
			return true
		}
	}
	return false
}

// Close takes it away.
func (t *Tripwire) Close() {
	closeRings(t.wires)
	t.wires = nil
}
