// Package lineage decides who forked a zombie that hangs on PID 1 of a container: PID 1 itself, which may still ask for
// its status, or somebody else, whose orphan PID 1 adopted.
//
// [Judge] is pure: evidence in, verdict out, no I/O and no clock. A verdict of [Own] or [Adopted] is a proof; everything
// that is merely likely is [Unproven]. The rules, and why each is a proof:
//
//   - T, thread list: find_new_reaper() (kernel/exit.c) links an adopted child to the leader thread of the child reaper
//     while that thread lives. A child on another thread's list was forked by PID 1.
//   - S, session: a child inherits its parent's session (copy_process(), kernel/fork.c) and can change it only to its own
//     number (setsid(2)). Where PID 1 was session leader before it ran its first instruction it cannot change its own
//     (setsid(2): EPERM), so a zombie in a third session descends from somebody who was not PID 1.
//   - L, seen elsewhere: the same process was seen earlier as the child of another living process; real_parent changes
//     only when a parent dies. Which process is "the same" is the hard part: see [Sightings].
//   - F, fork log: the kernel told of every fork that PID 1 did since a known moment (package forklog). A child born since
//     then and not in the log was forked by somebody else.
//
// Not evidence, though they look like it: the order of a children list, process groups, names, ages.
package lineage
