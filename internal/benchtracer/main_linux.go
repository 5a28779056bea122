// Benchtracer measures what reaping by the tracer costs, beside an init that reaps and beside an attach for each zombie: the tables of
// docs/tracer-benchmarks.md. "make bench-tracer" runs it, as root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// result is what docs/data/tracer.json holds.
type result struct {
	benchreport.Machine
	Tini     string      `json:"tini"`
	Wrk      string      `json:"wrk"`
	Rounds   int         `json:"rounds"`
	Zombies  int         `json:"zombies"` // in a pile
	Rate     int         `json:"rate"`    // of the leak, orphans a second
	SampleMS int64       `json:"sampleMillis"`
	Piles    []pileCase  `json:"piles"`
	Serving  []serveCase `json:"serving"`
	Turns    []turnsCase `json:"turns"`
}

type options struct {
	rounds  int
	zombies int
	rate    int
	sample  time.Duration
	pairs   int
	worker  string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 9, "measure so often")
	flag.IntVar(&o.zombies, "zombies", 500, "make piles of so many")
	flag.IntVar(&o.rate, "rate", 100, "leak so many orphans a second below the server")
	flag.DurationVar(&o.sample, "sample", 4*time.Second, "load the server for so long, whole seconds")
	flag.IntVar(&o.pairs, "pairs", 40, "compare so many pairs of windows in a round")
	flag.StringVar(&o.worker, "worker", "bin/"+tracer.WorkerName, "the tracer's executable")
	data := flag.String("json", "docs/data/tracer.json", "write what was measured to this file")
	doc := flag.String("doc", "docs/tracer-benchmarks.md", "renew the tables of this file")
	render := flag.Bool("render", false, "measure nothing: renew the tables from the JSON file")
	flag.Parse()
	if err := run(o, *data, *doc, *render); err != nil {
		fmt.Fprintln(os.Stderr, "benchtracer:", err)
		os.Exit(1)
	}
}

func run(o options, dataFile, docFile string, render bool) error {
	var measured benchreport.Result
	if !render {
		r, err := measure(o)
		if err != nil {
			return err
		}
		measured = r
	}
	return benchreport.Keep(measured, new(result), dataFile, docFile, "bench-tracer")
}

func measure(o options) (*result, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root, for ptrace and PID namespaces")
	}
	if why := tracer.Supported(); why != "" {
		return nil, fmt.Errorf("the tracer: %s", why)
	}
	machine, err := benchreport.ThisMachine()
	if err != nil {
		return nil, err
	}
	if machine.CPUs < 2 {
		return nil, errors.New("needs two CPUs")
	}
	// The worker's working directory is the root.
	if o.worker, err = filepath.Abs(o.worker); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "benchtracer")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin, err := compile(dir)
	if err != nil {
		return nil, err
	}
	r := &result{
		Machine: machine, Rounds: o.rounds, Zombies: o.zombies, Rate: o.rate, SampleMS: o.sample.Milliseconds(),
		Tini: benchreport.FirstLine("tini", "--version"), Wrk: benchreport.FirstLine("dpkg-query", "-W", "-f", "${Version}", "wrk"),
		Piles: pileCases(), Serving: serveCases(), Turns: turnsCases(),
	}
	runtime.GOMAXPROCS(1) // as in a shim with one task
	b := &bench{options: o, bin: bin, cpu: machine.CPUs - 1}
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
		for _, i := range rand.Perm(len(r.Piles)) {
			if err := b.pile(&r.Piles[i]); err != nil {
				return nil, fmt.Errorf("pile, %s, %s: %w", r.Piles[i].Who, r.Piles[i].Where, err)
			}
		}
		for _, i := range rand.Perm(len(r.Serving)) {
			if err := b.serve(&r.Serving[i]); err != nil {
				return nil, fmt.Errorf("server, %s: %w", r.Serving[i].Name, err)
			}
		}
		for _, i := range rand.Perm(len(r.Turns)) {
			if err := b.turns(&r.Turns[i]); err != nil {
				return nil, fmt.Errorf("server, in turns: %w", err)
			}
		}
	}
	r.LoadEnd = benchreport.Load()
	return r, nil
}

type bench struct {
	options
	bin string
	cpu int // that a bound process is bound to
}
