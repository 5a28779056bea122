package initest

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
)

// pty is a terminal: the test has the master's side. It neither echoes nor changes what is written.
type pty struct {
	t             *testing.T
	master, slave *os.File
	mu            sync.Mutex
	out           strings.Builder
	done          chan struct{}
}

func openPTY(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testutil.Lacks(t, err.Error(), "mount devpts")
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testutil.Lacks(t, err.Error(), "mount devpts")
	}
	attrs, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	attrs.Oflag &^= unix.OPOST
	attrs.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, attrs); err != nil {
		t.Fatal(err)
	}
	p := &pty{t: t, master: master, slave: slave, done: make(chan struct{})}
	t.Cleanup(func() {
		p.started()
		master.Close()
		<-p.done
	})
	go func() {
		defer close(p.done)
		buf := make([]byte, 4096)
		for {
			// EIO when nobody has the other side any more.
			n, err := master.Read(buf)
			p.mu.Lock()
			p.out.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return p
}

// started closes the test's own handle of the other side, so that the terminal ends with the last process on it.
func (p *pty) started() { p.slave.Close() }

func (p *pty) write(text string) {
	p.t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pty) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *pty) contains(want string) {
	p.t.Helper()
	testutil.Eventually(p.t, deadline, func() (bool, string) {
		return strings.Contains(p.text(), want), fmt.Sprintf("terminal shows %q, want %q", p.text(), want)
	})
}

// all returns everything that was written, when the last process is gone.
func (p *pty) all() string {
	p.t.Helper()
	testutil.Eventually(p.t, deadline, func() (bool, string) {
		select {
		case <-p.done:
			return true, ""
		default:
			return false, "the terminal is still in use"
		}
	})
	return p.text()
}
