package procfs

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

const statusText = `Name:	cat\nPPid:\t7
Umask:	0022
State:	S (sleeping)
Tgid:	27747
Ngid:	0
Pid:	27747
PPid:	27712
TracerPid:	0
Uid:	0	0	0	0
NSpid:	27747	12	1
Threads:	2
SigQ:	0/95852
SigPnd:	0000000000000000
ShdPnd:	0000000000010000
SigBlk:	0000000000010002
SigIgn:	0000000000000004
SigCgt:	8000000000010000
Seccomp:	2
`

func TestParseStatus(t *testing.T) {
	got, err := ParseStatus([]byte(statusText))
	if err != nil {
		t.Fatal(err)
	}
	want := Status{
		State: StateSleeping, Tgid: 27747, PPid: 27712, Threads: 2, Seccomp: SeccompFilter,
		NSpid:  []NSPID{27747, 12, 1},
		ShdPnd: 1 << 16, SigBlk: 1<<16 | 2, SigIgn: 4, SigCgt: 1<<63 | 1<<16,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	const sigchld = 17
	if !got.ShdPnd.Has(sigchld) || got.SigPnd.Has(sigchld) || !got.SigCgt.Has(64) || got.SigCgt.Has(65) || got.SigCgt.Has(0) {
		t.Error("signal sets: wrong members")
	}
}

// A6 of the attacks on the design: a zombie of a nested PID namespace has several numbers, and the last one may be that of
// another child of PID 1.
func TestNSPIDAtLevel(t *testing.T) {
	initStatus := Status{NSpid: []NSPID{100, 1}}
	nested := Status{NSpid: []NSPID{105, 5, 2}}
	if pid, ok := nested.At(initStatus.Level()); !ok || pid != 5 {
		t.Errorf("number for PID 1 = %d, %v; want 5", pid, ok)
	}
	if _, ok := (Status{NSpid: []NSPID{105}}).At(1); ok {
		t.Error("a process outside the namespace has a number in it")
	}
	if _, ok := nested.At(-1); ok {
		t.Error("level -1 has a number")
	}
}

func TestParseStatusRejects(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":        "",
		"no State":       strings.Replace(statusText, "State:", "Stats:", 1),
		"no Tgid":        strings.Replace(statusText, "Tgid:", "Tgit:", 1),
		"empty State":    strings.Replace(statusText, "State:	S (sleeping)", "State:", 1),
		"NSpid of words": strings.Replace(statusText, "27747	12	1", "one", 1),
		"NSpid of zero":  strings.Replace(statusText, "27747	12	1", "27747	0", 1),
		"mask not hex":   strings.Replace(statusText, "0000000000010000", "xyz", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := ParseStatus([]byte(text)); err == nil {
				t.Errorf("accepted as %+v", s)
			}
		})
	}
}

// A task that is being released has the number 0 at every level.
func TestParseStatusOfAVanishingProcess(t *testing.T) {
	_, err := ParseStatus([]byte(strings.Replace(statusText, "27747	12	1", "0	0	0", 1)))
	if !errors.Is(err, ErrVanished) {
		t.Errorf("got %v, want ErrVanished", err)
	}
}

func TestParseSyscall(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Syscall
	}{
		{"running\n", Syscall{Running: true}},
		{"-1 0x7ffd 0x7f00\n", Syscall{Nr: -1, SP: 0x7ffd, PC: 0x7f00}},
		{"202 0x1 0x80 0x2 0x0 0x0 0xffffffff 0x7ffd12 0x7f0034\n",
			Syscall{Nr: 202, Args: [6]uint64{1, 0x80, 2, 0, 0, 0xffffffff}, SP: 0x7ffd12, PC: 0x7f0034}},
	} {
		got, err := ParseSyscall([]byte(tt.text))
		if err != nil || got != tt.want {
			t.Errorf("%q: %+v, %v; want %+v", tt.text, got, err, tt.want)
		}
	}
	for _, text := range []string{"", "sleeping", "-1", "1 2 3", "202 0x1 0x2", "-2 0x1 0x2", "7 1 2 3 4 5 6 7 8", "99999999999 0x1 0x1 0x1 0x1 0x1 0x1 0x1 0x1"} {
		if s, err := ParseSyscall([]byte(text)); err == nil {
			t.Errorf("%q accepted as %+v", text, s)
		}
	}
}

func TestParseSchedstat(t *testing.T) {
	if n, err := ParseSchedstat([]byte("1234567 890 42\n")); err != nil || n != 42 {
		t.Errorf("got %d, %v", n, err)
	}
	for _, text := range []string{"", "1 2", "1 2 3 4", "1 2 -3", "1 x 3", "1 2 99999999999999999999"} {
		if n, err := ParseSchedstat([]byte(text)); err == nil {
			t.Errorf("%q accepted as %d", text, n)
		}
	}
}

