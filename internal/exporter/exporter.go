package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/reaper-shim/reaper/internal/escape"
	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

// source is a node: a [node.Node].
type source interface {
	Snapshot(ctx context.Context) ([]*node.Task, error)
	Zombies(ctx context.Context, t *node.Task, limit uint32) ([]*api.Zombie, uint32, error)
	Follow(ctx context.Context, topics []string, f func(*types.Envelope) (bool, error)) error
	DaemonGone() bool
	Close() error
}

// config of an exporter. The zero value of a number is not a default.
type config struct {
	// open connects to containerd.
	open func(context.Context) (source, error)
	log  *slog.Logger
	now  func() time.Time
	// interval between two looks when nobody asks.
	interval time.Duration
	// retain is how long the counters of a container that is gone are served.
	retain time.Duration
	// topCommands is how many commands have a series of their own at a time.
	topCommands int
}

const (
	// fresh is how old the answers may be that a scrape gets: two Prometheus servers cost no more than one.
	fresh = time.Second
	// maxGone bounds the containers that are gone and still served.
	maxGone = 500
	// listed zombies of a container, and listing containers, at most, when commands are counted.
	maxListed, maxListing = 256, 32
	// listTimeout is for all of them, lookTimeout for a regular look with all that belongs to it, openTimeout for connecting to
	// containerd.
	listTimeout = 5 * time.Second
	lookTimeout = 30 * time.Second
	openTimeout = 3 * time.Second
	// A container can give its processes any name: a new one gets a series only so often.
	newCommandEvery = time.Minute
	// otherCommands stands for those without a series.
	otherCommands = "(other)"
	// history is how many looks the page shows.
	history = 60
	// The connection to containerd's events is made anew after such a wait.
	followFirst, followMax = time.Second, 30 * time.Second

	topicZombies = "/tasks/zombies"
	statsMessage = "containerd.reaper.v1.ZombieStats"
)

// exporter is the state between scrapes. It is a [prometheus.Collector].
type exporter struct {
	cfg config
	// looking is held by whoever asks containerd and the shims.
	looking chan struct{}

	sourceMu sync.Mutex
	source   source // nil until it is opened; guarded by sourceMu

	mu       sync.Mutex
	ledger   *ledger
	now      []*container // as of the last look, sorted
	history  map[names]*trail
	states   map[string]int
	commands map[string]int
	admitted map[string]bool // commands that have a series
	admit    *rate.Limiter
	lookedAt time.Time
	took     time.Duration
	failed   float64
	err      error // of the last look
}

// container is what the tasks with the same names say together.
type container struct {
	names
	stats *api.ZombieStats // of the newest of them
	// zombies by verdict, in the order of verdicts.
	zombies     [4]int
	oldest      time.Duration
	longestStop time.Duration
	pids, limit uint64
}

var verdicts = [...]string{"adopted", "own", "unproven", "held"}

func (c *container) total() int {
	n := 0
	for _, z := range c.zombies {
		n += z
	}
	return n
}

// trail is what a container was like at the last looks, for the page.
type trail struct {
	zombies, reaped []float64
}

func newExporter(cfg config) *exporter {
	return &exporter{
		cfg: cfg, looking: make(chan struct{}, 1), ledger: newLedger(), history: make(map[names]*trail),
		states: map[string]int{}, commands: map[string]int{}, admitted: map[string]bool{},
		admit: rate.NewLimiter(rate.Every(newCommandEvery), cfg.topCommands), err: errors.New("nobody has been asked yet"),
	}
}

// run looks again and again, and follows the events of containerd, until ctx ends.
func (e *exporter) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { e.follow(ctx) })
	ticker := time.NewTicker(e.cfg.interval)
	defer ticker.Stop()
	for {
		if err := e.poll(ctx); err != nil && ctx.Err() == nil {
			e.cfg.log.Warn("ask the node", "err", err)
		}
		select {
		case <-ctx.Done():
			wg.Wait()
			e.close()
			return
		case <-ticker.C:
		}
	}
}

func (e *exporter) close() {
	e.sourceMu.Lock()
	defer e.sourceMu.Unlock()
	if e.source != nil {
		_ = e.source.Close()
		e.source = nil
	}
}

// node returns the connection to containerd, a new one where there is none or its daemon has ended.
func (e *exporter) node(ctx context.Context) (source, error) {
	e.sourceMu.Lock()
	defer e.sourceMu.Unlock()
	if e.source != nil && e.source.DaemonGone() {
		_ = e.source.Close()
		e.source = nil
	}
	if e.source == nil {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		s, err := e.cfg.open(ctx)
		if err != nil {
			return nil, err
		}
		e.source = s
	}
	return e.source, nil
}

