package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// State is the state letter of proc(5).
type State rune

// The states that decide something here (fs/proc/array.c, task_state_array).
const (
	StateRunning     State = 'R'
	StateSleeping    State = 'S'
	StateDiskSleep   State = 'D'
	StateStopped     State = 'T'
	StateTracingStop State = 't'
	StateZombie      State = 'Z'
	StateDead        State = 'X'
	StateParked      State = 'P'
	StateIdle        State = 'I'
)

// String returns the letter.
func (s State) String() string { return string(rune(s)) }

// Stat holds the fields of /proc/<pid>/stat that the reaper uses, named after proc_pid_stat(5).
type Stat struct {
	PID        HostPID
	Comm       string // as the process set it: up to 15 bytes of anything (64 for kernel threads)
	State      State
	PPID       HostPID // 0: the parent is outside this PID namespace, or the process is vanishing
	PGRP       HostPID
	Session    HostPID // -1 or 0: the process is vanishing, or the session leader is outside this PID namespace
	NumThreads int     // a zombie leader with living threads has more than 1
	StartTime  uint64  // clock ticks since boot
	Processor  int     // CPU that it ran on last
	ExitCode   int     // wait(2) status; 0 without PTRACE_MODE_READ over the process
	Exiting    bool    // PF_EXITING: on its way out, or a zombie
}

// Fields of the stat line after the comm, counted as proc_pid_stat(5) counts them.
const (
	fieldState      = 3
	fieldPPID       = 4
	fieldPGRP       = 5
	fieldSession    = 6
	fieldFlags      = 9
	fieldNumThreads = 20
	fieldStartTime  = 22
	fieldProcessor  = 39
	fieldExitCode   = 52
)

// flagExiting is PF_EXITING of the flags of a task (include/linux/sched.h).
const flagExiting = 0x4

// Vanishing reports whether the line was read while the kernel was releasing the process: such a line says ppid 0 and
// session -1 (attacks on the session rule have been built on it), so that nothing in it is evidence.
func (s Stat) Vanishing() bool { return s.PPID == 0 && s.Session <= 0 }

// Zombie reports whether the whole process is dead and waits to be reaped. A thread-group leader that has exited while
// other threads live shows state Z as well, but wait(2) does not return it.
func (s Stat) Zombie() bool { return s.State == StateZombie && s.NumThreads <= 1 }

// ParseStat parses one stat line. The comm is what lies between the first "(" and the last ")": it may hold either.
func ParseStat(data []byte) (Stat, error) {
	var s Stat
	open := bytes.IndexByte(data, '(')
	end := bytes.LastIndexByte(data, ')')
	if open < 2 || end < open {
		return Stat{}, errors.New("stat: no command in parentheses")
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data[:open])))
	if err != nil || pid <= 0 {
		return Stat{}, fmt.Errorf("stat: field 1 (pid) %q: want a positive number", data[:open])
	}
	s.PID = HostPID(pid)
	s.Comm = string(data[open+1 : end])

	rest := data[end+1:]
	for field := fieldState; field <= fieldExitCode; field++ {
		var tok []byte
		tok, rest = nextField(rest)
		if len(tok) == 0 {
			return Stat{}, fmt.Errorf("stat: %d fields, want %d", field-1, fieldExitCode)
		}
		var err error
		switch field {
		case fieldState:
			if len(tok) != 1 {
				return Stat{}, fmt.Errorf("stat: field 3 (state) %q: want one letter", tok)
			}
			s.State = State(tok[0])
		case fieldPPID:
			s.PPID, err = parsePID(tok)
		case fieldPGRP:
			s.PGRP, err = parsePID(tok)
		case fieldSession:
			s.Session, err = parsePID(tok)
		case fieldFlags:
			var flags uint64
			flags, err = strconv.ParseUint(string(tok), 10, 32)
			s.Exiting = flags&flagExiting != 0
		case fieldNumThreads:
			s.NumThreads, err = strconv.Atoi(string(tok))
		case fieldStartTime:
			s.StartTime, err = strconv.ParseUint(string(tok), 10, 64)
		case fieldProcessor:
			s.Processor, err = strconv.Atoi(string(tok))
		case fieldExitCode:
			s.ExitCode, err = strconv.Atoi(string(tok))
		}
		if err != nil {
			return Stat{}, fmt.Errorf("stat: field %d: %w", field, err)
		}
	}
	return s, nil
}

func parsePID(tok []byte) (HostPID, error) {
	n, err := strconv.ParseInt(string(tok), 10, 32)
	return HostPID(n), err
}

// nextField cuts one space-separated field off data. It allocates nothing: sweeps call it for every child of PID 1.
func nextField(data []byte) (field, rest []byte) {
	i := 0
	for i < len(data) && (data[i] == ' ' || data[i] == '\n') {
		i++
	}
	j := i
	for j < len(data) && data[j] != ' ' && data[j] != '\n' {
		j++
	}
	return data[i:j], data[j:]
}
