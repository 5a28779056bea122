// Package sweep finds the zombies below the PID 1 of one PID namespace and has the proven orphans among them reaped.
//
// A [Sweeper] belongs to one PID namespace, not to one container: the containers of a pod may share it. Each [Sweeper.Sweep]
// reads the children of PID 1, judges the zombies (package lineage), asks the [Reaper] for those that were adopted and have
// been seen for longer than the grace period, and reports what it found. It never blocks on PID 1 beyond what the Reaper
// does, and it holds no resources between two calls, except where there is plenty to be done: then a look for more goes on beside, and so do
// the next two requests. Such a look does without the files of the processes that it finds, where it can (package pidfd).
// [Cadence] says when the next sweep is worth its cost.
//
// Ages are counted from the first sight of a zombie: the kernel does not tell when a process died.
package sweep
