package tracer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// requestsEnv says how many zombies are reaped from each call of TestTransparency, one request each. From strictFrom on the
// time bounds are those of a quiet machine.
const (
	requestsEnv     = "REAPER_TRANSPARENCY_REQUESTS"
	defaultRequests = 20
	strictFrom      = 100
)

// Time bounds of TestTransparency: how much longer than its time-out a call may take.
const (
	looseBound  = 2 * time.Second
	strictBound = 50 * time.Millisecond
	noticeBound = 700 * time.Millisecond // time-out and bound of TestTransparencyNotices
)

func transparencyRequests(t testing.TB) int {
	t.Helper()
	s := cmp.Or(os.Getenv(requestsEnv), strconv.Itoa(defaultRequests))
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxZombies {
		t.Fatalf("%s=%s: want a number from 1 to %d", requestsEnv, s, MaxZombies)
	}
	return n
}

// transparencyCalls are the calls of testdata/transparency.c. Those ending in "-timeout" end by themselves, those ending in
// "-left" say what is left of their time-out when they end early.
var transparencyCalls = []string{
	"futex", "futex-timeout", "futex-bitset-timeout", "futex_waitv",
	"epoll_wait", "epoll_wait-timeout", "epoll_pwait", "epoll_pwait-timeout", "epoll_pwait2", "epoll_pwait2-timeout",
	"poll", "poll-timeout", "ppoll", "ppoll-timeout", "ppoll-left",
	"select", "select-timeout", "select-left", "pselect6", "pselect6-timeout", "pselect6-left",
	"nanosleep-timeout", "nanosleep-left", "clock_nanosleep-timeout", "clock_nanosleep-left", "clock_nanosleep-abs-timeout",
	"pause", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait-timeout",
	"read-pipe", "read-tty", "read-socket", "read-eventfd", "read-timerfd-timeout", "read-inotify", "write-pipe",
	"accept", "connect", "recvmsg", "recvmsg-timeout",
	"flock", "fcntl-lock", "msgrcv", "semtimedop", "semtimedop-timeout", "io_getevents", "io_uring_enter",
	"wait4", "waitid", "waitid-pidfd", "sendfile", "splice", "spin",
}

var notOnARM64 = []string{"epoll_wait", "poll", "select", "pause"}

// compiled holds the victims that have been compiled from testdata.
var compiled = struct {
	sync.Mutex
	path map[string]string
	err  map[string]error
}{path: map[string]string{}, err: map[string]error{}}

// compileVictim returns the path of the program testdata/name.c.
func compileVictim(t testing.TB, name string) string {
	t.Helper()
	requireKernel(t)
	build()
	if built.given != "" {
		return filepath.Join(built.given, name)
	}
	if built.dir == "" {
		t.Fatal(built.workerErr)
	}
	compiled.Lock()
	defer compiled.Unlock()
	if _, ok := compiled.path[name]; !ok {
		bin := filepath.Join(built.dir, name)
		out, err := exec.Command("gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", bin, "testdata/"+name+".c", "-lpthread").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("gcc: %w: %s", err, out)
		}
		compiled.path[name], compiled.err[name] = bin, err
	}
	if err := compiled.err[name]; err != nil {
		unable(t, "cannot compile the victims: %v (install gcc and libc6-dev)", err)
	}
	return compiled.path[name]
}

// seat says who makes the call that is looked at.
type seat struct {
	name  string
	who   string // "leader" or "thread"
	other bool   // another thread sits in a call as well
}

var seats = []seat{{"alone", "leader", false}, {"leader", "leader", true}, {"thread", "thread", true}}

// sitter is a victim that sits in a call.
type sitter struct {
	*victim
	call    string
	other   string // the call of the other thread, or "-"
	timeout time.Duration
	running bool // ask for it to be stopped in the middle of its work
	insist  bool // until something has been reaped: of one that runs few attaches find anything to do on a slow machine
	nrs     []int64
	reports map[string]sitReport // by call
	end     sitReport
	ended   bool
}

// sitReport is a line of the victim: what it saw, by name.
type sitReport map[string]string

