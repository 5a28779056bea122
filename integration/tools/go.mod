// Versions of the programs that the integration tests run. They are built each in its own
// module (see Makefile, target tools), so that each has the dependencies its authors chose:
// this file only pins them and go.sum holds their checksums. Do not run "go mod tidy" here.
module github.com/reaper-shim/reaper/integration/tools

go 1.26

require (
	github.com/containerd/containerd/v2 v2.4.2
	github.com/containerd/nerdctl/v2 v2.1.2
	github.com/opencontainers/runc v1.5.2
	gotest.tools/gotestsum v1.13.0
	sigs.k8s.io/cri-tools v1.36.0
)
