// Package node finds what a node runs: the tasks of containerd in all its namespaces, what Kubernetes and nerdctl call them, how
// many PIDs they use of how many, and what their shims say if they are reaper shims.
//
// It speaks to containerd through its gRPC services, whose stubs alone are linked: containerd's client package brings an
// image store with it.
//
// What a container or its user can choose is handed on as it is (names, labels, commands): escape it before it is shown.
package node
