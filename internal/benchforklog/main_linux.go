// Benchforklog measures what the fork logs cost: the tables of docs/fork-log.md. "make bench-forklog" runs it, as root.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// emulated are the CPU counts of larger machines.
var emulated = []int{64, 128}

// result is what docs/data/fork-log.json holds.
type result struct {
	Date     string   `json:"date"`
	Kernel   string   `json:"kernel"`
	Arch     string   `json:"arch"`
	CPUModel string   `json:"cpuModel"`
	CPUs     int      `json:"possibleCPUs"`
	PageSize int      `json:"pageSize"`
	Go       string   `json:"go"`
	CC       string   `json:"cc"`
	Commit   string   `json:"commit"`
	Load     string   `json:"loadBefore"`
	LoadEnd  string   `json:"loadAfter"`
	Rounds   int      `json:"rounds"`
	SampleMS int64    `json:"sampleMillis"`
	Times    []series `json:"times"`
	Memory   *memory  `json:"memory"`
}

func main() {
	rounds := flag.Int("rounds", 9, "measure so often")
	sample := flag.Duration("sample", 100*time.Millisecond, "time of one measurement")
	data := flag.String("json", "docs/data/fork-log.json", "write what was measured to this file")
	doc := flag.String("doc", "docs/fork-log.md", "renew the tables of this file")
	render := flag.Bool("render", false, "measure nothing: renew the tables from the JSON file")
	flag.Parse()
	if err := run(*rounds, *sample, *data, *doc, *render); err != nil {
		fmt.Fprintln(os.Stderr, "benchforklog:", err)
		os.Exit(1)
	}
}

func run(rounds int, sample time.Duration, dataFile, docFile string, render bool) error {
	if !render {
		r, err := measure(rounds, sample)
		if err != nil {
			return err
		}
		text, err := json.MarshalIndent(r, "", "\t")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(dataFile), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(dataFile, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(dataFile)
	if err != nil {
		return err
	}
	var r result
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("parse %s: %w", dataFile, err)
	}
	page, err := os.ReadFile(docFile)
	if err != nil {
		return err
	}
	out, err := renew(string(page), r.tables())
	if err != nil {
		return fmt.Errorf("%s: %w", docFile, err)
	}
	return os.WriteFile(docFile, []byte(out), 0o644)
}

func measure(rounds int, sample time.Duration) (*result, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: the logs need CAP_PERFMON and CAP_NET_ADMIN, and /proc/slabinfo is root's")
	}
	cpus, err := possible()
	if err != nil {
		return nil, err
	}
	if cpus < 2 || cpus != runtime.NumCPU() || cpus > emulated[0] {
		return nil, fmt.Errorf("%d possible CPUs, %d to use: needs a machine with 2 to %d, all of them online", cpus, runtime.NumCPU(), emulated[0])
	}
	dir, err := os.MkdirTemp("", "benchforklog")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin, err := compile(dir)
	if err != nil {
		return nil, err
	}
	procs, err := startIdle(bin, 100)
	if err != nil {
		return nil, err
	}
	defer stopIdle(procs)
	var idle []procfs.HostPID
	for _, p := range procs {
		idle = append(idle, procfs.HostPID(p.Process.Pid))
	}
	victimCPU := cpus - 1
	// Another for each part: a process that has had thousands of threads keeps some of their stacks, and forks slowly.
	v, err := startVictim(bin, victimCPU)
	if err != nil {
		return nil, err
	}
	defer v.stop()
	fresh, err := startVictim(bin, victimCPU)
	if err != nil {
		return nil, err
	}
	defer fresh.stop()

	r := &result{
		Date: time.Now().UTC().Format(time.DateOnly), Arch: runtime.GOARCH, CPUs: cpus, PageSize: os.Getpagesize(),
		CPUModel: lineOf("/proc/cpuinfo", "model name"), Go: runtime.Version(), Rounds: rounds, SampleMS: sample.Milliseconds(),
		CC: firstLine("gcc", "--version"), Commit: firstLine("git", "rev-parse", "--short", "HEAD"), Load: load(),
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	r.Kernel = unix.ByteSliceToString(uts.Release[:])
	if r.Memory, err = measureMemory(v, idle, victimCPU, cpus, 5); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	if r.Times, err = times(fresh, idle, victimCPU, cpus, rounds, sample); err != nil {
		return nil, err
	}
	r.LoadEnd = load()
	return r, nil
}

// possible returns how many CPUs the kernel may ever bring online: the events of a log.
func possible() (int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	var last int
	if _, err := fmt.Sscanf(string(text), "0-%d", &last); err != nil {
		return 0, fmt.Errorf("possible CPUs %q: want a range from 0", text)
	}
	return last + 1, nil
}

func lineOf(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