func (r sitReport) number(t testing.TB, key string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(r[key], 10, 64)
	if err != nil {
		t.Fatalf("%s in %v: %v", key, r, err)
	}
	return n
}

func timed(call string) bool { return strings.HasSuffix(call, "-timeout") }

// startSitter starts a victim and waits until its threads are in their calls.
func startSitter(t testing.TB, call, other, who string, orphans int, timeout time.Duration) *sitter {
	t.Helper()
	bin := compileVictim(t, "transparency")
	t.Setenv("TMPDIR", t.TempDir()) // for the victim's directory
	if !timed(call) {
		timeout = time.Minute // of the calls that say what is left of it
	}
	v := startPID1(t, bin, call, other, who, strconv.Itoa(orphans), strconv.FormatInt(timeout.Milliseconds(), 10))
	s := &sitter{victim: v, call: call, other: other, timeout: timeout, reports: map[string]sitReport{}}
	line, ok := s.line(patience)
	if why, missing := strings.CutPrefix(line, "unsupported "); missing {
		unable(t, "this kernel or machine has no %s", why)
	}
	nrs := strings.Fields(line)
	if !ok || len(nrs) != 3 || nrs[0] != "ready" {
		t.Fatalf("victim said %q", line)
	}
	for _, f := range nrs[1:] {
		nr, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatalf("victim said %q", line)
		}
		s.nrs = append(s.nrs, nr)
	}
	eventually(t, "all threads in their calls", s.inCalls)
	return s
}

// inCalls reports whether all threads are blocked in their calls, or one with a time-out has ended: on a busy machine its time may
// be over before it is looked at.
func (s *sitter) inCalls() bool {
	if timed(s.call) && s.poll() && s.reports[s.call] != nil {
		return true
	}
	want := slices.Clone(s.nrs)
	if s.other == "-" {
		want = want[:1]
	}
	tids, err := liveProc.Threads(s.pid)
	if err != nil || len(tids) != len(want) {
		return false
	}
	for _, tid := range tids {
		st, err := liveProc.ThreadStatus(s.pid, tid)
		if err != nil {
			return false
		}
		nr := int64(-1)
		if st.State == procfs.StateSleeping {
			sc, err := liveProc.ThreadSyscall(s.pid, tid)
			if err != nil || sc.Running {
				return false
			}
			nr = sc.Nr
		}
		i := slices.Index(want, nr)
		if i < 0 && nr == unix.SYS_RESTART_SYSCALL { // in one of them, interrupted before
			i = 0
		}
		if i < 0 {
			return false
		}
		want = slices.Delete(want, i, i+1)
	}
	return true
}

// asleep reports whether all threads sleep, but for one whose call is a loop.
func (s *sitter) asleep() bool {
	tids, err := liveProc.Threads(s.pid)
	for _, tid := range tids {
		st, serr := liveProc.ThreadStatus(s.pid, tid)
		if err = serr; err != nil || st.State != procfs.StateSleeping && !slices.Contains(s.nrs, -1) {
			return false
		}
	}
	return err == nil
}

// line returns the next line of the victim.
func (s *sitter) line(d time.Duration) (string, bool) {
	select {
	case line, ok := <-s.lines:
		return line, ok
	case <-time.After(d):
		return "", false
	}
}

// take files a line away.
func (s *sitter) take(line string) {
	s.t.Helper()
	kind, rest, _ := strings.Cut(line, " ")
	r := sitReport{}
	for f := range strings.FieldsSeq(rest) {
		k, v, _ := strings.Cut(f, "=")
		r[k] = v
	}
	switch kind {
	case "done":
		s.reports[r["call"]] = r
	case "end":
		s.end, s.ended = r, true
	default:
		s.t.Fatalf("victim said %q", line)
	}
}

// poll takes what the victim has said so far, and reports whether there was something.
func (s *sitter) poll() (some bool) {
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				return some
			}
			s.take(line)
			some = true
		default:
			return some
		}
	}
}

