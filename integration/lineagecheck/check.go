// Package lineagecheck compares what the processes of a tree wrote down (integration/testprogs/proctree.c) with what a shim
// says it reaped and with what is left, and finds every status that was taken from the process it belonged to. It is pure:
// logs and observations in, violations out.
package lineagecheck

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process identifies a process of the container: its number there and its start time (field 22 of proc_pid_stat(5)).
type Process struct {
	PID   int
	Start uint64
}

// Orphan is a process that the shim says it reaped.
type Orphan struct {
	PID    int    // in the container
	Status uint32 // the exit code, or 128 and the number of the signal
	At     time.Time
}

// Child is a child of PID 1 that was there at the end.
type Child struct {
	Process
	Zombie  bool
	Session int // in the container
}

// Input is everything that is known of a run.
type Input struct {
	Logs     fs.FS // the directory of proctree's logs
	Orphans  []Orphan
	Children []Child // at the end, when nothing changed any more
	// ForkLog: the shim had a fork log, so that no adopted orphan may be left.
	ForkLog bool
	// Off: the shim reaps nothing; whatever is left is right.
	Off bool
}

// Violation is a promise that was not kept.
type Violation struct {
	Rule string // see the constants
	Text string
}

func (v Violation) String() string { return v.Rule + ": " + v.Text }

// The rules of violations.
const (
	RuleLost     = "status lost"     // a parent could not get the status of its child
	RuleWrong    = "wrong status"    // a parent got another status than its child's
	RuleOwn      = "own child taken" // the shim reaped a child that PID 1 forked
	RuleEvent    = "wrong event"     // the shim reported something that is not so
	RuleLeftover = "orphan left"     // a provable orphan was not reaped
	RuleLog      = "log"             // the logs contradict themselves: the generator is wrong, or the machine
)

// Report is what Check found.
type Report struct {
	Violations []Violation
	// Counts says how often everything was done, by name: fork.vfork, role.daemon, wait.pidfd, …
	Counts map[string]int
	// Leftover counts the adopted orphans that are zombies at the end, LeftoverForeign those of them in a session that
	// is neither PID 1's nor their own.
	Leftover, LeftoverForeign int
}

// process is one process as the logs know it.
type process struct {
	id        Process
	parent    Process // that may wait for it; zero when unknown
	forked    int64   // ns, when its parent logged it or it logged itself, whichever was first
	intended  []uint32
	waited    bool
	ownOfPID1 bool
}

type checker struct {
	in      Input
	procs   map[Process]*process
	byPID   map[int][]*process // by start time
	waits   []wait
	report  Report
	finish  bool // PID 1 came to its end
	sawInit bool
}

type wait struct {
	by          Process
	at          int64
	how, line   string
	asked, got  int
	status      string
	errno       int
	forkedSoFar []Process
}

// load reads the logs.
func load(in Input) (*checker, error) {
	c := &checker{in: in, procs: map[Process]*process{}, byPID: map[int][]*process{}}
	c.report.Counts = map[string]int{}
	names, err := fs.Glob(in.Logs, "*.log")
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	for _, name := range names {
		if err := c.readLog(name); err != nil {
			return nil, fmt.Errorf("log %s: %w", name, err)
		}
	}
	if !c.sawInit {
		return nil, fmt.Errorf("no log of PID 1 among %d", len(names))
	}
	for _, p := range c.procs {
		c.byPID[p.id.PID] = append(c.byPID[p.id.PID], p)
	}
	for _, ps := range c.byPID {
		slices.SortFunc(ps, func(a, b *process) int { return cmp.Compare(a.forked, b.forked) })
	}
	return c, nil
}

// Check checks a run. An error says that the logs cannot be read; what the logs say is in the report.
func Check(in Input) (Report, error) {
	c, err := load(in)
	if err != nil {
		return Report{}, err
	}
	if !c.finish {
		c.violate(RuleLog, "PID 1 did not come to its end")
	}
	c.checkWaits()
	c.checkOrphans()
	c.checkChildren()
	c.report.Counts["process"] = len(c.procs) - 1 // without PID 1
	c.report.Counts["orphan.reported"] = len(in.Orphans)
	return c.report, nil
}

