package shim

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/shim/api"
)

// task is what the shim knows of one container, beyond what the wrapped service knows.
type task struct {
	id     string
	bundle string
	cfg    Config

	mu sync.Mutex
	// mode is the one in force, and reason says why it is not cfg.Mode. Guarded by mu.
	mode   Mode
	reason string

	process
	limiter      *rate.Limiter
	dropped      atomic.Uint64 // orphan events left out
	reapedByShim atomic.Uint64
	// watcher sweeps the PID namespace of the task; nil before Start, and where nobody does. Guarded by service.mu.
	watcher *watcher
	// In mode init: where reaper-init reports, a directory of the bundle, and what it reports; set with process.
	reportDir string
	reports   *reports
}

// process is the init process of a task. It is set once, before anybody else is told of the task or of its process: at the end
// of Create, or of Start for a container that is restored from a checkpoint.
type process struct {
	pid       procfs.HostPID
	startTime uint64 // clock ticks
	namespace uint64 // inode of the PID namespace
	ownsNS    bool   // the init process is PID 1 of that namespace
	init      lineage.Init
	cgroup    string // see sweep.ContainerPath; "" when it tells nothing
	cgroupDir *sweep.Cgroup
	forks     *forks // nil where PID 1 is not the task's own
}

func newTask(id string, cfg Config) *task {
	return &task{
		id:      id,
		cfg:     cfg,
		mode:    cfg.Mode,
		limiter: rate.NewLimiter(rate.Limit(cfg.OrphanEventRate), cfg.OrphanEventBurst),
	}
}

// effective returns the mode in force, and why it is not the one that was asked for.
func (t *task) effective() (mode Mode, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mode, t.reason
}

// fallBack puts another mode in force.
func (t *task) fallBack(mode Mode, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mode, t.reason = mode, reason
}

// identify reads who a process is. started says that the entrypoint may already run: its session then proves nothing.
func identify(proc *procfs.FS, pid procfs.HostPID, started bool) (process, error) {
	st, err := proc.Stat(pid)
	if err != nil {
		return process{}, err
	}
	status, err := proc.Status(pid)
	if err != nil {
		return process{}, err
	}
	ns, err := proc.PIDNamespace(pid)
	if err != nil {
		return process{}, err
	}
	cgroups, err := proc.Cgroups(pid)
	if err != nil {
		return process{}, err
	}
	inner, ok := status.At(status.Level())
	if !ok {
		return process{}, fmt.Errorf("process %d: no NSpid in its status (Linux before 4.1)", pid)
	}
	return process{
		pid: pid, startTime: st.StartTime, namespace: ns,
		ownsNS:    inner == 1,
		init:      lineage.Init{PID: pid, SessionLeader: !started && st.Session == pid},
		cgroup:    sweep.ContainerPath(proc, pid),
		cgroupDir: sweep.FindCgroup(procfs.DirectFS("/sys/fs/cgroup"), cgroups),
	}, nil
}

// holds reports whether a process with this cgroup path belongs to the task: it is in the task's cgroup or below it.
func (t *task) holds(cgroup string) bool {
	return t.cgroup != "" && (cgroup == t.cgroup || strings.HasPrefix(cgroup, t.cgroup+"/"))
}

func orphanID(inner int) string { return "orphan-" + strconv.Itoa(inner) }

// maxComm is the longest command that is passed on, in bytes.
const maxComm = 64

// cleanComm makes a name that a process chose fit for a protobuf string.
func cleanComm(comm string) string {
	if len(comm) > maxComm {
		comm = comm[:maxComm]
	}
	if utf8.ValidString(comm) {
		return comm
	}
	return strings.ToValidUTF8(comm, "�")
}

// message is the report on the task. st is that of its PID namespace, zero where that is not the task's own.
func (t *task) message(st sweep.Stats, forks forklog.Stats, final bool) *api.ZombieStats {
	mode, reason := t.effective()
	reported := t.reports.totalsNow()
	m := &api.ZombieStats{
		ContainerId:         t.id,
		Pid:                 uint32(t.pid),
		Mode:                string(t.cfg.Mode),
		EffectiveMode:       string(mode),
		EffectiveModeReason: reason,
		Final:               final,
		Own:                 uint32(st.Own),
		Adopted:             uint32(st.Adopted),
		Unproven:            uint32(st.Unproven),
		Held:                uint32(st.Held),
		Oldest:              durationpb.New(st.Oldest),
		ReapedByTracer:      st.Reaped,
		ReapedByShim:        t.reapedByShim.Load(),
		ReapedByInit:        reported.Reaped,
		InitReportsDropped:  reported.Dropped,
		Vanished:            st.Vanished,
		Attaches:            st.Attaches,
		LongestStop:         durationpb.New(st.LongestStop),
		ReapedUnproven:      st.ReapedUnproven,
		ReapedOwn:           st.ReapedOwn,
		GraceInForce:        durationpb.New(st.Grace),
		Contradictions:      st.Contradictions,
		OrphanEventsDropped: t.dropped.Load(),
		PidsCurrent:         uint64(max(st.PIDsCurrent, 0)),
		PidsMax:             uint64(max(st.PIDsMax, 0)),
	}
	if st.Reaped > 0 {
		m.ReapTimes = &api.ReapTimes{Counts: st.ReapTimes.Counts[:], Sum: st.ReapTimes.Sum.Seconds()}
		for _, b := range st.ReapTimes.Bounds() {
			m.ReapTimes.Bounds = append(m.ReapTimes.Bounds, b.Seconds())
		}
	}
	for _, h := range st.Holders {
		m.Holders = append(m.Holders, &api.Holder{Pid: uint32(h.PID), Command: cleanComm(h.Comm), Zombies: uint32(h.Zombies)})
	}
	if len(st.Rules) > 0 {
		m.Rules = make(map[string]uint32, len(st.Rules))
		for rules, n := range st.Rules {
			m.Rules[rules.String()] = uint32(n)
		}
	}
	if forks.Source != "" {
		m.ForkLog = &api.ForkLog{Source: forks.Source, Forks: forks.Forks, Lost: forks.Lost, Gaps: forks.Gaps, Reason: forks.Reason}
	}
	if len(st.Refusals) > 0 {
		m.Refusals = make(map[string]uint64, len(st.Refusals))
		for reason, n := range st.Refusals {
			m.Refusals[string(reason)] = n
		}
	}
	return m
}
