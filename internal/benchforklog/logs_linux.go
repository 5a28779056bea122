package main

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// setting is what is open on the host while something is measured.
type setting struct {
	name string
	perf []procfs.HostPID // processes with a perf task log
	conn []procfs.HostPID // processes with a proc connector
	// more events on the first process of perf, on a CPU that it never runs on: as many as a larger machine has.
	more, otherCPU int
}

// opened is a setting in force.
type opened struct {
	logs []forklog.Log
	fds  []int
	took time.Duration // of opening
	perf bool
}

func open(s setting) (_ *opened, err error) {
	o := &opened{perf: len(s.perf) > 0}
	defer func() {
		if err != nil {
			_ = o.close()
		}
	}()
	from := time.Now()
	for _, pid := range s.perf {
		log, err := forklog.OpenPerf(pid, 0)
		if err != nil {
			return nil, err
		}
		o.logs = append(o.logs, log)
	}
	for _, pid := range s.conn {
		log, err := forklog.OpenConnector(pid, 0)
		if err != nil {
			return nil, err
		}
		o.logs = append(o.logs, log)
	}
	o.took = time.Since(from)
	for range s.more {
		fd, err := openEvent(int(s.perf[0]), s.otherCPU)
		if err != nil {
			return nil, err
		}
		o.fds = append(o.fds, fd)
	}
	return o, nil
}

// openEvent opens an event like one of the perf task log (openRing in package forklog), without a ring. It hears of nothing on
// the CPU of the victim, as all events but one of a log at any time.
func openEvent(pid, cpu int) (int, error) {
	attr := unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_SOFTWARE,
		Config:      unix.PERF_COUNT_SW_DUMMY,
		Size:        uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Read_format: unix.PERF_FORMAT_LOST,
		Bits: unix.PerfBitInherit | unix.PerfBitTask | 1<<35 /* inherit_thread */ | unix.PerfBitExcludeKernel |
			unix.PerfBitUseClockID | unix.PerfBitWatermark,
		Clockid: unix.CLOCK_BOOTTIME,
	}
	fd, err := unix.PerfEventOpen(&attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open an event on cpu %d: %w", cpu, err)
	}
	return fd, nil
}

// trouble is what the logs say went wrong: a log that has ended or lost records was not measured.
func (o *opened) trouble() (lost uint64, err error) {
	for _, log := range o.logs {
		log.Sync()
		st := log.Stats()
		lost += st.Lost
		if st.Ended {
			err = errors.Join(err, fmt.Errorf("a %s log has ended: %s", st.Source, st.Reason))
		}
	}
	return lost, err
}

// close closes all and waits until the kernel is as it was before: perf_sched_delayed (kernel/events/core.c) switches the hooks
// in the scheduler off a second after the last event of a task is gone.
func (o *opened) close() error {
	errs := make([]error, len(o.logs))
	var wg sync.WaitGroup
	for i, log := range o.logs {
		wg.Go(func() { errs[i] = log.Close() })
	}
	wg.Wait()
	for _, fd := range o.fds {
		_ = unix.Close(fd)
	}
	if o.perf {
		time.Sleep(1200 * time.Millisecond)
	}
	return errors.Join(errs...)
}
