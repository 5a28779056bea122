package tracer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Wire format: JSON objects (RFC 8259), one per line, no newline inside an object. The lists of zombies and results are strings: as objects
// they take longer to read than a zombie takes to be looked at. An item is a few fields with ":" between them, and there is a space
// between two items. A request of MaxZombies zombies with the largest numbers is about 250 KiB, its report about 150 KiB.
const (
	maxLine   = 1 << 20 // bytes, newline included
	maxDetail = 1024    // bytes
)

// maxPID is the kernel's PID_MAX_LIMIT on 64-bit machines (include/linux/threads.h).
const maxPID = 4 << 20

var (
	errLineTooLong = fmt.Errorf("line of more than %d bytes", maxLine)
	errProtocol    = errors.New("protocol error")
)

// EncodeRequest checks a request and returns its line, newline included.
func EncodeRequest(req Request) ([]byte, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	return encodeLine(req)
}

// DecodeRequest parses one line. Unknown keys, numbers out of range and another version are errors.
func DecodeRequest(line []byte) (Request, error) {
	var req Request
	if err := decodeLine(line, &req); err != nil {
		return Request{}, fmt.Errorf("decode request: %w", err)
	}
	if err := req.check(); err != nil {
		return Request{}, err
	}
	return req, nil
}

func (r Request) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("request: %w: %s", errProtocol, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Version != Version:
		return bad("version %d, want %d", r.Version, Version)
	case r.PID <= 0 || r.PID > maxPID:
		return bad("pid %d", r.PID)
	case len(r.Zombies) == 0 || len(r.Zombies) > MaxZombies:
		return bad("%d zombies, want 1 to %d", len(r.Zombies), MaxZombies)
	case r.MaxStop < 0 || r.MaxStop > MaxMaxStop:
		return bad("stop budget %v, want 0 to %v", r.MaxStop, MaxMaxStop)
	case r.Rest < 0 || r.Rest > MaxRest:
		return bad("rest of %v, want 0 to %v", r.Rest, MaxRest)
	case r.Attaches < 0 || r.Attaches > MaxAttaches:
		return bad("%d attaches, want 0 to %d", r.Attaches, MaxAttaches)
	case r.Age < 0:
		return bad("zombies that are %v old", r.Age)
	}
	for i, z := range r.Zombies {
		if z.PID <= 0 || z.PID > maxPID || z.NSPID < 0 || z.NSPID > maxPID {
			return bad("zombie %d: pid %d, number %d in the namespace", i, z.PID, z.NSPID)
		}
		if z.PID == r.PID {
			return bad("zombie %d is the parent itself", i)
		}
	}
	return nil
}

// EncodeReport returns the report's line, newline included. Detail is cut to what the other end accepts.
func EncodeReport(rep Report) ([]byte, error) {
	rep.Detail = cutText(rep.Detail, maxDetail)
	if err := rep.check(); err != nil {
		return nil, err
	}
	return encodeLine(rep)
}

// DecodeReport parses one line.
func DecodeReport(line []byte) (Report, error) {
	var rep Report
	if err := decodeLine(line, &rep); err != nil {
		return Report{}, fmt.Errorf("decode report: %w", err)
	}
	if err := rep.check(); err != nil {
		return Report{}, err
	}
	return rep, nil
}

func (r Report) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("report: %w: %s", errProtocol, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Version != Version:
		return bad("version %d, want %d", r.Version, Version)
	case len(r.Results) > MaxZombies:
		return bad("%d results", len(r.Results))
	case len(r.Detail) > maxDetail || len(r.Syscall) > maxDetail || len(r.Reason) > maxDetail:
		return bad("text of more than %d bytes", maxDetail)
	case r.Stopped < 0:
		return bad("stopped for %v", r.Stopped)
	case r.Attaches < 0 || r.Attaches > MaxAttaches || r.Attached != (r.Attaches > 0):
		return bad("attached %v, %d attaches", r.Attached, r.Attaches)
	case r.TID < 0 || r.TID > maxPID:
		return bad("tid %d", r.TID)
	}
	for i, res := range r.Results {
		switch res.Outcome {
		case Reaped, Vanished, Refused, Left:
		default:
			return bad("result %d: outcome %q", i, cutText(string(res.Outcome), 32))
		}
		if res.NSPID < 0 || res.NSPID > maxPID {
			return bad("result %d: number %d in the namespace", i, res.NSPID)
		}
		if len(res.Reason) > maxDetail || strings.ContainsAny(string(res.Reason), fieldSep+itemSep) {
			return bad("result %d: reason %q", i, cutText(string(res.Reason), 32))
		}
		// A reason is what explains that a zombie is still there; what was reaped has none.
		if (res.Outcome == Reaped) != (res.Reason == "") {
			return bad("result %d: outcome %s with reason %q", i, res.Outcome, res.Reason)
		}
	}
	return nil
}

const fieldSep, itemSep = ":", " "

