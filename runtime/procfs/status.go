package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
)

// Seccomp modes of /proc/<pid>/status (proc_pid_status(5)).
const (
	SeccompDisabled = 0
	SeccompStrict   = 1
	SeccompFilter   = 2
)

// SignalSet is a signal mask as /proc prints it: bit n-1 is signal n.
type SignalSet uint64

// Has reports whether signal sig (1..64) is in the set.
func (s SignalSet) Has(sig int) bool { return sig >= 1 && sig <= 64 && s&(1<<(sig-1)) != 0 }

// Status holds the fields of /proc/<pid>/status that the reaper uses, named after proc_pid_status(5).
type Status struct {
	State     State
	Tgid      HostPID
	PPid      HostPID
	TracerPid HostPID // 0: not traced
	Threads   int
	Seccomp   int
	// NSpid has the number of the process at every level from that of this /proc mount (index 0) down to the PID
	// namespace that the process is in (last).
	NSpid []NSPID

	SigPnd SignalSet // pending for this thread
	ShdPnd SignalSet // pending for the process
	SigBlk SignalSet
	SigIgn SignalSet
	SigCgt SignalSet
}

// At returns the number that the process has at level, the index that NSpid has for it (0: this /proc mount's own). ok is
// false when the process is not visible at that level.
func (s Status) At(level int) (pid NSPID, ok bool) {
	if level < 0 || level >= len(s.NSpid) {
		return 0, false
	}
	return s.NSpid[level], true
}

// Level returns the index in NSpid of the PID namespace that the process is in.
func (s Status) Level() int { return len(s.NSpid) - 1 }

// ParseStatus parses a status file. The Name line is skipped: its text belongs to the process.
func ParseStatus(data []byte) (Status, error) {
	var s Status
	seen := 0
	for len(data) > 0 {
		var line []byte
		line, data = cutLine(data)
		key, val, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			continue
		}
		val = bytes.TrimSpace(val)
		var err error
		// The keys below come once each and the kernel escapes newlines in the name (seq_file escapes in
		// proc_task_name), so that a process cannot forge a line.
		switch string(key) {
		case "State":
			if len(val) == 0 {
				return Status{}, errors.New("status: empty State")
			}
			s.State = State(val[0])
			seen++
		case "Tgid":
			s.Tgid, err = parsePID(val)
			seen++
		case "PPid":
			s.PPid, err = parsePID(val)
		case "TracerPid":
			s.TracerPid, err = parsePID(val)
		case "NSpid":
			s.NSpid, err = parseNSpid(val)
		case "Threads":
			s.Threads, err = strconv.Atoi(string(val))
		case "Seccomp":
			s.Seccomp, err = strconv.Atoi(string(val))
		case "SigPnd":
			s.SigPnd, err = parseSignals(val)
		case "ShdPnd":
			s.ShdPnd, err = parseSignals(val)
		case "SigBlk":
			s.SigBlk, err = parseSignals(val)
		case "SigIgn":
			s.SigIgn, err = parseSignals(val)
		case "SigCgt":
			s.SigCgt, err = parseSignals(val)
		}
		if err != nil {
			return Status{}, fmt.Errorf("status: %s: %w", key, err)
		}
	}
	if seen < 2 {
		return Status{}, errors.New("status: State or Tgid missing")
	}
	return s, nil
}

func parseNSpid(val []byte) ([]NSPID, error) {
	var pids []NSPID
	for tok := range bytes.FieldsSeq(val) {
		n, err := strconv.ParseInt(string(tok), 10, 32)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, ErrVanished // the kernel is just releasing it
		}
		if n < 0 {
			return nil, fmt.Errorf("%d: want a positive number", n)
		}
		pids = append(pids, NSPID(n))
	}
	return pids, nil
}

func parseSignals(val []byte) (SignalSet, error) {
	n, err := strconv.ParseUint(string(val), 16, 64)
	return SignalSet(n), err
}

// Syscall is what /proc/<pid>/task/<tid>/syscall says (proc_pid_syscall(5)).
type Syscall struct {
	Running bool  // the thread is on a CPU or runnable: nothing else is known
	Nr      int64 // -1: blocked, but not in a system call
	Args    [6]uint64
	SP, PC  uint64
}

// ParseSchedstat parses a schedstat file (Documentation/scheduler/sched-stats.rst): nanoseconds on a CPU, nanoseconds of waiting for one,
// and how often the task was given one, which is returned.
func ParseSchedstat(data []byte) (timeslices uint64, err error) {
	fields := bytes.Fields(data)
	if len(fields) != 3 {
		return 0, fmt.Errorf("schedstat: %d fields, want 3", len(fields))
	}
	for i, tok := range fields {
		if timeslices, err = strconv.ParseUint(string(tok), 10, 64); err != nil {
			return 0, fmt.Errorf("schedstat: field %d: %w", i+1, err)
		}
	}
	return timeslices, nil
}

