package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/uname"
)

func measure(rounds, starts, orphans int, bin string) (*result, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: each init is PID 1 of a PID namespace")
	}
	dir, err := os.MkdirTemp("", "benchinit")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	victim := filepath.Join(dir, "victim")
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", victim, "internal/benchinit/testdata/victim.c").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile the victim: %w\n%s", err, out)
	}
	r := &result{
		Date: time.Now().UTC().Format(time.DateOnly), Kernel: uname.Get().Release, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Commit: output("git", "rev-parse", "--short", "HEAD"),
		Load: load(), Rounds: rounds, Starts: starts, Orphans: orphans,
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	// First the program alone, as PID 1: what the others add to it.
	r.Inits = []*series{{Name: "none"}, {Name: "reaper-init", command: []string{bin}}}
	for _, name := range []string{"tini", "dumb-init", "catatonit"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("%w. Run: make bench-init, which installs it", err)
		}
		version := output("dpkg-query", "-W", "-f", "${Version}", name)
		r.Inits = append(r.Inits, &series{Name: name, Version: version, command: []string{path}})
	}
	for _, s := range r.Inits[1:] {
		info, err := os.Stat(s.command[0])
		if err != nil {
			return nil, err
		}
		s.BinarySize = info.Size()
	}
	for range rounds {
		// One start of each in turn, so that what disturbs the machine disturbs all.
		times := make([][]float64, len(r.Inits))
		for range starts {
			for i, s := range r.Inits {
				t, err := startOnce(s.command, victim)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", s.Name, err)
				}
				times[i] = append(times[i], t)
			}
		}
		for i, s := range r.Inits {
			if len(times[i]) > 0 {
				s.StartUS = append(s.StartUS, benchreport.Quantile(times[i], 0.5))
			}
		}
		for _, s := range r.Inits[1:] {
			if err := s.round(victim, orphans); err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
		}
	}
	r.LoadEnd = load()
	return r, nil
}

func command(init []string, args ...string) *exec.Cmd {
	all := slices.Concat(init, args)
	cmd := exec.Command(all[0], all[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// startOnce returns the microseconds from the start of an init, with a program that ends at once, to its end.
func startOnce(init []string, victim string) (float64, error) {
	cmd := command(init, victim, "true")
	began := time.Now()
	err := cmd.Run()
	return float64(time.Since(began).Nanoseconds()) / 1e3, err
}

// round measures the memory of an init and how it reaps.
func (s *series) round(victim string, orphans int) error {
	// The victim reads /proc of its own namespace: a shell mounts it and becomes the init.
	script := `mount --make-rprivate / && mount -t proc proc /proc && exec "$@"`
	cmd := command([]string{"/bin/sh", "-c", script, "sh"}, slices.Concat(s.command, []string{victim, "burst", strconv.Itoa(orphans)})...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = s.talk(cmd.Process.Pid, in, bufio.NewReader(out), orphans)
	if err != nil {
		_ = cmd.Process.Kill() // the error that was is the one to tell
	}
	return errors.Join(err, in.Close(), cmd.Wait())
}

func (s *series) talk(pid int, in io.Writer, out *bufio.Reader, orphans int) error {
	burst := func() (float64, error) {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return 0, err
		}
		line, err := out.ReadString('\n')
		if err != nil {
			return 0, err
		}
		return strconv.ParseFloat(strings.TrimSpace(line), 64)
	}
	// The first one is not counted: page faults, and slabs that grow.
	if _, err := burst(); err != nil {
		return err
	}
	rss, pss, err := memory(pid)
	if err != nil {
		return err
	}
	before, err := cpuTime(pid)
	if err != nil {
		return err
	}
	ns, err := burst()
	if err != nil {
		return err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return err
	}
	s.RSSKB, s.PSSKB = append(s.RSSKB, rss), append(s.PSSKB, pss)
	s.OrphansPS = append(s.OrphansPS, float64(orphans)/ns*1e9)
	s.CPUUS = append(s.CPUUS, (after-before)/1e3/float64(orphans))
	return nil
}

// memory returns Rss and Pss of /proc/PID/smaps_rollup, in kB.
func memory(pid int) (rss, pss float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "Rss:":
			rss, err = strconv.ParseFloat(f[1], 64)
		case "Pss:":
			pss, err = strconv.ParseFloat(f[1], 64)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	if rss == 0 {
		return 0, 0, fmt.Errorf("no Rss in smaps_rollup of %d", pid)
	}
	return rss, pss, nil
}

// cpuTime returns the nanoseconds that a process has run: the first field of /proc/PID/schedstat.
func cpuTime(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(data), " ")
	return strconv.ParseFloat(first, 64)
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func load() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(data), " ")
	return one
}
