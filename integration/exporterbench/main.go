// Command exporterbench starts as many leaky containers as it can in two minutes, 200 at most, scrapes reaper-exporter, and writes what
// that took into docs/exporter.md. Run it with "make bench-exporter", as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/internal/uname"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

const (
	page   = "docs/exporter.md"
	target = "bench-exporter"
	// scrapes that are measured, each later than the exporter's answers are shared for.
	scrapes = 30
	pause   = 1100 * time.Millisecond
	// workers start and remove containers side by side.
	workers = 4
	ready   = 30 * time.Second
)

func main() {
	most := flag.Int("containers", 200, "how many at most")
	length := flag.Duration("for", 2*time.Minute, "how long to start containers for")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, *most, *length)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "exporterbench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, most int, length time.Duration) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run make bench-exporter as root")
	}
	d, err := harness.Start(ctx, harness.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	containers, err := start(ctx, d, most, length)
	defer func() { err = errors.Join(err, remove(context.WithoutCancel(ctx), containers)) }()
	if err != nil {
		return err
	}
	started := len(containers)
	base, pid, stop, err := serve(ctx, d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	load := benchreport.Load()
	var took []float64
	size, samples := 0, 0
	before, err := cpuTime(pid)
	if err != nil {
		return err
	}
	for range scrapes {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		began := time.Now()
		body, err := scrape(ctx, base)
		if err != nil {
			return err
		}
		took = append(took, float64(time.Since(began).Microseconds())/1000)
		if !strings.Contains(body, fmt.Sprintf("reaper_tasks{state=\"watched\"} %d\n", started)) {
			return fmt.Errorf("the scrape does not say that %d tasks are watched: %.2000s", started, body)
		}
		size, samples = len(body), strings.Count(body, "\nreaper_")
	}
	after, err := cpuTime(pid)
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`%s, Linux %s, %d CPUs, load %s (others used the machine), containerd %s. Containers that were started in %v with a zombie each, %d at most; %d scrapes,
every one of which asks containerd and each shim.

| containers | scrape, median | 90%% | longest | CPU time of the exporter per scrape | samples | size |
|---|---|---|---|---|---|---|
| %d | %.0f ms | %.0f ms | %.0f ms | %.0f ms | %d | %d kB |
`, time.Now().UTC().Format(time.DateOnly), uname.Get().Release, runtime.NumCPU(), load, version(ctx, d), length, most, scrapes,
		started, benchreport.Quantile(took, 0.5), benchreport.Quantile(took, 0.9), benchreport.Quantile(took, 1),
		float64((after-before).Milliseconds())/scrapes, samples, size/1000)
	fmt.Print(text)
	return benchreport.RenewFile(page, target, text)
}

// start starts containers until there are enough or the time is over. The caller must remove them, also where it fails.
func start(ctx context.Context, d *harness.Daemon, most int, length time.Duration) (started []*harness.Container, err error) {
	var mu sync.Mutex
	var errs error
	next := 0
	end := time.Now().Add(length)
	take := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if errs != nil || next == most || time.Now().After(end) {
			return false
		}
		next++
		return true
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for take() {
				// A child of its own that it never waits for: a zombie without an exec.
				c, err := d.Run(ctx, harness.Spec{
					Runtime: harness.ReaperRuntime, Args: []string{"/bin/sh", "-c", "(exit 5) & exec /bin/pause1 poll"},
				})
				mu.Lock()
				if err != nil {
					errs = errors.Join(errs, err)
				} else {
					started = append(started, c)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return started, errs
}

// remove removes containers side by side: the daemon's Close has too little time for so many.
func remove(ctx context.Context, containers []*harness.Container) error {
	left := make(chan *harness.Container, len(containers))
	for _, c := range containers {
		left <- c
	}
	close(left)
	var mu sync.Mutex
	var errs error
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for c := range left {
				if err := c.Remove(ctx); err != nil {
					mu.Lock()
					errs = errors.Join(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// serve starts the exporter, which stop ends.
func serve(ctx context.Context, d *harness.Daemon) (base string, pid procfs.HostPID, stop func() error, err error) {
	bin, err := testutil.FindTool("reaper-exporter")
	if err != nil {
		return "", 0, nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", 0, nil, err
	}
	address := l.Addr().String()
	l.Close()
	// It looks by itself only at its beginning: what is measured is the scrapes.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), bin, "--containerd.address", d.Address, "--web.listen-address", address, "--poll-interval", "1h")
	cmd.Env, cmd.Stderr = d.Env(), os.Stderr
	if err := cmd.Start(); err != nil {
		return "", 0, nil, err
	}
	stop = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return cmd.Wait()
	}
	base = "http://" + address
	err = testutil.Poll(ready, func() (bool, string) {
		body, err := scrape(ctx, base)
		return err == nil && strings.Contains(body, "\nreaper_up 1\n"), fmt.Sprint(err)
	})
	if err != nil {
		return "", 0, nil, errors.Join(err, stop())
	}
	return base, procfs.HostPID(cmd.Process.Pid), stop, nil
}

func scrape(ctx context.Context, base string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/metrics", http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("scrape: %s: %.200s", resp.Status, body)
	}
	return string(body), err
}

// cpuTime is how long a process has run on any CPU (proc(5), /proc/pid/schedstat: nanoseconds).
func cpuTime(pid procfs.HostPID) (time.Duration, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name()))
		if err != nil {
			continue // a thread that has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(data), &ns); err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

func version(ctx context.Context, d *harness.Daemon) string {
	v, err := d.Client.Version(ctx)
	if err != nil {
		return "of unknown version"
	}
	return benchreport.Version(v.Version)
}