// look asks containerd and the shims, unless that was done just now, and returns the tasks that it found. The error says that
// containerd did not answer; a shim that does not is none.
func (e *exporter) look(ctx context.Context) (source, []*node.Task, error) {
	select {
	case e.looking <- struct{}{}:
		defer func() { <-e.looking }()
	case <-ctx.Done():
		err := fmt.Errorf("wait for the answers to the last look: %w", ctx.Err())
		e.mu.Lock()
		defer e.mu.Unlock()
		e.err = err
		return nil, nil, err
	}
	began := e.cfg.now()
	n, err := e.node(ctx)
	var all []*node.Task
	if err == nil {
		all, err = n.Snapshot(ctx)
		if len(all) > 0 {
			err = nil // only time ran out: those that did not answer say so
		}
	}
	e.take(all, err, began)
	return n, all, err
}

// poll is one of the regular looks, which commands and the page are made of.
func (e *exporter) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	n, all, err := e.look(ctx)
	if err == nil {
		e.count(ctx, n, all)
		e.remember()
	}
	return err
}

// recent reports whether somebody has looked just now.
func (e *exporter) recent() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cfg.now().Sub(e.lookedAt) < fresh
}

// take notes what was answered.
func (e *exporter) take(all []*node.Task, err error, began time.Time) {
	now := e.cfg.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lookedAt, e.took, e.err = now, now.Sub(began), err
	if err != nil {
		return
	}
	e.states = map[string]int{"watched": 0, "foreign": 0, "unanswered": 0}
	byNames := make(map[names]*container)
	for _, t := range all {
		who := namesOf(t)
		switch {
		case t.Err != nil:
			e.states["unanswered"]++
			e.failed++
			e.ledger.touch(t.Namespace, t.ID, now)
			e.cfg.log.Debug("a shim did not answer", "namespace", t.Namespace, "id", t.ID, "err", t.Err)
			continue
		case !t.Ours:
			e.states["foreign"]++
			continue
		}
		e.states["watched"]++
		e.ledger.take(t.Namespace, who, t.Stats, now)
		c := byNames[who]
		if c == nil {
			c = &container{names: who}
			byNames[who] = c
		}
		c.add(t.Stats)
	}
	e.ledger.prune(now.Add(-e.cfg.retain), now, maxGone)
	e.now = slices.SortedFunc(maps.Values(byNames), func(a, b *container) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.pod, b.pod), cmp.Compare(a.container, b.container))
	})
}

// add takes in one task: there is more than one for a moment when a container is replaced.
func (c *container) add(s *api.ZombieStats) {
	if c.stats == nil || s.GetPid() != 0 && !s.GetFinal() {
		c.stats = s
	}
	for i, n := range []uint32{s.GetAdopted(), s.GetOwn(), s.GetUnproven(), s.GetHeld()} {
		c.zombies[i] += int(n)
	}
	c.oldest = max(c.oldest, s.GetOldest().AsDuration())
	c.longestStop = max(c.longestStop, s.GetLongestStop().AsDuration())
	c.pids += s.GetPidsCurrent()
	c.limit = max(c.limit, s.GetPidsMax())
}

