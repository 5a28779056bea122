package tracer

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// maxThreads is how many threads of PID 1 are looked at. A process with more is declined: a thread that waits for the
// zombie could be among the rest.
const maxThreads = 4096

// observer looks at PID 1 and its zombies without touching them.
type observer struct {
	raw    fs.FS // root of the proc file system
	cgroup fs.FS // where the cgroup file systems are mounted, /sys/fs/cgroup
	proc   *procfs.FS
}

func newObserver(proc, cgroup fs.FS) *observer {
	return &observer{raw: proc, cgroup: cgroup, proc: procfs.New(proc)}
}

// Everything that can be checked before PID 1 is touched is, in three steps: the process itself, its zombies, and its threads when the time
// has come. They make the plan of the attach and fill in the results of zombies that will not be tried; if none is left, the plan has
// no thread. Their errors are a *declined that speaks of the whole request.

// process is the first step.
func (o *observer) process(req Request) error {
	stat, err := o.proc.Stat(req.PID)
	if err != nil {
		return lookupError(err)
	}
	switch {
	case stat.StartTime != req.StartTime:
		return no(ReasonVanished, "process %d started at %d, not at %d", req.PID, stat.StartTime, req.StartTime)
	case stat.Zombie() || stat.State == procfs.StateDead:
		return no(ReasonExiting, "process %d is in state %v", req.PID, stat.State)
	}
	return nil
}

// zombieReader looks at zombie i of a request.
type zombieReader interface {
	// zombieStat comes first for a zombie without an ID, zombieFacts for one with.
	zombieStat(i int) (procfs.Stat, error)
	zombieFacts(i int) (pidfd.Facts, error)
	zombieStatus(i int) (procfs.Status, error)
	// zombieNumber returns its number at the level of PID 1, 0 if the kernel does not say.
	zombieNumber(i int) procfs.NSPID
}

// inside finds out which of its numbers PID 1 has in its own namespace.
func (o *observer) inside(req Request, t *targets) error {
	status, err := settled(func() (procfs.Status, error) { return o.proc.Status(req.PID) })
	if errors.Is(err, procfs.ErrVanished) {
		// The numbers of a leader that another thread replaces by execve(2) are gone for a moment; the process is not.
		if s, serr := o.proc.Stat(req.PID); serr == nil && s.StartTime == req.StartTime {
			return no(ReasonExiting, "process %d has just called execve(2), or is ending", req.PID)
		}
	}
	if err != nil {
		return lookupError(err)
	}
	if len(status.NSpid) == 0 {
		return no(ReasonInternal, "no NSpid in the status of process %d (Linux 4.1)", req.PID)
	}
	t.level = status.Level()
	t.isInit = status.NSpid[t.level] == 1
	return nil
}

// zombies is the second step: it goes on until so many are prepared.
func (o *observer) zombies(req Request, read zombieReader, t *targets, want int, results []Result) error {
	if t.examined == 0 {
		if err := o.inside(req, t); err != nil {
			return err
		}
	}
	for left := t.left(); left < want && t.examined < len(req.Zombies); t.examined++ {
		i := t.examined
		nspid, why, err := examineZombie(i, req.Zombies[i], read, req.PID, t)
		if errors.Is(err, syscall.EMFILE) {
			break // so many are open already
		}
		results[i].NSPID = nspid
		if why != "" {
			results[i].Outcome, results[i].Reason = outcomeOf(why), why
			continue
		}
		t.reapers[i], t.todo[i] = nspid, true
		left++
	}
	return nil
}

// batchSize is how many zombies are worth preparing for a stop of that length.
func batchSize(maxStop time.Duration) int {
	const quickest = 10 * time.Microsecond // the two stops that each takes are not to be had in less
	return max(1, min(MaxBatch, int(maxStop/quickest)))
}

