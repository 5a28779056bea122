// Package harness runs a private containerd and containers in it, for the integration tests and the demo.
//
// A [Daemon] lives in a mount namespace of its own, in which /run/containerd is an empty file system, and below a
// temporary directory: root, state, sockets and FIFOs. So it meets no other containerd of the machine, and no mount of its
// containers outlives it. Everything that it starts is in that namespace or carries [EnvMark] in its environment, and
// everything that runs in a container is in a cgroup below a name of its own: that is how [Daemon.Close] finds what was
// left behind, and how the next [Start] clears up after a test process that was killed.
//
// Linux only, and root only.
package harness
