package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"google.golang.org/protobuf/proto"
)

// OCIRuntimeEnv names the OCI runtime, a program on PATH, that Create has containers run with instead of runc.
const OCIRuntimeEnv = "REAPER_TEST_OCI_RUNTIME"

// hideUnified is shell for a mount namespace of its own: crun refuses a hierarchy of version 2 that has controllers beside those
// of version 1.
const hideUnified = `! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified && `

// withOCIRuntime adds to runtime options that which names the OCI runtime.
func withOCIRuntime(runtime string, options any) (any, error) {
	name := os.Getenv(OCIRuntimeEnv)
	if name == "" {
		return options, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", OCIRuntimeEnv, name, err)
	}
	body := fmt.Sprintf("BinaryName = %q\n", path)
	switch o := options.(type) {
	case nil:
		if runtime == RuncRuntime {
			return &runcoptions.Options{BinaryName: path}, nil
		}
		return &runtimeoptions.Options{ConfigBody: []byte(body)}, nil
	case *runcoptions.Options:
		o = proto.CloneOf(o)
		o.BinaryName = path
		return o, nil
	case *runtimeoptions.Options:
		o = proto.CloneOf(o)
		o.ConfigBody = append([]byte(body), o.GetConfigBody()...)
		return o, nil
	default:
		return nil, fmt.Errorf("%s=%s: options of type %T do not name one", OCIRuntimeEnv, name, options)
	}
}

// withSpecVersion lowers the version of the runtime specification: crun 1.8.1 takes only 1.0, and
// needs nothing newer here.
func withSpecVersion(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Version = "1.0.2"
	return nil
}
