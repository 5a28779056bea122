package forklog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Sizes of the rings. A FORK record is 32 bytes (perf_event_open(2), without sample_id), and the EXIT records of threads, which
// cannot be switched off, take as much: 8 pages hold 1024 records per CPU, 16 ms of a loop that forks at full speed.
const (
	ringPages   = 8
	recordSize  = 32
	maxPossible = 4096 // CPUs; more than any kernel is built for (CONFIG_NR_CPUS)
)

// Bit 35 of the flags of struct perf_event_attr: inherit_thread (Linux 5.13, include/uapi/linux/perf_event.h).
const bitInheritThread = 1 << 35

// Errors of OpenPerf and OpenConnector.
var (
	// ErrPermission: a capability is missing (CAP_PERFMON or CAP_SYS_ADMIN; CAP_NET_ADMIN for the connector), or a security
	// module forbids it.
	ErrPermission = errors.New("no permission")
	// ErrUnsupported: a kernel without inherit_thread or PERF_FORMAT_LOST, without perf events, or without the connector, or
	// another PID namespace than the connector's.
	ErrUnsupported = errors.New("not supported here")
)

// Perf is a log of the forks of one process, from the kernel's own task records.
type Perf struct {
	*memory
	cpus   int
	rings  []ring
	epoll  *os.File
	closed atomic.Bool
	done   chan struct{}
	good   uint64 // ticks at the start of the last Sync that found nothing wrong. Guarded by memory.mu
}

type ring struct {
	fd   int
	page *unix.PerfEventMmapPage
	mem  []byte
	lost uint64
}

// OpenPerf opens a log of the forks of the process pid, on its leader thread. complete is the tick since which the log is
// exact: the start time of a process that has not begun to run (threads that exist besides the leader are not heard of, unless
// an exec ends them).
//
// It takes (1+8) pages of locked memory for each possible CPU: an event on an online CPU only would miss, without a sign, what
// happens on one that comes online later.
func OpenPerf(pid procfs.HostPID, complete uint64) (_ *Perf, err error) {
	cpus, err := PossibleCPUs()
	if err != nil {
		return nil, err
	}
	p := &Perf{memory: newMemory("perf", complete), done: make(chan struct{}), good: complete}
	defer func() {
		if err != nil {
			p.release()
		}
	}()
	p.cpus = len(cpus)
	for _, cpu := range cpus {
		r, err := openRing(int(pid), cpu)
		if err != nil {
			return nil, fmt.Errorf("perf task log of process %d on cpu %d: %w", pid, cpu, err)
		}
		p.rings = append(p.rings, r)
	}
	if err := p.startDraining(); err != nil {
		return nil, fmt.Errorf("perf task log of process %d: %w", pid, err)
	}
	return p, nil
}

func openRing(pid, cpu int) (ring, error) {
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_SOFTWARE,
		Config: unix.PERF_COUNT_SW_DUMMY,
		// The lost records of inherited events count into this one; a LOST record can be missing (it is written only in
		// front of the next record that fits).
		Read_format: unix.PERF_FORMAT_LOST,
		Bits: unix.PerfBitInherit | unix.PerfBitTask | bitInheritThread | unix.PerfBitExcludeKernel |
			unix.PerfBitUseClockID | unix.PerfBitWatermark,
		// The clock of start times in /proc.
		Clockid: unix.CLOCK_BOOTTIME,
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	attr.Wakeup = uint32(ringPages * os.Getpagesize() / 2)
	return openEvent(&attr, pid, cpu, ringPages)
}

// openEvent opens a perf event with a ring of so many pages, a power of two.
func openEvent(attr *unix.PerfEventAttr, pid, cpu, pages int) (ring, error) {
	fd, err := unix.PerfEventOpen(attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return ring{}, fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOENT):
		return ring{}, fmt.Errorf("%w: %w", ErrUnsupported, err)
	case err != nil:
		return ring{}, fmt.Errorf("perf_event_open: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, (1+pages)*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Close(fd)
		return ring{}, fmt.Errorf("mmap of the ring: %w", err)
	}
	return ring{fd: fd, mem: mem, page: (*unix.PerfEventMmapPage)(unsafe.Pointer(&mem[0]))}, nil
}

func closeRings(rings []ring) {
	for _, r := range rings {
		_ = unix.Munmap(r.mem)
		_ = unix.Close(r.fd)
	}
}

// startDraining reads the rings whenever one is half full, so that no sweep has to come in time.
func (p *Perf) startDraining() error {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	for _, r := range p.rings {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(r.fd)}
		if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, r.fd, &ev); err != nil {
			_ = unix.Close(epfd)
			return fmt.Errorf("epoll: %w", err)
		}
	}
	if err := unix.SetNonblock(epfd, true); err != nil {
		_ = unix.Close(epfd)
		return fmt.Errorf("epoll: %w", err)
	}
	p.epoll = os.NewFile(uintptr(epfd), "perf task log") // an epoll file can itself be waited for (epoll(7))
	conn, err := p.epoll.SyscallConn()
	if err != nil {
		return err
	}
	go func() {
		defer close(p.done)
		// Readiness is all that is asked of the epoll file: asking it which ring (epoll_wait) would find nothing, since
		// perf_poll (kernel/events/core.c) tells of a wake-up once only.
		_ = conn.Read(func(uintptr) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.closed.Load() {
				return true
			}
			p.drain()
			return false
		})
	}()
	return nil
}

// drain takes the records out of all rings. p.mu is held.
func (p *Perf) drain() {
	for i := range p.rings {
		p.rings[i].drain(func(rec []byte) {
			if pid, ticks, ok := parseFork(rec); ok {
				p.born(pid, ticks)
			}
		})
	}
}

