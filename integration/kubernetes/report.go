package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/integration/compare"
	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
)

// mostZombies is how many zombies the pod under our runtime may have at once: one comes every two seconds and stays for the grace
// period and a sweep, which a busy machine may draw out.
const mostZombies = 5

// reading is how a pod stands at one moment.
type reading struct {
	Zombies int // below PID 1
	PIDs    int // pids.current of its container
	Ready   bool
}

type sample struct {
	After        time.Duration // since both pods were ready
	Runc, Reaper reading
}

type execResult struct {
	Runtime, Mode string
	Left          int // zombies
}

// result is what a run has shown.
type result struct {
	Machine    benchreport.Machine
	Versions   []string
	Exec       []execResult
	BadMode    string   // what Kubernetes says of a pod with a mode that there is not
	ProbeKinds []string // runtimes
	Probes     []sample
	Evicted    bool
	Limited    []sample
	CannotFork string // what Kubernetes says of the pod that has no PIDs left
}

func (s sample) String() string {
	return fmt.Sprintf("%4.0f s: runc.v2 %v; reaper.v2 %v", s.After.Seconds(), s.Runc, s.Reaper)
}

func (r reading) String() string {
	return fmt.Sprintf("%d zombies, %d pids, %s", r.Zombies, r.PIDs, r.readiness())
}

func (r reading) readiness() string {
	if r.Ready {
		return "ready"
	}
	return "not ready"
}

// checkProbes says what is not as it should be: zombies pile up under runc.v2 and not under ours, and both pods are ready.
func checkProbes(samples []sample) error {
	if len(samples) < 2 {
		return fmt.Errorf("%d samples, want at least two", len(samples))
	}
	first, last := samples[0], samples[len(samples)-1]
	errs := []error{checkOurs(samples)}
	// One each two seconds; a busy machine is slower.
	if grown, want := last.Runc.Zombies-first.Runc.Zombies, int(last.After.Seconds())/8; grown < max(want, 1) {
		errs = append(errs, fmt.Errorf("under runc.v2 %d zombies more after %v, want at least %d", grown, last.After.Round(time.Second), want))
	}
	for _, s := range samples {
		if s.Runc.PIDs < s.Runc.Zombies {
			errs = append(errs, fmt.Errorf("%v: zombies hold PIDs", s))
		}
		if !s.Runc.Ready {
			errs = append(errs, fmt.Errorf("%v: not ready without a limit", s))
		}
	}
	return errors.Join(errs...)
}

// checkLimited says what is not as it should be: the pod under runc.v2 ends unready, and ours is ready all the time.
func checkLimited(samples []sample) error {
	if len(samples) == 0 {
		return errors.New("no samples")
	}
	errs := []error{checkOurs(samples)}
	if last := samples[len(samples)-1]; last.Runc.Ready {
		errs = append(errs, fmt.Errorf("%v: ready in spite of the limit", last))
	}
	return errors.Join(errs...)
}

func checkOurs(samples []sample) error {
	var errs []error
	for _, s := range samples {
		if s.Reaper.Zombies > mostZombies {
			errs = append(errs, fmt.Errorf("%v: more than %d zombies under our runtime", s, mostZombies))
		}
		if !s.Reaper.Ready {
			errs = append(errs, fmt.Errorf("%v: the pod under our runtime is not ready", s))
		}
	}
	return errors.Join(errs...)
}

// Markdown returns the result for the page.
func (r result) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s, %d CPUs, load %s before and %s after. %s.\n", r.Machine.Date, r.Machine.Kernel, r.Machine.CPUs,
		r.Machine.Load, r.Machine.LoadEnd, strings.Join(r.Versions, ", "))
	b.WriteString("\n### A probe that leaks\n\n")
	table(&b, r.Probes)
	fmt.Fprintf(&b, "\n### podPidsLimit: %d\n\n", pidsLimit)
	table(&b, r.Limited)
	fmt.Fprintf(&b, "\nKubernetes on the pod under `%s`: `%s`.\n", harness.RuncRuntime, quoted(r.CannotFork))
	fmt.Fprintf(&b, "\n### kubectl exec\n\n| runtime | `%s` | zombies of %d orphans that stay |\n|---|---|--:|\n", modeAnnotation, orphans)
	for _, e := range r.Exec {
		mode := "none"
		if e.Mode != "" {
			mode = "`" + e.Mode + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %d |\n", e.Runtime, mode, e.Left)
	}
	fmt.Fprintf(&b, "\nOf a pod with the mode `sometimes` Kubernetes says: `%s`.\n", quoted(r.BadMode))
	if len(r.ProbeKinds) > 0 {
		fmt.Fprintf(&b, "\n### Kinds of probes\n\nUnder `%s`: a pod with a startup probe by exec, a readiness probe by HTTP and a liveness probe by TCP is ready "+
			"and stays; one whose liveness probe finds a closed port is restarted, and with `restartPolicy: Never` it ends.\n", strings.Join(r.ProbeKinds, "` and `"))
	}
	if r.Evicted {
		b.WriteString("\n### Eviction and deletion\n\nNothing was left of the evicted and of the deleted pods: no process, shim, container, cgroup or directory.\n")
	}
	return b.String()
}

func table(b *strings.Builder, samples []sample) {
	b.WriteString("| s | zombies, runc.v2 | pids | | zombies, reaper.v2 | pids | |\n|--:|--:|--:|---|--:|--:|---|\n")
	for _, s := range samples {
		fmt.Fprintf(b, "| %.0f | %d | %d | %s | %d | %d | %s |\n", s.After.Seconds(), s.Runc.Zombies, s.Runc.PIDs, s.Runc.readiness(),
			s.Reaper.Zombies, s.Reaper.PIDs, s.Reaper.readiness())
	}
}

// quoted is text of others for a code span.
func quoted(text string) string { return strings.ReplaceAll(compare.OneLine(text), "`", "'") }
