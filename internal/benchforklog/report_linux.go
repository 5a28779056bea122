package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

func none(p pair) float64  { return p.None }
func with(p pair) float64  { return p.With }
func ratio(p pair) float64 { return p.With / p.None }

func (r *result) series(name string) series {
	for _, s := range r.Times {
		if s.Setting == name {
			return s
		}
	}
	return series{Setting: name}
}

func bytes(n float64) string {
	switch {
	case math.Abs(n) >= 1<<20:
		return fmt.Sprintf("%.1f MiB", n/(1<<20))
	case math.Abs(n) >= 10<<10:
		return fmt.Sprintf("%.0f KiB", n/(1<<10))
	}
	return fmt.Sprintf("%.0f B", n)
}

// Tables implements benchreport.Result.
func (r *result) Tables() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s at commit %s: Linux %s, %s, %d CPUs (%s), %s, victim compiled by %s; load average %s before, %s after. "+
		"%d rounds, %d ms for each measurement. Each cell is the median and, in brackets, the quartiles.\n\n",
		r.Date, r.Commit, r.Kernel, r.Arch, r.CPUs, r.CPUModel, r.Go, r.CC, r.Load, r.LoadEnd, r.Rounds, r.SampleMS)
	r.hostTable(&b)
	r.ownTable(&b)
	r.memoryTables(&b)
	return b.String()
}

func (r *result) hostTable(b *strings.Builder) {
	fmt.Fprintf(b, "### fork, exit and wait, in a process of the host\n\nµs for one, and the ratio to no log just before.\n\n"+
		"| open on the host | none, µs | with, µs | ratio | opening all of them, ms |\n|---|--:|--:|--:|--:|\n")
	for _, row := range []struct{ name, text string }{
		{"perf 1", "1 perf log, of another process"},
		{"perf 10", "10 perf logs, of other processes"},
		{"perf 100", "100 perf logs, of other processes"},
		{"perf own", "1 perf log, of the forking process"},
		{"connector 1", "1 connector, for another process"},
		{"connector 10", "10 connectors, for other processes"},
		{"connector 100", "100 connectors, for other processes"},
		{"connector own", "1 connector, for the forking process"},
	} {
		s := r.series(row.name)
		p := s.Pairs[opFork]
		if len(p) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | **%s** | %s |\n", row.text, benchreport.Spread(benchreport.Values(p, none), 1), benchreport.Spread(benchreport.Values(p, with), 1),
			benchreport.Spread(benchreport.Values(p, ratio), 3), benchreport.Spread(s.OpenMS, 2))
	}
	b.WriteString("\n")
}

func (r *result) ownTable(b *strings.Builder) {
	fmt.Fprintf(b, "### PID 1 with a log of its own\n\nµs for one, and the difference to no log just before. A switch is half of a byte's way "+
		"to the other side and back, both on one CPU. 64 and 128 CPUs are emulated: the log, and as many more events of the same kind on "+
		"a CPU that the process never runs on.\n\n"+
		"| | none, µs | perf, %d CPUs | perf, %d CPUs | perf, %d CPUs | connector |\n|---|--:|--:|--:|--:|--:|\n", r.CPUs, emulated[0], emulated[1])
	for _, row := range []struct {
		op, text string
		per      float64
	}{
		{opSwitch, "switch to another process", 2},
		{opTSwitch, "switch to another thread of PID 1", 2},
		{opFork, "fork, exit and wait", 1},
		{opThread, "thread: create and join", 1},
	} {
		cells := []string{row.text}
		for i, name := range []string{"perf own", fmt.Sprintf("perf own %d", emulated[0]), fmt.Sprintf("perf own %d", emulated[1]), "connector own"} {
			p := r.series(name).Pairs[row.op]
			if len(p) == 0 {
				cells = append(cells, "")
				continue
			}
			if i == 0 {
				cells = append(cells, benchreport.Spread(benchreport.Values(p, func(p pair) float64 { return p.None / row.per }), 2))
			}
			cells = append(cells, "+"+benchreport.Spread(benchreport.Values(p, func(p pair) float64 { return (p.With - p.None) / row.per }), 2))
		}
		fmt.Fprintf(b, "| %s |\n", strings.ReplaceAll(strings.Join(cells, " | "), "+-", "-"))
	}
	b.WriteString("\nRecords that the logs counted as lost while this went on, all rounds together:")
	sep := " "
	for _, s := range r.Times {
		var sum uint64
		for _, n := range s.Lost {
			sum += n
		}
		if sum > 0 {
			fmt.Fprintf(b, "%s%s %d", sep, s.Setting, sum)
			sep = ", "
		}
	}
	if sep == " " {
		b.WriteString(" none")
	}
	b.WriteString(".\n\n")
}

