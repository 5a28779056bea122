package reaperctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/internal/uname"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Diagnosis is the document of doctor.
type Diagnosis struct {
	header
	// OK: no check has failed.
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
}

// Check is one thing that was looked at.
type Check struct {
	// Name is stable.
	Name string `json:"name"`
	// Status is "ok"; "note" for what limits something and may be meant so; "fail"; or "unknown" for what could not be looked at.
	Status string `json:"status"`
	// Found says what is there, Remedy what to do where that is not "ok".
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"`
}

// The states of a check.
const (
	statusOK      = "ok"
	statusNote    = "note"
	statusFail    = "fail"
	statusUnknown = "unknown"
)

func ok(name, found string, args ...any) Check {
	return Check{Name: name, Status: statusOK, Found: fmt.Sprintf(found, args...)}
}

func (c Check) but(status, remedy string, args ...any) Check {
	c.Status, c.Remedy = status, fmt.Sprintf(remedy, args...)
	return c
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Is all there that the reaper runtime needs? Kernel, privileges, containerd's configuration, programs, running tasks",
		Long: `Looks at the kernel, at the privileges that shims have, at the programs and at containerd's configuration, and at what the shims
that run say about themselves; each line is ok or says what to do. The exit code is 6 when a check fails. A note is no failure: it
names a limit that may be meant so.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := a.diagnose(cmd.Context())
			if err := a.print(d, d.table); err != nil {
				return err
			}
			if !d.OK {
				return errNotOK
			}
			return nil
		},
	}
}

func (a *app) diagnose(ctx context.Context) Diagnosis {
	h := host{proc: os.DirFS("/proc"), cgroup: os.DirFS("/sys/fs/cgroup"), uid: os.Geteuid(), kernelInfo: uname.Get()}
	checks := []Check{h.user(), h.kernel(), h.architecture(), h.children()}
	n, err := a.open(ctx)
	if err != nil {
		c := ok("containerd", "%s", err).but(statusFail, "start containerd, or name its socket with --address or %s", node.AddressEnv)
		if hint := hint(err, ExitUnavailable, h.uid); hint != "" {
			c.Remedy = hint
		}
		// What the shims will be allowed is what this process is: a guess, and better than nothing.
		checks = append(checks, h.ptrace(), h.forkLog(""), h.cgroups(), c)
	} else {
		defer n.Close()
		d := n.Daemon()
		pid := ""
		if d.PID > 0 {
			pid = d.PID.String()
		}
		checks = append(checks, h.capabilities(pid), h.ptrace(), h.forkLog(pid), h.cgroups(), containerdVersion(d))
		checks = append(checks, programs(ctx, d)...)
		checks = append(checks, configChecks(d)...)
		checks = append(checks, taskChecks(ctx, n)...)
	}
	checks = append(checks, h.headroom())
	res := Diagnosis{header: kind("Diagnosis"), OK: true, Checks: checks}
	for _, c := range checks {
		res.OK = res.OK && c.Status != statusFail
	}
	return res
}

func containerdVersion(d node.Daemon) Check {
	c := ok("containerd", "%s at %s, state in %s", d.Version, d.Address, d.StateDir)
	major, minor, known := version(strings.TrimPrefix(d.Version, "v"))
	switch {
	case !known: // a build without a version
		return c
	case major < 1 || major == 1 && minor < 6:
		return c.but(statusFail, "update to containerd 2.3 or newer")
	case major == 1 || major == 2 && minor < 3:
		return c.but(statusNote, "containerd 2.3 or newer is what all tests run with; see docs/containerd.md")
	}
	return c
}

// The runtime, and the program that containerd makes of its name (containerd, pkg/shim, BinaryName).
const (
	runtimeName = "io.containerd.reaper.v2"
	shimBinary  = "containerd-shim-reaper-v2"
)

// programs looks for the programs where the daemon would find them: on its PATH, then beside it (containerd,
// core/runtime/v2/shim_manager.go, resolveRuntimePath); and those of the shim beside the shim, then on PATH (internal/program).
func programs(ctx context.Context, d node.Daemon) []Check {
	if d.PID == 0 {
		return []Check{ok("programs", "containerd's process cannot be seen from here").but(statusUnknown, "run reaperctl in the PID namespace of the node")}
	}
	dirs := searchPath(d)
	shim := find(d.Root, dirs, shimBinary)
	if shim == "" {
		return []Check{ok("programs", "%s is not on containerd's PATH (%s)", shimBinary, strings.Join(dirs, ":")).
			but(statusFail, "install %s, reaper-tracer and reaper-init into one of these directories", shimBinary)}
	}
	checks := []Check{ok("programs: "+shimBinary, "%s", shim)}
	version := programVersion(ctx, d.Root+shim)
	if version != "" {
		checks[0].Found += ", version " + version
	}
	for _, p := range []struct{ name, without string }{
		{"reaper-tracer", "mode assist can only observe"}, {"reaper-init", "mode init fails"},
	} {
		name := "programs: " + p.name
		at := find(d.Root, append([]string{path.Dir(shim)}, dirs...), p.name)
		if at == "" {
			status := statusFail
			if p.name == "reaper-init" {
				status = statusNote
			}
			checks = append(checks, ok(name, "neither beside the shim nor on containerd's PATH; %s", p.without).but(status, "install it into %s", path.Dir(shim)))
			continue
		}
		c := ok(name, "%s", at)
		if path.Dir(at) != path.Dir(shim) {
			c = c.but(statusNote, "it should be of the same version as the shim: install both into one directory")
		}
		checks = append(checks, c)
	}
	return checks
}

// searchPath returns the directories that the daemon looks for shims in, as it sees them.
func searchPath(d node.Daemon) []string {
	var list string
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", d.PID)); err == nil {
		for kv := range strings.SplitSeq(string(env), "\x00") {
			if v, found := strings.CutPrefix(kv, "PATH="); found {
				list = v
			}
		}
	}
	dirs := slices.DeleteFunc(filepath.SplitList(list), func(dir string) bool { return !path.IsAbs(dir) })
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", d.PID)); err == nil {
		dirs = append(dirs, path.Dir(exe))
	}
	return dirs
}

// find returns the first executable of that name, as seen from root.
func find(root string, dirs []string, name string) string {
	for _, dir := range dirs {
		p := path.Join(dir, name)
		if info, err := os.Stat(root + p); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// taskChecks asks the shims that run.
func taskChecks(ctx context.Context, n *node.Node) []Check {
	tasks, err := n.Snapshot(ctx)
	if err != nil {
		return []Check{ok("tasks", "%s", err).but(statusUnknown, "look at containerd's log")}
	}
	var (
		ours   int
		checks []Check
	)
	for _, t := range tasks {
		name := "task " + t.Namespace + "/" + t.Name()
		switch {
		case t.Err != nil && t.PID != 0:
			checks = append(checks, ok(name, "its shim cannot be asked: %s", t.Err).but(statusFail,
				"look at containerd's log; a task whose shim has been killed has to be started anew"))
		case t.Ours:
			ours++
			checks = append(checks, taskCheck(name, t)...)
		}
		pids := PIDs{Current: t.PIDs.Current, Max: t.PIDs.Max}
		if pids.near() {
			checks = append(checks, ok(name, "%d of %d PIDs are used", pids.Current, pids.Max).but(statusNote,
				"see what they are (reaperctl zombies, reaperctl scan), or raise the limit"))
		}
	}
	first := ok("tasks", "%d on the node, %d of the reaper runtime", len(tasks), ours)
	if len(tasks) > 0 && ours == 0 {
		first = first.but(statusNote, "choose the runtime: README, \"Install\"")
	}
	return append([]Check{first}, checks...)
}

// taskCheck says what is not as it should be about one task of ours.
func taskCheck(name string, t *node.Task) []Check {
	var checks []Check
	s := t.Stats
	if s.GetEffectiveMode() != s.GetMode() {
		checks = append(checks, ok(name, "mode %s is not in force but %s: %s", s.GetMode(), s.GetEffectiveMode(), s.GetEffectiveModeReason()).
			but(statusNote, "see what the reason says; annotation io.containerd.reaper.mode chooses another mode"))
	}
	if log := s.GetForkLog(); s.GetEffectiveMode() == "assist" && log.GetSource() == "none" {
		checks = append(checks, ok(name, "no fork log: %s", log.GetReason()).
			but(statusNote, "orphans in PID 1's own session stay unproven, and zombies, without it; see docs/fork-log.md"))
	}
	if n := s.GetContradictions(); n > 0 {
		checks = append(checks, ok(name, "%d zombies on which two rules said opposite things", n).
			but(statusNote, "they are left alone; does PID 1 use clone(CLONE_PARENT)? If not, please report it"))
	}
	if n := s.GetHeld(); n > 0 {
		var who []string
		for _, h := range s.GetHolders() {
			who = append(who, fmt.Sprintf("%s (%d): %d", h.GetCommand(), h.GetPid(), h.GetZombies()))
		}
		checks = append(checks, ok(name, "%d zombies are held by another process than PID 1: %s", n, strings.Join(who, ", ")).
			but(statusNote, "that program has to wait for its children"))
	}
	return checks
}

var statusStyle = map[string]style{statusOK: green, statusNote: yellow, statusFail: red, statusUnknown: yellow}

func (d Diagnosis) table(bool) *table {
	t := newTable("STATUS", "CHECK", "FOUND")
	for _, c := range d.Checks {
		t.add(cell{text: c.Status, style: statusStyle[c.Status]}, text(c.Name), text(c.Found))
		if c.Remedy != "" {
			t.add(cell{}, cell{}, cell{text: "→ " + safe(c.Remedy)})
		}
	}
	bad := 0
	for _, c := range d.Checks {
		if c.Status == statusFail {
			bad++
		}
	}
	t.footer = "Nothing is missing."
	if bad > 0 {
		t.footer = fmt.Sprintf("%d of %d checks failed.", bad, len(d.Checks))
	}
	return t
}

// host is the machine without its containerd.
type host struct {
	proc, cgroup fs.FS
	uid          int
	kernelInfo   uname.Info
}

func (h host) read(name string) (string, error) {
	data, err := fs.ReadFile(h.proc, name)
	return strings.TrimSpace(string(data)), err
}

func (h host) user() Check {
	c := ok("user", "root")
	if h.uid != 0 {
		c.Found = fmt.Sprintf("user %d", h.uid)
		return c.but(statusFail, "run reaperctl as root: the sockets of containerd and of its shims are root's")
	}
	return c
}

func (h host) kernel() Check {
	c := ok("kernel", "Linux %s", h.kernelInfo.Release)
	major, minor, known := version(h.kernelInfo.Release)
	switch {
	case !known:
		return c.but(statusUnknown, "Linux 5.3 or newer is needed")
	case major < 5 || major == 5 && minor < 3:
		return c.but(statusFail, "update to 5.3 or newer: ptrace cannot say there which system call a thread is in (PTRACE_GET_SYSCALL_INFO)")
	case major < 6:
		return c.but(statusNote, "6.0 or newer tells of lost records of the perf fork log; before, the proc connector is used")
	}
	return c
}

func (h host) architecture() Check {
	c := ok("architecture", "%s", h.kernelInfo.Machine)
	switch h.kernelInfo.Machine {
	case "x86_64":
		return c
	case "aarch64":
		return c.but(statusNote, "crash safety of the tracer is not fully tested on arm64")
	default:
		return c.but(statusFail, "the tracer knows x86_64 and aarch64; mode observe works everywhere")
	}
}

func (h host) children() Check {
	pid := os.Getpid()
	c := ok("children of threads", "/proc/<pid>/task/<tid>/children is there (CONFIG_PROC_CHILDREN)")
	if _, err := fs.Stat(h.proc, fmt.Sprintf("%d/task/%d/children", pid, pid)); err != nil {
		c.Found = "the kernel has no CONFIG_PROC_CHILDREN"
		return c.but(statusNote, "sweeps read all of /proc instead, which costs more")
	}
	return c
}

func (h host) ptrace() Check {
	scope, err := h.read("sys/kernel/yama/ptrace_scope")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ok("ptrace", "permitted (no Yama)")
	case err != nil:
		return ok("ptrace", "%s", err).but(statusUnknown, "look at kernel.yama.ptrace_scope")
	case scope == "3":
		return ok("ptrace", "forbidden for all, root too (kernel.yama.ptrace_scope = 3)").
			but(statusFail, "use mode init, or boot with another value: 3 cannot be taken back")
	default:
		return ok("ptrace", "permitted for root (kernel.yama.ptrace_scope = %s)", scope)
	}
}

// forkLog looks for the two sources; pid is the process whose privileges the shims have, "" for this one.
func (h host) forkLog(pid string) Check {
	c := ok("fork log", "perf task log and proc connector")
	_, perfErr := fs.Stat(h.proc, "sys/kernel/perf_event_paranoid")
	connectors, _ := h.read("net/connector")
	connector := strings.Contains(connectors, "cn_proc")
	major, _, known := version(h.kernelInfo.Release)
	caps, capsKnown := h.effective(pid)
	perf := perfErr == nil && known && major >= 6 && (!capsKnown || caps&(capPerfmon|capSysAdmin) != 0)
	connector = connector && (!capsKnown || caps&capNetAdmin != 0)
	switch {
	case perf && connector:
	case perf:
		c.Found = "perf task log; no proc connector (CONFIG_PROC_EVENTS, CAP_NET_ADMIN)"
	case connector:
		c.Found = "proc connector; no perf task log (Linux 6.0, CONFIG_PERF_EVENTS, CAP_PERFMON)"
		return c.but(statusNote, "the connector costs every fork of the host a little: see docs/fork-log.md")
	default:
		c.Found = "neither perf task log (Linux 6.0, CONFIG_PERF_EVENTS, CAP_PERFMON) nor proc connector (CONFIG_PROC_EVENTS, CAP_NET_ADMIN)"
		return c.but(statusFail, "orphans in PID 1's own session cannot be proven and stay: give containerd these capabilities, or use another kernel")
	}
	return c
}

// Capabilities (linux/capability.h) that matter, as bits of CapEff in /proc/<pid>/status.
const (
	capNetAdmin  = 1 << 12
	capSysPtrace = 1 << 19
	capSysAdmin  = 1 << 21
	capPerfmon   = 1 << 38
)

// effective reads CapEff; "" stands for this process.
func (h host) effective(pid string) (caps uint64, known bool) {
	if pid == "" {
		pid = fmt.Sprint(os.Getpid())
	}
	text, err := h.read(pid + "/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(text) {
		if v, found := strings.CutPrefix(line, "CapEff:"); found {
			_, err := fmt.Sscanf(strings.TrimSpace(v), "%x", &caps)
			return caps, err == nil
		}
	}
	return 0, false
}

// capabilities are those of containerd, which its shims inherit.
func (h host) capabilities(pid string) Check {
	const name = "capabilities of containerd"
	caps, known := h.effective(pid)
	if pid == "" || !known {
		return ok(name, "cannot be seen").but(statusUnknown, "run reaperctl in the PID namespace of the node")
	}
	var missing []string
	for _, c := range []struct {
		bit  uint64
		name string
	}{{capSysPtrace, "CAP_SYS_PTRACE"}, {capSysAdmin, "CAP_SYS_ADMIN"}} {
		if caps&c.bit == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return ok(name, "%s missing", strings.Join(missing, ", ")).but(statusFail,
			"PID 1 cannot be made to reap without: give them to containerd's service, or use mode init")
	}
	return ok(name, "CAP_SYS_PTRACE and CAP_SYS_ADMIN")
}

func (h host) cgroups() Check {
	if data, err := fs.ReadFile(h.cgroup, "cgroup.controllers"); err == nil {
		c := ok("cgroups", "version 2")
		if !slices.Contains(strings.Fields(string(data)), "pids") {
			c.Found += ", without the pids controller"
			return c.but(statusNote, "PIDs of containers are neither limited nor shown")
		}
		return c
	}
	c := ok("cgroups", "version 1")
	if _, err := fs.Stat(h.cgroup, "pids"); err != nil {
		c.Found += ", without the pids controller"
		return c.but(statusNote, "PIDs of containers are neither limited nor shown")
	}
	return c
}

// headroom compares the processes of the node with what it can have.
func (h host) headroom() Check {
	limit := pidMax()
	pids, err := procfs.New(h.proc).PIDs()
	if err != nil || limit == 0 {
		return ok("PIDs of the node", "cannot be read").but(statusUnknown, "look at kernel.pid_max")
	}
	c := ok("PIDs of the node", "%d processes of at most %d (kernel.pid_max)", len(pids), limit)
	if float64(len(pids)) >= nearLimit*float64(limit) {
		return c.but(statusFail, "see who has them: reaperctl scan; or raise kernel.pid_max")
	}
	return c
}
