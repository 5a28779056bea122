package reaperctl

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/internal/scan"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// ScanResult is the document of scan.
type ScanResult struct {
	header
	// Processes of the node, zombies included, and PIDMax, the most it can have (kernel.pid_max; 0 where it cannot be read).
	Processes int `json:"processes"`
	PIDMax    int `json:"pidMax"`
	Zombies   int `json:"zombies"`
	// Groups that have zombies, the worst first.
	Groups []ScanGroup `json:"groups"`
}

// ScanGroup is a container, or a cgroup that is none.
type ScanGroup struct {
	// Container is missing for what is no container, and has no names where nobody could be asked for them.
	Container *Container `json:"container,omitempty"`
	// Engine is "containerd", "docker", "podman", "crio" or another word from the cgroup's name; "" where nothing tells.
	Engine string `json:"engine,omitempty"`
	// Runtime of a task of containerd's.
	Runtime string       `json:"runtime,omitempty"`
	Cgroup  string       `json:"cgroup"`
	PIDs    PIDs         `json:"pids"`
	Zombies int          `json:"zombies"`
	Parents []ScanParent `json:"parents"`
}

// ScanParent is a process that has not waited for its zombies.
type ScanParent struct {
	// PID on the host, NSPID in its own PID namespace (0 where it cannot be read).
	PID     int    `json:"pid"`
	NSPID   int    `json:"nsPid"`
	Command string `json:"command"`
	// Init: it is PID 1 of a container, which adopts orphans.
	Init     bool          `json:"init"`
	Zombies  int           `json:"zombies"`
	Commands []ScanCommand `json:"commands"`
}

// ScanCommand counts the zombies of one name.
type ScanCommand struct {
	Command string `json:"command"`
	Zombies int    `json:"zombies"`
	// OldestSeconds since the first of them was started. When it ended, nothing tells.
	OldestSeconds float64 `json:"oldestSeconds"`
	// ExitStatuses counts them by exit status, as a shell prints it.
	ExitStatuses map[string]int `json:"exitStatuses"`
}

