package integration

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/tracer"
	"github.com/reaper-shim/reaper/shim"
)

// descriptors counts what a process has open, by what it is.
func descriptors(t *testing.T, pid int) map[string]int {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]int)
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			if kind, _, ok := strings.Cut(to, ":["); ok && kind != "anon_inode" { // socket:[12345], but anon_inode:[eventfd]
				to = kind
			}
			all[to]++
		}
	}
	return all
}

// TestTurnover: containers that come and go in one shim, in every mode, leave no descriptor behind in it, each is looked after, and the end
// of each is told.
func TestTurnover(t *testing.T) {
	const (
		rounds   = 5
		parallel = 3
	)
	d := ownDaemon(t, harness.Options{})
	modes := []shim.Mode{shim.ModeAssist, shim.ModeInit, shim.ModeObserve, shim.ModeOff}
	first := run(t, d, grouped(t, "node"))
	reaps(t, first)
	process := shimOf(t, first.PID)
	// live has a container live and die. It is not deleted yet.
	live := func(mode shim.Mode) (*harness.Container, error) {
		spec := grouped(t, "node")
		spec.Annotations = map[string]string{shim.AnnotationMode: string(mode)}
		c, err := d.Run(t.Context(), spec)
		if err != nil {
			return nil, err
		}
		if got, err := c.Shim(); err != nil || got != process {
			return c, fmt.Errorf("shim %v, %w, want %v", got, err, process)
		}
		if r, err := c.Exec(t.Context(), "/bin/leak", "-n", "3"); err != nil || r.Code != 0 {
			return c, fmt.Errorf("leak: %+v, %w", r, err)
		}
		if mode == shim.ModeAssist || mode == shim.ModeInit {
			if err := testutil.Poll(grace+5*time.Second, func() (bool, string) {
				zs, err := c.Zombies()
				return err == nil && len(zs) == 0, fmt.Sprint(describe(zs), err)
			}); err != nil {
				return c, fmt.Errorf("zombies in mode %s: %w", mode, err)
			}
		}
		if err := c.Kill(t.Context(), syscall.SIGKILL); err != nil {
			return c, err
		}
		ctx, cancel := context.WithTimeout(t.Context(), testutil.Slow(10*time.Second))
		defer cancel()
		_, err = c.Wait(ctx)
		return c, err
	}
	turn := func(count int) {
		var wg sync.WaitGroup
		for i := range parallel * len(modes) {
			wg.Go(func() {
				var last *harness.Container
				remove := func() {
					if last == nil {
						return
					}
					if err := last.Remove(t.Context()); err != nil {
						t.Error(err)
					}
				}
				for range count {
					c, err := live(modes[i%len(modes)])
					if err != nil {
						t.Error(err)
					}
					// Later than the next has lived, which may have the number of its namespace.
					remove()
					last = c
				}
				remove()
			})
		}
		wg.Wait()
	}
	turn(1)
	// settled waits until they stay the same for longer than a tracer waits for work.
	settled := func() map[string]int {
		var last map[string]int
		since := time.Now()
		testutil.Eventually(t, 30*time.Second, func() (bool, string) {
			now := descriptors(t, process.PID)
			if !maps.Equal(now, last) {
				last, since = now, time.Now()
			}
			return time.Since(since) > tracer.DefaultIdle+time.Second, fmt.Sprint(now)
		})
		return last
	}
	before := settled()
	began := time.Now()
	turn(rounds)
	t.Logf("%d containers in %v", rounds*parallel*len(modes), time.Since(began))
	// Some of those before may have been on their way out.
	after := settled()
	for kind, n := range after {
		if n > before[kind] {
			t.Errorf("descriptors of the shim: %v, before %v", after, before)
			break
		}
	}
	reaps(t, first)
}
