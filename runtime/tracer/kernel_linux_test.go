package tracer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Results as the raw system call returns them to the victim.
const (
	rawEINTR     = -int64(unix.EINTR)
	rawETIMEDOUT = -int64(unix.ETIMEDOUT)
)

// TestParkedCalls has zombies reaped by a PID 1 that is in one of the calls that may be interrupted, and has PID 1 check that
// the call went on as if nothing had happened: result, duration, every register that the ABI keeps, the signal mask, and the
// status of a child of its own that was a zombie all the time.
func TestParkedCalls(t *testing.T) {
	const ms = 700
	tests := []struct {
		call  string // of victim.c
		timed bool   // ends by its time-out, after ms
		ret   int64
		or    int64 // another result that it may have
	}{
		{call: "futex", ret: 0},
		{call: "futex-timeout", timed: true, ret: rawETIMEDOUT},
		{call: "futex-bitset", ret: 0},
		{call: "poll", ret: 1},
		{call: "poll-timeout", timed: true, ret: 0},
		{call: "ppoll", ret: 1, or: rawEINTR}, // its byte and its signal come together
		{call: "ppoll-timeout", timed: true, ret: 0},
		{call: "wait4", ret: 0},
		{call: "waitid", ret: 0},
		{call: "waitid-pidfd", ret: 0},
		{call: "epoll", ret: 1},
		{call: "epoll-pwait", ret: 1, or: rawEINTR},
		{call: "epoll-pwait2", ret: 1},
		{call: "epoll-timeout", timed: true, ret: 0, or: rawEINTR},
		{call: "nanosleep", timed: true, ret: 0},
		{call: "clock-nanosleep", timed: true, ret: 0},
		{call: "clock-nanosleep-abs", timed: true, ret: 0},
		{call: "pause", ret: rawEINTR},
		{call: "sigsuspend", ret: rawEINTR},
		{call: "select", ret: 1},
		{call: "pselect6", ret: 1, or: rawEINTR},
	}
	for _, tc := range tests {
		// All of them have to fit in the longest stop that there is.
		for _, n := range []int{1, max(5, 20/int(testutil.Slow(1)))} {
			t.Run(fmt.Sprintf("%s/%d", tc.call, n), func(t *testing.T) {
				t.Parallel()
				v := startVictim(t, "parked", tc.call, fmt.Sprint(n), fmt.Sprint(ms))
				v.expect("ready")
				zs := v.orphans(n)
				v.parked("")
				c := newClient(t)
				stopped := time.Duration(0)
				// One by one first, so that the second attach meets a call that was restarted before.
				rep := reap(t, c, v.request(zs[0]))
				stopped += rep.Stopped
				if rep.Count(Reaped) != 1 {
					t.Fatalf("first zombie: %+v", rep)
				}
				eintr := tc.call == "epoll-timeout" // ended by that attach, as by any stop
				if n > 1 && !eintr {
					v.parked("") // back in its call, for which it needs a CPU
					rep = reap(t, c, v.request(zs[1:]...))
					stopped += rep.Stopped
					if rep.Count(Reaped) != n-1 {
						t.Fatalf("other zombies: %+v", rep)
					}
				}
				if !tc.timed {
					select {
					case line := <-v.lines:
						t.Fatalf("the call ended before its time: %s", line)
					case <-time.After(20 * time.Millisecond):
					}
					v.poke()
				}
				var ret, us int64
				var regs, mask, own, helper string
				line := v.expect("done")
				if _, err := fmt.Sscanf(line, "ret %d us %d regs %s mask %s own %s helper %s", &ret, &us, &regs, &mask, &own, &helper); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				if ret != tc.ret && (tc.or == 0 || ret != tc.or) {
					t.Errorf("returned %d, want %d", ret, tc.ret)
				}
				if regs != "ok" || mask != "ok" || own != "ok" || helper != "ok" {
					t.Errorf("PID 1 noticed: %s", line)
				}
				if tc.timed && ret != rawEINTR {
					// Early is wrong by any amount; late is the machine's affair up to a point that a restart with the
					// full time would exceed. ppoll, which is also poll on arm64, is later by the time that it was stopped
					// (poll_select_finish() in fs/select.c).
					if us < ms*1000 || us > ms*1000*17/10+stopped.Microseconds() {
						t.Errorf("took %d µs, want %d; stopped for %v", us, ms*1000, stopped)
					}
				}
			})
		}
	}
}

func TestThousandZombies(t *testing.T) {
	n := 1000 / int(testutil.Slow(1))
	for _, call := range []string{"futex", "poll"} {
		t.Run(call, func(t *testing.T) {
			v := startVictim(t, "parked", call, fmt.Sprint(n), "0")
			v.expect("ready")
			zs := v.orphans(n)
			v.parked("")
			attaches, longest := reapAll(t, newClient(t), v, zs)
			t.Logf("%d zombies in %d attaches, longest stop %v (budget %v)", n, attaches, longest, DefaultMaxStop)
			if left := v.children(orphanCode); len(left) != 0 {
				t.Errorf("%d zombies are still there", len(left))
			}
			if own := v.children(ownCode); len(own) != 1 {
				t.Errorf("own zombies: %d, want 1", len(own))
			}
			v.poke()
			if line := v.expect("done"); strings.Contains(line, "bad") {
				t.Errorf("PID 1 noticed: %s", line)
			}
		})
	}
}

