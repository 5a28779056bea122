package forklog

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseCPUList(t *testing.T) {
	for list, want := range map[string][]int{
		"0\n":       {0},
		"0-3\n":     {0, 1, 2, 3},
		"0-1,4,6-7": {0, 1, 4, 6, 7},
	} {
		if got, err := parseCPUList(list); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", list, got, err, want)
		}
	}
	for _, list := range []string{"", "x", "3-1", "-1", "0-", "0-99999", "0,,1"} {
		if got, err := parseCPUList(list); err == nil {
			t.Errorf("%q accepted as %v", list, got)
		}
	}
}

func FuzzParseForkRecord(f *testing.F) {
	rec := make([]byte, recordSize)
	binary.NativeEndian.PutUint32(rec, unix.PERF_RECORD_FORK)
	f.Add(rec)
	f.Fuzz(func(t *testing.T, rec []byte) {
		if pid, _, ok := parseFork(rec); !ok && pid != 0 {
			t.Errorf("not a fork, but child %d", pid)
		}
	})
}

func FuzzParseForkEvent(f *testing.F) {
	msg := make([]byte, forkMessage)
	binary.NativeEndian.PutUint32(msg[nlmsgHeader:], cnIdxProc)
	binary.NativeEndian.PutUint32(msg[nlmsgHeader+4:], cnValProc)
	binary.NativeEndian.PutUint32(msg[offsetEvent:], procEventFork)
	f.Add(msg)
	f.Fuzz(func(t *testing.T, msg []byte) {
		if pid, _, ok := parseForkEvent(msg); !ok && pid != 0 {
			t.Errorf("not a fork, but child %d", pid)
		}
	})
}
