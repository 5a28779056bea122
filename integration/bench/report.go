package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
)

// Tables implements benchreport.Result.
func (r *result) Tables() string {
	var b strings.Builder
	b.WriteString("Unless it says otherwise a cell is the median and, in brackets, the quartiles; *ratio* is ours to runc.v2, of the medians.\n")
	if r.Start != nil {
		r.Start.table(&b, r.plots)
	}
	if r.Idle != nil {
		r.Idle.table(&b, r.plots)
	}
	if r.Density != nil {
		r.Density.table(&b, r.plots)
	}
	if r.Sweep != nil {
		r.Sweep.table(&b, r.plots)
	}
	if r.Reap != nil {
		r.Reap.table(&b, r.plots)
	}
	if r.Stress != nil {
		r.Stress.table(&b)
	}
	return b.String()
}

func (w where) line(b *strings.Builder, what string) {
	fmt.Fprintf(b, "Measured on %s at commit %s in %.0f s: Linux %s, %s, %d CPUs (%s), %s, containerd %s, runc %s; load average %s before, %s after. %s\n\n",
		w.Date, w.Commit, w.Took, w.Kernel, w.Arch, w.CPUs, w.CPUModel, w.Go, w.Containerd, w.Runc, w.Load, w.LoadEnd, what)
}

func picture(b *strings.Builder, dir, name, alt string) {
	fmt.Fprintf(b, "\n![%s](%s/%s.svg)\n", alt, dir, name)
}

// ratio compares medians; it is empty where there is nothing to compare.
func ratio(ours, theirs []float64) string {
	if len(ours) == 0 || len(theirs) == 0 || benchreport.Median(theirs) == 0 {
		return ""
	}
	return fmt.Sprintf("**%.2f**", benchreport.Median(ours)/benchreport.Median(theirs))
}

func (p *startPart) of(op string, parallel int, runtime string) []float64 {
	for _, c := range p.Cases {
		if c.Op == op && c.Parallel == parallel && c.Runtime == runtime {
			return c.MS
		}
	}
	return nil
}

// rows are operation and how many at once, in the order of the cases.
func (p *startPart) rows() []startCase {
	var rows []startCase
	for _, c := range p.Cases {
		if c.Runtime == harness.RuncRuntime && len(c.MS) > 0 && len(p.of(c.Op, c.Parallel, harness.ReaperRuntime)) > 0 {
			rows = append(rows, c)
		}
	}
	return rows
}

func (p *startPart) table(b *strings.Builder, plots string) {
	b.WriteString("\n### Start\n\n")
	p.line(b, "Milliseconds.")
	b.WriteString("| | at once | runc.v2 | 99 % | reaper.v2 | 99 % | ratio | of 99 % |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, c := range p.rows() {
		theirs, ours := c.MS, p.of(c.Op, c.Parallel, harness.ReaperRuntime)
		p99, ours99 := benchreport.Quantile(theirs, 0.99), benchreport.Quantile(ours, 0.99)
		fmt.Fprintf(b, "| %s | %d | %s | %.1f | %s | %.1f | %s | %.2f |\n", c.Op, c.Parallel, benchreport.Spread(theirs, 1), p99, benchreport.Spread(ours, 1), ours99,
			ratio(ours, theirs), ours99/p99)
	}
	picture(b, plots, "start", "Latencies of both runtimes")
}

// sizes are those that were measured, ascending.
func (p *idlePart) sizes() []int {
	var sizes []int
	for _, s := range p.Pods {
		if !slices.Contains(sizes, s.Containers) {
			sizes = append(sizes, s.Containers)
		}
	}
	slices.Sort(sizes)
	return sizes
}

func (p *idlePart) of(runtime string, containers int, f func(podIdle) float64) []float64 {
	var out []float64
	for _, s := range p.Pods {
		if s.Runtime == runtime && s.Containers == containers {
			out = append(out, f(s))
		}
	}
	return out
}

