package shim

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxBootstrap bounds what is read from standard input at the start; containerd's own bound (pkg/shim, run()).
const maxBootstrap = 10 << 20

// addressFile is where a shim of containerd before 1.7 leaves its address in the bundle; the daemon reads it when it is
// restarted, and newer ones when they take over from it (core/runtime/v2, restoreBootstrapParams()).
const addressFile = "address"

// StartLegacy performs the action "start" for a containerd before 2.3: it passes the runtime options alone on standard input
// and everything else as flags, and reads the address from standard output. It answers with the address and nothing more,
// which every containerd since 1.2 takes for a shim with version 2 of the task API.
//
// It reports whether the call was one of those. If not, rest is what was read from stdin and belongs to the caller; it is nil
// where nothing was read.
func StartLegacy(ctx context.Context, m ctrdshim.Shim, args []string, stdin io.Reader, stdout io.Writer) (done bool, rest []byte, err error) {
	f, ok := parseStart(args)
	if !ok {
		return false, nil, nil
	}
	input, err := io.ReadAll(io.LimitReader(stdin, maxBootstrap))
	if err != nil {
		return false, nil, fmt.Errorf("read standard input: %w", err)
	}
	// An Any of runtime options can look like the parameters of the newer protocol; those repeat what the flags say.
	var params bootstrap.BootstrapParams
	if err := proto.Unmarshal(input, &params); err == nil && params.InstanceID == f.id && params.Namespace == f.namespace {
		return false, input, nil
	}
	legacy, err := f.params(input)
	if err != nil {
		return false, nil, err
	}
	ctx = namespaces.WithNamespace(ctx, f.namespace)
	ctx = context.WithValue(ctx, ctrdshim.OptsKey{}, ctrdshim.Opts{BundlePath: f.bundle, Debug: f.debug})
	result, err := m.Start(ctx, legacy)
	if err != nil {
		return false, nil, err
	}
	if err := os.WriteFile(addressFile, []byte(result.Address), 0o600); err != nil {
		return false, nil, fmt.Errorf("write the shim's address into the bundle: %w", err)
	}
	if _, err := io.WriteString(stdout, result.Address); err != nil {
		return false, nil, fmt.Errorf("write the shim's address: %w", err)
	}
	return true, nil, nil
}

// startFlags are the flags that containerd passes with "start".
type startFlags struct {
	namespace, id, bundle, address, binary string
	debug                                  bool
}

// parseStart returns the flags of the action "start", and false for everything else: for containerd's own code to deal with.
func parseStart(args []string) (startFlags, bool) {
	var f startFlags
	set := flag.NewFlagSet("start", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&f.namespace, "namespace", "", "")
	set.StringVar(&f.id, "id", "", "")
	set.StringVar(&f.bundle, "bundle", "", "")
	set.StringVar(&f.address, "address", "", "")
	set.StringVar(&f.binary, "publish-binary", "", "")
	set.BoolVar(&f.debug, "debug", false, "")
	if err := set.Parse(args); err != nil || set.Arg(0) != "start" || f.namespace == "" || f.id == "" {
		return startFlags{}, false
	}
	return f, true
}

// params says with the newer protocol what the older one says with flags and options.
func (f startFlags) params(options []byte) (*bootstrap.BootstrapParams, error) {
	p := &bootstrap.BootstrapParams{
		InstanceID:             f.id,
		Namespace:              f.namespace,
		ContainerdGrpcAddress:  f.address,
		ContainerdTtrpcAddress: os.Getenv("TTRPC_ADDRESS"),
		ContainerdBinary:       f.binary,
	}
	if f.debug {
		p.LogLevel = bootstrap.LogLevel_LOG_LEVEL_DEBUG
	}
	if len(bytes.TrimSpace(options)) == 0 {
		return p, nil
	}
	var msg anypb.Any
	if err := proto.Unmarshal(options, &msg); err != nil {
		return nil, fmt.Errorf("decode the runtime options on standard input: %w", err)
	}
	if err := p.AddExtension(&msg); err != nil {
		return nil, fmt.Errorf("pass on the runtime options: %w", err)
	}
	return p, nil
}
