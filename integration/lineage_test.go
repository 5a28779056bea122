package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/integration/lineagecheck"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/internal/uname"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// soakEnv is how long TestLineageSoak runs; without it, it does not. seedEnv is its first seed, sourceEnv the only fork log that it
// runs with: a long soak can be done in parts.
const (
	soakEnv   = "REAPER_SOAK"
	seedEnv   = "REAPER_SOAK_SEED"
	sourceEnv = "REAPER_SOAK_SOURCE"
)

// lineageSources are the fork logs with which the trees are grown. Every one has to keep every status; only those that
// prove everything have to leave nothing.
var lineageSources = []struct {
	name, options string
	provesAll     bool
}{
	{name: "off", options: "forkLog = 'off'\n"},
	{name: "perf", options: "forkLog = 'perf'\n", provesAll: true},
	{name: "connector", options: "forkLog = 'connector'\n", provesAll: true},
}

// everyOrphan has the shim report each orphan that it reaps: the checker compares them all.
const everyOrphan = "orphanEventRate = 10000.0\norphanEventBurst = 10000\n"

// tree is one run of proctree.
type tree struct {
	seed      int
	processes int
	late      time.Duration
	options   string // TOML
	provesAll bool
	off       bool
	own       bool // almost all are PID 1's own children, which it waits for by their numbers
	punctual  bool // what is proven has to be gone in time, however busy the machine is
}

// args are those of proctree: of eight seeds two have a single-threaded PID 1 that waits for -1, one has a single-threaded one
// that takes orphans with a process group, four have threads.
func (r tree) args() []string {
	args := []string{"/bin/proctree", "-s", strconv.Itoa(r.seed), "-n", strconv.Itoa(r.processes), "-d", "/logs",
		"-l", strconv.FormatInt(r.late.Milliseconds(), 10)}
	if r.own {
		return append(args, "-b", "1", "-p", "5")
	}
	switch r.seed % 4 {
	case 1:
		args = append(args, "-t", "4")
	case 2:
		args = append(args, "-t", "1")
	case 3:
		args = append(args, "-a")
	case 0:
		if r.seed%8 == 0 {
			args = append(args, "-g")
		}
	}
	if r.seed%5 == 0 { // most are PID 1's own children: a fork log that forgets one has somebody to accuse
		args = append(args, "-b", "2", "-p", "20")
	}
	return args
}

// grow runs proctree in a container and returns what is known of the run when nothing changes any more. It is called from several
// goroutines and so fails no test.
func grow(ctx context.Context, d *harness.Daemon, events *harness.Events, runtime, dir string, r tree) (_ lineagecheck.Input, took time.Duration, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("seed %d: %w", r.seed, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return lineagecheck.Input{}, 0, err
	}
	spec := harness.Spec{
		Runtime: runtime,
		Options: &runtimeoptions.Options{ConfigBody: []byte(everyOrphan + r.options)},
		Args:    r.args(),
		Annotations: map[string]string{
			"io.containerd.reaper.grace": grace.String(),
		},
		Extra: []oci.SpecOpts{oci.WithMounts([]specs.Mount{
			{Type: "bind", Source: dir, Destination: "/logs", Options: []string{"rbind", "rw"}},
		})},
	}
	if r.off {
		spec.Annotations["io.containerd.reaper.mode"] = "off"
	}
	c, err := d.Run(ctx, spec)
	if err != nil {
		return lineagecheck.Input{}, 0, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, c.Remove(ctx))
	}()
	in := lineagecheck.Input{Logs: os.DirFS(dir), ForkLog: r.provesAll, Off: r.off}
	// Far more than PID 1 and the longest wait need, then what the orphans still have to do.
	limit := time.Duration(r.processes)*200*time.Millisecond + 3*r.late + time.Minute
	if err := testutil.Poll(limit, func() (bool, string) {
		done, err := initDone(dir)
		return done || err != nil || ctx.Err() != nil, "PID 1 is not done"
	}); err != nil {
		return in, 0, err
	}
	if err := testutil.Poll(limit, func() (bool, string) {
		pids, err := c.Task.Pids(ctx)
		return err == nil && len(pids) == 1, fmt.Sprintf("%d processes, %v", len(pids), err)
	}); err != nil {
		return in, 0, err
	}
	// The promise: whatever is proven is gone within grace + 2 s. The whole of that time is waited for, so that what is taken
	// wrongly is taken. A PID 1 that collects orphans itself has taught the shim to be slower.
	settled := time.Now()
	patience := grace + 2*time.Second
	// On a busy machine it takes longer: that is no failure while there is progress, unless the tree has to be punctual, and the
	// time is in the log.
	fewest, progress := math.MaxInt, settled
	err = testutil.Poll(limit, func() (bool, string) {
		if time.Since(settled) < patience {
			return false, "not settled"
		}
		children, rerr := zombieChildren(c.PID)
		if rerr != nil {
			return false, rerr.Error()
		}
		in.Children = children
		report, cerr := lineagecheck.Check(in)
		if cerr != nil {
			return false, cerr.Error()
		}
		left := 0
		for _, v := range report.Violations {
			if v.Rule == lineagecheck.RuleLeftover {
				left++
			}
		}
		if left < fewest {
			fewest, progress = left, time.Now()
		}
		limit := 5 * patience
		if report.Counts["wait.adopted"] > 0 {
			limit += sweep.LearnedGrace
		}
		if left > 0 && time.Since(progress) < limit {
			return false, "orphans left"
		}
		took = time.Since(settled)
		return true, ""
	})
	for _, x := range events.OrphanExits(c.ID()) {
		pid, perr := strconv.Atoi(strings.TrimPrefix(x.GetID(), "orphan-"))
		if perr != nil {
			return in, 0, fmt.Errorf("ID of an orphan %q: %w", x.GetID(), perr)
		}
		in.Orphans = append(in.Orphans, lineagecheck.Orphan{PID: pid, Status: x.GetExitStatus(), At: x.GetExitedAt().AsTime()})
	}
	return in, took, err
}