// examineZombie returns the number of z, zombie i of a request, at the level of t, or says why it may not be reaped by process parent, whose
// own PID-namespace level that is. err is what could not be read, if that is why.
func examineZombie(i int, z Zombie, read zombieReader, parent procfs.HostPID, t *targets) (nspid procfs.NSPID, why Reason, err error) {
	if z.ID == 0 {
		stat, err := read.zombieStat(i)
		if why = cmp.Or(unread(err), zombieStat(stat, parent, z)); why != "" {
			return 0, why, err
		}
	} else {
		facts, err := read.zombieFacts(i)
		if why = cmp.Or(unread(err), zombieFacts(facts, parent, z)); why != "" {
			return 0, why, err
		}
	}
	if known := t.untraced && z.ID != 0; known || t.ask {
		if nspid = read.zombieNumber(i); nspid > 0 {
			t.onAnswer = t.onAnswer || !known
			return nspid, wrongNumber(nspid, z), nil
		}
	}
	status, err := settled(func() (procfs.Status, error) { return read.zombieStatus(i) })
	if why = unread(err); why != "" {
		return 0, why, err
	}
	nspid, why = zombieStatus(status, t.level, z)
	return nspid, why, nil
}

// unread says why nothing could be read of a zombie, "" if it could.
func unread(err error) Reason {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, procfs.ErrVanished):
		return ReasonVanished
	}
	return ReasonInternal
}

func zombieFacts(f pidfd.Facts, parent procfs.HostPID, z Zombie) Reason {
	switch {
	case f.ID != z.ID:
		return ReasonVanished
	case f.Parent != parent:
		return ReasonWrongParent
	case !f.Dead: // or its leader alone is
		return ReasonNotZombie
	}
	return ""
}

func wrongNumber(nspid procfs.NSPID, z Zombie) Reason {
	if z.NSPID != 0 && nspid != z.NSPID {
		return ReasonWrongNSPID
	}
	return ""
}

