package sweep_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
)

// buildWorker returns the path of the tracer's program.
func buildWorker(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(testutil.VictimsEnv); dir != "" {
		return filepath.Join(dir, tracer.WorkerName)
	}
	worker := filepath.Join(t.TempDir(), tracer.WorkerName)
	if out, err := exec.Command("go", "build", "-o", worker, "../../cmd/reaper-tracer").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return worker
}

// TestRefusedZombieKeepsItsChance: as long as PID 1 cannot be made to reap, it is tried again, ever more seldom, and the reason is
// counted; once the reason ends the zombie is reaped by the next try, with the real tracer.
func TestRefusedZombieKeepsItsChance(t *testing.T) {
	p := startVictim(t)
	client := tracer.NewClient(buildWorker(t))
	t.Cleanup(func() { client.Close() })
	s, c := p.sweeper(client, 0)
	signal := func(sig syscall.Signal, want procfs.State) {
		t.Helper()
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, 10*time.Second, func() (bool, string) {
			st, err := p.proc.Stat(p.pid())
			return err == nil && st.State == want, fmt.Sprint(st, err)
		})
	}
	p.do("session", "sh -c 'exit 7' & exit 0")
	signal(syscall.SIGSTOP, procfs.StateStopped)
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		c.now = c.now.Add(time.Second)
		mustSweep(t, s)
		return s.Stats().Refusals[tracer.ReasonStopped] > 0, fmt.Sprintf("%+v", s.Stats())
	})

	const sweeps = 300 // a second apart
	before := s.Stats().Refusals[tracer.ReasonStopped]
	for range sweeps {
		c.now = c.now.Add(time.Second)
		mustSweep(t, s)
	}
	tries := s.Stats().Refusals[tracer.ReasonStopped] - before
	if st := s.Stats(); st.Reaped != 0 || st.Adopted != 1 || tries < sweeps/10 || tries > sweeps/3 {
		t.Errorf("%d tries in %d sweeps; statistics %+v", tries, sweeps, st)
	}

	signal(syscall.SIGCONT, procfs.StateSleeping)
	var reaped []sweep.Orphan
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		c.now = c.now.Add(time.Minute)
		reaped = append(reaped, mustSweep(t, s).Reaped...)
		return len(reaped) > 0, fmt.Sprintf("%+v", s.Stats())
	})
	if len(reaped) != 1 || reaped[0].Status != 7<<8 {
		t.Errorf("reaped %+v", reaped)
	}
}
