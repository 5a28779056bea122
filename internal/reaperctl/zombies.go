package reaperctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

// ZombieList is the document of zombies.
type ZombieList struct {
	header
	Zombies []Zombie `json:"zombies"`
	// Omitted is how many more there are than the shims list at once.
	Omitted uint32 `json:"omitted"`
}

// Zombie is one of them. Numbers of processes are the host's but for NSPID, which is PID 1's (0 where it cannot be read).
type Zombie struct {
	Container Container `json:"container"`
	PID       uint32    `json:"pid"`
	NSPID     uint32    `json:"nsPid"`
	Command   string    `json:"command"`
	// AgeSeconds since it was first seen as a zombie; missing for verdict "held".
	AgeSeconds *float64 `json:"ageSeconds,omitempty"`
	// Verdict is "adopted", "own", "unproven" or "held"; Rules are those that gave it, letters T, S, L and F, or "-".
	Verdict       string `json:"verdict"`
	Rules         string `json:"rules"`
	Contradiction bool   `json:"contradiction"`
	ParentPID     uint32 `json:"parentPid"`
	ParentCommand string `json:"parentCommand"`
	Session       uint32 `json:"session"`
	// ExitStatus as a shell prints it: 128 and the number of the signal that ended it.
	ExitStatus uint32 `json:"exitStatus"`
}

func zombieOf(c Container, z *api.Zombie) Zombie {
	v := Zombie{
		Container: c, PID: z.GetPid(), NSPID: z.GetNsPid(), Command: z.GetCommand(), Verdict: z.GetVerdict(), Rules: z.GetRules(),
		Contradiction: z.GetContradiction(), ParentPID: z.GetParentPid(), ParentCommand: z.GetParentCommand(),
		Session: z.GetSession(), ExitStatus: z.GetExitStatus(),
	}
	if z.GetAge() != nil {
		age := z.GetAge().AsDuration().Seconds()
		v.AgeSeconds = &age
	}
	return v
}

func (a *app) zombiesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "zombies [CONTAINER]",
		Short: "Each zombie of the reaper runtime's containers: command, age, verdict and why, parent, exit status",
		Long: `Each zombie that the reaper shims know of, those first that were seen first. The verdict says who forked it:

  adopted   a proven orphan; it goes after the grace period
  own       PID 1 forked it and has not waited for it (yet)
  unproven  nothing proves who forked it; it is left alone
  held      its parent is another process than PID 1; only that can release it

RULES gave the verdict: T thread list, S session, L seen below another parent, F fork log (docs/how-it-works.md).`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeContainer,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer n.Close()
			if len(args) > 0 {
				tasks, err := n.List(cmd.Context())
				if err != nil {
					return err
				}
				t, err := node.Find(tasks, args[0])
				if err != nil {
					return err
				}
				list, err := listZombies(cmd.Context(), n, tasks, []*node.Task{t})
				if err != nil {
					return err
				}
				return a.print(list, list.table)
			}
			tasks, err := n.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			ours := slices.DeleteFunc(slices.Clone(tasks), func(t *node.Task) bool { return !t.Ours })
			list, err := listZombies(cmd.Context(), n, tasks, ours)
			return errors.Join(a.print(list, list.table), err, unasked(tasks))
		},
	}
}

// listZombies asks the shims of the tasks in asked. The list has what the others said when there is an error.
func listZombies(ctx context.Context, n *node.Node, all, asked []*node.Task) (ZombieList, error) {
	list := ZombieList{header: kind("ZombieList"), Zombies: []Zombie{}}
	names := make(map[string]Container)
	for _, t := range all {
		names[t.Namespace+"/"+t.ID] = containerOf(t)
	}
	// Containers that share a PID namespace each list the same.
	listed := make(map[uint32]bool)
	var errs []error
	for _, t := range asked {
		zs, omitted, err := n.Zombies(ctx, t, 0)
		if err != nil {
			if len(asked) == 1 || !isGone(err) {
				errs = append(errs, err)
			}
			continue
		}
		fresh := false
		for _, z := range zs {
			if listed[z.GetPid()] {
				continue
			}
			listed[z.GetPid()], fresh = true, true
			c, known := names[t.Namespace+"/"+z.GetContainerId()]
			if !known {
				c = containerOf(t)
			}
			list.Zombies = append(list.Zombies, zombieOf(c, z))
		}
		if fresh {
			list.Omitted += omitted
		}
	}
	return list, errors.Join(errs...)
}

// isGone reports whether an error is that of a task, or a shim, that has ended since it was listed.
func isGone(err error) bool { return errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) }

var verdictStyle = map[string]style{"adopted": yellow, "own": yellow, "unproven": red, "held": red}

func (l ZombieList) table(wide bool) *table {
	titles := []string{"CONTAINER", "PID", "NSPID", "COMMAND", "AGE", "VERDICT", "RULES", "PARENT", "STATUS"}
	if wide {
		titles = append(titles, "SESSION", "NAMESPACE", "ID")
	}
	t := newTable(titles...).numbers("PID", "NSPID", "AGE", "STATUS", "SESSION")
	t.empty = "No zombies."
	for _, z := range l.Zombies {
		age := none
		if z.AgeSeconds != nil {
			age = cell{text: duration(*z.AgeSeconds)}
		}
		rules := text(z.Rules)
		if z.Contradiction {
			rules = cell{text: safe(z.Rules) + " contradict", style: red}
		}
		row := []cell{
			text(z.Container.Name), number(z.PID), number(z.NSPID), text(z.Command), age, {text: safe(z.Verdict), style: verdictStyle[z.Verdict]},
			rules, {text: fmt.Sprintf("%s (%d)", safe(z.ParentCommand), z.ParentPID)}, number(z.ExitStatus),
		}
		if wide {
			row = append(row, number(z.Session), text(z.Container.Namespace), text(z.Container.ID))
		}
		t.add(row...)
	}
	if l.Omitted > 0 {
		t.footer = fmt.Sprintf("%d more are not listed.", l.Omitted)
	}
	return t
}
