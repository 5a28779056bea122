package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Scratch makes a directory for a program that starts daemons of its own. The environment of that program has to contain env,
// and its cgroups should be below the one that is named after the directory. What it leaves behind is cleared when the test
// process is gone, or by Clear.
func Scratch() (dir, env string, err error) {
	clearStale()
	dir, err = newDir()
	if err != nil {
		return "", "", fmt.Errorf("make scratch directory: %w", err)
	}
	return dir, EnvMark + "=" + dir, nil
}

// MakeCgroups makes the cgroup with this path in each hierarchy, and returns the files that take processes into it.
func MakeCgroups(path string) ([]string, error) {
	var files []string
	for _, h := range cgroupMounts() {
		dir := filepath.Join(h.mountPoint, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		// Of version 1: no process gets in while they are empty (cpuset(7)).
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if h.unified || !slices.Contains(h.controllers, "cpuset") {
				continue
			}
			text, err := os.ReadFile(filepath.Join(h.mountPoint, name))
			if err != nil {
				return nil, fmt.Errorf("make cgroup: %w", err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return nil, fmt.Errorf("make cgroup: %w", err)
			}
		}
		files = append(files, filepath.Join(dir, "cgroup.procs"))
	}
	return files, nil
}

// Clear kills what belongs to the directory, and removes it with its cgroups; so it does with what is in the given cgroup, for
// programs that let nobody choose theirs. It returns a LeakError that names the processes.
func Clear(dir, cgroup string) error {
	var leaks LeakError
	err := testutil.Poll(stopTimeout, func() (bool, string) {
		// The shims first: the end of a container is none of their business any more.
		pids := append(marked(dir), InCgroup(cgroup)...)
		for _, pid := range pids {
			if name := fmt.Sprintf("%d %s", pid, cmdline(pid)); !slices.Contains(leaks.Processes, name) {
				leaks.Processes = append(leaks.Processes, name)
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(pids) == 0, fmt.Sprintf("processes %v live on", pids)
	})
	for _, c := range slices.Backward(cgroupDirs(cgroup)) {
		_ = os.Remove(c)
	}
	clearDir(dir)
	if err != nil {
		return err
	}
	if len(leaks.Processes) > 0 {
		return &leaks
	}
	return nil
}

// InCgroup lists the living processes in the cgroup with this path, in any hierarchy, and below it.
func InCgroup(path string) []int {
	var pids []int
	for _, pid := range allPIDs() {
		groups, err := proc.Cgroups(procfs.HostPID(pid))
		if err != nil || isZombie(pid) {
			continue
		}
		if slices.ContainsFunc(groups, func(g procfs.Cgroup) bool { return g.Path == path || strings.HasPrefix(g.Path, path+"/") }) {
			pids = append(pids, pid)
		}
	}
	return pids
}
