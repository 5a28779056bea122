package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// tini is Debian's, linked statically.
const tini = "/usr/bin/tini-static"

// Who reaps.
const (
	whoNobody = "nobody: runc.v2, zombies are kept"
	whoTini   = "tini as PID 1, under runc.v2"
	whoAssist = "reaper.v2, PID 1 is made to"
	whoInit   = "reaper.v2, mode init"
)

// measureReap measures the CPU time of orphans' lives.
func measureReap(ctx context.Context, d *harness.Daemon, o options) (*reapPart, error) {
	if _, err := exec.LookPath(tini); err != nil {
		return nil, fmt.Errorf("%w (make deps-bench)", err)
	}
	part := &reapPart{Orphans: o.orphans, Rate: o.reapRate}
	for _, who := range []string{whoNobody, whoTini, whoAssist, whoInit} {
		part.Cases = append(part.Cases, reapCase{Who: who})
	}
	for range o.reapRounds {
		for _, i := range rand.Perm(len(part.Cases)) {
			c := &part.Cases[i]
			s, err := reapOnce(ctx, d, c.Who, o)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.Who, err)
			}
			c.Samples = append(c.Samples, s)
		}
	}
	return part, nil
}

func reapOnce(ctx context.Context, d *harness.Daemon, who string, o options) (sample reapSample, err error) {
	spec := harness.Spec{Runtime: harness.RuncRuntime, Args: idle}
	switch who {
	case whoTini:
		spec.Args = append([]string{"/tini", "--"}, idle...)
		spec.Extra = []oci.SpecOpts{bind(tini, "/tini")}
	case whoAssist:
		spec.Runtime = harness.ReaperRuntime
	case whoInit:
		spec.Runtime = harness.ReaperRuntime
		spec.Annotations = map[string]string{"io.containerd.reaper.mode": "init"}
	}
	c, err := d.Run(ctx, spec)
	if err != nil {
		return sample, err
	}
	defer func() { err = errors.Join(err, c.Remove(context.WithoutCancel(ctx))) }()
	shim, err := c.Shim()
	if err != nil {
		return sample, err
	}
	// The process that leaks is there before the measuring begins, and after its end: what an exec takes does not count.
	r, w := io.Pipe()
	result := make(chan error, 1)
	go func() {
		script := fmt.Sprintf("echo ready; sleep 1; /bin/leak -n %d -r %d; echo done; sleep 100000", o.orphans, o.reapRate)
		err := execTo(ctx, d, c, w, "/bin/sh", "-c", script)
		_ = w.Close()
		result <- err
	}()
	// It is killed with the container; an error before that shows in what is read.
	defer func() { _ = r.Close() }()
	if err := expect(r, "ready"); err != nil {
		return sample, fmt.Errorf("leak: %w", err)
	}
	m := newMeter(shim)
	total := func() (container time.Duration, used usage, err error) {
		if container, err = cgroupCPU(c.PID); err != nil {
			return 0, usage{}, err
		}
		own, tracing, err := m.read()
		return container, own.plus(tracing), err
	}
	container0, used0, err := total()
	if err != nil {
		return sample, err
	}
	finished := make(chan error, 1)
	go func() { finished <- expect(r, "done") }()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	until := time.Time{}
	for until.IsZero() || time.Now().Before(until) {
		select {
		case err := <-finished:
			if err != nil {
				return sample, fmt.Errorf("leak: %w", err)
			}
			until = time.Now().Add(grace + 2*time.Second) // the last are reaped by then
		case err := <-result:
			return sample, fmt.Errorf("leak ended: %w", err)
		case <-ctx.Done():
			return sample, ctx.Err()
		case <-ticker.C:
			if _, _, err := m.read(); err != nil {
				return sample, err
			}
		}
	}
	container1, used1, err := total()
	if err != nil {
		return sample, err
	}
	zs, err := c.Zombies()
	if err != nil {
		return sample, err
	}
	n := float64(o.orphans)
	return reapSample{
		Container: micros(container1-container0) / n, Shim: micros(used1.minus(used0).cpu) / n, Left: len(zs),
	}, nil
}

// expect reads a line.
func expect(r io.Reader, want string) error {
	buf := make([]byte, len(want)+1)
	if _, err := io.ReadFull(r, buf); err != nil {
		return fmt.Errorf("wait for %q: %w", want, err)
	}
	if string(buf) != want+"\n" {
		return fmt.Errorf("%q, want %q", buf, want)
	}
	return nil
}

// bind mounts a file of the host.
func bind(source, destination string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: source, Destination: destination, Options: []string{"bind", "ro"}})
		return nil
	}
}

// cgroupCPU is the CPU time that the cgroup of a process has used since it was made (cgroups(7)): cpuacct.usage of version 1 in
// nanoseconds, usage_usec in cpu.stat of version 2.
func cgroupCPU(pid int) (time.Duration, error) {
	groups, err := proc.Cgroups(procfs.HostPID(pid))
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		if slices.Contains(g.Controllers, "cpuacct") {
			text, err := os.ReadFile("/sys/fs/cgroup/cpuacct" + g.Path + "/cpuacct.usage")
			if err != nil {
				return 0, err
			}
			ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			return time.Duration(ns), err
		}
	}
	for _, g := range groups {
		if g.Hierarchy != 0 {
			continue
		}
		text, err := os.ReadFile("/sys/fs/cgroup" + g.Path + "/cpu.stat")
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
				us, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
				return time.Duration(us) * time.Microsecond, err
			}
		}
	}
	return 0, fmt.Errorf("process %d is in no cgroup that counts CPU time", pid)
}
