package sweep

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Cgroup reads the few cgroupfs files that a sweep uses. It is the directory of one container in the hierarchy that
// counts its processes: "pids" on cgroup v1, the unified one on v2 (cgroups(7)).
type Cgroup struct {
	fsys fs.FS  // root of the cgroup mounts, /sys/fs/cgroup
	dir  string // of the pids controller
	// freezer and its file: "freezer.state" (v1) or "cgroup.events" (v2); empty when unknown.
	freezer, freezerFile string
}

// maxCgroupDirs bounds the walk into nested cgroups, which a container can create at will.
const maxCgroupDirs = 256

// FindCgroup locates the cgroup of a process from its /proc/<pid>/cgroup. It returns nil, and no error, when the process
// is in no cgroup of its own that counts PIDs (the root, or no pids controller): the sweep then goes without.
func FindCgroup(fsys fs.FS, lines []procfs.Cgroup) *Cgroup {
	var c *Cgroup
	for _, l := range lines {
		if l.Path == "/" || strings.HasPrefix(l.Path, "/..") {
			continue
		}
		rel := strings.TrimPrefix(path.Clean(l.Path), "/")
		switch {
		case slices.Contains(l.Controllers, "pids"):
			c = orNew(c, fsys)
			c.dir = path.Join(strings.Join(l.Controllers, ","), rel)
			if _, err := fs.Stat(fsys, c.dir); err != nil {
				c.dir = path.Join("pids", rel)
			}
		case slices.Contains(l.Controllers, "freezer"):
			c = orNew(c, fsys)
			c.freezer, c.freezerFile = path.Join("freezer", rel), "freezer.state"
		case l.Hierarchy == 0:
			// On a hybrid machine the unified hierarchy has no controllers and the container sits in its root.
			if _, err := fs.Stat(fsys, path.Join(rel, "cgroup.procs")); err == nil {
				c = orNew(c, fsys)
				if c.dir == "" {
					c.dir = rel
				}
				c.freezer, c.freezerFile = rel, "cgroup.events"
			}
		}
	}
	if c == nil || c.dir == "" {
		return nil
	}
	return c
}

func orNew(c *Cgroup, fsys fs.FS) *Cgroup {
	if c == nil {
		return &Cgroup{fsys: fsys}
	}
	return c
}

// ContainerPath returns a cgroup path that tells containers apart, for a process that may be a zombie: that of the unified
// hierarchy, where the process is below its root (cgroup v2, and v1 beside it as runc uses it); else that of the cpuset
// controller, the only one of v1 whose path the kernel still tells of a zombie; "" when neither says anything.
func ContainerPath(proc *procfs.FS, pid procfs.HostPID) string {
	lines, err := proc.Cgroups(pid)
	if err != nil {
		return ""
	}
	for _, l := range lines {
		if l.Hierarchy == 0 && l.Path != "/" {
			return l.Path
		}
	}
	if p, err := proc.Cpuset(pid); err == nil && p != "/" {
		return p
	}
	return ""
}

// Procs lists the living processes of the cgroup and of those below it, without order. Zombies are not listed.
func (c *Cgroup) Procs() ([]procfs.HostPID, error) {
	var pids []procfs.HostPID
	dirs := []string{c.dir}
	for n := 0; n < len(dirs) && n < maxCgroupDirs; n++ {
		data, err := fs.ReadFile(c.fsys, path.Join(dirs[n], "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			// A threaded cgroup (v2) refuses the read with EOPNOTSUPP; its domain's parent lists the processes.
			if n > 0 {
				continue
			}
			return nil, fmt.Errorf("list processes of cgroup %s: %w", dirs[n], err)
		}
		for tok := range bytes.FieldsSeq(data) {
			pid, err := strconv.ParseInt(string(tok), 10, 32)
			if err != nil || pid <= 0 {
				continue // 0: a process outside our PID namespace
			}
			pids = append(pids, procfs.HostPID(pid))
		}
		entries, err := fs.ReadDir(c.fsys, dirs[n])
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				dirs = append(dirs, path.Join(dirs[n], e.Name()))
			}
		}
	}
	return pids, nil
}

// Current returns pids.current: processes and threads in the cgroup, zombies included. ok is false when it cannot be read.
func (c *Cgroup) Current() (n int64, ok bool) { return c.number("pids.current") }

// Max returns pids.max; ok is false when there is no limit or it cannot be read.
func (c *Cgroup) Max() (n int64, ok bool) { return c.number("pids.max") }

func (c *Cgroup) number(name string) (int64, bool) {
	data, err := fs.ReadFile(c.fsys, path.Join(c.dir, name))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
	return n, err == nil
}

// Frozen reports whether the freezer holds the cgroup, or is about to.
func (c *Cgroup) Frozen() bool {
	if c.freezer == "" {
		return false
	}
	data, err := fs.ReadFile(c.fsys, path.Join(c.freezer, c.freezerFile))
	if err != nil {
		return false
	}
	if c.freezerFile == "freezer.state" {
		return !bytes.HasPrefix(data, []byte("THAWED"))
	}
	return slices.Contains(strings.Split(string(data), "\n"), "frozen 1")
}
