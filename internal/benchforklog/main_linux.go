// Benchforklog measures what the fork logs cost: the tables of docs/fork-log.md. "make bench-forklog" runs it, as root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// emulated are the CPU counts of larger machines.
var emulated = []int{64, 128}

// result is what docs/data/fork-log.json holds.
type result struct {
	benchreport.Machine
	PageSize int      `json:"pageSize"`
	Rounds   int      `json:"rounds"`
	SampleMS int64    `json:"sampleMillis"`
	Times    []series `json:"times"`
	Memory   *memory  `json:"memory"`
}

func main() {
	rounds := flag.Int("rounds", 9, "measure so often")
	sample := flag.Duration("sample", 100*time.Millisecond, "time of one measurement")
	data := flag.String("json", "docs/data/fork-log.json", "write what was measured to this file")
	doc := flag.String("doc", "docs/fork-log.md", "renew the tables of this file")
	render := flag.Bool("render", false, "measure nothing: renew the tables from the JSON file")
	flag.Parse()
	if err := run(*rounds, *sample, *data, *doc, *render); err != nil {
		fmt.Fprintln(os.Stderr, "benchforklog:", err)
		os.Exit(1)
	}
}

func run(rounds int, sample time.Duration, dataFile, docFile string, render bool) error {
	var measured benchreport.Result
	if !render {
		r, err := measure(rounds, sample)
		if err != nil {
			return err
		}
		measured = r
	}
	return benchreport.Keep(measured, new(result), dataFile, docFile, "bench-forklog")
}

func measure(rounds int, sample time.Duration) (*result, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: the logs need CAP_PERFMON and CAP_NET_ADMIN, and /proc/slabinfo is root's")
	}
	machine, err := benchreport.ThisMachine()
	if err != nil {
		return nil, err
	}
	cpus := machine.CPUs
	if cpus < 2 || cpus != runtime.NumCPU() || cpus > emulated[0] {
		return nil, fmt.Errorf("%d possible CPUs, %d to use: needs a machine with 2 to %d, all of them online", cpus, runtime.NumCPU(), emulated[0])
	}
	dir, err := os.MkdirTemp("", "benchforklog")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin, err := compile(dir)
	if err != nil {
		return nil, err
	}
	procs, err := startIdle(bin, 100)
	if err != nil {
		return nil, err
	}
	defer stopIdle(procs)
	var idle []procfs.HostPID
	for _, p := range procs {
		idle = append(idle, procfs.HostPID(p.Process.Pid))
	}
	victimCPU := cpus - 1
	// Another for each part: a process that has had thousands of threads keeps some of their stacks, and forks slowly.
	v, err := startVictim(bin, victimCPU)
	if err != nil {
		return nil, err
	}
	defer v.stop()
	fresh, err := startVictim(bin, victimCPU)
	if err != nil {
		return nil, err
	}
	defer fresh.stop()

	r := &result{Machine: machine, PageSize: os.Getpagesize(), Rounds: rounds, SampleMS: sample.Milliseconds()}
	if r.Memory, err = measureMemory(v, idle, victimCPU, cpus, 5); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	if r.Times, err = times(fresh, idle, victimCPU, cpus, rounds, sample); err != nil {
		return nil, err
	}
	r.LoadEnd = benchreport.Load()
	return r, nil
}
