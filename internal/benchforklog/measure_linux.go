package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Operations of the victim.
const (
	opFork    = "fork"
	opThread  = "thread"
	opSwitch  = "switch"
	opTSwitch = "tswitch"
)

// pair is one measurement with a setting, and the one without any log just before it: microseconds for one operation.
type pair struct {
	None float64 `json:"none"`
	With float64 `json:"with"`
}

// series is all that was measured with one setting.
type series struct {
	Setting string            `json:"setting"`
	Pairs   map[string][]pair `json:"pairs"`       // by operation, one for each round
	OpenMS  []float64         `json:"openMillis"`  // to open all logs
	Lost    []uint64          `json:"lostRecords"` // that the logs counted
}

// times measures all settings in a new order in each round.
func times(v *victim, idle []procfs.HostPID, victimCPU, cpus, rounds int, sample time.Duration) ([]series, error) {
	own := []procfs.HostPID{v.pid()}
	other := (victimCPU + 1) % cpus
	settings := []setting{
		{name: "perf 1", perf: idle[:1]},
		{name: "perf 10", perf: idle[:10]},
		{name: "perf 100", perf: idle[:100]},
		{name: "perf own", perf: own},
		{name: "connector 1", conn: idle[:1]},
		{name: "connector 10", conn: idle[:10]},
		{name: "connector 100", conn: idle[:100]},
		{name: "connector own", conn: own},
	}
	for _, n := range emulated {
		if n > cpus {
			settings = append(settings, setting{name: fmt.Sprintf("perf own %d", n), perf: own, more: n - cpus, otherCPU: other})
		}
	}
	all := make([]series, len(settings))
	for i, s := range settings {
		all[i] = series{Setting: s.name, Pairs: make(map[string][]pair)}
	}
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, rounds)
		for _, i := range rand.Perm(len(settings)) {
			if err := once(v, settings[i], &all[i], sample); err != nil {
				return nil, fmt.Errorf("%s: %w", settings[i].name, err)
			}
		}
	}
	return all, nil
}

func once(v *victim, s setting, to *series, sample time.Duration) (err error) {
	ops := []string{opFork}
	if len(s.perf)+len(s.conn) == 1 && append(s.perf, s.conn...)[0] == v.pid() {
		ops = []string{opFork, opThread, opSwitch, opTSwitch}
	}
	pairs := make([]pair, len(ops))
	for i, op := range ops {
		if pairs[i].None, err = v.micros(op, sample); err != nil {
			return err
		}
	}
	o, err := open(s)
	if err != nil {
		return err
	}
	defer func() {
		if e := o.close(); err == nil {
			err = e
		}
	}()
	for i, op := range ops {
		if pairs[i].With, err = v.micros(op, sample); err != nil {
			return err
		}
		to.Pairs[op] = append(to.Pairs[op], pairs[i])
	}
	lost, err := o.trouble()
	if err != nil {
		return err
	}
	to.OpenMS = append(to.OpenMS, float64(o.took.Microseconds())/1000)
	to.Lost = append(to.Lost, lost)
	return nil
}
