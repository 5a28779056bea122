package main

import (
	"strings"
	"testing"
	"time"
)

func TestChecks(t *testing.T) {
	at := func(s int, runc, reaper reading) sample {
		return sample{After: time.Duration(s) * time.Second, Runc: runc, Reaper: reaper}
	}
	fine, few := reading{Zombies: 1, PIDs: 2, Ready: true}, reading{Zombies: 0, PIDs: 1, Ready: true}
	many := reading{Zombies: 60, PIDs: 61, Ready: true}
	lost := reading{Zombies: 28, PIDs: 29}
	for _, c := range []struct {
		name    string
		check   func([]sample) error
		samples []sample
		want    string // in the error; "" for none
	}{
		{"probes", checkProbes, []sample{at(0, few, few), at(120, many, fine)}, ""},
		{"probes, one sample", checkProbes, []sample{at(0, few, few)}, "at least two"},
		{"probes, no leak under runc.v2", checkProbes, []sample{at(0, few, few), at(120, fine, fine)}, "at least 15"},
		{"probes, no leak under runc.v2 at once", checkProbes, []sample{at(0, few, few), at(1, few, fine)}, "at least 0"},
		{"probes, a leak under ours", checkProbes, []sample{at(0, few, few), at(60, many, many), at(120, many, fine)}, "more than 5 zombies"},
		{"probes, ours unready", checkProbes, []sample{at(0, few, few), at(60, many, lost), at(120, many, fine)}, "not ready"},
		{"probes, runc.v2 unready", checkProbes, []sample{at(0, few, few), at(120, reading{Zombies: 60, PIDs: 61}, fine)}, "without a limit"},
		{"probes, zombies without PIDs", checkProbes, []sample{at(0, few, few), at(120, reading{Zombies: 60, PIDs: 1, Ready: true}, fine)}, "hold PIDs"},
		{"limit", checkLimited, []sample{at(0, few, few), at(60, lost, fine)}, ""},
		{"limit, no samples", checkLimited, nil, "no samples"},
		{"limit, runc.v2 ready", checkLimited, []sample{at(0, few, few), at(60, lost, fine), at(70, many, fine)}, "in spite of the limit"},
		{"limit, ours unready", checkLimited, []sample{at(0, few, few), at(60, lost, lost)}, "the pod under our runtime is not ready"},
	} {
		err := c.check(c.samples)
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := result{
		Versions: []string{"Kubernetes v1.2.3"}, BadMode: "bad `mode`\n| x", CannotFork: "sh: can't fork", Evicted: true,
		Exec:    []execResult{{"io.containerd.runc.v2", "", 5}, {"io.containerd.reaper.v2", "observe", 4}},
		Probes:  []sample{{After: 10400 * time.Millisecond, Runc: reading{Zombies: 7, PIDs: 8, Ready: true}, Reaper: reading{PIDs: 1, Ready: true}}},
		Limited: []sample{{After: time.Minute, Runc: reading{Zombies: 28, PIDs: 29}, Reaper: reading{Zombies: 1, PIDs: 2, Ready: true}}},
	}
	got := r.Markdown()
	for _, want := range []string{
		"Kubernetes v1.2.3.\n",
		"| 10 | 7 | 8 | ready | 0 | 1 | ready |\n",
		"| 60 | 28 | 29 | not ready | 1 | 2 | ready |\n",
		"`sh: can't fork`",
		"`bad 'mode' | x`",
		"| `io.containerd.runc.v2` | none | 5 |\n",
		"| `io.containerd.reaper.v2` | `observe` | 4 |\n",
		"Nothing was left",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	// What somebody else has written starts no line and ends no code span.
	for line := range strings.Lines(got) {
		if strings.Count(line, "`")%2 != 0 {
			t.Errorf("an open code span: %q", line)
		}
	}
	if r.Evicted = false; strings.Contains(r.Markdown(), "Nothing was left") {
		t.Error("the page tells of an eviction that was not")
	}
}
