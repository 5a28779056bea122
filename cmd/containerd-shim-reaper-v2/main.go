// containerd-shim-reaper-v2 is the containerd runtime-v2 shim io.containerd.reaper.v2: runc containers without zombies.
// containerd starts it; see the README for its options.
package main

import (
	"context"

	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/version"

	"github.com/reaper-shim/reaper/shim"
)

// Set by the linker.
var (
	buildVersion  = "dev"
	buildRevision = ""
)

func main() {
	// What -v and -info print.
	version.Version, version.Revision = buildVersion, buildRevision

	shim.Register()
	ctrdshim.RunShim(context.Background(), shim.NewManager(), func(c *ctrdshim.Config) {
		// SIGCHLD is handled by the task service, which looks before it reaps.
		c.NoReaper = true
	})
}
