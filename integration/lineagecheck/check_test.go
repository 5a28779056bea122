package lineagecheck_test

import (
	"maps"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/reaper-shim/reaper/integration/lineagecheck"
)

// good is a run in which PID 1 (started at 100) forks 10, which it waits for, 11, which it never waits for, and 12, which forks 20
// and 21 and ends: 20 is in a session of its own forker and was reaped, 21 is in PID 1's and is left.
func good() lineagecheck.Input {
	logs := map[string]string{
		"1.100.log": `1000 init 1 5 0 3000 0
1001 fork 10 101 fork tree late 1
1002 fork 11 102 vfork tree never 1
1003 fork 12 103 clone3 daemon now 1
1009 wait pid 12 12 exit:0 0
1010 wait pidfd 10 10 exit:7 0
1011 done
`,
		"10.101.log": "1002 born 1 100 fork tree 1\n1003 exit exit:7\n",
		"11.102.log": "1002 born 1 100 vfork tree 1\n1003 exit signal:15\n",
		"12.103.log": `1003 born 1 100 clone3 daemon 1
1004 op setsid
1005 fork 20 104 fork tree never 12
1006 fork 21 105 fork tree never 12
1007 exit exit:0
`,
		"20.104.log": "1006 born 12 103 fork tree 2\n1012 exit exit:3\n",
		"21.105.log": "1007 born 12 103 fork tree 2\n1012 exit signal:9\n",
	}
	return lineagecheck.Input{
		Logs:    dir(logs),
		Orphans: []lineagecheck.Orphan{{PID: 20, Status: 3, At: time.Unix(0, 1013)}},
		Children: []lineagecheck.Child{
			{Process: lineagecheck.Process{PID: 11, Start: 102}, Zombie: true, Session: 1},
			{Process: lineagecheck.Process{PID: 21, Start: 105}, Zombie: true, Session: 1},
		},
	}
}

func dir(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

// edit replaces text in one of the logs.
func edit(in *lineagecheck.Input, name, from, to string) {
	m := maps.Clone(in.Logs.(fstest.MapFS))
	old := string(m[name].Data)
	if !strings.Contains(old, from) {
		panic("no " + from + " in " + name)
	}
	m[name] = &fstest.MapFile{Data: []byte(strings.Replace(old, from, to, 1))}
	in.Logs = m
}

func check(t *testing.T, in lineagecheck.Input) lineagecheck.Report {
	t.Helper()
	r, err := lineagecheck.Check(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGoodRun(t *testing.T) {
	r := check(t, good())
	if len(r.Violations) != 0 {
		t.Errorf("violations in a good run: %v", r.Violations)
	}
	if r.Leftover != 1 || r.LeftoverForeign != 0 {
		t.Errorf("%d left, %d of them foreign, want 1 and 0", r.Leftover, r.LeftoverForeign)
	}
	for name, want := range map[string]int{"process": 5, "fork.vfork": 1, "role.daemon": 1, "wait.pidfd": 1, "exit.signal": 2, "op.setsid": 1} {
		if r.Counts[name] != want {
			t.Errorf("count of %s is %d, want %d", name, r.Counts[name], want)
		}
	}
}

func TestViolations(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*lineagecheck.Input)
		rule   string
		text   string
	}{
		"ECHILD for an own child": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "wait pidfd 10 10 exit:7 0", "wait pidfd 10 0 - 10")
		}, lineagecheck.RuleLost, "pid 1 got no child processes"},
		"ESRCH from pidfd_open": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "wait pidfd 10 10 exit:7 0", "wait pidfd 10 0 - 3")
		}, lineagecheck.RuleLost, "no such process"},
		"ECHILD for a group": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "wait pid 12 12 exit:0 0", "wait group -12 0 - 10")
		}, lineagecheck.RuleLost, "wait group -12"},
		"ECHILD for any": {func(in *lineagecheck.Input) {
			edit(in, "12.103.log", "1007 exit", "1007 wait any -1 0 - 10\n1007 exit")
		}, lineagecheck.RuleLost, "wait any"},
		"EINTR without a handler": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "1009 wait", "1008 wait pid 12 0 - 4\n1009 wait")
		}, lineagecheck.RuleLost, "interrupted"},
		"vanished before its parent looked": {func(in *lineagecheck.Input) {
			edit(in, "12.103.log", "fork 20 104", "fork 20 0")
		}, lineagecheck.RuleLost, "vanished"},
		"a wrong status": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "exit:7", "exit:8")
		}, lineagecheck.RuleWrong, "status 8 of 10"},
		"killed by nobody": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "exit:7", "signal:9")
		}, lineagecheck.RuleWrong, "status 137 of 10"},
		"a status twice": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "1011 done", "1011 wait any -1 10 exit:7 0\n1011 done")
		}, lineagecheck.RuleWrong, "waited for before"},
		"an own child reported": {func(in *lineagecheck.Input) {
			in.Orphans = append(in.Orphans, lineagecheck.Orphan{PID: 11, Status: 143, At: time.Unix(0, 1005)})
		}, lineagecheck.RuleOwn, "11 (start 102)"},
		"an own child gone without a word": {func(in *lineagecheck.Input) {
			in.Children = in.Children[1:]
		}, lineagecheck.RuleOwn, "is gone"},
		"an own child reported that was waited for": {func(in *lineagecheck.Input) {
			in.Orphans = append(in.Orphans, lineagecheck.Orphan{PID: 10, Status: 7, At: time.Unix(0, 1005)})
		}, lineagecheck.RuleEvent, "got its status"},
		"an orphan reported with a wrong status": {func(in *lineagecheck.Input) {
			in.Orphans[0].Status = 4
		}, lineagecheck.RuleEvent, "status 4"},
		"an orphan reported twice": {func(in *lineagecheck.Input) {
			in.Orphans = append(in.Orphans, in.Orphans[0])
		}, lineagecheck.RuleEvent, "twice"},
		"an orphan reported that never was": {func(in *lineagecheck.Input) {
			in.Orphans[0].PID = 99
		}, lineagecheck.RuleEvent, "nobody forked"},
		"an orphan left in spite of a fork log": {func(in *lineagecheck.Input) {
			in.ForkLog = true
		}, lineagecheck.RuleLeftover, "21 (start 105)"},
		"an orphan left in a third session": {func(in *lineagecheck.Input) {
			in.Children[1].Session = 12
		}, lineagecheck.RuleLeftover, "session 12"},
		"PID 1 did not finish": {func(in *lineagecheck.Input) {
			edit(in, "1.100.log", "1011 done\n", "")
		}, lineagecheck.RuleLog, "end"},
	} {
		t.Run(name, func(t *testing.T) {
			in := good()
			tt.change(&in)
			r := check(t, in)
			for _, v := range r.Violations {
				if v.Rule == tt.rule && strings.Contains(v.Text, tt.text) {
					return
				}
			}
			t.Errorf("violations %v, want %q with %q", r.Violations, tt.rule, tt.text)
		})
	}
}

