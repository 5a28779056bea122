package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/install"
	"github.com/reaper-shim/reaper/internal/kube"
)

// history is what happened, in order; the API server of a test and its installer write to it.
type history struct {
	mu     sync.Mutex
	events []string // guarded by mu
	// nodes are the answers to the lists of nodes; the last one stays.
	nodes []string
	// inUse is how often Uninstall is refused.
	inUse int
	// cancel ends the command when the label has its last value.
	cancel context.CancelFunc
	last   string
}

func (h *history) add(event string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, event)
}

func (h *history) Install(context.Context) error {
	h.add("install")
	return nil
}

func (h *history) Uninstall(context.Context) error {
	if h.inUse--; h.inUse >= 0 {
		h.add("in use")
		return fmt.Errorf("%w: c1", install.ErrInUse)
	}
	h.add("uninstall")
	return nil
}

func (h *history) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	answer := "{}"
	switch r.Method {
	case http.MethodGet:
		answer = h.nodes[0]
		if len(h.nodes) > 1 {
			h.nodes = h.nodes[1:]
		}
		h.add("list")
	default:
		h.add(r.URL.Path + " " + string(body))
		if h.last != "" && strings.Contains(string(body), h.last) {
			defer h.cancel()
		}
	}
	_, _ = io.WriteString(w, answer)
}

func (h *history) client(t *testing.T) *kube.Client {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	api, err := kube.New(s.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
		func() ([]byte, error) { return []byte("t"), nil })
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func label(value string) string {
	return `/api/v1/nodes/n1 {"metadata":{"labels":{"io.containerd.reaper/ready":` + value + `}}}`
}

// TestNode: the label is true only while the handler is there.
func TestNode(t *testing.T) {
	for action, want := range map[string][]string{
		"install":   {"install", label(`"true"`)},
		"uninstall": {label(`"false"`), "in use", "in use", "uninstall", label("null")},
	} {
		t.Run(action, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			h := &history{inUse: 2, cancel: cancel, last: map[string]string{"install": "true", "uninstall": "null"}[action]}
			// The server may end the context before it has answered.
			err := runOnNode(ctx, h, h.client(t), "n1", action, time.Millisecond)
			if err != nil && !strings.Contains(err.Error(), "context canceled") {
				t.Fatal(err)
			}
			if !slices.Equal(h.events, want) {
				t.Errorf("%q, want %q", h.events, want)
			}
		})
	}
}

// TestRetire waits until the last node has followed.
func TestRetire(t *testing.T) {
	h := &history{nodes: []string{`{"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}`, `{"items":[{"metadata":{"name":"b"}}]}`, `{"items":[]}`}}
	if err := retire(t.Context(), h.client(t), "ns/ds", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if len(h.events) != 4 || !strings.HasPrefix(h.events[0], "/apis/apps/v1/namespaces/ns/daemonsets/ds ") || !strings.Contains(h.events[0], "uninstall") {
		t.Errorf("%q, want the patch and three lists", h.events)
	}
	if err := retire(t.Context(), h.client(t), "ds", time.Millisecond); err == nil || !strings.Contains(err.Error(), "namespace/name") {
		t.Errorf("without a namespace: %v", err)
	}
}
