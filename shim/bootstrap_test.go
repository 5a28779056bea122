package shim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

// starter keeps what it was started with.
type starter struct {
	params    *bootstrap.BootstrapParams
	namespace string
	err       error
}

func (*starter) Name() string { return Name }

func (s *starter) Start(ctx context.Context, p *bootstrap.BootstrapParams) (*bootstrap.BootstrapResult, error) {
	s.params = p
	s.namespace, _ = namespaces.Namespace(ctx)
	return &bootstrap.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: "unix:///run/s/1"}, s.err
}

func (*starter) Stop(context.Context, string) (ctrdshim.StopStatus, error) {
	return ctrdshim.StopStatus{}, nil
}

func (*starter) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) { return nil, nil }

func TestStartLegacy(t *testing.T) {
	runc, err := typeurl.MarshalAnyToProto(&runcoptions.Options{BinaryName: "crun"})
	if err != nil {
		t.Fatal(err)
	}
	options, err := proto.Marshal(runc)
	if err != nil {
		t.Fatal(err)
	}
	current, err := proto.Marshal(&bootstrap.BootstrapParams{InstanceID: "c1", Namespace: "ns"})
	if err != nil {
		t.Fatal(err)
	}
	legacy := []string{"-namespace", "ns", "-address", "/run/c.sock", "-publish-binary", "/bin/containerd", "-id", "c1", "-debug", "start"}
	for _, tt := range []struct {
		name   string
		args   []string
		stdin  string
		start  error
		done   bool
		rest   string
		binary string // BinaryName of the options that arrive
		err    string
	}{
		{name: "legacy without options", args: legacy, done: true},
		{name: "legacy with options", args: legacy, stdin: string(options), done: true, binary: "crun"},
		{name: "current", args: legacy, stdin: string(current), rest: string(current)},
		{name: "delete", args: []string{"-namespace", "ns", "-id", "c1", "delete"}},
		{name: "the shim itself", args: []string{"-namespace", "ns", "-id", "c1", "-address", "/run/c.sock"}},
		{name: "version", args: []string{"-v"}},
		{name: "unknown flag", args: []string{"-namespace", "ns", "-id", "c1", "-x", "start"}},
		{name: "no namespace", args: []string{"-id", "c1", "start"}},
		{name: "garbage", args: legacy, stdin: "\xff\xff\xff", err: "decode the runtime options"},
		{name: "start fails", args: legacy, start: errors.New("no spec"), err: "no spec"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			t.Setenv("TTRPC_ADDRESS", "/run/c.sock.ttrpc")
			m := &starter{err: tt.start}
			var out bytes.Buffer
			done, rest, err := StartLegacy(t.Context(), m, tt.args, strings.NewReader(tt.stdin), &out)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				if entries, _ := os.ReadDir("."); len(entries) > 0 || out.Len() > 0 {
					t.Errorf("left %v and %q", entries, out.String())
				}
				return
			}
			if err != nil || done != tt.done || string(rest) != tt.rest {
				t.Fatalf("done %v, rest %q, error %v; want %v, %q", done, rest, err, tt.done, tt.rest)
			}
			if !tt.done {
				if m.params != nil || out.Len() > 0 {
					t.Errorf("started with %v, printed %q", m.params, out.String())
				}
				return
			}
			file, err := os.ReadFile("address")
			if err != nil || out.String() != "unix:///run/s/1" || string(file) != out.String() {
				t.Errorf("printed %q, file has %q (%v)", out.String(), file, err)
			}
			p := m.params
			if m.namespace != "ns" || p.InstanceID != "c1" || p.Namespace != "ns" || p.ContainerdGrpcAddress != "/run/c.sock" ||
				p.ContainerdTtrpcAddress != "/run/c.sock.ttrpc" || p.LogLevel != bootstrap.LogLevel_LOG_LEVEL_DEBUG {
				t.Errorf("started with %v in namespace %q", p, m.namespace)
			}
			var o runcoptions.Options
			if found, err := p.FindExtension(&o); err != nil || found != (tt.binary != "") || o.BinaryName != tt.binary {
				t.Errorf("options %v, found %v, error %v", &o, found, err)
			}
		})
	}
}
