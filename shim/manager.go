package shim

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// NewManager returns what starts, stops and describes the shim: containerd's runc manager, with the options in the forms
// that it does not know translated for it.
func NewManager() ctrdshim.Shim {
	return &shimManager{Shim: manager.NewShimManager(Name)}
}

type shimManager struct {
	ctrdshim.Shim
}

// Start is the "start" action: it runs beside the bundle, may start the long-running shim, and prints its address.
func (m *shimManager) Start(ctx context.Context, params *bootstrap.BootstrapParams) (*bootstrap.BootstrapResult, error) {
	var generic runtimeoptions.Options
	found, err := params.FindExtension(&generic)
	if err != nil {
		return nil, err
	}
	grouping := GroupPod
	if found {
		o, err := decodeGeneric(&generic)
		if err != nil {
			return nil, err
		}
		if grouping, err = o.toml.grouping(); err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := params.AddExtension(o.runc); err != nil {
			return nil, fmt.Errorf("pass on the runc options: %w", err)
		}
	}
	if grouping != GroupPod {
		return startGrouped(ctx, m.Shim, params, grouping)
	}
	return m.Shim.Start(ctx, params)
}

// Info is the -info flag: CRI runs it with the generic options before it uses the runtime for the first time.
func (m *shimManager) Info(ctx context.Context, optionsR io.Reader) (*types.RuntimeInfo, error) {
	data, err := io.ReadAll(io.LimitReader(optionsR, maxOptions))
	if err != nil {
		return nil, fmt.Errorf("read runtime options: %w", err)
	}
	if len(data) > 0 {
		var msg anypb.Any
		if err := proto.Unmarshal(data, &msg); err != nil {
			return nil, fmt.Errorf("decode runtime options: %w", err)
		}
		o, err := decodeOptions(&msg)
		if err != nil {
			return nil, err
		}
		// Whoever asks must learn of a bad option now and not with the first container.
		if _, err := configure("", o.toml, nil); err != nil {
			return nil, err
		}
		if data, err = marshalOptions(o.runc); err != nil {
			return nil, err
		}
	}
	return m.Shim.Info(ctx, bytes.NewReader(data))
}

// maxOptions bounds what is read of options from standard input.
const maxOptions = 1 << 20

func marshalOptions(o *runcoptions.Options) ([]byte, error) {
	if o == nil {
		return nil, nil
	}
	msg, err := runcAny(o)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(msg)
}