// count asks for the zombies of the containers with the most of them, and counts their commands.
func (e *exporter) count(ctx context.Context, n source, all []*node.Task) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	size := func(t *node.Task) uint32 {
		s := t.Stats
		return s.GetAdopted() + s.GetOwn() + s.GetUnproven() + s.GetHeld()
	}
	all = slices.DeleteFunc(slices.Clone(all), func(t *node.Task) bool { return !t.Ours || size(t) == 0 })
	slices.SortFunc(all, func(a, b *node.Task) int { return cmp.Compare(size(b), size(a)) })
	counts := make(map[string]int)
	for i, t := range all {
		if i >= maxListing {
			counts[otherCommands] += int(size(t))
			continue
		}
		list, omitted, err := n.Zombies(ctx, t, maxListed)
		if err != nil {
			counts[otherCommands] += int(size(t))
			continue
		}
		counts[otherCommands] += int(omitted)
		for _, z := range list {
			counts[escape.Text(z.GetCommand())]++
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.commands = e.top(counts)
}

// top keeps the most frequent commands, those that have a series already before others. e.mu is held.
func (e *exporter) top(counts map[string]int) map[string]int {
	other := counts[otherCommands]
	delete(counts, otherCommands)
	order := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	top := make(map[string]int)
	for _, command := range order {
		if len(top) >= e.cfg.topCommands || !e.admitted[command] && !e.admit.AllowN(e.cfg.now(), 1) {
			other += counts[command]
			continue
		}
		top[command] = counts[command]
	}
	e.admitted = make(map[string]bool)
	for command := range top {
		e.admitted[command] = true
	}
	top[otherCommands] = other
	return top
}

// remember adds a point to what the page draws.
func (e *exporter) remember() {
	e.mu.Lock()
	defer e.mu.Unlock()
	there := make(map[names]*trail, len(e.now))
	for _, c := range e.now {
		t := e.history[c.names]
		if t == nil {
			t = &trail{}
		}
		t.zombies = last(append(t.zombies, float64(c.total())), history)
		t.reaped = last(append(t.reaped, e.reapedOf(c.names)), history)
		there[c.names] = t
	}
	e.history = there
}

func last[T any](values []T, n int) []T { return values[max(0, len(values)-n):] }

// reapedOf adds up what was reaped in a container. e.mu is held.
func (e *exporter) reapedOf(who names) float64 {
	sum := 0.0
	if s := e.ledger.series[who]; s != nil {
		for c, n := range s.counters {
			if c.metric == &reaped && c.a != "pid1" {
				sum += n
			}
		}
	}
	return sum
}

// follow takes in the statistics that shims publish: the last words of tasks are among them, which no look gets to see.
func (e *exporter) follow(ctx context.Context) {
	wait := followFirst
	for ctx.Err() == nil {
		n, err := e.node(ctx)
		if err == nil {
			err = n.Follow(ctx, []string{topicZombies}, func(env *types.Envelope) (bool, error) {
				wait = followFirst
				e.event(env)
				return true, nil
			})
		}
		e.cfg.log.Debug("events of containerd", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			wait = min(2*wait, followMax)
		}
	}
}

func (e *exporter) event(env *types.Envelope) {
	var s api.ZombieStats
	if env.GetEvent().GetTypeUrl() != statsMessage || proto.Unmarshal(env.GetEvent().GetValue(), &s) != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ledger.take(env.GetNamespace(), names{}, &s, e.cfg.now())
}

// Describe implements [prometheus.Collector].
func (e *exporter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range all {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]: it serves what the last look found, and asks nobody.
func (e *exporter) Collect(ch chan<- prometheus.Metric) {
	e.mu.Lock()
	defer e.mu.Unlock()
	put := func(m metric, value float64, labels ...string) {
		ch <- made(prometheus.NewConstMetric(m.desc, m.value, value, labels...))(m.desc)
	}
	put(up, float64(btoi(e.err == nil)))
	put(asking, e.took.Seconds())
	put(failures, e.failed)
	for c, n := range e.ledger.node {
		put(nodeReaped, n, c.a, c.b)
	}
	for who, s := range e.ledger.series {
		e.collectCounters(ch, put, who, s)
	}
	if e.err != nil {
		return // what is not known now is not served as if it were
	}
	for state, n := range e.states {
		put(tasks, float64(n), state)
	}
	for command, n := range e.commands {
		put(commands, float64(n), command)
	}
	for _, c := range e.now {
		ns, pod, name := c.namespace, c.pod, c.container
		for i, verdict := range verdicts {
			put(zombies, float64(c.zombies[i]), ns, pod, name, verdict)
		}
		put(oldest, c.oldest.Seconds(), ns, pod, name)
		put(grace, c.stats.GetGraceInForce().AsDuration().Seconds(), ns, pod, name)
		put(longestStop, c.longestStop.Seconds(), ns, pod, name)
		put(forkLog, 1, ns, pod, name, c.stats.GetForkLog().GetSource())
		put(containerInfo, 1, ns, pod, name, c.stats.GetMode(), c.stats.GetEffectiveMode())
		if c.pids > 0 {
			put(pids, float64(c.pids), ns, pod, name)
		}
		if c.limit > 0 {
			put(pidsLimit, float64(c.limit), ns, pod, name)
		}
	}
}

func (e *exporter) collectCounters(ch chan<- prometheus.Metric, put func(metric, float64, ...string), who names, s *series) {
	labels := []string{who.namespace, who.pod, who.container}
	buckets, sum := bucketsOf{}, 0.0
	for c, n := range s.counters {
		switch {
		case c.metric == &reapTime && c.a == "":
			sum = n
		case c.metric == &reapTime:
			buckets[bound(c.a)] += uint64(n)
		case c.b != "":
			put(*c.metric, n, append(slices.Clone(labels), c.a, c.b)...)
		case c.a != "":
			put(*c.metric, n, append(slices.Clone(labels), c.a)...)
		default:
			put(*c.metric, n, labels...)
		}
	}
	if len(buckets) > 0 && !math.IsNaN(sum) {
		ch <- made(buckets.histogram(reapTime.desc, sum, labels...))(reapTime.desc)
	}
}

// made returns a metric, or one that tells the registry why there is none.
func made(m prometheus.Metric, err error) func(*prometheus.Desc) prometheus.Metric {
	return func(desc *prometheus.Desc) prometheus.Metric {
		if err != nil {
			return prometheus.NewInvalidMetric(desc, fmt.Errorf("make a metric: %w", err))
		}
		return m
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
