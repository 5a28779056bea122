package tracer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/internal/uname"
	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Processes that are this test binary, and their arguments.
const (
	hookedWorker  = "reaper-tracer-hooked"  // STEP COUNT DEED MARKER OPTION...
	hookedRecover = "reaper-tracer-recover" // STEP MARKER
	clientProcess = "reaper-tracer-client"  // a Client of its own: WORKER-ARGS...
	lesserWorker  = "reaper-tracer-lesser"  // WORKER USER CAPABILITY... -- WORKER-ARGS...: becomes a worker with fewer rights
)

// deeds of a hooked worker, once the step has come for the given time.
const (
	deedDie    = "die"
	deedUSR1   = "usr1"   // a signal for the thread, then die
	deedStop   = "stop"   // a SIGSTOP from outside for the process, then die
	deedStarve = "starve" // leave the thread next to no CPU time, then die
	deedHold   = "hold"   // go on after a while
	deedCont   = "cont"   // a SIGCONT from outside for the process, then go on
	deedTell   = "tell"   // a signal for the thread, then go on
	deedEnd    = "end"    // end PID 1, then die
)

const holdFor = 300 * time.Millisecond

// hookedMain is main for them; it returns false for an ordinary run of the tests.
func hookedMain() bool {
	if len(os.Args) < 2 {
		return false
	}
	args := os.Args[2:]
	// What comes last is "-journal", "3".
	journal := func() *Journal {
		j, err := OpenJournal(3)
		if err != nil {
			panic(err)
		}
		return j
	}
	var err error
	switch os.Args[1] {
	case hookedWorker:
		runtime.LockOSThread()
		Harden()
		opts := archOptions(journal())
		step, deed, marker := args[0], args[2], args[3]
		count, _ := strconv.Atoi(args[1])
		for _, o := range args[4:] {
			switch o {
			case "unpinned":
				opts.unpinned = true
			case "exitstop":
				opts.exitStop = true
			}
		}
		opts.hook = func(s string) {
			if s != step {
				return
			}
			if count--; count == 0 && once(marker) {
				do(deed, opts.journal)
			}
		}
		err = serve(os.Stdin, os.Stdout, time.Minute, opts)
	case hookedRecover:
		runtime.LockOSThread()
		Harden()
		opts := archOptions(nil)
		opts.hook = func(s string) {
			if s == args[0] && once(args[1]) {
				unix.Kill(os.Getpid(), unix.SIGKILL)
			}
		}
		err = mend(journal(), opts)
	case clientProcess:
		var req Request
		if err = json.NewDecoder(os.Stdin).Decode(&req); err == nil {
			c := hookedClient(args...)
			fmt.Println("asking")
			_, err = c.Reap(context.Background(), req)
		}
	case lesserWorker:
		err = becomeLesser(args)
	default:
		return false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1], err)
		unix.Exit(1)
	}
	unix.Exit(0) // not os.Exit, before which the race detector sleeps for a second
	return true
}

