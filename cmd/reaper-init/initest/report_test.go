package initest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	kindOrphan  = 1
	kindSummary = 2
)

// record is one report of reaper-init: docs/init.md.
type record struct {
	kind, pid         uint32
	status            int32
	reaped, dropped   uint64
	comm              string
	start, unassigned uint64
}

func parseRecords(data []byte) ([]record, error) {
	var list []record
	for ; len(data) >= 64; data = data[64:] {
		if m := binary.LittleEndian.Uint32(data); m != 0x314e4952 {
			return nil, fmt.Errorf("magic number %#x", m)
		}
		list = append(list, record{
			kind: binary.LittleEndian.Uint32(data[4:]), pid: binary.LittleEndian.Uint32(data[8:]),
			status: int32(binary.LittleEndian.Uint32(data[12:])),
			reaped: binary.LittleEndian.Uint64(data[16:]), dropped: binary.LittleEndian.Uint64(data[24:]),
			comm: strings.TrimRight(string(data[32:48]), "\x00"), start: binary.LittleEndian.Uint64(data[48:]),
			unassigned: binary.LittleEndian.Uint64(data[56:]),
		})
	}
	if len(data) != 0 {
		return nil, fmt.Errorf("%d bytes too many", len(data))
	}
	return list, nil
}

// shimSide listens as the shim would.
type shimSide struct {
	t    *testing.T
	path string
	ln   *net.UnixListener
}

func listen(t *testing.T) *shimSide {
	t.Helper()
	dir, err := os.MkdirTemp("", "report")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &shimSide{t: t, path: filepath.Join(dir, "socket")}
	s.open()
	// Whatever user the program is.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(s.path, 0o666)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ln.Close() })
	return s
}

func (s *shimSide) open() {
	s.t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.path, Net: "unixpacket"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.ln = ln
}

