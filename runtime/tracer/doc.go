// Package tracer makes the PID 1 of a container wait for zombies that nobody else will wait for.
//
// A zombie is released by its parent alone, so the only way to remove one from outside is to have the parent call
// waitid(2). The package does that with ptrace(2): it stops one thread of PID 1 that is parked in a harmless system call,
// exchanges the call for waitid(P_PID, …, WEXITED|WNOHANG|__WALL) at the syscall-entry stop, and puts everything back, so
// that the interrupted call goes on as if nothing had happened.
//
// # Contract
//
// The caller decides which zombies may be taken (lineage); this package decides whether it can be done without harm. What
// it promises:
//
//   - A zombie is taken only if it still has the start time or the ID, the parent and the number (at PID 1's own level) that
//     the request names, and if PID 1 does not trace it. The status of any other child is never touched.
//   - PID 1 keeps its registers, its signal mask and dispositions, its pending signals and the result of its call. No
//     memory of it is read or written. What it can see: TracerPid, an EINTR from a call that gives one on any stop
//     (epoll_wait(2) with a finite time-out), the orphan's times in RUSAGE_CHILDREN, and what else docs/transparency.md lists.
//   - No system call of PID 1 itself runs without its seccomp filter, and not a single instruction of it.
//   - Whatever can be declined is declined from /proc, before PID 1 is touched; every refusal has a [Reason].
//   - PID 1 is stopped for about [Request.MaxStop] at most, and for as long as the kernel takes to go over its children where it is asked; what is not reached in that time is reported as [Left].
//
// # Processes
//
// All of this happens in a process of its own, reaper-tracer, for two reasons. A tracer that is also the parent, or that
// reaps with wait4(-1), takes ptrace stops for exits (wait(2)). And a thread that does not stop in time cannot be
// detached: only the end of its tracer frees it.
//
// [Client] starts that process on demand and talks to it over its standard input and output: one JSON object per line in
// each direction, versioned ([Version]), one [Report] for each [Request]. It ends by itself when idle and when its
// standard input ends. [Serve] is the other end. Between requests nothing is remembered but how long PID 1 is still to be left alone, how its
// stops are best waited for, and when it last said that it traces nobody ([Request.Probe]).
//
// A worker that is killed in the middle of an attach leaves PID 1 stopped, with registers that are not its own, and a
// [Journal] of them with its client, which starts another process to put them back ([Recover]): docs/crash-safety.md.
//
// # Words
//
// The terms are those of ptrace(2): syscall-entry stop, syscall-exit stop, signal-delivery stop, group stop, and event stop
// for PTRACE_EVENT_STOP. "Parked" means blocked in a system call that the kernel will restart by itself. PID 1 stands for
// the process of the request; it is the namespace's init in practice, and anything else that adopts children works as
// well.
//
// amd64 and arm64 are served; elsewhere every request is declined ([Supported]).
package tracer
