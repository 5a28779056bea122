package initreport

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// record encodes what reaper-init would send.
func record(magic uint32, kind Kind, pid, status int32, reaped, dropped uint64, comm string, start uint64) []byte {
	b := make([]byte, Size)
	o := binary.NativeEndian
	o.PutUint32(b[0:], magic)
	o.PutUint32(b[4:], uint32(kind))
	o.PutUint32(b[8:], uint32(pid))
	o.PutUint32(b[12:], uint32(status))
	o.PutUint64(b[16:], reaped)
	o.PutUint64(b[24:], dropped)
	copy(b[32:48], comm)
	o.PutUint64(b[48:], start)
	return b
}

func TestParse(t *testing.T) {
	good := record(magic, Orphan, 12, 9, 3, 1, "git", 77)
	for _, tt := range []struct {
		name string
		data []byte
		want []Record
		err  string
	}{
		{name: "orphan", data: good, want: []Record{{Kind: Orphan, PID: 12, Status: 9, Reaped: 3, Dropped: 1, Comm: "git", StartTime: 77}}},
		{name: "summary", data: record(magic, Summary, 0, 0, 3, 1, "", 0), want: []Record{{Kind: Summary, Reaped: 3, Dropped: 1}}},
		{name: "two", data: append(append([]byte{}, good...), good...), want: []Record{
			{Kind: Orphan, PID: 12, Status: 9, Reaped: 3, Dropped: 1, Comm: "git", StartTime: 77},
			{Kind: Orphan, PID: 12, Status: 9, Reaped: 3, Dropped: 1, Comm: "git", StartTime: 77},
		}},
		{name: "name without end", data: record(magic, Orphan, 1, 0, 0, 0, "0123456789abcdef", 0),
			want: []Record{{Kind: Orphan, PID: 1, Comm: "0123456789abcdef"}}},
		{name: "empty", err: "0 bytes"},
		{name: "part of a record", data: good[:63], err: "63 bytes"},
		{name: "a record and a part", data: append(append([]byte{}, good...), 1), err: "65 bytes"},
		{name: "too many", data: make([]byte, (MaxRecords+1)*Size), err: "2112 bytes"},
		{name: "magic", data: record(1, Orphan, 12, 9, 0, 0, "", 0), err: "begins with 0x1"},
		{name: "kind", data: record(magic, 3, 12, 9, 0, 0, "", 0), err: "kind 3"},
		{name: "pid", data: record(magic, Orphan, -1, 9, 0, 0, "", 0), err: "PID -1"},
		{name: "status", data: record(magic, Orphan, 1, 1<<16, 0, 0, "", 0), err: "wait status"},
		{name: "second one bad", data: append(append([]byte{}, good...), record(2, Orphan, 1, 0, 0, 0, "", 0)...), err: "begins with 0x2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.data)
			if tt.err != "" {
				if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.err) || got != nil {
					t.Errorf("got %v, %v, want the error %q", got, err, tt.err)
				}
				return
			}
			if err != nil || len(got) != len(tt.want) {
				t.Fatalf("got %v, %v, want %v", got, err, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("record %d: got %+v, want %+v", i, got[i], tt.want[i])
				}
			}
		})
	}
}

func TestTotals(t *testing.T) {
	var totals Totals
	steps := []struct {
		reaped, dropped, elapsed uint64
		want                     Totals
	}{
		{5, 0, 10, Totals{Reaped: 5}},
		{9, 2, 10, Totals{Reaped: 9, Dropped: 2}},
		{8, 2, 10, Totals{Reaped: 9, Dropped: 2, Refused: 1}},          // back
		{9, 1, 10, Totals{Reaped: 9, Dropped: 2, Refused: 2}},          // back
		{1 << 60, 2, 10, Totals{Reaped: 9, Dropped: 2, Refused: 3}},    // made up
		{9, 1 << 60, 10, Totals{Reaped: 9, Dropped: 2, Refused: 4}},    // made up
		{30_009, 2, 0, Totals{Reaped: 30_009, Dropped: 2, Refused: 4}}, // a burst
		{2_000_000, 2, 10_000, Totals{Reaped: 2_000_000, Dropped: 2, Refused: 4}},
		{2_000_001, 2, 1 << 63, Totals{Reaped: 2_000_001, Dropped: 2, Refused: 4}}, // no overflow
	}
	for i, s := range steps {
		totals.Add(Record{Kind: Summary, Reaped: s.reaped, Dropped: s.dropped}, s.elapsed)
		if totals != s.want {
			t.Fatalf("step %d: %+v, want %+v", i, totals, s.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(record(magic, Orphan, 12, 9, 3, 1, "a b)\n(", 77))
	f.Add(record(magic, Summary, 0, 0, 1<<63, 1<<63, "", 0))
	f.Add([]byte("RIN1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := Parse(data)
		if (err == nil) != (len(records) > 0) || len(records) > MaxRecords {
			t.Fatalf("%d records and error %v", len(records), err)
		}
		for _, r := range records {
			if len(r.Comm) > 16 || strings.ContainsRune(r.Comm, 0) || r.Status < 0 || r.PID < 0 && r.Kind == Orphan {
				t.Errorf("%+v", r)
			}
		}
	})
}