// finish makes what the calls wait for happen and takes the rest of what the victim says, for d at most.
func (s *sitter) finish(d time.Duration) {
	s.t.Helper()
	if timed(s.call) {
		// The call must have ended by itself before the other thread is woken.
		deadline := time.Now().Add(s.timeout + d)
		for s.reports[s.call] == nil && time.Now().Before(deadline) {
			if line, ok := s.line(time.Until(deadline)); ok {
				s.take(line)
			} else {
				break
			}
		}
	}
	// A futex whose word is changed before the call is entered again ends with EAGAIN (futex(2)), as after any stop.
	deadline := time.Now().Add(d)
	for !s.asleep() && time.Now().Before(deadline) {
		time.Sleep(200 * time.Microsecond)
	}
	s.poke()
	deadline = time.Now().Add(d)
	for !s.ended {
		line, ok := s.line(time.Until(deadline))
		if !ok {
			return
		}
		s.take(line)
	}
}

// class says what the tracer thinks of the call that the victim sits in, from /proc.
func (s *sitter) class() callClass {
	s.t.Helper()
	for i := 0; s.nrs[0] >= 0 && i < 1000; i++ {
		tids, _ := liveProc.Threads(s.pid)
		for _, tid := range tids {
			sc, err := liveProc.ThreadSyscall(s.pid, tid)
			if err == nil && !sc.Running && sc.Nr == s.nrs[0] {
				return classifyCall(sc.Nr, sc.Args).class
			}
		}
	}
	return classUnsafe
}

// bounds say what else than a wrong value is a fault.
type bounds struct {
	attached int           // how often the victim was attached to
	stopped  time.Duration // in all
	slack    time.Duration
}

// faults compares what the victim saw with what it would have seen without a tracer.
func (s *sitter) faults(b bounds) []string {
	var bad []string
	fault := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	for _, call := range []string{s.call, s.other} {
		r := s.reports[call]
		if call == "-" {
			continue
		}
		if r == nil {
			fault("%s: did not end", call)
			continue
		}
		for _, k := range slices.Sorted(maps.Keys(r)) {
			// The futex of a thread that was just on its way back into the call when its word changed (finish).
			again := k == "result" && strings.HasPrefix(call, "futex") && r["ret"] == "-11" && b.attached > 0
			if r[k] == "bad" && !again {
				fault("%s: %s", call, k)
			}
		}
		// What signal(7) lists under "interruption of system calls by stop signals" and has a time-out may end with EINTR
		// after a stop; nothing else may.
		if n := r.number(s.t, "eintr"); n > 0 && (!mayEINTR(call) || n > int64(b.attached)) {
			fault("%s: %d EINTR in %d attaches", call, n, b.attached)
		}
		handled := int64(0)
		if r["ret"] == strconv.Itoa(-int(unix.EINTR)) {
			handled = 1
		}
		if n := r.number(s.t, "handled"); n != handled {
			fault("%s: signal handled %d times", call, n)
		}
		took := time.Duration(r.number(s.t, "us")) * time.Microsecond
		left := time.Duration(r.number(s.t, "left")) * time.Microsecond
		slack := b.slack
		if strings.HasPrefix(call, "recvmsg") {
			slack += s.timeout / 8 // SO_RCVTIMEO sleeps by the timer wheel, which is that coarse (kernel/time/timer.c)
		}
		if writesBack(call) {
			slack += b.stopped + time.Duration(b.attached)*time.Millisecond
		}
		switch {
		case timed(call) && took < s.timeout:
			fault("%s: early: %v of %v", call, took, s.timeout)
		case timed(call) && took > s.timeout+slack:
			fault("%s: late: %v of %v", call, took, s.timeout)
		case timed(call) && left > 0:
			fault("%s: %v left after its time-out", call, left)
		case strings.HasSuffix(call, "-left") && (took+left < s.timeout-10*time.Millisecond || took+left > s.timeout+slack):
			fault("%s: left: %v after %v of %v", call, left, took, s.timeout)
		}
	}
	switch {
	case !s.ended:
		fault("the victim did not come to its end")
	default:
		for _, k := range slices.Sorted(maps.Keys(s.end)) {
			if s.end[k] == "bad" {
				fault("end: %s", k)
			}
		}
	}
	return bad
}

