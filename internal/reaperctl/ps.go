package reaperctl

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

// TaskList is the document of ps: every task of containerd on the node.
type TaskList struct {
	header
	Tasks []Task `json:"tasks"`
}

// Container says which container something is about. Namespace is containerd's; the rest of the names are as the labels have
// them, and missing where there are none.
type Container struct {
	Namespace    string `json:"namespace"`
	ID           string `json:"id"`
	Name         string `json:"name"`
	Pod          string `json:"pod,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodContainer string `json:"podContainer,omitempty"`
}

// Task is one task.
type Task struct {
	Container
	Image   string `json:"image"`
	Runtime string `json:"runtime"`
	Status  string `json:"status"`
	// PID on the host, 0 when it has ended.
	PID  int  `json:"pid"`
	PIDs PIDs `json:"pids"`
	// Reaper is what its shim says; missing for tasks of other runtimes, and where Error says why.
	Reaper *Reaper `json:"reaper,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// PIDs are pids.current and pids.max of the task's cgroup: processes, threads and zombies. Max is 0 without a limit.
type PIDs struct {
	Current int64 `json:"current"`
	Max     int64 `json:"max"`
}

// Reaper is what a reaper shim says of a task.
type Reaper struct {
	Mode string `json:"mode"`
	// EffectiveMode is the one in force, Reason why it is another one than Mode.
	EffectiveMode string  `json:"effectiveMode"`
	Reason        string  `json:"reason,omitempty"`
	GraceSeconds  float64 `json:"graceSeconds"`
	Zombies       Zombies `json:"zombies"`
	// OldestSeconds is for how long the oldest zombie below PID 1 has been known.
	OldestSeconds float64 `json:"oldestSeconds"`
	Reaped        Reaped  `json:"reaped"`
	// Vanished counts adopted zombies that PID 1 reaped itself.
	Vanished           uint64            `json:"vanished"`
	Attaches           uint64            `json:"attaches"`
	LongestStopSeconds float64           `json:"longestStopSeconds"`
	Refusals           map[string]uint64 `json:"refusals,omitempty"`
	Contradictions     uint64            `json:"contradictions"`
	ForkLog            ForkLog           `json:"forkLog"`
}

// Zombies counts those that are there now, by verdict.
type Zombies struct {
	Adopted  uint32 `json:"adopted"`
	Own      uint32 `json:"own"`
	Unproven uint32 `json:"unproven"`
	Held     uint32 `json:"held"`
	Total    uint32 `json:"total"`
}

// Reaped counts orphans since the task began, by what made it happen.
type Reaped struct {
	ByTracer uint64 `json:"byTracer"`
	ByShim   uint64 `json:"byShim"`
	ByInit   uint64 `json:"byInit"`
	Total    uint64 `json:"total"`
}

// ForkLog is the state of the log of PID 1's forks. Source is "perf", "connector" or "none", Reason why it is no better one.
type ForkLog struct {
	Source string `json:"source"`
	Forks  uint64 `json:"forks"`
	Lost   uint64 `json:"lost"`
	Gaps   uint64 `json:"gaps"`
	Reason string `json:"reason,omitempty"`
}

func containerOf(t *node.Task) Container {
	c := Container{Namespace: t.Namespace, ID: t.ID, Name: t.Name(), Pod: t.Names.Pod, PodNamespace: t.Names.PodNamespace}
	if !t.Names.Sandbox {
		c.PodContainer = t.Names.Container
	}
	return c
}

func taskOf(t *node.Task) Task {
	v := Task{
		Container: containerOf(t), Image: t.Image, Runtime: t.Runtime, Status: t.Status, PID: int(t.PID),
		PIDs: PIDs{Current: t.PIDs.Current, Max: t.PIDs.Max},
	}
	if t.Err != nil {
		v.Error = t.Err.Error()
	}
	if t.Ours {
		v.Reaper = reaperOf(t.Stats)
	}
	return v
}

func reaperOf(s *api.ZombieStats) *Reaper {
	r := &Reaper{
		Mode: s.GetMode(), EffectiveMode: s.GetEffectiveMode(), Reason: s.GetEffectiveModeReason(),
		GraceSeconds:  s.GetGraceInForce().AsDuration().Seconds(),
		Zombies:       Zombies{Adopted: s.GetAdopted(), Own: s.GetOwn(), Unproven: s.GetUnproven(), Held: s.GetHeld()},
		OldestSeconds: s.GetOldest().AsDuration().Seconds(),
		Reaped:        Reaped{ByTracer: s.GetReapedByTracer(), ByShim: s.GetReapedByShim(), ByInit: s.GetReapedByInit()},
		Vanished:      s.GetVanished(), Attaches: s.GetAttaches(), LongestStopSeconds: s.GetLongestStop().AsDuration().Seconds(),
		Refusals: s.GetRefusals(), Contradictions: s.GetContradictions(),
		ForkLog: ForkLog{
			Source: s.GetForkLog().GetSource(), Forks: s.GetForkLog().GetForks(), Lost: s.GetForkLog().GetLost(),
			Gaps: s.GetForkLog().GetGaps(), Reason: s.GetForkLog().GetReason(),
		},
	}
	z := &r.Zombies
	z.Total = z.Adopted + z.Own + z.Unproven + z.Held
	r.Reaped.Total = r.Reaped.ByTracer + r.Reaped.ByShim + r.Reaped.ByInit
	return r
}

func (a *app) psCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ps",
		Short: "Every task on the node: mode, zombies by verdict, orphans reaped, PIDs used",
		Long: `Every task of containerd on the node. For tasks of the reaper runtime: the mode in force, the zombies that are there now by
verdict, for how long the oldest one has been known, and how many orphans have been reaped since the task began.

  adopted   proven to be orphans; they go after the grace period
  own       PID 1 forked them and has not waited for them (yet)
  unproven  nothing proves who forked them; they are left alone
  held      their parent is another process than PID 1; only that can release them

PIDS is pids.current of pids.max: threads and zombies count.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer n.Close()
			tasks, err := n.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			list := TaskList{header: kind("TaskList"), Tasks: []Task{}}
			for _, t := range tasks {
				list.Tasks = append(list.Tasks, taskOf(t))
			}
			if err := a.print(list, list.table); err != nil {
				return err
			}
			return unasked(tasks)
		},
	}
}

// unasked is the error of tasks whose shims could not be asked.
func unasked(tasks []*node.Task) error {
	var (
		n     int
		first error
	)
	for _, t := range tasks {
		if t.Err != nil {
			n++
			first = cmp.Or(first, t.Err)
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("the shims of %d tasks could not be asked; the first: %w", n, first)
}

// nearLimit is the share of pids.max from which it is shown in red.
const nearLimit = 0.8

func (p PIDs) cell() cell {
	if p.Current == 0 {
		return none
	}
	if p.Max == 0 {
		return number(p.Current)
	}
	c := cell{text: fmt.Sprintf("%d/%d", p.Current, p.Max)}
	if p.near() {
		c.style = red
	}
	return c
}

func (p PIDs) near() bool { return p.Max > 0 && float64(p.Current) >= nearLimit*float64(p.Max) }

// modeCell shows the mode in force, and in colour that it is not the one asked for.
func (r *Reaper) modeCell() cell {
	switch {
	case r.EffectiveMode == "":
		return none
	case r.EffectiveMode != r.Mode:
		return cell{text: safe(r.EffectiveMode + " (not " + r.Mode + ")"), style: yellow}
	default:
		return text(r.EffectiveMode)
	}
}

func (l TaskList) table(wide bool) *table {
	titles := []string{"NAME", "MODE", "ADOPTED", "OWN", "UNPROVEN", "HELD", "OLDEST", "REAPED", "PIDS"}
	if wide {
		titles = append(titles, "NAMESPACE", "ID", "PID", "STATUS", "RUNTIME", "FORKLOG", "TRACER", "SHIM", "INIT", "ATTACHES", "LONGEST STOP", "NOTE")
	}
	t := newTable(titles...).numbers("ADOPTED", "OWN", "UNPROVEN", "HELD", "OLDEST", "REAPED", "PIDS", "PID", "TRACER", "SHIM", "INIT", "ATTACHES", "LONGEST STOP")
	t.empty = "No tasks."
	for _, task := range l.Tasks {
		t.add(task.cells(wide)...)
	}
	return t
}

func (task Task) cells(wide bool) []cell {
	row := []cell{text(task.Name)}
	r := task.Reaper
	switch {
	case r != nil:
		z := r.Zombies
		oldest := none
		if z.Adopted+z.Own+z.Unproven > 0 {
			oldest = cell{text: duration(r.OldestSeconds)}
		}
		row = append(row, r.modeCell(), alarm(z.Adopted, yellow), alarm(z.Own, yellow), alarm(z.Unproven, red), alarm(z.Held, red), oldest,
			number(r.Reaped.Total))
	case task.Error != "":
		row = append(row, cell{text: "?", style: red}, none, none, none, none, none, none)
	default:
		row = append(row, none, none, none, none, none, none, none)
	}
	row = append(row, task.PIDs.cell())
	if !wide {
		return row
	}
	row = append(row, text(task.Namespace), text(task.ID), number(task.PID), text(task.Status), text(task.Runtime))
	if r == nil {
		return append(row, none, none, none, none, none, none, text(task.Error))
	}
	note := r.Reason
	if note == "" {
		note = r.ForkLog.Reason
	}
	return append(row, text(r.ForkLog.Source), number(r.Reaped.ByTracer), number(r.Reaped.ByShim), number(r.Reaped.ByInit), number(r.Attaches),
		cell{text: duration(r.LongestStopSeconds)}, text(note))
}