// TestNestedNamespace: the last number of an orphan's NSpid is that of an own child of PID 1.
func TestNestedNamespace(t *testing.T) {
	v := startVictim(t, "nested")
	v.expect("ready")
	z := v.orphans(1)[0]
	v.parked("")
	status, err := liveProc.Status(z.PID)
	if err != nil {
		t.Fatal(err)
	}
	inner := status.NSpid[len(status.NSpid)-1]
	eventually(t, "the trap is set", func() bool {
		own := v.children(42)
		return len(own) == 1 && own[0].NSPID == inner
	})
	// PID 1 is blocked in read, which is not to be interrupted, so the zombie's own check must come first.
	c := newClient(t)
	wrong := z
	wrong.NSPID = inner
	rep := reap(t, c, v.request(wrong))
	if rep.Attached || rep.Results[0].Outcome != Refused || rep.Results[0].Reason != ReasonWrongNSPID {
		t.Errorf("number of another level: %+v", rep)
	}
	v.poke()
	if got := v.expect("done"); got != "got 1 status 42" {
		t.Errorf("own child: %s", got)
	}
	v.parked("pause")
	number := z.NSPID
	z.NSPID = 0 // to be looked up
	if rep := reap(t, c, v.request(z)); rep.Count(Reaped) != 1 || rep.Results[0].NSPID != number {
		t.Errorf("number at PID 1's level: %+v", rep)
	}
}

// TestSeccompNoBypass: no call that the filter forbids may succeed because a tracer was there.
func TestSeccompNoBypass(t *testing.T) {
	const n = 400
	for _, tc := range []struct {
		mode    string
		running bool // it is stopped in the middle of its work
	}{{"seccomp-hammer", false}, {"seccomp-busy", true}} {
		t.Run(tc.mode, func(t *testing.T) {
			v := startVictim(t, tc.mode, fmt.Sprint(n))
			v.expect("ready")
			zs := v.orphans(n)
			c := newClient(t)
			attached, reaped, enough := 0, 0, 100/int(testutil.Slow(1))
			deadline := time.Now().Add(patience)
			for (attached < 200 || reaped < enough) && time.Now().Before(deadline) {
				req := v.request(zs[0])
				if len(zs) > 1 && attached%2 == 0 {
					req = v.request(zs[0], zs[1])
				}
				req.Running = tc.running
				rep := reap(t, c, req)
				if rep.Attached {
					attached++
				}
				reaped += rep.Count(Reaped)
				for _, r := range rep.Results {
					if r.Outcome != Left && len(zs) > 1 { // keep one: it is asked for again in vain
						zs = zs[1:]
					}
				}
				if len(zs) == 1 {
					break
				}
			}
			v.poke()
			var tries, passed int
			line := v.expect("done")
			if _, err := fmt.Sscanf(line, "tries %d passed %d", &tries, &passed); err != nil {
				t.Fatal(err)
			}
			left := len(v.children(orphanCode))
			t.Logf("%d attaches, %d of %d zombies reaped, %d forbidden calls tried", attached, n-left, n, tries)
			if passed != 0 || tries == 0 {
				t.Errorf("%d of %d forbidden calls succeeded", passed, tries)
			}
			if attached < 200 || n-left < enough {
				t.Errorf("only %d attaches and %d reaped: the test has shown little", attached, n-left)
			}
		})
	}
}

// TestSeccompKill: the filter kills whoever calls waitid.
func TestSeccompKill(t *testing.T) {
	const n = 20
	v := startVictim(t, "seccomp-kill", fmt.Sprint(n))
	v.expect("ready")
	zs := v.orphans(n)
	v.parked("poll")
	rep := reap(t, newClient(t), v.request(zs...))
	if rep.Count(Reaped) != n {
		t.Errorf("report %+v", rep)
	}
	v.poke()
	if got := v.expect("woken"); got != "interrupted 0" {
		t.Errorf("poll: %s", got)
	}
}

// TestDeclines has one row per state in which PID 1 must not be touched, or at least not be made to wait.
func TestDeclines(t *testing.T) {
	tests := []struct {
		name    string
		args    []string
		prepare func(t *testing.T, v *victim)
		zombie  func(z Zombie) Zombie
		want    Reason // of the request
		zombies Reason // of the zombie
		outcome Outcome
		touched bool // may be attached
		verify  func(t *testing.T, v *victim)
	}{
		{
			name: "SIGCHLD is blocked and pending", args: []string{"sigchld-pending"},
			want: ReasonSigchldPending, outcome: Left, zombies: ReasonDeclined,
		},
		{
			name: "a thread waits for a group", args: []string{"wait-any"},
			outcome: Refused, zombies: ReasonWaiting,
		},
		{
			name: "blocked in read", args: []string{"read"},
			want: ReasonUnsafeSyscall, outcome: Left, zombies: ReasonDeclined,
			verify: func(t *testing.T, v *victim) { v.poke(); v.expect("woken") },
		},
		{
			name: "running", args: []string{"spin"},
			want: ReasonBusy, outcome: Left, zombies: ReasonDeclined,
		},
		{
			name: "vfork", args: []string{"vfork"},
			prepare: func(t *testing.T, v *victim) {
				eventually(t, "state D", func() bool { return v.state() == procfs.StateDiskSleep })
			},
			want: ReasonUnsafeSyscall, outcome: Left, zombies: ReasonDeclined,
			verify: func(t *testing.T, v *victim) {
				if got := v.expect("done"); got != "status 42" {
					t.Errorf("vforked child: %s", got)
				}
			},
		},
		{
			name: "stopped from outside", args: []string{"park"},
			prepare: func(t *testing.T, v *victim) {
				unix.Kill(int(v.pid), unix.SIGSTOP)
				eventually(t, "state T", func() bool { return v.state() == procfs.StateStopped })
			},
			want: ReasonStopped, outcome: Left, zombies: ReasonDeclined,
			verify: func(t *testing.T, v *victim) {
				if s := v.state(); s != procfs.StateStopped {
					t.Errorf("state %v afterwards, want T", s)
				}
				unix.Kill(int(v.pid), unix.SIGCONT)
				v.poke()
				v.expect("woken")
			},
		},
		{
			name: "a start time that is another process's", args: []string{"park"},
			zombie:  func(z Zombie) Zombie { z.StartTime--; return z },
			outcome: Vanished, zombies: ReasonVanished,
		},
		{
			name: "not a child of PID 1", args: []string{"park"},
			zombie: func(z Zombie) Zombie {
				st, _ := liveProc.Stat(procfs.HostPID(os.Getpid()))
				return Zombie{PID: st.PID, StartTime: st.StartTime, NSPID: z.NSPID}
			},
			outcome: Refused, zombies: ReasonWrongParent,
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			v := startVictim(t, tc.args...)
			v.expect("ready")
			z := v.orphans(1)[0]
			if tc.prepare != nil {
				tc.prepare(t, v)
			} else if tc.want != ReasonBusy {
				v.parked("")
			}
			ask := z
			if tc.zombie != nil {
				ask = tc.zombie(z)
			}
			rep := reap(t, newClient(t), v.request(ask))
			if rep.Attached {
				t.Errorf("attached: %+v", rep)
			}
			if rep.Reason != tc.want || rep.Results[0].Outcome != tc.outcome || rep.Results[0].Reason != tc.zombies {
				t.Errorf("report %+v, want reason %q, %s %q", rep, tc.want, tc.outcome, tc.zombies)
			}
			if tc.want == ReasonBusy && rep.Results[0].NSPID != 0 {
				t.Error("the zombie was looked at for nothing")
			}
			if tc.verify != nil {
				tc.verify(t, v)
			}
			if zs := v.children(orphanCode); len(zs) != 1 {
				t.Errorf("%d orphans afterwards, want 1", len(zs))
			}
		})
	}
}

