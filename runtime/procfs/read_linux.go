package procfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direct says that files below a directory of the host are read by readDirect and openDirect.
const direct = true

// blocking says whether a read may have to wait for a lock that is held for long.
type blocking bool

// The files of a process that tell its state and its children take microseconds to read, wait for nobody and are read again and again.
const (
	atOnce   blocking = false
	mayBlock blocking = true
)

// syscall performs a system call. To tell the scheduler of one, as package unix does, wakes the thread that watches over blocking calls
// (sysmon): more wake-ups than all else that a shim does while nothing happens.
func (b blocking) syscall(number, a1, a2, a3, a4 uintptr) (uintptr, error) {
	for {
		var n uintptr
		var errno unix.Errno
		if b {
			n, _, errno = unix.Syscall6(number, a1, a2, a3, a4, 0, 0)
		} else {
			n, _, errno = unix.RawSyscall6(number, a1, a2, a3, a4, 0, 0)
		}
		switch errno {
		case 0:
			return n, nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// readDirect reads a file that the kernel makes in one piece, as all of /proc/<pid> but children, into buf or, if that is too
// small, a larger buffer. It takes an open, a read and a close; os.ReadFile takes a fstat, an epoll_ctl and another read
// besides, and with them more than twice the time.
func readDirect(name string, buf []byte, b blocking) ([]byte, error) {
	file, err := openFile(name, b)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	buf = buf[:cap(buf)]
	n := 0
	for {
		m, err := file.read(buf[n:])
		if err != nil {
			return nil, err
		}
		n += m
		// Shorter than asked for is the end of it (fs/seq_file.c, seq_read_iter).
		if n < len(buf) {
			return buf[:n], nil
		}
		buf = append(buf, make([]byte, len(buf))...)
	}
}

type directFile struct {
	fd       uintptr
	blocking blocking
}

func openDirect(name string, b blocking) (io.ReadCloser, error) {
	f, err := openFile(name, b)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func openFile(name string, b blocking) (directFile, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return directFile{}, err
	}
	at := unix.AT_FDCWD
	fd, err := b.syscall(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(path)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	runtime.KeepAlive(path)
	return directFile{fd, b}, err
}

// Read implements io.Reader.
func (f directFile) Read(p []byte) (int, error) {
	n, err := f.read(p)
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

func (f directFile) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.blocking.syscall(unix.SYS_READ, f.fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0)
	runtime.KeepAlive(p)
	return int(n), err
}

// Close implements io.Closer.
func (f directFile) Close() error {
	_, err := f.blocking.syscall(unix.SYS_CLOSE, f.fd, 0, 0, 0)
	return err
}

// readDirents reads the directory of a file descriptor from a place on, a telldir(3).
func readDirents(fd uintptr, from Mark, f func(name []byte, at Mark) bool) error {
	if _, err := unix.Seek(int(fd), int64(from), io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, 32*namesAtOnce)
	for {
		n, err := unix.ReadDirent(int(fd), buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		var more bool
		if from, more, err = parseDirents(buf[:n], from, f); err != nil || !more {
			return err
		}
	}
}

// parseDirents calls f for each struct linux_dirent64 (getdents(2)), until it returns false: 8 bytes of inode, 8 of the place of the next
// entry, 2 of its own length, one of its type, and a name that ends with a zero byte. The first is at the place at.
func parseDirents(b []byte, at Mark, f func(name []byte, at Mark) bool) (next Mark, more bool, err error) {
	const header = 19
	for len(b) > 0 {
		if len(b) < header {
			return at, false, fmt.Errorf("directory entry: %d bytes", len(b))
		}
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size < header || size > len(b) {
			return at, false, fmt.Errorf("directory entry: %d bytes, of %d", size, len(b))
		}
		name, _, _ := bytes.Cut(b[header:size], []byte{0})
		if !f(name, at) {
			return at, false, nil
		}
		at = Mark(binary.NativeEndian.Uint64(b[8:]))
		b = b[size:]
	}
	return at, true, nil
}

// DirectFS returns the files below dir, a directory of a file system whose files the kernel makes when they are read (proc, cgroup).
// ReadFile does without what os.ReadFile does for files that may block: files of cgroupfs can be polled, and each that the runtime
// polls wakes another thread.
func DirectFS(dir string) fs.FS { return directFS{os.DirFS(dir), dir + "/"} }

type directFS struct {
	fs.FS
	dir string
}

// ReadFile implements fs.ReadFileFS.
func (d directFS) ReadFile(name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	b := mayBlock
	if path.Base(name) == "pids.current" {
		b = atOnce // an atomic counter (kernel/cgroup/pids.c)
	}
	file, err := openFile(d.dir+name, b)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer file.Close()
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return data, nil
}

// ReadDir implements fs.ReadDirFS.
func (d directFS) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(d.FS, name) }

// Stat implements fs.StatFS.
func (d directFS) Stat(name string) (fs.FileInfo, error) { return fs.Stat(d.FS, name) }
