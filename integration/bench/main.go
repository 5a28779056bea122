// Bench measures what our shim costs beside containerd's, containerd-shim-runc-v2, with the same containerd and the same runc, in turns:
// docs/benchmarks.md. "make bench" runs it, as root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// target is the make target that the marks of the page name.
const target = "bench"

// options are the knobs.
type options struct {
	rounds, repeat, parallel int

	settle, idle time.Duration
	podsPerSize  int
	containers   []int

	pods, workers, leaking, rate int
	window                       time.Duration

	processes, sweeps int

	orphans, reapRate, reapRounds int

	stress, stressRounds int
}

// part is something that can be measured by itself.
type part struct {
	name    string
	measure func(ctx context.Context, d *harness.Daemon, o options, w where, r *result) error
}

var parts = []part{
	{"start", func(ctx context.Context, d *harness.Daemon, o options, w where, r *result) error {
		return measured(w, func() (*startPart, error) { return measureStart(ctx, d, o) }, func(p *startPart, w where) { p.where, r.Start = w, p })
	}},
	{"idle", func(ctx context.Context, d *harness.Daemon, o options, w where, r *result) error {
		return measured(w, func() (*idlePart, error) { return measureIdle(ctx, d, o) }, func(p *idlePart, w where) { p.where, r.Idle = w, p })
	}},
	{"density", func(ctx context.Context, d *harness.Daemon, o options, w where, r *result) error {
		return measured(w, func() (*densityPart, error) { return measureDensity(ctx, d, o) }, func(p *densityPart, w where) { p.where, r.Density = w, p })
	}},
	{"sweep", func(ctx context.Context, d *harness.Daemon, o options, w where, r *result) error {
		return measured(w, func() (*sweepPart, error) { return measureSweep(ctx, d, o) }, func(p *sweepPart, w where) { p.where, r.Sweep = w, p })
	}},
	{"reap", func(ctx context.Context, d *harness.Daemon, o options, w where, r *result) error {
		return measured(w, func() (*reapPart, error) { return measureReap(ctx, d, o) }, func(p *reapPart, w where) { p.where, r.Reap = w, p })
	}},
	// In a containerd of its own, with a network and a registry.
	{"stress", func(ctx context.Context, _ *harness.Daemon, o options, w where, r *result) error {
		return measured(w, func() (*stressPart, error) { return measureStress(ctx, o) }, func(p *stressPart, w where) { p.where, r.Stress = w, p })
	}},
}