// once reports whether it is the first to be called with that file.
func once(marker string) bool {
	f, err := os.OpenFile(marker, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// done reports whether once has been called with that file.
func done(marker string) bool {
	_, err := os.Stat(marker)
	return err == nil
}

// moreDeeds are those of one architecture.
var moreDeeds = map[string]func(*Journal){}

func do(deed string, j *Journal) {
	if f := moreDeeds[deed]; f != nil {
		f(j)
		return
	}
	pid, tid := int(j.page.pid), int(j.page.tid)
	switch deed {
	case deedHold:
		time.Sleep(holdFor)
		return
	case deedCont:
		unix.Kill(pid, unix.SIGCONT)
		return
	case deedTell:
		_ = unix.Tgkill(pid, tid, unix.SIGUSR1)
		return
	case deedEnd:
		unix.Kill(pid, unix.SIGKILL)
	case deedUSR1:
		_ = unix.Tgkill(pid, tid, unix.SIGUSR1)
	case deedStop:
		unix.Kill(pid, unix.SIGSTOP)
	case deedStarve:
		var first unix.CPUSet
		first.Set(0)
		_ = unix.SchedSetaffinity(tid, &first)
		_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
	}
	unix.Kill(os.Getpid(), unix.SIGKILL)
}

// hookedClient returns a client whose worker is this test binary.
func hookedClient(args ...string) *Client {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	c := NewClient(self, append([]string{hookedWorker}, args...)...)
	c.recoverArgs = []string{hookedRecover, "", ""}
	return c
}

// crashVictim is a PID 1 of crash.c.
type crashVictim struct {
	*victim
	call  string
	zs    []Zombie
	usr1  int  // sent
	conts int  // sent
	nice  int  // of its threads
	some  int  // attaches that a request allows, 0: one, with a small stop
	asks  bool // PID 1 is asked first whether it traces anybody
}

const crashBatch = 200 // BATCH of crash.c

var crashBuilt struct {
	once sync.Once
	path string
	err  error
}

func startCrash(t testing.TB, call string, siblings int) *crashVictim {
	t.Helper()
	requireKernel(t)
	build()
	crashBuilt.once.Do(func() {
		if built.given != "" {
			crashBuilt.path = filepath.Join(built.given, "crash")
			return
		}
		crashBuilt.path = filepath.Join(built.dir, "crash")
		out, err := exec.Command("gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", crashBuilt.path, "testdata/crash.c", "-lpthread").CombinedOutput()
		if err != nil {
			crashBuilt.err = fmt.Errorf("gcc: %w: %s", err, out)
		}
	})
	if crashBuilt.err != nil {
		unable(t, "cannot compile the victim: %v (install gcc and libc6-dev)", crashBuilt.err)
	}
	v := &crashVictim{victim: startPID1(t, crashBuilt.path, call, fmt.Sprint(siblings)), call: call}
	v.expect("ready")
	v.sits()
	v.nice = niceOfThread(t, v.pid)
	return v
}

// sits waits until the first thread is blocked in its call, if it ever is.
func (v *crashVictim) sits() {
	v.t.Helper()
	if v.call == crashBusy {
		return
	}
	testutil.Eventually(v.t, 20*time.Second, func() (bool, string) {
		st, err := liveProc.ThreadStatus(v.pid, v.pid)
		sc, serr := liveProc.ThreadSyscall(v.pid, v.pid)
		done := err == nil && serr == nil && st.State == procfs.StateSleeping && !sc.Running && sc.Nr >= 0 && classifyCall(sc.Nr, sc.Args).class != classUnsafe
		return done, fmt.Sprintf("PID 1 is not in its call: %+v, %+v, %v, %v", st, sc, err, serr)
	})
}

// take returns n zombies, from a new batch if there are not as many.
func (v *crashVictim) take(n int) []Zombie {
	v.t.Helper()
	v.zs = v.children(orphanCode)
	if len(v.zs) < n {
		have := len(v.zs)
		v.poke()
		v.zs = v.orphans(have + crashBatch)
		v.sits()
	}
	return v.zs[:n]
}

// check has the call return, and what PID 1 says about itself be right.
func (v *crashVictim) check() {
	v.t.Helper()
	v.quiet()
	v.sits()
	v.usr1++
	unix.Kill(int(v.pid), unix.SIGUSR1)
	tids, err := liveProc.Threads(v.pid)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, tid := range tids {
		v.ownSched(tid)
	}
	if got, want := v.expect("back"), v.well(); got != want {
		v.t.Errorf("PID 1 noticed: %s\nwant         %s", got, want)
	}
	v.sits()
}

// well is what PID 1 says of itself if all is right.
func (v *crashVictim) well() string {
	ret := rawEINTR
	if v.call == crashBusy {
		ret = 1
	}
	return fmt.Sprintf("ret %d regs ok mask ok own ok usr1 %d cont %d child nice %d resets 0", ret, v.usr1, v.conts, v.nice)
}

// ownSched fails if a thread of PID 1 has a nice value or a policy that is not its own.
func (v *crashVictim) ownSched(tid procfs.HostPID) {
	v.t.Helper()
	if n := niceOfThread(v.t, tid); n != v.nice {
		v.t.Errorf("thread %d has nice value %d, not %d", tid, n, v.nice)
	}
	if policy, err := policyOf(int(tid)); err != nil || policy != schedOther {
		v.t.Errorf("thread %d has policy %#x, %v", tid, policy, err)
	}
}

// quiet fails if the call has returned by itself.
func (v *crashVictim) quiet() {
	v.t.Helper()
	select {
	case line, ok := <-v.lines:
		if !ok {
			<-v.done
			v.t.Fatalf("PID 1 ended: %#x", v.ws)
		}
		v.t.Fatalf("its call returned by itself: %s", line)
	default:
	}
}

// reapDying has zombies reaped by a client whose worker dies, and looks at nothing but PID 1.
func (v *crashVictim) reapDying(c *Client, zs []Zombie) (Report, error) {
	ctx, cancel := context.WithTimeout(v.t.Context(), patience)
	defer cancel()
	req := v.request(zs...)
	req.Running = v.call == crashBusy
	if v.asks {
		req = withQuestion(v.t, req)
	}
	if v.some > 0 {
		req.Attaches, req.MaxStop = v.some, 300*time.Microsecond
	}
	return c.Reap(ctx, req)
}

// outlives has a worker come to a step and die of its deed, and PID 1 check itself when that has been put right.
func (v *crashVictim) outlives(step, at, deed string, mode ...string) {
	v.t.Helper()
	marker := filepath.Join(v.t.TempDir(), "died")
	c := hookedClient(append([]string{step, at, deed, marker}, mode...)...)
	defer c.Close()
	n := 3
	if v.some > 0 {
		n = 60 // more than one attach can do
	}
	rep, err := v.dieAt(c, n, marker)
	if err != nil {
		v.t.Error(err)
	}
	if err == nil && !rep.Repeated { // else what it had reaped is taken for the doing of PID 1
		v.t.Error("the report does not say that another worker made it")
	}
	if c.Recovered() == 0 {
		v.t.Error("nothing was recovered")
	}
	v.check()
}

// TestFrozenInFlight: PID 1 is frozen with a swap in flight, for longer than anybody waits. It is put right when it is thawed.
func TestFrozenInFlight(t *testing.T) {
	for _, tc := range []struct{ cgroup, step string }{
		{"v1", "entry"}, {"v1", "swapped"}, {"v1", "waited"}, {"v2", "entry"}, {"v2", "swapped"}, {"v2", "waited"},
	} {
		t.Run(tc.cgroup+"/"+tc.step, func(t *testing.T) {
			v := startCrash(t, "poll", 0)
			var freeze, thaw func()
			if tc.cgroup == "v1" {
				dir := freezer(t, v.victim)
				freeze, thaw = func() { setFreezer(t, dir, "FROZEN") }, func() { setFreezer(t, dir, "THAWED") }
			} else {
				set := unifiedFreezer(t, v.victim)
				freeze, thaw = func() { set("1") }, func() { set("0") }
			}
			marker := filepath.Join(t.TempDir(), "held")
			c := hookedClient(tc.step, "1", deedHold, marker)
			c.patience = 0
			defer c.Close()
			zs := v.take(3)
			reports := make(chan Report, 1)
			go func() {
				rep, err := v.reapDying(c, zs)
				if err != nil {
					t.Error(err)
				}
				reports <- rep
			}()
			eventually(t, "the worker is at "+tc.step, func() bool { return done(marker) })
			freeze()
			time.Sleep(holdFor + swapWait + testutil.Slow(500*time.Millisecond))
			thaw()
			t.Logf("%+v", <-reports)
			eventually(t, "nothing left to be put right", func() bool {
				st, err := liveProc.Status(v.pid)
				return err == nil && st.TracerPid == 0 && st.State == procfs.StateSleeping && st.SigBlk != allSignals&^unblockable
			})
			v.check()
		})
	}
}

// TestRecoveryKeepsTheMask: a worker that dies right after the detach leaves a PID 1 that goes on, and may have changed its mask before
// anybody looks after it.
func TestRecoveryKeepsTheMask(t *testing.T) {
	for _, tc := range []struct {
		name  string
		all   bool // it blocks all signals now, as the worker had it do
		letGo bool
		old   procfs.SignalSet
	}{
		{"another one", false, true, 1 << (unix.SIGUSR2 - 1)}, {"all blocked", true, true, 0},
		{"another one, and not let go", false, false, 1 << (unix.SIGUSR2 - 1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := startVictim(t, "spin", "1") // not asleep: looked at more closely
			v.expect("ready")
			if tc.all {
				var word string
				helperAnswer(t, helperOrder{Seize: v.pid, Naive: damageBlockAll}, &word)
			}
			before, err := liveProc.Status(v.pid)
			if err != nil {
				t.Fatal(err)
			}
			if tc.all != (before.SigBlk == allSignals&^unblockable) {
				t.Fatalf("it blocks %#x", before.SigBlk)
			}
			f, err := newJournalFile()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			j := mapped(t, f)
			defer j.Close()
			j.attached(v.pid, v.pid, v.start, v.start, true)
			j.arm(&registers{}, &registers{}, &registers{}, tc.old)
			j.pin(true)
			if tc.letGo {
				j.restored()
			}
			newClient(t).recover(j, f)
			if j.phase() != phaseIdle {
				t.Errorf("phase %d after the recovery", j.phase())
			}
			if after, err := liveProc.Status(v.pid); err != nil || after.SigBlk != before.SigBlk || after.TracerPid != 0 {
				t.Errorf("mask %#x, was %#x; traced by %d; %v", after.SigBlk, before.SigBlk, after.TracerPid, err)
			}
		})
	}
}

// dieAt has n zombies reaped, again and again until the worker has come to the step and done its deed: on a busy machine an
// attach may be declined, or end early. It returns what the last client call did.
func (v *crashVictim) dieAt(c *Client, n int, marker string) (rep Report, err error) {
	v.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		rep, err = v.reapDying(c, v.take(n))
		if done(marker) {
			return rep, err
		}
		if time.Now().After(deadline) {
			v.t.Fatalf("the worker did not come to that step: %+v, %v", rep, err)
		}
	}
}

// crashBusy is the state of a PID 1 that never sits in a call for long and is stopped in the middle of its work.
const crashBusy = "epoll-busy"

// crashCalls are the calls that the tracer accepts, with the way that they look to libc. (select(2) with a time-out is pselect6 to the kernel,
// but for where it writes back what is left.)
var crashCalls = []string{
	"futex", "futex-timeout", "futex-bitset", "poll", "poll-timeout", "ppoll", "ppoll-timeout", "wait4", "waitid", "waitid-pidfd",
	"epoll", "epoll-pwait", "epoll-timeout", "nanosleep", "clock-nanosleep", "clock-nanosleep-abs", "pause", "sigsuspend", "select", "pselect6",
	"pselect6-timeout", "epoll-pwait-timeout", "epoll-pwait2", "epoll-pwait2-timeout", crashBusy,
}

// swapSteps are the steps of attach.reap, in their order, and those of the end of an attach.
var swapSteps = []string{"entry", "journalled", "pinned", "masked", "swapped", "running", "waited", "restored", "unmasked", "leaving", "left"}

// TestSwapWindow kills the worker at every step of the swap, and what repairs it at every step of that.
func TestSwapWindow(t *testing.T) {
	calls := []string{"futex", "epoll-timeout", "nanosleep", "sigsuspend"}
	for _, call := range calls {
		for _, mode := range []string{"", "exitstop"} {
			if mode != "" && call == "sigsuspend" {
				continue
			}
			t.Run(strings.TrimSuffix(call+"/"+mode, "/"), func(t *testing.T) {
				v := startCrash(t, call, 0)
				for _, step := range swapSteps {
					for _, at := range []int{1, 2} {
						if at == 2 && call == "epoll-timeout" && mode == "exitstop" || at == 1 && (call == "nanosleep" || call == "sigsuspend") {
							continue // one at a time; enough
						}
						t.Run(fmt.Sprintf("%s/%d", step, at), func(t *testing.T) {
							v.t = t
							v.outlives(step, fmt.Sprint(at), deedDie, mode)
						})
					}
				}
			})
		}
	}
	if asks && pidfd.Supported() {
		for _, call := range calls {
			v := startCrash(t, call, 0)
			v.asks = true
			for _, step := range swapSteps {
				t.Run(call+"/asked/"+step, func(t *testing.T) {
					v.t = t
					v.outlives(step, "1", deedDie)
				})
			}
		}
	}
	for _, tc := range []struct{ call, at string }{{"futex", "swapped"}, {"nanosleep", "swapped"}, {"pause", "leaving"}} {
		for _, step := range []string{"recover-seized", "recover-registers", "recover-woken", "recover-pinned", "recover-mask", "recover-detached"} {
			if tc.at == "leaving" && step == "recover-registers" {
				continue // they are in place
			}
			t.Run(tc.call+"/"+step, func(t *testing.T) {
				v := startCrash(t, tc.call, 1)
				for killed, rounds := 0, 0; killed < 2; rounds++ {
					dir := t.TempDir()
					marker := filepath.Join(dir, "died")
					c := hookedClient(tc.at, "2", deedDie, marker)
					c.recoverArgs = []string{hookedRecover, step, filepath.Join(dir, "recover-died")}
					if _, err := v.dieAt(c, 3, marker); err != nil {
						t.Error(err)
					}
					c.Close()
					// It comes to that step only if PID 1 has stopped already.
					if _, err := os.Stat(filepath.Join(dir, "recover-died")); err == nil {
						killed++
					} else if rounds == 20 {
						t.Fatalf("%d recoveries killed in %d rounds", killed, rounds)
					}
					v.check()
				}
			})
		}
	}
}

// TestSwapWindowSignals has signals arrive in the worst moment: with foreign registers in place and the worker about to die.
func TestSwapWindowSignals(t *testing.T) {
	steps := []string{"entry", "pinned", "masked", "swapped", "running", "waited", "restored", "unmasked", "leaving"}
	for _, step := range steps {
		for at, name := range map[string]string{"1": "handler/asked", "2": "handler"} {
			t.Run(name+"/"+step, func(t *testing.T) {
				v := startCrash(t, "futex", 0)
				v.asks = at == "1"
				marker := filepath.Join(t.TempDir(), "died")
				c := hookedClient(step, at, deedUSR1, marker)
				defer c.Close()
				if _, err := v.dieAt(c, 3, marker); err != nil {
					t.Error(err)
				}
				// The call ends, with EINTR; its registers are what the handler returns to.
				v.usr1++
				if got, want := v.expect("back"), v.well(); got != want {
					t.Errorf("PID 1 says %s, want %s", got, want)
				}
				v.check()
			})
		}
		for _, siblings := range []int{0, 2} {
			if siblings > 0 && slices.Index(steps, step) >= slices.Index(steps, "running") {
				continue // see mender.theirStop
			}
			t.Run(fmt.Sprintf("stop from outside/%s/%d siblings", step, siblings), func(t *testing.T) {
				v := startCrash(t, "futex", siblings)
				marker := filepath.Join(t.TempDir(), "died")
				c := hookedClient(step, "2", deedStop, marker)
				defer c.Close()
				_, _ = v.dieAt(c, 3, marker)
				eventually(t, "PID 1 stops", func() bool { return v.state() == procfs.StateStopped })
				// Stopped it must stay until somebody says otherwise.
				if rep := reap(t, c, v.request(v.children(orphanCode)...)); rep.Attached || rep.Reason != ReasonStopped {
					t.Errorf("report %+v", rep)
				}
				if s := v.state(); s != procfs.StateStopped {
					t.Errorf("state %v, want T", s)
				}
				unix.Kill(int(v.pid), unix.SIGCONT)
				v.conts++
				// Its handler ends the call.
				if got, want := v.expect("back"), v.well(); got != want {
					t.Errorf("PID 1 says %s, want %s", got, want)
				}
				v.check()
			})
		}
		t.Run("SIGCONT while the worker lives/"+step, func(t *testing.T) {
			v := startCrash(t, "futex", 0)
			marker := filepath.Join(t.TempDir(), "sent")
			c := hookedClient(step, "2", deedCont, marker)
			defer c.Close()
			if _, err := v.dieAt(c, 3, marker); err != nil {
				t.Error(err)
			}
			v.conts++
			if got, want := v.expect("back"), v.well(); got != want {
				t.Errorf("PID 1 says %s, want %s", got, want)
			}
			v.check()
		})
	}
}

// TestHandlerRecoveryDies: a handler waits to run, or a stop from outside has to stay, and what repairs PID 1 is killed when it has
// led that to the entry of its call.
func TestHandlerRecoveryDies(t *testing.T) {
	if !restartsBeforeStop {
		t.Skipf("not led there on %s", goarch)
	}
	for _, call := range []string{"futex", "nanosleep"} {
		for _, deed := range []string{deedUSR1, deedStop} {
			t.Run(call+"/"+deed, func(t *testing.T) {
				v := startCrash(t, call, 1)
				dir := t.TempDir()
				marker, again := filepath.Join(dir, "died"), filepath.Join(dir, "recover-died")
				step := "waited"
				if deed == deedStop {
					step = "swapped" // see mender.theirStop
				}
				c := hookedClient(step, "2", deed, marker)
				c.recoverArgs = []string{hookedRecover, "recover-led", again}
				defer c.Close()
				if _, err := v.dieAt(c, 3, marker); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(again); err != nil {
					t.Errorf("the recovery was not killed: %v", err)
				}
				if deed == deedStop {
					eventually(t, "PID 1 stops", func() bool { return v.state() == procfs.StateStopped })
					unix.Kill(int(v.pid), unix.SIGCONT)
					v.conts++
				} else {
					v.usr1++
				}
				if got, want := v.expect("back"), v.well(); got != want {
					t.Errorf("PID 1 says %s, want %s", got, want)
				}
				v.check()
			})
		}
	}
}

// TestCrashOfTheStarved: the worker dies with the pin shown to a thread that then gets next to no CPU time. It is in no queue any more,
// and stops the thread only when that runs.
func TestCrashOfTheStarved(t *testing.T) {
	hog := exec.Command("/bin/sh", "-c", "while :; do :; done")
	hog.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := hog.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hog.Process.Kill(); _ = hog.Wait() }()
	var first unix.CPUSet
	first.Set(0)
	if err := unix.SchedSetaffinity(hog.Process.Pid, &first); err != nil {
		t.Fatal(err)
	}
	v := startCrash(t, "futex", 0)
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(int(v.pid), &own); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		marker := filepath.Join(t.TempDir(), "died")
		c := hookedClient("unmasked", "1", deedStarve, marker)
		if _, err := v.dieAt(c, 3, marker); err != nil {
			t.Error(err)
		}
		c.Close()
		if err := unix.SchedSetAttr(int(v.pid), &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedSetaffinity(int(v.pid), &own); err != nil {
			t.Fatal(err)
		}
		v.check()
	}
}

