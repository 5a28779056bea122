package shim

import (
	"errors"
	"time"

	"github.com/containerd/log"

	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

const (
	// quietLook is the interval between two looks at a PID 1 that is alone. It bounds how late an orphan is noticed of somebody who
	// was brought into the namespace from outside (nsenter(1)), past containerd and the container's cgroup.
	quietLook = 10 * time.Second
	// leastCalm is how long PID 1 must have been seen alone before it is left in quiet, and mostCalm how long where it forked, or
	// changed its threads, less than steadyAfter into each quiet: to begin one costs as much as some looks.
	leastCalm   = 1500 * time.Millisecond
	mostCalm    = 2 * time.Minute
	steadyAfter = 30 * time.Second
)

// quiet decides when a PID 1 need not be looked at: when it is the only process of its namespace, and whoever could become an orphan
// has to be born first, which a tripwire tells at once, or be brought in, which the shim is asked for. The goroutine of a watcher owns it.
type quiet struct {
	proc  *procfs.FS
	id    string // of the task, for the log
	pid   procfs.HostPID
	alarm *alarm
	// off: no tripwire can be had, or is wanted.
	off bool

	wire  *forklog.Tripwire // nil: not quiet, and not soon
	began time.Time
	// alone is since when PID 1 has been seen without a child, zero: it had one at the last look; calm how long it must be so.
	alone time.Time
	calm  time.Duration
}

// newQuiet goes by the task's policy for fork logs: a tripwire is a perf event as well.
func newQuiet(proc *procfs.FS, owner *task, a *alarm) *quiet {
	policy := owner.cfg.ForkLog
	return &quiet{
		proc: proc, id: owner.id, pid: owner.pid, alarm: a, calm: leastCalm,
		off: policy != ForkLogAuto && policy != ForkLogPerf,
	}
}

// broken reports whether PID 1 has done something that ends the quiet.
func (q *quiet) broken() bool { return q.wire != nil && q.wire.Tripped() }

// lasts reports whether it is still quiet, as the next look need not find anything else: PID 1 has forked nobody, and onlyInit
// (sweep.Sweeper.OnlyInit) sees nobody who was brought in.
func (q *quiet) lasts(onlyInit func(onlyAdopted bool) bool) bool {
	return q.wire != nil && onlyInit(true) && !q.wire.Tripped()
}

// looked is told what a look at PID 1 has found: no child, and nothing else to do. onlyInit looks further. It returns whether it is
// quiet now.
func (q *quiet) looked(nothing bool, onlyInit func(onlyAdopted bool) bool, now time.Time) bool {
	if !nothing {
		q.alone = time.Time{}
		q.end(now)
		return false
	}
	if q.alone.IsZero() {
		q.alone = now
	}
	if q.wire == nil {
		if q.off || now.Sub(q.alone) < q.calm {
			return false
		}
		if !onlyInit(false) {
			q.longer()
			return false
		}
		if !q.begin(now) {
			return false
		}
	}
	// The wire first, then the look, then the question whether the wire has tripped: who is born after the wire trips it, and who
	// was born before is seen.
	only := onlyInit(false)
	if q.wire.Tripped() {
		q.end(now)
		return false
	}
	// The wire stays while somebody else is there, an exec for the most part: it is quiet again as soon as he has gone.
	return only
}

func (q *quiet) begin(now time.Time) bool {
	wire, err := forklog.OpenTripwire(q.proc, q.pid)
	if err == nil {
		if err = q.alarm.watch(wire.FDs()); err != nil {
			wire.Close()
		}
	}
	switch {
	case err == nil:
		q.wire, q.began = wire, now
		return true
	case errors.Is(err, forklog.ErrUnsettled), errors.Is(err, procfs.ErrVanished):
		q.longer()
	default:
		q.off = true
		log.L.WithField("id", q.id).WithError(err).Debug("PID 1 will be looked at while it is alone")
	}
	return false
}

// end ends the quiet, if there is one.
func (q *quiet) end(now time.Time) {
	if q.wire == nil {
		return
	}
	tripped := q.wire.Tripped()
	q.alarm.unwatch()
	q.wire.Close()
	q.wire, q.alone = nil, time.Time{}
	switch {
	case now.Sub(q.began) >= steadyAfter:
		q.calm = leastCalm
	case tripped:
		q.longer()
	}
}

// longer has the next quiet begin later.
func (q *quiet) longer() {
	q.alone = time.Time{}
	q.calm = min(2*q.calm, mostCalm)
}
