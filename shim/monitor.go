package shim

import (
	"errors"
	"os/exec"
	goruntime "runtime"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// monitor runs the runc commands of the task service. It waits for each by its own, so that the end of a runc command is no
// reason to call containerd's reaper, which takes every dead child there is and tells all that wait for anything. Where that
// reaper comes first it has the exit from there.
type monitor struct {
	c *children
}

var _ runc.ProcessMonitor = monitor{}

// Start starts the command. Its exit comes on the channel, once.
func (m monitor) Start(cmd *exec.Cmd) (chan runc.Exit, error) {
	taken := reaper.Default.Subscribe() // before it can die
	if err := cmd.Start(); err != nil {
		reaper.Default.Unsubscribe(taken)
		return nil, err
	}
	pid := cmd.Process.Pid
	m.c.command(procfs.HostPID(pid), true)

	elsewhere := make(chan runc.Exit, 1)
	go func() {
		// Read until it is closed: one subscriber that does not listen blocks all.
		for e := range taken {
			if e.Pid == pid {
				select {
				case elsewhere <- e:
				default:
				}
			}
		}
	}()
	exit := make(chan runc.Exit, 1)
	go func() {
		defer close(exit)
		err := cmd.Wait()
		e := runc.Exit{Timestamp: time.Now(), Pid: pid}
		switch {
		case errors.Is(err, unix.ECHILD):
			e = <-elsewhere
		case cmd.ProcessState != nil:
			e.Status = int(exitStatus(int(cmd.ProcessState.Sys().(syscall.WaitStatus))))
		default:
			e.Status = 255 // as go-runc's own monitor has it
		}
		m.c.command(procfs.HostPID(pid), false)
		reaper.Default.Unsubscribe(taken)
		exit <- e
	}()
	return exit, nil
}

// StartLocked starts the command from one OS thread, which matters to a command with a parent-death signal.
func (m monitor) StartLocked(cmd *exec.Cmd) (chan runc.Exit, error) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	return m.Start(cmd)
}

// Wait waits for the end of a command that Start has started, its output included.
func (monitor) Wait(_ *exec.Cmd, exit chan runc.Exit) (int, error) {
	e, ok := <-exit
	if !ok {
		return -1, reaper.ErrNoSuchProcess
	}
	return e.Status, nil
}
