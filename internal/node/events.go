package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
)

// Follow calls f for each event of the given topics, of all namespaces, until it returns false or an error, or ctx ends, whose error
// it returns then. containerd keeps no events: it tells those that come from now on.
func (n *Node) Follow(ctx context.Context, topics []string, f func(*types.Envelope) (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filters := make([]string, len(topics))
	for i, topic := range topics {
		filters[i] = fmt.Sprintf("topic==%q", topic)
	}
	stream, err := eventsapi.NewEventsClient(n.conn).Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: filters})
	for err == nil {
		var env *types.Envelope
		if env, err = stream.Recv(); err != nil {
			break
		}
		var more bool
		if more, err = f(env); err == nil && !more {
			return nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return errors.New("containerd has ended the stream of events")
	default:
		return fmt.Errorf("follow the events of containerd: %w", err)
	}
}