// TestCrashWithoutPin shows that the pin is needed, and that the tests above would notice: without it PID 1 goes on with
// the result and the registers of waitid, in the states as well that a result of 0 alone would do no harm to.
func TestCrashWithoutPin(t *testing.T) {
	for _, call := range []string{"futex", "poll", "wait4", "epoll-timeout", "nanosleep", "pause"} {
		t.Run(call, func(t *testing.T) {
			v := startCrash(t, call, 0)
			marker := filepath.Join(t.TempDir(), "died")
			c := hookedClient("running", "1", deedDie, marker, "unpinned")
			defer c.Close()
			_, _ = v.dieAt(c, 1, marker)
			if got, want := v.expect("back"), "ret 0 regs bad mask ok own ok"; !strings.HasPrefix(got, want) {
				t.Errorf("PID 1 says %q, want %q", got, want)
			}
		})
	}
}

// TestCrashWithoutJournal: with the pin alone PID 1 stands still for ever.
func TestCrashWithoutJournal(t *testing.T) {
	v := startCrash(t, "futex", 0)
	marker := filepath.Join(t.TempDir(), "died")
	c := hookedClient("running", "1", deedDie, marker)
	c.recoverArgs = nil
	if _, err := v.dieAt(c, 1, marker); err != nil {
		t.Error(err)
	}
	eventually(t, "PID 1 stopped", func() bool { return v.state() == procfs.StateStopped })
	if rep, err := v.reapDying(c, v.children(orphanCode)[:1]); err != nil || rep.Reason != ReasonStopped {
		t.Errorf("report %+v, %v; want %s", rep, err, ReasonStopped)
	}
	c.Close()
	v.quiet()
}

