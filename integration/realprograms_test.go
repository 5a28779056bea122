package integration

import (
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/shim/api"
)

// realPrograms are what images have as PID 1. What each does in the container is told in realprograms/doc.go.
var realPrograms = []struct {
	name string
	// args finds or builds the program and returns the command line of PID 1. Files that it makes go into built, which the
	// container has at the same path.
	args func(t *testing.T, scripts, built string) []string
	// leaks: it waits for its own children by their numbers and for nobody else. The shells wait for any child and need no help.
	leaks bool
}{
	{"python3", pythonArgs, true},
	{"node", nodeArgs, true},
	{"java", javaArgs, true},
	{"perl", perlArgs, true},
	{"Go", goArgs, true},
	{"bash", shellArgs("bash"), false},
	{"dash", shellArgs("dash"), false},
}

// realOrphans are the exit codes of the orphans that each of them leaves, realStatuses how many it asks for.
var realOrphans = []uint32{21, 22, 23, 24, 31, 32, 33, 34}

const realStatuses = 5 + 8

// realLimit is how long orphans may stay that are proven while PID 1 idles: twice the longest time after which the tracer looks again
// at a PID 1 that it could not stop.
const realLimit = 10 * time.Second

// TestRealPrograms: programs as they are in images, each with its own way of starting helpers, get every status that they ask for,
// however late, and nothing stays of the orphans that the helpers leave. Both containers of a program run at the same time.
func TestRealPrograms(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	scripts := filepath.Join(root, "integration/realprograms")

	var mu sync.Mutex
	rows := map[string]string{} // by program; guarded by mu
	t.Run("programs", func(t *testing.T) {
		for _, p := range realPrograms {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				built := t.TempDir()
				args := p.args(t, scripts, built)
				mounts := realMounts(t, args[0], scripts, built)
				events := subscribe(t, d)
				start := func(runtime string) *harness.Container {
					return run(t, d, harness.Spec{Runtime: runtime, Args: args, Extra: []oci.SpecOpts{oci.WithMounts(mounts)}})
				}
				plain, ours := start(harness.RuncRuntime), start(runtime)

				realDone(t, ours)
				begin := time.Now()
				var stay []harness.Zombie
				testutil.Eventually(t, realLimit, func() (bool, string) {
					var alive int
					alive, stay = realLeft(t, ours)
					return alive+len(stay) == 0, fmt.Sprintf("%d orphans alive, %s", alive, describe(stay))
				})
				took := time.Since(begin)

				realDone(t, plain)
				testutil.Eventually(t, 10*time.Second, func() (bool, string) {
					alive, _ := realLeft(t, plain)
					return alive == 0, fmt.Sprintf("%d orphans alive", alive)
				})
				left := testutil.StableFor(t, grace+time.Second, 20*time.Second, func() int { return len(zombies(t, plain)) })
				if p.leaks && left != len(realOrphans) {
					t.Errorf("runc.v2 has %d zombies, want all %d: this test would not notice a reaper that does nothing", left, len(realOrphans))
				}

				final := finalStats(t, events, ours)
				if final.GetContradictions() != 0 || final.GetOwn()+final.GetAdopted()+final.GetUnproven() != 0 {
					t.Errorf("final statistics %v; want no contradiction and nothing left", final)
				}
				if p.leaks {
					checkRealOrphans(t, events.OrphanExits(ours.ID()), final)
				}
				t.Logf("final statistics %v", final)
				mu.Lock()
				defer mu.Unlock()
				rows[p.name] = fmt.Sprintf("%d\t%d\t%.1f s\t%d\t%d\t%v\t%v", left, len(stay), took.Seconds(), final.GetReapedByTracer(),
					final.GetVanished(), final.GetLongestStop().AsDuration(), final.GetRefusals())
			})
		}
	})

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PID 1\tleft under runc.v2\tunder reaper.v2\tgone after\treaped by tracer\tby PID 1\tlongest stop\trefusals")
	for _, p := range realPrograms {
		row, ok := rows[p.name]
		if !ok {
			row = "skipped or failed"
		}
		fmt.Fprintf(w, "%s\t%s\n", p.name, row)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("of %d orphans:\n%s", len(realOrphans), &table)
}

// realDone waits until PID 1 has asked for every status and checks that it got them.
func realDone(t *testing.T, c *harness.Container) {
	t.Helper()
	testutil.Eventually(t, time.Minute, func() (bool, string) {
		out := c.Stdout.String()
		return strings.Contains(out, "DONE"), out + c.Stderr.String()
	})
	out := c.Stdout.String()
	if passes := strings.Count(out, "PASS "); passes != realStatuses || strings.Contains(out, "FAIL ") {
		t.Errorf("container %s got %d of %d statuses right:\n%s%s", c.ID(), passes, realStatuses, out, c.Stderr)
	}
}