// eventBytes is what an event takes, with its share of what is left over in a slab.
func (r *result) eventBytes() float64 {
	return float64(r.Memory.SlabPages) * float64(r.PageSize) / float64(r.Memory.ObjectsInSlab)
}

// contextBytes is what a thread takes besides its events: the rest of what was measured with this machine's CPUs.
func (r *result) contextBytes() float64 {
	t := r.Memory.Threads[0]
	return max(benchreport.Median(t.Slab)-float64(t.Events)*r.eventBytes(), 0)
}

func (r *result) memoryTables(b *strings.Builder) {
	m := r.Memory
	rings := func(cpus int) float64 { return float64(cpus * 9 * r.PageSize) }
	fmt.Fprintf(b, "### Memory of a log\n\n| | for each PID namespace |\n|---|--:|\n"+
		"| perf: rings, (1+8) pages × %d CPUs | %s |\n"+
		"| perf: mapped, by /proc/self/maps with %d logs | %s |\n"+
		"| perf: locked, by VmLck + VmPin with %d logs | %s |\n"+
		"| perf: slab besides, with %d logs | %s |\n"+
		"| connector: slab while nothing waits, with %d connectors | %s |\n\n",
		r.CPUs, bytes(rings(r.CPUs)), m.Logs, bytes(float64(m.RingsMapped)), m.Logs, bytes(float64(m.RingsLocked)),
		m.Logs, bytes(benchreport.Median(m.PerfSlab)), m.Logs, bytes(benchreport.Median(m.ConnSlab)))
	fmt.Fprintf(b, "### Memory of a thread of PID 1 under a perf log\n\nOne perf_event is %d bytes, %d of them share %d pages: %.0f bytes each. "+
		"What remains is the thread's perf context: %.0f bytes.\n\n"+
		"| events for each thread | threads | perf_event objects for each thread | slab for each thread, bytes |\n|--:|--:|--:|--:|\n",
		m.ObjectSize, m.ObjectsInSlab, m.SlabPages, r.eventBytes(), r.contextBytes())
	for _, t := range m.Threads {
		how := ""
		if t.Events != r.CPUs {
			how = " (emulated)"
		}
		fmt.Fprintf(b, "| %d%s | %d | %s | %s |\n", t.Events, how, t.Threads, benchreport.Spread(t.Objects, 2), benchreport.Spread(t.Slab, 0))
	}
	fmt.Fprintf(b, "\n### Extrapolated to more CPUs\n\nComputed, not measured: rings of 9 pages, %.0f bytes for each event and %.0f for each thread.\n\n"+
		"| CPUs | rings of a container | of 100 containers | for each thread of PID 1 | 100 threads | 1000 threads | threads at the cap | memory at the cap |\n"+
		"|--:|--:|--:|--:|--:|--:|--:|--:|\n", r.eventBytes(), r.contextBytes())
	for _, cpus := range []int{r.CPUs, emulated[0], emulated[1]} {
		thread := float64(cpus)*r.eventBytes() + r.contextBytes()
		threads := maxEvents / cpus
		label := fmt.Sprint(cpus)
		if cpus != r.CPUs {
			label += " (extrapolated)"
		}
		over := func(n int) string {
			if n > threads {
				return "over the cap: connector"
			}
			return bytes(float64(n) * thread)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %d | %s |\n", label, bytes(rings(cpus)), bytes(100*rings(cpus)), bytes(thread),
			over(100), over(1000), threads, bytes(float64(threads)*thread))
	}
}

// maxEvents is maxPerfEvents of shim/forks.go.
const maxEvents = 16384