// initDone reports whether PID 1 has written its last line.
func initDone(dir string) (bool, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "1.*.log"))
	if err != nil || len(logs) == 0 {
		return false, err
	}
	data, err := os.ReadFile(logs[0])
	return strings.HasSuffix(string(data), " done\n"), err
}

// zombieChildren lists the zombies below PID 1 with their numbers in the container.
func zombieChildren(init int) ([]lineagecheck.Child, error) {
	zs, err := harness.Zombies(init)
	if err != nil {
		return nil, err
	}
	proc := procfs.New(os.DirFS("/proc"))
	var out []lineagecheck.Child
	for _, z := range zs {
		s, err := proc.Status(procfs.HostPID(z.PID))
		if errors.Is(err, procfs.ErrVanished) {
			continue // reaped meanwhile
		}
		if err != nil {
			return nil, err
		}
		inner, _ := s.At(s.Level())
		child := lineagecheck.Child{Process: lineagecheck.Process{PID: int(inner), Start: z.StartTime}, Zombie: true}
		// The number of the session in the container. Its leader may be gone, and then nothing maps the host's number: what
		// matters is whether it is PID 1's, its own or another.
		switch z.Session {
		case init:
			child.Session = 1
		case z.PID:
			child.Session = child.PID
		default:
			child.Session = z.Session
		}
		out = append(out, child)
	}
	return out, nil
}

// growAll runs all trees, a few at once, and returns what was found by seed.
func growAll(t *testing.T, trees []tree) (map[int]lineagecheck.Report, map[string]int) {
	t.Helper()
	d := daemon(t)
	runtime := reaper(t)
	testutil.Tool(t, "proctree")
	events := subscribe(t, d)
	const atOnce = 8 // they sleep most of the time
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		reports = map[int]lineagecheck.Report{}
		counts  = map[string]int{}
		slowest time.Duration
		slots   = make(chan struct{}, atOnce)
		base    = t.TempDir()
	)
	for _, r := range trees {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			dir := filepath.Join(base, fmt.Sprint(r.seed))
			in, took, err := grow(t.Context(), d, events, runtime, dir, r)
			if err != nil {
				t.Error(err)
				return
			}
			report, err := lineagecheck.Check(in)
			if err != nil {
				t.Errorf("seed %d: %v", r.seed, err)
				return
			}
			for i, v := range report.Violations {
				if i == 20 {
					t.Errorf("seed %d: and %d more", r.seed, len(report.Violations)-i)
					break
				}
				t.Errorf("seed %d (%s): %v", r.seed, strings.Join(r.args(), " "), v)
			}
			// A second for the last look itself.
			if limit := grace + 3*time.Second; r.punctual && r.provesAll && report.Counts["wait.adopted"] == 0 && took > limit {
				t.Errorf("seed %d: the last proven orphan was gone after %v, want %v", r.seed, took, limit)
			}
			if len(report.Violations) == 0 && !r.off {
				tamper(t, r.seed, in)
			}
			mu.Lock()
			defer mu.Unlock()
			reports[r.seed] = report
			slowest = max(slowest, took)
			for name, n := range report.Counts {
				counts[name] += n
			}
			counts["leftover"] += report.Leftover
			counts["leftover.foreign"] += report.LeftoverForeign
		})
	}
	wg.Wait()
	for _, seed := range slices.Sorted(maps.Keys(reports)) {
		r := reports[seed]
		t.Logf("seed %d: %d processes, %d reaped by the shim, %d by PID 1, %d left, %d of them foreign", seed, r.Counts["process"],
			r.Counts["orphan.reported"], r.Counts["wait.adopted"], r.Leftover, r.LeftoverForeign)
	}
	t.Logf("the last look, at the earliest %v after all was done, was after %v", grace+2*time.Second, slowest.Round(time.Millisecond))
	return reports, counts
}

