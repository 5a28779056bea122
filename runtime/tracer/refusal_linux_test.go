package tracer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// without returns a client whose workers lack these capabilities.
func without(t *testing.T, caps ...uintptr) *Client {
	t.Helper()
	args := []string{"0"}
	for _, c := range caps {
		args = append(args, fmt.Sprint(c))
	}
	return lesserClient(t, args...)
}

// nobody returns a client whose workers are those of another user.
func nobody(t *testing.T) *Client {
	t.Helper()
	c := lesserClient(t, fmt.Sprint(nobodyID))
	if err := os.Chmod(filepath.Dir(built.worker), 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

const nobodyID = 65534

// lesserClient returns a client of real workers with fewer rights.
func lesserClient(t *testing.T, args ...string) *Client {
	t.Helper()
	build()
	if built.workerErr != nil {
		t.Fatal(built.workerErr)
	}
	c := NewClient("/proc/self/exe", append([]string{lesserWorker, built.worker}, append(args, "--")...)...)
	t.Cleanup(func() { c.Close() })
	return c
}

// becomeLesser is lesserWorker's main: it gives up the named capabilities for good, becomes the user, and executes the worker.
func becomeLesser(args []string) error {
	runtime.LockOSThread() // the bounding set is a thread's, and so is execve(2)
	worker, user := args[0], args[1]
	end := slices.Index(args, "--")
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for _, arg := range args[2:end] {
		c, err := strconv.ParseUint(arg, 10, 6)
		if err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
		sets[c/32].Inheritable &^= 1 << (c % 32)
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if id, err := strconv.Atoi(user); err != nil {
		return err
	} else if id != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(id, id, id), syscall.Setresuid(id, id, id)); err != nil {
			return fmt.Errorf("become user %d: %w", id, err)
		}
	}
	return fmt.Errorf("execute %s: %w", worker, syscall.Exec(worker, append([]string{worker}, args[end+1:]...), os.Environ()))
}

func startRefusal(t *testing.T, mode string, orphans int) *victim {
	t.Helper()
	v := startPID1(t, compileVictim(t, "refusal"), mode, fmt.Sprint(orphans))
	v.expect("ready")
	return v
}

// attachProgram runs a debugger that stays attached to PID 1 until end is called.
func attachProgram(t *testing.T, v *victim, name string, args ...string) (end func()) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		unable(t, "needs %s: apt-get install %s", name, name)
	}
	cmd := exec.Command(path, args...)
	in, err := cmd.StdinPipe() // a debugger ends with its input
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			in.Close()
			_ = cmd.Process.Signal(unix.SIGTERM)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	eventually(t, name+" attached", func() bool {
		st, err := liveProc.Status(v.pid)
		return err == nil && int(st.TracerPid) == cmd.Process.Pid
	})
	return end
}

func untraced(t *testing.T, v *victim) {
	t.Helper()
	eventually(t, "no tracer", func() bool {
		st, err := liveProc.Status(v.pid)
		return err == nil && st.TracerPid == 0
	})
}