// ParseLastPID parses a loadavg file: three averages, the tasks that run and all of them as "1/80", and the number that was given last,
// which is returned.
func ParseLastPID(data []byte) (HostPID, error) {
	fields := bytes.Fields(data)
	if len(fields) != 5 {
		return 0, fmt.Errorf("loadavg: %d fields, want 5", len(fields))
	}
	n, err := strconv.ParseInt(string(fields[4]), 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("loadavg: %q is no process number", fields[4])
	}
	return HostPID(n), nil
}

// ParsePIDMax parses /proc/sys/kernel/pid_max.
func ParsePIDMax(data []byte) (HostPID, error) {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 32)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("pid_max: %q is no number of processes", bytes.TrimSpace(data))
	}
	return HostPID(n), nil
}

// ParseSyscall parses a syscall file: "running", "-1 sp pc" or "nr arg0 … arg5 sp pc".
func ParseSyscall(data []byte) (Syscall, error) {
	fields := bytes.Fields(data)
	if len(fields) == 1 && string(fields[0]) == "running" {
		return Syscall{Running: true}, nil
	}
	if len(fields) != 3 && len(fields) != 9 {
		return Syscall{}, fmt.Errorf("syscall: %d fields, want 1, 3 or 9", len(fields))
	}
	nr, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil || nr < -1 || nr > math.MaxInt32 {
		return Syscall{}, fmt.Errorf("syscall: number %q", fields[0])
	}
	if (nr == -1) != (len(fields) == 3) {
		return Syscall{}, fmt.Errorf("syscall: number %d with %d fields", nr, len(fields))
	}
	s := Syscall{Nr: nr}
	for i, tok := range fields[1:] {
		v, err := parseHex(tok)
		if err != nil {
			return Syscall{}, fmt.Errorf("syscall: field %d: %w", i+2, err)
		}
		switch {
		case i == len(fields)-3:
			s.SP = v
		case i == len(fields)-2:
			s.PC = v
		default:
			s.Args[i] = v
		}
	}
	return s, nil
}

func parseHex(tok []byte) (uint64, error) {
	hex, ok := bytes.CutPrefix(tok, []byte("0x"))
	if !ok {
		return 0, fmt.Errorf("%q: want 0x and hexadecimal digits", tok)
	}
	return strconv.ParseUint(string(hex), 16, 64)
}

// ParseChildren parses a children file: PIDs separated by spaces.
func ParseChildren(data []byte) ([]HostPID, error) {
	var pids []HostPID
	_, err := eachChild(data, func(pid HostPID) bool {
		pids = append(pids, pid)
		return true
	})
	if err != nil {
		return nil, err
	}
	return pids, nil
}

// eachChild calls f for each PID until it returns false, and reports whether it did not.
func eachChild(data []byte, f func(HostPID) bool) (more bool, err error) {
	for {
		var tok []byte
		tok, data = nextField(data)
		if len(tok) == 0 {
			return true, nil
		}
		pid, err := parsePID(tok)
		if err != nil {
			return false, fmt.Errorf("children: %w", err)
		}
		if pid <= 0 {
			return false, fmt.Errorf("children: pid %d: want a positive number", pid)
		}
		if !f(pid) {
			return false, nil
		}
	}
}

// Cgroup is one line of /proc/<pid>/cgroup (cgroups(7)).
type Cgroup struct {
	Hierarchy   int      // 0 for the unified hierarchy (cgroup v2)
	Controllers []string // empty for the unified hierarchy; "name=…" for a named one
	Path        string   // relative to the reader's cgroup namespace; "/../" leads out of it
	Deleted     bool     // the cgroup was removed while the process (a zombie) still belonged to it
}

const deletedSuffix = " (deleted)"

// ParseCgroups parses a cgroup file.
func ParseCgroups(data []byte) ([]Cgroup, error) {
	var out []Cgroup
	for len(data) > 0 {
		var line []byte
		line, data = cutLine(data)
		if len(line) == 0 {
			continue
		}
		id, rest, ok := bytes.Cut(line, []byte{':'})
		ctrls, cpath, ok2 := bytes.Cut(rest, []byte{':'})
		if !ok || !ok2 || len(cpath) == 0 || cpath[0] != '/' {
			return nil, fmt.Errorf("cgroup: line %q: want hierarchy:controllers:/path", line)
		}
		n, err := strconv.Atoi(string(id))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("cgroup: hierarchy %q: want a number", id)
		}
		c := Cgroup{Hierarchy: n}
		if len(ctrls) > 0 {
			for _, name := range bytes.Split(ctrls, []byte{','}) {
				c.Controllers = append(c.Controllers, string(name))
			}
		}
		if p, found := bytes.CutSuffix(cpath, []byte(deletedSuffix)); found {
			c.Deleted, cpath = true, p
		}
		c.Path = string(cpath)
		out = append(out, c)
	}
	return out, nil
}

func cutLine(data []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(data, []byte{'\n'})
	return line, rest
}