func (c *checker) violate(rule, format string, args ...any) {
	c.report.Violations = append(c.report.Violations, Violation{rule, fmt.Sprintf(format, args...)})
}

func (c *checker) process(id Process, at int64) *process {
	p := c.procs[id]
	if p == nil {
		p = &process{id: id, forked: at}
		c.procs[id] = p
	}
	p.forked = min(p.forked, at)
	return p
}

// parseName takes the identity of the writer from the name of its log.
func parseName(name string) (Process, error) {
	pid, start, ok := strings.Cut(strings.TrimSuffix(name, ".log"), ".")
	if !ok {
		return Process{}, fmt.Errorf("name is not <pid>.<start>.log")
	}
	return parseProcess(pid, start)
}

func parseProcess(pid, start string) (Process, error) {
	p, err := strconv.Atoi(pid)
	if err != nil {
		return Process{}, fmt.Errorf("pid: %w", err)
	}
	s, err := strconv.ParseUint(start, 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("start time: %w", err)
	}
	return Process{p, s}, nil
}

// arity is the number of words that follow each kind of line.
var arity = map[string]int{
	"init": 5, "born": 5, "op": 1, "thread": 2, "fork": 6, "sibling": 2, "kill": 3, "wait": 5, "exit": 1, "done": 0, "error": 2,
}

func (c *checker) readLog(name string) error {
	self, err := parseName(name)
	if err != nil {
		return err
	}
	data, err := fs.ReadFile(c.in.Logs, name)
	if err != nil {
		return err
	}
	var children []Process // of self, so far
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		f := strings.Fields(line)
		if len(f) < 2 {
			return fmt.Errorf("line %q: too short", line)
		}
		if n, ok := arity[f[1]]; !ok || len(f) != n+2 {
			return fmt.Errorf("line %q: unknown, or not %d words", line, n+2)
		}
		at, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return fmt.Errorf("line %q: time: %w", line, err)
		}
		me := c.process(self, at)
		switch f[1] {
		case "init":
			c.sawInit = true
		case "born":
			// The parent of a sibling is said by its parent.
			if f[4] != "cloneparent" {
				if me.parent, err = parseProcess(f[2], f[3]); err != nil {
					return fmt.Errorf("line %q: %w", line, err)
				}
				me.ownOfPID1 = me.ownOfPID1 || me.parent.PID == 1
			}
		case "op":
			c.report.Counts["op."+f[2]]++
		case "thread":
			c.report.Counts["thread."+f[2]]++
		case "fork", "sibling", "kill":
			id, err := parseProcess(f[2], f[3])
			if err != nil {
				return fmt.Errorf("line %q: %w", line, err)
			}
			c.readChild(self, id, at, f, line, &children)
		case "wait":
			w := wait{by: self, at: at, how: f[2], status: f[5], line: line, forkedSoFar: slices.Clone(children)}
			for i, to := range map[int]*int{3: &w.asked, 4: &w.got, 6: &w.errno} {
				if *to, err = strconv.Atoi(f[i]); err != nil {
					return fmt.Errorf("line %q: %w", line, err)
				}
			}
			c.report.Counts["wait."+w.how]++
			if w.got > 0 {
				// The number may come back: only what is forked from here on can have it.
				children = slices.DeleteFunc(children, func(p Process) bool { return p.PID == w.got })
			}
			c.waits = append(c.waits, w)
		case "exit":
			status, err := parseStatus(f[2])
			if err != nil {
				return fmt.Errorf("line %q: %w", line, err)
			}
			me.intended = append(me.intended, status)
			kind, _, _ := strings.Cut(f[2], ":")
			c.report.Counts["exit."+kind]++
		case "done":
			c.finish = c.finish || self.PID == 1
		case "error":
			c.violate(RuleLog, "pid %d: %s", self.PID, line)
		}
	}
	return nil
}