// idleColumns are what is compared of idle shims.
var idleColumns = []struct {
	name   string
	digits int
	f      func(podIdle) float64
}{
	{"resident, MB", 2, func(s podIdle) float64 { return float64(s.Memory.RSS) / 1e6 }},
	{"proportional, MB", 2, func(s podIdle) float64 { return float64(s.Memory.PSS) / 1e6 }},
	{"private dirty, MB", 2, func(s podIdle) float64 { return float64(s.Memory.PrivateDirty) / 1e6 }},
	{"CPU, µs a second", 0, func(s podIdle) float64 { return s.CPU }},
	{"context switches a second", 1, func(s podIdle) float64 { return s.Switches }},
	{"those of the tracer", 1, func(s podIdle) float64 { return s.Tracer }},
}

func (p *idlePart) table(b *strings.Builder, plots string) {
	b.WriteString("\n### Idle\n\n")
	sizes, each := p.sizes(), 0
	if len(sizes) > 0 {
		each = len(p.of(harness.RuncRuntime, sizes[0], idleColumns[0].f))
	}
	p.line(b, fmt.Sprintf("A shim with its containers, left alone for %.0f s and then measured for %.0f s, all pods of both runtimes at the same time: %d of each "+
		"size. Context switches are those of all threads.", p.Settle, p.Seconds, each))
	b.WriteString("| | containers | runc.v2 | reaper.v2 | ratio |\n|---|--:|--:|--:|--:|\n")
	for _, col := range idleColumns {
		for _, n := range sizes {
			theirs, ours := p.of(harness.RuncRuntime, n, col.f), p.of(harness.ReaperRuntime, n, col.f)
			fmt.Fprintf(b, "| %s | %d | %s | %s | %s |\n", col.name, n, benchreport.Spread(theirs, col.digits), benchreport.Spread(ours, col.digits), ratio(ours, theirs))
		}
	}
	picture(b, plots, "idle", "Memory of idle shims")
}

