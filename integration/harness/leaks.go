package harness

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// settleTimeout is how long shims and tracers have to end after the last container is gone.
const settleTimeout = 15 * time.Second

// LeakError names what was still there after everything had been deleted.
type LeakError struct {
	Processes []string // pid and command line
	Mounts    []string // mount points
	Cgroups   []string // directories
}

// Error lists the leftovers, one a line.
func (e *LeakError) Error() string {
	var b strings.Builder
	b.WriteString("left behind:")
	for _, l := range []struct {
		kind  string
		names []string
	}{{"process", e.Processes}, {"mount", e.Mounts}, {"cgroup", e.Cgroups}} {
		for _, n := range l.names {
			fmt.Fprintf(&b, "\n  %s %s", l.kind, n)
		}
	}
	return b.String()
}

// leaks waits until nothing of the daemon's is left but the daemon itself, and returns a LeakError for what stays.
func (d *Daemon) leaks() error {
	var found LeakError
	err := testutil.Poll(settleTimeout, func() (bool, string) {
		found = LeakError{Mounts: d.Mounts(), Cgroups: cgroupDirs(d.CgroupParent + "/")}
		for _, pid := range d.Processes() {
			found.Processes = append(found.Processes, fmt.Sprintf("%d %s", pid, cmdline(pid)))
		}
		return len(found.Processes)+len(found.Mounts)+len(found.Cgroups) == 0, ""
	})
	if err == nil {
		return nil
	}
	return &found
}

// Processes lists the processes that the daemon, its shims or the programs that Command prepared have started and that
// have not ended: all that carry EnvMark, and all in the cgroups of its containers. The daemon is not among them.
func (d *Daemon) Processes() []int {
	pids := marked(d.Dir)
	return slices.DeleteFunc(pids, func(pid int) bool { return pid == d.pid })
}

// Mounts lists the mount points that containers have in the daemon's mount namespace.
func (d *Daemon) Mounts() []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", d.pid))
	if err != nil {
		return nil
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := fields[4]
		if strings.HasPrefix(point, d.Dir+"/") || strings.HasPrefix(point, "/run/containerd/") ||
			strings.HasPrefix(point, "/run/netns/") {
			points = append(points, point)
		}
	}
	return points
}

// MountMark is the file that marks a mount namespace as one that was made for dir. /run/containerd, or what is above it, has to be a
// mount that no other namespace has.
func MountMark(dir string) string { return "/run/containerd/." + filepath.Base(dir) }

// marked lists the processes that have EnvMark=dir in their environment, that see the mark of dir (a tracer is started without an
// environment) or are in a cgroup named after dir. Zombies are left out: they belong to a living parent.
func marked(dir string) []int {
	env := []byte(EnvMark + "=" + dir)
	cgroup := []byte(":/" + filepath.Base(dir) + "/")
	self := os.Getpid()
	var pids []int
	for _, pid := range allPIDs() {
		if pid == self || isZombie(pid) {
			continue
		}
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s", pid, MountMark(dir))); err == nil {
			pids = append(pids, pid)
			continue
		}
		if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err == nil {
			if slices.ContainsFunc(bytes.Split(data, []byte{0}), func(kv []byte) bool { return bytes.Equal(kv, env) }) {
				pids = append(pids, pid)
				continue
			}
		}
		if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err == nil && bytes.Contains(data, cgroup) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// clearStale clears up after test processes that were killed before they could.
func clearStale() {
	var dirs []string
	for _, base := range []string{os.TempDir(), "/tmp", "/run"} {
		found, _ := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, ownerFile))
		if err != nil {
			continue
		}
		var pid int
		var start uint64
		if _, err := fmt.Sscan(string(data), &pid, &start); err != nil {
			continue
		}
		if s, err := procStat(pid); err == nil && s.StartTime == start {
			continue // alive
		}
		clearDir(dir)
	}
}

// clearDir kills what belongs to the daemon in dir, unmounts everything below it and removes it with its cgroups.
func clearDir(dir string) {
	_ = testutil.Poll(stopTimeout, func() (bool, string) {
		pids := marked(dir)
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(pids) == 0, ""
	})
	// Containers mount in the daemon's own namespace, which has ended with it; this is for whatever else.
	if data, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		var points []string
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
				points = append(points, f[4])
			}
		}
		slices.Reverse(points)
		for _, p := range points {
			_ = syscall.Unmount(p, syscall.MNT_DETACH)
		}
	}
	parent := "/" + filepath.Base(dir)
	_ = testutil.Poll(stopTimeout, func() (bool, string) {
		dirs := cgroupDirs(parent)
		for _, c := range slices.Backward(dirs) {
			_ = os.Remove(c)
		}
		return len(dirs) == 0, ""
	})
	_ = os.RemoveAll(dir)
}

// cgroupDirs lists the directories, in all hierarchies, of the cgroup with the given path and of those below it, or with a
// "/" at its end only those below it; parents come first.
func cgroupDirs(path string) []string {
	var out []string
	for _, h := range cgroupMounts() {
		base := filepath.Join(h.mountPoint, path)
		_ = filepath.WalkDir(base, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() && (p != base || !strings.HasSuffix(path, "/")) {
				out = append(out, p)
			}
			return nil
		})
	}
	return out
}

type cgroupMount struct {
	mountPoint  string
	controllers []string // of version 1
	unified     bool
}

func cgroupMounts() []cgroupMount {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []cgroupMount
	for line := range strings.Lines(string(data)) {
		// proc_pid_mountinfo(5): fields after the separator are type, source and super options.
		head, tail, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		h, t := strings.Fields(head), strings.Fields(tail)
		if len(h) < 5 || len(t) < 3 {
			continue
		}
		switch t[0] {
		case "cgroup":
			out = append(out, cgroupMount{mountPoint: h[4], controllers: strings.Split(t[2], ",")})
		case "cgroup2":
			out = append(out, cgroupMount{mountPoint: h[4], unified: true})
		}
	}
	return out
}

// overlayWorks tries an overlay mount below dir: it fails where dir is itself on an overlay. The attempt is made in a
// mount namespace that ends with it.
func overlayWorks(dir string) bool {
	base := filepath.Join(dir, "overlay")
	defer os.RemoveAll(base)
	for _, sub := range []string{"l", "u", "w", "m"} {
		if os.MkdirAll(filepath.Join(base, sub), 0o700) != nil {
			return false
		}
	}
	script := `cd "$1" && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m && : > m/f`
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(10*time.Second))
	defer cancel()
	cmd := shell(ctx, script, base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd.Run() == nil
}

func allPIDs() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func isZombie(pid int) bool {
	s, err := procStat(pid)
	return err != nil || s.State == procfs.StateZombie
}

func cmdline(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "(gone)"
	}
	return strings.ReplaceAll(strings.TrimRight(string(data), "\x00"), "\x00", " ")
}