// TestAfterVfork: the same victim can be served as soon as its child lets it go.
func TestAfterVfork(t *testing.T) {
	v := startVictim(t, "vfork")
	v.expect("ready")
	zs := v.orphans(1)
	v.expect("done")
	v.parked("pause")
	if rep := reap(t, newClient(t), v.request(zs...)); rep.Count(Reaped) != 1 {
		t.Errorf("report %+v", rep)
	}
}

// TestTimeout attaches to a thread that cannot stop, past the checks that would have declined it.
func TestTimeout(t *testing.T) {
	v := startVictim(t, "vfork")
	v.expect("ready")
	v.orphans(1)
	eventually(t, "state D", func() bool { return v.state() == procfs.StateDiskSleep })
	began := time.Now()
	rep := helperAttach(t, helperOrder{Request: v.request(Zombie{PID: 1, NSPID: 1}), Blind: true})
	if rep.Reason != ReasonTimeout || !rep.Attached {
		t.Errorf("report %+v, want %s", rep, ReasonTimeout)
	}
	if took := time.Since(began); took > testutil.Slow(10*stopWait) {
		t.Errorf("given up after %v", took)
	}
	if got := v.expect("done"); got != "status 42" {
		t.Errorf("vforked child: %s", got)
	}
}

func TestLeaderDead(t *testing.T) {
	const n = 5
	v := startVictim(t, "leader-dead", fmt.Sprint(n))
	v.expect("ready")
	eventually(t, "the leader's end", func() bool { return v.state() == procfs.StateZombie })
	zs := v.orphans(n)
	v.parked("poll")
	rep := reap(t, newClient(t), v.request(zs...))
	if rep.Count(Reaped) != n {
		t.Errorf("report %+v", rep)
	}
	if rep.TID == v.pid {
		t.Errorf("traced the dead leader")
	}
	v.poke()
	v.expect("woken")
}

// TestVanished asks for zombies that are not there any more, or reaped between check and attach.
func TestVanished(t *testing.T) {
	v := startVictim(t, "park", "3")
	v.expect("ready")
	zs := v.orphans(3)
	v.parked("poll")
	c := newClient(t)
	if rep := reap(t, c, v.request(zs[1])); rep.Count(Reaped) != 1 {
		t.Fatalf("report %+v", rep)
	}
	v.parked("poll")
	rep := reap(t, c, v.request(zs...))
	if rep.Count(Reaped) != 2 || rep.Results[1].Outcome != Vanished {
		t.Errorf("report %+v", rep)
	}
	v.parked("poll")
	rep = reap(t, c, v.request(zs...))
	if rep.Attached || rep.Count(Vanished) != 3 {
		t.Errorf("all gone: %+v", rep)
	}
	gone := v.request(zs...)
	gone.StartTime++
	if rep = reap(t, c, gone); rep.Attached || rep.Reason != ReasonVanished || rep.Count(Vanished) != 3 {
		t.Errorf("another PID 1: %+v", rep)
	}
	v.poke()
	if got := v.expect("woken"); got != "interrupted 0" {
		t.Errorf("poll: %s", got)
	}
}

// TestNotAChild makes PID 1 call waitid for numbers that it has no child of, and for a child that lives: /proc is made to
// say otherwise.
func TestNotAChild(t *testing.T) {
	v := startVictim(t, "parked", "poll", "1", "0")
	ids := v.expect("ready")
	var helper, own int
	if _, err := fmt.Sscanf(ids, "helper %d own %d", &helper, &own); err != nil {
		t.Fatalf("the victim said %q: %v", ids, err)
	}
	z := v.orphans(1)[0]
	v.parked("poll")
	for _, tc := range []struct {
		name  string
		nspid int
		want  Reason
	}{
		{"no such child", 4000000, ReasonNotAChild},
		{"alive", helper, ReasonNotZombie},
	} {
		rep := helperAttach(t, helperOrder{Request: v.request(z), NSPID: procfs.NSPID(tc.nspid)})
		if rep.Results[0].Outcome != Refused || rep.Results[0].Reason != tc.want || rep.Reason != "" {
			t.Errorf("%s: %+v", tc.name, rep)
		}
	}
	v.poke()
	if line := v.expect("done"); strings.Contains(line, "bad") || !strings.HasPrefix(line, "ret 1 ") {
		t.Errorf("PID 1 noticed: %s", line)
	}
}