func mayEINTR(call string) bool {
	return timed(call) && (strings.HasPrefix(call, "epoll_") || strings.HasPrefix(call, "rt_sigtimedwait") ||
		strings.HasPrefix(call, "semtimedop") || strings.HasPrefix(call, "recvmsg"))
}

// writesBack: these calls start anew after a stop with what they wrote back of their time-out before, so that the time
// spent stopped comes on top (poll_select_finish() in fs/select.c). SIGSTOP and SIGCONT do the same to them.
func writesBack(call string) bool {
	return strings.HasPrefix(call, "ppoll-") || strings.HasPrefix(call, "select-") || strings.HasPrefix(call, "pselect6-")
}

// outcomes of the requests of one subtest.
type tally struct {
	requests, attached, reaped int
	stopped, longest           time.Duration
	reasons                    map[Reason]int
	calls                      map[string]int // that were stopped in, by the tracer's own word
}

func (n *tally) add(rep Report) {
	n.requests++
	n.reasons[rep.Reason]++
	if rep.Attached {
		n.attached++
		n.calls[rep.Syscall]++
		n.stopped += rep.Stopped
		n.longest = max(n.longest, rep.Stopped)
	}
	n.reaped += rep.Count(Reaped)
}

// pester has zombies reaped one at a time, n times or until the call has ended.
func (s *sitter) pester(c *Client, zs []Zombie, n int, pace time.Duration) *tally {
	s.t.Helper()
	sum := &tally{reasons: map[Reason]int{}, calls: map[string]int{}}
	deadline := time.Now().Add(patience + time.Duration(n)*20*time.Millisecond)
	for tries := 0; len(zs) > 0 && (sum.attached < n || s.insist && sum.reaped == 0) && time.Now().Before(deadline); tries++ {
		if s.poll(); s.reports[s.call] != nil {
			break
		}
		req := s.request(zs[0])
		if tries%2 == 1 {
			req = withQuestion(s.t, req)
		}
		req.Running = s.running
		rep := reap(s.t, c, req)
		sum.add(rep)
		switch rep.Results[0].Outcome {
		case Reaped:
			zs = zs[1:]
		case Vanished:
			s.t.Errorf("zombie vanished by itself: %+v", rep)
			zs = zs[1:]
		}
		if never := rep.Reason == ReasonUnsafeSyscall || rep.Reason == ReasonBusy && s.nrs[0] < 0; never && sum.attached == 0 && tries >= n {
			break
		}
		time.Sleep(pace)
	}
	return sum
}

// TestTransparency: whatever system call PID 1 sits in, it notices nothing of having been made to reap, again and again: not
// in the result of the call, the time that it took or says is left, any register, the signal mask, pending signals or
// memory. Calls that may not be touched are not, and then another thread is used or nobody.
func TestTransparency(t *testing.T) {
	requests := transparencyRequests(t)
	slack := looseBound
	if requests >= strictFrom {
		slack = strictBound
	}
	timeout := 150*time.Millisecond + time.Duration(requests)*3*time.Millisecond
	c := newClient(t)
	for _, call := range transparencyCalls {
		if goarch == "arm64" && slices.Contains(notOnARM64, strings.TrimSuffix(strings.TrimSuffix(call, "-timeout"), "-left")) {
			continue
		}
		t.Run(call, func(t *testing.T) {
			taken := false // whether the tracer interrupts it at all
			for _, seat := range seats {
				t.Run(seat.name, func(t *testing.T) {
					other := "-"
					if seat.other {
						// The tracer has to choose the thread that is of interest here.
						if other = "futex"; taken {
							other = "read-pipe"
						}
						if call == other {
							other = "read-socket"
						}
					}
					var s *sitter
					var sum *tally
					died := c.Recovered()
					// On a busy machine the time of a call may be over before the first request.
					for wait := timeout; sum == nil || timed(call) && sum.requests == 0 && wait < time.Minute; wait *= 5 {
						s = startSitter(t, call, other, seat.who, requests, wait)
						if !seat.other && s.reports[call] == nil {
							taken = s.class() != classUnsafe
						}
						sum = s.pester(c, s.orphans(requests), requests, 0)
						s.finish(patience)
					}
					for _, f := range s.faults(bounds{sum.attached, sum.stopped, slack}) {
						t.Errorf("PID 1 noticed: %s", f)
					}
					t.Logf("%d attaches in %v, %d reaped, stopped %v in all, %v at most, reasons %v", sum.attached, sum.calls, sum.reaped,
						sum.stopped.Round(time.Microsecond), sum.longest.Round(time.Microsecond), sum.reasons)
					if t.Failed() {
						t.Logf("report: %v, end: %v", s.reports, s.end)
					}
					if n := c.Recovered() - died; n > 0 {
						t.Errorf("%d workers died in the middle of an attach", n)
					}
					s.checkTally(sum, taken, seat, requests)
				})
			}
		})
	}
}