// freezer returns the path of a new freezer cgroup of version 1 that holds v. Skips where there is none: there the test with
// cgroup v2 runs.
func freezer(t *testing.T, v *victim) string {
	t.Helper()
	root := "/sys/fs/cgroup/freezer"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		t.Skipf("no freezer of cgroup v1 is mounted: %v", err)
	}
	dir := filepath.Join(root, fmt.Sprintf("reaper-refusal-%d-%d", os.Getpid(), v.pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		unable(t, "cannot make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
		unix.Kill(int(v.pid), unix.SIGKILL)
		eventually(t, "an empty cgroup", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(v.pid)), 0); err != nil {
		t.Fatal(err)
	}
	return dir
}

func setFreezer(t *testing.T, dir, state string) {
	t.Helper()
	name := filepath.Join(dir, "freezer.state")
	if err := os.WriteFile(name, []byte(state), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, state, func() bool {
		data, _ := os.ReadFile(name)
		return strings.TrimSpace(string(data)) == state
	})
}

// TestRefusals has one row per state in which PID 1 cannot be made to reap: refused with its name, again and again, PID 1
// none the worse, and reaped once the state ends.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		mode   string
		begin  func(t *testing.T, v *victim) (end func())
		client func(t *testing.T) *Client
		want   Reason
		// After it: end (nil: what begin returned) ends the state and the zombie is reaped, or nothing ends it.
		end    func(t *testing.T, v *victim)
		lasts  bool
		attach bool // PID 1 may be touched before it is found out
		after  []string
	}{
		{
			name: "traced from inside", mode: "traced-from-inside", want: ReasonTraced,
			end: func(t *testing.T, v *victim) { v.poke(); untraced(t, v) },
		},
		{
			name: "strace", mode: "park", want: ReasonTraced, after: []string{"woken"},
			begin: func(t *testing.T, v *victim) func() {
				end := attachProgram(t, v, "strace", "-o", "/dev/null", "-p", v.pid.String())
				return func() { end(); untraced(t, v) }
			},
		},
		{
			name: "gdb", mode: "park", want: ReasonTraced, after: []string{"woken"},
			begin: func(t *testing.T, v *victim) func() {
				end := attachProgram(t, v, "gdb", "-q", "-nx", "-p", v.pid.String())
				return func() { end(); untraced(t, v) }
			},
		},
		{
			name: "stopped", mode: "park", want: ReasonStopped, after: []string{"woken"},
			begin: func(t *testing.T, v *victim) func() {
				unix.Kill(int(v.pid), unix.SIGSTOP)
				eventually(t, "state T", func() bool { return v.state() == procfs.StateStopped })
				return func() {
					unix.Kill(int(v.pid), unix.SIGCONT)
					eventually(t, "state S", func() bool { return v.state() == procfs.StateSleeping })
				}
			},
		},
		{
			name: "frozen, cgroup v1", mode: "park", want: ReasonFrozen, after: []string{"woken"},
			begin: func(t *testing.T, v *victim) func() {
				dir := freezer(t, v)
				setFreezer(t, dir, "FROZEN")
				return func() { setFreezer(t, dir, "THAWED") }
			},
		},
		{
			name: "seccomp strict", mode: "strict", want: ReasonSeccompStrict, lasts: true, after: []string{"woken"},
			begin: func(t *testing.T, v *victim) func() {
				eventually(t, "seccomp mode 1", func() bool {
					st, err := liveProc.Status(v.pid)
					return err == nil && st.Seccomp == procfs.SeccompStrict
				})
				return nil
			},
		},
		{
			name: "waitid is forbidden and the filter cannot be suspended", mode: "waitid-forbidden", want: ReasonSeccompFilter, attach: true,
			client: func(t *testing.T) *Client { return without(t, unix.CAP_SYS_ADMIN) }, after: []string{"woken", "still forbidden"},
			end: func(*testing.T, *victim) {}, // another worker has the capability
		},
		{
			name: "waitid kills and the filter cannot be suspended", mode: "waitid-kills", want: ReasonSeccompFilter, attach: true,
			client: func(t *testing.T) *Client { return without(t, unix.CAP_SYS_ADMIN) }, after: []string{"woken"},
			end: func(*testing.T, *victim) {},
		},
		{
			name: "no CAP_SYS_PTRACE", mode: "park", want: ReasonNoPermission, after: []string{"woken"},
			client: func(t *testing.T) *Client { return without(t, unix.CAP_SYS_PTRACE) },
			end:    func(*testing.T, *victim) {},
		},
		{
			name: "another user", mode: "park", want: ReasonNoPermission, after: []string{"woken"},
			client: nobody,
			end:    func(*testing.T, *victim) {},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			v := startRefusal(t, tc.mode, 1)
			zs := v.orphans(1)
			if tc.mode != "strict" {
				v.parked("")
			}
			var end func()
			if tc.begin != nil {
				end = tc.begin(t, v)
			}
			c := newClient(t)
			if tc.client != nil {
				c = tc.client(t)
			}
			for range 3 {
				began := time.Now()
				rep := reap(t, c, v.request(zs...))
				for tries := 0; rep.Reason == ReasonBusy && tc.want != ReasonBusy && tries < 100; tries++ {
					v.parked("") // a thread that gets no CPU time is not parked for a while
					began, rep = time.Now(), reap(t, c, v.request(zs...))
				}
				if rep.Reason != tc.want || rep.Results[0].Outcome != Left || rep.Attached && !tc.attach {
					t.Errorf("report %+v, want %s", rep, tc.want)
				}
				if rep.Detail == "" {
					t.Error("no word about it for people")
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("took %v", took)
				}
			}
			switch {
			case tc.end != nil:
				tc.end(t, v)
			case end != nil:
				end()
			}
			if !tc.lasts {
				c := newClient(t)
				eventually(t, "reaped in the end", func() bool { return reap(t, c, v.request(zs...)).Count(Reaped) == 1 })
			}
			if len(tc.after) > 0 {
				v.poke()
			}
			for i, word := range tc.after {
				// strace and gdb give ppoll an EINTR of their own.
				if rest := v.expect(word); rest != "" && i == 0 && tc.want != ReasonTraced && tc.want != ReasonStopped {
					t.Errorf("PID 1 noticed: %s %s", word, rest)
				}
			}
		})
	}
}

