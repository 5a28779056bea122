package reaperctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

// Event is one document of events: a reaped orphan, or the statistics of a task.
type Event struct {
	header
	Time      time.Time `json:"time"`
	Container Container `json:"container"`
	// Orphan is set for kind "OrphanExit".
	Orphan *OrphanExit `json:"orphan,omitempty"`
	// Reaper and Final are set for kind "ZombieStats"; Final: the task has ended.
	Reaper *Reaper `json:"reaper,omitempty"`
	Final  bool    `json:"final,omitempty"`
}

// OrphanExit is how an orphan ended that was reaped. PID is the host's, 0 where it is not known; ID is "orphan-" and its number in
// the container.
type OrphanExit struct {
	ID         string    `json:"id"`
	PID        uint32    `json:"pid"`
	ExitStatus uint32    `json:"exitStatus"`
	ExitedAt   time.Time `json:"exitedAt"`
}

const (
	topicExit    = "/tasks/exit"
	topicZombies = "/tasks/zombies"
	// orphanPrefix begins the exec ID of an orphan's exit (shim/events.go).
	orphanPrefix = "orphan-"
	// statsMessage is the type of the statistics in events (containerd, typeurl: the name of a protobuf message).
	statsMessage = "containerd.reaper.v1.ZombieStats"
)

func (a *app) eventsCommand() *cobra.Command {
	var (
		length time.Duration
		count  int
	)
	cmd := &cobra.Command{
		Use:   "events [CONTAINER]",
		Short: "Follow what the reaper shims publish: orphans that were reaped, and changes of the statistics",
		Long: `Shows the events of the reaper shims as they come, until it is interrupted: the exit of each orphan that was reaped, and the
statistics of a task when they have changed. containerd keeps no events: what was before, it cannot tell.

With -o json there is one document a line.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeContainer,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			n, err := a.open(ctx)
			if err != nil {
				return err
			}
			defer n.Close()
			names := &namer{node: n}
			if err := names.refresh(ctx); err != nil {
				return err
			}
			var only *node.Task
			if len(args) > 0 {
				if only, err = node.Find(names.tasks, args[0]); err != nil {
					return err
				}
			}
			if length > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, length)
				defer cancel()
			}
			seen := 0
			err = n.Follow(ctx, []string{topicExit, topicZombies}, func(env *types.Envelope) (bool, error) {
				ev, ok := decode(env)
				if !ok || only != nil && (ev.Container.Namespace != only.Namespace || ev.Container.ID != only.ID) {
					return true, nil
				}
				ev.Container = names.container(ctx, ev.Container)
				seen++
				return count == 0 || seen < count, a.printEvent(ev)
			})
			if length > 0 && errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&length, "for", 0, "end after that `long` (default never)")
	cmd.Flags().IntVar(&count, "count", 0, "end after `number` events (default never)")
	return cmd
}

// decode returns what an event of containerd's says, and false for one that is not ours.
func decode(env *types.Envelope) (Event, bool) {
	ev := Event{header: kind("OrphanExit"), Time: env.GetTimestamp().AsTime(), Container: Container{Namespace: env.GetNamespace()}}
	switch env.GetTopic() {
	case topicExit:
		var x eventstypes.TaskExit
		if err := proto.Unmarshal(env.GetEvent().GetValue(), &x); err != nil || !strings.HasPrefix(x.GetID(), orphanPrefix) {
			return Event{}, false
		}
		ev.Container.ID = x.GetContainerID()
		ev.Orphan = &OrphanExit{ID: x.GetID(), PID: x.GetPid(), ExitStatus: x.GetExitStatus(), ExitedAt: x.GetExitedAt().AsTime()}
	case topicZombies:
		var s api.ZombieStats
		if env.GetEvent().GetTypeUrl() != statsMessage || proto.Unmarshal(env.GetEvent().GetValue(), &s) != nil {
			return Event{}, false
		}
		ev.Kind, ev.Container.ID, ev.Reaper, ev.Final = "ZombieStats", s.GetContainerId(), reaperOf(&s), s.GetFinal()
	default:
		return Event{}, false
	}
	ev.Container.Name = ev.Container.ID
	return ev, true
}

// namer finds the names of containers that events are about.
type namer struct {
	node  *node.Node
	tasks []*node.Task
	known map[[2]string]Container // by namespace and ID
}

func (n *namer) refresh(ctx context.Context) error {
	tasks, err := n.node.List(ctx)
	if err != nil {
		return err
	}
	n.tasks, n.known = tasks, make(map[[2]string]Container)
	for _, t := range tasks {
		n.known[[2]string{t.Namespace, t.ID}] = containerOf(t)
	}
	return nil
}

// container returns c with its names, or as it is where nobody knows them any more.
func (n *namer) container(ctx context.Context, c Container) Container {
	key := [2]string{c.Namespace, c.ID}
	named, ok := n.known[key]
	if !ok {
		if err := n.refresh(ctx); err != nil {
			return c
		}
		if named, ok = n.known[key]; !ok {
			n.known[key] = c // ask once
			return c
		}
	}
	return named
}

func (a *app) printEvent(ev Event) error {
	var (
		out []byte
		err error
	)
	switch a.format {
	case formatJSON:
		out, err = toJSON(ev, "")
	case formatYAML:
		out, err = toYAML(ev)
		out = append([]byte("---\n"), out...)
	default:
		out = []byte(ev.line(a.format == formatWide, a.color) + "\n")
	}
	if err != nil {
		return fmt.Errorf("encode as %s: %w", a.format, err)
	}
	_, err = a.out.Write(out)
	return err
}

// line is an event in words. The wide one has the namespace and the ID.
func (ev Event) line(wide, color bool) string {
	paint := func(s style, text string) string {
		if !color {
			return text
		}
		return s.paint(text)
	}
	who := safe(ev.Container.Name)
	if wide {
		who += " (" + safe(ev.Container.Namespace+"/"+ev.Container.ID) + ")"
	}
	at := paint(dim, ev.Time.Local().Format("15:04:05.000"))
	if o := ev.Orphan; o != nil {
		status := fmt.Sprintf("exit status %d", o.ExitStatus)
		if o.ExitStatus != 0 {
			status = paint(yellow, status)
		}
		return fmt.Sprintf("%s  %s  reaped %s, %s", at, who, safe(o.ID), status)
	}
	r := ev.Reaper
	text := fmt.Sprintf("%d reaped; zombies: %d adopted, %d own, %d unproven, %d held", r.Reaped.Total, r.Zombies.Adopted, r.Zombies.Own,
		r.Zombies.Unproven, r.Zombies.Held)
	if ev.Final {
		text = "ended; " + text
	}
	return fmt.Sprintf("%s  %s  %s", at, who, text)
}
