package procfs

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// FuzzStatComm: whatever a process calls itself, no field of its stat line is read from its name.
func FuzzStatComm(f *testing.F) {
	for _, comm := range []string{"sh", "", ")", "(", ") Z 1 1 1", "a) S 2 (b", "x\n5 (y) Z 1", " ", "\x00\xff"} {
		f.Add(comm, 4711, "S", 4242, 17, uint64(123456789), 7<<8)
	}
	f.Fuzz(func(t *testing.T, comm string, pid int, state string, ppid, threads int, start uint64, exit int) {
		if pid < 1 || pid > 4<<20 || len(state) != 1 || state == " " || state == "\n" || state == ")" || ppid < 0 || ppid > 4<<20 {
			return
		}
		s, err := ParseStat([]byte(statLine(fmt.Sprint(pid), comm, state, ppid, 5, 6, threads, start, exit)))
		want := Stat{HostPID(pid), comm, State(state[0]), HostPID(ppid), 5, 6, threads, start, 1, exit, true}
		if err != nil || s != want {
			t.Errorf("%+v, %v; want %+v", s, err, want)
		}
	})
}

// FuzzStatusName: a status file holds the name with its newlines escaped, so that no name can forge a line.
func FuzzStatusName(f *testing.F) {
	for _, name := range []string{"cat", "x\\nState:\tZ", "State:\tZ", ":", "NSpid:\t1\t1", "", "\t"} {
		f.Add(name)
	}
	want, err := ParseStatus([]byte(statusText))
	if err != nil {
		f.Fatal(err)
	}
	_, rest, _ := strings.Cut(statusText, "\n")
	f.Fuzz(func(t *testing.T, name string) {
		if strings.Contains(name, "\n") {
			return
		}
		s, err := ParseStatus([]byte("Name:\t" + name + "\n" + rest))
		if err != nil || fmt.Sprint(s) != fmt.Sprint(want) {
			t.Errorf("name %q: %+v, %v", name, s, err)
		}
	})
}

func FuzzParseNSLink(f *testing.F) {
	for _, link := range []string{"pid:[4026531836]", "pid:[]", "pid:[18446744073709551616]", "mnt:[1]", "pid:[1"} {
		f.Add(link)
	}
	f.Fuzz(func(t *testing.T, link string) {
		ino, err := parseNSLink(link)
		if err != nil && ino != 0 {
			t.Errorf("error %v with a value %d", err, ino)
		}
		if digits := strings.TrimLeft(strings.TrimSuffix(strings.TrimPrefix(link, "pid:["), "]"), "0"); err == nil && ino != 0 && digits != strconv.FormatUint(ino, 10) {
			t.Errorf("%q read as %d", link, ino)
		}
	})
}
