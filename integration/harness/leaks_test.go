package harness

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/reaper-shim/reaper/internal/testutil"
)

// A tracer has no environment, and its cgroup is the shim's: what tells whose it is, is the mount namespace that it is in.
func TestMarkedByMountNamespace(t *testing.T) {
	testutil.Root(t)
	if err := os.MkdirAll("/run/containerd", 0o711); err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	dirs := []string{filepath.Join(base, dirPrefix+"one"), filepath.Join(base, dirPrefix+"two")}
	var pids []int
	for _, dir := range dirs {
		cmd := exec.Command("/bin/sh", "-c", `mount -t tmpfs tmpfs /run/containerd && : > "$0" && echo && exec env -i sleep 1000`, MountMark(dir))
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("the shell of %s: %v", dir, err)
		}
		pids = append(pids, cmd.Process.Pid)
	}
	for i, dir := range dirs {
		if got := marked(dir); !slices.Equal(got, pids[i:i+1]) {
			t.Errorf("marked(%s) is %v, want %v", dir, got, pids[i:i+1])
		}
	}
}
