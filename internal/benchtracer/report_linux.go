package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

// Tables implements benchreport.Result.
func (r *result) Tables() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s at commit %s: Linux %s, %s, %d CPUs (%s), %s, PID 1 compiled by %s, %s, wrk %s; load average %s before, %s after. "+
		"%d rounds, the cases of each in a new order. Unless it says otherwise a cell is the median and, in brackets, the quartiles.\n\n",
		r.Date, r.Commit, r.Kernel, r.Arch, r.CPUs, r.CPUModel, r.Go, r.CC, r.Tini, r.Wrk, r.Load, r.LoadEnd, r.Rounds)
	r.pileTable(&b)
	r.serveTable(&b)
	r.turnsTable(&b)
	return b.String()
}

// perZombie returns microseconds for each zombie that was reaped.
func perZombie(s pileSample, ns int64) float64 { return float64(ns) / 1000 / float64(max(s.Reaped, 1)) }

func (s stops) sum() int64 {
	var sum int64
	for _, ns := range s.StopNS {
		sum += ns
	}
	return sum
}

// stopCells are median, 99th percentile and maximum of all stops, in milliseconds.
func stopCells(all []stops) string {
	var ms []float64
	for _, s := range all {
		for _, ns := range s.StopNS {
			ms = append(ms, float64(ns)/1e6)
		}
	}
	if len(ms) == 0 {
		return "| | |"
	}
	return fmt.Sprintf("| %.2f | %.2f | %.2f", benchreport.Quantile(ms, 0.5), benchreport.Quantile(ms, 0.99), slices.Max(ms))
}

func (r *result) pileTable(b *strings.Builder) {
	fmt.Fprintf(b, "### A pile of %d zombies\n\nµs for each zombie. PID 1 has nothing else to do. *Stopped* is the time in which PID 1 cannot run, "+
		"*all* the time from the first look to the last zombie's end, most of which PID 1 is left alone. CPU is what PID 1 and the "+
		"tracer have used. Stops are those of all rounds together, in ms.\n\n"+
		"| PID 1 may run on | who reaps | stopped | all | CPU of PID 1 | CPU of the tracer | attaches | stop: median | 99 %% | longest |\n"+
		"|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n", r.Zombies)
	for _, c := range r.Piles {
		if len(c.Samples) == 0 {
			continue
		}
		col := func(f func(pileSample) int64, digits int) string {
			return benchreport.Spread(benchreport.Values(c.Samples, func(s pileSample) float64 { return perZombie(s, f(s)) }), digits)
		}
		stopped, all, worker, attaches := "", "", "", ""
		var attached []stops
		if c.Who != whoTini { // which has waited for each before there was a pile
			all = col(func(s pileSample) int64 { return s.WallNS }, 0)
			stopped = "**" + col(func(s pileSample) int64 { return s.sum() }, 1) + "**"
			worker = col(func(s pileSample) int64 { return s.WorkerNS }, 1)
			attaches = fmt.Sprintf("%.0f", benchreport.Median(benchreport.Values(c.Samples, func(s pileSample) float64 { return float64(len(s.StopNS)) })))
			for _, s := range c.Samples {
				attached = append(attached, s.stops)
			}
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s %s |\n", c.Where, c.Who, stopped, all,
			col(func(s pileSample) int64 { return s.InitNS }, 1), worker, attaches, stopCells(attached))
	}
	b.WriteString("\n")
}

func (r *result) serving(name string) serveCase {
	for _, c := range r.Serving {
		if c.Name == name {
			return c
		}
	}
	return serveCase{}
}

// loss is what c serves less than base, in percent, round by round.
func loss(c, base serveCase) []float64 {
	var out []float64
	for i := range min(len(c.Samples), len(base.Samples)) {
		out = append(out, 100*(1-c.Samples[i].Requests/base.Samples[i].Requests))
	}
	return out
}

