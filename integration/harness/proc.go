package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

var proc = procfs.New(os.DirFS("/proc"))

func procStat(pid int) (procfs.Stat, error) { return proc.Stat(procfs.HostPID(pid)) }

func shell(ctx context.Context, script string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", script, "sh"}, args...)...)
}

// Process identifies a process of the host: a number is used again, a number with a start time is not within a test.
type Process struct {
	PID       int
	StartTime uint64 // clock ticks since boot
}

// Zombie is a dead child that its parent has not waited for.
type Zombie struct {
	Process
	NSPID   int // its number in the PID namespace of the container
	Comm    string
	Session int // host number of its session
}

// Zombies lists the zombies among the children of pid, those that hang on other threads than the leader included.
func Zombies(pid int) ([]Zombie, error) {
	tids, err := proc.Threads(procfs.HostPID(pid))
	if err != nil {
		return nil, err
	}
	var out []Zombie
	for _, tid := range tids {
		children, err := proc.ThreadChildren(procfs.HostPID(pid), tid)
		if errors.Is(err, procfs.ErrVanished) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, child := range children {
			s, err := proc.Stat(child)
			if err != nil || !s.Zombie() || s.PPID != procfs.HostPID(pid) {
				continue // gone between the two reads, or alive
			}
			nspid, err := NSPID(int(child))
			if err != nil {
				continue // reaped in between
			}
			out = append(out, Zombie{
				Process: Process{PID: int(child), StartTime: s.StartTime},
				NSPID:   nspid, Comm: s.Comm, Session: int(s.Session),
			})
		}
	}
	return out, nil
}

// NSPID returns the number of a process in the innermost PID namespace that it is in.
func NSPID(pid int) (int, error) {
	s, err := proc.Status(procfs.HostPID(pid))
	if err != nil {
		return 0, err
	}
	n, ok := s.At(s.Level())
	if !ok {
		return 0, fmt.Errorf("status of pid %d: no NSpid", pid)
	}
	return int(n), nil
}

// Identity is what makes a process the one that it was.
type Identity struct {
	Process
	NSPID int
	Exe   string
}

// IdentityOf returns the identity of a living process.
func IdentityOf(pid int) (Identity, error) {
	s, err := procStat(pid)
	if err != nil {
		return Identity{}, err
	}
	ns, err := NSPID(pid)
	if err != nil {
		return Identity{}, err
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return Identity{}, err
	}
	return Identity{Process: Process{PID: pid, StartTime: s.StartTime}, NSPID: ns, Exe: exe}, nil
}

// Alive reports whether the process exists and is no zombie.
func (p Process) Alive() bool {
	s, err := procStat(p.PID)
	return err == nil && s.StartTime == p.StartTime && s.State != procfs.StateZombie
}

// Memory is what a process keeps resident, in bytes.
type Memory struct {
	RSS int64 // VmRSS of /proc/<pid>/status
	PSS int64 // of /proc/<pid>/smaps_rollup: pages shared with others count in part
}

// MemoryOf returns the memory of a process.
func MemoryOf(pid int) (Memory, error) {
	rss, err := procField(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
	if err != nil {
		return Memory{}, err
	}
	pss, err := procField(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
	return Memory{RSS: rss, PSS: pss}, err
}

func procField(file, name string) (int64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		return kib * 1024, err
	}
	return 0, fmt.Errorf("%s: no field %s", file, name)
}

// PIDsCurrent returns pids.current of the cgroup that the process is in: zombies count in it.
func PIDsCurrent(pid int) (int, error) {
	text, err := pidsFile(pid, "pids.current")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// PIDsMax returns pids.max of the cgroup that the process is in, a number or "max".
func PIDsMax(pid int) (string, error) { return pidsFile(pid, "pids.max") }

func pidsFile(pid int, name string) (string, error) {
	groups, err := proc.Cgroups(procfs.HostPID(pid))
	if err != nil {
		return "", err
	}
	for _, m := range cgroupMounts() {
		for _, g := range groups {
			v1 := !m.unified && slices.Contains(g.Controllers, "pids") && slices.Contains(m.controllers, "pids")
			v2 := m.unified && g.Hierarchy == 0
			if !v1 && !v2 {
				continue
			}
			data, err := os.ReadFile(filepath.Join(m.mountPoint, g.Path, name))
			if errors.Is(err, os.ErrNotExist) {
				continue // hybrid: the controller is in the other hierarchy
			}
			if err != nil {
				return "", err
			}
			return strings.TrimSpace(string(data)), nil
		}
	}
	return "", fmt.Errorf("%s of pid %d: no cgroup with the pids controller", name, pid)
}

// Children lists the living processes with the given parent and name (comm).
func Children(ppid int, comm string) []Process {
	var out []Process
	for _, pid := range allPIDs() {
		s, err := procStat(pid)
		if err == nil && int(s.PPID) == ppid && s.Comm == comm && s.State != procfs.StateZombie {
			out = append(out, Process{PID: pid, StartTime: s.StartTime})
		}
	}
	return out
}
