package lineage

import (
	"testing"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

func TestJudge(t *testing.T) {
	leader := Init{PID: 100, SessionLeader: true}
	tests := []struct {
		name string
		e    Evidence
		want Judgement
	}{
		{"child of an exec: a session of its own making",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 200, Thread: 100},
			Judgement{Verdict: Adopted, Rules: RuleSession}},
		{"in PID 1's session: anybody's",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 100},
			Judgement{Verdict: Unproven}},
		{"a child of PID 1 that called setsid itself",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 205, Thread: 100},
			Judgement{Verdict: Unproven}},
		{"B2: a PID 1 that was no session leader has children in any session",
			Evidence{Init: Init{PID: 100}, LeaderAlive: true, PID: 205, Session: 200, Thread: 100},
			Judgement{Verdict: Unproven}},
		{"B3: session -1 is a process that is vanishing",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: -1, Thread: 100},
			Judgement{Verdict: Unproven}},
		{"B3: session 0 is a leader out of sight",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 0, Thread: 100},
			Judgement{Verdict: Unproven}},
		{"on a thread of PID 1 that is not its leader",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 103},
			Judgement{Verdict: Own, Rules: RuleThread}},
		{"B1: with the leader gone the thread says nothing",
			Evidence{Init: leader, PID: 205, Session: 100, Thread: 103},
			Judgement{Verdict: Unproven}},
		{"B1: with the leader gone the session still does",
			Evidence{Init: leader, PID: 205, Session: 200, Thread: 103},
			Judgement{Verdict: Adopted, Rules: RuleSession}},
		{"thread not known (no children file)",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100},
			Judgement{Verdict: Unproven}},
		{"seen under another parent",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 100, SeenUnder: 204},
			Judgement{Verdict: Adopted, Rules: RuleSeen}},
		{"seen under PID 1 itself proves nothing",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 100, SeenUnder: 100},
			Judgement{Verdict: Unproven}},
		{"two rules that agree",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 200, Thread: 100, SeenUnder: 204},
			Judgement{Verdict: Adopted, Rules: RuleSession | RuleSeen}},
		{"the log has heard of PID 1 forking it",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 100, Fork: ForkedByInit},
			Judgement{Verdict: Own, Rules: RuleForkLog}},
		{"the log was complete and has not",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 100, Fork: ForkedByOther},
			Judgement{Verdict: Adopted, Rules: RuleForkLog}},
		{"C2: CLONE_PARENT into another session: session against the connector's log",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 200, Thread: 100, Fork: ForkedByInit},
			Judgement{Verdict: Unproven, Rules: RuleSession | RuleForkLog, Contradiction: true}},
		{"thread against log",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 103, Fork: ForkedByOther},
			Judgement{Verdict: Unproven, Rules: RuleThread | RuleForkLog, Contradiction: true}},
		{"thread against session: left alone, and somebody should look",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 200, Thread: 103},
			Judgement{Verdict: Unproven, Rules: RuleThread | RuleSession, Contradiction: true}},
		{"thread against sighting",
			Evidence{Init: leader, LeaderAlive: true, PID: 205, Session: 100, Thread: 103, SeenUnder: 204},
			Judgement{Verdict: Unproven, Rules: RuleThread | RuleSeen, Contradiction: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Judge(tt.e); got != tt.want {
				t.Errorf("got %v by %v (contradiction %v), want %v by %v (%v)", got.Verdict, got.Rules, got.Contradiction,
					tt.want.Verdict, tt.want.Rules, tt.want.Contradiction)
			}
		})
	}
}

func TestStrings(t *testing.T) {
	if got := (RuleThread | RuleSeen | RuleForkLog).String(); got != "TLF" {
		t.Errorf("rules %q, want TLF", got)
	}
	if ForkUnknown.String() != "unknown" || ForkedByInit.String() != "forked by init" || ForkedByOther.String() != "forked by other" {
		t.Error("answers of a fork log have other names than the documented ones")
	}
	if got := Rules(0).String(); got != "-" {
		t.Errorf("no rules %q, want -", got)
	}
	if Own.String() != "own" || Adopted.String() != "adopted" || Unproven.String() != "unproven" || Verdict(9).String() != "unproven" {
		t.Error("verdicts have other names than the documented ones")
	}
}

func TestSightings(t *testing.T) {
	const init = 100
	st := procfs.Stat{PID: 205, PPID: 204, Session: 100, StartTime: 5000}
	for _, tt := range []struct {
		name string
		stat procfs.Stat
		now  uint64
		want bool
	}{
		{"two ticks old", st, 5002, true},
		{"A10: one tick old: another process may have the same PID and start time", st, 5001, false},
		{"A10: just born", st, 5000, false},
		{"the clock cannot be read", st, 0, false},
		{"a child of PID 1", procfs.Stat{PID: 205, PPID: init, StartTime: 5000}, 6000, false},
		{"A10: parent unknown", procfs.Stat{PID: 205, PPID: 0, Session: 7, StartTime: 5000}, 6000, false},
		{"B3: vanishing", procfs.Stat{PID: 205, PPID: 0, Session: -1, StartTime: 5000}, 6000, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSightings(4)
			if got := s.Saw(tt.stat, tt.now, init); got != tt.want {
				t.Errorf("Saw = %v, want %v", got, tt.want)
			}
			want := procfs.HostPID(0)
			if tt.want {
				want = tt.stat.PPID
			}
			if got := s.Parent(tt.stat.PID, tt.stat.StartTime); got != want {
				t.Errorf("Parent = %d, want %d", got, want)
			}
			if got := s.Parent(tt.stat.PID, tt.stat.StartTime+1); got != 0 {
				t.Errorf("another process with the same PID: Parent = %d, want 0", got)
			}
		})
	}
}

func TestSightingsAreBounded(t *testing.T) {
	s := NewSightings(3)
	see := func(pid procfs.HostPID) {
		s.Saw(procfs.Stat{PID: pid, PPID: 2, StartTime: 1}, 100, 1)
	}
	for pid := procfs.HostPID(10); pid < 13; pid++ {
		see(pid)
	}
	see(10) // seen again: now the one seen last
	see(13)
	if s.Len() != 3 || s.Parent(11, 1) != 0 || s.Parent(10, 1) == 0 || s.Parent(13, 1) == 0 {
		t.Errorf("after four processes in a memory of three: %d kept, 11 under %d, 10 under %d, 13 under %d",
			s.Len(), s.Parent(11, 1), s.Parent(10, 1), s.Parent(13, 1))
	}
	s.Forget(10, 1)
	s.Forget(99, 1)
	if s.Len() != 2 || s.Parent(10, 1) != 0 {
		t.Error("a forgotten process is still remembered")
	}
}
