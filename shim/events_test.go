package shim

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	eventstypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/shim/api"
)

// eventServer is containerd's end: the ttrpc events service, on a socket of its own. While hung it answers nobody.
type eventServer struct {
	mu       sync.Mutex
	topics   []string
	hung     chan struct{} // nil: answers
	slow     time.Duration // what an answer takes
	attempts int
}

func (s *eventServer) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	s.attempts++
	hung := s.hung
	s.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	time.Sleep(s.slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topics = append(s.topics, r.GetEnvelope().GetTopic())
	return &emptypb.Empty{}, nil
}

func (s *eventServer) received() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.topics)
}

func serveEvents(t *testing.T, s *eventServer) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "events.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, s)
	go func() { _ = server.Serve(context.Background(), l) }()
	t.Cleanup(func() { _ = server.Close() })
	return address
}

func exitEvent() *eventstypes.TaskExit {
	return &eventstypes.TaskExit{ContainerID: "c", ID: "orphan-5"}
}

// C6 of the attacks on the design: what is published just before the shim ends must arrive.
func TestCloseSendsWhatIsQueued(t *testing.T) {
	s := &eventServer{}
	p, err := newEventPublisher("ns", serveEvents(t, s))
	if err != nil {
		t.Fatal(err)
	}
	const n = 200
	for range n {
		if !p.publish("/tasks/exit", exitEvent()) {
			t.Fatal("no room in the queue")
		}
	}
	p.close()
	if got := s.received(); got != n {
		t.Errorf("%d of %d events arrived", got, n)
	}
	if p.publish("/tasks/exit", exitEvent()) {
		t.Error("a closed publisher takes events")
	}
	p.close() // and can be closed again
}

// A busy containerd behind more orphans than it can be told of in time: a task's final statistics arrive all the same.
func TestFinalStatisticsAreNotCrowdedOut(t *testing.T) {
	s := &eventServer{slow: 10 * time.Millisecond}
	p, err := newEventPublisher("ns", serveEvents(t, s))
	if err != nil {
		t.Fatal(err)
	}
	for p.publish("/tasks/exit", exitEvent()) { // until there is no room
	}
	if !p.publish(TopicZombies, &api.ZombieStats{Final: true}) {
		t.Fatal("no room for statistics behind orphans")
	}
	if took := eventQueue * s.slow; took <= flushTimeout {
		t.Fatalf("all of them would arrive within %v", took)
	}
	p.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.topics) == 0 || s.topics[len(s.topics)-1] != TopicZombies {
		t.Errorf("the last of %d topics is not that of statistics", len(s.topics))
	}
}

// C6: with a containerd that does not answer, events are dropped, not kept and tried again, and nobody waits.
func TestHungContainerdBlocksNobody(t *testing.T) {
	s := &eventServer{hung: make(chan struct{})}
	defer close(s.hung)
	p, err := newEventPublisher("ns", serveEvents(t, s))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	taken := 0
	for range 10 * eventQueue {
		if p.publish("/tasks/exit", exitEvent()) {
			taken++
		}
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("publishing took %v", d)
	}
	if taken > eventQueue+1 {
		t.Errorf("%d events taken with room for %d", taken, eventQueue)
	}
	start = time.Now()
	p.close()
	if d := time.Since(start); d > flushTimeout+publishTimeout {
		t.Errorf("closing took %v", d)
	}
}

func TestPublisherFindsARestartedContainerd(t *testing.T) {
	s := &eventServer{}
	address := serveEvents(t, s)
	p, err := newEventPublisher("ns", address+".later")
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.publish("/tasks/exit", exitEvent()) // nobody there: lost
	l, err := net.Listen("unix", address+".later")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, s)
	go func() { _ = server.Serve(context.Background(), l) }()
	defer server.Close()
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		p.publish("/tasks/exit", exitEvent())
		return s.received() > 0, "nothing received"
	})
}

func TestOrphanExit(t *testing.T) {
	o := orphan{task: newTask("c1", defaultConfig("x")), pid: 4711, inner: 12, status: 9, died: time.Unix(5, 6)}
	ev := orphanExit(o)
	if ev.ContainerID != "c1" || ev.ID != "orphan-12" || ev.Pid != 4711 || ev.ExitStatus != 137 || !ev.ExitedAt.AsTime().Equal(o.died) {
		t.Errorf("event %v", ev)
	}
	if _, err := typeurl.MarshalAny(ev); err != nil {
		t.Error(err)
	}
	// No exec that containerd makes can have such an ID and be the container's own.
	if ev.ID == ev.ContainerID {
		t.Error("the ID of an orphan is that of its container")
	}
}

func TestExitStatus(t *testing.T) {
	for status, want := range map[int]uint32{0: 0, 7 << 8: 7, 255 << 8: 255, 9: 137, 11 | 0x80: 139, 64: 192} {
		if got := exitStatus(status); got != want {
			t.Errorf("wait status %#x: %d, want %d", status, got, want)
		}
	}
	for _, exit := range []uint32{0, 1, 127, 128, 137, 143} {
		if got := exitStatus(waitStatus(exit)); got != exit {
			t.Errorf("exit %d comes back as %d", exit, got)
		}
	}
}

func TestCleanComm(t *testing.T) {
	for in, want := range map[string]string{
		"sh":                     "sh",
		"a\xffb":                 "a�b",
		strings.Repeat("x", 100): strings.Repeat("x", maxComm),
		"":                       "",
	} {
		got := cleanComm(in)
		if got != want || !utf8.ValidString(got) {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	if got := cleanComm(strings.Repeat("é", 50)); !utf8.ValidString(got) {
		t.Errorf("cut within a character: %q", got)
	}
}

func TestHolds(t *testing.T) {
	tk := newTask("c1", defaultConfig("x"))
	tk.cgroup = "/k8s/pod1/c1"
	for path, want := range map[string]bool{
		"/k8s/pod1/c1":     true,
		"/k8s/pod1/c1/sub": true,
		"/k8s/pod1/c10":    false,
		"/k8s/pod1":        false,
		"/":                false,
	} {
		if got := tk.holds(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	tk.cgroup = ""
	if tk.holds("") || tk.holds("/x") {
		t.Error("a task without a cgroup of its own holds everything")
	}
}
