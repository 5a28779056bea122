package tracer

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/pidfd"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// spinFor is how long a stop is awaited by asking again and again: longer than one takes on another CPU that has nothing else to do, and
// less than it takes to fall asleep, and be woken by that CPU, while PID 1 stands still. napFor is how long it is slept between two looks
// by who has no ticker.
const (
	spinFor = 25 * time.Microsecond
	napFor  = 50 * time.Microsecond
)

// handover chooses between the two ways to wait for a stop. A thread on our own CPU gets nowhere while we ask, and is quick while we
// sleep; one on another CPU is the other way round. The kernel moves it as it likes, so that only time tells which it is.
type handover struct {
	sleep bool
	slow  int // stops that were slept for and took longer than to ask
	// patience is how many of these it takes for another try to ask.
	patience int
}

const (
	// atOnce is for a stop that was there when we began to ask: the thread had our CPU while we resumed it, or was quick elsewhere.
	atOnce = 3 * time.Microsecond
	// maxPatience is for a thread that has to wait for its CPU, and for which asking is no help.
	maxPatience = 64
)

// came notes how long a stop took.
func (h *handover) came(asleep bool, after time.Duration) {
	switch {
	case !asleep && after > atOnce: // it ran while we asked
		h.patience = 0
	case asleep && after > spinFor:
		if h.slow++; h.slow > h.patience {
			h.sleep, h.slow = false, 0
		}
	}
}

// missed notes that a stop did not come for the asking.
func (h *handover) missed() {
	h.sleep, h.slow = true, 0
	h.patience = min(2*h.patience+1, maxPatience)
}

const (
	ntPRStatus         = 1 // NT_PRSTATUS (include/uapi/linux/elf.h)
	peekShared         = 1 // PTRACE_PEEKSIGINFO_SHARED (include/uapi/linux/ptrace.h)
	cldTrapped         = 4 // CLD_TRAPPED, CLD_STOPPED (sigaction(2))
	cldStopped         = 5
	siginfoSize        = 128 // SI_MAX_SIZE (include/uapi/asm-generic/siginfo.h)
	peekBatch          = 32
	maxPeeks           = 32
	ptraceGetSigmask   = 0x420a
	ptraceSetSigmask   = 0x420b  // include/uapi/linux/ptrace.h, Linux 3.11
	optSuspendSeccomp  = 1 << 21 // PTRACE_O_SUSPEND_SECCOMP (ptrace(2), Linux 4.3)
	syscallInfoMaxSize = 88      // struct ptrace_syscall_info of Linux 5.3, the largest member of its union included
)

// A signal that bears our mark is queued with SI_QUEUE and this value. Somebody inside the container can send the like; such a
// SIGSTOP would be dropped in any case, since it comes from inside.
const (
	siQueue        = -1
	pinMark uint64 = 0x7265_6170_6572_0001
)

// thread is a tracee in the real kernel. All its calls must come from one OS thread: a ptrace relation belongs to it.
type thread struct {
	tid  int
	tgid int
	tick *ticker // ends the sleep in wait from time to time; nil: it naps instead
	hand handover

	// Buffers that the kernel writes to, here so that no call allocates.
	iov  unix.Iovec
	info [syscallInfoMaxSize]byte
	sig  [siginfoSize]byte
	set  uint64
	peek struct {
		off   uint64
		flags uint32
		nr    int32
	}
	peeked [peekBatch * siginfoSize]byte
}

func (t *thread) ptrace(req int, addr, data uintptr) (int, error) {
	r, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(t.tid), addr, data, 0, 0)
	switch errno {
	case 0:
		return int(r), nil
	case unix.ESRCH:
		return 0, errGone
	case unix.EPERM:
		return 0, fmt.Errorf("%w: %w", errPerm, errno)
	}
	return 0, errno
}

func (t *thread) seize() error {
	_, err := t.ptrace(unix.PTRACE_SEIZE, 0, unix.PTRACE_O_TRACESYSGOOD)
	return err
}

func (t *thread) interrupt() error {
	_, err := t.ptrace(unix.PTRACE_INTERRUPT, 0, 0)
	return err
}

func (t *thread) cont(sig int) error {
	_, err := t.ptrace(unix.PTRACE_CONT, 0, uintptr(sig))
	return err
}

func (t *thread) syscall(sig int) error {
	_, err := t.ptrace(unix.PTRACE_SYSCALL, 0, uintptr(sig))
	return err
}

func (t *thread) detach(sig int) error {
	_, err := t.ptrace(unix.PTRACE_DETACH, 0, uintptr(sig))
	return err
}