// TestStopFlood: SIGSTOP from inside is nothing to a namespace's init, and must not become something because it is traced.
func TestStopFlood(t *testing.T) {
	const n = 400
	v := startVictim(t, "stop-flood", fmt.Sprint(n))
	v.expect("ready")
	zs := v.orphans(n)
	c := newClient(t)
	attached, reaped := 0, 0
	why := map[Reason]int{}
	deadline := time.Now().Add(patience)
	for attached < 300 && len(zs) > 0 && time.Now().Before(deadline) {
		rep := reap(t, c, v.request(zs[0]))
		if rep.Attached {
			attached++
		}
		why[rep.Reason]++
		if rep.Results[0].Outcome == Reaped {
			reaped++
			zs = zs[1:]
		}
		// It may take a moment to be woken, but it must not stay stopped.
		eventually(t, "PID 1 goes on", func() bool { return v.state() != procfs.StateStopped })
	}
	t.Logf("%d attaches, %d reaped, reasons %v", attached, reaped, why)
	// How often it gets through depends on how fast the flood is on this machine.
	if attached < 300 || reaped == 0 {
		t.Errorf("%d attaches, %d zombies reaped", attached, reaped)
	}
	v.poke()
	v.expect("woken")
}

// TestChldFlood: ignored signals are shown to a tracer; they must not make it give up for ever.
func TestChldFlood(t *testing.T) {
	const n = 100
	v := startVictim(t, "chld-flood", fmt.Sprint(n))
	v.expect("ready")
	attaches, longest := reapAll(t, newClient(t), v, v.orphans(n))
	t.Logf("%d zombies in %d attaches, longest stop %v", n, attaches, longest)
	v.poke()
	if got := v.expect("woken"); got != "interrupted 0" {
		t.Errorf("poll: %s", got)
	}
}

// TestStopFromOutside: a SIGSTOP of the host's administrator that comes in the middle stays in force.
func TestStopFromOutside(t *testing.T) {
	const rounds = 30
	v := startVictim(t, "park", fmt.Sprint(rounds*10))
	v.expect("ready")
	zs := v.orphans(rounds * 10)
	c := newClient(t)
	undone := 0
	for range rounds {
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			unix.Kill(int(v.pid), unix.SIGSTOP)
		}()
		rep := reap(t, c, v.request(zs[:10]...))
		<-sent
		if rep.UndidStop { // it came right at the detach: once more
			undone++
			unix.Kill(int(v.pid), unix.SIGSTOP)
		}
		eventually(t, "PID 1 stops", func() bool { return v.state() == procfs.StateStopped })
		unix.Kill(int(v.pid), unix.SIGCONT)
		eventually(t, "PID 1 goes on", func() bool { return v.state() == procfs.StateSleeping })
		zs = v.children(orphanCode)
		if len(zs) < 10 {
			break
		}
	}
	if undone > rounds/10 {
		t.Errorf("%d of %d stops taken back", undone, rounds)
	}
}

// tracedZombie waits for a zombie of PID 1 that has a tracer.
func tracedZombie(t *testing.T, v *victim) (z Zombie) {
	t.Helper()
	eventually(t, "a traced zombie", func() bool {
		kids, _ := liveProc.ThreadChildren(v.pid, v.pid)
		for _, pid := range kids {
			st, err := liveProc.Status(pid)
			if err == nil && st.State == procfs.StateZombie && st.TracerPid != 0 {
				stat, _ := liveProc.Stat(pid)
				z = Zombie{PID: pid, StartTime: stat.StartTime, NSPID: st.NSpid[len(st.NSpid)-1]}
				return true
			}
		}
		return false
	})
	return z
}

// A zombie with a tracer is left to that, also where PID 1 itself is it (a debugger as PID 1), which waitid would not tell from a parent.
func TestZombieTraced(t *testing.T) {
	for _, tc := range []struct {
		name, itself string
		id, probe    bool
	}{
		{"by another process", "0", false, false}, {"by PID 1 itself", "1", false, false},
		{"by another process, with an ID", "0", true, false}, {"by PID 1 itself, with an ID", "1", true, false},
		{"by another process, PID 1 is asked", "0", false, true}, {"by PID 1 itself, which is asked", "1", false, true},
		{"by another process, with an ID, PID 1 is asked", "0", true, true}, {"by PID 1 itself, with an ID, which is asked", "1", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := startVictim(t, "zombie-traced", tc.itself)
			v.expect("ready")
			v.parked("poll")
			z := tracedZombie(t, v)
			orphan := v.orphans(1)[0]
			req := v.request(z, orphan)
			if tc.id || tc.probe {
				requireIDs(t)
			}
			if tc.id {
				req.Zombies = identified(t, req.Zombies)
			}
			req.Probe = tc.probe
			alone := req
			alone.Zombies = req.Zombies[:1]
			// Its status is read before an attach, if it is not left to what PID 1 says in one.
			rep := reap(t, newClient(t), alone)
			if rep.Attached != (tc.probe && asks) || rep.Results[0].Outcome != Refused || rep.Results[0].Reason != ReasonZombieTraced {
				t.Errorf("report %+v", rep)
			}
			rep = reap(t, newClient(t), req)
			if r := rep.Results; r[0].Outcome != Refused || r[0].Reason != ReasonZombieTraced || r[1].Outcome != Reaped {
				t.Errorf("report %+v", rep)
			}
			v.poke()
			v.expect("woken")
			if tc.itself == "1" {
				if got, want := v.expect("its tracer"), "is told of signal 9"; got != want {
					t.Errorf("its tracer %s, want %q", got, want)
				}
			}
		})
	}
}

