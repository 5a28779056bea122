package compare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/reaper-shim/reaper/integration/harness"
)

const isolatedEnv = "REAPER_COMPARE_ISOLATED"

// Main runs f in network and IPC namespaces of its own, so that bridges, firewall rules, well-known ports and shared memory
// of the tests meet nobody else's. It ends the program.
func Main(name string, f func(ctx context.Context) error) {
	if os.Geteuid() != 0 {
		fail(name, errors.New("containers need root"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv(isolatedEnv) == "" {
		again(ctx, name)
	}
	if err := harness.LoopbackUp(); err != nil {
		fail(name, err)
	}
	if err := f(ctx); err != nil {
		fail(name, err)
	}
}

// again starts the program once more and ends as that does.
func again(ctx context.Context, name string) {
	self, err := os.Executable()
	if err != nil {
		fail(name, err)
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolatedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	// The parent death signal comes when the thread ends that forked (prctl(2)): keep it.
	runtime.LockOSThread()
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1))
	}
	if err != nil {
		fail(name, fmt.Errorf("start in namespaces of its own: %w", err))
	}
	os.Exit(0)
}

func fail(name string, err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	os.Exit(1)
}