func (r *result) serveTable(b *strings.Builder) {
	fmt.Fprintf(b, "### A busy server\n\nA static epoll server as PID 1 (or as the child of tini) on one CPU, wrk with %d connections on another, %d ms at a time; %d "+
		"orphans a second are leaked in the server's PID namespace. Losses are in per cent of the requests of the same round: *of reaping* against the same "+
		"leak that nobody reaps (for tini against no leak), *of all* against no leak. Stops are those of all rounds together, in ms.\n\n"+
		"| | requests/s | loss of reaping, %% | loss of all, %% | median latency, µs | 99 %% latency, µs | reaped | zombies left | stop: median | 99 %% | longest |\n"+
		"|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n", connections, r.SampleMS, r.Rate)
	for _, c := range r.Serving {
		if len(c.Samples) == 0 {
			continue
		}
		var ofReaping, ofAll, reaped string
		switch {
		case c.Who != "":
			ofReaping = "**" + benchreport.Spread(loss(c, r.serving(serveLeak)), 2) + "**"
			ofAll = benchreport.Spread(loss(c, r.serving(serveQuiet)), 2)
			reaped = fmt.Sprintf("%.0f", benchreport.Median(benchreport.Values(c.Samples, func(s serveSample) float64 { return float64(s.Reaped) })))
		case c.Name == serveTiniLeak:
			ofReaping = benchreport.Spread(loss(c, r.serving(serveTiniQuiet)), 2)
			ofAll = benchreport.Spread(loss(c, r.serving(serveQuiet)), 2)
		case c.Name != serveQuiet:
			ofAll = benchreport.Spread(loss(c, r.serving(serveQuiet)), 2)
		}
		var all []stops
		for _, s := range c.Samples {
			all = append(all, s.stops)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %.0f %s |\n", c.Name, benchreport.Spread(benchreport.Values(c.Samples, func(s serveSample) float64 { return s.Requests }), 0),
			ofReaping, ofAll, benchreport.Spread(benchreport.Values(c.Samples, func(s serveSample) float64 { return s.P50US }), 0),
			benchreport.Spread(benchreport.Values(c.Samples, func(s serveSample) float64 { return s.P99US }), 0), reaped,
			benchreport.Median(benchreport.Values(c.Samples, func(s serveSample) float64 { return float64(s.Left) })), stopCells(all))
	}
	b.WriteString("\nRequests that the tracer declined, or ended early, all rounds together:")
	sep := " "
	for _, c := range r.Serving {
		sum := make(map[string]int64)
		for _, s := range c.Samples {
			for reason, n := range s.Refusals {
				sum[reason] += n
			}
		}
		reasons := make([]string, 0, len(sum))
		for reason := range sum {
			reasons = append(reasons, reason)
		}
		slices.Sort(reasons)
		for _, reason := range reasons {
			fmt.Fprintf(b, "%s%s: %s %d", sep, c.Name, reason, sum[reason])
			sep = "; "
		}
	}
	if sep == " " {
		b.WriteString(" none")
	}
	b.WriteString(".\n")
}

func (r *result) turnsTable(b *strings.Builder) {
	fmt.Fprintf(b, "\n### A busy server, in turns\n\nThe same server, load and leak, with windows of %v in pairs: in one of the two, by chance the first or the second, the tracer "+
		"looks and reaps what is due, in the other it does nothing. %d orphans a second are leaked in both, so that %d a second fall due for the window with the tracer. "+
		"In brackets the 95 %% confidence interval. The case in which nobody reaps shows what this can tell. CPU is what looks and tracer have used, in per cent of one CPU.\n\n"+
		"| who reaps in one of two windows | pairs | requests/s without | orphans reaped a second | loss, %% | PID 1 stopped, %% | CPU, %% |\n|---|--:|--:|--:|--:|--:|--:|\n", window, r.Rate/2, r.Rate)
	for _, c := range r.Turns {
		if len(c.Pairs) == 0 {
			continue
		}
		var reaped int
		var stopped, with, cpu int64
		for _, p := range c.Pairs {
			reaped, stopped, with, cpu = reaped+p.Reaped, stopped+p.StopNS, with+p.With.NS, cpu+p.CPUNS
		}
		low, high := interval(c.Pairs)
		fmt.Fprintf(b, "| %s | %d | %s | %.0f | **%.2f (%.2f to %.2f)** | %.2f | %.2f |\n", cmp.Or(c.Who, "nobody"), len(c.Pairs),
			benchreport.Spread(benchreport.Values(c.Pairs, func(p pair) float64 { return p.Without.perSecond() }), 0),
			float64(reaped)/float64(with)*1e9, turnsLoss(c.Pairs), low, high, 100*float64(stopped)/float64(with), 100*float64(cpu)/float64(with))
	}
}