// tamper shows that the checker would have found a shim that takes PID 1's own children in this very run.
func tamper(t *testing.T, seed int, in lineagecheck.Input) {
	bad, n, err := lineagecheck.InvertSession(in)
	if err != nil {
		t.Errorf("seed %d: %v", seed, err)
		return
	}
	report, err := lineagecheck.Check(bad)
	if err != nil || n > 0 && len(report.Violations) < n {
		t.Errorf("seed %d: %d own children taken, and %d violations found, %v", seed, n, len(report.Violations), err)
	}
}

func countsText(counts map[string]int) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "\n  %-20s %d", name, counts[name])
	}
	return b.String()
}

// lineageKinds are what a set of trees has to contain to be worth anything.
var lineageKinds = []string{
	"fork.fork", "fork.clone3", "fork.vfork", "fork.cloneparent", "fork.by-thread", "thread.start", "thread.end",
	"role.tree", "role.double", "role.daemon", "op.setsid", "op.setpgid", "kill", "exit.exit", "exit.signal",
	"policy1.now", "policy1.late", "policy1.never", "policy1.kill",
	"wait.pid", "wait.waitid", "wait.group", "wait.pidfd", "wait.any", "wait.adopted",
}

// TestLineage grows random process trees below PID 1s of many habits while the shim reaps, and compares what every process
// wrote down with what the shim says: no status may be lost, none be wrong.
func TestLineage(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some minutes")
	}
	const seeds, processes = 20, 500
	for _, source := range lineageSources {
		t.Run(source.name, func(t *testing.T) {
			var trees []tree
			for seed := 1; seed <= seeds; seed++ {
				trees = append(trees, tree{seed: seed, processes: processes, late: 3 * time.Second,
					options: source.options, provesAll: source.provesAll})
			}
			reports, counts := growAll(t, trees)
			t.Logf("%d seeds:%s", len(reports), countsText(counts))
			for _, kind := range lineageKinds {
				if counts[kind] == 0 {
					t.Errorf("nothing of %s: the trees are not what they should be", kind)
				}
			}
			if counts["process"] < seeds*processes*9/10 {
				t.Errorf("%d processes, want about %d", counts["process"], seeds*processes)
			}
			if counts["orphan.reported"] == 0 {
				t.Error("the shim has reaped nothing: the test has shown nothing")
			}
		})
	}
}

