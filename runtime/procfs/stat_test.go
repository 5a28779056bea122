package procfs

import (
	"fmt"
	"strings"
	"testing"
)

// tail is what follows the state in a stat line of Linux 6.18, with ppid, pgrp, session, threads, start time and exit code to
// fill in.
func statLine(pid, comm, state string, ppid, pgrp, session, threads int, start uint64, exit int) string {
	return fmt.Sprintf("%s (%s) %s %d %d %d 0 -1 4228108 85 0 0 0 0 0 0 0 20 0 %d 0 %d 0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 %d\n",
		pid, comm, state, ppid, pgrp, session, threads, start, exit)
}

func TestParseStat(t *testing.T) {
	tests := []struct {
		name string
		line string
		want Stat
	}{
		{"a zombie that exited with 7", statLine("27824", "sh", "Z", 27747, 27818, 27818, 1, 12345678, 7<<8),
			Stat{27824, "sh", StateZombie, 27747, 27818, 27818, 1, 12345678, 1, 0x700, true}},
		{"killed by SIGKILL", statLine("5", "x", "Z", 1, 1, 1, 1, 1, 9), Stat{5, "x", StateZombie, 1, 1, 1, 1, 1, 1, 9, true}},
		{"parentheses in the command", statLine("5", "a) Z 1 (b", "S", 2, 3, 4, 1, 9, 0), Stat{5, "a) Z 1 (b", StateSleeping, 2, 3, 4, 1, 9, 1, 0, true}},
		{"a newline in the command", statLine("5", "a\nb", "R", 2, 3, 4, 1, 9, 0), Stat{5, "a\nb", StateRunning, 2, 3, 4, 1, 9, 1, 0, true}},
		{"an empty command", statLine("5", "", "S", 2, 3, 4, 1, 9, 0), Stat{5, "", StateSleeping, 2, 3, 4, 1, 9, 1, 0, true}},
		{"not exiting", strings.Replace(statLine("5", "x", "S", 2, 3, 4, 1, 9, 0), " 4228108 ", " 4194560 ", 1),
			Stat{5, "x", StateSleeping, 2, 3, 4, 1, 9, 1, 0, false}},
		{"a vanishing process", statLine("5", "x", "Z", 0, -1, -1, 0, 9, 0), Stat{5, "x", StateZombie, 0, -1, -1, 0, 9, 1, 0, true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseStat([]byte(tt.line))
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestParseStatRejects(t *testing.T) {
	good := statLine("5", "x", "S", 2, 3, 4, 1, 9, 0)
	for name, line := range map[string]string{
		"nothing":               "",
		"no command":            "5 x S 1 2 3",
		"only the command":      "5 (x)",
		"cut short":             good[:60],
		"51 fields":             strings.Join(strings.Fields(good)[:51], " "),
		"state of two letters":  strings.Replace(good, " S ", " SS ", 1),
		"pid 0":                 strings.Replace(good, "5 (", "0 (", 1),
		"pid not a number":      strings.Replace(good, "5 (", "a (", 1),
		"ppid beyond 32 bits":   strings.Replace(good, " 2 3 4 ", " 99999999999 3 4 ", 1),
		"flags not a number":    strings.Replace(good, " 4228108 ", " x ", 1),
		"cpu not a number":      strings.Replace(good, " 17 1 ", " 17 x ", 1),
		"negative start time":   strings.Replace(good, " 0 9 ", " 0 -9 ", 1),
		"parentheses reversed":  ")5( S 1 2 3",
		"nothing before (comm)": "(x) S",
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := ParseStat([]byte(line)); err == nil {
				t.Errorf("accepted as %+v", s)
			}
		})
	}
}

// B3 of the attacks on the design: the kernel shows a process that it is just releasing with ppid 0 and session -1.
func TestVanishing(t *testing.T) {
	for _, tt := range []struct {
		ppid, session int
		want          bool
	}{{0, -1, true}, {0, 0, true}, {1, -1, false}, {0, 5, false}, {1, 1, false}} {
		s := Stat{PPID: HostPID(tt.ppid), Session: HostPID(tt.session)}
		if got := s.Vanishing(); got != tt.want {
			t.Errorf("ppid %d session %d: vanishing %v, want %v", tt.ppid, tt.session, got, tt.want)
		}
	}
}

func TestZombie(t *testing.T) {
	for _, tt := range []struct {
		state   State
		threads int
		want    bool
	}{{StateZombie, 1, true}, {StateZombie, 0, true}, {StateZombie, 2, false}, {StateSleeping, 1, false}} {
		s := Stat{State: tt.state, NumThreads: tt.threads}
		if got := s.Zombie(); got != tt.want {
			t.Errorf("%v with %d threads: zombie %v, want %v", tt.state, tt.threads, got, tt.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(statLine("5", "a) Z 1 (b", "S", 2, 3, 4, 1, 9, 0)))
	f.Add([]byte("5 (x) S"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStat(data)
		if err != nil && s != (Stat{}) {
			t.Errorf("error %v with a value %+v", err, s)
		}
		if err == nil && s.PID <= 0 {
			t.Errorf("accepted pid %d", s.PID)
		}
	})
}