// TestSeccompSuspended: with the right to suspend a filter that forbids waitid, or kills on it, all are reaped, and what is
// forbidden stays forbidden.
func TestSeccompSuspended(t *testing.T) {
	for _, mode := range []string{"waitid-forbidden", "waitid-kills"} {
		t.Run(mode, func(t *testing.T) {
			const n = 20
			v := startRefusal(t, mode, n)
			zs := v.orphans(n)
			v.parked("ppoll")
			if rep := reap(t, newClient(t), v.request(zs...)); rep.Count(Reaped) != n {
				t.Errorf("report %+v", rep)
			}
			v.poke()
			if rest := v.expect("woken"); rest != "" {
				t.Errorf("PID 1 noticed: %s", rest)
			}
			if mode == "waitid-forbidden" {
				v.expect("still forbidden")
			}
		})
	}
}

// TestSeccompSibling: while one thread is attached to, no other gets anything through its filter.
func TestSeccompSibling(t *testing.T) {
	const n = 200
	v := startRefusal(t, "hammer", n)
	zs := v.orphans(n)
	c := newClient(t)
	attached := 0
	for deadline := time.Now().Add(patience); len(zs) > 0 && time.Now().Before(deadline); {
		rep := reap(t, c, v.request(zs[0]))
		if rep.Attached {
			attached++
		}
		if rep.Count(Reaped) == 1 {
			zs = zs[1:]
		}
	}
	v.poke()
	if rest := v.expect("woken"); rest != "" {
		t.Errorf("PID 1 noticed: %s", rest)
	}
	var tries, passed int
	if _, err := fmt.Sscanf(v.expect("tries"), "%d passed %d", &tries, &passed); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d attaches, %d forbidden calls tried", attached, tries)
	if passed != 0 || tries == 0 || len(zs) > 0 {
		t.Errorf("%d of %d forbidden calls passed, %d zombies left", passed, tries, len(zs))
	}
}

// TestFrozenDuringAttach: frozen by cgroup v1 after the look, PID 1 does not stop at all. The worker gives up in time, and
// PID 1 goes on as it was when it is thawed.
func TestFrozenDuringAttach(t *testing.T) {
	v := startRefusal(t, "park", 1)
	zs := v.orphans(1)
	v.parked("ppoll")
	dir := freezer(t, v)
	setFreezer(t, dir, "FROZEN")
	began := time.Now()
	rep := helperAttach(t, helperOrder{Request: v.request(zs...), Blind: true})
	took := time.Since(began)
	t.Logf("%s %s after %v", rep.Reason, rep.Detail, took)
	if rep.Reason != ReasonTimeout && rep.Reason != ReasonFrozen || rep.Count(Reaped) != 0 || took > patience/2 {
		t.Errorf("report %+v after %v", rep, took)
	}
	setFreezer(t, dir, "THAWED")
	untraced(t, v)
	eventually(t, "reaped in the end", func() bool { return reap(t, newClient(t), v.request(zs...)).Count(Reaped) == 1 })
	v.poke()
	v.expect("woken")
}

