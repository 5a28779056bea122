package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/reaper-shim/reaper/runtime/initreport"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

const (
	// reportRate and reportBurst bound how many datagrams per second are read of one task. reaper-init never waits for us:
	// what does not fit into the socket's buffer it counts and says later.
	reportRate  = 200
	reportBurst = 1000
	// maxMalformed is how many datagrams may be nonsense before a connection is closed.
	maxMalformed = 16
	// acceptRate bounds how often processes of the container can make us look at who they are.
	acceptRate = 10
)

// reports receives what the reaper-init of one task reports.
type reports struct {
	s        *service
	t        *task
	listener *net.UnixListener
	stop     context.CancelFunc
	wg       sync.WaitGroup

	mu     sync.Mutex
	conn   *net.UnixConn // the one connection, nil if there is none
	totals initreport.Totals
	last   time.Time // when totals were taken from a record
}

// listenReports makes the socket in dir, once it is known who the task's init process is. Anybody in the container can reach
// it and only that process is listened to.
func (s *service) listenReports(t *task, dir string) (*reports, error) {
	l, err := listenIn(dir, reportName)
	if err != nil {
		return nil, fmt.Errorf("mode %s: listen for the reports of %s: %w", ModeInit, initName, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &reports{s: s, t: t, listener: l, stop: cancel, last: time.Now()}
	p.wg.Go(func() { p.accept(ctx) })
	return p, nil
}

// listenIn listens on a socket called name in dir. The path of a bundle can be longer than that of a socket may be (unix(7):
// 107 bytes), so that it is named by a descriptor.
func listenIn(dir, name string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	address := filepath.Join(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), name)
	// Left by a shim that died: nobody else makes files here.
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: address, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	// The path means nothing later; the bundle is removed as a whole.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(address, 0o666); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func (p *reports) accept(ctx context.Context) {
	limit := rate.NewLimiter(acceptRate, acceptRate)
	for {
		conn, err := p.listener.AcceptUnix()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) { // finish closes it
				log.L.WithField("id", p.t.id).WithError(err).Warn("no more reports of " + initName)
			}
			return
		}
		if err := p.admit(conn); err != nil {
			log.L.WithField("id", p.t.id).WithError(err).Debug("connection for reports refused")
			_ = conn.Close()
			if limit.Wait(ctx) != nil {
				return
			}
			continue
		}
		p.wg.Go(func() { p.read(ctx, conn) })
	}
}

// admit makes conn the connection of the task if the task's init process made it.
func (p *reports) admit(conn *net.UnixConn) error {
	peer, err := peerPID(conn)
	if err != nil {
		return err
	}
	if init := p.t.pid; peer != init {
		return fmt.Errorf("process %d is not the task's init process %d", peer, init)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		return errors.New("there is a connection already")
	}
	p.conn = conn
	return nil
}

// peerPID returns the number of the process that connected (SO_PEERCRED, unix(7)); 0 if it has none here.
func peerPID(conn *net.UnixConn) (procfs.HostPID, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		cred *unix.Ucred
		cerr error
	)
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return procfs.HostPID(cred.Pid), nil
}

func (p *reports) read(ctx context.Context, conn *net.UnixConn) {
	defer func() {
		p.mu.Lock()
		p.conn = nil
		p.mu.Unlock()
		_ = conn.Close()
	}()
	limit := rate.NewLimiter(reportRate, reportBurst)
	// One byte more than the largest: a longer datagram is cut and then seen as one.
	buf := make([]byte, initreport.MaxRecords*initreport.Size+1)
	malformed := 0
	for limit.Wait(ctx) == nil {
		n, err := conn.Read(buf)
		if err != nil || n == 0 { // a datagram of no bytes cannot be told from the end
			return
		}
		records, err := initreport.Parse(buf[:n])
		if err != nil {
			if malformed++; malformed == 1 {
				log.L.WithField("id", p.t.id).WithError(err).Warn("report of " + initName)
			}
			if malformed == maxMalformed {
				return
			}
			continue
		}
		for _, r := range records {
			p.take(r)
		}
	}
}

// take uses one record: the orphan becomes an event, the totals become statistics.
func (p *reports) take(r initreport.Record) {
	now := time.Now()
	p.mu.Lock()
	p.totals.Add(r, uint64(max(now.Sub(p.last).Milliseconds(), 0)))
	p.last = now
	p.mu.Unlock()
	if r.Kind != initreport.Orphan {
		return
	}
	o := orphan{task: p.t, inner: int(r.PID), command: r.Comm, status: int(r.Status), died: now}
	if p.t.namespace == p.s.hostNS {
		o.pid = int(r.PID)
	}
	p.s.publishOrphan(o)
	if w := p.s.watcherOf(p.t); w != nil {
		w.kick() // its statistics have changed
	}
}

// totalsNow returns the totals that were reported.
func (p *reports) totalsNow() initreport.Totals {
	if p == nil {
		return initreport.Totals{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.totals
}

// finish reads what has been sent by an init process that has ended, and stops.
func (p *reports) finish() {
	if p == nil {
		return
	}
	_ = p.listener.Close()
	done := make(chan struct{})
	go func() { p.wg.Wait(); close(done) }()
	select {
	case <-done: // the end of the connection has been read
	case <-time.After(finishTimeout):
	}
	p.stop()
	p.mu.Lock()
	if p.conn != nil {
		_ = p.conn.Close()
	}
	p.mu.Unlock()
	<-done
}

// finishTimeout bounds how long the end of a task waits for the rest of its reports: they are dead letters in a buffer, unless
// somebody inherited the connection.
const finishTimeout = 500 * time.Millisecond
