package main

import (
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// Who reaps.
const (
	whoBatch  = "reaper, in batches"
	whoSingle = "reaper, an attach for each zombie"
	whoTini   = "tini as PID 1"
)

// Where PID 1 may run.
const (
	whereOne  = "one CPU"
	whereFree = "any CPU"
)

// pileCase is a pile of zombies that was there when somebody began to reap it. PID 1 has nothing else to do.
type pileCase struct {
	Who     string       `json:"who"`
	Where   string       `json:"where"`
	Samples []pileSample `json:"samples"` // one for each round
}

type pileSample struct {
	WallNS   int64 `json:"wallNanos"`   // from the first look to the last zombie's end
	InitNS   int64 `json:"initNanos"`   // that PID 1 was on a CPU
	WorkerNS int64 `json:"workerNanos"` // that the tracer was
	stops
}

func pileCases() []pileCase {
	var all []pileCase
	for _, where := range []string{whereOne, whereFree} {
		for _, who := range []string{whoBatch, whoSingle, whoTini} {
			all = append(all, pileCase{Who: who, Where: where})
		}
	}
	return all
}

func (b *bench) pile(c *pileCase) error {
	cpu := -1
	if c.Where == whereOne {
		cpu = b.cpu
	}
	t, err := start(b.bin, c.Who == whoTini, cpu)
	if err != nil {
		return err
	}
	defer t.stop()
	s := pileSample{}
	if c.Who == whoTini {
		err = b.pileOfTini(t, &s)
	} else {
		err = b.pileOfTracer(t, c.Who, &s)
	}
	if err != nil {
		return err
	}
	c.Samples = append(c.Samples, s)
	return nil
}

// pileOfTini: tini waits for each as soon as it has adopted it.
func (b *bench) pileOfTini(t *target, s *pileSample) error {
	before, err := onCPU(int(t.pid()))
	if err != nil {
		return err
	}
	if err := t.order("pile", b.zombies); err != nil {
		return err
	}
	began := time.Now()
	err = until(time.Minute, "the pile of tini", func() (bool, error) {
		n, err := t.zombies()
		return n == 0, err
	})
	if err != nil {
		return err
	}
	s.WallNS = time.Since(began).Nanoseconds()
	after, err := onCPU(int(t.pid()))
	s.InitNS, s.Reaped = (after - before).Nanoseconds(), b.zombies
	return err
}

func (b *bench) pileOfTracer(t *target, who string, s *pileSample) error {
	r := newRecorder(b.worker)
	defer r.client.Close()
	if err := r.warm(t); err != nil {
		return err
	}
	if err := t.order("pile", b.zombies); err != nil {
		return err
	}
	born := sweep.BootTicks()
	err := until(time.Second, "the clock", func() (bool, error) { return sweep.BootTicks() > born+lineage.MinTicks, nil })
	if err != nil {
		return err
	}
	worker := r.client.WorkerPID()
	init0, err := onCPU(int(t.pid()))
	if err != nil {
		return err
	}
	worker0, err := onCPU(worker)
	if err != nil {
		return err
	}
	how := batches
	if who == whoSingle {
		how = eachAlone
	}
	r.stops = stops{Refusals: make(map[string]int64)}
	began := time.Now()
	end := background(how, t, r, 0)
	err = until(time.Minute, "the pile", func() (bool, error) {
		n, err := t.zombies()
		if n == 0 {
			return true, err
		}
		time.Sleep(20 * time.Millisecond) // not to be in the way
		return false, err
	})
	if e := end(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	s.WallNS = time.Since(began).Nanoseconds()
	s.stops = r.stops
	init1, err := onCPU(int(t.pid()))
	if err != nil {
		return err
	}
	worker1, err := onCPU(worker)
	s.InitNS, s.WorkerNS = (init1 - init0).Nanoseconds(), (worker1 - worker0).Nanoseconds()
	return err
}
