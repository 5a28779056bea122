package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"time"
)

// turnsCase is a server under load whose orphans are reaped in one of two windows. What else weighs on it weighs on both, also what changes
// from one second to the next, so that a loss below a per cent can be told.
type turnsCase struct {
	Who   string `json:"who,omitempty"` // "": nobody reaps in either window, which shows what can be told
	Pairs []pair `json:"pairs"`
}

// pair is two windows, one after the other, in an order of chance.
type pair struct {
	With    rate  `json:"with"`
	Without rate  `json:"without"`
	Reaped  int   `json:"reaped"`
	StopNS  int64 `json:"stopNanos"` // for which PID 1 was stopped
	// CPUNS is how much longer we and the tracer had a CPU in the window with reaping.
	CPUNS int64 `json:"cpuNanos"`
}

type rate struct {
	Requests int64 `json:"requests"`
	NS       int64 `json:"nanos"`
}

func (r rate) perSecond() float64 { return float64(r.Requests) / float64(r.NS) * 1e9 }

const (
	// window is about the time from one look of the shim's at PID 1 to the next while there are zombies.
	window = 300 * time.Millisecond
	// turnsSettle is how long an orphan of a saturated PID 1 is waited for, and a little.
	turnsSettle = 8
)

func turnsCases() []turnsCase { return []turnsCase{{}, {Who: whoBatch}} }

// turns adds pairs to a case, of a new server.
func (b *bench) turns(c *turnsCase) (err error) {
	// Each pair has one look, at what two windows leaked.
	t, port, err := b.startServer(false, b.rate/2)
	if err != nil {
		return err
	}
	defer t.stop()
	r := newRecorder(b.worker)
	defer r.client.Close()
	s, err := newSweeper(t, r, serveGrace)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	wrk := exec.CommandContext(ctx, "taskset", wrkArgs(port, b.cpu-1, time.Hour)...)
	wrk.Stderr = os.Stderr
	if err := wrk.Start(); err != nil {
		return fmt.Errorf("wrk: %w", err)
	}
	defer func() {
		cancel()
		_ = wrk.Wait()
	}()

	before, err := t.count()
	if err != nil {
		return err
	}
	// served returns what was since the last call, at the end of a window.
	served := func(end time.Time) (rate, error) {
		time.Sleep(time.Until(end))
		now, err := t.count()
		d := rate{now.Requests - before.Requests, now.NS - before.NS}
		before = now
		return d, err
	}
	// used returns for how long we and the tracer had a CPU since the last call.
	var usedBefore time.Duration
	used := func() (time.Duration, error) {
		now, err := onCPU(os.Getpid())
		if worker := r.client.WorkerPID(); err == nil && worker > 0 {
			var its time.Duration
			its, err = onCPU(worker)
			now += its
		}
		d := now - usedBefore
		usedBefore = now
		return d, err
	}
	if _, err := used(); err != nil {
		return err
	}
	for n := range turnsSettle + b.pairs {
		p := pair{}
		r.stops = stops{Refusals: make(map[string]int64)}
		with := rand.N(2)
		for i := range 2 {
			end := time.Now().Add(window)
			to, sign := &p.Without, int64(-1)
			if i == with {
				to, sign = &p.With, 1
				if c.Who != "" {
					if _, err := s.Sweep(ctx); err != nil {
						return err
					}
				}
			}
			if *to, err = served(end); err != nil {
				return err
			}
			if to.Requests == 0 {
				return errors.New("wrk: no requests")
			}
			cpu, err := used()
			if err != nil {
				return err
			}
			p.CPUNS += sign * cpu.Nanoseconds()
		}
		p.Reaped, p.StopNS = r.stops.Reaped, r.stops.sum()
		if n >= turnsSettle {
			c.Pairs = append(c.Pairs, p)
		}
	}
	return nil
}

// turnsLoss is by how many per cent less was served in the windows with reaping, all pairs together.
func turnsLoss(pairs []pair) float64 {
	var with, without rate
	for _, p := range pairs {
		with.Requests, with.NS = with.Requests+p.With.Requests, with.NS+p.With.NS
		without.Requests, without.NS = without.Requests+p.Without.Requests, without.NS+p.Without.NS
	}
	return 100 * (1 - with.perSecond()/without.perSecond())
}

// interval is the 95 % confidence interval of turnsLoss, by the bootstrap: the percentiles of what it is of pairs drawn from these.
func interval(pairs []pair) (low, high float64) {
	const draws = 2000
	rnd := rand.New(rand.NewPCG(1, uint64(len(pairs)))) // the same table from the same data
	losses := make([]float64, draws)
	drawn := make([]pair, len(pairs))
	for i := range losses {
		for k := range drawn {
			drawn[k] = pairs[rnd.IntN(len(pairs))]
		}
		losses[i] = turnsLoss(drawn)
	}
	slices.Sort(losses)
	return losses[draws/40], losses[draws-1-draws/40]
}