func (p *densityPart) table(b *strings.Builder, plots string) {
	b.WriteString("\n### Density\n\n")
	p.line(b, fmt.Sprintf("%d pods of one container, started %d at a time. CPU is that of all shims and tracers over %.0f s, in per cent of one CPU.",
		p.Pods, p.Workers, p.Window))
	b.WriteString("| |")
	for _, c := range p.Runtimes {
		fmt.Fprintf(b, " %s |", short(c.Runtime))
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", len(p.Runtimes)) + "\n")
	row := func(name string, f func(densityCase) string) {
		fmt.Fprintf(b, "| %s |", name)
		for _, c := range p.Runtimes {
			fmt.Fprintf(b, " %s |", f(c))
		}
		b.WriteString("\n")
	}
	number := func(format string, f func(densityCase) float64) func(densityCase) string {
		return func(c densityCase) string { return fmt.Sprintf(format, f(c)) }
	}
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	row("all started after, s", number("%.1f", func(c densityCase) float64 { return c.Started }))
	row("shims, resident, MB", number("%.0f", func(c densityCase) float64 { return mb(c.Memory.RSS) }))
	row("shims, proportional, MB", number("%.0f", func(c densityCase) float64 { return mb(c.Memory.PSS) }))
	row("shims, private dirty, MB", number("%.0f", func(c densityCase) float64 { return mb(c.Memory.PrivateDirty) }))
	row("memory of the node, all in all, MB", number("%.0f", func(c densityCase) float64 { return mb(c.Node) }))
	row("CPU, nothing leaks", number("%.2f %%", func(c densityCase) float64 { return c.QuietCPU }))
	row("context switches a second, nothing leaks", number("%.0f", func(c densityCase) float64 { return c.QuietSwitches }))
	leaking := 0
	for _, c := range p.Runtimes {
		leaking = c.Leaking
	}
	row(fmt.Sprintf("CPU, %d pods leak %d orphans a second each", leaking, p.Rate), number("%.2f %%", func(c densityCase) float64 { return c.LeakCPU }))
	row("of it tracers", number("%.2f %%", func(c densityCase) float64 { return c.TracerCPU }))
	row("context switches a second, with these leaks", number("%.0f", func(c densityCase) float64 { return c.LeakSwitches }))
	row("orphans", func(c densityCase) string { return fmt.Sprint(c.Leaked) })
	row(fmt.Sprintf("zombies left %.0f s later", p.Grace+2), func(c densityCase) string { return fmt.Sprint(c.Left) })
	row(fmt.Sprintf("from death to the event that tells of the reaping, s (%.0f s of grace in it): median, 99 %%, longest", p.Grace), func(c densityCase) string {
		if len(c.ReapMS) == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f, %.2f, %.2f", benchreport.Quantile(c.ReapMS, 0.5)/1000, benchreport.Quantile(c.ReapMS, 0.99)/1000, slices.Max(c.ReapMS)/1000)
	})
	picture(b, plots, "reaped", "How long orphans are dead until they are reaped")
}

func short(runtime string) string { return strings.TrimPrefix(runtime, "io.containerd.") }

func (p *sweepPart) table(b *strings.Builder, plots string) {
	b.WriteString("\n### A look at a PID namespace\n\n")
	p.line(b, "CPU time of one look of the shim's at a container with so many living processes, in µs: of those that are children of PID 1 "+
		"the kernel is asked whether they are dead; of the others, most looks know nothing. Every 10 s a look reads what changes seldom.")
	b.WriteString("| processes | children of | a look | every 10 s | µs for each process and look |\n|--:|---|--:|--:|--:|\n")
	for _, c := range p.Cases {
		parent := "PID 1"
		if !c.Children {
			parent = "another process"
		}
		per := ""
		if len(c.Micros) > 0 && c.Processes > 0 {
			per = fmt.Sprintf("%.2f", benchreport.Median(c.Micros)/float64(c.Processes))
		}
		fmt.Fprintf(b, "| %d | %s | %s | %s | %s |\n", c.Processes, parent, benchreport.Spread(c.Micros, 0), benchreport.Spread(c.Full, 0), per)
	}
	picture(b, plots, "sweep", "Cost of a look by number of processes")
}

func (c reapCase) of(f func(reapSample) float64) []float64 { return benchreport.Values(c.Samples, f) }

func (p *reapPart) table(b *strings.Builder, plots string) {
	b.WriteString("\n### The life of an orphan\n\n")
	p.line(b, fmt.Sprintf("CPU time in µs for each of %d orphans, at %d a second: two forks, two exits, and the reaping, in the container and in the shim with its "+
		"tracer.", p.Orphans, p.Rate))
	b.WriteString("| who reaps | in the container | in shim and tracer | zombies left |\n|---|--:|--:|--:|\n")
	for _, c := range p.Cases {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", c.Who, benchreport.Spread(c.of(func(s reapSample) float64 { return s.Container }), 0),
			benchreport.Spread(c.of(func(s reapSample) float64 { return s.Shim }), 0), benchreport.Spread(c.of(func(s reapSample) float64 { return float64(s.Left) }), 0))
	}
	picture(b, plots, "reap", "CPU time of an orphan's life")
}

func (p *stressPart) table(b *strings.Builder) {
	b.WriteString("\n### Others' benchmarks\n\n")
	p.line(b, fmt.Sprintf("containerd-stress density with %d containers, memory of each shim; critest -benchmark, medians in ms.", p.Containers))
	b.WriteString("| |")
	var names []string
	for _, c := range p.Cases {
		fmt.Fprintf(b, " %s |", short(c.Runtime))
		for name := range c.Benchmarks {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	b.WriteString("\n|---|" + strings.Repeat("--:|", len(p.Cases)) + "\n")
	row := func(name string, f func(stressCase) string) {
		fmt.Fprintf(b, "| %s |", name)
		for _, c := range p.Cases {
			fmt.Fprintf(b, " %s |", f(c))
		}
		b.WriteString("\n")
	}
	row("density: proportional, MB", func(c stressCase) string { return fmt.Sprintf("%.2f", float64(c.PSS)/1e6) })
	row("density: resident, MB", func(c stressCase) string { return fmt.Sprintf("%.2f", float64(c.RSS)/1e6) })
	for _, name := range names {
		row("critest: "+name, func(c stressCase) string {
			v, ok := c.Benchmarks[name]
			if !ok {
				return ""
			}
			return fmt.Sprintf("%.1f", v)
		})
	}
}
