package main

import (
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

func TestTablesOfFewNumbers(t *testing.T) {
	r := &result{
		Machine: benchreport.Machine{CPUs: 2}, PageSize: 4096,
		Times: []series{{Setting: "perf own", Pairs: map[string][]pair{opFork: {{100, 110}}, opSwitch: {{10, 9}}}, OpenMS: []float64{1}, Lost: []uint64{3}}},
		Memory: &memory{Logs: 1, PerfSlab: []int64{1}, ConnSlab: []int64{1}, ObjectSize: 1352, ObjectsInSlab: 12, SlabPages: 4,
			Threads: []threadsCost{{Events: 2, Threads: 10, Objects: []float64{2}, Slab: []float64{3500}}}},
	}
	got := r.Tables()
	for _, want := range []string{"1.100 (1.100 to 1.100)", "+10.00", "| -0.50", "perf own 3", "| 128 (extrapolated) | 4.5 MiB |"} {
		if !strings.Contains(got, want) {
			t.Errorf("the tables lack %q:\n%s", want, got)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if strings.Contains(got, bad) {
			t.Errorf("the tables have %q:\n%s", bad, got)
		}
	}
}
