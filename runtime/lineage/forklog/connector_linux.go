package forklog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Names and numbers of include/uapi/linux/connector.h and cn_proc.h.
const (
	cnIdxProc        = 1
	cnValProc        = 1
	procMcastListen  = 1
	procMcastIgnore  = 2
	procEventFork    = 1
	nlmsgHeader      = 16
	cnMsgHeader      = 20
	offsetEvent      = nlmsgHeader + cnMsgHeader // struct proc_event: u32 what, u32 cpu, u64 timestamp_ns, then the data
	offsetTime       = offsetEvent + 8
	offsetParentTgid = offsetEvent + 16 + 4 // fork: parent_pid, parent_tgid, child_pid, child_tgid
	offsetChildPid   = offsetEvent + 16 + 8
	offsetChildTgid  = offsetEvent + 16 + 12
	forkMessage      = offsetEvent + 16 + 16

	// initPIDNamespace is the inode of the initial PID namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
	initPIDNamespace = 0xEFFFFFFC

	// receiveBuffer holds about 2500 forks of one process; the kernel counts more than 800 bytes for each.
	receiveBuffer = 2 << 20
)

// Connector is a log of the forks of one process, taken from the proc connector, which tells of those of the whole host. The
// other's are dropped by a filter in the kernel, at some cost for each fork of the host. A message that the kernel could not
// allocate is lost without a sign, which makes this source weaker than the perf task log.
type Connector struct {
	*memory
	socket *os.File
	fd     int
	closed atomic.Bool
	done   chan struct{}
	buf    []byte
}

// OpenConnector begins a log of the forks of the process pid. complete is the tick since which it is exact: the start time of a
// process that has not forked yet; 0 for any other, and what was born before, or within a tenth of a second, is then not
// vouched for. The subscription is in force when the call returns (cn_rx_skb in drivers/connector/connector.c calls
// cn_proc_mcast_ctl in the context of the sender). It needs CAP_NET_ADMIN in the initial user namespace, and the initial PID namespace: only there are the
// connector's numbers those of /proc.
func OpenConnector(pid procfs.HostPID, complete uint64) (_ *Connector, err error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ns); err != nil || ns.Ino != initPIDNamespace {
		return nil, fmt.Errorf("proc connector for process %d: %w: not in the initial PID namespace", pid, ErrUnsupported)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, connectorError(pid, "socket", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return nil, connectorError(pid, "receive buffer", err)
	}
	// The filter before the subscription: nothing of the rest of the host gets in.
	if err := attachFilter(fd, uint32(pid)); err != nil {
		return nil, connectorError(pid, "filter", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: cnIdxProc}); err != nil {
		return nil, connectorError(pid, "bind", err)
	}
	if err := subscribe(fd, procMcastListen); err != nil {
		return nil, connectorError(pid, "subscribe", err)
	}
	if complete == 0 {
		complete = bootTicks() + settle
	}
	c := &Connector{
		memory: newMemory("connector", complete),
		fd:     fd,
		done:   make(chan struct{}),
		buf:    make([]byte, 4096),
	}
	c.socket = os.NewFile(uintptr(fd), "proc connector")
	conn, err := c.socket.SyscallConn()
	if err != nil {
		return nil, connectorError(pid, "poll", err)
	}
	go func() {
		defer close(c.done)
		_ = conn.Read(func(uintptr) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.closed.Load() {
				return true
			}
			c.drain()
			return false
		})
	}()
	return c, nil
}

func connectorError(pid procfs.HostPID, doing string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		err = fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ECONNREFUSED):
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("proc connector for process %d: %s: %w", pid, doing, err)
}

// attachFilter lets forks of one parent through. A filter loads words in network order; the messages are in the host's.
func attachFilter(fd int, parent uint32) error {
	swap := func(v uint32) uint32 {
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], v)
		return binary.BigEndian.Uint32(b[:])
	}
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetEvent, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: swap(procEventFork), SkipTrue: 3},
		bpf.LoadAbsolute{Off: offsetParentTgid, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: swap(parent), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// subscribe asks for events, or for none any more. Twice: every kernel understands the operation alone; since 6.6 it may be
// followed by a set of events, and the rest is then not even sent. A kernel that does not know that form ignores it.
func subscribe(fd int, op uint32) error {
	for _, body := range [][]uint32{{op}, {op, procEventFork}} {
		msg := make([]byte, nlmsgHeader+cnMsgHeader+4*len(body))
		binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
		binary.NativeEndian.PutUint16(msg[4:], unix.NLMSG_DONE)
		binary.NativeEndian.PutUint32(msg[12:], uint32(os.Getpid()))
		binary.NativeEndian.PutUint32(msg[16:], cnIdxProc)
		binary.NativeEndian.PutUint32(msg[20:], cnValProc)
		binary.NativeEndian.PutUint16(msg[32:], uint16(4*len(body)))
		for i, v := range body {
			binary.NativeEndian.PutUint32(msg[offsetEvent+4*i:], v)
		}
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
	}
	return nil
}

// drain takes in all messages that are waiting. c.mu is held.
func (c *Connector) drain() {
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ENOBUFS):
			c.stats.Lost++
			c.gap(bootTicks(), "the receive buffer overflowed")
			continue
		case err != nil:
			c.end(0, "read: "+err.Error())
			return
		}
		// Only the kernel has the number 0; anybody with CAP_NET_ADMIN could send the rest.
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue
		}
		if pid, ns, ok := parseForkEvent(c.buf[:n]); ok {
			c.born(pid, uint64(int64(ns)+suspended())/tickNanos)
		}
	}
}

// parseForkEvent understands a message of the proc connector about the fork of a process, not of a thread. ns is CLOCK_MONOTONIC.
func parseForkEvent(msg []byte) (pid procfs.HostPID, ns uint64, ok bool) {
	if len(msg) < forkMessage || binary.NativeEndian.Uint32(msg[nlmsgHeader:]) != cnIdxProc ||
		binary.NativeEndian.Uint32(msg[nlmsgHeader+4:]) != cnValProc ||
		binary.NativeEndian.Uint32(msg[offsetEvent:]) != procEventFork {
		return 0, 0, false
	}
	child, tgid := binary.NativeEndian.Uint32(msg[offsetChildPid:]), binary.NativeEndian.Uint32(msg[offsetChildTgid:])
	if child != tgid {
		return 0, 0, false
	}
	return procfs.HostPID(tgid), binary.NativeEndian.Uint64(msg[offsetTime:]), true
}

// suspended returns what CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC: the connector tells the latter, /proc the former. The next
// tick of it would do, and a birth that is taken for a later one is still not earlier than the child's start.
func suspended() int64 {
	var mono, boot unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return 0
	}
	return max(boot.Nano()-mono.Nano(), 0)
}

// Sync takes in what is waiting: a fork's message is there before the child runs (copy_process calls proc_fork_connector).
func (c *Connector) Sync() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stats.Ended && !c.closed.Load() {
		c.drain()
	}
}

// Lookup implements Log.
func (c *Connector) Lookup(pid procfs.HostPID, startTime uint64) lineage.Fork {
	return c.lookup(pid, startTime)
}

// Stats implements Log.
func (c *Connector) Stats() Stats { return c.snapshot() }

// Close ends the log.
func (c *Connector) Close() error {
	now := bootTicks()
	c.Sync()
	if c.closed.Swap(true) {
		return nil
	}
	c.mu.Lock()
	c.close(now)
	err := subscribe(c.fd, procMcastIgnore)
	c.mu.Unlock()
	err = errors.Join(err, c.socket.Close())
	<-c.done
	return err
}
