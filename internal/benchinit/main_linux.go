// Benchinit measures reaper-init beside tini, dumb-init and catatonit: the tables of docs/init.md. "make bench-init" runs it, as root.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

// result is what docs/data/init.json holds.
type result struct {
	Date    string    `json:"date"`
	Kernel  string    `json:"kernel"`
	Arch    string    `json:"arch"`
	CPUs    int       `json:"cpus"`
	Commit  string    `json:"commit"`
	Load    string    `json:"loadBefore"`
	LoadEnd string    `json:"loadAfter"`
	Rounds  int       `json:"rounds"`
	Starts  int       `json:"startsPerRound"`
	Orphans int       `json:"orphansPerRound"`
	Inits   []*series `json:"inits"`
}

// series is what was measured of one init.
type series struct {
	Name       string    `json:"name"`
	Version    string    `json:"version,omitempty"`
	BinarySize int64     `json:"binaryBytes,omitempty"`
	StartUS    []float64 `json:"startMicros"`        // start, program and end of it, the median of a round
	RSSKB      []float64 `json:"rssKB,omitempty"`    // of the init, while the program waits
	PSSKB      []float64 `json:"pssKB,omitempty"`    // likewise, shared pages by their share
	OrphansPS  []float64 `json:"orphansPerSecond"`   // from their common end until the last is gone
	CPUUS      []float64 `json:"cpuMicrosPerOrphan"` // of the init, kernel included

	command []string
}

func main() {
	rounds := flag.Int("rounds", 9, "measure so often")
	starts := flag.Int("starts", 30, "starts in a round")
	orphans := flag.Int("orphans", 2000, "orphans in a round")
	bin := flag.String("init", "bin/reaper-init", "reaper-init")
	data := flag.String("json", "docs/data/init.json", "write what was measured to this file")
	doc := flag.String("doc", "docs/init.md", "renew the tables of this file")
	render := flag.Bool("render", false, "measure nothing: renew the tables from the JSON file")
	flag.Parse()
	if err := run(*rounds, *starts, *orphans, *bin, *data, *doc, *render); err != nil {
		fmt.Fprintln(os.Stderr, "benchinit:", err)
		os.Exit(1)
	}
}

func run(rounds, starts, orphans int, bin, dataFile, docFile string, render bool) error {
	var (
		r   *result
		err error
	)
	if render {
		r, err = kept(dataFile)
	} else {
		r, err = measure(rounds, starts, orphans, bin)
	}
	if err != nil {
		return err
	}
	if len(r.Inits) == 0 {
		return errors.New("nothing was measured")
	}
	return benchreport.Keep(r, &result{}, dataFile, docFile, target)
}

// kept returns what was measured before.
func kept(dataFile string) (*result, error) {
	text, err := os.ReadFile(dataFile)
	if err != nil {
		return nil, err
	}
	r := &result{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("parse %s: %w", dataFile, err)
	}
	return r, nil
}