// settled repeats a read that made no sense: the status of a task that is being released says NSpid 0, and the next read
// finds it gone.
func settled(read func() (procfs.Status, error)) (s procfs.Status, err error) {
	for range 10 {
		s, err = read()
		if err == nil || errors.Is(err, procfs.ErrVanished) || errors.Is(err, fs.ErrPermission) {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	return s, err
}

func zombieStat(s procfs.Stat, parent procfs.HostPID, z Zombie) Reason {
	switch {
	case s.StartTime != z.StartTime || s.Vanishing():
		return ReasonVanished
	case s.PPID != parent:
		return ReasonWrongParent
	case s.State == procfs.StateDead:
		return ReasonVanished
	case s.State != procfs.StateZombie:
		return ReasonNotZombie
	case s.NumThreads > 1:
		return ReasonLiveThreads
	}
	return ""
}

func zombieStatus(s procfs.Status, level int, z Zombie) (procfs.NSPID, Reason) {
	// Be it the parent: waitid would take from it what it waits for as a tracer (wait_consider_task() in kernel/exit.c).
	if s.TracerPid != 0 {
		return 0, ReasonZombieTraced
	}
	nspid, ok := s.At(level)
	if !ok {
		return nspid, ReasonWrongNSPID
	}
	return nspid, wrongNumber(nspid, z)
}

// parked reports whether a thread of the process is not running, or whether that cannot be told.
func (o *observer) parked(pid procfs.HostPID) bool {
	tids, err := o.proc.Threads(pid)
	if err != nil {
		return true
	}
	for _, tid := range tids {
		if sc, err := o.proc.ThreadSyscall(pid, tid); err != nil || !sc.Running {
			return true
		}
	}
	return false
}

// maxTurned is how many threads are asked whether they have run.
const maxTurned = 64

// timeslices returns how often threads of the process were given a CPU. ok is false if that cannot be told.
func (o *observer) timeslices(pid procfs.HostPID) (sum uint64, ok bool) {
	tids, err := o.proc.Threads(pid)
	if err != nil || len(tids) > maxTurned {
		return 0, false
	}
	for _, tid := range tids {
		n, err := o.proc.ThreadTimeslices(pid, tid)
		if err != nil {
			return 0, false
		}
		sum += n
	}
	return sum, true
}

// plan begins the plan of an attach.
func (t *targets) plan(req Request) plan {
	return plan{targets: *t, otherFD: -1, maxStop: req.maxStop()}
}

// threads is the third step. It looks at every thread of PID 1: it refuses the zombies that one of them waits for, and chooses
// the thread to stop.
func (o *observer) threads(req Request, p *plan, results []Result) error {
	if where := o.frozen(req.PID); where != "" {
		return no(ReasonFrozen, "%s", where)
	}
	tids, err := o.proc.Threads(req.PID)
	if err != nil {
		return lookupError(err)
	}
	if len(tids) > maxThreads {
		return no(ReasonBusy, "%d threads, more than are looked at (%d)", len(tids), maxThreads)
	}
	p.threads = len(tids)

	type candidate struct {
		tid   procfs.HostPID
		call  call
		waits waitTarget // call.waits with the pidfd looked up
	}
	var (
		cands    []candidate
		waits    []waitTarget
		unsafe   string // a call that a thread is in and may not be interrupted in
		strict   bool
		running  procfs.HostPID
		pending  procfs.SignalSet
		consider procfs.SignalSet // caught by the process or blocked by a thread
	)
	for _, tid := range tids {
		st, err := settled(func() (procfs.Status, error) { return o.proc.ThreadStatus(req.PID, tid) })
		if errors.Is(err, procfs.ErrVanished) {
			continue
		} else if err != nil {
			return lookupError(err)
		}
		if st.TracerPid != 0 {
			return no(ReasonTraced, "thread %d by process %d", tid, st.TracerPid)
		}
		pending |= st.SigPnd | st.ShdPnd
		consider |= st.SigCgt | st.SigBlk
		p.blocked |= st.SigBlk
		switch st.State {
		case procfs.StateStopped, procfs.StateTracingStop:
			return no(ReasonStopped, "thread %d is in state %v", tid, st.State)
		case procfs.StateZombie, procfs.StateDead:
			continue // a leader that has exited can be waited for through its siblings
		}
		sc, err := o.proc.ThreadSyscall(req.PID, tid)
		if errors.Is(err, procfs.ErrVanished) {
			continue
		} else if err != nil {
			return lookupError(err)
		}
		if sc.Running || sc.Nr < 0 {
			if st.State == procfs.StateRunning && st.Seccomp != procfs.SeccompStrict && (running == 0 || running == req.PID) {
				running = tid
			}
			continue
		}
		c := classifyCall(sc.Nr, sc.Args)
		target := c.waits
		if target.isFD {
			target = o.pidfdTarget(req.PID, target.fd, req.Zombies, p.reapers)
		}
		if target != (waitTarget{}) {
			waits = append(waits, target)
		}
		switch {
		case st.Seccomp == procfs.SeccompStrict:
			strict = true
		case c.class == classUnsafe:
			unsafe = c.name
		case st.State == procfs.StateSleeping:
			cands = append(cands, candidate{tid, c, target})
		}
	}
	if pending.Has(sigChld) && consider.Has(sigChld) {
		return no(ReasonSigchldPending, "before the attach")
	}

	remaining := 0
	for i := range req.Zombies {
		if !p.todo[i] {
			continue
		}
		for _, w := range waits {
			if w.any || w.nspid == p.reapers[i] {
				p.todo[i] = false
				results[i].Outcome, results[i].Reason = Refused, ReasonWaiting
				break
			}
		}
		if p.todo[i] {
			remaining++
		}
	}
	if remaining == 0 {
		return nil
	}

	// Among equals a thread other than the leader: whether the kernel queues ignored signals sent to the process depends
	// on the leader being traced (prepare_signal() in kernel/signal.c is given the leader), so that PID 1 is shown fewer.
	var best candidate
	for _, c := range cands {
		if covers(p, c.waits) {
			unsafe = c.call.name
			continue
		}
		if best.tid == 0 || c.call.class < best.call.class || c.call.class == best.call.class && best.tid == req.PID {
			best = c
		}
	}
	switch {
	case best.tid != 0:
		p.tid, p.call = best.tid, best.call
		if best.call.waits.isFD {
			p.otherFD = best.call.waits.fd
		}
		return nil
	case req.Running && running != 0:
		p.tid, p.running = running, true
		return nil
	case strict:
		return no(ReasonSeccompStrict, "no thread without it")
	case unsafe != "":
		return no(ReasonUnsafeSyscall, "%s", unsafe)
	}
	return no(ReasonBusy, "none of %d threads is parked", len(tids))
}

// covers reports whether a wait would take one of the zombies that are to be reaped.
func covers(p *plan, w waitTarget) bool {
	switch {
	case w.any:
		return true
	case w.isFD:
		return w.fd != p.otherFD
	}
	for i, pid := range p.reapers {
		if p.todo[i] && w.nspid == pid {
			return true
		}
	}
	return false
}

// pidfdTarget says which of the zombies a wait by pidfd is for: all of them if it cannot be told. The pidfd's fdinfo has
// the PID as the reader's own namespace knows it (pidfd_open(2), Linux 5.3).
func (o *observer) pidfdTarget(pid procfs.HostPID, fd int, zombies []Zombie, numbers []procfs.NSPID) waitTarget {
	data, err := fs.ReadFile(o.raw, path.Join(pid.String(), "fdinfo", strconv.Itoa(fd)))
	if err != nil {
		return waitTarget{any: true}
	}
	for line := range bytes.Lines(data) {
		val, ok := bytes.CutPrefix(line, []byte("Pid:"))
		if !ok {
			continue
		}
		n, err := strconv.Atoi(string(bytes.TrimSpace(val)))
		if err != nil || n <= 0 {
			break
		}
		for i, z := range zombies {
			if z.PID == procfs.HostPID(n) {
				return waitTarget{nspid: numbers[i]}
			}
		}
		return waitTarget{} // for a child that nobody asked us to reap
	}
	return waitTarget{any: true}
}

// frozen returns the freezer file that says that the process is frozen, or "". Files that cannot be read say nothing: a
// thread that does not stop is noticed in any case.
func (o *observer) frozen(pid procfs.HostPID) string {
	groups, err := o.proc.Cgroups(pid)
	if err != nil {
		return ""
	}
	for _, g := range groups {
		rel := strings.TrimPrefix(path.Clean("/"+g.Path), "/")
		switch {
		case g.Hierarchy == 0:
			// The unified hierarchy is mounted on a directory of its own where v1 is in use as well.
			for _, root := range []string{"", "unified"} {
				name := path.Join(root, rel, "cgroup.events")
				data, err := fs.ReadFile(o.cgroup, name)
				if err == nil && bytes.Contains(append([]byte("\n"), data...), []byte("\nfrozen 1\n")) {
					return name
				}
			}
		case slices.Contains(g.Controllers, "freezer"):
			name := path.Join("freezer", rel, "freezer.state")
			data, err := fs.ReadFile(o.cgroup, name)
			if state := strings.TrimSpace(string(data)); err == nil && state != "THAWED" {
				return name
			}
		}
	}
	return ""
}

// lookupError turns an error of a /proc file of PID 1 into the reason for declining.
func lookupError(err error) error {
	switch {
	case errors.Is(err, procfs.ErrVanished):
		return no(ReasonVanished, "%v", err)
	case errors.Is(err, fs.ErrPermission):
		return no(ReasonNoPermission, "%v", err)
	}
	return no(ReasonInternal, "%v", err)
}