// realLeft returns how many orphans are alive and all zombies. The orphans are looked for first: one that dies in between is
// seen as a zombie. A child of PID 1 called sh is one, since PID 1 has waited for its helpers, or will be gone at once.
func realLeft(t *testing.T, c *harness.Container) (alive int, dead []harness.Zombie) {
	t.Helper()
	alive = len(harness.Children(c.PID, "sh"))
	return alive, zombies(t, c)
}

// checkRealOrphans: every orphan was reaped by the tracer and reported with the code that it exited with, and none twice.
func checkRealOrphans(t *testing.T, exits []*apievents.TaskExit, final *api.ZombieStats) {
	t.Helper()
	var codes []uint32
	for _, e := range exits {
		codes = append(codes, e.GetExitStatus())
	}
	slices.Sort(codes)
	if !slices.Equal(codes, realOrphans) || final.GetReapedByTracer() != uint64(len(realOrphans)) {
		t.Errorf("orphans were reported with the codes %v, %d reaped by the tracer; want %v", codes, final.GetReapedByTracer(), realOrphans)
	}
}

// realMounts puts the machine's own programs and libraries into a container, at the paths that they have.
func realMounts(t *testing.T, program string, more ...string) []specs.Mount {
	t.Helper()
	dirs := []string{"/usr", "/bin", "/lib", "/lib64", "/etc"}
	if !strings.HasPrefix(program, "/usr/") && !strings.HasPrefix(program, "/bin/") && !slices.Contains(more, filepath.Dir(program)) {
		dirs = append(dirs, filepath.Dir(filepath.Dir(program))) // the prefix that it was installed with
	}
	var mounts []specs.Mount
	for _, dir := range append(dirs, more...) {
		source, err := filepath.EvalSymlinks(dir) // /bin and /lib may be links into /usr
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, specs.Mount{Type: "bind", Source: source, Destination: dir, Options: []string{"rbind", "ro"}})
	}
	return mounts
}

// realFind returns the path of a program of the machine, links followed. Without one, lacks skips the test.
func realFind(t *testing.T, name string, lacks func(reason string)) string {
	t.Helper()
	p, err := osexec.LookPath(name)
	if err == nil {
		p, err = filepath.EvalSymlinks(p)
	}
	if err != nil {
		lacks(err.Error())
	}
	return p
}

// realInstall has testutil.Lacks say which package is missing. For what is large, t.Skip is used instead: the test of another
// program is no less green for it.
func realInstall(t *testing.T, pkg string) func(reason string) {
	return func(reason string) { testutil.Lacks(t, reason, "apt-get install "+pkg) }
}

func realSkip(t *testing.T) func(reason string) {
	return func(reason string) { t.Skip(reason) }
}

// realOutput returns what a program of the machine prints.
func realOutput(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := osexec.CommandContext(t.Context(), name, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// pythonArgs asks the program itself where it is: what PATH has may be a script of a version manager that chooses one.
func pythonArgs(t *testing.T, scripts, _ string) []string {
	exe := realOutput(t, realFind(t, "python3", realInstall(t, "python3")), "-c",
		"import os, sys; print(os.path.realpath(sys.executable))")
	return []string{exe, filepath.Join(scripts, "helpers.py")}
}

func nodeArgs(t *testing.T, scripts, _ string) []string {
	exe := realOutput(t, realFind(t, "node", realSkip(t)), "-p", "process.execPath")
	return []string{exe, filepath.Join(scripts, "helpers.js")}
}

func javaArgs(t *testing.T, scripts, built string) []string {
	java := realFind(t, "java", realSkip(t))
	javac := filepath.Join(filepath.Dir(java), "javac")
	if _, err := os.Stat(javac); err != nil {
		t.Skipf("a runtime without a compiler: %v", err)
	}
	realOutput(t, javac, "-d", built, filepath.Join(scripts, "Helpers.java"))
	return []string{java, "-cp", built, "Helpers"}
}

func perlArgs(t *testing.T, scripts, _ string) []string {
	return []string{realFind(t, "perl", realInstall(t, "perl")), filepath.Join(scripts, "helpers.pl")}
}

func shellArgs(name string) func(*testing.T, string, string) []string {
	return func(t *testing.T, scripts, _ string) []string {
		return []string{realFind(t, name, realInstall(t, name)), filepath.Join(scripts, "helpers.sh")}
	}
}

func goArgs(t *testing.T, scripts, built string) []string {
	exe := filepath.Join(built, "helpers")
	cmd := osexec.CommandContext(t.Context(), testutil.Tool(t, "go"), "build", "-o", exe, ".")
	cmd.Dir = scripts
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return []string{exe}
}
