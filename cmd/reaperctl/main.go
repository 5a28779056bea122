// Command reaperctl shows the zombies of a node's containers, what the reaper shims do about them, and what keeps them from it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/reaper-shim/reaper/internal/reaperctl"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := reaperctl.Main(ctx, version, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