// TestLineageNotices: the same test fails when the shim is wrong. Its evidence is falsified (package fault): the session rule
// says the opposite, or a fork log forgets one fork in a thousand.
func TestLineageNotices(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some minutes")
	}
	d := daemon(t)
	reaper(t)
	testutil.Tool(t, "proctree")
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	shim := filepath.Join(dir, "faulty", "containerd-shim-reaper-v2")
	for name, bin := range map[string]string{"containerd-shim-reaper-v2": shim, "reaper-tracer": filepath.Join(dir, "faulty", "reaper-tracer")} {
		build := osexec.Command("go", "build", "-tags", "reaperfault", "-o", bin, "./cmd/"+name)
		build.Dir = root
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s with faults: %v\n%s", name, err, out)
		}
	}
	for _, tt := range []struct{ fault, options string }{
		{"invert-session", "forkLog = 'off'\n"},
		{"forget-one-fork-in=1000", "forkLog = 'perf'\n"},
		{"forget-one-fork-in=1000", "forkLog = 'connector'\n"},
	} {
		t.Run(tt.fault+" "+strings.TrimSpace(tt.options), func(t *testing.T) {
			// The shim's environment is what tells it how to fail.
			entry := filepath.Join(t.TempDir(), "containerd-shim-reaper-v2")
			script := fmt.Sprintf("#!/bin/sh\nREAPER_FAULT=%s exec %s \"$@\"\n", tt.fault, shim)
			if err := os.WriteFile(entry, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			// A fork that is forgotten matters only if PID 1 asks later than the grace period, and a child that PID 1
			// collects makes the shim careful: a few thousand forks are needed until one is robbed.
			const rounds, atOnce, processes = 6, 6, 1500
			seed := 4
			for round := 1; round <= rounds; round++ {
				events := subscribe(t, d)
				var (
					wg    sync.WaitGroup
					mu    sync.Mutex
					found []lineagecheck.Violation
				)
				for range atOnce {
					r := tree{seed: seed, processes: processes, late: 3 * time.Second, options: tt.options, own: true}
					seed++
					wg.Go(func() {
						in, _, err := grow(t.Context(), d, events, entry, filepath.Join(dir, fmt.Sprint(tt.options, r.seed)), r)
						if err != nil {
							t.Error(err)
							return
						}
						report, err := lineagecheck.Check(in)
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						defer mu.Unlock()
						for _, v := range report.Violations {
							if v.Rule != lineagecheck.RuleLeftover {
								found = append(found, v)
							}
						}
					})
				}
				wg.Wait()
				if len(found) > 0 {
					t.Logf("found in round %d, after about %d forks: %v", round, round*atOnce*processes, found[0])
					return
				}
			}
			t.Errorf("a shim with %s robbed nobody in %d forks, or nobody noticed", tt.fault, rounds*atOnce*processes)
		})
	}
}

// TestLineageOff: without the shim's help the same trees leave zombies, and the checker sees them.
func TestLineageOff(t *testing.T) {
	var trees []tree
	for seed := 1; seed <= 3; seed++ { // 3 waits for -1 and so collects some itself
		trees = append(trees, tree{seed: seed, processes: 200, late: time.Second, off: true})
	}
	reports, counts := growAll(t, trees)
	t.Logf("%d seeds:%s", len(reports), countsText(counts))
	for seed, r := range reports {
		if seed%4 != 3 && (r.Leftover < 20 || r.LeftoverForeign == 0) {
			t.Errorf("seed %d: %d orphans left, %d of them in other sessions: want many", seed, r.Leftover, r.LeftoverForeign)
		}
	}
	if counts["orphan.reported"] != 0 {
		t.Errorf("%d orphans reaped in mode off", counts["orphan.reported"])
	}
}

// TestLineageSoak is TestLineage for as long as one likes, with PID 1s that ask up to 30 seconds late.
func TestLineageSoak(t *testing.T) {
	if os.Getenv(soakEnv) == "" {
		t.Skipf("runs for the time in %s: make soak-lineage DURATION=10m", soakEnv)
	}
	duration, err := time.ParseDuration(os.Getenv(soakEnv))
	if err != nil {
		t.Fatalf("%s: %v", soakEnv, err)
	}
	begin, first := time.Now(), 1000
	if s := os.Getenv(seedEnv); s != "" {
		if first, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	seed := first
	const batch, processes = 6, 2800
	total := map[string]map[string]int{}
	for seed == first || time.Since(begin) < duration {
		before := seed
		for _, source := range lineageSources {
			if only := os.Getenv(sourceEnv); only != "" && only != source.name {
				continue
			}
			var trees []tree
			for range batch {
				trees = append(trees, tree{seed: seed, processes: processes, late: 30 * time.Second,
					options: source.options, provesAll: source.provesAll, punctual: true})
				seed++
			}
			_, counts := growAll(t, trees)
			if total[source.name] == nil {
				total[source.name] = map[string]int{}
			}
			for name, n := range counts {
				total[source.name][name] += n
			}
		}
		if seed == before {
			t.Fatalf("%s: no fork log %q", sourceEnv, os.Getenv(sourceEnv))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(total)) {
		t.Logf("fork log %s:%s", name, countsText(total[name]))
	}
	t.Logf("seeds %d to %d, kernel %s, %v", first, seed-1, uname.Get().Release, time.Since(begin).Round(time.Second))
}