func (s *shimSide) accept() *net.UnixConn {
	s.t.Helper()
	if err := s.ln.SetDeadline(time.Now().Add(deadline)); err != nil {
		s.t.Fatal(err)
	}
	conn, err := s.ln.AcceptUnix()
	if err != nil {
		s.t.Fatal("nobody connects: ", err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// read returns the records of the next datagram; none at the end.
func (s *shimSide) read(conn *net.UnixConn) []record {
	s.t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 65536)
	n, err := conn.Read(buf)
	if n == 0 {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Fatal("no report: ", err)
		}
		return nil
	}
	list, err := parseRecords(buf[:n])
	if err != nil {
		s.t.Fatal("not a report: ", err)
	}
	return list
}

// all returns all records up to the end, the summary of the start included.
func (s *shimSide) all(conn *net.UnixConn) []record {
	s.t.Helper()
	var list []record
	for {
		more := s.read(conn)
		if len(more) == 0 {
			return list
		}
		list = append(list, more...)
	}
}

func orphans(list []record) []record {
	return slices.DeleteFunc(slices.Clone(list), func(r record) bool { return r.kind != kindOrphan })
}

func reportCases() []testCase {
	cases := []testCase{
		{"report: each orphan once with its status, the program not; a summary first and last", "", func(t *testing.T) {
			reportsAll(t, setup{}, 300)
		}},
		{"report: of a subreaper as well", "", func(t *testing.T) { reportsAll(t, setup{sub: true}, 300) }},
		{"report: the environment variable does what -R does", "", func(t *testing.T) {
			s := listen(t)
			p := start(t, setup{env: []string{"REAPER_INIT_REPORT=" + s.path}, program: shell(`(exit 3) & wait; echo "[$REAPER_INIT_REPORT]"`)})
			conn := s.accept()
			p.expect("[]")
			p.exits(0)
			if list := s.all(conn); len(list) != 2 || list[0].kind != kindSummary || list[1].kind != kindSummary {
				t.Errorf("records %+v, want two summaries: the shell has reaped its own child", list)
			}
		}},
		{"report: how a signal ended an orphan", "", func(t *testing.T) {
			s := listen(t)
			p := start(t, setup{opts: []string{"-R", s.path}, program: append(shell(`"$1" leave 1; exec sleep 1000`), progBin)})
			conn := s.accept()
			s.read(conn)
			p.number("left")
			var orphan int
			testutil.Eventually(t, deadline, func() (bool, string) {
				if kids := children(p.pid()); len(kids) == 2 {
					orphan = kids[1]
				}
				return orphan != 0, "no orphan"
			})
			want := stat(orphan)
			syscall.Kill(orphan, syscall.SIGKILL)
			list := s.read(conn)
			// Field 22 of stat(5) is the 20th behind the name.
			if len(list) != 1 || list[0].status != int32(syscall.SIGKILL) || list[0].comm != "prog" || fmt.Sprint(list[0].start) != want[19] {
				t.Errorf("records %+v, want status 9, prog, start time %s", list, want[19])
			}
		}},
		{"report: without /proc no names", "", func(t *testing.T) {
			list := reportOf(t, setup{ns: []string{"-P"}, program: shell(`sh -c "(exit 3) & exit 0"; read x`)}, 1)
			if list[0].comm != "" || list[0].start != 0 || list[0].status != 3<<8 {
				t.Errorf("record %+v, want status 3 without a name", list[0])
			}
		}},
		{"report: from another namespace's /proc no names", "", func(t *testing.T) {
			list := reportOf(t, setup{ns: []string{"-f"}, program: shell(`sh -c "(exit 3) & exit 0"; read x`)}, 1)
			if list[0].comm != "" || list[0].start != 0 {
				t.Errorf("record %+v, want no name", list[0])
			}
		}},
		{"report: a /proc that is mounted over later is not asked", "", func(t *testing.T) {
			list := reportOf(t, setup{program: append(shell(`mount -t tmpfs none /proc || exit 9; sh -c "(exit 3) & exit 0"; read x`), progBin)}, 1)
			if list[0].comm != "sh" {
				t.Errorf("record %+v, want the name sh", list[0])
			}
		}},
		{"report: nobody listens: nothing is held up", "", func(t *testing.T) {
			run(t, 0, setup{opts: []string{"-R", "/nonexistent/socket"}, program: prog("orphans", "50", "0")})
		}},
		{"report: a path that is too long, or not absolute, is a warning", "", func(t *testing.T) {
			for _, path := range []string{"/" + strings.Repeat("x", 107), "socket", ""} {
				_, stderr := run(t, 4, setup{opts: []string{"-R", path}, program: shell("exit 4")})
				if !strings.Contains(stderr, "nothing is reported") {
					t.Errorf("path of %d bytes: %q", len(path), stderr)
				}
			}
		}},
		{"report: a shim that does not accept holds nothing up", "", func(t *testing.T) {
			s := listen(t)
			p := start(t, setup{opts: []string{"-R", s.path}, program: prog("orphans", "50", "0")})
			p.exits(0)
		}},
		{"report: a full queue of connections holds nothing up", "", func(t *testing.T) {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Close(fd)
			path := filepath.Join(t.TempDir(), "socket")
			if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
				t.Fatal(err)
			}
			first, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			run(t, 0, setup{opts: []string{"-R", path}, program: prog("orphans", "50", "0")})
		}},
		{"report: a shim that does not read loses records, and the count of them is right", "", reportDrops},
		{"report: a shim that comes back is connected to again", "", reportReconnects},
		{"report: messages are never written into it", "", func(t *testing.T) {
			s := listen(t)
			p := start(t, setup{before: prog("closestd"), opts: []string{"-vvv", "-w", "-R", s.path}, program: shell(`sh -c "(exit 3) & exit 0"; sleep 0.3`)})
			conn := s.accept()
			p.exits(0)
			// Anything else would be no record.
			if list := orphans(s.all(conn)); len(list) != 1 {
				t.Errorf("records %+v, want one orphan", list)
			}
		}},
		{"report: the socket is not the program's", "", func(t *testing.T) {
			s := listen(t)
			p := start(t, setup{opts: []string{"-R", s.path}, program: []string{"ls", "-l", "/proc/self/fd"}})
			s.accept()
			p.exits(0)
			if out := p.rest(); strings.Contains(out, "socket:") {
				t.Errorf("the program has %s", out)
			}
		}},
		{"report: all of it works as another user without capabilities, with no_new_privs, on an old kernel", "", func(t *testing.T) {
			reportsAll(t, setup{ns: []string{"-d", "-n", "-o", "-r", "-u", "65534"}}, 20)
		}},
	}
	for _, name := range []string{"a) R 1 (b", ") Z 1", "x y", "(((", "new\nline", `back\slash`, `\\\\\\`, "exactly15bytes!", "\x01\xff"} {
		cases = append(cases, testCase{fmt.Sprintf("report: a process called %q", name), "", func(t *testing.T) {
			list := reportOf(t, setup{program: prog("name", name, "77")}, 1)
			if list[0].comm != name || list[0].status != 77<<8 || list[0].start == 0 {
				t.Errorf("record %+v", list[0])
			}
		}})
	}
	return cases
}