func requireIDs(t testing.TB) {
	t.Helper()
	if !pidfd.Supported() {
		unable(t, "the kernel has no PIDFD_GET_INFO (Linux 6.13)")
	}
}

// asked is a request for zombies by their IDs, all of them dead at seen, for which PID 1 may be asked whether it traces anybody.
func (v *victim) asked(seen time.Time, zs ...Zombie) Request {
	v.t.Helper()
	req := v.request(identified(v.t, zs)...)
	req.Age, req.Probe = time.Since(seen), true
	return req
}

// TestAskedFirst: a PID 1 that has said that it traces nobody is believed for those who were dead before. Without that, the first of these
// would be refused before an attach; if it were believed for more, the last would be taken from its tracer.
func TestAskedFirst(t *testing.T) {
	requireIDs(t)
	if !asks {
		t.Skipf("PID 1 is not asked on %s", goarch)
	}
	t.Run("another process is the tracer", func(t *testing.T) {
		v := startVictim(t, "zombie-traced", "0")
		v.expect("ready")
		v.parked("poll")
		traced, orphan := tracedZombie(t, v), v.orphans(1)
		seen := time.Now()
		c := newClient(t)
		if rep := reap(t, c, v.asked(seen, orphan...)); rep.Count(Reaped) != 1 {
			t.Fatalf("report %+v", rep)
		}
		rep := reap(t, c, v.asked(seen, traced))
		if !rep.Attached || rep.Results[0].Outcome != Refused || rep.Results[0].Reason != ReasonZombieTraced {
			t.Errorf("report %+v", rep)
		}
		v.poke()
		v.expect("woken")
	})
	t.Run("PID 1 becomes one", func(t *testing.T) {
		v := startVictim(t, "trace-later", "6")
		v.expect("ready")
		v.parked("poll")
		zs, seen := v.orphans(6), time.Now()
		c := newClient(t)
		for _, some := range [][]Zombie{zs[:3], zs[3:5]} {
			if rep := reap(t, c, v.asked(seen, some...)); rep.Count(Reaped) != len(some) {
				t.Fatalf("report %+v", rep)
			}
		}
		v.poke()
		v.expect("woken")
		v.expect("ready")
		v.parked("poll")
		traced := tracedZombie(t, v)
		rep := reap(t, c, v.asked(time.Now(), traced, zs[5]))
		if r := rep.Results; r[0].Outcome != Refused || r[0].Reason != ReasonZombieTraced || r[1].Outcome != Reaped {
			t.Errorf("report %+v", rep)
		}
		again := func() bool {
			rep := reap(t, c, v.asked(time.Now(), traced))
			if rep.Results[0].Outcome != Refused || rep.Results[0].Reason != ReasonZombieTraced {
				t.Errorf("report %+v", rep)
			}
			return rep.Attached
		}
		eventually(t, "it is asked once more", again)
		if again() {
			t.Error("a PID 1 that traces somebody is asked again and again")
		}
		v.poke()
		v.expect("woken")
		if got, want := v.expect("its tracer"), "is told of signal 9"; got != want {
			t.Errorf("its tracer %s, want %q", got, want)
		}
	})
}

func TestTraced(t *testing.T) {
	v := startVictim(t, "park")
	v.expect("ready")
	zs := v.orphans(1)
	v.parked("poll")
	release := helperSeize(t, v.pid)
	rep := reap(t, newClient(t), v.request(zs...))
	if rep.Attached || rep.Reason != ReasonTraced {
		t.Errorf("report %+v", rep)
	}
	release()
	eventually(t, "no tracer", func() bool {
		st, err := liveProc.Status(v.pid)
		return err == nil && st.TracerPid == 0
	})
	if rep := reap(t, newClient(t), v.request(zs...)); rep.Count(Reaped) != 1 {
		t.Errorf("once it is not traced any more: %+v", rep)
	}
}

// TestSignalStorm: no signal with a handler is lost, doubled or put out of order, and PID 1 survives.
func TestSignalStorm(t *testing.T) {
	const n = 300
	v := startVictim(t, "storm", fmt.Sprint(n))
	var rt int
	if _, err := fmt.Sscanf(v.expect("ready"), "rt %d", &rt); err != nil {
		t.Fatal(err)
	}
	zs := v.orphans(n)
	stop := make(chan struct{})
	sent := make(chan int)
	go func() {
		count := 0
		for {
			select {
			case <-stop:
				sent <- count
				return
			default:
			}
			unix.Kill(int(v.pid), unix.SIGUSR1)
			if queueSignal(int(v.pid), rt, count) == nil {
				count++
			}
			time.Sleep(50 * time.Microsecond)
		}
	}()
	c := newClient(t)
	why := map[Reason]int{}
	attached, reaped := 0, 0
	for i := 0; i < 400 && len(zs) > 0; i++ {
		rep := reap(t, c, v.request(zs[0]))
		why[rep.Reason]++
		if rep.Attached {
			attached++
		}
		if rep.Results[0].Outcome == Reaped {
			reaped++
			zs = zs[1:]
		}
	}
	close(stop)
	count := <-sent
	// What is queued is handled before poll looks at its file again.
	eventually(t, "no signal pending", func() bool {
		st, err := liveProc.Status(v.pid)
		return err == nil && st.ShdPnd|st.SigPnd == 0
	})
	v.poke()
	var usr1, rts, disorder, bad int
	line := v.expect("done")
	if _, err := fmt.Sscanf(line, "usr1 %d rt %d disorder %d bad %d", &usr1, &rts, &disorder, &bad); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d attaches, %d reaped, reasons %v; %d real-time signals", attached, reaped, why, count)
	if rts != count || disorder != 0 || bad != 0 || usr1 == 0 {
		t.Errorf("PID 1 counted %s, sent were %d", line, count)
	}
	if attached == 0 {
		t.Error("no attach: the test has shown nothing")
	}
}

