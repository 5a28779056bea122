//go:build shim_tracing

package shim

import (
	"fmt"
	"os"
	"strconv"

	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	_ "github.com/containerd/containerd/v2/pkg/tracing/plugin" // exporter, provider and interceptors
	"github.com/containerd/ttrpc"
)

// disabledEnv turns OpenTelemetry off.
const disabledEnv = "OTEL_SDK_DISABLED"

// UnaryServerInterceptor is the wrapped service's: it gives what runc is started with the trace context of the request.
func (s *service) UnaryServerInterceptor() ttrpc.UnaryServerInterceptor {
	return s.TTRPCTaskService.(ctrdshim.TTRPCServerUnaryOptioner).UnaryServerInterceptor()
}

// settleTracing turns tracing off where the environment asks for what containerd's tracing plugin does not have: a plugin that
// does not load ends the shim, and no container would start for it. off says why.
func settleTracing() (off string) {
	if off = unsupportedTracing(os.Getenv); off == "" {
		return ""
	}
	if err := os.Setenv(disabledEnv, "true"); err != nil {
		return err.Error()
	}
	return off
}

// unsupportedTracing mirrors what containerd's plugin says no to (pkg/tracing/plugin, checkDisabled() and newExporter()).
func unsupportedTracing(getenv func(string) string) string {
	if v := getenv(disabledEnv); v != "" {
		disabled, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Sprintf("%s=%q: want true or false", disabledEnv, v)
		}
		if disabled {
			return ""
		}
	}
	if getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return ""
	}
	if v := getenv("OTEL_TRACES_EXPORTER"); v != "" && v != "otlp" {
		return fmt.Sprintf("OTEL_TRACES_EXPORTER=%q: want otlp", v)
	}
	key := "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	if getenv(key) == "" {
		key = "OTEL_EXPORTER_OTLP_PROTOCOL"
	}
	switch v := getenv(key); v {
	case "", "http/protobuf", "grpc":
		return ""
	default:
		return fmt.Sprintf("%s=%q: want http/protobuf or grpc", key, v)
	}
}
