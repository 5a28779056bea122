// The version of containerd for the tests with older daemons; see integration/tools/go.mod.
module github.com/reaper-shim/reaper/integration/tools/containerd-2.0

go 1.26

require github.com/containerd/containerd/v2 v2.0.14
