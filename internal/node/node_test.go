package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestParseArgs(t *testing.T) {
	for _, tt := range []struct{ line, config, state string }{
		{"containerd", "", ""},
		{"containerd --config /a.toml", "/a.toml", ""},
		{"containerd -c /a.toml -a /s.sock --state /run/k3s/containerd --root /r", "/a.toml", "/run/k3s/containerd"},
		{"containerd --config=/a.toml --state=/s", "/a.toml", "/s"},
		{"containerd --config", "", ""},
		{"", "", ""},
	} {
		config, state := parseArgs(strings.Fields(tt.line))
		if config != tt.config || state != tt.state {
			t.Errorf("%q: config %q, state %q; want %q, %q", tt.line, config, state, tt.config, tt.state)
		}
	}
}

func TestConfiguredState(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"version = 3\nstate = '/run/other'\n", "/run/other"},
		{"version = 2\nroot = '/var/lib/containerd'\n[plugins]\n", ""},
		{"state = 3", ""},
		{"state = ", ""},
		{"", ""},
	} {
		if got := configuredState([]byte(tt.text)); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestReadAddress(t *testing.T) {
	for _, tt := range []struct {
		name    string
		files   map[string]string
		want    string
		err     string
		foreign bool
	}{
		{name: "bootstrap.json", files: map[string]string{"bootstrap.json": `{"version":3,"address":"unix:///run/containerd/s/1","protocol":"ttrpc"}`}, want: "unix:///run/containerd/s/1"},
		{name: "before 1.7", files: map[string]string{"address": "unix:///run/containerd/s/2\n"}, want: "unix:///run/containerd/s/2"},
		{name: "both", files: map[string]string{"bootstrap.json": `{"address":"unix:///new"}`, "address": "unix:///old"}, want: "unix:///new"},
		{name: "gRPC shim", files: map[string]string{"bootstrap.json": `{"version":3,"address":"unix:///s","protocol":"grpc"}`}, err: "grpc", foreign: true},
		{name: "abstract socket", files: map[string]string{"address": "@/containerd-shim/1.sock"}, err: "unix://"},
		{name: "relative", files: map[string]string{"bootstrap.json": `{"address":"unix://s"}`}, err: "absolute"},
		{name: "cut off", files: map[string]string{"bootstrap.json": `{"address":`}, err: "bootstrap.json"},
		{name: "empty bundle", files: nil, err: "not exist"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for name, text := range tt.files {
				fsys[name] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := readAddress(fsys)
			if tt.err == "" {
				if got != tt.want || err != nil {
					t.Errorf("%q, %v; want %q", got, err, tt.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) || errors.Is(err, ErrForeign) != tt.foreign {
				t.Errorf("%q, %v; want an error with %q, foreign %v", got, err, tt.err, tt.foreign)
			}
		})
	}
}

func TestNames(t *testing.T) {
	kubelet := map[string]string{
		"io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": "u-1",
		"io.kubernetes.container.name": "app", "io.cri-containerd.kind": "container",
	}
	sandbox := map[string]string{"io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop", "io.cri-containerd.kind": "sandbox"}
	crictl := `{"ociVersion":"1.2.0","annotations":{"io.kubernetes.cri.sandbox-name":"p","io.kubernetes.cri.sandbox-namespace":"d",
		"io.kubernetes.cri.sandbox-uid":"u-2","io.kubernetes.cri.container-name":"main"}}`
	for _, tt := range []struct {
		name   string
		labels map[string]string
		spec   string
		want   string
		uid    string
	}{
		{name: "kubelet", labels: kubelet, spec: `{"annotations":{"io.kubernetes.cri.sandbox-name":"other"}}`, want: "shop/web-1/app", uid: "u-1"},
		{name: "sandbox", labels: sandbox, want: "shop/web-1/(pod)"},
		{name: "crictl", labels: map[string]string{"io.cri-containerd.kind": "container"}, spec: crictl, want: "d/p/main", uid: "u-2"},
		{name: "nerdctl", labels: map[string]string{"nerdctl/name": "web"}, want: "web"},
		{name: "annotations without CRI's label are the user's own words", spec: crictl, want: ""},
		{name: "no JSON", labels: map[string]string{"io.cri-containerd.kind": "container"}, spec: "{", want: ""},
	} {
		got := namesOf(tt.labels, []byte(tt.spec))
		if got.String() != tt.want || got.PodUID != tt.uid {
			t.Errorf("%s: %q, uid %q; want %q, %q", tt.name, got, got.PodUID, tt.want, tt.uid)
		}
	}
}

func TestFind(t *testing.T) {
	web := &Task{Namespace: "k8s.io", ID: "aaa111", Names: Names{Pod: "web-1", PodNamespace: "shop", Container: "app"}}
	side := &Task{Namespace: "k8s.io", ID: "aab222", Names: Names{Pod: "web-1", PodNamespace: "shop", Container: "log"}}
	box := &Task{Namespace: "k8s.io", ID: "aac333", Names: Names{Pod: "web-1", PodNamespace: "shop", Sandbox: true}}
	nerd := &Task{Namespace: "default", ID: "ccc444", Names: Names{Nerdctl: "web"}}
	twin1 := &Task{Namespace: "default", ID: "twin"}
	twin2 := &Task{Namespace: "other", ID: "twin"}
	tasks := []*Task{web, side, box, nerd, twin1, twin2}
	for _, tt := range []struct {
		ref  string
		want *Task
		err  error
	}{
		{ref: "aaa111", want: web},
		{ref: "shop/web-1/app", want: web},
		{ref: "web-1/log", want: side},
		{ref: "app", want: web},
		{ref: "web", want: nerd},
		{ref: "shop/web-1/(pod)", want: box},
		{ref: "aac", want: box},
		{ref: "ccc4", want: nerd},
		{ref: "other/twin", want: twin2},
		{ref: "twin", err: ErrAmbiguous},
		{ref: "web-1", err: ErrAmbiguous},
		{ref: "aa", err: ErrNotFound},
		{ref: "", err: ErrNotFound},
		{ref: "nothing", err: ErrNotFound},
	} {
		got, err := Find(tasks, tt.ref)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%q: %v, %v; want %v, %v", tt.ref, got, err, tt.want, tt.err)
		}
	}
}

// TestOpenSaysWhy: gRPC would retry until the deadline and then say that it was exceeded.
func TestOpenSaysWhy(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	if _, err := Open(context.Background(), Options{Address: none}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), Options{Address: "unix://" + file}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), file) {
		t.Errorf("no socket but a file: %v", err)
	}
}