// TestDeath: PID 1 may be killed, or replace itself, at any moment.
func TestDeath(t *testing.T) {
	t.Run("killed", func(t *testing.T) {
		c := newClient(t)
		for i := range 20 {
			v := startVictim(t, "park", "60")
			v.expect("ready")
			zs := v.orphans(60)
			v.parked("poll")
			go func() {
				// Somewhere in the middle, a little later each time.
				time.Sleep(time.Duration(i) * 300 * time.Microsecond)
				unix.Kill(int(v.pid), unix.SIGKILL)
			}()
			rep := reap(t, c, v.request(zs...))
			if rep.Reason != "" && rep.Reason != ReasonVanished && rep.Reason != ReasonExiting && rep.Reason != ReasonBusy {
				t.Errorf("report: %s %s", rep.Reason, rep.Detail)
			}
			// The worker lives on: its parent must learn of it nevertheless.
			select {
			case <-v.done:
			case <-time.After(DefaultIdle / 2):
				t.Fatal("the death of PID 1 did not reach its parent")
			}
			if !v.ws.Signaled() || v.ws.Signal() != syscall.SIGKILL {
				t.Errorf("PID 1 ended with %#x, want SIGKILL", v.ws)
			}
		}
	})
	t.Run("execve by another thread", func(t *testing.T) {
		v := startVictim(t, "exec-loop", "600")
		v.expect("ready")
		zs := v.orphans(600)
		c := newClient(t)
		why := map[Reason]int{}
		const enough = 50
		attached, reaped := 0, 0
		deadline := time.Now().Add(patience)
		for i := 0; (i < 300 || attached < enough && time.Now().Before(deadline)) && len(zs) > 0; i++ {
			// A few at a time, or the first attaches would leave nothing to do for the others.
			ask := zs[:min(2, len(zs))]
			rep := reap(t, c, v.request(ask...))
			if rep.Reason == ReasonTraced {
				t.Errorf("an earlier attach has not let go: %s", rep.Detail)
			}
			why[rep.Reason]++
			if rep.Attached {
				attached++
			}
			reaped += rep.Count(Reaped)
			if n := rep.Count(Vanished); n > 0 {
				t.Errorf("%d zombies vanished by themselves: %+v", n, rep)
			}
			for _, r := range rep.Results {
				if r.Outcome == Reaped {
					zs = slices.DeleteFunc(zs, func(z Zombie) bool { return z.PID == r.PID })
				}
			}
			select {
			case <-v.done:
				t.Fatalf("PID 1 ended with %#x", v.ws)
			default:
			}
		}
		t.Logf("%d attaches, reasons %v, %d reaped", attached, why, reaped)
		eventually(t, "all the others are still there", func() bool { return len(v.children(orphanCode)) == len(zs) })
		if attached < enough {
			t.Error("too few attaches: the test has shown nothing")
		}
	})
}

// Test32Bit: a 32-bit waitpid has the number of the 64-bit poll, so that only the registers tell.
func Test32Bit(t *testing.T) {
	requireKernel(t)
	build()
	bin := filepath.Join(built.given, "victim32")
	if built.given == "" {
		bin = filepath.Join(t.TempDir(), "victim32")
		out, err := exec.Command("gcc", "-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector",
			"-O1", "-Wall", "-o", bin, "testdata/victim32.c").CombinedOutput()
		if err != nil {
			unable(t, "cannot compile for 32 bits: %v: %s", err, out)
		}
	}
	probe := exec.Command(bin)
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID} // its children end with it
	if err := probe.Start(); errors.Is(err, unix.ENOEXEC) {
		t.Skip("this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION)")
	} else if err == nil {
		probe.Process.Kill()
		_ = probe.Wait()
	}
	v := startPID1(t, bin)
	v.expect("ready")
	zs := v.orphans(1)
	v.parked("poll")
	c := newClient(t)
	for range 3 {
		var rep Report
		eventually(t, "its wait is found", func() bool { // a child's end wakes it up
			rep = reap(t, c, v.request(zs...))
			return rep.Reason != ReasonBusy
		})
		if rep.Count(Left) != 1 || rep.Reason != ReasonNotNative {
			t.Errorf("report %+v, want %s", rep, ReasonNotNative)
		}
	}
}

// unifiedFreezer moves PID 1 to a cgroup of version 2, and returns what freezes ("1") and thaws ("0") it.
func unifiedFreezer(t *testing.T, v *victim) func(state string) {
	t.Helper()
	dir := ""
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			dir = filepath.Join(root, fmt.Sprintf("reaper-tracer-test-%d-%d", os.Getpid(), v.pid))
		}
	}
	if dir == "" {
		t.Skip("no unified cgroup hierarchy is mounted")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		unable(t, "cannot make a cgroup: %v", err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			unable(t, "%v", err)
		}
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("0"), 0)
		unix.Kill(int(v.pid), unix.SIGKILL)
		eventually(t, "an empty cgroup", func() bool { return os.Remove(dir) == nil })
	})
	write("cgroup.procs", fmt.Sprint(v.pid))
	return func(state string) {
		t.Helper()
		write("cgroup.freeze", state)
		eventually(t, "frozen: "+state, func() bool {
			data, _ := os.ReadFile(filepath.Join(dir, "cgroup.events"))
			return strings.Contains(string(data), "frozen "+state)
		})
	}
}

