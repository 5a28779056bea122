// Command reaper-tracer makes the PID 1 of a container wait for zombies. The shim starts it; see -h for its protocol.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/reaper-shim/reaper/runtime/tracer"
)

// version is set by the linker.
var version = "dev"

const usage = `Usage: reaper-tracer [-idle duration] [-journal fd]
       reaper-tracer -recover -journal fd

Makes the parent of zombie processes wait for them, with ptrace(2). It is started by containerd-shim-reaper-v2 and needs
root (CAP_SYS_PTRACE, and CAP_SYS_ADMIN for parents with a seccomp filter).

It reads one request per line from standard input, a JSON object:
  {"version":4, "pid":PARENT, "startTime":TICKS, "maxStopNs":5000000, "restNs":0, "attaches":1,
   "zombies":"ZOMBIE:TICKS:NUMBER:ID ..."}
Start times are field 22 of /proc/<pid>/stat. NUMBER is a zombie's number in the parent's PID namespace, and it is left alone if that is
another; 0 if it is not known. ID is the inode number of its pidfd, which identifies it instead of the start time unless it is 0.
It writes one report per line to standard output, and ends when its standard input ends or no request has come for a while.

If it dies in the middle of an attach, PID 1 may be left stopped. With -recover it puts right, from the journal, what an
earlier process has left behind; the shim sees to that. Without a journal nobody does: SIGCONT would then let PID 1 go on
with registers that are not its own.

`

// A ptrace relation belongs to a thread. main runs on the first one, and so does everything that Serve does.
func init() { runtime.LockOSThread() }

func main() {
	idle := flag.Duration("idle", tracer.DefaultIdle, "end when no request has come for this `duration`")
	fd := flag.Int("journal", -1, "write what has to be put back after a crash to this file `descriptor`, a memfd")
	again := flag.Bool("recover", false, "put right what the process that wrote the journal has left behind, and exit")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.BoolVar(showVersion, "v", false, "print the version and exit")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if *showVersion {
		fmt.Println("reaper-tracer", version, "protocol", tracer.Version, runtime.Version(), runtime.GOARCH)
		return
	}
	if flag.NArg() > 0 || *idle < time.Millisecond || *again && *fd < 0 {
		flag.Usage()
		os.Exit(2)
	}
	// It handles a few kilobytes per request and lives for seconds: memory is collected between requests, not while a
	// process stands still.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	tracer.Harden()
	err := run(*fd, *again, *idle)
	if err != nil {
		fmt.Fprintln(os.Stderr, "reaper-tracer:", err)
	}
	switch {
	case errors.Is(err, tracer.ErrStuck):
		os.Exit(3)
	case err != nil:
		os.Exit(1)
	}
}

func run(fd int, again bool, idle time.Duration) error {
	var journal *tracer.Journal
	if fd >= 0 {
		var err error
		if journal, err = tracer.OpenJournal(fd); err != nil {
			return err
		}
	}
	if again {
		return tracer.Recover(journal)
	}
	return tracer.Serve(os.Stdin, os.Stdout, idle, journal)
}