// Zombies are encoded as their PID, StartTime, NSPID and ID, in this order.
type Zombies []Zombie

// MarshalText implements encoding.TextMarshaler.
func (l Zombies) MarshalText() ([]byte, error) {
	return joined(l, 48, func(b []byte, z Zombie) []byte {
		b = append(strconv.AppendUint(b, uint64(z.PID), 10), fieldSep...)
		b = append(strconv.AppendUint(b, z.StartTime, 10), fieldSep...)
		b = append(strconv.AppendUint(b, uint64(z.NSPID), 10), fieldSep...)
		return strconv.AppendUint(b, z.ID, 10)
	}), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Zombies) UnmarshalText(text []byte) error {
	list, err := items(text, func(f *fields) Zombie {
		return Zombie{PID: procfs.HostPID(f.number(maxPID)), StartTime: f.number(math.MaxUint64), NSPID: procfs.NSPID(f.number(maxPID)), ID: f.number(math.MaxUint64)}
	})
	*l = list
	return err
}

// Results are encoded as their PID, Outcome, Reason and NSPID, in this order.
type Results []Result

// MarshalText implements encoding.TextMarshaler.
func (l Results) MarshalText() ([]byte, error) {
	return joined(l, 32, func(b []byte, r Result) []byte {
		b = append(strconv.AppendUint(b, uint64(r.PID), 10), fieldSep...)
		b = append(append(b, r.Outcome...), fieldSep...)
		b = append(append(b, r.Reason...), fieldSep...)
		return strconv.AppendUint(b, uint64(r.NSPID), 10)
	}), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Results) UnmarshalText(text []byte) error {
	list, err := items(text, func(f *fields) Result {
		r := Result{PID: procfs.HostPID(f.number(maxPID))}
		if outcome := f.next(); string(outcome) == string(Reaped) { // nearly all of them: nothing to allocate
			r.Outcome = Reaped
		} else {
			r.Outcome = Outcome(outcome)
		}
		r.Reason, r.NSPID = Reason(f.next()), procfs.NSPID(f.number(maxPID))
		return r
	})
	*l = list
	return err
}

// joined is the text of a list, whose items take some size bytes each.
func joined[T any](list []T, size int, item func(b []byte, one T) []byte) []byte {
	b := make([]byte, 0, size*len(list))
	for i, one := range list {
		if i > 0 {
			b = append(b, itemSep...)
		}
		b = item(b, one)
	}
	return b
}

// items parses a list: of no item if the text is empty.
func items[T any](text []byte, parse func(*fields) T) ([]T, error) {
	if len(text) == 0 {
		return nil, nil
	}
	list := make([]T, 0, bytes.Count(text, []byte(itemSep))+1)
	for more := true; more; {
		var item []byte
		item, text, more = bytes.Cut(text, []byte(itemSep))
		f := fields{rest: item, more: true}
		one := parse(&f)
		if f.bad || f.more {
			return nil, fmt.Errorf("%w: item %d: %q", errProtocol, len(list), cutText(string(item), 64))
		}
		list = append(list, one)
	}
	return list, nil
}

// fields are those of an item that have not been read yet. bad says that there were too few, or one that was no number.
type fields struct {
	rest      []byte
	more, bad bool
}

func (f *fields) next() (field []byte) {
	f.bad = f.bad || !f.more
	field, f.rest, f.more = bytes.Cut(f.rest, []byte(fieldSep))
	return field
}

func (f *fields) number(most uint64) uint64 {
	n, err := strconv.ParseUint(string(f.next()), 10, 64)
	f.bad = f.bad || err != nil || n > most
	return n
}

// answers reports whether rep is about the zombies of req, in their order.
func (r Report) answers(req Request) error {
	if len(r.Results) != len(req.Zombies) {
		return fmt.Errorf("report: %w: %d results for %d zombies", errProtocol, len(r.Results), len(req.Zombies))
	}
	for i, res := range r.Results {
		if res.PID != req.Zombies[i].PID {
			return fmt.Errorf("report: %w: result %d is about pid %d, want %d", errProtocol, i, res.PID, req.Zombies[i].PID)
		}
	}
	return nil
}

func encodeLine(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(line)+1 > maxLine {
		return nil, errLineTooLong
	}
	return append(line, '\n'), nil
}

func decodeLine(line []byte, v any) error {
	if len(line) > maxLine {
		return errLineTooLong
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	if rest := bytes.TrimSpace(line[dec.InputOffset():]); len(rest) > 0 {
		return fmt.Errorf("%w: %d bytes after the object", errProtocol, len(rest))
	}
	return nil
}

// readLine returns the next line without its newline; the slice is valid until the next call. io.EOF means that the
// stream ended between two lines, io.ErrUnexpectedEOF that it ended inside one. r's buffer must hold maxLine bytes.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case err == nil:
		return line[:len(line)-1], nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errLineTooLong
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
