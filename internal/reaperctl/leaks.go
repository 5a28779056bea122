package reaperctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/internal/scan"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// LeakReport is the document of leaks.
type LeakReport struct {
	header
	// Seconds for which was looked.
	Seconds float64 `json:"seconds"`
	Leaks   []Leak  `json:"leaks"`
	// Reaped says for each task of the reaper runtime that has had orphans reaped, how many since it began.
	Reaped []ReapedTask `json:"reaped"`
	// Omitted is how many zombies were of more kinds than are told apart.
	Omitted int `json:"omitted"`
}

// Leak is one kind of zombie in one container.
type Leak struct {
	// Container is missing for what is outside of any.
	Container *Container `json:"container,omitempty"`
	Cgroup    string     `json:"cgroup"`
	Command   string     `json:"command"`
	// LeftBy is the command of the parent that it had before, or of the leader of its session; "" where neither was seen alive.
	LeftBy string `json:"leftBy"`
	// Verdict is that of the reaper shim: "adopted", "own", "unproven" or "held". Without one it is what /proc shows: "adopted" and
	// "held" as well, and "unknown".
	Verdict string `json:"verdict"`
	// Parent is the process that has not waited for it.
	Parent     string `json:"parent"`
	ParentPID  int    `json:"parentPid"`
	ParentInit bool   `json:"parentInit"`
	// Before is how many there were already, New how many have come since, and PerHour New in relation to the time.
	Before  int     `json:"before"`
	New     int     `json:"new"`
	PerHour float64 `json:"perHour"`
	// ExitStatuses counts all of them by exit status, as a shell prints it.
	ExitStatuses map[string]int `json:"exitStatuses"`
	Remedy       string         `json:"remedy"`
}

// ReapedTask is what a shim has counted since its task began.
type ReapedTask struct {
	Container Container `json:"container"`
	Reaped    uint64    `json:"reaped"`
	Seconds   float64   `json:"seconds"`
	PerHour   float64   `json:"perHour"`
}

const (
	// lookEvery is how often /proc is read: an orphan's parent that lives shorter may not be seen.
	lookEvery = 100 * time.Millisecond
	// askEvery is how often shims are asked what they say of their zombies. Orphans are left to be for at least the grace period.
	askEvery = 500 * time.Millisecond
)

