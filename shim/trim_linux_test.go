package shim

import (
	"os"
	"slices"
	"testing"
)

func TestProgramText(t *testing.T) {
	const maps = `00400000-007d3000 r-xp 00000000 fd:00 42 /usr/local/bin/containerd-shim-reaper-v2
007d3000-00c6b000 r--p 003d3000 fd:00 42 /usr/local/bin/containerd-shim-reaper-v2
00c6b000-00ca1000 rw-p 0086b000 fd:00 42 /usr/local/bin/containerd-shim-reaper-v2
00ca1000-02cda000 rw-p 00000000 00:00 0
10000000-10001000 r--p 00000000 fd:00 43 /usr/lib/x/usr/local/bin/containerd-shim-reaper-v2
20000000-20001000 r--s 00000000 fd:00 44 /etc/other
7fde94802000-7fde94804000 r-xp 00000000 00:00 0                          [vdso]
nonsense r-xp 00000000 fd:00 42 /usr/local/bin/containerd-shim-reaper-v2
`
	got := programText([]byte(maps), "/usr/local/bin/containerd-shim-reaper-v2")
	want := []mapping{{0x400000, 0x7d3000}, {0x7d3000, 0xc6b000}}
	if !slices.Equal(got, want) {
		t.Errorf("%x, want %x: only what belongs to the program and cannot be written to", got, want)
	}
}

// The program goes on, with all of its constants, when its pages have been taken away.
func TestTrim(t *testing.T) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil || len(programText(maps, exe)) == 0 {
		t.Fatalf("no mapping of %s in %s, %v: nothing would be trimmed", exe, maps, err)
	}
	if err := trim(); err != nil {
		t.Fatal(err)
	}
}
