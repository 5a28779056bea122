package exporter

import (
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metric is what a registry is told about one of ours.
type metric struct {
	desc  *prometheus.Desc
	value prometheus.ValueType
}

// all are the descriptors, in the order of the page.
var all []*prometheus.Desc

func gauge(name, help string, labels ...string) metric {
	return newMetric(prometheus.GaugeValue, name, help, labels...)
}

func count(name, help string, labels ...string) metric {
	return newMetric(prometheus.CounterValue, name, help, labels...)
}

func newMetric(value prometheus.ValueType, name, help string, labels ...string) metric {
	m := metric{prometheus.NewDesc("reaper_"+name, help, labels, nil), value}
	all = append(all, m.desc)
	return m
}

// of are the labels of a container, before others.
func of(labels ...string) []string {
	return append([]string{"namespace", "pod", "container"}, labels...)
}

// Of a container.
var (
	zombies = gauge("zombies", "Zombies at the last sweep, by who forked them: adopted (proven orphans of PID 1), own (PID 1 forked them), unproven, "+
		"or held (children of another living process).", of("verdict")...)
	oldest = gauge("oldest_zombie_age_seconds", "How long ago the oldest zombie below PID 1 was first seen.", of()...)
	grace  = gauge("grace_seconds", "Grace period in force: how long an orphan may stay a zombie.", of()...)
	reaped = count("zombies_reaped_total", "Zombies that went, by who reaped them (mechanism: tracer, PID 1 was made to; init, reaper-init; shim, host PID namespace; "+
		"pid1, PID 1 by itself) and what they were (outcome: adopted, unproven, own).", of("mechanism", "outcome")...)
	refusals = count("refusals_total", "Attempts to have zombies reaped that left PID 1 or a zombie alone, by reason.", of("reason")...)
	reapTime = newMetric(prometheus.UntypedValue, "time_to_reap_seconds", "How long zombies were seen before PID 1 was made to reap them (mechanism tracer). "+
		"Shims of revision 1 do not say.", of()...)
	stops         = count("pid1_stops_total", "Times that PID 1 was stopped to have it reap.", of()...)
	longestStop   = gauge("pid1_longest_stop_seconds", "Longest of these stops since the container began.", of()...)
	pids          = gauge("pids", "PIDs in use, threads and zombies included, as of at most 10 seconds ago.", of()...)
	pidsLimit     = gauge("pids_limit", "Limit of PIDs. Missing where there is none.", of()...)
	forkLog       = gauge("fork_log_info", "Where the shim hears of the forks of PID 1: perf, connector, none, or empty where nobody listens. Always 1.", of("source")...)
	forkLogLost   = count("fork_log_lost_total", "Records of forks that the kernel dropped.", of()...)
	forkLogGaps   = count("fork_log_gaps_total", "Times that the fork log began anew: zombies born before are not proven by it.", of()...)
	containerInfo = gauge("container_info", "Mode that was asked for, and mode in force. Always 1.", of("mode", "effective_mode")...)

	contradictions     = count("contradictions_total", "Zombies on which two rules said opposite things: a bug, please report it.", of()...)
	eventsDropped      = count("orphan_events_dropped_total", "Exit events of orphans that were left out.", of()...)
	initReportsDropped = count("init_reports_dropped_total", "Orphans of reaper-init of which only the number is known.", of()...)
)

// Of the node.
var (
	nodeReaped = count("node_zombies_reaped_total", "reaper_zombies_reaped_total of all containers that there ever were since the exporter began.", "mechanism", "outcome")
	commands   = gauge("command_zombies", "Zombies by command, the most frequent ones on the node; (other) for the rest. Renewed each poll interval.", "command")
	tasks      = gauge("tasks", "Tasks of containerd: watched (their shim answers), foreign (of another runtime), unanswered (their shim does not answer).", "state")
	up         = gauge("up", "Whether containerd answered.")
	asking     = gauge("ask_duration_seconds", "How long it took to ask containerd and all shims the last time.")
	failures   = count("shim_failures_total", "Answers of shims that did not come, or not in time.")
)

// bucketsOf collects the buckets of a histogram. Shims of other versions may have other bounds.
type bucketsOf map[float64]uint64

// histogram makes one of buckets that do not include each other.
func (b bucketsOf) histogram(desc *prometheus.Desc, sum float64, labels ...string) (prometheus.Metric, error) {
	var total uint64
	cumulative := make(map[float64]uint64, len(b))
	for _, bound := range slices.Sorted(maps.Keys(b)) {
		total += b[bound]
		if !math.IsInf(bound, 1) {
			cumulative[bound] = total
		}
	}
	return prometheus.NewConstHistogram(desc, total, sum, cumulative, labels...)
}

// bound parses the label of a bucket.
func bound(text string) float64 {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.Inf(1)
	}
	return v
}
