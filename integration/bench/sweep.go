package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

var proc = procfs.New(os.DirFS("/proc"))

// exactLog is the fork log of a PID 1 from birth on, as the shim has it in all but rare cases; there is no zombie to ask it about.
type exactLog struct{}

func (exactLog) Sync()                                      {}
func (exactLog) Lookup(procfs.HostPID, uint64) lineage.Fork { return lineage.ForkUnknown }
func (exactLog) Exact() bool                                { return true }

// measureSweep looks at containers with many processes, with the shim's own code and in this process.
func measureSweep(ctx context.Context, d *harness.Daemon, o options) (*sweepPart, error) {
	part := new(sweepPart)
	for _, children := range []bool{true, false} {
		for n := 10; n <= o.processes; n *= 10 {
			c := sweepCase{Processes: n, Children: children}
			if err := c.measure(ctx, d, o.sweeps); err != nil {
				return nil, fmt.Errorf("a container of %d processes: %w", n, err)
			}
			part.Cases = append(part.Cases, c)
		}
	}
	return part, nil
}

func (c *sweepCase) measure(ctx context.Context, d *harness.Daemon, sweeps int) (err error) {
	// The shell forks them itself, and becomes a program that waits for nobody; or a child of it does.
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do sleep 100000 & i=$((i+1)); done; ", c.Processes)
	if c.Children {
		script += "exec /bin/pause1 poll"
	} else {
		script = "(" + script + "exec /bin/pause1 poll) & exec /bin/pause1 poll"
	}
	p := new(pod)
	defer func() { err = errors.Join(err, p.remove(ctx)) }()
	// With mode off: nobody else looks.
	box, err := d.Run(ctx, harness.Spec{
		Runtime: harness.ReaperRuntime, Args: []string{"/bin/sh", "-c", script},
		Annotations: map[string]string{"io.containerd.reaper.mode": "off"},
	})
	if err != nil {
		return err
	}
	p.containers = append(p.containers, box)
	pid := procfs.HostPID(box.PID)
	lines, err := proc.Cgroups(pid)
	if err != nil {
		return err
	}
	cgroup := sweep.FindCgroup(procfs.DirectFS("/sys/fs/cgroup"), lines)
	if cgroup == nil {
		return errors.New("no cgroup that counts processes")
	}
	err = testutil.Poll(5*time.Minute, func() (bool, string) {
		n, ok := cgroup.Current()
		st, serr := proc.Stat(pid)
		return ok && int(n) >= c.Processes+1 && serr == nil && strings.HasPrefix(st.Comm, "pause1"), fmt.Sprintf("%d processes, %v", n, serr)
	})
	if err != nil {
		return err
	}
	st, err := proc.Stat(pid)
	if err != nil {
		return err
	}
	// The sweeper's clock: a full look is due every 10 s of it.
	clock := time.Now()
	s, err := sweep.New(sweep.Config{
		Proc: proc, Init: lineage.Init{PID: pid, SessionLeader: true}, InitStartTime: st.StartTime, Grace: time.Second,
		Now: func() time.Time { return clock },
	})
	if err != nil {
		return err
	}
	s.SetForkLog(exactLog{})
	s.SetCgroups([]*sweep.Cgroup{cgroup})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range sweeps + 1 {
		for _, full := range []bool{true, false} {
			if full {
				clock = clock.Add(time.Minute)
			} else {
				clock = clock.Add(time.Second)
			}
			before, err := threadCPU()
			if err != nil {
				return err
			}
			if _, err := s.Sweep(ctx); err != nil {
				return err
			}
			after, err := threadCPU()
			if err != nil {
				return err
			}
			took := micros(after - before)
			switch {
			case i == 0: // the first looks at everything for the first time
			case full:
				c.Full = append(c.Full, took)
			default:
				c.Micros = append(c.Micros, took)
			}
		}
	}
	return nil
}

// threadCPU is the CPU time of this thread.
func threadCPU() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano()), err
}
