package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/log"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/tracer"
	"github.com/reaper-shim/reaper/shim/api"
)

// newTestService is a service without containerd, and without a tracer.
func newTestService() *service {
	s := &service{
		proc: procfs.New(os.DirFS("/proc")), tasks: make(map[string]*task), watchers: make(map[uint64]*watcher), processors: goruntime.GOMAXPROCS(0),
	}
	s.children = newChildren(s)
	return s
}

// taskOf returns a task of which a new process is PID 1, in a namespace with a number that is made up, and what ends the process.
func taskOf(t *testing.T, s *service, id string, namespace uint64) (*task, func()) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	made := newTask(id, Config{Mode: ModeObserve})
	var err error
	if made.process, err = identify(s.proc, procfs.HostPID(cmd.Process.Pid), false); err != nil {
		t.Fatal(err)
	}
	made.namespace, made.ownsNS = namespace, true
	made.forks = openForks(id, made.pid, made.startTime, ForkLogOff, false, time.Now())
	s.tasks[id] = made
	return made, end
}

// slowReaper takes until it is told to end.
type slowReaper struct{ begun, end chan struct{} }

func (r slowReaper) Reap(context.Context, tracer.Request) (tracer.Report, error) {
	close(r.begun)
	<-r.end
	return tracer.Report{}, nil
}