func (t *thread) suspendSeccomp(on bool) error {
	// PTRACE_SETOPTIONS replaces all options.
	opts := uintptr(unix.PTRACE_O_TRACESYSGOOD)
	if on {
		opts |= optSuspendSeccomp
	}
	_, err := t.ptrace(unix.PTRACE_SETOPTIONS, 0, opts)
	return err
}

func (t *thread) wait(d time.Duration) (stop, error) {
	began, late, asleep := time.Now(), false, t.hand.sleep
	// WNOWAIT: a stop that has been waited for is one whose signal is forgotten if we die before we resume the thread
	// (wait_task_stopped() in kernel/exit.c clears what ptrace_stop() returns). Left alone, the signal is delivered.
	// __WALL: threads that are not group leaders do not send SIGCHLD and are not found without (wait(2)).
	options := unix.WEXITED | unix.WSTOPPED | unix.WNOWAIT | unix.WALL
	if !asleep {
		options |= unix.WNOHANG
	}
	for {
		t.sig = [siginfoSize]byte{}
		_, _, errno := unix.RawSyscall6(unix.SYS_WAITID, unix.P_PID, uintptr(t.tid), uintptr(unsafe.Pointer(&t.sig)), uintptr(options), 0, 0)
		switch {
		case errno == unix.ECHILD:
			return stop{}, errGone // released: another thread has called execve(2) (ptrace(2), "execve(2) under ptrace")
		case errno != 0 && errno != unix.EINTR:
			return stop{}, fmt.Errorf("wait for thread %d: %w", t.tid, errno)
		case errno == 0 && *(*int32)(unsafe.Pointer(&t.sig[0])) == int32(unix.SIGCHLD):
			if code := *(*int32)(unsafe.Pointer(&t.sig[8])); code == cldTrapped || code == cldStopped {
				if t.hand.sleep == asleep { // else it was missed
					t.hand.came(asleep, time.Since(began))
				}
				// si_status is the stop's code, which wait4 shows shifted and with 0x7f below.
				return classify(*(*uint32)(unsafe.Pointer(&t.sig[24]))<<8 | 0x7f), nil
			}
			if t.bury() {
				return stop{kind: stopGone}, nil
			}
		}
		switch waited := time.Since(began); {
		case late:
			return stop{}, errStuck
		case waited > d:
			// It may have stopped while we did not get to run.
			late = true
			options |= unix.WNOHANG
		case waited <= spinFor || t.hand.sleep:
		case t.tick != nil:
			t.hand.missed()
			options &^= unix.WNOHANG
		default:
			ts := unix.NsecToTimespec(int64(napFor))
			_ = unix.Nanosleep(&ts, nil)
		}
	}
}

// bury takes note of the thread's death, without which its parent does not learn of it.
func (t *thread) bury() bool {
	r, _, errno := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(t.tid), 0, unix.WNOHANG|unix.WALL, 0, 0, 0)
	return errno == 0 && int(r) == t.tid
}

// syscallInfo reads struct ptrace_syscall_info (include/uapi/linux/ptrace.h): op, 3 bytes of padding, arch, instruction
// pointer and stack pointer of 8 bytes each, then at 24 the number and six arguments (entry) or the result (exit).
func (t *thread) syscallInfo() (syscallInfo, error) {
	t.info = [syscallInfoMaxSize]byte{}
	_, err := t.ptrace(unix.PTRACE_GET_SYSCALL_INFO, uintptr(len(t.info)), uintptr(unsafe.Pointer(&t.info)))
	if err != nil {
		return syscallInfo{}, err
	}
	si := syscallInfo{
		op: t.info[0], arch: *(*uint32)(unsafe.Pointer(&t.info[4])),
		pc: *(*uint64)(unsafe.Pointer(&t.info[8])), sp: *(*uint64)(unsafe.Pointer(&t.info[16])),
	}
	v := *(*int64)(unsafe.Pointer(&t.info[24]))
	if si.op == opExit {
		si.value = v
	} else {
		si.nr, si.args = v, *(*[6]uint64)(unsafe.Pointer(&t.info[32]))
	}
	return si, nil
}

func (t *thread) sigInfo() (sigInfo, error) {
	_, err := t.ptrace(unix.PTRACE_GETSIGINFO, 0, uintptr(unsafe.Pointer(&t.sig)))
	if err != nil {
		return sigInfo{}, err
	}
	_, info := parseSiginfo(t.sig[:])
	return info, nil
}

