package main

import (
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

func TestTableIsWrittenBetweenTheMarks(t *testing.T) {
	r := &result{Date: "2026-01-01", Rounds: 3, Inits: []*series{
		{Name: "none", StartUS: []float64{1, 2, 3}},
		{Name: "tini", Version: "0.19", BinarySize: 4711, StartUS: []float64{5}, RSSKB: []float64{8, 10, 9}, OrphansPS: []float64{100}, CPUUS: []float64{1.25}},
	}}
	out, err := benchreport.Renew("head\n<!-- begin: written by make bench-init -->\nold\n<!-- end: written by make bench-init -->\ntail\n", target, r.Tables())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"head\n", "\ntail\n", "| none |  |  |  | 2 (2 to 2) |", "| tini 0.19 | 4711 | 9 (8 to 10) |", "| 1.25 (1.25 to 1.25) |"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, bad := range []string{"old", "NaN", "%!", "Inf"} {
		if strings.Contains(out, bad) {
			t.Errorf("%q in\n%s", bad, out)
		}
	}
	if _, err := benchreport.Renew("no marks", target, ""); err == nil {
		t.Error("a page without marks is taken")
	}
}
