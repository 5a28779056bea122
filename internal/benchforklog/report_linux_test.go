package main

import (
	"strings"
	"testing"
)

func TestRenewKeepsTheText(t *testing.T) {
	got, err := renew("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n", "new\n")
	if want := "before\n" + beginMark + "\n\nnew\n\n" + endMark + "\nafter\n"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := renew("no marks", "new"); err == nil {
		t.Error("a page without marks was accepted")
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.75, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, 0.25, 2},
	} {
		if got := quantile(c.values, c.q); got != c.want {
			t.Errorf("quantile %v of %v: %v, want %v", c.q, c.values, got, c.want)
		}
	}
}

func TestTablesOfFewNumbers(t *testing.T) {
	r := &result{
		CPUs: 2, PageSize: 4096,
		Times: []series{{Setting: "perf own", Pairs: map[string][]pair{opFork: {{100, 110}}, opSwitch: {{10, 9}}}, OpenMS: []float64{1}, Lost: []uint64{3}}},
		Memory: &memory{Logs: 1, PerfSlab: []int64{1}, ConnSlab: []int64{1}, ObjectSize: 1352, ObjectsInSlab: 12, SlabPages: 4,
			Threads: []threadsCost{{Events: 2, Threads: 10, Objects: []float64{2}, Slab: []float64{3500}}}},
	}
	got := r.tables()
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
