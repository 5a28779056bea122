package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// memory is what logs take, in bytes.
type memory struct {
	Logs          int           `json:"logs"`          // that were opened at once for what follows
	RingsMapped   int64         `json:"ringsMapped"`   // per log, of the mappings of rings in /proc/self/maps
	RingsLocked   int64         `json:"ringsLocked"`   // per log, VmLck and VmPin of /proc/self/status
	PerfSlab      []int64       `json:"perfSlab"`      // per log, by Slab of /proc/meminfo
	ConnSlab      []int64       `json:"connSlab"`      // per connector, likewise
	ObjectSize    int64         `json:"objectSize"`    // of a perf_event, /proc/slabinfo
	ObjectsInSlab int64         `json:"objectsInSlab"` // and how many of them share
	SlabPages     int64         `json:"slabPages"`     // so many pages
	Threads       []threadsCost `json:"threads"`
}

// threadsCost is what the threads of PID 1 take more with a log than without.
type threadsCost struct {
	Events  int       `json:"eventsPerThread"`
	Threads int       `json:"threads"`
	Objects []float64 `json:"objectsPerThread"` // perf_event
	Slab    []float64 `json:"slabPerThread"`    // bytes, by Slab of /proc/meminfo
}

func measureMemory(v *victim, idle []procfs.HostPID, victimCPU, cpus, rounds int) (*memory, error) {
	m := &memory{Logs: len(idle)}
	events, err := perfSlab()
	if err != nil {
		return nil, err
	}
	m.ObjectSize, m.ObjectsInSlab, m.SlabPages = events.size, events.perSlab, events.pages
	for range rounds {
		if err := m.ofLogs(idle); err != nil {
			return nil, err
		}
	}
	for _, c := range []struct{ events, threads int }{{cpus, 2000}, {emulated[0], 500}, {emulated[1], 250}} {
		if c.events < cpus {
			continue
		}
		t := threadsCost{Events: c.events, Threads: c.threads}
		for range rounds {
			s := setting{perf: []procfs.HostPID{v.pid()}, more: c.events - cpus, otherCPU: (victimCPU + 1) % cpus}
			if err := t.measure(v, s); err != nil {
				return nil, err
			}
		}
		m.Threads = append(m.Threads, t)
	}
	return m, nil
}

func (m *memory) ofLogs(idle []procfs.HostPID) error {
	locked, err := fields("/proc/self/status", "VmLck", "VmPin")
	if err != nil {
		return err
	}
	for _, s := range []setting{{perf: idle}, {conn: idle}} {
		before, err := slabBytes()
		if err != nil {
			return err
		}
		o, err := open(s)
		if err != nil {
			return err
		}
		now, err := slabBytes()
		if err == nil && o.perf {
			m.PerfSlab = append(m.PerfSlab, (now-before)/int64(len(idle)))
			var l, mapped int64
			if l, err = fields("/proc/self/status", "VmLck", "VmPin"); err == nil {
				m.RingsLocked = (l - locked) / int64(len(idle))
			}
			if mapped, err = ringMappings(); err == nil {
				m.RingsMapped = mapped / int64(len(idle))
			}
		} else {
			m.ConnSlab = append(m.ConnSlab, (now-before)/int64(len(idle)))
		}
		if e := o.close(); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *threadsCost) measure(v *victim, s setting) error {
	without, _, err := t.hold(v)
	if err != nil {
		return err
	}
	o, err := open(s)
	if err != nil {
		return err
	}
	with, objects, err := t.hold(v)
	if e := o.close(); err == nil {
		err = e
	}
	t.Slab = append(t.Slab, float64(with-without)/float64(t.Threads))
	t.Objects = append(t.Objects, float64(objects)/float64(t.Threads))
	return err
}

// hold returns how much the slabs, and the objects of the perf_event cache, grow while the threads exist.
func (t *threadsCost) hold(v *victim) (grown, objects int64, err error) {
	before, err := slabBytes()
	if err != nil {
		return 0, 0, err
	}
	events, err := perfSlab()
	if err != nil {
		return 0, 0, err
	}
	if _, _, err := v.order("hold", t.Threads); err != nil {
		return 0, 0, err
	}
	after, err := slabBytes()
	if err != nil {
		return 0, 0, err
	}
	now, err := perfSlab()
	if err != nil {
		return 0, 0, err
	}
	if _, _, err := v.order("drop", 0); err != nil {
		return 0, 0, err
	}
	time.Sleep(300 * time.Millisecond) // what has ended is given back after an RCU grace period
	return after - before, now.active - events.active, nil
}

// slabBytes returns the bytes in all slabs of the host.
func slabBytes() (int64, error) {
	// The counters of the CPUs are added up every second only (vm.stat_interval), or when this file is written.
	if err := os.WriteFile("/proc/sys/vm/stat_refresh", []byte("1"), 0); err != nil {
		return 0, err
	}
	return fields("/proc/meminfo", "Slab")
}

type slabLine struct{ active, size, perSlab, pages int64 }

// perfSlab reads the line of perf_event in /proc/slabinfo (slabinfo(5)).
func perfSlab() (slabLine, error) {
	data, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return slabLine{}, err
	}
	for line := range strings.Lines(string(data)) {
		var l slabLine
		var total int64
		if !strings.HasPrefix(line, "perf_event ") {
			continue
		}
		if _, err := fmt.Sscan(strings.TrimPrefix(line, "perf_event "), &l.active, &total, &l.size, &l.perSlab, &l.pages); err != nil {
			return slabLine{}, fmt.Errorf("parse /proc/slabinfo: %q: %w", line, err)
		}
		return l, nil
	}
	return slabLine{}, fmt.Errorf("/proc/slabinfo has no cache perf_event: boot with slab_nomerge")
}

// fields adds lines "Name: N kB" of a file up, in bytes.
func fields(file string, names ...string) (int64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		for _, n := range names {
			if n != name {
				continue
			}
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("parse %s: %q: %w", file, line, err)
			}
			sum += kb << 10
		}
	}
	return sum, nil
}

// ringMappings adds the sizes of the mappings of perf events up.
func ringMappings() (int64, error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum int64
	for s := bufio.NewScanner(f); s.Scan(); {
		var from, to int64
		if !strings.HasSuffix(s.Text(), "anon_inode:[perf_event]") {
			continue
		}
		if _, err := fmt.Sscanf(s.Text(), "%x-%x", &from, &to); err != nil {
			return 0, fmt.Errorf("parse /proc/self/maps: %q: %w", s.Text(), err)
		}
		sum += to - from
	}
	return sum, nil
}