func TestParseLastPID(t *testing.T) {
	if n, err := ParseLastPID([]byte("0.20 0.18 0.12 1/80 11206\n")); err != nil || n != 11206 {
		t.Errorf("got %d, %v", n, err)
	}
	for _, text := range []string{"", "0.20 0.18 0.12 1/80", "0.20 0.18 0.12 1/80 x", "0.20 0.18 0.12 1/80 -1", "0.20 0.18 0.12 1/80 4294967296", "1 2 3 4 5 6"} {
		if n, err := ParseLastPID([]byte(text)); err == nil {
			t.Errorf("%q accepted as %d", text, n)
		}
	}
}

func TestParseChildren(t *testing.T) {
	got, err := ParseChildren([]byte("12 13 4194304 "))
	if err != nil || !reflect.DeepEqual(got, []HostPID{12, 13, 4194304}) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := ParseChildren(nil); err != nil || len(got) != 0 {
		t.Errorf("empty: got %v, %v", got, err)
	}
	for _, text := range []string{"1 -2", "x", "0", "99999999999"} {
		if got, err := ParseChildren([]byte(text)); err == nil {
			t.Errorf("%q accepted as %v", text, got)
		}
	}
}

func TestParseCgroups(t *testing.T) {
	got, err := ParseCgroups([]byte("8:pids:/k8s/pod:x/c\n2:cpu,cpuacct:/\n1:name=systemd:/a (deleted)\n0::/b\n"))
	want := []Cgroup{
		{Hierarchy: 8, Controllers: []string{"pids"}, Path: "/k8s/pod:x/c"},
		{Hierarchy: 2, Controllers: []string{"cpu", "cpuacct"}, Path: "/"},
		{Hierarchy: 1, Controllers: []string{"name=systemd"}, Path: "/a", Deleted: true},
		{Hierarchy: 0, Path: "/b"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	for _, text := range []string{"x", "1:a", "a:b:/c", "1:b:c", "-1:b:/c"} {
		if got, err := ParseCgroups([]byte(text)); err == nil {
			t.Errorf("%q accepted as %+v", text, got)
		}
	}
}

func TestParseNSLink(t *testing.T) {
	if ino, err := parseNSLink("pid:[4026531836]"); err != nil || ino != 4026531836 {
		t.Errorf("got %d, %v", ino, err)
	}
	for _, link := range []string{"", "mnt:[1]", "pid:[", "pid:[]", "pid:[x]", "pid:[-1]"} {
		if ino, err := parseNSLink(link); err == nil {
			t.Errorf("%q accepted as %d", link, ino)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(statusText))
	f.Add([]byte("NSpid:\t1\t2\nState:\tZ\nTgid:\t1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStatus(data)
		if err != nil && !reflect.DeepEqual(s, Status{}) {
			t.Errorf("error %v with a value %+v", err, s)
		}
		for _, pid := range s.NSpid {
			if pid <= 0 {
				t.Errorf("accepted NSpid %d", pid)
			}
		}
	})
}

func FuzzParseSyscall(f *testing.F) {
	f.Add([]byte("running"))
	f.Add([]byte("202 0x1 0x80 0x2 0x0 0x0 0xffffffff 0x7ffd12 0x7f0034"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := ParseSyscall(data); err != nil && s != (Syscall{}) {
			t.Errorf("error %v with a value %+v", err, s)
		}
	})
}

func TestParsePIDMax(t *testing.T) {
	if n, err := ParsePIDMax([]byte("4194304\n")); err != nil || n != 4194304 {
		t.Errorf("got %d, %v", n, err)
	}
	for _, text := range []string{"", "\n", "0\n", "-1\n", "1 2\n", "x", "4294967296\n"} {
		if n, err := ParsePIDMax([]byte(text)); err == nil {
			t.Errorf("%q accepted as %d", text, n)
		}
	}
}

func FuzzParsePIDMax(f *testing.F) {
	f.Add([]byte("32768\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := ParsePIDMax(data); n < 0 || err != nil && n != 0 || err == nil && n == 0 {
			t.Errorf("%q: %d, %v", data, n, err)
		}
	})
}

func FuzzParseLastPID(f *testing.F) {
	f.Add([]byte("0.20 0.18 0.12 1/80 11206\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := ParseLastPID(data); n < 0 || err != nil && n != 0 {
			t.Errorf("%d, %v", n, err)
		}
	})
}

func FuzzParseSchedstat(f *testing.F) {
	f.Add([]byte("1234567 890 42\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := ParseSchedstat(data); err != nil && n != 0 {
			t.Errorf("error %v with a value %d", err, n)
		}
	})
}

func FuzzParseCgroups(f *testing.F) {
	f.Add([]byte("8:pids:/a\n0::/b (deleted)\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, err := ParseCgroups(data)
		if err != nil && lines != nil {
			t.Errorf("error %v with values", err)
		}
		for _, l := range lines {
			if !strings.HasPrefix(l.Path, "/") {
				t.Errorf("accepted path %q", l.Path)
			}
		}
	})
}

func FuzzParseChildren(f *testing.F) {
	f.Add([]byte("1 2 3 "))
	f.Fuzz(func(t *testing.T, data []byte) {
		pids, err := ParseChildren(data)
		for _, pid := range pids {
			if pid <= 0 || err != nil {
				t.Errorf("pid %d, error %v", pid, err)
			}
		}
	})
}
