package reaperctl

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

// ReapResult is the document of reap.
type ReapResult struct {
	header
	Container Container `json:"container"`
	// Reaped by this call. Left are the zombies below PID 1 that are still there, ProvenLeft those of them that are proven
	// orphans.
	Reaped     uint32 `json:"reaped"`
	Left       uint32 `json:"left"`
	ProvenLeft uint32 `json:"provenLeft"`
	// Declined is the reason why PID 1 was not made to reap the last time, Detail the same for people.
	Declined string `json:"declined,omitempty"`
	Detail   string `json:"detail,omitempty"`
}

// reapAgain is the pause before PID 1, which was in a call that must not be interrupted, is looked at again.
const reapAgain = 100 * time.Millisecond

func (a *app) reapCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "reap CONTAINER",
		Short: "Have proven orphans reaped now, without waiting for the grace period",
		Long: `Has PID 1 of the container reap its proven orphans now. It takes nothing else: zombies that PID 1 forked itself, or of which
nothing proves who did, are left alone as ever. Where PID 1 is in a call that cannot be interrupted it is tried again until --wait
is over. The exit code is 6 when proven orphans are left, and for a task that is not in mode assist.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeContainer,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer n.Close()
			tasks, err := n.List(cmd.Context())
			if err != nil {
				return err
			}
			t, err := node.Find(tasks, args[0])
			if err != nil {
				return err
			}
			res, err := reap(cmd.Context(), wait, func(ctx context.Context) (*api.ReapResponse, error) { return n.Reap(ctx, t) })
			if err != nil {
				return err
			}
			res.Container = containerOf(t)
			if err := a.print(res, res.table); err != nil {
				return err
			}
			if res.ProvenLeft > 0 {
				return errNotOK
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", time.Second, "try again for that `long` while PID 1 cannot be interrupted")
	return cmd
}

// reap calls once, and again until nothing proven is left or wait is over.
func reap(ctx context.Context, wait time.Duration, call func(context.Context) (*api.ReapResponse, error)) (ReapResult, error) {
	res := ReapResult{header: kind("ReapResult")}
	end := time.NewTimer(wait)
	defer end.Stop()
	for {
		resp, err := call(ctx)
		if err != nil {
			return res, err
		}
		res.Reaped += resp.GetReaped()
		res.Left, res.ProvenLeft = resp.GetLeft(), resp.GetProvenLeft()
		res.Declined, res.Detail = resp.GetDeclined(), resp.GetDetail()
		if res.ProvenLeft == 0 {
			return res, nil
		}
		select {
		case <-time.After(reapAgain):
		case <-end.C:
			return res, nil
		case <-ctx.Done():
			return res, fmt.Errorf("wait for PID 1: %w", ctx.Err())
		}
	}
}

func (r ReapResult) table(bool) *table {
	t := newTable("NAME", "REAPED", "LEFT", "PROVEN LEFT", "DECLINED").numbers("REAPED", "LEFT", "PROVEN LEFT")
	declined := text(r.Declined)
	if r.Declined != "" && r.Detail != "" {
		declined = cell{text: safe(r.Declined + ": " + r.Detail)}
	}
	t.add(text(r.Container.Name), number(r.Reaped), alarm(r.Left, yellow), alarm(r.ProvenLeft, red), declined)
	return t
}