// isOver reports whether a thread of the victim is in that call once its own, with a time-out, has ended: it waits for the other
// thread or for nothing.
func (s *sitter) isOver(name string) bool {
	return timed(s.call) && (name == "pause" || name == "futex" || name == "ppoll")
}

func (s *sitter) over(sum *tally) (n int) {
	for name, count := range sum.calls {
		if s.isOver(name) {
			n += count
		}
	}
	return n
}

// checkTally makes sure that the subtest has shown what it is for.
func (s *sitter) checkTally(sum *tally, taken bool, seat seat, requests int) {
	s.t.Helper()
	if !taken && !seat.other {
		for why := range sum.reasons {
			if why != ReasonUnsafeSyscall && why != ReasonBusy && (why != "" || s.over(sum) == 0) {
				s.t.Errorf("%d requests declined as %q", sum.reasons[why], why)
			}
		}
		if over := s.over(sum); sum.attached > over {
			s.t.Errorf("attached %d times to a thread that nothing is to be done with: %v", sum.attached-over, sum.calls)
		}
		return
	}
	if sum.reaped == 0 {
		s.t.Errorf("nothing reaped: the test has shown nothing")
	}
	if sum.attached < requests && !timed(s.call) {
		s.t.Errorf("%d attaches, want %d", sum.attached, requests)
	}
	for name, n := range sum.calls {
		// restart_syscall: what the last attach left a call with a restart block in (restart_syscall(2)).
		of := s.call
		if !taken {
			of = s.other
		}
		if name != "restart_syscall" && !strings.HasPrefix(of, name) && !s.isOver(name) {
			s.t.Errorf("%d attaches to a thread in %s, want %s", n, name, of)
		}
	}
}

// TestTransparencyRunning: nor does a PID 1 notice anything that never sits in a call and is stopped in the middle of its work: in a loop
// without calls, which is let go as it was, and at the entry of calls that return at once.
func TestTransparencyRunning(t *testing.T) {
	for _, tc := range []struct {
		call, in string // in: the call that it is made to reap at; "" for none
	}{{"spin", ""}, {"epoll_pwait-busy", "epoll_pwait"}} {
		t.Run(tc.call, func(t *testing.T) {
			requests := transparencyRequests(t)
			s := startSitter(t, tc.call, "-", "leader", requests, 0)
			s.running, s.insist = true, tc.in != ""
			sum := s.pester(newClient(t), s.orphans(requests), requests, 0)
			s.finish(patience)
			for _, f := range s.faults(bounds{attached: sum.attached, stopped: sum.stopped}) {
				t.Errorf("PID 1 noticed: %s", f)
			}
			t.Logf("%d attaches in %v, %d reaped, %v at most, reasons %v; %v", sum.attached, sum.calls, sum.reaped,
				sum.longest.Round(time.Microsecond), sum.reasons, s.reports)
			if sum.attached < requests {
				t.Errorf("%d attaches, want %d", sum.attached, requests)
			}
			if want := min(1, len(tc.in)); min(sum.reaped, 1) != want || sum.reaped > 0 && sum.calls[tc.in] < sum.reaped {
				t.Errorf("%d reaped in %v, want it in %q", sum.reaped, sum.calls, tc.in)
			}
		})
	}
}

