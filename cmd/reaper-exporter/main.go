// Command reaper-exporter serves what the reaper shims of a node know of zombies to Prometheus, and on a page.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/reaper-shim/reaper/internal/exporter"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := exporter.Main(ctx, version, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