// What somebody killed ended by that or as it meant to; both are right.
func TestKilled(t *testing.T) {
	in := good()
	edit(&in, "1.100.log", "1009 wait", "1008 kill 10 101 9\n1009 wait")
	edit(&in, "1.100.log", "exit:7", "signal:9")
	if r := check(t, in); len(r.Violations) != 0 {
		t.Errorf("violations: %v", r.Violations)
	}
}

// A number that comes back belongs to the process that had it at the time.
func TestNumberUsedAgain(t *testing.T) {
	in := good()
	edit(&in, "1.100.log", "1011 done", "2000 fork 10 900 fork tree late 1\n2002 wait pid 10 10 exit:5 0\n2003 done")
	m := maps.Clone(in.Logs.(fstest.MapFS))
	m["10.900.log"] = &fstest.MapFile{Data: []byte("2001 born 1 100 fork tree 1\n2001 exit exit:5\n")}
	in.Logs = m
	if r := check(t, in); len(r.Violations) != 0 {
		t.Errorf("violations: %v", r.Violations)
	}
	edit(&in, "1.100.log", "2002 wait pid 10 10 exit:5 0", "2002 wait pid 10 0 - 10")
	if r := check(t, in); len(r.Violations) == 0 {
		t.Error("the second child with a number was lost, and the first one's wait hid it")
	}
}

// With the session rule inverted the shim would take PID 1's own children.
func TestInvertedSessionRuleIsFound(t *testing.T) {
	in, n, err := lineagecheck.InvertSession(good())
	if err != nil || n != 1 {
		t.Fatalf("%d children taken, %v; want 1", n, err)
	}
	if r := check(t, in); len(r.Violations) == 0 || r.Violations[0].Rule != lineagecheck.RuleOwn {
		t.Errorf("violations %v, want %q", r.Violations, lineagecheck.RuleOwn)
	}
}

func TestBadLogs(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"none":           {},
		"without PID 1":  {"5.1.log": "1 born 1 1 fork tree 1\n"},
		"a bad name":     {"x.log": "1 done\n"},
		"an unknown one": {"1.1.log": "1 frok 2 3\n"},
		"a torn line":    {"1.1.log": "1 init 1 2 3 4 5\n2 fork 10\n"},
		"a bad number":   {"1.1.log": "1 init 1 2 3 4 5\n2 wait pid x 5 exit:1 0\n"},
		"a bad status":   {"1.1.log": "1 exit stop:1\n"},
	} {
		if _, err := lineagecheck.Check(lineagecheck.Input{Logs: dir(files)}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