// TestTimeoutNotStretched: a time-out ends when it would have ended, however often PID 1 is made to reap meanwhile.
func TestTimeoutNotStretched(t *testing.T) {
	const (
		timeout = 3 * time.Second
		every   = 200 * time.Millisecond
	)
	calls := []string{"epoll_pwait-timeout", "epoll_wait-timeout", "futex-timeout", "nanosleep-timeout", "ppoll-timeout", "poll-timeout", "select-timeout"}
	sitters := make([]*sitter, 0, len(calls))
	for _, call := range calls {
		if goarch == "arm64" && slices.Contains(notOnARM64, strings.TrimSuffix(call, "-timeout")) {
			continue
		}
		sitters = append(sitters, startSitter(t, call, "-", "leader", 30, timeout))
	}
	c := newClient(t)
	sums := make([]*tally, len(sitters))
	zombies := make([][]Zombie, len(sitters))
	for i, s := range sitters {
		zombies[i] = s.orphans(30)
		sums[i] = &tally{reasons: map[Reason]int{}, calls: map[string]int{}}
	}
	deadline := time.Now().Add(4 * timeout)
	for running := len(sitters); running > 0 && time.Now().Before(deadline); {
		running = 0
		for i, s := range sitters {
			if s.poll(); s.reports[s.call] != nil || len(zombies[i]) == 0 {
				continue
			}
			running++
			rep := reap(t, c, s.request(zombies[i][0]))
			if sums[i].add(rep); rep.Count(Reaped) == 1 {
				zombies[i] = zombies[i][1:]
			}
		}
		time.Sleep(every)
	}
	for i, s := range sitters {
		s.finish(patience)
		r := s.reports[s.call]
		t.Logf("%s: %s µs, %s EINTR, %d attaches", s.call, r["us"], r["eintr"], sums[i].attached)
		for _, f := range s.faults(bounds{sums[i].attached, sums[i].stopped, time.Second}) {
			t.Errorf("PID 1 noticed: %s", f)
		}
		if want := max(1, 5/int(testutil.Slow(1))); sums[i].attached < want {
			t.Errorf("%s: %d attaches, want %d: %v", s.call, sums[i].attached, want, sums[i].reasons)
		}
	}
}

// TestTransparencyNotices: the checks of TestTransparency find every kind of damage that a tracer can do.
func TestTransparencyNotices(t *testing.T) {
	tests := []struct {
		damage, call string
		want         string // the beginning of the fault, after the name of the call; "" for none
	}{
		{damageNone, "futex", ""},
		{damageCallee, "futex", "regs"},
		{damageArgument, "futex", "regs"},
		{damageFlags, "futex", "flags"},
		{damageBase, "futex", "base"},
		{damageVector, "futex", "fpu"},
		{damageWideVector, "futex", "fpu"},
		{damageResult, "epoll_pwait", "result"},
		{damageEINTR, "ppoll", "1 EINTR"},
		{damageMemory, "futex_waitv", "memory"},
		{damageStack, "futex", "stack"},
		{damageMask, "futex", "mask"},
		{damagePending, "futex", "pending"},
		{damageTimeout, "nanosleep-timeout", "late"},
		{damageEarly, "nanosleep-timeout", "early"},
		{damageDropSignal, "rt_sigsuspend", "did not end"},
		{damageDoubleSignal, "rt_sigsuspend", "pending"},
		{damageHideEINTR, "rt_sigsuspend", "did not end"},
	}
	for _, tc := range tests {
		t.Run(strings.ReplaceAll(tc.damage, " ", "-"), func(t *testing.T) {
			if !damages[tc.damage] {
				t.Skipf("not done on this architecture: %s", goarch)
			}
			var faults []string
			ok := false
			// A call that is over before the tracer comes to it takes no damage: once more, on a machine that busy.
			for tries := 0; !ok && tries < 3; tries++ {
				faults = noticed(t, tc.damage, tc.call)
				t.Logf("faults: %q", faults)
				ok = slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, tc.call+": "+tc.want) })
				if tc.want == "" {
					ok = len(faults) == 0
				}
			}
			if !ok {
				t.Errorf("faults %q, want %q", faults, tc.want)
			}
		})
	}
	t.Run("stolen-status", func(t *testing.T) {
		s := startSitter(t, "futex", "-", "leader", 1, 0)
		own := s.children(ownCode)
		if len(own) != 1 {
			t.Fatalf("%d children of its own", len(own))
		}
		rep := helperAttach(t, helperOrder{Request: s.request(s.orphans(1)...), NSPID: own[0].NSPID})
		s.finish(patience)
		if faults := s.faults(bounds{1, 0, looseBound}); !slices.Equal(faults, []string{"end: own"}) {
			t.Errorf("faults %q, report %+v", faults, rep)
		}
	})
}

