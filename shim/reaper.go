package shim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/shim/api"
)

// Revision of the Reaper service within version 1 of its package.
const Revision = 2

// maxList bounds an answer of List: with 64 bytes of each command it stays far below ttrpc's 4 MiB.
const maxList = 4096

var errPaused = fmt.Errorf("a task in the PID namespace is paused: %w", errdefs.ErrFailedPrecondition)

// reaperService is the Reaper service of shim/api. That only root reaches it is seen to by the server of containerd's shim
// package, which all services of the socket share (ttrpc.UnixSocketRequireSameUser).
type reaperService struct {
	s *service
}

var _ api.ReaperService = reaperService{}

// Stats returns what the last sweeps found.
func (r reaperService) Stats(_ context.Context, req *api.StatsRequest) (*api.StatsResponse, error) {
	tasks, err := r.tasks(req.GetContainerId())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp := &api.StatsResponse{Revision: Revision}
	for _, t := range tasks {
		var (
			stats sweep.Stats
			forks forklog.Stats
		)
		if w := r.s.watcherOf(t); w != nil && w.owner == t {
			stats, forks = w.snapshot()
		}
		resp.Tasks = append(resp.Tasks, t.message(stats, forks, false))
	}
	return resp, nil
}

// tasks returns one task, or all.
func (r reaperService) tasks(id string) ([]*task, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if id != "" {
		t := r.s.tasks[id]
		if t == nil {
			return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
		}
		return []*task{t}, nil
	}
	all := make([]*task, 0, len(r.s.tasks))
	for _, t := range r.s.tasks {
		all = append(all, t)
	}
	return all, nil
}

// List asks each watcher for its zombies.
func (r reaperService) List(ctx context.Context, req *api.ListRequest) (*api.ListResponse, error) {
	tasks, err := r.tasks(req.GetContainerId())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	limit := int(req.GetLimit())
	if limit == 0 || limit > maxList {
		limit = maxList
	}
	resp := &api.ListResponse{}
	done := make(map[*watcher]bool)
	for _, t := range tasks {
		w := r.s.watcherOf(t)
		if w == nil || done[w] {
			continue
		}
		done[w] = true
		a := newAsk(false, min(limit, maxList-len(resp.Zombies)))
		if err := w.ask(ctx, a); err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("list zombies of %s: %w", t.id, err))
		}
		now := time.Now()
		parents := make(map[procfs.HostPID]string)
		for _, z := range a.zombies {
			resp.Zombies = append(resp.Zombies, r.message(w.owner.id, z, now, parents))
		}
		resp.Omitted += uint32(a.omitted)
	}
	return resp, nil
}

func (r reaperService) message(id string, z sweep.Zombie, now time.Time, parents map[procfs.HostPID]string) *api.Zombie {
	parent, ok := parents[z.Parent]
	if !ok {
		if st, err := r.s.proc.Stat(z.Parent); err == nil {
			parent = cleanComm(st.Comm)
		}
		parents[z.Parent] = parent
	}
	m := &api.Zombie{
		ContainerId: id, Pid: uint32(z.PID), NsPid: uint32(z.NSPID), Command: cleanComm(z.Comm),
		Session: uint32(max(z.Session, 0)), Verdict: z.Judgement.Verdict.String(), Rules: z.Judgement.Rules.String(),
		Contradiction: z.Judgement.Contradiction, ParentPid: uint32(z.Parent), ParentCommand: parent,
		ExitStatus: exitStatus(z.Status),
	}
	if z.Held {
		m.Verdict = "held"
	} else {
		m.Age = durationpb.New(now.Sub(z.FirstSeen))
	}
	return m
}

// Reap has what is proven reaped now.
func (r reaperService) Reap(ctx context.Context, req *api.ReapRequest) (*api.ReapResponse, error) {
	resp, err := r.reap(ctx, req.GetContainerId())
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("reap: %w", err))
	}
	return resp, nil
}

func (r reaperService) reap(ctx context.Context, id string) (*api.ReapResponse, error) {
	if id == "" {
		return nil, fmt.Errorf("no container_id: %w", errdefs.ErrInvalidArgument)
	}
	tasks, err := r.tasks(id)
	if err != nil {
		return nil, err
	}
	t := tasks[0]
	w := r.s.watcherOf(t)
	who := []*task{t}
	if w != nil {
		who = append(who, w.owner) // what is done about a shared PID namespace is up to the task that owns PID 1
	}
	for _, t := range who {
		if mode, reason := t.effective(); mode != ModeAssist {
			if reason != "" {
				reason = " (" + reason + ")"
			}
			return nil, fmt.Errorf("task %s is in mode %s%s: %w", t.id, mode, reason, errdefs.ErrFailedPrecondition)
		}
	}
	if w == nil {
		// In the host's PID namespace: the shim reaps what escapes to it at once. Or not started yet.
		return &api.ReapResponse{}, nil
	}
	a := newAsk(true, maxList)
	if err := w.ask(ctx, a); err != nil {
		return nil, err
	}
	resp := &api.ReapResponse{
		Reaped: uint32(a.reaped), Declined: string(a.declined.Reason), Detail: a.declined.Detail,
	}
	for _, z := range a.zombies {
		if z.Held {
			continue
		}
		resp.Left++
		if z.Judgement.Verdict == lineage.Adopted {
			resp.ProvenLeft++
		}
	}
	return resp, nil
}

// ask is a question to the goroutine that owns a watcher's sweeper. A nil ask is nobody's.
type ask struct {
	reap   bool
	limit  int
	caller caller
	done   chan struct{} // closed once the fields below are set

	err      error
	zombies  []sweep.Zombie
	omitted  int
	reaped   int
	declined sweep.Declined
}

func newAsk(reap bool, limit int) *ask {
	return &ask{reap: reap, limit: limit, done: make(chan struct{})}
}

// ask waits until the question is answered. A watcher whose PID 1 has ended has nothing to list and nothing to reap.
func (w *watcher) ask(ctx context.Context, a *ask) error {
	a.caller = callerOf(ctx)
	select {
	case w.asks <- a:
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *ask) list(s *sweep.Sweeper) {
	a.zombies, a.omitted = s.Zombies(a.limit)
	close(a.done)
}

func (a *ask) refuse(err error) {
	if a != nil {
		a.err = err
		close(a.done)
	}
}

// sweep is the one that was asked for, or the one whose time has come.
func (a *ask) sweep(ctx context.Context, s *sweep.Sweeper) (sweep.Result, error) {
	if a == nil {
		return s.Sweep(ctx)
	}
	return s.SweepNow(ctx)
}

func (a *ask) answer(s *sweep.Sweeper, res sweep.Result, err error) {
	switch {
	case a == nil:
		return
	case errors.Is(err, sweep.ErrInitGone):
	case errors.Is(err, sweep.ErrObserving):
		a.err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	case err != nil:
		a.err = err
	default:
		a.zombies, _ = s.Zombies(a.limit)
		a.reaped, a.declined = len(res.Reaped), res.Declined
	}
	close(a.done)
}
