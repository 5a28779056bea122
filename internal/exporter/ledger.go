package exporter

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/reaper-shim/reaper/internal/escape"
	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

// names are the labels of a container. Another container with the same names goes on where it stopped.
type names struct{ namespace, pod, container string }

// namesOf are Kubernetes' for what it made; else the namespace is containerd's and the container nerdctl's name, or its ID.
func namesOf(t *node.Task) names {
	switch {
	case t.Names.Pod == "":
		return names{escape.Text(t.Namespace), "", escape.Text(cmp.Or(t.Names.Nerdctl, t.ID))}
	case t.Names.Sandbox:
		return names{escape.Text(t.Names.PodNamespace), escape.Text(t.Names.Pod), "(pod)"}
	default:
		return names{escape.Text(t.Names.PodNamespace), escape.Text(t.Names.Pod), escape.Text(t.Names.Container)}
	}
}

// counter is one counter of a task: its metric, and the values of the labels that it has besides the container's.
type counter struct {
	metric *metric
	a, b   string
}

// counters of a task, a container or the node.
type counters map[counter]float64

// countersOf reads the counters of a task's statistics. Those of which there is a fixed number are there even if 0: a counter that
// begins with 1 has no rate.
func countersOf(s *api.ZombieStats) counters {
	unproven, own := s.GetReapedUnproven(), s.GetReapedOwn()
	out := counters{
		{metric: &reaped, a: "tracer", b: "adopted"}:  float64(s.GetReapedByTracer() - min(s.GetReapedByTracer(), unproven+own)),
		{metric: &reaped, a: "tracer", b: "unproven"}: float64(unproven),
		{metric: &reaped, a: "tracer", b: "own"}:      float64(own),
		{metric: &reaped, a: "shim", b: "adopted"}:    float64(s.GetReapedByShim()),
		{metric: &reaped, a: "init", b: "adopted"}:    float64(s.GetReapedByInit()),
		{metric: &reaped, a: "pid1", b: "adopted"}:    float64(s.GetVanished()),
		{metric: &stops}:              float64(s.GetAttaches()),
		{metric: &contradictions}:     float64(s.GetContradictions()),
		{metric: &eventsDropped}:      float64(s.GetOrphanEventsDropped()),
		{metric: &initReportsDropped}: float64(s.GetInitReportsDropped()),
		{metric: &forkLogLost}:        float64(s.GetForkLog().GetLost()),
		{metric: &forkLogGaps}:        float64(s.GetForkLog().GetGaps()),
		{metric: &reapTime}:           s.GetReapTimes().GetSum(),
	}
	for reason, n := range s.GetRefusals() {
		out[counter{metric: &refusals, a: reason}] = float64(n)
	}
	times := s.GetReapTimes()
	if len(times.GetCounts()) != len(times.GetBounds())+1 {
		return out
	}
	for i, n := range times.GetCounts() {
		bound := infinity
		if i < len(times.GetBounds()) {
			bound = strconv.FormatFloat(times.GetBounds()[i], 'g', -1, 64)
		}
		out[counter{metric: &reapTime, a: bound}] = float64(n)
	}
	return out
}

// infinity is the bound of a histogram's last bucket.
const infinity = "+Inf"

// taskKey is a task as long as it lives: the same container can have another one later, which counts from 0.
type taskKey struct {
	namespace, id string
	pid           uint32
}

// account is what a task has counted: the most of each that it was seen to say.
type account struct {
	names    names
	counters counters
	seen     time.Time
}

// series are the counters of all containers with the same names.
type series struct {
	counters counters
	seen     time.Time
}

// ledger adds up the counters of tasks over their ends. What it has taken in it never takes back: a counter of it only grows.
type ledger struct {
	tasks  map[taskKey]*account
	series map[names]*series
	node   counters
}

func newLedger() *ledger {
	l := &ledger{tasks: make(map[taskKey]*account), series: make(map[names]*series), node: counters{}}
	// All that a node can have is there from the beginning, at 0.
	for c := range countersOf(&api.ZombieStats{}) {
		if c.metric == &reaped {
			l.node[c] = 0
		}
	}
	return l
}

// take notes what a task says, which may be old news. who are the names of its container, the zero value where nobody knows them: it
// then counts for the node alone, unless they were known before.
func (l *ledger) take(namespace string, who names, s *api.ZombieStats, now time.Time) {
	key := taskKey{namespace, s.GetContainerId(), s.GetPid()}
	if key.pid == 0 {
		return // it ended while it was asked about, and says nothing
	}
	a := l.tasks[key]
	if a == nil {
		a = &account{counters: counters{}}
		l.tasks[key] = a
	}
	if a.names == (names{}) && who != (names{}) {
		// What it has counted so far goes to its container.
		a.names = who
		l.add(who, a.counters, now)
	}
	a.seen = now
	grown := counters{}
	for c, value := range countersOf(s) {
		old, known := a.counters[c]
		if value > old || !known {
			// A task that has ended but is not deleted yet says 0 again: the most it said is what counts.
			grown[c] = value - old
			a.counters[c] = value
		}
	}
	for c, n := range grown {
		if c.metric == &reaped {
			l.node[c] += n
		}
	}
	if a.names != (names{}) {
		l.add(a.names, grown, now)
	}
}

func (l *ledger) add(who names, grown counters, now time.Time) {
	s := l.series[who]
	if s == nil {
		s = &series{counters: counters{}}
		l.series[who] = s
	}
	s.seen = now
	for c, n := range grown {
		s.counters[c] += n
	}
}

// touch keeps what the tasks of a container have counted although they do not answer.
func (l *ledger) touch(namespace, id string, now time.Time) {
	for key, a := range l.tasks {
		if key.namespace != namespace || key.id != id {
			continue
		}
		a.seen = now
		if s := l.series[a.names]; s != nil {
			s.seen = now
		}
	}
}

// prune forgets tasks and containers that were last seen before the time given, and of those not seen now all but the last most.
func (l *ledger) prune(before, now time.Time, most int) {
	var gone []names
	for who, s := range l.series {
		if s.seen.Before(now) {
			gone = append(gone, who)
		}
	}
	slices.SortFunc(gone, func(a, b names) int { return l.series[b].seen.Compare(l.series[a].seen) })
	for i, who := range gone {
		if i >= most || l.series[who].seen.Before(before) {
			delete(l.series, who)
		}
	}
	for key, a := range l.tasks {
		// As long as its container is there: an event about its end may be on its way.
		if _, there := l.series[a.names]; a.seen.Before(before) || !there && a.names != (names{}) {
			delete(l.tasks, key)
		}
	}
}
