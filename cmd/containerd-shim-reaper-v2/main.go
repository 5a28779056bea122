// containerd-shim-reaper-v2 is the containerd runtime-v2 shim io.containerd.reaper.v2: runc containers without zombies.
// containerd starts it; see the README for its options.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

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

	manager := shim.NewManager()
	done, rest, err := shim.StartLegacy(context.Background(), manager, os.Args[1:], os.Stdin, os.Stdout)
	if err == nil && rest != nil {
		err = giveBack(rest)
	}
	switch {
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %s", shim.Name, err)
		os.Exit(1)
	case done:
		return
	}
	if rest == nil { // "start" loads no plugins
		shim.Register()
	}
	ctrdshim.RunShim(context.Background(), manager, func(c *ctrdshim.Config) {
		// SIGCHLD is handled by the task service, which looks before it reaps.
		c.NoReaper = true
	})
}

// giveBack makes input what is read from standard input next.
func giveBack(input []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("give back standard input: %w", err)
	}
	os.Stdin = r
	go func() {
		_, _ = io.Copy(w, bytes.NewReader(input)) // fails only when the reader has gone
		_ = w.Close()
	}()
	return nil
}