// parseSiginfo reads siginfo_t of a 64-bit architecture: signo, errno and code of 4 bytes each, 4 bytes of padding, then the
// sender's PID and user for the codes that have one, and a value of 8 bytes for SI_QUEUE
// (include/uapi/asm-generic/siginfo.h).
func parseSiginfo(b []byte) (signo int32, info sigInfo) {
	_ = b[31]
	signo = *(*int32)(unsafe.Pointer(&b[0]))
	info = sigInfo{code: *(*int32)(unsafe.Pointer(&b[8])), pid: *(*int32)(unsafe.Pointer(&b[16]))}
	info.mark = info.code == siQueue && *(*uint64)(unsafe.Pointer(&b[24])) == pinMark
	return signo, info
}

func (t *thread) pendingStops() (ours, inside, outside int, err error) {
	for _, flags := range [...]uint32{0, peekShared} {
		t.peek.off, t.peek.flags, t.peek.nr = 0, flags, peekBatch
		for range maxPeeks { // the queue can be as long as RLIMIT_SIGPENDING
			n, err := t.ptrace(unix.PTRACE_PEEKSIGINFO, uintptr(unsafe.Pointer(&t.peek)), uintptr(unsafe.Pointer(&t.peeked)))
			if err != nil {
				return 0, 0, 0, err
			}
			for i := range n {
				signo, info := parseSiginfo(t.peeked[i*siginfoSize:])
				switch {
				case signo != sigStop:
				case info.mark:
					ours++
				case info.fromOutside():
					outside++
				default:
					inside++
				}
			}
			if n == 0 { // fewer than asked for are not all: a signal for us, as the tick, cuts it short (ptrace_peek_siginfo() in kernel/ptrace.c)
				break
			}
			t.peek.off += uint64(n)
		}
	}
	return ours, inside, outside, nil
}

// queue sends a signal with our mark to the thread alone (rt_tgsigqueueinfo(2)).
func (t *thread) queue(sig int) error {
	t.sig = [siginfoSize]byte{}
	*(*int32)(unsafe.Pointer(&t.sig[0])) = int32(sig)
	*(*int32)(unsafe.Pointer(&t.sig[8])) = siQueue
	*(*uint64)(unsafe.Pointer(&t.sig[24])) = pinMark
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(t.tgid), uintptr(t.tid), uintptr(sig),
		uintptr(unsafe.Pointer(&t.sig)), 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.ESRCH:
		return errGone
	}
	return errno
}

func (t *thread) pin() error { return t.queue(sigStop) }

func (t *thread) mask() (procfs.SignalSet, error) {
	_, err := t.ptrace(ptraceGetSigmask, unsafe.Sizeof(t.set), uintptr(unsafe.Pointer(&t.set)))
	return procfs.SignalSet(t.set), err
}

func (t *thread) setMask(m procfs.SignalSet) error {
	t.set = uint64(m)
	_, err := t.ptrace(ptraceSetSigmask, unsafe.Sizeof(t.set), uintptr(unsafe.Pointer(&t.set)))
	return err
}

func (t *thread) sendCont() error { return unix.Kill(t.tgid, unix.SIGCONT) }

// liveFacts looks at PID 1 and its zombies while the thread is stopped. What stands for a process is opened beforehand and stays bound
// to it, so that a number that has got a new owner meanwhile cannot deceive it.
type liveFacts struct {
	o       *observer
	req     Request
	tid     procfs.HostPID
	zombies []zombieFiles
	self    int // stat of PID 1
	ns      int // its PID namespace
	buf     []byte
}

// zombieFiles are open files of a zombie, -1 if not open. The two of /proc keep the kernel from giving up their names while PID 1 stands
// still in waitid (proc_flush_pid() in fs/proc/base.c), which would take it longer than all else that there is to be done.
type zombieFiles struct{ pidfd, stat, status int }

func newLiveFacts(o *observer, req Request) *liveFacts {
	f := &liveFacts{o: o, req: req, zombies: make([]zombieFiles, len(req.Zombies)), self: -1, ns: -1, buf: make([]byte, 8192)}
	for i := range f.zombies {
		f.zombies[i] = zombieFiles{-1, -1, -1}
	}
	return f
}

// zombieStat implements zombieReader. It comes first: what the later files say is of another process only if the one that the pidfd
// (pidfd_open(2)) refers to was released in between.
func (f *liveFacts) zombieStat(i int) (s procfs.Stat, err error) {
	f.drop(i) // a try that found no room for all of them
	z, pid := &f.zombies[i], f.req.Zombies[i].PID
	if z.pidfd, err = pidfd.Open(pid); err != nil {
		return s, err
	}
	if z.stat, err = openProc(pid, "stat"); err != nil {
		return s, err
	}
	return f.stat(z.stat)
}

