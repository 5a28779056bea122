package forklog

import (
	"slices"
	"testing"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

func TestMemory(t *testing.T) {
	m := newMemory("test", 100)
	m.born(7, 150)
	for _, tt := range []struct {
		name  string
		pid   procfs.HostPID
		start uint64
		want  lineage.Fork
	}{
		{"heard of", 7, 149, lineage.ForkedByInit},
		{"heard of in the tick of its start", 7, 150, lineage.ForkedByInit},
		{"C1: a later process with the same number", 7, 151, lineage.ForkedByOther},
		{"not heard of", 8, 150, lineage.ForkedByOther},
		{"born when the log began", 8, 100, lineage.ForkedByOther},
		{"born before", 8, 99, lineage.ForkUnknown},
	} {
		if got := m.lookup(tt.pid, tt.start); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}

	m.gap(200, "test")
	if got := m.lookup(8, 200); got != lineage.ForkUnknown {
		t.Errorf("born in the tick of a gap: %v", got)
	}
	if got := m.lookup(8, 201); got != lineage.ForkedByOther {
		t.Errorf("born after a gap: %v", got)
	}
	if got := m.lookup(7, 149); got != lineage.ForkedByInit {
		t.Errorf("heard of before a gap: %v", got)
	}

	m.end(300, "test")
	if got := m.lookup(9, 299); got != lineage.ForkedByOther {
		t.Errorf("born before the last good look: %v", got)
	}
	if got := m.lookup(9, 300); got != lineage.ForkUnknown {
		t.Errorf("born after the last good look: %v", got)
	}
	if s := m.snapshot(); !s.Ended || s.Gaps != 1 || s.Reason != "test" || s.Entries != 1 || s.Forks != 1 {
		t.Errorf("state %+v", s)
	}
}

// What is forgotten for want of room is not vouched for any more.
func TestMemoryIsBounded(t *testing.T) {
	m := newMemory("test", 0)
	for i := range uint64(maxEntries + 1) {
		m.born(procfs.HostPID(i%1000+1), i+1)
	}
	if n := len(m.order); n > maxEntries {
		t.Errorf("%d entries, want at most %d", n, maxEntries)
	}
	forgotten := uint64(maxEntries+1) / 2
	if got := m.lookup(2000, forgotten); got != lineage.ForkUnknown {
		t.Errorf("born before the youngest that was forgotten: %v", got)
	}
	if got := m.lookup(2000, forgotten+1); got != lineage.ForkedByOther {
		t.Errorf("born after it: %v", got)
	}
	sum := 0
	for _, times := range m.births {
		sum += len(times)
		if !slices.IsSorted(times) {
			t.Errorf("times %v are not in order", times)
		}
	}
	if sum != len(m.order) {
		t.Errorf("%d births by number and %d in order", sum, len(m.order))
	}
}
