package main

import (
	"time"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

// result is what docs/data/benchmarks.json holds. A part that was not measured in a run stays as it was, with its own date.
type result struct {
	Start   *startPart   `json:"start,omitempty"`
	Idle    *idlePart    `json:"idle,omitempty"`
	Density *densityPart `json:"density,omitempty"`
	Sweep   *sweepPart   `json:"sweep,omitempty"`
	Reap    *reapPart    `json:"reap,omitempty"`
	Stress  *stressPart  `json:"stress,omitempty"`

	plots string // where they are, as the page names it
}

// where is when, on what machine and with which programs a part was measured.
type where struct {
	benchreport.Machine
	Containerd string  `json:"containerd"`
	Runc       string  `json:"runc"`
	Took       float64 `json:"tookSeconds"`
}

// Operations of startPart.
const (
	opStart = "create and start"
	opRun   = "run, from the container's creation to its deletion"
	opExec  = "exec of true"
	opInfo  = "the program itself, -info"
)

// startPart holds latencies.
type startPart struct {
	where
	Rounds int         `json:"rounds"`
	Cases  []startCase `json:"cases"`
}

type startCase struct {
	Op       string    `json:"op"`
	Parallel int       `json:"parallel"`
	Runtime  string    `json:"runtime"`
	MS       []float64 `json:"millis"` // in the order in which they were measured
}

// idlePart holds what shims take that have nothing to do.
type idlePart struct {
	where
	Settle  float64   `json:"settleSeconds"`
	Seconds float64   `json:"idleSeconds"`
	Pods    []podIdle `json:"pods"`
}

// podIdle is one shim.
type podIdle struct {
	Runtime    string  `json:"runtime"`
	Containers int     `json:"containers"`
	Memory     memory  `json:"memory"`
	CPU        float64 `json:"cpuMicrosPerSecond"`
	Switches   float64 `json:"contextSwitchesPerSecond"`       // of all threads
	Tracer     float64 `json:"tracerContextSwitchesPerSecond"` // of its tracer, where there is one
}

// memory in bytes, of /proc/<pid>/smaps_rollup.
type memory struct {
	RSS          int64 `json:"rss"`
	PSS          int64 `json:"pss"`
	PrivateDirty int64 `json:"privateDirty"`
}

func (m *memory) add(n memory) {
	m.RSS += n.RSS
	m.PSS += n.PSS
	m.PrivateDirty += n.PrivateDirty
}

// densityPart holds many pods at once, one runtime after the other.
type densityPart struct {
	where
	Pods     int           `json:"pods"`
	Workers  int           `json:"workers"`
	Window   float64       `json:"windowSeconds"`
	Rate     int           `json:"orphansPerSecondAndLeakingPod"`
	Grace    float64       `json:"graceSeconds"`
	Runtimes []densityCase `json:"runtimes"`
}

type densityCase struct {
	Runtime string  `json:"runtime"`
	Started float64 `json:"startedInSeconds"` // all of them
	Memory  memory  `json:"memory"`           // of all shims together, before any leak
	Node    int64   `json:"nodeMemory"`       // by which MemAvailable fell
	// CPU of all shims and tracers, in per cent of one CPU, and their context switches per second.
	QuietCPU      float64 `json:"quietCPUPercent"`
	QuietSwitches float64 `json:"quietSwitchesPerSecond"`
	LeakCPU       float64 `json:"leakCPUPercent"`
	LeakSwitches  float64 `json:"leakSwitchesPerSecond"`
	TracerCPU     float64 `json:"leakTracerCPUPercent"` // part of LeakCPU
	Leaking       int     `json:"leakingPods"`
	Leaked        int     `json:"leaked"`
	Left          int     `json:"zombiesLeft"` // when all should be gone
	// ReapMS is how long each orphan was dead until it was told to be reaped.
	ReapMS []float64 `json:"reapMillis"`
}

// sweepPart holds what one look of the shim's at a PID namespace costs.
type sweepPart struct {
	where
	Cases []sweepCase `json:"cases"`
}

type sweepCase struct {
	Processes int       `json:"processes"`
	Children  bool      `json:"childrenOfPID1"`
	Micros    []float64 `json:"cpuMicros"`     // of looks in between
	Full      []float64 `json:"fullCPUMicros"` // of those that come every 10 s and read what changes seldom
}

// reapPart holds the CPU time of an orphan's life.
type reapPart struct {
	where
	Orphans int        `json:"orphans"` // of each sample
	Rate    int        `json:"rate"`    // a second
	Cases   []reapCase `json:"cases"`
}

type reapCase struct {
	Who     string       `json:"who"`
	Samples []reapSample `json:"samples"`
}

type reapSample struct {
	Container float64 `json:"containerMicros"` // CPU of the container's cgroup, per orphan
	Shim      float64 `json:"shimMicros"`      // of the shim and the tracer
	Left      int     `json:"zombiesLeft"`
}

// stressPart holds the results of others' benchmarks.
type stressPart struct {
	where
	Containers int          `json:"containers"`
	Cases      []stressCase `json:"cases"`
}

type stressCase struct {
	Runtime string `json:"runtime"`
	// Per container, in bytes, as containerd-stress density tells it.
	PSS int64 `json:"pss"`
	RSS int64 `json:"rss"`
	// Benchmarks holds medians that critest -benchmark tells, in ms, by the name of what it measured.
	Benchmarks map[string]float64 `json:"critestMillis,omitempty"`
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