// readChild reads a line about another process.
func (c *checker) readChild(self, id Process, at int64, f []string, line string, children *[]Process) {
	if id.Start == 0 {
		// Unless somebody has reaped it, a child that nobody has waited for is in /proc.
		c.violate(RuleLost, "pid %d: child vanished before its parent had waited for it: %s", self.PID, line)
		return
	}
	switch f[1] {
	case "kill":
		p := c.process(id, at)
		if sig, err := strconv.ParseUint(f[4], 10, 8); err == nil {
			p.intended = append(p.intended, 128+uint32(sig))
		}
		c.report.Counts["kill"]++
		return
	case "fork":
		c.report.Counts["fork."+f[4]]++
		c.report.Counts["role."+f[5]]++
		c.report.Counts["policy."+f[6]]++
		if self.PID == 1 {
			c.report.Counts["policy1."+f[6]]++
		}
		if f[7] != strconv.Itoa(self.PID) {
			c.report.Counts["fork.by-thread"]++
		}
		if f[4] == "cloneparent" {
			return // not a child of the one that made it
		}
	}
	p := c.process(id, at)
	p.parent = self
	p.ownOfPID1 = self.PID == 1
	*children = append(*children, id)
}

// parseStatus turns exit:<n> or signal:<n> into what a TaskExit carries.
func parseStatus(s string) (uint32, error) {
	kind, n, _ := strings.Cut(s, ":")
	code, err := strconv.ParseUint(n, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("status %q: %w", s, err)
	}
	switch kind {
	case "exit":
		return uint32(code), nil
	case "signal":
		return 128 + uint32(code), nil
	}
	return 0, fmt.Errorf("status %q: neither exit nor signal", s)
}

// incarnation finds the process that had a number at a time.
func (c *checker) incarnation(pid int, at int64) *process {
	var found *process
	for _, p := range c.byPID[pid] {
		if found == nil || p.forked <= at {
			found = p
		}
	}
	return found
}

func (c *checker) checkWaits() {
	slices.SortStableFunc(c.waits, func(a, b wait) int { return cmp.Compare(a.at, b.at) })
	for _, w := range c.waits {
		if w.got <= 0 {
			c.checkFailedWait(w)
			continue
		}
		p := c.incarnation(w.got, w.at)
		if i := slices.IndexFunc(w.forkedSoFar, func(id Process) bool { return id.PID == w.got }); i >= 0 {
			p = c.procs[w.forkedSoFar[i]]
		}
		switch {
		case p == nil:
			c.violate(RuleLog, "pid %d waited for %d, which nobody forked: %s", w.by.PID, w.got, w.line)
			continue
		case p.waited:
			c.violate(RuleWrong, "pid %d got the status of %d, which was waited for before: %s", w.by.PID, w.got, w.line)
			continue
		case p.parent != w.by && w.by.PID != 1:
			c.violate(RuleLog, "pid %d got the status of %d, a child of %d: %s", w.by.PID, w.got, p.parent.PID, w.line)
		case p.parent != w.by:
			c.report.Counts["wait.adopted"]++
		}
		p.waited = true
		switch status, err := parseStatus(w.status); {
		case err != nil:
			c.violate(RuleLog, "%s: %v", w.line, err)
		case !slices.Contains(p.intended, status):
			c.violate(RuleWrong, "pid %d got status %d of %d, which meant to end with %v: %s",
				w.by.PID, status, w.got, p.intended, w.line)
		}
	}
}