// TestGate: who freezes waits for what is under way, nothing begins meanwhile, and who waits for that can give up.
func TestGate(t *testing.T) {
	r := slowReaper{make(chan struct{}), make(chan struct{})}
	g := &gate{reaper: r}
	go func() { _, _ = g.Reap(t.Context(), tracer.Request{}) }()
	<-r.begun
	locked := make(chan struct{})
	go func() {
		g.Lock()
		close(locked)
	}()
	select {
	case <-locked:
		t.Fatal("frozen with a request under way")
	case <-time.After(20 * time.Millisecond):
	}
	close(r.end)
	<-locked
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.Reap(ctx, tracer.Request{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a request at a closed gate: %v", err)
	}
	g.Unlock()
}

// TestNamespaceNumberUsedAgain: the kernel gives the number of a namespace to the next one that is made (proc_alloc_inum takes the lowest
// that is free). A container is watched as well that begins when another one of the same shim has ended and is not deleted yet.
func TestNamespaceNumberUsedAgain(t *testing.T) {
	s := newTestService()
	t.Cleanup(s.closeWatchers)
	first, end := taskOf(t, s, "first", 7)
	s.watch(first)
	end()
	second, _ := taskOf(t, s, "second", 7)
	s.watch(second)
	w := s.watcherOf(second)
	if w == nil || w.owner != second {
		t.Fatalf("the second container has the watcher %+v, want one of its own", w)
	}
	member := newTask("member", Config{Mode: ModeObserve})
	member.process = process{pid: second.pid, namespace: 7}
	s.tasks["member"] = member
	if s.watch(member); s.watcherOf(member) != w {
		t.Error("a container in the namespace of the second is not watched with it")
	}
	// Nobody asks whether one in mode off is paused: deleted like that, it would have kept the namespace from being looked at for ever.
	off := newTask("off", Config{Mode: ModeOff})
	off.process = member.process
	if s.watch(off); s.watcherOf(off) != nil {
		t.Error("a container in mode off is watched")
	}

	s.forget("first")
	if s.watcherOf(second) != w || s.watchers[7] != w {
		t.Error("the second container is not watched any more when the first is deleted")
	}
	select {
	case <-w.done:
		t.Error("the watcher of the second container has ended when the first was deleted")
	default:
	}
	s.forget("second")
	select {
	case <-w.done:
	default:
		t.Error("the watcher goes on when its container is deleted")
	}
	if s.watchers[7] != nil {
		t.Error("a watcher that has ended is kept")
	}

	// And who joins a namespace with the number of one that has ended is in another shim's.
	third, end := taskOf(t, s, "third", 8)
	s.watch(third)
	end()
	stranger := newTask("stranger", Config{Mode: ModeObserve})
	stranger.process = process{pid: second.pid, namespace: 8}
	if s.watch(stranger); s.watcherOf(stranger) != nil {
		t.Error("a container has joined the watcher of a dead namespace")
	}
}

// TestListIsBounded: the answer of a shim with many containers fits into a message too.
func TestListIsBounded(t *testing.T) {
	const perTask = maxList*2/3 + 1
	files := fstest.MapFS{}
	stat := func(pid, parent int, state string) {
		files[fmt.Sprintf("%d/stat", pid)] = &fstest.MapFile{Data: fmt.Appendf(nil,
			"%d (x) %s %d 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n", pid, state, parent)}
		files[fmt.Sprintf("%d/status", pid)] = &fstest.MapFile{Data: fmt.Appendf(nil, "State:\t%s\nTgid:\t%d\nNSpid:\t%d\t%d\n", state, pid, pid, pid)}
	}
	s := newTestService()
	t.Cleanup(s.closeWatchers)
	for i := range 2 {
		init := 10000 * (i + 1)
		stat(init, 1, "S")
		var list strings.Builder
		for pid := init + 1; pid <= init+perTask; pid++ {
			stat(pid, init, "Z")
			fmt.Fprintf(&list, "%d ", pid)
		}
		files[fmt.Sprintf("%d/task/%d/children", init, init)] = &fstest.MapFile{Data: []byte(list.String())}
		files[fmt.Sprintf("%d/task/%d/stat", init, init)] = files[fmt.Sprintf("%d/stat", init)]
	}
	s.proc = procfs.New(files)
	for i := range 2 {
		made := newTask(fmt.Sprint(i), Config{Mode: ModeObserve, ForkLog: ForkLogOff})
		made.process = process{pid: procfs.HostPID(10000 * (i + 1)), startTime: 5, namespace: uint64(i + 1), ownsNS: true}
		made.init.PID = made.pid
		made.forks = openForks(made.id, made.pid, made.startTime, ForkLogOff, false, time.Now())
		s.tasks[made.id] = made
		s.watch(made)
	}
	testutil.Eventually(t, 20*time.Second, func() (bool, string) {
		one, err1 := reaperService{s}.List(t.Context(), &api.ListRequest{ContainerId: "0"})
		two, err2 := reaperService{s}.List(t.Context(), &api.ListRequest{ContainerId: "1"})
		return len(one.GetZombies()) == perTask && len(two.GetZombies()) == perTask, fmt.Sprint(len(one.GetZombies()), len(two.GetZombies()), err1, err2)
	})
	resp, err := reaperService{s}.List(t.Context(), &api.ListRequest{})
	if err != nil || len(resp.GetZombies()) != maxList || int(resp.GetOmitted()) != 2*perTask-maxList {
		t.Errorf("%d zombies, %d omitted, %v; want %d and %d", len(resp.GetZombies()), resp.GetOmitted(), err, maxList, 2*perTask-maxList)
	}
}

// TestEndedBeforeItIsWatched: a container can be over when its start returns. That is nothing to warn of.
func TestEndedBeforeItIsWatched(t *testing.T) {
	s := newTestService()
	made, end := taskOf(t, s, "short", 7)
	end()
	var text strings.Builder
	log.L.Logger.SetOutput(&text)
	t.Cleanup(func() { log.L.Logger.SetOutput(os.Stderr) })
	if s.watch(made); text.Len() > 0 || s.watcherOf(made) != nil {
		t.Errorf("watcher %v, and the log says %q", s.watcherOf(made), text.String())
	}
}

// fakeStart is a task service that has started a process.
type fakeStart struct {
	taskapi.TTRPCTaskService
	pid  uint32
	when <-chan struct{}
}

func (s fakeStart) Start(context.Context, *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	<-s.when
	return &taskapi.StartResponse{Pid: s.pid}, nil
}

// TestRestoredTask: the process of a container that is restored from a checkpoint is known only when it starts, and by then others can ask
// for the task.
func TestRestoredTask(t *testing.T) {
	s := newTestService()
	t.Cleanup(s.closeWatchers)
	other, _ := taskOf(t, s, "other", 7)
	asking := make(chan struct{})
	s.TTRPCTaskService = fakeStart{pid: uint32(other.pid), when: asking}
	restored := newTask("restored", Config{Mode: ModeObserve})
	restored.bundle, restored.reportDir = "/bundle", "/reports"
	restored.fallBack(ModeObserve, "no reason")
	s.tasks["restored"] = restored
	var err error
	if s.hostNS, err = s.proc.PIDNamespace(other.pid); err != nil {
		t.Fatal(err)
	}

	done := make(chan struct{})
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for n := 0; ; n++ {
			if n == 1 {
				close(asking)
			}
			if _, err := (reaperService{s}).Stats(t.Context(), &api.StatsRequest{ContainerId: "restored"}); err != nil {
				t.Error(err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	_, err = s.Start(t.Context(), &taskapi.StartRequest{ID: "restored"})
	close(done)
	<-asked
	if err != nil {
		t.Fatal(err)
	}
	got := s.task("restored")
	mode, reason := got.effective()
	if got.pid != other.pid || mode != ModeObserve || reason != "no reason" || got.bundle != "/bundle" || got.reportDir != "/reports" {
		t.Errorf("the task is %+v", got)
	}
}

func TestFit(t *testing.T) {
	before := goruntime.GOMAXPROCS(0)
	t.Cleanup(func() { goruntime.GOMAXPROCS(before) })
	s := &service{tasks: make(map[string]*task), processors: 4}
	for _, c := range []struct{ containers, want int }{{0, 1}, {1, 1}, {15, 1}, {16, 2}, {200, 4}, {15, 1}} {
		clear(s.tasks)
		for i := range c.containers {
			s.tasks[fmt.Sprint(i)] = nil
		}
		s.fit()
		if got := goruntime.GOMAXPROCS(0); got != c.want {
			t.Errorf("%d containers: %d processors, want %d", c.containers, got, c.want)
		}
	}
	s.processors = 1
	if s.fit(); goruntime.GOMAXPROCS(0) != 1 {
		t.Error("more processors than containerd wants")
	}
}
