// Command vm runs tests of this repository in a virtual machine: the unit tests of runtime/... on arm64, and the container
// integration tests on a kernel and with cgroup v2 that the machine at hand may not have. Kernel and busybox are Debian's
// packages, the machine is QEMU's without hardware acceleration. Everything is made from the work tree; what is downloaded
// is kept in .cache/vm.
//
//	go run ./internal/vm [-arch arm64] [-record] [-run REGEXP] unit | integration
//
// It exits with 0 if the tests passed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	allPackages  = "./runtime/..." // of the suite unit
	defaultKills = 5
)

type config struct {
	arch    string // as Go says it
	suite   string
	version string // of Debian's kernel meta package, "" for the newest
	mirror  string
	release string
	run     string
	pkgs    string
	smp     int
	memory  string
	slow    int
	kills   int // of TestCrash in each state
	reaps   int // of TestTransparency in each call
	timeout time.Duration
	record  string // file with the table of results
	verbose bool   // the kernel's messages too
}

func main() {
	var c config
	flag.StringVar(&c.arch, "arch", "arm64", "architecture: arm64 or amd64")
	flag.StringVar(&c.version, "kernel", "", "version of the package linux-image-ARCH (default: the newest)")
	flag.StringVar(&c.mirror, "mirror", "", "base URI of Debian's archives, below which debian and debian-security are (default: those that apt uses here)")
	flag.StringVar(&c.release, "release", "bookworm", "Debian release")
	flag.StringVar(&c.run, "run", "", "only the tests that match")
	flag.StringVar(&c.pkgs, "pkgs", allPackages, "packages of the suite unit, separated by spaces")
	flag.IntVar(&c.smp, "smp", 2, "CPUs")
	flag.StringVar(&c.memory, "m", "", "memory (default: 1G, 3G for the suite integration)")
	flag.IntVar(&c.slow, "slow", 8, "factor for the deadlines of the tests")
	flag.IntVar(&c.kills, "kills", defaultKills, "how often TestCrash kills the tracer in each state")
	flag.IntVar(&c.reaps, "reaps", 5, "how many zombies TestTransparency reaps in each call")
	flag.DurationVar(&c.timeout, "timeout", 75*time.Minute, "longest run of the machine")
	flag.StringVar(&c.record, "record", "", "file with the table to add the results to")
	flag.BoolVar(&c.verbose, "v", false, "show the kernel's messages")
	flag.Parse()
	c.suite = flag.Arg(0)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	code, err := c.main(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = 2
	}
	stop()
	stop()
	os.Exit(code) //nolint:gocritic // stop has been called
}

func (c *config) main(ctx context.Context) (code int, err error) {
	m, ok := machines[c.arch]
	if !ok {
		return 0, fmt.Errorf("architecture %q: want arm64 or amd64", c.arch)
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(root, ".cache", "vm", c.arch)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	deb, err := c.packages(ctx, dir, "busybox-static")
	if err != nil {
		return 0, fmt.Errorf("fetch Debian's kernel: %w", err)
	}
	work, err := os.MkdirTemp("", "reaper-vm")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)

	b := &builder{config: c, m: m, root: root, work: work, deb: deb}
	switch c.suite {
	case "unit":
		err = b.unit(ctx)
	case "integration":
		err = b.integration(ctx)
	default:
		err = fmt.Errorf("suite %q: want unit or integration", c.suite)
	}
	if err != nil {
		return 0, err
	}
	initrd := filepath.Join(work, "initrd")
	if err := b.archive(initrd); err != nil {
		return 0, err
	}
	fmt.Printf("boot %s, %s, %d CPUs, %s\n", filepath.Base(deb.kernel), c.arch, c.smp, b.memory())
	began := time.Now()
	res, err := c.boot(ctx, m, deb.kernel, initrd, b.memory())
	fmt.Printf("%s; %v in all\n", res, time.Since(began).Round(time.Second))
	if err != nil {
		return 0, err
	}
	if c.record != "" {
		if err := record(c.record, c, res); err != nil {
			return 0, fmt.Errorf("record the results: %w", err)
		}
	}
	return res.code, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := output(ctx, "", nil, "go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	return filepath.Dir(strings.TrimSpace(out)), nil
}