func (c *checker) checkFailedWait(w wait) {
	target := w.asked
	if w.how == "group" {
		target = -w.asked
	}
	forked := func(id Process) bool { return target == -1 || id.PID == target }
	switch errno := syscall.Errno(w.errno); {
	case slices.ContainsFunc(w.forkedSoFar, forked):
		c.violate(RuleLost, "pid %d got %v for a child that it forked and had not waited for: %s", w.by.PID, errno, w.line)
	case errno != syscall.ECHILD:
		c.violate(RuleLost, "pid %d: %v from a wait: %s", w.by.PID, errno, w.line)
	default:
		c.violate(RuleLog, "pid %d waited for what it did not fork: %s", w.by.PID, w.line)
	}
}

func (c *checker) checkOrphans() {
	reported := map[Process]Orphan{}
	for _, o := range c.in.Orphans {
		p := c.incarnation(o.PID, o.At.UnixNano())
		if p == nil {
			c.violate(RuleEvent, "an orphan %d was reported, and nobody forked it", o.PID)
			continue
		}
		if before, twice := reported[p.id]; twice {
			c.violate(RuleEvent, "orphan %d was reported twice: %v and %v", o.PID, before, o)
			continue
		}
		reported[p.id] = o
		switch {
		case p.ownOfPID1 && p.waited:
			c.violate(RuleEvent, "%d is a child of PID 1, which got its status, and was reported as an orphan", o.PID)
		case p.ownOfPID1:
			c.violate(RuleOwn, "%d (start %d) is a child of PID 1, which had not waited for it, and was reaped as an orphan",
				o.PID, p.id.Start)
		case p.waited:
			c.violate(RuleEvent, "orphan %d was reported although pid %d or PID 1 got its status", o.PID, p.parent.PID)
		}
		if !slices.Contains(p.intended, o.Status) {
			c.violate(RuleEvent, "orphan %d was reported with status %d and meant to end with %v", o.PID, o.Status, p.intended)
		}
	}
}

func (c *checker) checkChildren() {
	there := map[Process]bool{}
	for _, child := range c.in.Children {
		there[child.Process] = true
		p := c.procs[child.Process]
		if p == nil {
			c.violate(RuleLog, "child %d (start %d) of PID 1 has no log", child.PID, child.Start)
			continue
		}
		if p.ownOfPID1 || !child.Zombie {
			continue
		}
		c.report.Leftover++
		foreign := child.Session > 1 && child.Session != child.PID
		if foreign {
			c.report.LeftoverForeign++
		}
		switch {
		case c.in.Off:
		case c.in.ForkLog:
			c.violate(RuleLeftover, "%d (start %d), forked by %d, is left in spite of the fork log", child.PID, child.Start, p.parent.PID)
		case foreign:
			c.violate(RuleLeftover, "%d (start %d), forked by %d, is left although it is in session %d",
				child.PID, child.Start, p.parent.PID, child.Session)
		}
	}
	// Whoever was reaped without an event is missed here. Nobody has asked for these statuses, but somebody could have.
	for _, id := range slices.SortedFunc(maps.Keys(c.procs), func(a, b Process) int { return a.PID - b.PID }) {
		if p := c.procs[id]; p.ownOfPID1 && !p.waited && !there[id] {
			c.violate(RuleOwn, "%d (start %d) is a child of PID 1, which never waited for it, and is gone", id.PID, id.Start)
		}
	}
}

// InvertSession returns the run as it would have been had the shim taken PID 1's own children, those in PID 1's session, for
// orphans: they are gone at the end, and reported. It returns how many. A checker that finds nothing then checks nothing.
func InvertSession(in Input) (Input, int, error) {
	c, err := load(in)
	if err != nil {
		return Input{}, 0, err
	}
	out, n := in, 0
	out.Children = nil
	out.Orphans = slices.Clone(in.Orphans)
	for _, child := range in.Children {
		p := c.procs[child.Process]
		if p == nil || !p.ownOfPID1 || !child.Zombie || child.Session != 1 || len(p.intended) == 0 {
			out.Children = append(out.Children, child)
			continue
		}
		out.Orphans = append(out.Orphans, Orphan{PID: child.PID, Status: p.intended[0], At: time.Unix(0, p.forked)})
		n++
	}
	return out, n, nil
}
