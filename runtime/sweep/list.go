package sweep

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Zombie is one zombie of the namespace as the last sweep left it.
type Zombie struct {
	PID       procfs.HostPID
	NSPID     procfs.NSPID // as PID 1 knows it; 0 when it cannot be read
	Comm      string       // chosen by the process
	Session   procfs.HostPID
	Parent    procfs.HostPID
	FirstSeen time.Time // zero for one that is held
	Status    int       // wait(2)
	Judgement lineage.Judgement
	// Held: its living parent is not PID 1, and no rule is asked about it.
	Held bool
}

// Zombies lists the zombies below PID 1 that the last sweep left, the ones seen first in front, and behind them those that
// are held by other processes, which are looked for now. omitted says how many there are beyond limit.
func (s *Sweeper) Zombies(limit int) (list []Zombie, omitted int) {
	for _, z := range s.zombies {
		list = append(list, s.listedAs(z))
	}
	slices.SortFunc(list, func(a, b Zombie) int {
		if c := a.FirstSeen.Compare(b.FirstSeen); c != 0 {
			return c
		}
		return int(a.PID - b.PID)
	})
	for _, parent := range s.procs() {
		if parent != s.cfg.Init.PID {
			list = append(list, s.heldBy(parent)...)
		}
	}
	if len(list) > limit {
		list, omitted = list[:limit], len(list)-limit
	}
	for i := range list {
		if z := s.zombies[list[i].PID]; z != nil && z.bare() && !list[i].Held && s.detail(z) {
			list[i] = s.listedAs(z)
		}
		list[i].NSPID = s.numberInside(list[i].PID)
	}
	return list, omitted
}

func (s *Sweeper) listedAs(z *zombie) Zombie {
	return Zombie{
		PID: z.pid, Comm: z.comm, Session: z.session, Parent: s.cfg.Init.PID,
		FirstSeen: z.firstSeen, Status: z.status, Judgement: z.judgement,
	}
}

// numberInside returns the number that PID 1 knows a process by, 0 when it cannot be read.
func (s *Sweeper) numberInside(pid procfs.HostPID) procfs.NSPID {
	status, err := s.cfg.Proc.Status(pid)
	if err != nil {
		return 0
	}
	number, _ := status.At(s.level)
	return number
}

func (s *Sweeper) heldBy(parent procfs.HostPID) []Zombie {
	tids, err := s.cfg.Proc.Threads(parent)
	if err != nil {
		return nil
	}
	var held []Zombie
	for _, tid := range tids {
		children, err := s.cfg.Proc.ThreadChildren(parent, tid)
		if err != nil {
			continue
		}
		for _, pid := range children {
			st, err := s.cfg.Proc.Stat(pid)
			if err != nil || !st.Zombie() || st.PPID != parent {
				continue
			}
			held = append(held, Zombie{PID: pid, Comm: st.Comm, Session: st.Session, Parent: parent, Status: st.ExitCode, Held: true})
		}
	}
	return held
}

// ErrObserving is returned by SweepNow where zombies are only observed.
var ErrObserving = errors.New("zombies of this task are observed and not reaped")

// SweepNow is a [Sweeper.Sweep] that waits for no grace period and no back-off with what is proven to be an orphan. It changes
// nothing for all else: ages of ReapUnproven and ReapOwn hold as ever.
func (s *Sweeper) SweepNow(ctx context.Context) (Result, error) {
	if s.cfg.Reaper == nil {
		return Result{}, ErrObserving
	}
	s.impatient = true
	defer func() { s.impatient = false }()
	return s.Sweep(ctx)
}
