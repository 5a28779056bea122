// Package procfs reads what the reaper needs to know of processes from a proc(5) file system.
//
// Every reader takes its files from an [io/fs.FS], live on os.DirFS("/proc"), in tests on captured or invented trees. A
// file is read once and parsed from memory, and a parser never trusts the text: a process names itself (comm may hold
// spaces, newlines and parentheses) and can vanish between two reads. A process that is gone (ENOENT, ESRCH) is reported
// as [ErrVanished], which callers treat as a normal outcome; any other error names the file and what was wrong with it.
//
// Numbers keep the kernel's units: start times are clock ticks since boot (USER_HZ, 100 per second on every Linux ABI),
// exit codes are wait(2) statuses. A [HostPID] is the number of a task in the PID namespace that the mounted /proc
// belongs to; an [NSPID] is its number at another level. They are different types so that they cannot be mixed up.
package procfs
