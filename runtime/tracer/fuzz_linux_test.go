package tracer

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// FuzzReadLine: however a stream is cut into pieces, the lines that come out are the lines that went in, and a cut-off one is
// never taken for a whole one.
func FuzzReadLine(f *testing.F) {
	for _, s := range []string{"{}\n", "{}\n{}", "\n\n", "{\"version\":1", "\x00\n", "a\r\nb\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const most = 64
		for _, stream := range []io.Reader{bytes.NewReader(data), iotest.OneByteReader(bytes.NewReader(data))} {
			r := bufio.NewReaderSize(stream, most)
			var got []byte
			for {
				line, err := readLine(r)
				if err == nil {
					if bytes.ContainsRune(line, '\n') {
						t.Fatalf("a newline in the line %q", line)
					}
					got = append(append(got, line...), '\n')
					continue
				}
				if !bytes.HasPrefix(data, got) {
					t.Fatalf("%q read as %q", data, got)
				}
				rest := data[len(got):]
				switch {
				case errors.Is(err, io.EOF) && len(rest) == 0:
				case errors.Is(err, io.ErrUnexpectedEOF) && len(rest) > 0 && len(rest) < most && !bytes.Contains(rest, []byte("\n")):
				case errors.Is(err, errLineTooLong) && len(rest) >= most && !bytes.Contains(rest[:most], []byte("\n")):
				default:
					t.Fatalf("%q: %v with %q left", data, err, rest)
				}
				break
			}
		}
	})
}

// FuzzClassify: no wait status is taken for two things, and what is taken for a syscall stop bears its mark.
func FuzzClassify(f *testing.F) {
	for _, status := range []uint32{0, 9, 0x57f, 0x857f, 0x80057f, 0x80137f, 0x137f, 0xffff, 0x1_0000} {
		f.Add(status)
	}
	f.Fuzz(func(t *testing.T, status uint32) {
		s := classify(status)
		if s.kind == stopSyscall && status != 0x857f || s.kind == stopEvent && status != eventStop<<16|0x57f {
			t.Errorf("%#x taken for %v", status, s)
		}
		if (s.kind == stopSignal || s.kind == stopGroup) && s.sig != int(status>>8&0xff) {
			t.Errorf("%#x taken for %v", status, s)
		}
	})
}