func (r *ring) drain(record func([]byte)) {
	data := r.mem[os.Getpagesize():]
	size := uint64(len(data))
	head := atomic.LoadUint64(&r.page.Data_head)
	tail := r.page.Data_tail
	var buf [256]byte
	for tail < head {
		// The header is 8-byte aligned and so never wraps; the rest of a record may.
		n := uint64(binary.NativeEndian.Uint16(data[(tail+6)%size:]))
		if n < 8 || n > head-tail {
			tail = head // not a record: nothing behind it can be trusted. The kernel does not do this.
			break
		}
		if n <= uint64(len(buf)) {
			for i := range n {
				buf[i] = data[(tail+i)%size]
			}
			record(buf[:n])
		}
		tail += n
	}
	atomic.StoreUint64(&r.page.Data_tail, tail)
}

// parseFork understands PERF_RECORD_FORK (perf_event_open(2)): header, u32 pid, ppid, tid, ptid, u64 time. A new thread of the
// process has pid != tid.
func parseFork(rec []byte) (pid procfs.HostPID, ticks uint64, ok bool) {
	if len(rec) < recordSize || binary.NativeEndian.Uint32(rec) != unix.PERF_RECORD_FORK {
		return 0, 0, false
	}
	p, tid := binary.NativeEndian.Uint32(rec[8:]), binary.NativeEndian.Uint32(rec[16:])
	if p != tid {
		return 0, 0, false
	}
	ns := binary.NativeEndian.Uint64(rec[24:])
	return procfs.HostPID(p), ns / tickNanos, true
}

// tickNanos is a clock tick of /proc: USER_HZ is 100 on every ABI.
const tickNanos = uint64(time.Second / 100)

// Sync drains the rings, reads what was lost, and asks whether the events still live, in this order: only then does silence mean
// that there was nothing.
func (p *Perf) Sync() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stats.Ended || p.closed.Load() {
		return
	}
	now := bootTicks()
	p.drain()
	for i := range p.rings {
		r := &p.rings[i]
		lost, err := r.readLost()
		if err != nil {
			p.end(p.good, "read the count of lost records: "+err.Error())
			return
		}
		if lost != r.lost {
			p.stats.Lost += lost - r.lost
			r.lost = lost
			p.gap(bootTicks(), "records were lost")
		}
	}
	hungUp, woken := poll(p.rings)
	if woken {
		p.drain() // the wake-up that the reader waits for has been taken from it
	}
	if hungUp {
		// The kernel has dropped the events: an exec that left the process non-dumpable (set-uid, file capabilities, an
		// unreadable file), or its end.
		p.end(p.good, "an exec ended the log (set-uid, file capabilities, or unreadable file)")
		return
	}
	p.good = now
}

// readLost returns how many records of this ring the kernel has dropped (PERF_FORMAT_LOST, Linux 6.0).
func (r *ring) readLost() (uint64, error) {
	var buf [16]byte // u64 value, u64 lost
	n, err := unix.Read(r.fd, buf[:])
	if err != nil {
		return 0, err
	}
	if n != len(buf) {
		return 0, fmt.Errorf("%d bytes, want %d", n, len(buf))
	}
	return binary.NativeEndian.Uint64(buf[8:]), nil
}

// poll asks all events whether they have ended, and whether a ring has been filled to its watermark since the last time.
func poll(rings []ring) (hungUp, woken bool) {
	fds := make([]unix.PollFd, len(rings))
	for i, r := range rings {
		fds[i] = unix.PollFd{Fd: int32(r.fd), Events: unix.POLLIN}
	}
	// It does not wait: telling the scheduler of it would wake its other threads.
	var none unix.Timespec
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
			uintptr(unsafe.Pointer(&none)), 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return true, true
		}
		break
	}
	for _, fd := range fds {
		hungUp = hungUp || fd.Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		woken = woken || fd.Revents&unix.POLLIN != 0
	}
	return hungUp, woken
}

// CPUs returns for how many CPUs the log has events.
func (p *Perf) CPUs() int { return p.cpus }

// Lookup implements Log.
func (p *Perf) Lookup(pid procfs.HostPID, startTime uint64) lineage.Fork {
	return p.lookup(pid, startTime)
}

// Stats implements Log.
func (p *Perf) Stats() Stats { return p.snapshot() }

// Close ends the log and gives its memory back.
func (p *Perf) Close() error {
	p.Sync()
	if p.closed.Swap(true) {
		return nil
	}
	err := p.epoll.Close()
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	p.close(p.good)
	p.release()
	return err
}

func (p *Perf) release() {
	closeRings(p.rings)
	p.rings = nil
}

// bootTicks returns CLOCK_BOOTTIME in clock ticks; the far future when it cannot be read, so that nothing is vouched for.
func bootTicks() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 1<<63 - 1
	}
	return uint64(ts.Nano()) / tickNanos
}

// PossibleCPUs lists the CPUs that the kernel may ever bring online.
func PossibleCPUs() ([]int, error) {
	const name = "/sys/devices/system/cpu/possible"
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("list the possible CPUs: %w", err)
	}
	cpus, err := parseCPUList(string(data))
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	return cpus, nil
}

// parseCPUList parses the kernel's list format, "0-3,8,10-11" (cpuset(7), "List format").
func parseCPUList(list string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			return nil, fmt.Errorf("cpu list %q: %w", list, err)
		}
		to := from
		if isRange {
			if to, err = strconv.Atoi(last); err != nil {
				return nil, fmt.Errorf("cpu list %q: %w", list, err)
			}
		}
		if from < 0 || to < from || to >= maxPossible {
			return nil, fmt.Errorf("cpu list %q: range %q", list, part)
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
