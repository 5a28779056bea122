// Command demo runs the same leaky container under io.containerd.runc.v2 and under io.containerd.reaper.v2, side by side,
// and shows what becomes of its zombies. Run it with "make demo", as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/integration/harness"
)

const (
	// grace is the default of io.containerd.reaper.grace.
	grace = time.Second
	// leakEvery is how often an exec leaves orphans behind, and perExec how many each leaves.
	leakEvery = 100 * time.Millisecond
	perExec   = 1
	report    = "/report"
)

func main() {
	length := flag.Duration("for", 20*time.Second, "how long to leak")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, *length, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// side is one of the two containers.
type side struct {
	runtime   string
	container *harness.Container
	before    harness.Identity
	orphans   atomic.Int64
	firstSeen map[harness.Process]time.Time
}

// sample is the state of a side at one moment.
type sample struct {
	zombies, pids int
	oldest        time.Duration
}

func demo(ctx context.Context, length time.Duration, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run make demo as root")
	}
	fmt.Fprintln(out, "Starting a private containerd …")
	d, err := harness.Start(ctx, harness.Options{})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "--- log of containerd and the shims\n%s---\n", d.Log())
		}
		err = errors.Join(err, d.Close())
	}()

	sides := []*side{{runtime: harness.RuncRuntime}, {runtime: harness.ReaperRuntime}}
	for _, s := range sides {
		if err := s.start(ctx, d); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "Two containers of the same image. PID 1 blocks in poll(2) and never waits for a child; for %v, an exec every\n"+
		"%v leaves an orphan behind that ends at once.\n\n", length, leakEvery)

	if err := leak(ctx, sides, length, out); err != nil {
		return err
	}
	// What ended last has until the end of the grace period, and the sweep after it.
	if err := watch(ctx, sides, grace+time.Second, out); err != nil {
		return err
	}
	if terminal(out) {
		fmt.Fprintln(out)
	}
	fmt.Fprintln(out)
	return table(sides, out)
}

func (s *side) start(ctx context.Context, d *harness.Daemon) error {
	c, err := d.Run(ctx, harness.Spec{Runtime: s.runtime, Args: []string{"/bin/selfcheck", "poll", report}})
	if err != nil {
		return err
	}
	s.container, s.firstSeen = c, map[harness.Process]time.Time{}
	s.before, err = harness.IdentityOf(c.PID)
	return err
}

// leak runs the execs on all sides, each at its own pace, and draws until the time is over.
func leak(ctx context.Context, sides []*side, length time.Duration, out io.Writer) error {
	execs, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	failed := make(chan error, len(sides))
	var wg sync.WaitGroup
	for _, s := range sides {
		wg.Go(func() {
			ticker := time.NewTicker(leakEvery)
			defer ticker.Stop()
			for execs.Err() == nil {
				// One that has begun is finished: half an exec would leave something else behind than an orphan.
				if err := s.exec(ctx); err != nil {
					failed <- fmt.Errorf("%s: %w", s.runtime, err)
					cancel()
					return
				}
				select {
				case <-ticker.C:
				case <-execs.Done():
				}
			}
		})
	}
	err := watch(execs, sides, length, out)
	wg.Wait()
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

func (s *side) exec(ctx context.Context) error {
	r, err := s.container.Exec(ctx, "/bin/leak", "-n", fmt.Sprint(perExec))
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("leak: exit code %d: %s", r.Code, r.Stderr)
	}
	s.orphans.Add(perExec)
	return nil
}

// watch draws a line until the time is over: again and again on a terminal, every two seconds elsewhere.
func watch(ctx context.Context, sides []*side, length time.Duration, out io.Writer) error {
	begin, end := time.Now(), time.After(length)
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	var drawn time.Time
	for {
		var parts []string
		for _, s := range sides {
			now, err := s.sample()
			if err != nil {
				return err
			}
			parts = append(parts, fmt.Sprintf("%s: %4d orphans made, %4d zombies", strings.TrimPrefix(s.runtime, "io.containerd."),
				s.orphans.Load(), now.zombies))
		}
		line := strings.Join(parts, "   |   ")
		if terminal(out) {
			fmt.Fprintf(out, "\r%s\x1b[K", line)
		} else if time.Since(drawn) >= 2*time.Second {
			fmt.Fprintf(out, "%s\n", line)
			drawn = time.Now()
		}
		select {
		case <-ticker.C:
		case <-end:
			return nil
		case <-ctx.Done():
			if time.Since(begin) < length-time.Second {
				return errors.New("ended early")
			}
			return nil
		}
	}
}

func (s *side) sample() (sample, error) {
	zs, err := s.container.Zombies()
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", s.runtime, err)
	}
	pids, err := harness.PIDsCurrent(s.container.PID)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", s.runtime, err)
	}
	now := time.Now()
	present := map[harness.Process]time.Time{}
	out := sample{zombies: len(zs), pids: pids}
	for _, z := range zs {
		first, known := s.firstSeen[z.Process]
		if !known {
			first = now
		}
		present[z.Process] = first
		out.oldest = max(out.oldest, now.Sub(first))
	}
	s.firstSeen = present
	return out, nil
}

// untouched reports whether PID 1 is the process that it was and has nothing to complain about.
func (s *side) untouched() string {
	after, err := harness.IdentityOf(s.container.PID)
	if err != nil || after != s.before || after.NSPID != 1 {
		return "no: another process"
	}
	data, err := s.container.ReadFile(report)
	if err != nil {
		return "no: " + err.Error()
	}
	r := harness.ParseSelfCheck(string(data))
	for _, key := range []string{"registers", "result", "early", "mask", "errno", "disposition", "eintr"} {
		if r[key] != 0 {
			return fmt.Sprintf("no: %s differed %d times", key, r[key])
		}
	}
	if r["rounds"] == 0 {
		return "no: it has not looked"
	}
	return fmt.Sprintf("yes (same process; %d self-checks)", r["rounds"])
}

// titles are those of the last table.
var titles = []string{"runtime", "orphans made", "zombies", "pids.current", "oldest zombie", "PID 1 untouched"}

func table(sides []*side, out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(titles, "\t"))
	last := "zombies:"
	for _, s := range sides {
		now, err := s.sample()
		if err != nil {
			return err
		}
		oldest := "-"
		if now.zombies > 0 {
			oldest = now.oldest.Round(100 * time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", s.runtime, s.orphans.Load(), now.zombies, now.pids, oldest, s.untouched())
		last += fmt.Sprintf(" %s=%d", s.runtime, now.zombies)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%s\n", last)
	return err
}

func terminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
