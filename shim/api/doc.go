// Package api holds the protobuf messages of the reaper shim, version 1 of the package containerd.reaper. Fields are only
// ever added.
package api

//go:generate sh -c "mkdir -p ../../bin/proto && cd tools && go build -o ../../../bin/proto/ tool"
//go:generate sh -c "../../bin/proto/buf lint && ../../bin/proto/buf generate"
