package shim

import (
	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// Register registers the task service under the type and ID that containerd's runc shim uses for its own. It traces where
// containerd's tracing plugin is linked in (build tag shim_tracing) and has found an endpoint.
func Register() {
	off := settleTracing()
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			if off != "" {
				log.G(ic.Context).Warnf("no tracing: %s", off)
			}
			return newService(ic.Context, ic.Properties[plugins.PropertyTTRPCAddress],
				publisher.(ctrdshim.Publisher), sd.(shutdown.Service), newSpans(ic))
		},
	})
}
