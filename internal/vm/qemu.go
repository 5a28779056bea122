package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is an architecture as QEMU, the kernel and the compilers name it.
type machine struct {
	qemu    string
	args    []string
	console string
	gcc     string
	cflags  []string
}

var machines = map[string]machine{
	// max has pointer authentication and branch target identification; impdef makes the former bearable without hardware.
	"arm64": {"qemu-system-aarch64", []string{"-machine", "virt", "-cpu", "max,pauth-impdef=on"}, "ttyAMA0", "aarch64-linux-gnu-gcc",
		// The victims sign their return addresses, so that a stop which disturbs that has them crash.
		[]string{"-mbranch-protection=standard"}},
	"amd64": {"qemu-system-x86_64", []string{"-machine", "q35", "-cpu", "max"}, "ttyS0", "gcc", nil},
}

// Lines of the guest's init that are meant for us.
const (
	markExit   = "REAPER-VM-EXIT "
	markKernel = "REAPER-VM-KERNEL "
	markCgroup = "REAPER-VM-CGROUP "
)

// result is what a run has come to.
type result struct {
	kernel, cgroup        string
	passed, failed, skips int
	failures              []string
	code                  int
	ended                 bool
}

func (r *result) String() string {
	return fmt.Sprintf("Linux %s, cgroup %s: %d tests passed, %d failed, %d skipped", r.kernel, r.cgroup, r.passed, r.failed, r.skips)
}

// boot runs the machine until it switches itself off, and shows what it says.
func (c *config) boot(ctx context.Context, m machine, kernel, initrd, memory string) (*result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("still running after %v", c.timeout))
	defer cancel()
	level := "quiet loglevel=3"
	if c.verbose {
		level = ""
	}
	args := append([]string{}, m.args...)
	args = append(args, "-accel", "tcg,thread=multi", "-smp", strconv.Itoa(c.smp), "-m", memory, "-nodefaults", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
		"-append", "console="+m.console+" panic=-1 "+level)
	cmd := exec.CommandContext(ctx, m.qemu, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return &result{}, err
	}
	if err := cmd.Start(); err != nil {
		return &result{}, fmt.Errorf("%w (make deps-vm installs it)", err)
	}
	r := &result{}
	rerr := r.read(out)
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case err != nil:
		return r, fmt.Errorf("%s: %w", m.qemu, err)
	case rerr != nil:
		return r, fmt.Errorf("read the console: %w", rerr)
	case !r.ended:
		return r, errors.New("the machine ended without a result: see its last words")
	}
	return r, nil
}

func (r *result) read(console io.Reader) error {
	s := bufio.NewReader(console)
	for {
		line, err := s.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		r.line(line)
		if line != "" {
			fmt.Println(line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *result) line(line string) {
	if v, ok := strings.CutPrefix(line, markExit); ok {
		code, err := strconv.Atoi(strings.TrimSpace(v))
		r.code, r.ended = code, err == nil
		return
	}
	for mark, to := range map[string]*string{markKernel: &r.kernel, markCgroup: &r.cgroup} {
		if v, ok := strings.CutPrefix(line, mark); ok {
			*to = strings.TrimSpace(v)
		}
	}
	// Subtests are indented, and count like the others.
	word, name, _ := strings.Cut(strings.TrimSpace(line), ": ")
	switch word {
	case "--- PASS":
		r.passed++
	case "--- SKIP":
		r.skips++
	case "--- FAIL":
		r.failed++
		r.failures = append(r.failures, name)
	}
}