// zombieFacts implements zombieReader.
func (f *liveFacts) zombieFacts(i int) (facts pidfd.Facts, err error) {
	f.drop(i) // as above
	z := &f.zombies[i]
	if z.pidfd, err = pidfd.Open(f.req.Zombies[i].PID); err != nil {
		return facts, err
	}
	return pidfd.Look(z.pidfd)
}

// zombieNumber implements zombieReader: one call (Linux 6.11) instead of a text of a thousand characters. Its answer is of the process of
// the pidfd, as that of the files is.
func (f *liveFacts) zombieNumber(i int) procfs.NSPID {
	if f.ns < 0 {
		var err error
		if f.ns, err = openProc(f.req.PID, "ns/pid"); err != nil {
			return 0
		}
	}
	n, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.ns), unix.NS_GET_TGID_IN_PIDNS, uintptr(f.req.Zombies[i].PID))
	if errno != 0 {
		return 0
	}
	return procfs.NSPID(n)
}

// zombieStatus implements zombieReader.
func (f *liveFacts) zombieStatus(i int) (s procfs.Status, err error) {
	z := &f.zombies[i]
	if z.status < 0 {
		if z.status, err = openProc(f.req.Zombies[i].PID, "status"); err != nil {
			return s, err
		}
	}
	data, err := f.read(z.status)
	if err != nil {
		return s, err
	}
	return procfs.ParseStatus(data)
}

// open prepares for the attach of that plan.
func (f *liveFacts) open(p *plan) (err error) {
	if f.tid = p.tid; f.self >= 0 {
		return nil
	}
	if f.self, err = openProc(f.req.PID, "stat"); err != nil {
		return lookupError(err)
	}
	return nil
}

// drop closes the files of zombie i.
func (f *liveFacts) drop(i int) {
	z := &f.zombies[i]
	for _, fd := range [...]int{z.pidfd, z.stat, z.status} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	*z = zombieFiles{-1, -1, -1}
}

func (f *liveFacts) close() {
	for i := range f.zombies {
		f.drop(i)
	}
	for _, fd := range [...]int{f.self, f.ns} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func openProc(pid procfs.HostPID, name string) (int, error) {
	fd, err := unix.Open("/proc/"+pid.String()+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s of process %d: %w", name, pid, vanished(err))
	}
	return fd, nil
}

// vanished turns the errors of a process that is gone into procfs.ErrVanished.
func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return procfs.ErrVanished
	}
	return err
}

// read returns what the file says now. The slice is valid until the next read.
func (f *liveFacts) read(fd int) ([]byte, error) {
	for {
		// seq_file makes the text anew for a read at offset 0.
		n, err := unix.Pread(fd, f.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, vanished(err)
		}
		return f.buf[:n], nil
	}
}

func (f *liveFacts) stat(fd int) (procfs.Stat, error) {
	data, err := f.read(fd)
	if err != nil {
		return procfs.Stat{}, err
	}
	return procfs.ParseStat(data)
}

func (f *liveFacts) sameProcess() error {
	s, err := f.stat(f.self)
	if err != nil {
		return fmt.Errorf("look at process %d: %w", f.req.PID, errGone)
	}
	if s.Zombie() || s.State == procfs.StateDead {
		return no(ReasonExiting, "process %d is in state %v", f.req.PID, s.State)
	}
	if s.StartTime != f.req.StartTime {
		return no(ReasonVanished, "process %d started at %d, not at %d", f.req.PID, s.StartTime, f.req.StartTime)
	}
	return nil
}

func (f *liveFacts) traced() bool {
	st, err := settled(func() (procfs.Status, error) { return f.o.proc.ThreadStatus(f.req.PID, f.req.PID) })
	return err == nil && st.TracerPid != 0
}

func (f *liveFacts) thread() (procfs.Status, error) {
	return settled(func() (procfs.Status, error) { return f.o.proc.ThreadStatus(f.req.PID, f.tid) })
}

func (f *liveFacts) syscall() procfs.Syscall {
	sc, err := f.o.proc.ThreadSyscall(f.req.PID, f.tid)
	if err != nil {
		return procfs.Syscall{Running: true}
	}
	return sc
}

// gone asks for permission to send a signal, which is there to be had for as long as the zombie is.
func (f *liveFacts) gone(i int) bool {
	return errors.Is(unix.PidfdSendSignal(f.zombies[i].pidfd, 0, nil, 0), unix.ESRCH)
}

func (f *liveFacts) zombieTraced(i int) bool {
	st, err := settled(func() (procfs.Status, error) { return f.zombieStatus(i) })
	return err != nil || st.TracerPid != 0
}
