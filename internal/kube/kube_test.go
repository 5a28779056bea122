package kube

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

// server answers as an API server would and keeps the last request.
func server(t *testing.T, answer string, status int) (*Client, *http.Request, *map[string]any) {
	t.Helper()
	last, body := &http.Request{}, &map[string]any{}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*last = *r
		text, _ := io.ReadAll(r.Body)
		*body = nil
		if len(text) > 0 {
			if err := json.Unmarshal(text, body); err != nil {
				t.Errorf("body %q: %v", text, err)
			}
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	c, err := New(s.URL, ca, func() ([]byte, error) { return []byte("secret\n"), nil })
	if err != nil {
		t.Fatal(err)
	}
	return c, last, body
}

func TestLabelNode(t *testing.T) {
	c, req, body := server(t, "{}", http.StatusOK)
	value := "true"
	if err := c.LabelNode(t.Context(), "n/1", "a/b", &value); err != nil {
		t.Fatal(err)
	}
	if req.Method != http.MethodPatch || req.URL.EscapedPath() != "/api/v1/nodes/n%2F1" ||
		req.Header.Get("Content-Type") != "application/merge-patch+json" || req.Header.Get("Authorization") != "Bearer secret" {
		t.Errorf("request %s %s %v", req.Method, req.URL.EscapedPath(), req.Header)
	}
	want := map[string]any{"metadata": map[string]any{"labels": map[string]any{"a/b": "true"}}}
	if !reflect.DeepEqual(*body, want) {
		t.Errorf("body %v, want %v", *body, want)
	}
	if err := c.LabelNode(t.Context(), "n", "a/b", nil); err != nil {
		t.Fatal(err)
	}
	// RFC 7386: null takes it away.
	if labels := (*body)["metadata"].(map[string]any)["labels"].(map[string]any); labels["a/b"] != nil || len(labels) != 1 {
		t.Errorf("labels %v, want a null", labels)
	}
}

func TestNodesWith(t *testing.T) {
	c, req, _ := server(t, `{"items":[{"metadata":{"name":"b"}},{"metadata":{"name":"a"}}]}`, http.StatusOK)
	nodes, err := c.NodesWith(t.Context(), "a/b")
	if err != nil || !reflect.DeepEqual(nodes, []string{"a", "b"}) || req.URL.Query().Get("labelSelector") != "a/b" {
		t.Errorf("nodes %v, %v, query %q", nodes, err, req.URL.RawQuery)
	}
}

func TestSetDaemonSetEnv(t *testing.T) {
	c, req, body := server(t, "{}", http.StatusOK)
	if err := c.SetDaemonSetEnv(t.Context(), "ns", "ds", "c", "ACTION", "uninstall"); err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(*body)
	if req.URL.Path != "/apis/apps/v1/namespaces/ns/daemonsets/ds" || !strings.Contains(string(text),
		`"containers":[{"env":[{"name":"ACTION","value":"uninstall"}],"name":"c"}]`) {
		t.Errorf("%s %s", req.URL.Path, text)
	}
}

func TestRefused(t *testing.T) {
	c, _, _ := server(t, `{"message":"forbidden"}`, http.StatusForbidden)
	_, err := c.NodesWith(t.Context(), "a/b")
	if err == nil || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("%v, want an error that says what the server said", err)
	}
}

func TestOutsideOfAPod(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster(); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("%v, want an error that names the variable", err)
	}
}
