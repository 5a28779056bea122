package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

//go:embed testdata/target.c
var targetSource []byte

var proc = procfs.New(os.DirFS("/proc"))

// compile returns the path of testdata/target.c as a static program in dir.
func compile(dir string) (string, error) {
	src, bin := filepath.Join(dir, "target.c"), filepath.Join(dir, "target")
	if err := os.WriteFile(src, targetSource, 0o600); err != nil {
		return "", err
	}
	out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", bin, src).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile the target: %w\n%s", err, out)
	}
	return bin, nil
}

// target is PID 1 of a PID namespace and of a session, or the only child of tini, which is.
type target struct {
	cmd       *exec.Cmd
	in        io.WriteCloser
	out       *bufio.Scanner
	startTime uint64 // of PID 1
	own       int    // children of PID 1 that are none of the leak's
}

// start starts a target, on any CPU if cpu is negative.
func start(bin string, underTini bool, cpu int) (*target, error) {
	args := []string{bin}
	if underTini {
		args = append([]string{"tini", "--"}, args...)
	}
	if cpu >= 0 {
		args = append([]string{"taskset", "-c", fmt.Sprint(cpu)}, args...)
	}
	t := &target{cmd: exec.Command(args[0], args[1:]...)}
	if underTini {
		t.own = 1
	}
	t.cmd.Stderr = os.Stderr
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true, Pdeathsig: syscall.SIGKILL}
	var err error
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.out = bufio.NewScanner(out)
	if err := t.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the target: %w", err)
	}
	st, err := proc.Stat(t.pid())
	if err == nil {
		t.startTime = st.StartTime
		err = t.order("pile", 0) // it has got through its execs when it answers
	}
	if err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

func (t *target) pid() procfs.HostPID { return procfs.HostPID(t.cmd.Process.Pid) }

func (t *target) stop() {
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
}

func (t *target) order(what string, n int) error {
	if _, err := fmt.Fprintln(t.in, what, n); err != nil {
		return fmt.Errorf("target: %s: %w", what, err)
	}
	if !t.out.Scan() || t.out.Text() != "done" {
		return fmt.Errorf("target: %s: no answer", what)
	}
	return nil
}

// count returns how many requests were answered until now, on the target's clock.
func (t *target) count() (now rate, err error) {
	if err := t.order("count", 0); err != nil {
		return now, err
	}
	if !t.out.Scan() {
		return now, errors.New("target: count: no answer")
	}
	if _, err := fmt.Sscan(t.out.Text(), &now.Requests, &now.NS); err != nil {
		return now, fmt.Errorf("target: count: %q: %w", t.out.Text(), err)
	}
	return now, nil
}

// zombies counts the children of PID 1 that have ended.
func (t *target) zombies() (int, error) {
	n := 0
	err := proc.EachChild(t.pid(), t.pid(), func(pid procfs.HostPID) bool {
		if st, err := proc.Stat(pid); err == nil && st.Zombie() {
			n++
		}
		return true
	})
	return n, err
}

// onCPU returns how long all threads of a process have run (/proc/<pid>/schedstat, Documentation/scheduler/sched-stats.rst).
func onCPU(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // a thread that has ended
		}
		var ns int64
		if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &ns); err != nil {
			return 0, fmt.Errorf("%s: %q: %w", name, text, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
