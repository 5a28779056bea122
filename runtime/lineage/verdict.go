package lineage

import (
	"strings"

	"github.com/reaper-shim/reaper/internal/fault"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Verdict says who forked a zombie.
type Verdict uint8

// The verdicts. Only Own and Adopted are proofs.
const (
	Unproven Verdict = iota
	Own              // PID 1 forked it and may ask for its status
	Adopted          // another process forked it: PID 1 only inherited it
)

// String returns "unproven", "own" or "adopted".
func (v Verdict) String() string {
	switch v {
	case Own:
		return "own"
	case Adopted:
		return "adopted"
	default:
		return "unproven"
	}
}

// Rules is a set of rules that spoke.
type Rules uint8

// The rules, see the package documentation.
const (
	RuleThread  Rules = 1 << iota // T
	RuleSession                   // S
	RuleSeen                      // L
	RuleForkLog                   // F
)

// String returns the letters of the rules in the set, or "-".
func (r Rules) String() string {
	var b strings.Builder
	for _, rule := range []struct {
		bit    Rules
		letter byte
	}{{RuleThread, 'T'}, {RuleSession, 'S'}, {RuleSeen, 'L'}, {RuleForkLog, 'F'}} {
		if r&rule.bit != 0 {
			b.WriteByte(rule.letter)
		}
	}
	if b.Len() == 0 {
		return "-"
	}
	return b.String()
}

// Fork is what a log of PID 1's forks says of a child (package forklog).
type Fork uint8

// The answers of a fork log.
const (
	ForkUnknown Fork = iota // there is no log, or it was not complete when the child was born
	ForkedByInit
	ForkedByOther // born while the log was complete, and not by PID 1
)

// String returns "unknown", "forked by init" or "forked by other".
func (f Fork) String() string {
	switch f {
	case ForkedByInit:
		return "forked by init"
	case ForkedByOther:
		return "forked by other"
	default:
		return "unknown"
	}
}

// Init is what is known of a PID 1 for as long as it lives.
type Init struct {
	PID procfs.HostPID
	// SessionLeader: its session was its own PID when it was looked at before it ran its first instruction. Only then
	// does rule S speak: a PID 1 that becomes session leader later has children in its earlier session.
	SessionLeader bool
}

// Evidence is what a sweep saw of one zombie child of PID 1.
type Evidence struct {
	Init        Init
	LeaderAlive bool // the leader thread of PID 1 has not exited

	PID     procfs.HostPID // of the zombie
	Session procfs.HostPID // of the zombie
	// Thread is the thread of PID 1 on whose children list the zombie was found; 0 when it is not known.
	Thread procfs.HostPID
	// SeenUnder is the other living parent that the same process was seen under; 0 when never.
	SeenUnder procfs.HostPID
	// Fork is what the fork log says.
	Fork Fork
}

// Judgement is a verdict with the rules that gave it.
type Judgement struct {
	Verdict Verdict
	Rules   Rules
	// Contradiction: one rule says own and another adopted. The verdict is Unproven then, and somebody should look:
	// either a rule is wrong or a child of PID 1 made a sibling with CLONE_PARENT.
	Contradiction bool
}

// Judge weighs the evidence.
func Judge(e Evidence) Judgement {
	var own, adopted Rules

	// With the leader gone, adopted children hang on other threads as well and the list says nothing.
	if e.LeaderAlive && e.Thread != 0 && e.Thread != e.Init.PID {
		own |= RuleThread
	}
	// Sessions 0 and -1 are read from processes that are just vanishing, or belong to leaders outside this PID namespace
	// view: never evidence. The zombie's own number is a session that it made itself.
	if e.Init.SessionLeader && e.Session > 0 && (e.Session != e.Init.PID && e.Session != e.PID) != fault.InvertSession {
		adopted |= RuleSession
	}
	if e.SeenUnder > 0 && e.SeenUnder != e.Init.PID {
		adopted |= RuleSeen
	}

	switch e.Fork {
	case ForkedByInit:
		own |= RuleForkLog
	case ForkedByOther:
		adopted |= RuleForkLog
	}

	switch {
	case own != 0 && adopted != 0:
		return Judgement{Verdict: Unproven, Rules: own | adopted, Contradiction: true}
	case own != 0:
		return Judgement{Verdict: Own, Rules: own}
	case adopted != 0:
		return Judgement{Verdict: Adopted, Rules: adopted}
	default:
		return Judgement{Verdict: Unproven}
	}
}