// yama is /proc as a kernel with kernel.yama.ptrace_scope=3 shows it, to root as well: what needs the right to attach cannot
// be read (proc_pid_syscall() in fs/proc/base.c asks for PTRACE_MODE_ATTACH, yama_ptrace_access_check() in
// security/yama/yama_lsm.c says EPERM).
type yama struct{ fs.FS }

func (y yama) Open(name string) (fs.File, error) {
	f, err := y.FS.Open(name)
	if err == nil && strings.HasSuffix(name, "/syscall") {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EPERM}
	}
	return f, err
}

func TestYama(t *testing.T) {
	v := startRefusal(t, "park", 1)
	req := v.request(v.orphans(1)...)
	v.parked("ppoll")
	for _, tc := range []struct {
		proc fs.FS
		want Reason
	}{{yama{os.DirFS("/proc")}, ReasonNoPermission}, {os.DirFS("/proc"), ""}} {
		rep := decline(req, "", "")
		p, err := newObserver(tc.proc, fstest.MapFS{}).examine(req, rep.Results)
		var d *declined
		if errors.As(err, &d); d == nil && tc.want != "" || d != nil && d.reason != tc.want {
			t.Errorf("%v, want %q", err, tc.want)
		}
		if (p.tid == 0) != (tc.want != "") {
			t.Errorf("thread %d chosen, want %q", p.tid, tc.want)
		}
	}
}

// TestServed are states in which PID 1 looks out of reach and is not.
func TestServed(t *testing.T) {
	const n = 5
	t.Run("not dumpable", func(t *testing.T) {
		v := startRefusal(t, "undumpable", n)
		zs := v.orphans(n)
		v.parked("ppoll")
		if rep := reap(t, newClient(t), v.request(zs...)); rep.Count(Reaped) != n {
			t.Errorf("report %+v", rep)
		}
		v.poke()
		if rest := v.expect("woken"); rest != "" {
			t.Errorf("PID 1 noticed: %s", rest)
		}
	})
	t.Run("user namespace", func(t *testing.T) {
		bin := compileVictim(t, "refusal")
		v := startPID1With(t, &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
		}, bin, "waitid-forbidden", fmt.Sprint(n))
		v.expect("ready")
		zs := v.orphans(n)
		v.parked("ppoll")
		if rep := reap(t, newClient(t), v.request(zs...)); rep.Count(Reaped) != n {
			t.Errorf("report %+v", rep)
		}
		v.poke()
		v.expect("woken")
		v.expect("still forbidden")
	})
}

// TestLiveThreads: a zombie leader whose threads live is not dead yet, and is reaped when it is.
func TestLiveThreads(t *testing.T) {
	v := startRefusal(t, "live-threads", 0)
	v.parked("ppoll")
	var z Zombie
	eventually(t, "a zombie leader", func() bool {
		kids, _ := liveProc.ThreadChildren(v.pid, v.pid)
		for _, pid := range kids {
			st, err := liveProc.Stat(pid)
			if err == nil && st.State == procfs.StateZombie && st.NumThreads > 1 {
				status, err := liveProc.Status(pid)
				if err != nil {
					return false
				}
				z = Zombie{PID: pid, StartTime: st.StartTime, NSPID: status.NSpid[len(status.NSpid)-1]}
				return true
			}
		}
		return false
	})
	c := newClient(t)
	if rep := reap(t, c, v.request(z)); rep.Attached || rep.Results[0].Outcome != Refused || rep.Results[0].Reason != ReasonLiveThreads {
		t.Errorf("report %+v", rep)
	}
	v.poke()
	eventually(t, "reaped in the end", func() bool { return reap(t, c, v.request(z)).Count(Reaped) == 1 })
}

