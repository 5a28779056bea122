package sweep

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

func TestCadence(t *testing.T) {
	c := Cadence{Near: 250 * time.Millisecond, Far: 500 * time.Millisecond, Alone: 800 * time.Millisecond}
	now := time.Unix(1000, 0)
	for i, step := range []struct {
		reset bool
		res   Result
		want  time.Duration
	}{
		{false, Result{}, 250 * time.Millisecond},
		{false, Result{}, 500 * time.Millisecond},
		{false, Result{}, 500 * time.Millisecond},
		{true, Result{}, 250 * time.Millisecond},
		{false, Result{Zombies: 1}, 250 * time.Millisecond},
		{false, Result{Zombies: 1, NextDue: now.Add(80 * time.Millisecond)}, 80 * time.Millisecond},
		{false, Result{Zombies: 1, NextDue: now.Add(-time.Second)}, minimum},
		{false, Result{Zombies: 1, NextDue: now.Add(time.Hour)}, 250 * time.Millisecond},
		// Equal parts, none longer than Near, end when it is due.
		{false, Result{Zombies: 1, NextDue: now.Add(time.Second)}, 250 * time.Millisecond},
		{false, Result{Zombies: 1, NextDue: now.Add(900 * time.Millisecond)}, 225 * time.Millisecond},
		{false, Result{Zombies: 1, NextDue: now.Add(675 * time.Millisecond)}, 225 * time.Millisecond},
		{false, Result{Zombies: 1, NextDue: now.Add(251 * time.Millisecond)}, 125500 * time.Microsecond},
		{false, Result{}, 500 * time.Millisecond},
		// A storm is looked at again at once, and a look that took long is not soon repeated in vain.
		{false, Result{Zombies: 9999, More: true, Looking: time.Second}, 0},
		{false, Result{Zombies: 9999, Looking: time.Second}, 9 * time.Second},
		{false, Result{Zombies: 9999, Looking: time.Second, NextDue: now}, 2 * time.Second},
		{false, Result{Zombies: 9999, Looking: 20 * time.Millisecond}, 250 * time.Millisecond},
		// Without a child there is time, until there is one.
		{false, Result{Alone: true}, 500 * time.Millisecond},
		{false, Result{Alone: true}, 800 * time.Millisecond},
		{false, Result{Alone: true}, 800 * time.Millisecond},
		{false, Result{}, 500 * time.Millisecond},
		{true, Result{Alone: true}, 250 * time.Millisecond},
	} {
		if step.reset {
			c.Reset()
		}
		if got := c.Next(step.res, now); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}

// The promise is: gone within the grace period and one second. Seen one interval late, and acted on as soon as it is due, is the worst
// that the cadence adds.
func TestCadenceKeepsThePromise(t *testing.T) {
	now := time.Unix(1000, 0)
	if worst := DefaultNear + gatherFor; worst > 900*time.Millisecond {
		t.Errorf("a leak may be acted on %v late", worst)
	}
	for _, longest := range []time.Duration{DefaultFar, DefaultAlone} {
		c := Cadence{Near: DefaultNear, Far: DefaultFar, Alone: DefaultAlone}
		late := time.Duration(0)
		for due := time.Second; due > 0; {
			wait := c.Next(Result{Zombies: 1, NextDue: now.Add(due)}, now)
			late, due = late+wait, due-wait
		}
		late -= time.Second
		if worst := longest + late; worst > 900*time.Millisecond {
			t.Errorf("the cadence alone adds up to %v", worst)
		}
	}
}

func TestFindCgroup(t *testing.T) {
	fsys := fstest.MapFS{
		"pids/a/b/cgroup.procs":     {Data: []byte("10\n11\n")},
		"pids/a/b/pids.current":     {Data: []byte("7\n")},
		"pids/a/b/pids.max":         {Data: []byte("max\n")},
		"pids/a/b/c/cgroup.procs":   {Data: []byte("12\n0\n")},
		"freezer/a/b/freezer.state": {Data: []byte("FREEZING\n")},
		"u/cgroup.procs":            {Data: []byte("13\n")},
		"u/cgroup.events":           {Data: []byte("populated 1\nfrozen 0\n")},
		"u/pids.max":                {Data: []byte("100\n")},
	}
	v1 := FindCgroup(fsys, []procfs.Cgroup{
		{Hierarchy: 8, Controllers: []string{"pids"}, Path: "/a/b"},
		{Hierarchy: 6, Controllers: []string{"freezer"}, Path: "/a/b"},
		{Hierarchy: 0, Path: "/"},
	})
	if v1 == nil {
		t.Fatal("v1: not found")
	}
	if pids, err := v1.Procs(); err != nil || len(pids) != 3 {
		t.Errorf("v1: processes %v, %v; want 10, 11 and 12 of the nested one", pids, err)
	}
	if n, ok := v1.Current(); n != 7 || !ok {
		t.Errorf("v1: current %d, %v", n, ok)
	}
	if n, ok := v1.Max(); ok {
		t.Errorf("v1: max %d, want none", n)
	}
	if !v1.Frozen() {
		t.Error("v1: FREEZING is not taken for frozen")
	}
	fsys["freezer/a/b/freezer.state"] = &fstest.MapFile{Data: []byte("THAWED\n")}
	if v1.Frozen() {
		t.Error("v1: THAWED is taken for frozen")
	}

	v2 := FindCgroup(fsys, []procfs.Cgroup{{Hierarchy: 0, Path: "/u"}})
	if v2 == nil {
		t.Fatal("v2: not found")
	}
	if n, ok := v2.Max(); n != 100 || !ok {
		t.Errorf("v2: max %d, %v", n, ok)
	}
	if v2.Frozen() {
		t.Error("v2: frozen 0 is taken for frozen")
	}
	fsys["u/cgroup.events"] = &fstest.MapFile{Data: []byte("populated 1\nfrozen 1\n")}
	if !v2.Frozen() {
		t.Error("v2: frozen 1 is not seen")
	}

	for name, lines := range map[string][]procfs.Cgroup{
		"none":             nil,
		"the root":         {{Hierarchy: 0, Path: "/"}},
		"outside the view": {{Hierarchy: 0, Path: "/../x"}},
		"not there":        {{Hierarchy: 0, Path: "/nowhere"}},
	} {
		if c := FindCgroup(fsys, lines); c != nil {
			t.Errorf("%s: found %+v", name, c)
		}
	}
}