// TestFrozen: a thread in a frozen cgroup makes event stops but never comes to its system call.
func TestFrozen(t *testing.T) {
	v := startVictim(t, "park")
	v.expect("ready")
	zs := v.orphans(1)
	v.parked("poll")
	freeze := unifiedFreezer(t, v)
	freeze("1")
	rep := reap(t, newClient(t), v.request(zs...))
	if rep.Attached || rep.Reason != ReasonFrozen {
		t.Errorf("report %+v, want %s", rep, ReasonFrozen)
	}
	// Frozen after the look: the attach finds out by itself and lets go.
	rep = helperAttach(t, helperOrder{Request: v.request(zs...), Blind: true})
	if !rep.Attached || rep.Reason != ReasonFrozen && rep.Reason != ReasonBusy {
		t.Errorf("blind: %+v", rep)
	}
	t.Logf("blind: %s %s", rep.Reason, rep.Detail)
	freeze("0")
	v.poke()
	if got := v.expect("woken"); got != "interrupted 0" {
		t.Errorf("poll: %s", got)
	}
}

// TestBudget: an attach ends with its budget, whatever is left, and reaps one zombie in any case.
func TestBudget(t *testing.T) {
	const budget = 2 * time.Millisecond
	n := 1000 / int(testutil.Slow(1))
	v := startVictim(t, "parked", "poll", fmt.Sprint(n), "0")
	v.expect("ready")
	zs := v.orphans(n)
	v.parked("poll")
	c := newClient(t)
	req := v.request(zs...)
	req.MaxStop = 1
	if rep := reap(t, c, req); rep.Count(Reaped) != 1 {
		t.Errorf("with the least budget: %d reaped, want 1", rep.Count(Reaped))
	}
	var stops []time.Duration // of those that left some
	for zs = v.children(orphanCode); len(zs) > 0; zs = v.children(orphanCode) {
		v.parked("poll")
		req := v.request(zs...)
		req.MaxStop = budget
		rep := reap(t, c, req)
		for _, r := range rep.Results {
			if r.Outcome == Left && rep.Reason == "" && r.Reason != ReasonBudget {
				t.Fatalf("left for %q", r.Reason)
			}
		}
		if rep.Reason == "" && rep.Count(Reaped) == 0 {
			t.Fatalf("nothing was reaped: %+v", rep)
		}
		if rep.Reason == "" && rep.Count(Left) > 0 {
			stops = append(stops, rep.Stopped)
		}
	}
	slices.Sort(stops)
	t.Logf("stopped for %v", stops)
	// The machine may keep an attach from its end now and then.
	if m := len(stops) / 2; len(stops) < 3 || stops[0] < budget/4 || stops[m] > budget+testutil.Slow(budget/4) {
		t.Errorf("of a budget of %v attaches used %v", budget, stops)
	}
}

// TestRest: PID 1 is left alone for the time that a request names, if it has a use for it.
func TestRest(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		v := startVictim(t, "park", "1")
		v.expect("ready")
		const rest = 300 * time.Millisecond
		zs := v.orphans(1)
		v.parked("poll")
		took, rep := rested(t, newClient(t), v, rest, zs[0])
		if took < time.Millisecond || took > rest/2 || rep.Count(Reaped) != 1 {
			t.Errorf("%+v after %v", rep, took)
		}
		v.poke()
		v.expect("woken")
	})
	t.Run("restless", func(t *testing.T) {
		const rest, tries = 30 * time.Millisecond, 10
		v := startVictim(t, "restless", fmt.Sprint(tries))
		v.expect("ready")
		c := newClient(t)
		// The machine may keep it from running for a millisecond, by chance.
		kept := 0
		for _, z := range v.orphans(tries) {
			if took, _ := rested(t, c, v, rest, z); took >= rest {
				kept++
			}
		}
		if kept < tries/2 {
			t.Errorf("left alone for all of its rest %d of %d times", kept, tries)
		}
		v.poke()
		v.expect("woken")
	})
}

// TestSeveralAttaches: a request that allows several attaches gets no more of them than that, each within the budget and with room between
// them, and leaves nothing open.
func TestSeveralAttaches(t *testing.T) {
	const zombies, stop = 120, 500 * time.Microsecond
	v := startVictim(t, "park", fmt.Sprint(zombies))
	v.expect("ready")
	zs := v.orphans(zombies)
	v.parked("poll")
	c := newClient(t, "-idle", "1m")
	ask(t, c)
	files := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.WorkerPID()))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	open := files()
	attaches := 0
	for _, allowed := range []int{0, 3, 5} {
		if len(zs) == 0 {
			break
		}
		req := v.request(zs...)
		req.MaxStop, req.Attaches = stop, allowed
		began := time.Now()
		rep := reap(t, c, req)
		took := time.Since(began)
		if rep.Attaches < 1 || rep.Attaches > max(1, allowed) {
			t.Errorf("%d attaches of %d allowed", rep.Attaches, allowed)
		}
		// All but the last take what they may, and PID 1 has no use for more than minRest.
		if room := time.Duration(rep.Attaches-2) * min(minRest, RestAfter(stop/2)); took < room || took > maxRun+testutil.Slow(time.Second) {
			t.Errorf("%d attaches took %v", rep.Attaches, took)
		}
		// The last zombie of an attach may take its time on a busy machine.
		if rep.Stopped > stop+testutil.Slow(50*time.Millisecond) {
			t.Errorf("stopped for %v", rep.Stopped)
		}
		attaches += rep.Attaches
		if n := files(); n != open {
			t.Errorf("the worker has %d files open, and had %d", n, open)
		}
		var left []Zombie
		for i, r := range rep.Results {
			switch r.Outcome {
			case Reaped:
			case Left:
				if rep.Reason == "" && r.Reason != ReasonBudget {
					t.Errorf("left for %s", r.Reason)
				}
				left = append(left, zs[i])
			default:
				t.Errorf("%+v", r)
			}
		}
		t.Logf("allowed %d: %d attaches in %v, longest stop %v, %d of %d reaped, %q", allowed, rep.Attaches, took, rep.Stopped,
			len(zs)-len(left), len(zs), rep.Reason)
		zs = left
	}
	if attaches < 4 {
		t.Errorf("%d attaches for %d zombies", attaches, zombies)
	}
	reapAll(t, c, v, zs)
	v.poke()
	v.expect("woken")
}