// exitBound is how soon the end of PID 1 has to reach its parent, in the middle of an attach or not.
var exitBound = testutil.Slow(100 * time.Millisecond)

// TestExitReachesParent: PID 1 exits, is killed or replaces itself at any moment of an attach; its parent learns of its end at once
// and with the true status, while the worker lives on.
func TestExitReachesParent(t *testing.T) {
	const rounds = 16
	zombies := 40 / int(testutil.Slow(1)) // they are looked at before the attach
	for _, tc := range []struct {
		mode string
		end  func(v *victim) error
		ok   func(ws syscall.WaitStatus) bool
	}{
		{"exit", func(v *victim) error { _, err := v.stdin.Write([]byte("x")); return err },
			func(ws syscall.WaitStatus) bool { return ws.Exited() && ws.ExitStatus() == 33 }},
		{"park", func(v *victim) error { return unix.Kill(int(v.pid), unix.SIGKILL) },
			func(ws syscall.WaitStatus) bool { return ws.Signaled() && ws.Signal() == unix.SIGKILL }},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			c := newClient(t)
			late, attached, interrupted := 0, 0, 0
			var worst time.Duration
			for i := range rounds {
				v := startRefusal(t, tc.mode, zombies)
				zs := v.orphans(zombies)
				v.parked("ppoll")
				ended := make(chan struct{})
				began := make(chan time.Time, 1)
				go func() {
					defer close(ended)
					time.Sleep(testutil.Slow(time.Duration(i) * 500 * time.Microsecond)) // a little later each time
					began <- time.Now()
					if err := tc.end(v); err != nil {
						t.Error(err)
					}
				}()
				rep := reap(t, c, v.request(zs...))
				if rep.Attached {
					attached++
				}
				if rep.Count(Reaped) < len(zs) {
					interrupted++
				}
				<-ended
				select {
				case <-v.done:
				case <-time.After(DefaultIdle / 2): // by its end the worker would let go in any case
					t.Fatal("the end of PID 1 did not reach its parent")
				}
				took := time.Since(<-began)
				worst = max(worst, took)
				if took > exitBound {
					late++
				}
				if !tc.ok(v.ws) {
					t.Errorf("PID 1 ended with %#x", v.ws)
				}
			}
			t.Logf("%d rounds, %d attaches, %d cut short, %v at most, %d later than %v", rounds, attached, interrupted, worst, late, exitBound)
			if late > 1 || attached == 0 { // the machine has other things to do now and then
				t.Errorf("%d of %d later than %v", late, rounds, exitBound)
			}
		})
	}
	t.Run("exec", func(t *testing.T) {
		v := startPID1(t, compileVictim(t, "refusal"), "exec", "60", fmt.Sprint(testutil.Slow(time.Millisecond).Milliseconds()))
		v.expect("ready")
		zs := v.orphans(60)
		c := newClient(t)
		reaped, attached := 0, 0
		why := map[Reason]int{}
		for running := true; running && len(zs) > 0; {
			select {
			case <-v.done:
				running = false
				continue
			default:
			}
			rep := reap(t, c, v.request(zs[0]))
			why[rep.Reason]++
			if rep.Attached {
				attached++
			}
			if rep.Results[0].Outcome == Reaped {
				reaped++
			}
			if rep.Results[0].Outcome != Left {
				zs = zs[1:]
			}
		}
		select {
		case <-v.done:
		case <-time.After(patience):
			t.Fatal("PID 1 did not come to its end")
		}
		t.Logf("%d attaches, %d reaped, reasons %v", attached, reaped, why)
		if !v.ws.Exited() || v.ws.ExitStatus() != 33 {
			t.Errorf("PID 1 ended with %#x, want exit 33", v.ws)
		}
		if attached == 0 || reaped == 0 {
			t.Error("no attach: the test has shown nothing")
		}
	})
}