func (a *app) scanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "scan",
		Short: "The zombies of the whole node and their parents, with any container runtime or none",
		Long: `Reads /proc once and shows every zombie of the node below the process that has not waited for it, grouped by container: those of
containerd with any runtime, of Docker, podman and CRI-O, and what is no container at all. The reaper runtime need not be installed.
Names come from containerd and Docker where they can be asked.

OLDEST is since when the oldest of the zombies was started; the kernel does not keep when it ended.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			var tasks []*node.Task
			n, err := a.open(ctx)
			if err == nil {
				defer n.Close()
				tasks, err = n.List(ctx)
			}
			if err != nil {
				fmt.Fprintf(a.err, "reaperctl: names of containerd's containers are missing: %s\n", safe(err.Error()))
			}
			res, err := scanNode(ctx, tasks)
			if err != nil {
				return err
			}
			return a.print(res, res.table)
		},
	}
}

func scanNode(ctx context.Context, tasks []*node.Task) (ScanResult, error) {
	proc := procfs.New(os.DirFS("/proc"))
	known := knownContainers(proc, tasks)
	paths := make([]string, 0, len(known))
	for p := range known {
		paths = append(paths, p)
	}
	found, err := scan.Scan(proc, os.DirFS("/sys/fs/cgroup"), paths)
	if err != nil {
		return ScanResult{}, err
	}
	var docker map[string]string
	if slices.ContainsFunc(found.Groups, func(g scan.Group) bool { return known[g.Cgroup] == nil && g.ID != "" || isMoby(known[g.Cgroup]) }) {
		docker = dockerNames(ctx, dockerSocket)
	}
	uptime, err := uptime()
	if err != nil {
		return ScanResult{}, err
	}
	res := ScanResult{header: kind("ScanResult"), Processes: found.Processes, PIDMax: pidMax(), Zombies: found.Zombies(), Groups: []ScanGroup{}}
	for _, g := range found.Groups {
		res.Groups = append(res.Groups, scanGroup(g, known[g.Cgroup], docker, uptime))
	}
	return res, nil
}

// knownContainers are the tasks of containerd by the path of their cgroups.
func knownContainers(proc *procfs.FS, tasks []*node.Task) map[string]*node.Task {
	known := make(map[string]*node.Task)
	for _, t := range tasks {
		if t.PID == 0 {
			continue
		}
		if p := sweep.ContainerPath(proc, t.PID); p != "" {
			known[p] = t
		}
	}
	return known
}

// mobyNamespace is Docker's in containerd.
const mobyNamespace = "moby"

func isMoby(t *node.Task) bool { return t != nil && t.Namespace == mobyNamespace }

func scanGroup(g scan.Group, t *node.Task, docker map[string]string, uptime time.Duration) ScanGroup {
	v := ScanGroup{Engine: g.Engine, Cgroup: g.Cgroup, PIDs: PIDs{Current: g.Current, Max: g.Max}, Zombies: g.Zombies()}
	switch {
	case t != nil:
		c := containerOf(t)
		v.Container, v.Runtime, v.Engine = &c, t.Runtime, "containerd"
		if isMoby(t) {
			v.Engine = "docker"
		}
	case g.ID != "":
		v.Container = &Container{ID: g.ID, Name: g.ID}
	}
	if v.Container != nil {
		if name := docker[v.Container.ID]; name != "" {
			v.Container.Name, v.Engine = name, "docker"
		}
	}
	for _, p := range g.Parents {
		v.Parents = append(v.Parents, ScanParent{
			PID: int(p.PID), NSPID: int(p.NSPID), Command: p.Command, Init: p.Init(), Zombies: len(p.Zombies),
			Commands: scanCommands(p.Zombies, uptime),
		})
	}
	return v
}

// scanCommands counts zombies by command, the most frequent first.
func scanCommands(zs []scan.Zombie, uptime time.Duration) []ScanCommand {
	byName := make(map[string]*ScanCommand)
	var out []*ScanCommand
	for _, z := range zs {
		c := byName[z.Command]
		if c == nil {
			c = &ScanCommand{Command: z.Command, ExitStatuses: map[string]int{}}
			byName[z.Command] = c
			out = append(out, c)
		}
		c.Zombies++
		c.OldestSeconds = max(c.OldestSeconds, (uptime - ticks(z.StartTime)).Seconds())
		c.ExitStatuses[strconv.Itoa(exitStatus(z.Status))]++
	}
	slices.SortFunc(out, func(a, b *ScanCommand) int {
		return cmp.Or(cmp.Compare(b.Zombies, a.Zombies), cmp.Compare(a.Command, b.Command))
	})
	all := make([]ScanCommand, 0, len(out))
	for _, c := range out {
		all = append(all, *c)
	}
	return all
}

// exitStatus turns a wait(2) status into what a shell prints.
func exitStatus(status int) int {
	ws := unix.WaitStatus(status)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// userHZ is the unit of times in /proc, 1/100 s on every architecture that Linux still has but alpha and ia64
// (include/asm-generic/param.h, USER_HZ).
const userHZ = 100

func ticks(n uint64) time.Duration { return time.Duration(n) * (time.Second / userHZ) }

// uptime is the clock of start times in /proc.
func uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// pidMax returns kernel.pid_max, 0 where it cannot be read.
func pidMax() int {
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data))) // 0 for what is no number
	return n
}

// maxCommands is how many commands one line of the table names.
const maxCommands = 3

func (r ScanResult) table(wide bool) *table {
	titles := []string{"CONTAINER", "ENGINE", "ZOMBIES", "PARENT", "COMMANDS", "OLDEST", "PIDS"}
	if wide {
		titles = append(titles, "RUNTIME", "PARENT PID", "ID", "CGROUP")
	}
	t := newTable(titles...).numbers("ZOMBIES", "OLDEST", "PIDS", "PARENT PID")
	t.empty = fmt.Sprintf("No zombies among the %d processes of this node.", r.Processes)
	inits := false
	for _, g := range r.Groups {
		for _, p := range g.Parents {
			inits = inits || p.Init
			t.add(g.cells(p, wide)...)
		}
	}
	if len(t.rows) > 0 {
		t.footer = fmt.Sprintf("%d zombies among the %d processes of this node; it can have %d.", r.Zombies, r.Processes, r.PIDMax)
	}
	if inits {
		t.footer += "\nPID 1 of a container adopts the orphans there. Under the runtime io.containerd.reaper.v2 it is made to reap them; zombies of\nanother parent, and those that PID 1 forked itself, wait for a correction of that program."
	}
	return t
}

func (g ScanGroup) cells(p ScanParent, wide bool) []cell {
	name, id := none, none
	switch {
	case g.Container != nil:
		name, id = text(g.Container.Name), text(g.Container.ID)
	case g.Cgroup != "":
		name = cell{text: safe(g.Cgroup), style: dim}
	}
	parent := cell{text: fmt.Sprintf("%s (%d)", safe(p.Command), p.PID)}
	if p.Init {
		parent = cell{text: fmt.Sprintf("%s (PID 1)", safe(p.Command)), style: yellow}
	}
	var names []string
	oldest := 0.0
	for i, c := range p.Commands {
		oldest = max(oldest, c.OldestSeconds)
		switch {
		case i < maxCommands:
			names = append(names, fmt.Sprintf("%d %s", c.Zombies, safe(c.Command)))
		case i == maxCommands:
			names = append(names, "…")
		}
	}
	row := []cell{name, text(g.Engine), alarm(p.Zombies, red), parent, {text: strings.Join(names, ", ")}, {text: duration(oldest)}, g.PIDs.cell()}
	if wide {
		row = append(row, text(g.Runtime), number(p.PID), id, text(g.Cgroup))
	}
	return row
}
