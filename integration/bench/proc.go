package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// usage is what a process has used since it began.
type usage struct {
	cpu      time.Duration
	switches int64
}

func (u usage) plus(v usage) usage { return usage{u.cpu + v.cpu, u.switches + v.switches} }

func (u usage) minus(v usage) usage { return usage{u.cpu - v.cpu, u.switches - v.switches} }

// usageOf adds up the threads of a process: run time (proc(5), schedstat: nanoseconds), and context switches, each of which is a
// wake-up, or the end of a time slice.
func usageOf(pid int) (usage, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		return usage{}, err
	}
	var u usage
	for _, t := range threads {
		text, err := os.ReadFile(dir + "/" + t.Name() + "/schedstat")
		if err != nil {
			continue // a thread that has ended
		}
		status, err := os.ReadFile(dir + "/" + t.Name() + "/status")
		if err != nil {
			continue
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return usage{}, fmt.Errorf("schedstat of thread %s: %w", t.Name(), err)
		}
		u.cpu += time.Duration(ns)
		n, err := parseSwitches(string(status))
		if err != nil {
			return usage{}, fmt.Errorf("status of thread %s: %w", t.Name(), err)
		}
		u.switches += n
	}
	return u, nil
}

// parseSwitches adds up the two counts of /proc/<pid>/task/<tid>/status.
func parseSwitches(status string) (int64, error) {
	var sum int64
	found := 0
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "voluntary_ctxt_switches" && name != "nonvoluntary_ctxt_switches" {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
		found++
	}
	if found != 2 {
		return 0, errors.New("no counts of context switches")
	}
	return sum, nil
}

// memoryOf returns the memory of a process.
func memoryOf(pid int) (memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, err
	}
	m, err := parseRollup(string(text))
	if err != nil {
		return memory{}, fmt.Errorf("smaps_rollup of %d: %w", pid, err)
	}
	return m, nil
}

func parseRollup(text string) (memory, error) {
	var m memory
	fields := map[string]*int64{"Rss": &m.RSS, "Pss": &m.PSS, "Private_Dirty": &m.PrivateDirty}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		to := fields[name]
		if to == nil {
			continue
		}
		bytes, err := kilobytes(value)
		if err != nil {
			return memory{}, err
		}
		*to = bytes
		delete(fields, name)
	}
	for name := range fields {
		return memory{}, fmt.Errorf("no field %s", name)
	}
	return m, nil
}

// kilobytes parses "123 kB" into bytes.
func kilobytes(text string) (int64, error) {
	kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 10, 64)
	return kb << 10, err
}

// available is MemAvailable of the node, in bytes.
func available() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			return kilobytes(rest)
		}
	}
	return 0, errors.New("meminfo: no MemAvailable")
}

// meter follows a shim and its tracers, which come and go: what a tracer has used is that which it had when it was last seen.
type meter struct {
	shim    harness.Process
	tracers map[harness.Process]usage
}

func newMeter(shim harness.Process) *meter {
	return &meter{shim: shim, tracers: make(map[harness.Process]usage)}
}

func (m *meter) read() (shim, tracing usage, err error) {
	for _, t := range harness.Children(m.shim.PID, tracer.WorkerName) {
		if u, err := usageOf(t.PID); err == nil {
			m.tracers[t] = u
		}
	}
	for _, u := range m.tracers {
		tracing = tracing.plus(u)
	}
	shim, err = usageOf(m.shim.PID)
	return shim, tracing, err
}
