package procfs

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// direct says that files below a directory of the host are read by readDirect and openDirect.
const direct = true

// readDirect reads a file that the kernel makes in one piece, as all of /proc/<pid> but children, into buf or, if that is too
// small, a larger buffer. It takes an open, a read and a close; os.ReadFile takes a fstat, an epoll_ctl and another read
// besides, and with them more than twice the time.
func readDirect(name string, buf []byte) ([]byte, error) {
	fd, err := openFile(name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf = buf[:cap(buf)]
	n := 0
	for {
		m, err := readFD(fd, buf[n:])
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

type directFile int

func openDirect(name string) (io.ReadCloser, error) {
	fd, err := openFile(name)
	if err != nil {
		return nil, err
	}
	return directFile(fd), nil
}

// Read implements io.Reader.
func (f directFile) Read(p []byte) (int, error) {
	n, err := readFD(int(f), p)
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

// Close implements io.Closer.
func (f directFile) Close() error { return unix.Close(int(f)) }

func openFile(name string) (int, error) {
	for {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func readFD(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}