// noticed has the naive tracer do a victim in that call some damage, and returns the faults that the suite finds.
func noticed(t *testing.T, damage, call string) []string {
	t.Helper()
	s := startSitter(t, call, "-", "leader", 0, noticeBound)
	cmd, stdin, answer := startHelper(t, helperOrder{Seize: s.pid, Naive: damage})
	defer func() {
		stdin.Close()
		_ = cmd.Wait()
	}()
	var word string
	if err := answer.Decode(&word); err != nil {
		t.Fatalf("helper: %v", err)
	}
	if word == "no such thing" {
		t.Skip("this processor has no such registers")
	}
	s.finish(2 * noticeBound)
	return s.faults(bounds{1, 0, noticeBound})
}

// The kinds of damage that the naive tracer does.
const (
	damageNone         = "none"
	damageCallee       = "a callee-saved register"
	damageArgument     = "an argument register"
	damageFlags        = "the flags"
	damageBase         = "a base register"
	damageVector       = "a vector register"
	damageWideVector   = "the wide part of a vector register"
	damageResult       = "the result"
	damageEINTR        = "an EINTR that nobody sent a signal for"
	damageMemory       = "memory"
	damageStack        = "the stack"
	damageMask         = "the signal mask"
	damagePending      = "a pending signal"
	damageTimeout      = "a time-out that starts anew"
	damageEarly        = "a sleep that ends early"
	damageDropSignal   = "a dropped signal"
	damageDoubleSignal = "a doubled signal"
	damageHideEINTR    = "a hidden EINTR"
	damageBlockAll     = "no signal comes through"
)

func (t *thread) words(req int, kind int, buf []byte) ([]byte, error) {
	iov := unix.Iovec{Base: &buf[0]}
	iov.SetLen(len(buf))
	err := t.rawRegset(req, kind, &iov)
	return buf[:iov.Len], err
}

// naive is a tracer that does a thread one kind of damage. It answers when the damage is done, or, where a signal is needed
// for it, when it waits for that.
func naive(order helperOrder, out interface{ Encode(any) error }) error {
	t := &thread{tid: int(order.Seize)}
	if err := t.seize(); err != nil {
		return err
	}
	stopped := func() error {
		if err := t.interrupt(); err != nil {
			return err
		}
		s, err := t.wait(patience)
		if err == nil && s.kind != stopEvent {
			err = fmt.Errorf("stopped by %v", s)
		}
		return err
	}
	if err := stopped(); err != nil {
		return err
	}
	again, err := t.damage(order.Naive)
	if errors.Is(err, errNoSuchThing) {
		return errors.Join(t.detach(0), out.Encode("no such thing"))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", order.Naive, err)
	}
	switch order.Naive {
	case damageDropSignal, damageDoubleSignal, damageHideEINTR:
		if err := t.cont(0); err != nil {
			return err
		}
		if err := out.Encode("waiting"); err != nil {
			return err
		}
		s, err := t.wait(patience)
		if err != nil || s.kind != stopSignal {
			return fmt.Errorf("%v, %w", s, err)
		}
		switch order.Naive {
		case damageDropSignal:
			s.sig = 0
		case damageDoubleSignal:
			if err := unix.Kill(t.tid, unix.Signal(s.sig)); err != nil {
				return err
			}
		case damageHideEINTR:
			if s.sig, err = t.hideEINTR(s.sig); err != nil {
				return err
			}
		}
		return t.detach(s.sig)
	}
	if err := t.detach(0); err != nil {
		return err
	}
	if again {
		// Until the call is so late that nobody can miss it.
		for end := time.Now().Add(3 * noticeBound); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if err := t.seize(); err != nil {
				return err
			}
			if err := stopped(); err != nil {
				return err
			}
			if _, err := t.damage(order.Naive); err != nil {
				return err
			}
			if err := t.detach(0); err != nil {
				return err
			}
		}
	}
	return out.Encode("done")
}

