package tracer

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// errPipe is what a write to a worker that has ended returns.
const errPipe = unix.EPIPE

// workerAttr puts the worker into a session of its own, so that a signal to the caller's process group does not reach it.
// There is no Pdeathsig: it would kill the worker between the swap of a system call and its restoration. The end of its
// standard input tells it that we are gone.
func workerAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// enlarge makes room in a pipe. Where it may not, whoever writes has to wait more often.
func enlarge(pipe *os.File) {
	if c, err := pipe.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}
