package reaperctl

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/internal/scan"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/shim/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// hostile is a name that clears the screen, turns the direction of writing, and looks like two columns.
const hostile = "a\x1b[2J\u202e  b\\\"\n\xff"

var webNames = node.Names{Pod: "web-1", PodNamespace: "shop", PodUID: "u", Container: "app"}

func sampleTasks() []*node.Task {
	return []*node.Task{
		{
			Namespace: "k8s.io", ID: "0123456789ab", Names: webNames, Image: "docker.io/library/node:22", Runtime: "io.containerd.reaper.v2",
			PID: 4711, Status: "running", PIDs: node.PIDs{Current: 85, Max: 100}, Ours: true, Revision: 1,
			Stats: &api.ZombieStats{
				ContainerId: "0123456789ab", Pid: 4711, Mode: "assist", EffectiveMode: "observe", EffectiveModeReason: "no reaper-tracer",
				GraceInForce: durationpb.New(time.Second), Adopted: 3, Own: 1, Unproven: 2, Held: 4, Oldest: durationpb.New(93 * time.Second),
				ReapedByTracer: 10, ReapedByShim: 2, ReapedByInit: 1, Vanished: 5, Attaches: 7, LongestStop: durationpb.New(1500 * time.Microsecond),
				Refusals: map[string]uint64{"busy": 2, "traced": 1}, Contradictions: 1,
				ForkLog: &api.ForkLog{Source: "connector", Forks: 20, Lost: 1, Gaps: 1, Reason: "no CAP_PERFMON"},
			},
		},
		{Namespace: "default", ID: "abc", Names: node.Names{Nerdctl: hostile}, Runtime: "io.containerd.runc.v2", PID: 5, Status: "running",
			PIDs: node.PIDs{Current: 3}},
		{Namespace: "default", ID: "gone", Runtime: "io.containerd.reaper.v2", Status: "stopped", Err: errors.New("ask the shim of gone: connection refused")},
	}
}

func sampleList() TaskList {
	list := TaskList{header: kind("TaskList"), Tasks: []Task{}}
	for _, t := range sampleTasks() {
		list.Tasks = append(list.Tasks, taskOf(t))
	}
	return list
}

func sampleZombies() ZombieList {
	c := containerOf(sampleTasks()[0])
	return ZombieList{header: kind("ZombieList"), Omitted: 2, Zombies: []Zombie{
		zombieOf(c, &api.Zombie{ContainerId: c.ID, Pid: 50, NsPid: 7, Command: hostile, Age: durationpb.New(1200 * time.Millisecond), Session: 49,
			Verdict: "adopted", Rules: "SF", ParentPid: 4711, ParentCommand: "node", ExitStatus: 7}),
		zombieOf(c, &api.Zombie{Pid: 51, Command: "curl", Session: 4711, Verdict: "held", Rules: "-", ParentPid: 60, ParentCommand: "worker", ExitStatus: 137}),
		zombieOf(c, &api.Zombie{Pid: 52, NsPid: 9, Command: "x", Age: durationpb.New(3 * time.Hour), Verdict: "unproven", Rules: "SF", Contradiction: true,
			ParentPid: 4711, ParentCommand: "node"}),
	}}
}

func sampleScan() ScanResult {
	uptime := 1000 * time.Second
	zs := []scan.Zombie{
		{PID: 50, Command: "sh", StartTime: 99000, Status: 7 << 8}, {PID: 51, Command: "sh", StartTime: 90000, Status: 9},
		{PID: 52, Command: hostile, StartTime: 99990},
	}
	groups := []ScanGroup{
		scanGroup(scan.Group{Cgroup: "/k/c", Current: 4, Max: 10, Parents: []scan.Parent{{PID: 4711, NSPID: 1, Command: "node", Zombies: zs}}}, sampleTasks()[0], nil, uptime),
		scanGroup(scan.Group{Cgroup: "/docker/d1", Engine: "docker", ID: "d1", Parents: []scan.Parent{{PID: 90, NSPID: 8, Command: "worker", Zombies: zs[:1]}}}, nil,
			map[string]string{"d1": "web"}, uptime),
		scanGroup(scan.Group{Cgroup: "/system.slice/cron.service", Parents: []scan.Parent{{PID: 80, NSPID: 80, Command: "cron", Zombies: zs[:1]}}}, nil, nil, uptime),
	}
	return ScanResult{header: kind("ScanResult"), Processes: 200, PIDMax: 32768, Zombies: 5, Groups: groups}
}

