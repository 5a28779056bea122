package main

import (
	"fmt"
	"slices"
	"strings"
)

const (
	beginMark = "<!-- begin: written by make bench-init -->"
	endMark   = "<!-- end: written by make bench-init -->"
)

// renew replaces what stands between the marks.
func renew(page, table string) (string, error) {
	head, rest, ok := strings.Cut(page, beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("no place for the table: want the lines %q and %q", beginMark, endMark)
	}
	return head + beginMark + "\n\n" + table + "\n" + endMark + tail, nil
}

// quantile of the values, interpolated; 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	at := q * float64(len(v)-1)
	i := int(at)
	if i+1 == len(v) {
		return v[i]
	}
	return v[i] + (at-float64(i))*(v[i+1]-v[i])
}

// spread writes the median and, in brackets, the quartiles.
func spread(values []float64, digits int) string {
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, quantile(values, 0.5), digits, quantile(values, 0.25), digits, quantile(values, 0.75))
}

func (r *result) table() string {
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
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", name, size, spread(s.RSSKB, 0), spread(s.PSSKB, 0), spread(s.StartUS, 0),
			spread(s.OrphansPS, 0), spread(s.CPUUS, 2))
	}
	return b.String()
}
