package exporter

import (
	"fmt"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/shim/api"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

func said(id string, pid uint32, byTracer uint64) *api.ZombieStats {
	return &api.ZombieStats{ContainerId: id, Pid: pid, ReapedByTracer: byTracer}
}

var byTracer = counter{metric: &reaped, a: "tracer", b: "adopted"}

// Each step is what one task says; then the container's counter and the node's must be what is wanted.
func TestLedger(t *testing.T) {
	app := names{"shop", "web", "app"}
	type step struct {
		who        names
		stats      *api.ZombieStats
		want, node float64
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"one task", []step{{app, said("a", 1, 3), 3, 3}, {app, said("a", 1, 3), 3, 3}, {app, said("a", 1, 5), 5, 5}}},
		{"replaced by another container", []step{{app, said("a", 1, 3), 3, 3}, {app, said("b", 2, 1), 4, 4}, {app, said("b", 2, 2), 5, 5}}},
		{"another task of the same container", []step{{app, said("a", 1, 3), 3, 3}, {app, said("a", 2, 1), 4, 4}}},
		{"two at the same time", []step{{app, said("a", 1, 3), 3, 3}, {app, said("b", 2, 2), 5, 5}, {app, said("a", 1, 4), 6, 6}, {app, said("b", 2, 3), 7, 7}}},
		{"ended and not deleted: 0 again", []step{{app, said("a", 1, 3), 3, 3}, {app, said("a", 1, 0), 3, 3}, {app, said("a", 1, 3), 3, 3}}},
		{"gone while it was asked", []step{{app, said("a", 1, 3), 3, 3}, {app, said("a", 0, 0), 3, 3}}},
		{"last words of a known one", []step{{app, said("a", 1, 3), 3, 3}, {names{}, said("a", 1, 9), 9, 9}, {names{}, said("a", 1, 9), 9, 9}}},
		{"an event before its name is known", []step{{names{}, said("a", 1, 2), 0, 2}, {app, said("a", 1, 2), 2, 2}, {app, said("a", 1, 3), 3, 3}}},
		{"nobody ever knew it", []step{{names{}, said("x", 7, 2), 0, 2}, {app, said("a", 1, 3), 3, 5}}},
		{"old news", []step{{app, said("a", 1, 5), 5, 5}, {names{}, said("a", 1, 4), 5, 5}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLedger()
			for i, s := range tt.steps {
				l.take("k8s.io", s.who, s.stats, at(i))
				got := 0.0
				if c := l.series[app]; c != nil {
					got = c.counters[byTracer]
				}
				if got != s.want || l.node[byTracer] != s.node {
					t.Fatalf("step %d: %v, node %v; want %v, %v", i, got, l.node[byTracer], s.want, s.node)
				}
			}
		})
	}
}

func TestLedgerNamespaces(t *testing.T) {
	l := newLedger()
	l.take("a", names{"a", "", "c"}, said("c", 1, 3), start)
	l.take("b", names{"b", "", "c"}, said("c", 1, 4), start)
	if a, b := l.series[names{"a", "", "c"}].counters[byTracer], l.series[names{"b", "", "c"}].counters[byTracer]; a != 3 || b != 4 {
		t.Errorf("%v and %v, want 3 and 4", a, b)
	}
}

// What is gone is forgotten after its time, or when there is too much of it; what is there never; what does not answer neither.
func TestLedgerPrune(t *testing.T) {
	l := newLedger()
	who := func(i int) names { return names{"ns", "", fmt.Sprint(i)} }
	for i := range 10 {
		l.take("ns", who(i), said(fmt.Sprint(i), uint32(i+1), 1), at(i))
	}
	now := at(10)
	l.take("ns", who(0), said("0", 1, 2), now)
	l.touch("ns", "1", now)
	l.prune(at(4), now, 3)
	for i, want := range []bool{true, true, false, false, false, false, false, true, true, true} {
		if got := l.series[who(i)] != nil; got != want {
			t.Errorf("container %d: there %v, want %v", i, got, want)
		}
	}
	if len(l.tasks) != 5 {
		t.Errorf("%d tasks, want the 5 of those containers", len(l.tasks))
	}
	if l.node[byTracer] != 11 {
		t.Errorf("node: %v, want 11: it forgets nothing", l.node[byTracer])
	}
	l.prune(at(9), at(11), 100)
	if len(l.series) != 3 {
		t.Errorf("%d containers, want 9 and the two that were seen last", len(l.series))
	}
}

func TestCountersOf(t *testing.T) {
	got := countersOf(&api.ZombieStats{
		ReapedByTracer: 10, ReapedUnproven: 2, ReapedOwn: 3, ReapedByShim: 4, ReapedByInit: 5, Vanished: 6, Refusals: map[string]uint64{"busy": 7},
		ReapTimes: &api.ReapTimes{Bounds: []float64{0.5, 1}, Counts: []uint64{1, 2, 7}, Sum: 12.5},
	})
	for c, want := range map[counter]float64{
		byTracer: 5,
		{metric: &reaped, a: "tracer", b: "unproven"}: 2,
		{metric: &reaped, a: "tracer", b: "own"}:      3,
		{metric: &reaped, a: "shim", b: "adopted"}:    4,
		{metric: &reaped, a: "init", b: "adopted"}:    5,
		{metric: &reaped, a: "pid1", b: "adopted"}:    6,
		{metric: &refusals, a: "busy"}:                7,
		{metric: &reapTime}:                           12.5,
		{metric: &reapTime, a: "0.5"}:                 1,
		{metric: &reapTime, a: "1"}:                   2,
		{metric: &reapTime, a: infinity}:              7,
	} {
		if got[c] != want {
			t.Errorf("%s%s: %v, want %v", c.a, c.b, got[c], want)
		}
	}
	// A shim whose histogram makes no sense has none.
	for c := range countersOf(&api.ZombieStats{ReapTimes: &api.ReapTimes{Bounds: []float64{1}, Counts: []uint64{1}}}) {
		if c.metric == &reapTime && c.a != "" {
			t.Errorf("bucket %q of a broken histogram", c.a)
		}
	}
}
