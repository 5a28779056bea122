// Package forklog knows which children a process forked, because the kernel told of every fork since a known moment.
//
// It is the evidence of rule F: a child of PID 1 that was born since then and is not in the log was adopted. A log is exact or
// says that it is not: what it cannot vouch for it answers with [lineage.ForkUnknown]. Everything that may have lost a record (a full ring, an
// ended event, a failed allocation) is a gap: nothing that was born before its end is vouched for any more.
//
// There are two sources. The perf task log ([OpenPerf]) hears of the forks of one process and of nobody else's; opened on PID 1
// before it has run its first instruction it is exact from birth. The proc connector ([Connector]) hears of the forks of the whole
// host, filtered in the kernel, and serves where the first cannot be had.
package forklog
