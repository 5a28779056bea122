package scan

import (
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// lingering is how long a process has to be a zombie before it counts as left: a parent that waits does it sooner.
const lingering = 500 * time.Millisecond

// maxLeaks bounds how many different leaks are told apart: a container chooses the names.
const maxLeaks = 4096

// Origin is what is known of who should have waited for a zombie.
type Origin string

// The origins.
const (
	// Orphan: it was seen below another parent before, or is in a session that its parent, a session leader, was never in.
	Orphan Origin = "orphan"
	// Unknown: its parent is PID 1 of a container, which either forked it or adopted it.
	Unknown Origin = "unknown"
	// Held: its parent is no PID 1 of a container, and so forked it.
	Held Origin = "held"
)

// Leak is one kind of zombie in one container.
type Leak struct {
	Cgroup  string // of the container, as in Group
	Command string
	Origin  Origin
	// Parent is the command of the process that does not wait, ParentPID its number, and Init as Parent.Init of Group.
	Parent    string
	ParentPID procfs.HostPID
	Init      bool
	// LeftBy is the command of the parent that it had before, or of the leader of its session; "" where neither was seen alive.
	LeftBy string
}

// Tally counts zombies of one kind by wait(2) status.
type Tally struct {
	// Before counts those that were there when the watch began, New those that came.
	Before, New map[int]int
	// PIDs of some of them, to ask a shim about.
	PIDs []procfs.HostPID
}

// maxPIDs is how many numbers a Tally keeps.
const maxPIDs = 16

// identity of a process. That (PID, start time) can be forged (docs/lineage.md) makes a count wrong at worst.
type identity struct {
	pid   procfs.HostPID
	start uint64
}

// past is what was seen of a living process.
type past struct {
	leftBy   string // command of the last parent but the present one
	parent   identity
	parentIs string // command of the present parent
}

// Watch finds out, by looking again and again, who leaves zombies behind. It remembers living processes, so that it can name the parent
// of an orphan: that has ended when the orphan does.
type Watch struct {
	proc       *procfs.FS
	containers []string
	began      bool

	living   map[identity]past
	sessions map[procfs.HostPID]string // commands of session leaders that were seen, by session
	zombies  map[identity]*zombie
	leaks    map[Leak]*Tally
	omitted  int
}

type zombie struct {
	since   time.Time
	before  bool // it was there when the watch began
	counted bool
}

// NewWatch returns a Watch. containers are as for Scan.
func NewWatch(proc *procfs.FS, containers []string) *Watch {
	return &Watch{
		proc: proc, containers: containers, living: map[identity]past{}, sessions: map[procfs.HostPID]string{}, zombies: map[identity]*zombie{},
		leaks: map[Leak]*Tally{},
	}
}

// Leaks returns what was found. omitted counts zombies of more kinds than are told apart.
func (w *Watch) Leaks() (leaks map[Leak]*Tally, omitted int) { return w.leaks, w.omitted }

// Look looks at all processes once; now is the time.
func (w *Watch) Look(now time.Time) error {
	stats, err := all(w.proc)
	if err != nil {
		return err
	}
	living := make(map[identity]past, len(stats))
	zombies := make(map[identity]*zombie)
	sessions := make(map[procfs.HostPID]string)
	for pid, st := range stats {
		id := identity{pid, st.StartTime}
		w.rememberSession(st, stats, sessions)
		p := w.follow(id, st, stats)
		living[id] = p // of zombies too: what was seen of them alive
		if !st.Zombie() {
			continue
		}
		z := w.zombies[id]
		if z == nil {
			z = &zombie{since: now, before: !w.began}
		}
		zombies[id] = z
	}
	w.living, w.zombies, w.sessions = living, zombies, sessions
	for id, z := range zombies {
		if !z.counted && (z.before || now.Sub(z.since) >= lingering) {
			z.counted = w.count(stats[id.pid], living[id], stats, z.before)
		}
	}
	w.began = true
	return nil
}

// rememberSession keeps the name of a session's leader for as long as somebody is in that session.
func (w *Watch) rememberSession(st procfs.Stat, stats map[procfs.HostPID]procfs.Stat, sessions map[procfs.HostPID]string) {
	if leader, there := stats[st.Session]; there && leader.PID == leader.Session {
		sessions[st.Session] = leader.Comm
	} else if name, known := w.sessions[st.Session]; known {
		sessions[st.Session] = name
	}
}

// follow carries on what is known of a process: when its parent is another than last time, the last one has left it.
func (w *Watch) follow(id identity, st procfs.Stat, stats map[procfs.HostPID]procfs.Stat) past {
	parent := stats[st.PPID]
	now := past{parent: identity{parent.PID, parent.StartTime}, parentIs: parent.Comm}
	if before, known := w.living[id]; known {
		now.leftBy = before.leftBy
		if before.parent != now.parent {
			now.leftBy = before.parentIs
		}
	}
	return now
}

// count counts a zombie, and reports whether it did: a parent that ended meanwhile leaves it to another.
func (w *Watch) count(st procfs.Stat, p past, stats map[procfs.HostPID]procfs.Stat, before bool) bool {
	parent, there := stats[st.PPID]
	if !there {
		return false
	}
	of := Parent{PID: parent.PID, Command: parent.Comm}
	name(w.proc, &of)
	l := Leak{
		Cgroup: enclosing(sweep.ContainerPath(w.proc, parent.PID), w.containers), Command: st.Comm, Parent: parent.Comm, ParentPID: parent.PID,
		Init: of.Init(), LeftBy: p.leftBy, Origin: Unknown,
	}
	// PID 1 is in its own session from its first moment on (runc), and has never been in another.
	foreign := parent.Session == parent.PID && st.Session != parent.Session && st.Session != st.PID && st.Session > 0
	switch {
	case !l.Init:
		l.Origin = Held
	case l.LeftBy != "" || foreign:
		l.Origin = Orphan
	}
	if l.LeftBy == "" && foreign {
		l.LeftBy = w.sessions[st.Session]
	}
	t := w.leaks[l]
	if t == nil {
		if len(w.leaks) == maxLeaks {
			w.omitted++
			return true
		}
		t = &Tally{Before: map[int]int{}, New: map[int]int{}}
		w.leaks[l] = t
	}
	if before {
		t.Before[st.ExitCode]++
	} else {
		t.New[st.ExitCode]++
	}
	if len(t.PIDs) < maxPIDs {
		t.PIDs = append(t.PIDs, st.PID)
	}
	return true
}
