package main

import (
	"os"

	"github.com/reaper-shim/reaper/runtime/tracer"
)

func main() {
	if err := tracer.Serve(os.Stdin, os.Stdout, 0); err != nil {
		os.Exit(1)
	}
}