var errNoSuchThing = errors.New("no such register set")

// damage does it, at an event stop. again: it takes more than one stop to be noticed.
func (t *thread) damage(kind string) (again bool, err error) {
	var buf [4096]byte
	gpr, err := t.words(unix.PTRACE_GETREGSET, ntPRStatus, buf[:8*regWords])
	if err != nil {
		return false, err
	}
	word := func(i int) *uint64 { return wordAt(gpr, i) }
	set := func(i int, v uint64) (bool, error) {
		*word(i) = v
		_, err := t.words(unix.PTRACE_SETREGSET, ntPRStatus, gpr)
		return false, err
	}
	const (
		ntPRFPReg   = 2     // NT_PRFPREG (include/uapi/linux/elf.h)
		ntX86XState = 0x202 // NT_X86_XSTATE
	)
	flip := func(note, off int) (bool, error) {
		var buf [16384]byte
		fp, err := t.words(unix.PTRACE_GETREGSET, note, buf[:])
		if err != nil {
			return false, err
		}
		if len(fp) <= off {
			return false, errNoSuchThing
		}
		fp[off] ^= 0x10
		_, err = t.words(unix.PTRACE_SETREGSET, note, fp)
		return false, err
	}
	poke := func(addr uint64) (bool, error) {
		_, err := t.ptrace(unix.PTRACE_POKEDATA, uintptr(addr), 0x6261)
		return false, err
	}
	mask := func(m uint64) error { return t.setMask(procfs.SignalSet(m)) }
	switch kind {
	case damageNone, damageDropSignal, damageDoubleSignal, damageHideEINTR:
	case damageCallee:
		return set(regCallee, *word(regCallee)+1)
	case damageArgument:
		return set(regArgument, *word(regArgument)+1)
	case damageFlags:
		return set(regFlags, *word(regFlags)^flagCarry)
	case damageBase:
		return set(regBase, *word(regBase)+8)
	case damageVector:
		return flip(ntPRFPReg, vectorOffset)
	case damageWideVector:
		return flip(ntX86XState, 576+3) // the AVX part of the standard format (Intel SDM vol. 1, 13.4.2)
	case damageResult, damageEarly:
		return set(regResult, 0)
	case damageEINTR:
		return set(regResult, uint64(0xfffffffffffffffc))
	case damageMemory:
		return poke(*word(regArgument0) + 200)
	case damageStack:
		return poke(*word(regSP) - 64)
	case damageMask:
		return false, mask(1 << (unix.SIGUSR2 - 1)) // SIGUSR1 and the real-time signal are not blocked any more
	case damageBlockAll:
		return false, mask(uint64(allSignals))
	case damagePending:
		if err := mask(0); err != nil {
			return false, err
		}
		if err := t.cont(0); err != nil {
			return false, err
		}
		s, err := t.wait(patience)
		if err != nil || s.kind != stopSignal {
			return false, fmt.Errorf("%v, %w", s, err)
		}
		if err := t.interrupt(); err != nil {
			return false, err
		}
		if err := mask(sigsetVictim); err != nil {
			return false, err
		}
		if err := t.cont(0); err != nil {
			return false, err
		}
		_, err = t.wait(patience)
		return false, err
	case damageTimeout:
		return true, t.rewind()
	}
	return false, nil
}

// sigsetVictim is the signal mask of testdata/transparency.c in a plain call: SIGUSR1, SIGUSR2 and SIGRTMIN+5 of glibc, which
// keeps the first two real-time signals for itself.
const sigsetVictim = 1<<(unix.SIGUSR1-1) | 1<<(unix.SIGUSR2-1) | 1<<(34+5-1)
