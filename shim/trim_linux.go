package shim

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// trimAfter is how long after the start of a container the pages of the program are let go that only starting needs.
const trimAfter = 5 * time.Second

// trimSoon does that once for all containers that start until then.
func (s *service) trimSoon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trim == nil {
		s.trim = time.AfterFunc(trimAfter, func() {
			s.mu.Lock()
			s.trim = nil
			s.mu.Unlock()
			if err := trim(); err != nil {
				log.L.WithError(err).Debug("let go of the pages of the program")
			}
		})
	}
}

// trim takes the pages of the program's code and constants out of this process. They stay in the page cache, from where those that are
// used again come back by a minor fault, 16 at a time: most of what a shim touches it touches once, to start a container.
func trim() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for _, m := range programText(maps, exe) {
		// Pages that nobody may write to are never dirty: nothing is lost (madvise(2), MADV_DONTNEED).
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise %x-%x: %w", m.start, m.end, errno)
		}
	}
	return nil
}

type mapping struct{ start, end uintptr }

// programText returns the mappings of a file that cannot be written to, from the text of /proc/<pid>/maps (proc(5)).
func programText(maps []byte, file string) []mapping {
	var out []mapping
	for line := range bytes.Lines(maps) {
		f := bytes.Fields(line)
		// address perms offset dev inode pathname; a path with blanks is more than one field.
		if len(f) < 6 || len(f[1]) < 2 || f[1][1] != '-' || !bytes.HasSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte(" "+file)) {
			continue
		}
		from, to, ok := bytes.Cut(f[0], []byte("-"))
		if !ok {
			continue
		}
		start, err1 := strconv.ParseUint(string(from), 16, 64)
		end, err2 := strconv.ParseUint(string(to), 16, 64)
		if err1 == nil && err2 == nil && start < end {
			out = append(out, mapping{uintptr(start), uintptr(end)})
		}
	}
	return out
}
