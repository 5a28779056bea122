// Package initreport reads what reaper-init reports of the orphans that it reaps: datagrams of fixed records, in the byte
// order of the machine that both run on (cmd/reaper-init/src/init.c, struct record). Whoever controls the container controls
// what they say; nothing in them may be trusted beyond that container's own numbers.
package initreport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// Size of a record, in bytes.
	Size = 64
	// MaxRecords is how many records a datagram holds at most.
	MaxRecords = 32

	magic = 0x314e4952 // "RIN1"
)

// Kind tells records apart.
type Kind uint32

// The kinds.
const (
	Orphan  Kind = 1 // a process was reaped that reaper-init did not start itself
	Summary Kind = 2 // the totals alone: at the start and before the end
)

// Record is one report.
type Record struct {
	Kind   Kind
	PID    int32 // in reaper-init's PID namespace
	Status int32 // wait(2)
	// Reaped and Dropped are totals since reaper-init started: of orphans, and of records that it could not send.
	Reaped, Dropped uint64
	Comm            string // as the process called itself, at most 16 bytes; "" where reaper-init sees no /proc
	StartTime       uint64 // clock ticks since boot (proc_pid_stat(5)), 0 if unknown
}

// ErrMalformed is returned (wrapped) for a datagram that is not made of whole and known records.
var ErrMalformed = errors.New("malformed report")

// Parse reads a datagram. It returns all of its records or none.
func Parse(data []byte) ([]Record, error) {
	if len(data) == 0 || len(data)%Size != 0 || len(data) > MaxRecords*Size {
		return nil, fmt.Errorf("%w: %d bytes, want 1 to %d times %d", ErrMalformed, len(data), MaxRecords, Size)
	}
	records := make([]Record, 0, len(data)/Size)
	for ; len(data) > 0; data = data[Size:] {
		r, err := parse(data[:Size])
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

func parse(b []byte) (Record, error) {
	order := binary.NativeEndian
	if m := order.Uint32(b[0:]); m != magic {
		return Record{}, fmt.Errorf("%w: begins with %#x, want %#x", ErrMalformed, m, magic)
	}
	comm, _, _ := bytes.Cut(b[32:48], []byte{0})
	r := Record{
		Kind:      Kind(order.Uint32(b[4:])),
		PID:       int32(order.Uint32(b[8:])),
		Status:    int32(order.Uint32(b[12:])),
		Reaped:    order.Uint64(b[16:]),
		Dropped:   order.Uint64(b[24:]),
		Comm:      string(comm),
		StartTime: order.Uint64(b[48:]),
	}
	if r.Kind != Orphan && r.Kind != Summary {
		return Record{}, fmt.Errorf("%w: kind %d, want %d or %d", ErrMalformed, r.Kind, Orphan, Summary)
	}
	if r.Kind == Orphan && r.PID <= 0 {
		return Record{}, fmt.Errorf("%w: PID %d of an orphan", ErrMalformed, r.PID)
	}
	if r.Status < 0 || r.Status > 0xffff {
		return Record{}, fmt.Errorf("%w: wait status %#x", ErrMalformed, r.Status)
	}
	return r, nil
}

// maxRate is how many processes per second no machine forks: a total that grows faster has been made up.
const maxRate = 1_000_000

// Totals keeps the totals of one reaper-init within what can be: they never go back, whatever is reported, and never grow
// faster than processes can be made.
type Totals struct {
	Reaped, Dropped uint64
	// Refused counts records whose totals were not believed.
	Refused uint64
}

// Add takes the totals of a record that came elapsedMillis after the last one, or after the start.
func (t *Totals) Add(r Record, elapsedMillis uint64) {
	most := min(elapsedMillis, 1<<40)*(maxRate/1000) + MaxRecords*maxRate/1000
	if r.Reaped < t.Reaped || r.Dropped < t.Dropped || r.Reaped-t.Reaped > most || r.Dropped-t.Dropped > most {
		t.Refused++
		return
	}
	t.Reaped, t.Dropped = r.Reaped, r.Dropped
}