// measured runs f and hands over what it measured, with the time that it took.
func measured[P any](w where, f func() (P, error), keep func(P, where)) error {
	began := time.Now()
	p, err := f()
	if err != nil {
		return err
	}
	w.LoadEnd, w.Took = benchreport.Load(), float64(time.Since(began).Milliseconds())/1000
	keep(p, w)
	return nil
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 10, "start: measure so often, the cases of each round in a new order")
	flag.IntVar(&o.repeat, "repeat", 4, "start: measure one after the other so often in each round")
	flag.IntVar(&o.parallel, "parallel", 10, "start: so many at once")
	flag.DurationVar(&o.settle, "settle", time.Minute, "idle, density: leave pods alone for so long before they are measured")
	flag.DurationVar(&o.idle, "idle", 3*time.Minute, "idle: measure for so long")
	flag.IntVar(&o.podsPerSize, "pods-per-size", 5, "idle: so many pods of each size and runtime")
	sizes := flag.String("containers", "1,3,10", "idle: sizes of pods, in containers beside the sandbox")
	flag.IntVar(&o.pods, "pods", 200, "density: so many pods")
	flag.IntVar(&o.workers, "workers", 4, "density: start so many pods at once")
	flag.IntVar(&o.leaking, "leaking", 10, "density: per cent of the pods that leak")
	flag.IntVar(&o.rate, "rate", 5, "density: orphans a second in each of them")
	flag.DurationVar(&o.window, "window", 30*time.Second, "density: measure CPU for so long, with and without leaks; whole seconds")
	flag.IntVar(&o.processes, "processes", 10000, "sweep: up to so many processes in a container, from 10, each time ten times as many")
	flag.IntVar(&o.sweeps, "sweeps", 50, "sweep: look so often")
	flag.IntVar(&o.orphans, "orphans", 2000, "reap: so many orphans in each sample")
	flag.IntVar(&o.reapRate, "reap-rate", 200, "reap: orphans a second")
	flag.IntVar(&o.reapRounds, "reap-rounds", 3, "reap: so many samples of each")
	flag.IntVar(&o.stress, "stress", 20, "stress: containers of containerd-stress density, and containers and pods of critest")
	flag.IntVar(&o.stressRounds, "stress-rounds", 1, "stress: so often")
	only := flag.String("only", "", "measure only these `parts`, of start,idle,density,sweep,reap,stress: the others stay as they were")
	data := flag.String("json", "docs/data/benchmarks.json", "write what was measured to this file")
	doc := flag.String("doc", "docs/benchmarks.md", "renew the tables of this file")
	plots := flag.String("plots", "docs/benchmarks", "write the plots to this directory")
	render := flag.Bool("render", false, "measure nothing: renew tables and plots from the JSON file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := o.parse(*sizes)
	if err == nil {
		err = run(ctx, o, *only, *data, *doc, *plots, *render)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o *options) parse(sizes string) error {
	for s := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-containers %q: want numbers from 1, separated by commas", sizes)
		}
		o.containers = append(o.containers, n)
	}
	for name, n := range map[string]int{
		"rounds": o.rounds, "repeat": o.repeat, "parallel": o.parallel, "pods-per-size": o.podsPerSize, "pods": o.pods, "workers": o.workers,
		"rate": o.rate, "sweeps": o.sweeps, "orphans": o.orphans, "reap-rate": o.reapRate, "reap-rounds": o.reapRounds, "stress": o.stress, "stress-rounds": o.stressRounds,
	} {
		if n < 1 {
			return fmt.Errorf("-%s %d: want 1 or more", name, n)
		}
	}
	if o.window < time.Second {
		return fmt.Errorf("-window %v: want a second or more", o.window)
	}
	if o.leaking < 1 || o.leaking > 100 {
		return fmt.Errorf("-leaking %d: want 1 to 100", o.leaking)
	}
	return nil
}

// choose returns the parts that only names, all when it names none.
func choose(only string) ([]part, error) {
	if only == "" {
		return parts, nil
	}
	var chosen []part
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
		if i < 0 {
			var names []string
			for _, p := range parts {
				names = append(names, p.name)
			}
			return nil, fmt.Errorf("-only %q: want of %s", name, strings.Join(names, ", "))
		}
		chosen = append(chosen, parts[i])
	}
	return chosen, nil
}

func run(ctx context.Context, o options, only, data, doc, plots string, render bool) error {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	var r result
	switch text, err := os.ReadFile(data); {
	case err == nil:
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("parse %s: %w", data, err)
		}
	case render || !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if !render {
		if err := measure(ctx, o, chosen, &r); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return err
	}
	if err := r.plot(plots); err != nil {
		return err
	}
	var kept benchreport.Result = &r
	if render {
		kept = nil
	}
	rel, err := filepath.Rel(filepath.Dir(doc), plots)
	if err != nil {
		return err
	}
	return benchreport.Keep(kept, &result{plots: rel}, data, doc, target)
}

func measure(ctx context.Context, o options, chosen []part, r *result) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run make bench as root")
	}
	d, err := harness.Start(ctx, harness.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	version, err := d.Client.Version(ctx)
	if err != nil {
		return err
	}
	for _, p := range chosen {
		machine, err := benchreport.ThisMachine()
		if err != nil {
			return err
		}
		w := where{Machine: machine, Containerd: benchreport.Version(version.Version), Runc: runcVersion()}
		began := time.Now()
		if err := p.measure(ctx, d, o, w, r); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s: measured in %v\n", p.name, time.Since(began).Round(time.Second))
	}
	return nil
}

func runcVersion() string {
	tool, err := testutil.FindTool("runc")
	if err != nil {
		return "unknown"
	}
	out, err := exec.Command(tool, "--version").Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(line, "runc version ")
}