func (a *app) leaksCommand() *cobra.Command {
	var length time.Duration
	cmd := &cobra.Command{
		Use:   "leaks [CONTAINER]",
		Short: "The report for the owner of an image: which command is left behind by which, how often, and what to change",
		Long: `Looks at all processes of the node ten times a second for the time that --for says, with any container runtime, and reports what
was left behind as a zombie for half a second or longer: which command, by which parent, how many there were already, how many
came and what that is per hour, and with which exit status. And what has to change so that it stops.

A parent that lives for less than a tenth of a second may not be seen; its place is empty then. Orphans that reaper-init reaps
(mode init) are gone at once and only counted.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeContainer,
		RunE: func(cmd *cobra.Command, args []string) error {
			if length < time.Second {
				return fmt.Errorf("--for %v: want a second or more", length)
			}
			return a.leaks(cmd.Context(), args, length)
		},
	}
	cmd.Flags().DurationVar(&length, "for", 30*time.Second, "look for that `long`")
	return cmd
}

func (a *app) leaks(ctx context.Context, args []string, length time.Duration) error {
	var (
		tasks []*node.Task
		only  *node.Task
	)
	n, err := a.open(ctx)
	if err == nil {
		defer n.Close()
		tasks, err = n.Snapshot(ctx)
	}
	switch {
	case err != nil && len(args) > 0:
		return err
	case err != nil:
		fmt.Fprintf(a.err, "reaperctl: names of containerd's containers are missing: %s\n", safe(err.Error()))
	case len(args) > 0:
		if only, err = node.Find(tasks, args[0]); err != nil {
			return err
		}
	}
	proc := procfs.New(os.DirFS("/proc"))
	known := knownContainers(proc, tasks)
	paths := make([]string, 0, len(known))
	for p := range known {
		paths = append(paths, p)
	}
	w := scan.NewWatch(proc, paths)
	verdicts, took, err := watch(ctx, w, n, tasks, length)
	if err != nil {
		return err
	}
	report := LeakReport{header: kind("LeakReport"), Seconds: took.Seconds(), Leaks: []Leak{}, Reaped: []ReapedTask{}}
	found, omitted := w.Leaks()
	report.Omitted = omitted
	for l, t := range found {
		task := known[l.Cgroup]
		if only == nil || task == only {
			report.Leaks = append(report.Leaks, leakOf(l, t, task, verdicts, took))
		}
	}
	slices.SortFunc(report.Leaks, func(a, b Leak) int {
		return cmp.Or(cmp.Compare(b.New, a.New), cmp.Compare(b.Before, a.Before), cmp.Compare(a.Cgroup, b.Cgroup), cmp.Compare(a.Command, b.Command),
			cmp.Compare(a.LeftBy, b.LeftBy))
	})
	if n != nil {
		report.Reaped = reapedTasks(ctx, n, proc, only)
	}
	return a.print(report, report.table)
}

// watch looks until the time is over, or it is interrupted: what was found by then is reported. It returns what the shims said of
// zombies, by their number on the host.
func watch(ctx context.Context, w *scan.Watch, n *node.Node, tasks []*node.Task, length time.Duration) (map[procfs.HostPID]string, time.Duration, error) {
	verdicts := make(map[procfs.HostPID]string)
	begin := time.Now()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	end := time.NewTimer(length)
	defer end.Stop()
	asked := time.Time{}
	for {
		now := time.Now()
		if err := w.Look(now); err != nil {
			return nil, 0, err
		}
		if n != nil && now.Sub(asked) >= askEvery {
			asked = now
			askVerdicts(ctx, n, tasks, verdicts)
		}
		select {
		case <-look.C:
		case <-end.C:
			return verdicts, time.Since(begin), nil
		case <-ctx.Done():
			return verdicts, time.Since(begin), nil
		}
	}
}

// askVerdicts asks the shims of ours. A task that has ended meanwhile has nothing to say.
func askVerdicts(ctx context.Context, n *node.Node, tasks []*node.Task, verdicts map[procfs.HostPID]string) {
	for _, t := range tasks {
		if !t.Ours || t.PID == 0 {
			continue
		}
		zs, _, err := n.Zombies(ctx, t, 0)
		if err != nil {
			continue
		}
		for _, z := range zs {
			verdicts[procfs.HostPID(z.GetPid())] = z.GetVerdict()
		}
	}
}

func leakOf(l scan.Leak, t *scan.Tally, task *node.Task, verdicts map[procfs.HostPID]string, took time.Duration) Leak {
	v := Leak{
		Cgroup: l.Cgroup, Command: l.Command, LeftBy: l.LeftBy, Parent: l.Parent, ParentPID: int(l.ParentPID), ParentInit: l.Init,
		ExitStatuses: map[string]int{},
	}
	switch l.Origin {
	case scan.Orphan:
		v.Verdict = "adopted"
	case scan.Held:
		v.Verdict = "held"
	case scan.Unknown:
		v.Verdict = "unknown"
	}
	for _, pid := range t.PIDs {
		if verdict := verdicts[pid]; verdict != "" {
			v.Verdict = verdict
		}
	}
	ours := task != nil && task.Ours
	if task != nil {
		c := containerOf(task)
		v.Container = &c
	} else if _, id := scan.EngineOf(l.Cgroup); id != "" {
		v.Container = &Container{ID: id, Name: id}
	}
	for status, n := range t.Before {
		v.Before += n
		v.ExitStatuses[strconv.Itoa(exitStatus(status))] += n
	}
	for status, n := range t.New {
		v.New += n
		v.ExitStatuses[strconv.Itoa(exitStatus(status))] += n
	}
	v.PerHour = float64(v.New) / took.Hours()
	v.Remedy = remedy(v, ours)
	return v
}

// remedy says what its owner has to change. Commands are in it as they are, and escaped with the rest where it is shown.
func remedy(l Leak, ours bool) string {
	command, parent, by := `"`+l.Command+`"`, `"`+l.Parent+`"`, `"`+l.LeftBy+`"`
	if l.LeftBy == "" {
		by = "whoever started it"
	}
	switch l.Verdict {
	case "adopted":
		cure := "or give the image an init, or run it under io.containerd.reaper.v2"
		if ours {
			cure = "the shim reaps what it leaves"
		}
		return fmt.Sprintf("%s should wait for %s before it ends (in a shell: wait); %s", by, command, cure)
	case "own":
		return fmt.Sprintf("PID 1, %s, starts %s and never waits for it: that program has to be corrected, no init helps; option reapOwn can", parent, command)
	case "held":
		return fmt.Sprintf("%s (pid %d) has to wait for its child %s; when it ends, they go to PID 1", parent, l.ParentPID, command)
	case "unproven":
		return fmt.Sprintf("nothing proves whether PID 1, %s, started %s: see reaperctl doctor about the fork log; option reapUnproven takes them", parent, command)
	default:
		return fmt.Sprintf("PID 1, %s, has not waited for %s, which it started or adopted: under io.containerd.reaper.v2 the fork log tells which", parent, command)
	}
}

func reapedTasks(ctx context.Context, n *node.Node, proc *procfs.FS, only *node.Task) []ReapedTask {
	out := []ReapedTask{}
	tasks, err := n.Snapshot(ctx)
	up, uerr := uptime()
	if errors.Join(err, uerr) != nil {
		return out
	}
	for _, t := range tasks {
		if !t.Ours || only != nil && (t.Namespace != only.Namespace || t.ID != only.ID) {
			continue
		}
		r := ReapedTask{Container: containerOf(t), Reaped: reaperOf(t.Stats).Reaped.Total}
		st, err := proc.Stat(t.PID)
		if err != nil || r.Reaped == 0 {
			continue
		}
		age := max(up-ticks(st.StartTime), time.Second)
		r.Seconds, r.PerHour = age.Seconds(), float64(r.Reaped)/age.Hours()
		out = append(out, r)
	}
	return out
}

func (r LeakReport) table(wide bool) *table {
	titles := []string{"CONTAINER", "COMMAND", "LEFT BY", "VERDICT", "PARENT", "BEFORE", "NEW", "PER HOUR", "STATUS"}
	if wide {
		titles = append(titles, "CGROUP")
	}
	t := newTable(titles...).numbers("BEFORE", "NEW", "PER HOUR")
	t.empty = fmt.Sprintf("Nothing was left behind in %s.", duration(r.Seconds))
	var remedies []string
	for _, l := range r.Leaks {
		name := cell{text: safe(l.Cgroup), style: dim}
		switch {
		case l.Container != nil:
			name = text(l.Container.Name)
		case l.Cgroup == "":
			name = none
		}
		parent := fmt.Sprintf("%s (%d)", safe(l.Parent), l.ParentPID)
		if l.ParentInit {
			parent = fmt.Sprintf("%s (PID 1)", safe(l.Parent))
		}
		row := []cell{name, text(l.Command), text(l.LeftBy), {text: l.Verdict, style: verdictStyle[l.Verdict]}, {text: parent}, number(l.Before), alarm(l.New, red),
			{text: fmt.Sprintf("%.0f", l.PerHour)}, {text: counts(l.ExitStatuses)}}
		if wide {
			row = append(row, text(l.Cgroup))
		}
		t.add(row...)
		if line := "- " + safe(l.Remedy); !slices.Contains(remedies, line) {
			remedies = append(remedies, line)
		}
	}
	var foot []string
	if len(remedies) > 0 {
		foot = append(foot, fmt.Sprintf("In %s. What to change:", duration(r.Seconds)))
		foot = append(foot, remedies...)
	}
	if r.Omitted > 0 {
		foot = append(foot, fmt.Sprintf("%d zombies of other kinds are not listed.", r.Omitted))
	}
	for _, task := range r.Reaped {
		foot = append(foot, fmt.Sprintf("%s: %d orphans reaped in %s, %.0f per hour.", safe(task.Container.Name), task.Reaped, duration(task.Seconds), task.PerHour))
	}
	t.footer = strings.Join(foot, "\n")
	return t
}

// maxStatuses is how many exit statuses a line of the table names.
const maxStatuses = 3

// counts writes exit statuses with how often each came, the most frequent first.
func counts(statuses map[string]int) string {
	keys := make([]string, 0, len(statuses))
	for s := range statuses {
		keys = append(keys, s)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(statuses[b], statuses[a]), cmp.Compare(a, b)) })
	var out []string
	for i, s := range keys {
		if i == maxStatuses {
			out = append(out, "…")
			break
		}
		out = append(out, fmt.Sprintf("%s (%d)", s, statuses[s]))
	}
	return strings.Join(out, ", ")
}
