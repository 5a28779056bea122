package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// stops is what a tracer did to PID 1.
type stops struct {
	StopNS   []int64          `json:"stopNanos"` // of each attach
	Reaped   int              `json:"reaped"`
	Refusals map[string]int64 `json:"refusals,omitempty"`
}

// recorder passes requests on and takes down the reports.
type recorder struct {
	client *tracer.Client
	stops  stops
}

func newRecorder(worker string) *recorder {
	return &recorder{client: tracer.NewClient(worker), stops: stops{Refusals: make(map[string]int64)}}
}

// Reap implements sweep.Reaper.
func (r *recorder) Reap(ctx context.Context, req tracer.Request) (tracer.Report, error) {
	rep, err := r.client.Reap(ctx, req)
	if err != nil {
		return rep, err
	}
	if rep.Attached {
		r.stops.StopNS = append(r.stops.StopNS, rep.Stopped.Nanoseconds())
	}
	r.stops.Reaped += rep.Count(tracer.Reaped)
	if rep.Reason != "" {
		r.stops.Refusals[string(rep.Reason)]++
	}
	return rep, nil
}

// warm starts the worker, with a request that names nobody: a start time that is no process's.
func (r *recorder) warm(t *target) error {
	_, err := r.client.Reap(context.Background(), tracer.Request{PID: t.pid(), StartTime: t.startTime,
		Zombies: []tracer.Zombie{{PID: procfs.HostPID(os.Getpid()), StartTime: 1, NSPID: 2}}})
	return err
}

// reaper has the orphans of a target reaped that have been dead for the grace period, and returns when ctx or PID 1 has ended.
type reaper func(ctx context.Context, t *target, r *recorder, grace time.Duration) error

func newSweeper(t *target, r *recorder, grace time.Duration) (*sweep.Sweeper, error) {
	return sweep.New(sweep.Config{
		Proc: proc, Init: lineage.Init{PID: t.pid(), SessionLeader: true}, InitStartTime: t.startTime, Grace: grace, Reaper: r,
	})
}

// batches is what the shim does.
func batches(ctx context.Context, t *target, r *recorder, grace time.Duration) error {
	s, err := newSweeper(t, r, grace)
	if err != nil {
		return err
	}
	cadence := sweep.Cadence{Near: sweep.DefaultNear, Far: sweep.DefaultFar}
	for {
		res, err := s.Sweep(ctx)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(cadence.Next(res, time.Now())):
		}
	}
}

// one by one, with an attach for each zombie.
func eachAlone(ctx context.Context, t *target, r *recorder, grace time.Duration) error {
	type key struct {
		pid       procfs.HostPID
		startTime uint64
	}
	seen := make(map[key]time.Time)
	for {
		var due []tracer.Zombie
		now := time.Now()
		present := make(map[key]time.Time)
		err := proc.EachChild(t.pid(), t.pid(), func(pid procfs.HostPID) bool {
			st, err := proc.Stat(pid)
			if err != nil || !st.Zombie() {
				return true
			}
			k := key{pid, st.StartTime}
			first, ok := seen[k]
			if !ok {
				first = now
			}
			present[k] = first
			status, err := proc.Status(pid)
			if err == nil && now.Sub(first) >= grace && len(status.NSpid) > 1 {
				due = append(due, tracer.Zombie{PID: pid, StartTime: st.StartTime, NSPID: status.NSpid[len(status.NSpid)-1]})
			}
			return true
		})
		if err != nil && !errors.Is(err, procfs.ErrVanished) {
			return err
		}
		seen = present
		for _, z := range due {
			if _, err := r.Reap(ctx, tracer.Request{PID: t.pid(), StartTime: t.startTime, Zombies: []tracer.Zombie{z}}); err != nil && ctx.Err() == nil {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sweep.DefaultNear):
		}
	}
}

// background runs a reaper until the returned function is called.
func background(f reaper, t *target, r *recorder, grace time.Duration) (end func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx, t, r, grace) }()
	return func() error {
		cancel()
		return <-done
	}
}

// until waits for a condition, with a deadline.
func until(d time.Duration, what string, cond func() (bool, error)) error {
	end := time.Now().Add(d)
	for {
		ok, err := cond()
		if err != nil || ok {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: not within %v", what, d)
		}
		time.Sleep(time.Millisecond)
	}
}
