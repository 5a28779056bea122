package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

//go:embed testdata/victim.c
var victimSource []byte

// compile returns the path of testdata/victim.c as a static program in dir.
func compile(dir string) (string, error) {
	src, bin := filepath.Join(dir, "victim.c"), filepath.Join(dir, "victim")
	if err := os.WriteFile(src, victimSource, 0o600); err != nil {
		return "", err
	}
	out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", bin, src).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile the victim: %w\n%s", err, out)
	}
	return bin, nil
}

// victim is the process that is measured: PID 1 of a PID namespace of its own, on one CPU.
type victim struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startVictim(bin string, cpu int) (*victim, error) {
	v := &victim{cmd: exec.Command(bin, strconv.Itoa(cpu))}
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	var err error
	if v.in, err = v.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	v.out = bufio.NewScanner(out)
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the victim: %w", err)
	}
	return v, nil
}

func (v *victim) pid() procfs.HostPID { return procfs.HostPID(v.cmd.Process.Pid) }

func (v *victim) stop() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

// order has the victim do something and returns how often it did it in how long.
func (v *victim) order(what string, arg int) (count int64, took time.Duration, err error) {
	if _, err := fmt.Fprintln(v.in, what, arg); err != nil {
		return 0, 0, fmt.Errorf("victim: %s: %w", what, err)
	}
	if !v.out.Scan() {
		return 0, 0, fmt.Errorf("victim: %s: no answer", what)
	}
	if _, err := fmt.Sscan(v.out.Text(), &count, (*int64)(&took)); err != nil {
		return 0, 0, fmt.Errorf("victim: %s: answer %q: %w", what, v.out.Text(), err)
	}
	return count, took, nil
}

// micros returns the microseconds that one operation took, over a time of sample.
func (v *victim) micros(op string, sample time.Duration) (float64, error) {
	count, took, err := v.order(op, int(sample.Milliseconds()))
	if err != nil {
		return 0, err
	}
	return float64(took.Nanoseconds()) / 1000 / float64(count), nil
}

// startIdle starts processes that sleep.
func startIdle(bin string, n int) ([]*exec.Cmd, error) {
	var all []*exec.Cmd
	for range n {
		cmd := exec.Command(bin, "idle")
		cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := cmd.Start(); err != nil {
			stopIdle(all)
			return nil, fmt.Errorf("start an idle process: %w", err)
		}
		all = append(all, cmd)
	}
	return all, nil
}

func stopIdle(all []*exec.Cmd) {
	for _, cmd := range all {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
