// Command tracingbench measures what OpenTelemetry costs a shim, built in and turned on, and writes it into docs/tracing.md. Run it
// with "make bench-tracing", as root.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	page   = "docs/tracing.md"
	target = "bench-tracing"
	// containers are started under each kind of shim, in turns, with two orphans to reap each.
	containers = 10
	// versions is how often each build is asked for its version, which is what starting a program and its packages takes.
	versions = 50
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tracingbench:", err)
		os.Exit(1)
	}
}

// kind is one row of the table.
type kind struct {
	name   string
	bin    string // directory
	on     bool
	daemon *harness.Daemon

	run, start, private, proportional []float64 // ms, ms, kB, kB
}

func bench(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run make bench-tracing as root")
	}
	root, err := testutil.RepoRoot()
	if err != nil {
		return err
	}
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer collector.Close()
	kinds := []*kind{
		{name: "usual build", bin: filepath.Join(root, "bin")},
		{name: "built in, off", bin: filepath.Join(root, "bin/tracing")},
		{name: "built in, on", bin: filepath.Join(root, "bin/tracing"), on: true},
	}
	load := benchreport.Load()
	for _, k := range kinds {
		opts := harness.Options{Bin: k.bin}
		if k.on {
			opts.Env = []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL}
		}
		if k.daemon, err = harness.Start(ctx, opts); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, k.daemon.Close()) }()
	}
	for range versions {
		for _, k := range kinds {
			begin := time.Now()
			if err := exec.CommandContext(ctx, k.program(), "-v").Run(); err != nil {
				return fmt.Errorf("%s -v: %w", k.program(), err)
			}
			k.start = append(k.start, milliseconds(begin))
		}
	}
	for range containers {
		for _, k := range kinds {
			if err := k.measure(ctx); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
		}
	}
	table, err := tables(kinds, load)
	if err != nil {
		return err
	}
	return benchreport.RenewFile(page, target, table)
}

func (k *kind) program() string { return filepath.Join(k.bin, "containerd-shim-reaper-v2") }

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

// measure starts a container, lets its orphans be reaped, and reads the memory of its shim.
func (k *kind) measure(ctx context.Context) (err error) {
	begin := time.Now()
	c, err := k.daemon.Run(ctx, harness.Spec{Runtime: harness.ReaperRuntime, Args: []string{"/bin/pause1", "poll"}})
	if err != nil {
		return err
	}
	k.run = append(k.run, milliseconds(begin))
	defer func() { err = errors.Join(err, c.Remove(context.WithoutCancel(ctx))) }()
	if r, err := c.Exec(ctx, "/bin/leak", "-n", "2"); err != nil || r.Code != 0 {
		return fmt.Errorf("leak: exit code %d: %w", r.Code, err)
	}
	if err := testutil.Poll(20*time.Second, func() (bool, string) {
		zs, err := c.Zombies()
		return err == nil && len(zs) == 0, fmt.Sprintf("%d zombies, %v", len(zs), err)
	}); err != nil {
		return err
	}
	shim, err := c.Shim()
	if err != nil {
		return err
	}
	private, proportional, err := memory(shim.PID)
	k.private, k.proportional = append(k.private, private), append(k.proportional, proportional)
	return err
}

// memory returns the private dirty and the proportional memory of a process, in kB.
func memory(pid int) (private, proportional float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		var value float64
		key, rest, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscan(rest, &value); err != nil {
			continue
		}
		switch key {
		case "Private_Dirty":
			private = value
		case "Pss":
			proportional = value
		}
	}
	if private == 0 || proportional == 0 {
		return 0, 0, fmt.Errorf("no Private_Dirty and Pss in %q", text)
	}
	return private, proportional, nil
}

func tables(kinds []*kind, load string) (string, error) {
	machine, err := benchreport.ThisMachine()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s, %d CPUs, load %s before and %s after, %s, commit %s. Medians, with quartiles in brackets, of %d containers and %d starts each, "+
		"in turns.\n\n", machine.Date, machine.Kernel, machine.CPUs, load, benchreport.Load(), machine.Go, machine.Commit, containers, versions)
	b.WriteString("| shim | size, MB | program start, ms | create and start, ms | private dirty, kB | proportional (Pss), kB |\n|---|--:|--:|--:|--:|--:|\n")
	for _, k := range kinds {
		info, err := os.Stat(k.program())
		if err != nil {
			return "", err
		}
		columns := []string{k.name, fmt.Sprintf("%.1f", float64(info.Size())/1e6), benchreport.Spread(k.start, 1), benchreport.Spread(k.run, 0),
			benchreport.Spread(k.private, 0), benchreport.Spread(k.proportional, 0)}
		b.WriteString("| " + strings.Join(columns, " | ") + " |\n")
	}
	return b.String(), nil
}
