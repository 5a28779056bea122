//go:build shim_tracing

package shim

import (
	"strings"
	"testing"
)

// TestUnsupportedTracing: what would keep containerd's plugin from loading is found before, and named.
func TestUnsupportedTracing(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318"
	for _, c := range []struct {
		env  []string
		want string // part of the reason; "": supported, or off anyway
	}{
		{},
		{env: []string{endpoint}},
		{env: []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:4318/v1/traces"}},
		{env: []string{endpoint, "OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_SDK_DISABLED=false"}},
		{env: []string{endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf"}},
		{env: []string{"OTEL_TRACES_EXPORTER=none"}},
		{env: []string{endpoint, "OTEL_TRACES_EXPORTER=none", "OTEL_SDK_DISABLED=true"}},
		{env: []string{endpoint, "OTEL_TRACES_EXPORTER=none"}, want: `OTEL_TRACES_EXPORTER="none": want otlp`},
		{env: []string{endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"}, want: `OTEL_EXPORTER_OTLP_PROTOCOL="http/json": want http/protobuf or grpc`},
		{env: []string{endpoint, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=udp"}, want: `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="udp"`},
		{env: []string{"OTEL_SDK_DISABLED=perhaps"}, want: `OTEL_SDK_DISABLED="perhaps": want true or false`},
	} {
		t.Run(strings.Join(c.env, " "), func(t *testing.T) {
			got := unsupportedTracing(func(key string) string {
				for _, kv := range c.env {
					if name, value, _ := strings.Cut(kv, "="); name == key {
						return value
					}
				}
				return ""
			})
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("reason %q, want %q", got, c.want)
			}
		})
	}
}
