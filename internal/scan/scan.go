// Package scan finds the zombies of a node and who does not wait for them, from /proc alone: it works with any container
// runtime, and with none.
//
// Commands are what processes call themselves: escape them before they are shown.
package scan

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// Zombie is a process that has ended and waits for its parent to say wait(2).
type Zombie struct {
	PID     procfs.HostPID
	NSPID   procfs.NSPID // as its parent knows it; 0 where it cannot be read
	Command string
	Session procfs.HostPID
	// StartTime is when it was started, in clock ticks since boot. When it ended, nothing tells.
	StartTime uint64
	// Status is its wait(2) status, 0 where it may not be read.
	Status int
}

// Parent is the process that alone can release its zombies.
type Parent struct {
	PID     procfs.HostPID
	NSPID   procfs.NSPID // in its own PID namespace; 0 where it cannot be read
	Command string
	// Zombies are sorted by PID.
	Zombies []Zombie
}

// Init reports whether the process is PID 1 of a PID namespace other than that of /proc: it got orphans without asking for them.
func (p Parent) Init() bool { return p.NSPID == 1 && p.PID != 1 }

// Group is what belongs to one container, or is outside of any.
type Group struct {
	// Cgroup is the path by which processes were grouped; "" for what is in no cgroup of its own.
	Cgroup string
	// Engine and ID are what the path says of the container: "docker" and 64 digits, for instance. Both are "" where it says nothing.
	Engine, ID string
	// Parents are sorted by the number of their zombies, the worst first.
	Parents []Parent
	// Current and Max are those of the pids controller; 0 where unknown, or without limit.
	Current, Max int64
}

// Zombies counts those of all parents.
func (g Group) Zombies() int {
	n := 0
	for _, p := range g.Parents {
		n += len(p.Zombies)
	}
	return n
}

// Result is one look at a node.
type Result struct {
	// Processes of the node, zombies included.
	Processes int
	// Groups that have zombies, the worst first.
	Groups []Group
}

// Zombies counts those of all groups.
func (r Result) Zombies() int {
	n := 0
	for _, g := range r.Groups {
		n += g.Zombies()
	}
	return n
}

// Scan looks at every process of proc once. Containers are told apart by the cgroup of the zombie's parent: a zombie's own is
// no longer known on cgroup v1. A parent may be below the cgroup of its container: containers lists the paths of those that are
// known.
func Scan(proc *procfs.FS, cgroups fs.FS, containers []string) (Result, error) {
	stats, err := all(proc)
	if err != nil {
		return Result{}, err
	}
	res := Result{Processes: len(stats)}
	zombies := make(map[procfs.HostPID][]Zombie)
	for pid, st := range stats {
		if st.Zombie() {
			zombies[st.PPID] = append(zombies[st.PPID], Zombie{
				PID: pid, Command: st.Comm, Session: st.Session, StartTime: st.StartTime, Status: st.ExitCode,
			})
		}
	}
	groups := make(map[string]*Group)
	for pid, zs := range zombies {
		p := Parent{PID: pid, Command: stats[pid].Comm, Zombies: zs}
		name(proc, &p)
		own := sweep.ContainerPath(proc, pid)
		dir := enclosing(own, containers)
		g := groups[dir]
		if g == nil {
			g = &Group{Cgroup: dir}
			g.Engine, g.ID = EngineOf(dir)
			if dir != "" {
				g.Current, g.Max = pidsOf(proc, cgroups, pid, strings.TrimPrefix(own, dir))
			}
			groups[dir] = g
		}
		g.Parents = append(g.Parents, p)
	}
	for _, g := range groups {
		slices.SortFunc(g.Parents, func(a, b Parent) int {
			return cmp.Or(cmp.Compare(len(b.Zombies), len(a.Zombies)), cmp.Compare(a.PID, b.PID))
		})
		res.Groups = append(res.Groups, *g)
	}
	slices.SortFunc(res.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Zombies(), a.Zombies()), cmp.Compare(a.Cgroup, b.Cgroup))
	})
	return res, nil
}

// all reads the stat lines of all processes. Those that the kernel is just releasing are left out: such a line says nothing.
func all(proc *procfs.FS) (map[procfs.HostPID]procfs.Stat, error) {
	pids, err := proc.PIDs()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	stats := make(map[procfs.HostPID]procfs.Stat, len(pids))
	for _, pid := range pids {
		st, err := proc.Stat(pid)
		switch {
		case errors.Is(err, procfs.ErrVanished):
		case err != nil:
			return nil, err
		case st.Vanishing() && st.State == procfs.StateZombie:
		default:
			stats[pid] = st
		}
	}
	return stats, nil
}

// pidsOf reads the pids controller of the container's cgroup: that of the process without what it is below it.
func pidsOf(proc *procfs.FS, cgroups fs.FS, pid procfs.HostPID, below string) (current, limit int64) {
	lines, err := proc.Cgroups(pid)
	if err != nil {
		return 0, 0
	}
	for i := range lines {
		lines[i].Path = strings.TrimSuffix(lines[i].Path, below)
	}
	c := sweep.FindCgroup(cgroups, lines)
	if c == nil {
		return 0, 0
	}
	current, _ = c.Current()
	limit, _ = c.Max()
	return current, limit
}

// maxNamed bounds how many zombies of one parent are asked for their number in its PID namespace: it costs as much as all else.
const maxNamed = 4096

// name finds the numbers that the parent and its zombies have in the parent's PID namespace.
func name(proc *procfs.FS, p *Parent) {
	slices.SortFunc(p.Zombies, func(a, b Zombie) int { return cmp.Compare(a.PID, b.PID) })
	status, err := proc.Status(p.PID)
	if err != nil {
		return
	}
	level := status.Level()
	p.NSPID, _ = status.At(level)
	for i := range p.Zombies[:min(len(p.Zombies), maxNamed)] {
		if st, err := proc.Status(p.Zombies[i].PID); err == nil {
			p.Zombies[i].NSPID, _ = st.At(level)
		}
	}
}

// containerID matches the part of a cgroup path that names a container: 64 hexadecimal digits by themselves (cgroupfs driver), or
// in the name of a systemd scope after the engine's prefix.
var containerID = regexp.MustCompile(`^(?:([a-z-]+)-)?([0-9a-f]{64})(?:\.scope)?$`)

// enclosing returns the path of the container that a cgroup path lies in: one of the known ones, else what looks like the cgroup of
// a container, else the path itself.
func enclosing(dir string, known []string) string {
	for d := dir; d != "" && d != "/" && d != "."; d = path.Dir(d) {
		if slices.Contains(known, d) {
			return d
		}
	}
	for d := dir; d != "" && d != "/" && d != "."; d = path.Dir(d) {
		if containerID.MatchString(path.Base(d)) {
			return d
		}
	}
	return dir
}

// EngineOf reads engine and container ID from the path of a container's cgroup; both are "" where it says nothing.
func EngineOf(dir string) (engine, id string) {
	m := containerID.FindStringSubmatch(path.Base(dir))
	if m == nil {
		return "", ""
	}
	switch engine = m[1]; engine {
	case "libpod":
		engine = "podman"
	case "cri-containerd":
		engine = "containerd"
	case "":
		if strings.HasPrefix(dir, "/docker/") {
			engine = "docker"
		}
	}
	return engine, m[2]
}
