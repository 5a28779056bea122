package main

import (
	"fmt"
	"strings"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

// target is the make target, which the marks in the page name.
const target = "bench-init"

// Tables returns the text between the marks.
func (r *result) Tables() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s at commit %s: Linux %s, %s, %d CPUs; load average %s before, %s after. %d rounds, in each of which all take "+
		"their turns: %d starts each, and %d orphans that end at once. Each cell is the median and, in brackets, the quartiles of the rounds.\n\n"+
		"| PID 1 | binary, bytes | resident, kB | its share of memory (PSS), kB | start and end of a program, µs | orphans reaped per second | its CPU time for an orphan, µs |\n"+
		"|---|--:|--:|--:|--:|--:|--:|\n",
		r.Date, r.Commit, r.Kernel, r.Arch, r.CPUs, r.Load, r.LoadEnd, r.Rounds, r.Starts, r.Orphans)
	for _, s := range r.Inits {
		name, size := s.Name, ""
		if s.Version != "" {
			name += " " + s.Version
		}
		if s.BinarySize > 0 {
			size = fmt.Sprint(s.BinarySize)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", name, size, benchreport.Spread(s.RSSKB, 0), benchreport.Spread(s.PSSKB, 0), benchreport.Spread(s.StartUS, 0),
			benchreport.Spread(s.OrphansPS, 0), benchreport.Spread(s.CPUUS, 2))
	}
	return b.String()
}
