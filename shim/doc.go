// Package shim is the containerd runtime-v2 shim io.containerd.reaper.v2: containerd's own runc task service, wrapped, and
// around it what finds and reaps zombies.
//
// What it promises to containerd: every task call does what it does in io.containerd.runc.v2, and nothing of ours can fail
// a task call at run time, with one exception: a bad option or annotation fails Create, before anything is made. What it
// owns: the configuration of each task, one watcher per PID namespace, the orphans that escape to the shim, and a publisher
// of its own for what it has to say about them.
package shim

// Name is the runtime name, containerd's runtime_type.
const Name = "io.containerd.reaper.v2"
