package shim

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/containerd/v2/pkg/ttrpcutil"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/shim/api"
)

// TopicZombies is the topic of [api.ZombieStats] events.
const TopicZombies = "/tasks/zombies"

const (
	// eventQueue is how many of our events may wait for containerd; what does not fit is dropped and counted.
	eventQueue = 512
	// statsRoom is what only statistics may take beyond: however many orphans there are, what says so is told.
	statsRoom = 64
	// publishTimeout is for one event. containerd answers in well under a millisecond; when it is away (a restart) events
	// of ours are lost rather than kept.
	publishTimeout = 2 * time.Second
	// flushTimeout is what the last events get when the shim shuts down, the second half of it for statistics alone: a task's final
	// ones are the last in the queue.
	flushTimeout = 2 * time.Second
)

// eventPublisher sends what the shim has to say about zombies, over a connection of its own: the publisher of the task
// service must never have an orphan's exit in front of a container's. It drops and never queues again.
type eventPublisher struct {
	namespace string
	client    *ttrpcutil.Client
	queue     chan *types.Envelope
	stopped   chan struct{}
	late      atomic.Bool // only statistics are sent any more

	mu     sync.Mutex
	closed bool
}

func newEventPublisher(namespace, address string) (*eventPublisher, error) {
	client, err := ttrpcutil.NewClient(address)
	if err != nil {
		return nil, err
	}
	p := &eventPublisher{
		namespace: namespace,
		client:    client,
		queue:     make(chan *types.Envelope, eventQueue+statsRoom),
		stopped:   make(chan struct{}),
	}
	go p.run()
	return p, nil
}

// publish hands over an event and never blocks. It reports whether there was room for it.
func (p *eventPublisher) publish(topic string, event any) bool {
	msg, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		log.L.WithError(err).Errorf("encode event for topic %s", topic)
		return false
	}
	envelope := &types.Envelope{
		Timestamp: protobuf.ToTimestamp(time.Now()),
		Namespace: p.namespace,
		Topic:     topic,
		Event:     msg,
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || topic != TopicZombies && len(p.queue) >= eventQueue {
		return false
	}
	select {
	case p.queue <- envelope:
		return true
	default:
		return false
	}
}

func (p *eventPublisher) run() {
	defer close(p.stopped)
	for envelope := range p.queue {
		if p.late.Load() && envelope.GetTopic() != TopicZombies {
			continue
		}
		if err := p.forward(envelope); err != nil {
			log.L.WithError(err).Debugf("event for topic %s dropped", envelope.GetTopic())
		}
	}
}

func (p *eventPublisher) forward(envelope *types.Envelope) error {
	ctx, cancel := context.WithTimeout(context.Background(), publishTimeout)
	defer cancel()
	service, err := p.client.EventsService()
	if err == nil {
		if _, err = service.Forward(ctx, &eventsapi.ForwardRequest{Envelope: envelope}); err == nil {
			return nil
		}
	}
	// The next event gets a new connection: containerd may have been restarted.
	if rerr := p.client.Reconnect(); rerr != nil {
		return rerr
	}
	return err
}

// close sends what is queued, for at most flushTimeout, and ends the publisher.
func (p *eventPublisher) close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.queue)
	}
	p.mu.Unlock()
	for range 2 {
		select {
		case <-p.stopped:
		case <-time.After(flushTimeout / 2):
			p.late.Store(true)
		}
	}
	_ = p.client.Close()
}

// orphan is a process that somebody left behind and that we had reaped, ready to be told.
type orphan struct {
	task    *task
	pid     int // on the host
	inner   int // in the container's PID namespace
	command string
	status  int // wait(2)
	died    time.Time
	unnamed bool // command and status are not known: there were more than are told
}

// orphanExit is the event for an orphan. Its ID can be that of no exec: containerd's exec IDs are chosen by clients, and
// all that look at events compare them for equality or, in CRI, as prefixes of hexadecimal numbers.
func orphanExit(o orphan) *eventstypes.TaskExit {
	return &eventstypes.TaskExit{
		ContainerID: o.task.id,
		ID:          orphanID(o.inner),
		Pid:         uint32(o.pid),
		ExitStatus:  exitStatus(o.status),
		ExitedAt:    protobuf.ToTimestamp(o.died),
	}
}

// exitStatus turns a wait(2) status into containerd's: the exit code, or 128 and the number of the signal.
func exitStatus(status int) uint32 {
	ws := unix.WaitStatus(status)
	if ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(ws.ExitStatus())
}

// publishOrphan logs and publishes the exit of an orphan, both within the limits of its task.
func (s *service) publishOrphan(o orphan) {
	if o.unnamed || !o.task.limiter.Allow() {
		if o.task.cfg.Events {
			o.task.dropped.Add(1)
		}
		return
	}
	log.L.WithField("id", o.task.id).WithField("pid", o.pid).
		Debugf("reaped orphan %s (%s), status %d", orphanID(o.inner), quote(o.command), exitStatus(o.status))
	if o.task.cfg.Events && !s.events.publish(runtime.TaskExitEventTopic, orphanExit(o)) {
		o.task.dropped.Add(1)
	}
}

func (s *service) publishStats(t *task, stats *api.ZombieStats) {
	if t.cfg.Events {
		s.events.publish(TopicZombies, stats)
	}
}