// reportOf runs a program that reads standard input at its end, and returns the first n reported orphans.
func reportOf(t *testing.T, s setup, n int) []record {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	side := listen(t)
	s.opts, s.stdin = append(s.opts, "-R", side.path), r
	start(t, s)
	conn := side.accept()
	var list []record
	for len(list) < n {
		more := side.read(conn)
		if len(more) == 0 {
			t.Fatalf("%d of %d records", len(list), n)
		}
		list = append(list, orphans(more)...)
	}
	return list
}

func reportsAll(t *testing.T, s setup, n int) {
	t.Helper()
	side := listen(t)
	s.opts, s.program = append(s.opts, "-R", side.path), prog("orphans", fmt.Sprint(n))
	p := start(t, s)
	conn := side.accept()
	list := side.all(conn)
	p.exits(0)
	if len(list) != n+2 {
		t.Fatalf("%d records, want %d orphans and two summaries", len(list), n)
	}
	seen := map[uint32]bool{}
	codes := map[int32]int{}
	for i, r := range orphans(list) {
		// Those that end at the same time are reaped in any order.
		codes[r.status>>8]++
		if r.status&0xff != 0 || r.comm != "prog" || r.start == 0 || r.reaped != uint64(i)+1 || r.dropped != 0 || r.unassigned != 0 || seen[r.pid] {
			t.Errorf("record %d: %+v", i, r)
		}
		seen[r.pid] = true
	}
	for i := range n {
		codes[int32(i%256)]--
	}
	for code, n := range codes {
		if n != 0 {
			t.Errorf("exit code %d: %+d records", code, n)
		}
	}
	first, last := list[0], list[len(list)-1]
	if first.kind != kindSummary || first.reaped != 0 || last.kind != kindSummary || last.reaped != uint64(n) || last.dropped != 0 || last.pid != 0 {
		t.Errorf("summaries %+v and %+v", first, last)
	}
}

func reportDrops(t *testing.T) {
	s := listen(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	const n = 3000
	p := start(t, setup{stdin: r, opts: []string{"-R", s.path}, program: append(shell(`"$1" burst 3000; read x; "$1" orphans 1 0`), progBin)})
	conn := s.accept()
	if err := conn.SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	// Nobody reads, and all are reaped all the same.
	p.expect("gone")
	got := 0
	var last record
	take := func(list []record) {
		for _, r := range list {
			if r.kind == kindOrphan {
				got++
			}
			last = r
		}
	}
	// What is there is read at once; nothing more comes before the next orphan.
	buf := make([]byte, 65536)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		size, err := conn.Read(buf)
		if err != nil {
			break
		}
		list, err := parseRecords(buf[:size])
		if err != nil {
			t.Fatal(err)
		}
		take(list)
	}
	// Now that there is room again, the next one comes with the count of those that were lost.
	if _, err := w.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	if r := s.read(conn); len(r) != 1 || r[0].kind != kindOrphan || r[0].reaped != n+1 || r[0].dropped == 0 {
		t.Errorf("record with room again: %+v", r)
	} else {
		take(r)
	}
	take(s.all(conn))
	p.exits(0)
	if last.kind != kindSummary || last.dropped == 0 || uint64(got)+last.dropped != last.reaped || last.reaped != n+1 {
		t.Errorf("%d records read, %d dropped by count, %d orphans reaped", got, last.dropped, last.reaped)
	}
}

func reportReconnects(t *testing.T) {
	s := listen(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p := start(t, setup{stdin: r, opts: []string{"-R", s.path}, program: prog("dstate")})
	p.number("ready")
	conn := s.accept()
	s.read(conn)
	conn.Close()
	s.ln.Close()
	one := func() {
		t.Helper()
		if _, err := w.WriteString("\n"); err != nil {
			t.Fatal(err)
		}
		p.expect("left one")
	}
	// Lost: nobody is there.
	one()
	s.open()
	accepted := make(chan *net.UnixConn, 1)
	go func() {
		if c, err := s.ln.AcceptUnix(); err == nil {
			accepted <- c
		}
		close(accepted)
	}()
	// Within the second that it waits between two attempts nothing comes; afterwards the next orphan brings it back.
	var again *net.UnixConn
	orphansLeft := 1
	testutil.Eventually(t, deadline, func() (bool, string) {
		select {
		case again = <-accepted:
			return true, ""
		default:
			one()
			orphansLeft++
			return false, "no new connection"
		}
	})
	defer again.Close()
	list := s.read(again)
	if len(list) == 0 {
		t.Fatal("the new connection ends")
	}
	if r := list[len(list)-1]; r.kind != kindOrphan || r.dropped == 0 || r.dropped >= r.reaped || r.reaped > uint64(orphansLeft) {
		t.Errorf("first record after the restart %+v, %d orphans", r, orphansLeft)
	}
}