// sampleLeaks has one leak of each verdict.
func sampleLeaks() LeakReport {
	web := sampleTasks()[0]
	c1 := scan.Leak{Cgroup: "/k/c", Command: "helper", Origin: scan.Orphan, Parent: "node", ParentPID: 4711, Init: true, LeftBy: "git"}
	with := func(command string, origin scan.Origin, leftBy string) scan.Leak {
		l := c1
		l.Command, l.Origin, l.LeftBy = command, origin, leftBy
		return l
	}
	verdicts := map[procfs.HostPID]string{60: "own", 61: "unproven"}
	tally := func(pid procfs.HostPID) *scan.Tally {
		return &scan.Tally{Before: map[int]int{0: 2}, New: map[int]int{7 << 8: 4, 9: 1, 1 << 8: 1, 2 << 8: 1}, PIDs: []procfs.HostPID{pid}}
	}
	r := LeakReport{header: kind("LeakReport"), Seconds: 36, Omitted: 3, Reaped: []ReapedTask{
		{Container: containerOf(web), Reaped: 13, Seconds: 3600, PerHour: 13},
	}}
	for _, l := range []struct {
		leak scan.Leak
		pid  procfs.HostPID
		task *node.Task
	}{
		{c1, 50, web}, {with(hostile, scan.Orphan, ""), 51, nil}, {with("own", scan.Unknown, ""), 60, web}, {with("who", scan.Unknown, ""), 61, web},
		{with("who", scan.Unknown, ""), 62, nil}, {scan.Leak{Command: "job", Origin: scan.Held, Parent: "cron", ParentPID: 80}, 63, nil},
	} {
		r.Leaks = append(r.Leaks, leakOf(l.leak, tally(l.pid), l.task, verdicts, 36*time.Second))
	}
	return r
}

// TestGolden: what is printed is an interface. After a change that is meant: go test ./internal/reaperctl -update.
func TestGolden(t *testing.T) {
	reaped := ReapResult{header: kind("ReapResult"), Container: containerOf(sampleTasks()[0]), Reaped: 3, Left: 2, ProvenLeft: 1, Declined: "busy",
		Detail: "no thread is in a call that may be interrupted"}
	diagnosis := Diagnosis{header: kind("Diagnosis"), Checks: []Check{
		ok("kernel", "Linux 6.12"), ok("ptrace", "forbidden").but(statusFail, "use mode init"), ok("task default/"+hostile, "x").but(statusNote, "y"),
	}}
	for _, tt := range []struct {
		name  string
		doc   any
		table func(bool) *table
	}{
		{"ps", sampleList(), sampleList().table},
		{"zombies", sampleZombies(), sampleZombies().table},
		{"reap", reaped, reaped.table},
		{"scan", sampleScan(), sampleScan().table},
		{"doctor", diagnosis, diagnosis.table},
		{"leaks", sampleLeaks(), sampleLeaks().table},
		{"ps-empty", TaskList{header: kind("TaskList"), Tasks: []Task{}}, TaskList{}.table},
	} {
		for _, format := range formats {
			var out bytes.Buffer
			a := &app{out: &out, format: format}
			if err := a.print(tt.doc, tt.table); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name+"."+format, out.Bytes())
		}
	}
	var colored bytes.Buffer
	a := &app{out: &colored, format: formatTable, color: true}
	if err := a.print(sampleList(), sampleList().table); err != nil {
		t.Fatal(err)
	}
	golden(t, "ps-color.table", colored.Bytes())
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if bytes.Contains(got, []byte("\u202e")) || bytes.Contains(got, []byte("\x1b[2J")) {
		t.Errorf("%s: not escaped: %q", name, got)
	}
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has changed:\n%s\nwant:\n%s", name, got, want)
	}
}

func envelope(t *testing.T, topic string, m proto.Message) *types.Envelope {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &types.Envelope{Timestamp: timestamppb.New(time.Unix(1e9, 0)), Namespace: "default", Topic: topic,
		Event: &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}}
}

func TestEvents(t *testing.T) {
	t.Setenv("TZ", "UTC")
	time.Local = time.UTC
	exit := &eventstypes.TaskExit{ContainerID: "c1", ID: "orphan-13", Pid: 99, ExitStatus: 7, ExitedAt: timestamppb.New(time.Unix(1e9, 0))}
	stats := &api.ZombieStats{ContainerId: "c1", Mode: "assist", EffectiveMode: "assist", Adopted: 2, ReapedByTracer: 4, Final: true}
	var lines, docs, yamls bytes.Buffer
	for _, env := range []*types.Envelope{envelope(t, topicExit, exit), envelope(t, topicZombies, stats)} {
		ev, ours := decode(env)
		if !ours {
			t.Fatalf("%v is not decoded", env)
		}
		for format, out := range map[string]*bytes.Buffer{formatWide: &lines, formatJSON: &docs, formatYAML: &yamls} {
			if err := (&app{out: out, format: format}).printEvent(ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	golden(t, "events.wide", lines.Bytes())
	golden(t, "events.json", docs.Bytes())
	golden(t, "events.yaml", yamls.Bytes())

	foreign := envelope(t, topicZombies, stats)
	foreign.Event.TypeUrl = "example.com.Other"
	broken := envelope(t, topicZombies, stats)
	broken.Event.Value = []byte{0xff}
	for _, env := range []*types.Envelope{
		envelope(t, topicExit, &eventstypes.TaskExit{ContainerID: "c1", ID: "c1", Pid: 1}), envelope(t, "/tasks/start", exit), foreign, broken,
	} {
		if ev, ours := decode(env); ours {
			t.Errorf("%v is taken for %+v", env, ev)
		}
	}
}
