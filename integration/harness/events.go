package harness

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"

	"github.com/reaper-shim/reaper/internal/testutil"
)

// Event is an event of containerd with its payload.
type Event struct {
	Namespace string
	Topic     string
	Timestamp time.Time
	TypeURL   string
	// Payload is the decoded message, nil when this process does not know its type.
	Payload any
	// Raw is the encoded message.
	Raw []byte
}

// Events collects events from the moment when it is made.
type Events struct {
	mu  sync.Mutex
	all []Event // guarded by mu
	err error   // guarded by mu

	stop context.CancelFunc
}

// Subscribe starts to collect the events of all namespaces. The caller must Close it.
func (d *Daemon) Subscribe(ctx context.Context) (*Events, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e := &Events{stop: cancel}
	stream, errs := d.Client.Subscribe(ctx)
	go func() {
		for {
			select {
			case env := <-stream:
				e.add(env)
			case err := <-errs:
				e.mu.Lock()
				e.err = err
				e.mu.Unlock()
				return
			}
		}
	}()
	// The daemon subscribes us some time after the call: publish until one of ours comes back.
	mark := fmt.Sprintf("/reaper-test/%d", time.Now().UnixNano())
	err := testutil.Poll(10*time.Second, func() (bool, string) {
		if err := d.Client.EventService().Publish(ctx, mark, &apievents.NamespaceCreate{Name: "mark"}); err != nil {
			return false, err.Error()
		}
		return len(e.Filter(func(ev Event) bool { return ev.Topic == mark })) > 0, "own event did not come back"
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("subscribe to events: %w", err)
	}
	return e, nil
}

// Close ends the subscription.
func (e *Events) Close() { e.stop() }

func (e *Events) add(env *events.Envelope) {
	ev := Event{
		Namespace: env.Namespace, Topic: env.Topic, Timestamp: env.Timestamp,
		TypeURL: env.Event.GetTypeUrl(), Raw: env.Event.GetValue(),
	}
	if v, err := typeurl.UnmarshalAny(env.Event); err == nil {
		ev.Payload = v
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

// Filter returns the events so far that match.
func (e *Events) Filter(match func(Event) bool) []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Event
	for _, ev := range e.all {
		if match(ev) {
			out = append(out, ev)
		}
	}
	return out
}

// Exits returns the TaskExit events so far of a container: of its init, of its execs and of its orphans.
func (e *Events) Exits(container string) []*apievents.TaskExit {
	return Payloads(e, func(x *apievents.TaskExit) bool { return x.ContainerID == container })
}

// ExitsOf returns those that bear one ID: the container's own for its init, or that of an exec.
func (e *Events) ExitsOf(container, id string) []*apievents.TaskExit {
	return Payloads(e, func(x *apievents.TaskExit) bool { return x.ContainerID == container && x.ID == id })
}

// OrphanExits returns the TaskExit events so far of orphans that the shim reaped in a container.
func (e *Events) OrphanExits(container string) []*apievents.TaskExit {
	return Payloads(e, func(x *apievents.TaskExit) bool {
		return x.ContainerID == container && strings.HasPrefix(x.ID, "orphan-")
	})
}

// Payloads returns the payloads of one type among the events so far.
func Payloads[T any](e *Events, match func(T) bool) []T {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []T
	for _, ev := range e.all {
		if p, ok := ev.Payload.(T); ok && match(p) {
			out = append(out, p)
		}
	}
	return out
}
