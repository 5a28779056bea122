package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/reaper-shim/reaper/integration/harness"
)

// TestOCIRuntime: it is the OCI runtime that BinaryName names which runs the container. Each keeps its state in another file.
func TestOCIRuntime(t *testing.T) {
	files := map[string]string{"": "state.json", "runc": "state.json", "crun": "status"}
	name := os.Getenv(harness.OCIRuntimeEnv)
	want, known := files[name]
	if !known {
		t.Fatalf("%s=%s: want one of runc and crun", harness.OCIRuntimeEnv, name)
	}
	bothRuntimes(t, func(t *testing.T, d *harness.Daemon, runtime string, _ bool) {
		c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
		dir := filepath.Join(fmt.Sprintf("/proc/%d/root/run/containerd/runc", d.PID()), harness.Namespace, c.ID())
		if _, err := os.Stat(filepath.Join(dir, want)); err != nil {
			t.Error(err)
		}
	})
}