// TestClientDies: the shim's end does not hurry its worker.
func TestClientDies(t *testing.T) {
	for _, step := range []string{"swapped", "waited"} {
		t.Run(step, func(t *testing.T) {
			v := startCrash(t, "futex", 0)
			marker := filepath.Join(t.TempDir(), "held")
			cmd := exec.Command("/proc/self/exe", clientProcess, step, "2", deedHold, marker)
			cmd.Stderr = os.Stderr
			line, err := json.Marshal(v.request(v.take(3)...))
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdin = strings.NewReader(string(line))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the worker in the window", func() bool { return done(marker) })
			st, err := liveProc.Status(v.pid)
			if err != nil || st.TracerPid == 0 {
				t.Errorf("tracer %d, %v", st.TracerPid, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			eventually(t, "the worker's end", func() bool { return !alive(int(st.TracerPid)) })
			v.check()
			if n := len(v.children(orphanCode)); n != crashBatch-3 {
				t.Errorf("%d orphans, want %d", n, crashBatch-3)
			}
		})
	}
}

// killsEnv is for machines on which no flag can be given for one package alone.
const killsEnv = "REAPER_CRASH_KILLS"

const defaultKills = 20

func crashKills(t *testing.T) int {
	t.Helper()
	if *flagKills > 0 {
		return *flagKills
	}
	s := cmp.Or(os.Getenv(killsEnv), strconv.Itoa(defaultKills))
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: want a number from 1", killsEnv, s)
	}
	return n
}

var (
	flagKills  = flag.Int("kills", 0, "TestCrash: how often the worker is killed in each state (default: "+killsEnv+", or 20)")
	flagReport = flag.String("crash-report", "", "TestCrash: write the results to this `file`, JSON")
	flagAdd    = flag.Bool("crash-add", false, "TestCrash: add to what the file has")
	flagPage   = flag.String("crash-page", "", "TestCrash: write the table into this `page`, between its markers")
)

// crashRow is what TestCrash found for one state.
type crashRow struct {
	Call     string `json:"call"`
	Siblings int    `json:"siblings"`
	Kills    int    `json:"kills"`
	Attached int    `json:"attached"` // the worker died while it held a thread
	InFlight int    `json:"inFlight"` // it died with the swap in flight
	Checks   int    `json:"checks"`
	Survived int    `json:"survived"`
}

type crashReport struct {
	Date   string     `json:"date"`
	Kernel string     `json:"kernel"`
	Arch   string     `json:"arch"`
	CPUs   int        `json:"cpus"`
	Go     string     `json:"go"`
	Rows   []crashRow `json:"rows"`
}

// TestCrash kills the worker with SIGKILL at random instants, in every state that the tracer accepts, and has PID 1 check
// itself.
func TestCrash(t *testing.T) {
	requireKernel(t)
	rep := crashReport{
		Date: time.Now().UTC().Format(time.DateOnly), Kernel: uname.Get().Release, Arch: runtime.GOARCH,
		CPUs: runtime.NumCPU(), Go: runtime.Version(),
	}
	for i, call := range crashCalls {
		siblings := i % 2 * 2
		t.Run(call, func(t *testing.T) {
			row := crashRow{Call: call, Siblings: siblings}
			defer func() { rep.Rows = append(rep.Rows, row) }() // after a failure as well
			crashState(t, &row)
			t.Logf("%+v", row)
		})
	}
	var sum crashRow
	for _, row := range rep.Rows {
		sum.Kills, sum.Attached, sum.InFlight = sum.Kills+row.Kills, sum.Attached+row.Attached, sum.InFlight+row.InFlight
	}
	t.Logf("%d kills, %d while a thread was held, %d with the swap in flight", sum.Kills, sum.Attached, sum.InFlight)
	if sum.Kills >= 100 && sum.Attached == 0 {
		t.Error("no worker died within an attach: the test has shown nothing")
	}
	if *flagReport != "" {
		if err := rep.write(*flagReport, *flagPage, *flagAdd); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *crashReport) write(file, page string, add bool) error {
	if old, err := os.ReadFile(file); err == nil && add {
		var was crashReport
		if err := json.Unmarshal(old, &was); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if was.Kernel != r.Kernel || was.Arch != r.Arch {
			return fmt.Errorf("%s is of another kernel: %s %s", file, was.Kernel, was.Arch)
		}
		for _, n := range r.Rows {
			i := slices.IndexFunc(was.Rows, func(w crashRow) bool { return w.Call == n.Call })
			if i < 0 {
				was.Rows = append(was.Rows, n)
				continue
			}
			w := &was.Rows[i]
			w.Kills, w.Attached, w.InFlight = w.Kills+n.Kills, w.Attached+n.Attached, w.InFlight+n.InFlight
			w.Checks, w.Survived = w.Checks+n.Checks, w.Survived+n.Survived
		}
		r.Rows = was.Rows
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil || page == "" {
		return err
	}
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	const begin, end = "<!-- begin: written by make test-crash -->\n", "<!-- end: written by make test-crash -->"
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no markers", page)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s, %s, %d CPUs, %s:\n\n", r.Date, r.Kernel, r.Arch, r.CPUs, r.Go)
	b.WriteString("| PID 1 sits in | other threads | kills | of these while a thread was held | with the swap in flight | survived |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|\n")
	sum := crashRow{}
	for _, w := range r.Rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d |\n", w.Call, w.Siblings, w.Kills, w.Attached, w.InFlight, w.Survived)
		sum.Kills, sum.Attached, sum.InFlight, sum.Survived = sum.Kills+w.Kills, sum.Attached+w.Attached, sum.InFlight+w.InFlight, sum.Survived+w.Survived
	}
	fmt.Fprintf(&b, "| **all** | | %d | %d | %d | %d |\n", sum.Kills, sum.Attached, sum.InFlight, sum.Survived)
	return os.WriteFile(page, []byte(head+begin+b.String()+end+tail), 0o644)
}

// workerJournal maps the journal of a worker once more.
func workerJournal(t *testing.T, pid int) *Journal {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/3", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return mapped(t, f)
}

func mapped(t *testing.T, f *os.File) *Journal {
	t.Helper()
	j, err := OpenJournal(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func crashState(t *testing.T, row *crashRow) {
	v := startCrash(t, row.Call, row.Siblings)
	c := newClient(t, "-idle", "1m")
	request := testutil.Slow(2 * time.Millisecond)  // about what a request takes, attach included
	attach := testutil.Slow(400 * time.Microsecond) // and the attach alone
	rnd := rand.New(rand.NewPCG(uint64(len(row.Call)), 7))
	unchecked, kills := 0, crashKills(t)
	for row.Kills < kills {
		zs := v.take(20)
		if v.some = 0; row.Kills%2 == 1 {
			v.some = 3
		}
		v.asks = row.Kills%3 == 0
		// A worker that is there already: its start takes longer than an attach.
		if c.WorkerPID() == 0 {
			ask(t, c)
		}
		pid := c.WorkerPID()
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		before, inFlight := c.Recovered(), c.inFlight.Load()
		journal := workerJournal(t, pid)
		began := time.Now()
		at := time.Duration(rnd.Int64N(int64(request)))
		done := make(chan error, 1)
		go func() {
			_, err := v.reapDying(c, zs)
			done <- err
		}()
		if row.Kills%4 > 0 {
			// Most of a request is not the attach.
			for journal.phase() == phaseIdle && time.Since(began) < 10*request {
				runtime.Gosched()
			}
			began, at = time.Now(), time.Duration(rnd.Int64N(int64(attach)))
		}
		for time.Since(began) < at {
			runtime.Gosched()
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
		_ = journal.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		// The report may have come before the kill did: the client notices later.
		eventually(t, "the worker's end", func() bool { return c.WorkerPID() != pid || !alive(pid) })
		ask(t, c)
		row.Kills++
		row.Attached += int(c.Recovered() - before)
		row.InFlight += int(c.inFlight.Load() - inFlight)
		v.quiet()
		if unchecked++; unchecked == 10 || row.Kills == kills {
			v.check()
			if t.Failed() {
				return
			}
			row.Checks++
			row.Survived += unchecked
			unchecked = 0
		}
	}
}

// TestExitUnderAttaches: however busy the tracer is with PID 1, its end reaches the one who waits for it at once.
func TestExitUnderAttaches(t *testing.T) {
	c := newClient(t, "-idle", "1m")
	const rounds = 15
	var longest time.Duration
	attached, late := 0, 0
	for i := range rounds {
		v := startCrash(t, "futex", i%3)
		zs := v.take(crashBatch)
		if c.WorkerPID() == 0 {
			ask(t, c)
		}
		journal := workerJournal(t, c.WorkerPID())
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 100 { // until it is gone
				rep, err := c.Reap(t.Context(), v.request(zs[:50]...))
				if err != nil || rep.Reason == ReasonVanished {
					return
				}
				if rep.Attached {
					attached++
				}
				if zs = zs[min(50, len(zs)):]; len(zs) < 50 {
					zs = v.children(orphanCode)
				}
				if len(zs) < 50 {
					return
				}
			}
		})
		// Most of a request is not the attach, the more so on a slow machine.
		for began := time.Now(); journal.phase() == phaseIdle && time.Since(began) < testutil.Slow(time.Second); {
			runtime.Gosched()
		}
		_ = journal.Close()
		time.Sleep(time.Duration(rand.Int64N(int64(testutil.Slow(4 * time.Millisecond)))))
		began := time.Now()
		unix.Kill(int(v.pid), unix.SIGKILL)
		select {
		case <-v.done:
			took := time.Since(began)
			if longest = max(longest, took); took > exitBound {
				late++
			}
		case <-time.After(patience):
			t.Fatal("the death of PID 1 did not reach its parent")
		}
		if !v.ws.Signaled() || v.ws.Signal() != syscall.SIGKILL {
			t.Errorf("PID 1 ended with %#x, want SIGKILL", v.ws)
		}
		wg.Wait()
	}
	t.Logf("%d attaches, longest %v, %d later than %v", attached, longest, late, exitBound)
	if attached == 0 || late > 1 { // the machine has other things to do now and then
		t.Errorf("%d attaches, %d of %d ends were later than %v", attached, late, rounds, exitBound)
	}
}
