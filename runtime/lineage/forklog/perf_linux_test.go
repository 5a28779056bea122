package forklog_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

var proc = procfs.New(os.DirFS("/proc"))

// compiled returns the path of testdata/forker.c as a program.
func compiled(t *testing.T) string {
	t.Helper()
	testutil.Root(t)
	return testutil.Victim(t, "forker")
}

// subject is a process that waits, before its exec, to be let go: as a container does between create and start.
type subject struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.Writer
	out   *bufio.Scanner
	birth uint64
}

func newSubject(t *testing.T, args ...string) *subject {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read go && exec "$@"`, "sh"}, args...)...)
	cmd.Stderr = os.Stderr
	// No parent-death signal: it is sent when the thread that forked ends. The subject ends with its standard input.
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s := &subject{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	st, err := proc.Stat(s.pid())
	if err != nil {
		t.Fatal(err)
	}
	s.birth = st.StartTime
	return s
}

func (s *subject) pid() procfs.HostPID { return procfs.HostPID(s.cmd.Process.Pid) }

func (s *subject) openPerf() *forklog.Perf {
	s.t.Helper()
	log, err := forklog.OpenPerf(s.pid(), s.birth)
	if errors.Is(err, forklog.ErrUnsupported) || errors.Is(err, forklog.ErrPermission) {
		testutil.Lacks(s.t, err.Error(), "run as root on Linux 6.0 or newer")
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := log.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return log
}

// goOn sends the line that the subject, or a "pause" of the forker, waits for.
func (s *subject) goOn() {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, "go"); err != nil {
		s.t.Fatal(err)
	}
}

type child struct {
	who   string
	pid   procfs.HostPID
	start uint64
}

// children reads what the forker says, up to a line "pause" or its end.
func (s *subject) children() []child {
	s.t.Helper()
	var all []child
	for s.out.Scan() {
		if s.out.Text() == "pause" {
			return all
		}
		if strings.HasPrefix(s.out.Text(), "count") {
			continue
		}
		var c child
		if _, err := fmt.Sscanf(s.out.Text(), "%s %d %d", &c.who, &c.pid, &c.start); err != nil || c.start == 0 {
			s.t.Fatalf("the forker says %q: %v", s.out.Text(), err)
		}
		all = append(all, c)
	}
	return all
}

func check(t *testing.T, log forklog.Log, all []child, want map[string]lineage.Fork) {
	t.Helper()
	wrong := 0
	for _, c := range all {
		if got := log.Lookup(c.pid, c.start); got != want[c.who] {
			if wrong++; wrong <= 5 {
				t.Errorf("%s child %d (start %d): %v, want %v", c.who, c.pid, c.start, got, want[c.who])
			}
		}
	}
	if wrong > 5 {
		t.Errorf("and %d more of %d", wrong-5, len(all))
	}
}

var exact = map[string]lineage.Fork{"own": lineage.ForkedByInit, "other": lineage.ForkedByOther}

// From before the exec, whatever way there is to fork, and from threads that come and go: every child, and nobody else's.
func TestPerfIsExactFromBirth(t *testing.T) {
	bin := compiled(t)
	s := newSubject(t, bin, "mix", "30", "threads", "100", "exec", bin, "mix", "10", "threads", "20", "pause")
	log := s.openPerf()
	s.goOn()
	all := s.children()
	log.Sync()
	if len(all) != 40*7+120*8 {
		t.Errorf("%d children, want %d", len(all), 40*7+120*8)
	}
	check(t, log, all, exact)
	if st := log.Stats(); st.Lost != 0 || st.Gaps != 0 || st.Ended {
		t.Errorf("state %+v", st)
	}
}

// A3 of the attacks on the design: the log must not depend on the CPUs that its owner may run on, neither the thread nor the process
// from its start (runtime.NumCPU). So the test runs itself again on one CPU, and the subject forks on another.
func TestPerfOutsideOwnAffinity(t *testing.T) {
	const env = "REAPER_TEST_FORKS_ON_CPU"
	bin := compiled(t)
	cpus := affinity(t, 0)
	other := os.Getenv(env)
	if other == "" {
		if len(cpus) < 2 {
			testutil.Lacks(t, "one CPU only", "run on a machine with two or more")
		}
		cmd := exec.Command("taskset", "-c", strconv.Itoa(cpus[0]), os.Args[0], "-test.run=^TestPerfOutsideOwnAffinity$", "-test.v")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", env, cpus[1]))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("on CPU %d alone: %v\n%s", cpus[0], err, out)
		}
		if bytes.Contains(out, []byte("--- SKIP")) {
			t.Skipf("on CPU %d alone:\n%s", cpus[0], out)
		}
		return
	}
	if len(cpus) != 1 || runtime.NumCPU() != 1 {
		t.Fatalf("the test may run on CPUs %v, of which Go knows %d: want one", cpus, runtime.NumCPU())
	}
	s := newSubject(t, "taskset", "-c", other, bin, "mix", "10", "pause")
	log := s.openPerf()
	s.goOn()
	children := s.children()
	if got := fmt.Sprint(affinity(t, int(s.pid()))); got != "["+other+"]" {
		t.Fatalf("the subject may run on CPUs %s: want %s alone", got, other)
	}
	if len(children) != 10*7 {
		t.Errorf("%d children, want %d", len(children), 10*7)
	}
	log.Sync()
	check(t, log, children, exact)
}

// affinity lists the CPUs that a process, with 0 the caller, may run on.
func affinity(t *testing.T, pid int) []int {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &set); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// A1 and A2: a ring that overflows. Nobody drains while the log's own reader is kept from it, and more than a ring holds is
// forked: the loss must show, and nothing born before it may be vouched for.
func TestPerfLossIsAGap(t *testing.T) {
	bin := compiled(t)
	s := newSubject(t, bin, "flood", "4000", "mix", "1", "pause", "mix", "5", "pause")
	log := s.openPerf()
	release := forklog.HoldReader(log)
	s.goOn()
	before := s.children()
	release()
	log.Sync()
	st := log.Stats()
	if st.Lost == 0 || st.Gaps == 0 {
		t.Fatalf("4000 forks into rings of %d records: state %+v", 1024, st)
	}
	for _, c := range before {
		if got := log.Lookup(c.pid, c.start); got == lineage.ForkedByOther {
			t.Errorf("%s child %d, born before the gap: %v", c.who, c.pid, got)
		}
	}
	// And afterwards it is exact again.
	waitTick(t)
	s.goOn()
	after := s.children()
	log.Sync()
	check(t, log, after, exact)
}

// The reader keeps up with a storm as long as it may run.
func TestPerfStorm(t *testing.T) {
	bin := compiled(t)
	s := newSubject(t, bin, "flood", "10000", "mix", "3", "pause")
	log := s.openPerf()
	s.goOn()
	all := s.children()
	log.Sync()
	st := log.Stats()
	if st.Lost == 0 && st.Forks < 10000 {
		t.Errorf("%d forks heard of, none lost: want 10000 and more", st.Forks)
	}
	if st.Lost > 0 {
		t.Logf("the machine was too busy for the reader: %+v", st)
		return
	}
	check(t, log, all, exact)
}

// A4: an exec that leaves the process non-dumpable ends the log, in silence but for POLLHUP. What was born before is known, what
// comes later is not vouched for.
func TestPerfEndsWithAPrivilegedExec(t *testing.T) {
	bin := compiled(t)
	for _, tc := range []struct {
		name, become string
		prepare      func(t *testing.T, file string)
		goesOn       bool
	}{
		{name: "set-uid", become: "nobody", prepare: func(t *testing.T, file string) {
			if err := os.Chmod(file, 0o755|os.ModeSetuid); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "file capabilities", become: "nobody", prepare: func(t *testing.T, file string) {
			if err := unix.Setxattr(file, "security.capability", netBindCap, 0); err != nil {
				testutil.Lacks(t, "file capabilities: "+err.Error(), "use a file system with xattrs for TMPDIR")
			}
		}},
		{name: "unreadable", become: "nobody", prepare: func(t *testing.T, file string) {
			if err := os.Chmod(file, 0o111); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "root with fewer capabilities than its bounding set", become: "lesscap", prepare: func(*testing.T, string) {}},
		{name: "another user, as gosu does it", become: "nobody", prepare: func(*testing.T, string) {}, goesOn: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "privileged")
			data, err := os.ReadFile(bin)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, data, 0o755); err != nil {
				t.Fatal(err)
			}
			for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
				if err := os.Chmod(d, 0o755); err != nil { // for user 65534
					t.Fatal(err)
				}
			}
			tc.prepare(t, file)
			s := newSubject(t, bin, "mix", "2", "pause", tc.become, "exec", file, "mix", "3", "pause")
			log := s.openPerf()
			s.goOn()
			before := s.children()
			log.Sync()
			waitTick(t)
			log.Sync()
			s.goOn()
			after := s.children()
			log.Sync()
			check(t, log, before, exact)
			if tc.goesOn {
				if st := log.Stats(); st.Ended {
					t.Fatalf("state %+v, want it to go on", st)
				}
				check(t, log, after, exact)
				return
			}
			if st := log.Stats(); !st.Ended || st.Reason == "" {
				t.Fatalf("state %+v, want an end with a reason", st)
			}
			check(t, log, after, map[string]lineage.Fork{"own": lineage.ForkUnknown, "other": lineage.ForkUnknown})
			log.Sync()
			if !log.Stats().Ended {
				t.Error("an ended log came back")
			}
		})
	}
}

// netBindCap is struct vfs_cap_data, version 2, with CAP_NET_BIND_SERVICE permitted and effective (capabilities(7)).
var netBindCap = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// A5: opened late, with a complete time of now, it vouches for nothing that was born before.
func TestPerfLateAttach(t *testing.T) {
	bin := compiled(t)
	s := newSubject(t, bin, "mix", "2", "pause", "mix", "3", "pause")
	s.goOn()
	early := s.children()
	s.birth = forklog.BootTicks() + 1
	log := s.openPerf()
	waitTick(t)
	waitTick(t)
	s.goOn()
	late := s.children()
	log.Sync()
	check(t, log, early, map[string]lineage.Fork{"own": lineage.ForkUnknown, "other": lineage.ForkUnknown})
	check(t, log, late, exact)
}

func TestOpenPerfOfNobody(t *testing.T) {
	testutil.Root(t)
	fds := openFiles(t)
	if _, err := forklog.OpenPerf(1<<22-1, 0); err == nil {
		t.Fatal("opened a log of a process that does not exist")
	}
	if now := openFiles(t); now != fds {
		t.Errorf("%d open files, were %d", now, fds)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// hotplugVariable allows a test to take a CPU of this machine away for a moment.
const hotplugVariable = "REAPER_TEST_HOTPLUG"

// A3: a CPU that comes online after the log was opened, and one that is away for a while, are heard of as any other.
func TestPerfHotplug(t *testing.T) {
	if os.Getenv(hotplugVariable) != "1" {
		t.Skipf("takes CPU 1 offline for a moment: only with %s=1", hotplugVariable)
	}
	bin := compiled(t)
	const file = "/sys/devices/system/cpu/cpu1/online"
	if data, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(data)) != "1" {
		testutil.Lacks(t, fmt.Sprintf("no CPU 1 that can be taken offline: %s %v", data, err), "run on a machine with CPU hot-plug")
	}
	online := func(state string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(state), 0); err != nil {
			t.Errorf("write %s to %s: %v", state, file, err)
		}
	}
	t.Cleanup(func() { online("1") })

	online("0")
	// taskset refuses a CPU that is offline: the subject binds itself when it is there.
	s := newSubject(t, "/bin/sh", "-c", `read go && exec taskset -c 1 "$@"`, "sh", bin, "mix", "10", "pause", "mix", "10", "pause")
	log := s.openPerf()
	s.goOn()
	online("1")
	s.goOn()
	late := s.children()
	log.Sync()
	if len(late) == 0 {
		t.Fatal("no children")
	}
	check(t, log, late, exact)

	online("0") // the kernel moves the subject elsewhere
	online("1")
	s.goOn()
	again := s.children()
	log.Sync()
	check(t, log, again, exact)
	if st := log.Stats(); st.Lost != 0 || st.Gaps != 0 || st.Ended {
		t.Errorf("state %+v", st)
	}
}

// A3: there is an event for every CPU that may ever come, whether it is online or not.
func TestPerfHasAllPossibleCPUs(t *testing.T) {
	testutil.Root(t)
	s := newSubject(t, "/bin/true")
	log := s.openPerf()
	cpus, err := forklog.PossibleCPUs()
	if err != nil {
		t.Fatal(err)
	}
	events := 0
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && name == "anon_inode:[perf_event]" {
			events++
		}
	}
	if events != len(cpus) || log.CPUs() != len(cpus) {
		t.Errorf("%d events, log for %d CPUs; want %d", events, log.CPUs(), len(cpus))
	}
}

// Where the source cannot be had the error says so, under a name.
func TestPerfRefused(t *testing.T) {
	testutil.Root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		drop []uintptr // capabilities
		attr unix.SysProcAttr
		want string
	}{
		// CAP_SYS_PTRACE would do as well while kernel.perf_event_paranoid is 2 or less (perf_check_permission, kernel/events/core.c).
		"without CAP_PERFMON": {[]uintptr{unix.CAP_PERFMON, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE}, unix.SysProcAttr{}, "perf: permission true"},
		// A shim in a container: the capabilities of a user namespace are none for the host's processes.
		"in another user namespace": {nil, unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}, "perf: permission true"},
	} {
		t.Run(name, func(t *testing.T) {
			subject := newSubject(t, "/bin/true")
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", tryVariable, subject.pid()))
			cmd.SysProcAttr = &tt.attr
			out, err := outputWithout(cmd, tt.drop)
			if err != nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%s, %v; want %s", out, err, tt.want)
			}
		})
	}
}