// A signal for PID 1 ends one attach and not the request: PID 1 has got it, and has the rest for what it does then.
func TestSignalBetweenAttaches(t *testing.T) {
	v := startCrash(t, "poll", 0)
	marker := filepath.Join(t.TempDir(), "told")
	c := hookedClient("swapped", "1", deedTell, marker)
	defer c.Close()
	req := v.request(v.take(crashBatch)...)
	req.Attaches = 4
	rep := reap(t, c, req)
	if !done(marker) {
		t.Fatalf("nothing was reaped: %+v", rep)
	}
	if rep.Attaches < 2 || rep.Count(Reaped) < 2 {
		t.Errorf("%d attaches, %d reaped, %q", rep.Attaches, rep.Count(Reaped), rep.Reason)
	}
	v.usr1++
	if got, want := v.expect("back"), v.well(); got != want {
		t.Errorf("PID 1 says %s, want %s", got, want)
	}
	v.check()
}

// rested has a zombie reaped after a rest, and returns how long that took.
func rested(t *testing.T, c *Client, v *victim, rest time.Duration, z Zombie) (time.Duration, Report) {
	t.Helper()
	reap(t, c, v.request(Zombie{PID: z.PID + 1000, StartTime: 1, NSPID: 1})) // starts the worker
	req := v.request(z)
	req.Rest = rest
	began := time.Now()
	rep := reap(t, c, req)
	return time.Since(began), rep
}

// TestStopsWakeNobody: the worker is told of a stop by the wait that it sits in, and by nothing that would have another of its threads run.
func TestStopsWakeNobody(t *testing.T) {
	const n = 200
	v := startVictim(t, "park", fmt.Sprint(1+n))
	v.expect("ready")
	zs := v.orphans(1 + n)
	v.parked("poll")
	c := newClient(t)
	reap(t, c, v.request(zs[0])) // starts it
	switches := func() (sum int) {
		worker := procfs.HostPID(c.WorkerPID())
		tids, err := liveProc.Threads(worker)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if tid != worker {
				sum += voluntarySwitches(t, worker, tid)
			}
		}
		return sum
	}
	before, reaped, began := switches(), 0, time.Now()
	for deadline := time.Now().Add(patience); reaped < n && time.Now().Before(deadline); {
		v.parked("poll")
		reaped += reap(t, c, v.request(zs[1+reaped:]...)).Count(Reaped)
	}
	// Each zombie takes two stops. The runtime's own threads have something to do now and then, and sysmon looks after each nap.
	took := time.Since(began)
	if woken := switches() - before; reaped != n || woken > n/2+int(took/otherSlack) {
		t.Errorf("%d of %d reaped in %v; other threads were woken %d times", reaped, n, took, woken)
	}
}

// voluntarySwitches is how often a thread has gone to sleep (proc_pid_status(5)).
func voluntarySwitches(t *testing.T, pid, tid procfs.HostPID) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
	if err != nil {
		return 0 // it has ended
	}
	_, rest, _ := strings.Cut(string(data), "\nvoluntary_ctxt_switches:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// queueSignal is sigqueue(3) with an int.
func queueSignal(pid, sig, value int) error {
	var info [siginfoSize]byte
	put := func(off int, v int32) { *(*int32)(unsafe.Pointer(&info[off])) = v }
	put(0, int32(sig))
	put(8, -1) // SI_QUEUE
	put(16, int32(os.Getpid()))
	put(24, int32(value))
	_, _, errno := unix.RawSyscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(pid), uintptr(sig), uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return errno
	}
	return nil
}

func BenchmarkReap(b *testing.B) {
	for _, call := range []string{"futex", "poll"} {
		for _, batch := range []int{1, 50} {
			b.Run(fmt.Sprintf("%s/%d", call, batch), func(b *testing.B) {
				c := newClient(b)
				var stopped, longest time.Duration
				reaped, attaches := 0, 0
				var v *victim
				var zs []Zombie
				for b.Loop() {
					if len(zs) < batch {
						b.StopTimer()
						v = startVictim(b, "parked", call, "500", "0")
						v.expect("ready")
						zs = v.orphans(500)
						v.parked("")
						b.StartTimer()
					}
					rep := reap(b, c, v.request(zs[:batch]...))
					zs = zs[batch:]
					reaped += rep.Count(Reaped)
					stopped += rep.Stopped
					longest = max(longest, rep.Stopped)
					attaches++
				}
				if reaped > 0 {
					b.ReportMetric(float64(stopped.Microseconds())/float64(reaped), "µs-stopped/zombie")
					b.ReportMetric(float64(stopped.Microseconds())/float64(attaches), "µs-stopped/attach")
					b.ReportMetric(float64(longest.Microseconds()), "µs-longest-stop")
				}
			})
		}
	}
}
