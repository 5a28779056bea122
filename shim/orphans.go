package shim

import (
	"os"
	"os/signal"
	"sync"
	"time"
	"unsafe"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
)

// children looks after the dead children of the shim. Runc commands are waited for by whoever runs them (monitor). Init
// processes of containers and execs go to containerd's reaper, which tells the task service. The others are orphans of tasks
// in the PID namespace of the shim, which it adopted as their subreaper: those are named, reaped here and told as what they
// are, so that no number of them can stand in front of a container's exit. Whose a child is, is certain only while no call is
// in flight that makes processes for the same task; until then it is left alone.
type children struct {
	s    *service
	self procfs.HostPID
	wake chan struct{} // look again: a call has ended

	mu       sync.Mutex
	tasks    map[string]*task              // those in the shim's PID namespace
	known    map[procfs.HostPID]uint64     // init and exec processes of those tasks, with their start times
	commands map[procfs.HostPID]struct{}   // running runc commands
	hidden   bool                          // behind a dead runc command there may be somebody else
	inFlight map[string]int                // calls that make processes, by task
	adopted  map[procfs.HostPID]*candidate // children that may be orphans, living or dead
}

// candidate is a child of the shim in the cgroup of a task.
type candidate struct {
	task      *task
	startTime uint64
	comm      string
	// reaped: containerd's reaper took it before it was clear whose it was. exit is what it said.
	reaped bool
	status uint32
	exited time.Time
}

func newChildren(s *service) *children {
	c := &children{
		s:        s,
		self:     procfs.HostPID(os.Getpid()),
		wake:     make(chan struct{}, 1),
		tasks:    make(map[string]*task),
		known:    make(map[procfs.HostPID]uint64),
		commands: make(map[procfs.HostPID]struct{}),
		inFlight: make(map[string]int),
		adopted:  make(map[procfs.HostPID]*candidate),
	}
	return c
}

// run handles SIGCHLD for the life of the shim.
func (c *children) run() {
	sigs := make(chan os.Signal, 1) // one pending is enough: each look sees all
	signal.Notify(sigs, unix.SIGCHLD)
	exits := reaper.Default.Subscribe()
	go func() {
		for e := range exits {
			c.sawExit(procfs.HostPID(e.Pid), uint32(e.Status), e.Timestamp)
		}
	}()
	for {
		select {
		case <-sigs:
		case <-c.wake:
		}
		if c.look() {
			c.s.kickAll()
		}
	}
}

// command notes that a runc command runs, or does no more.
func (c *children) command(pid procfs.HostPID, runs bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if runs {
		c.commands[pid] = struct{}{}
	} else {
		delete(c.commands, pid)
		if c.hidden {
			c.hidden = false
			c.lookAgain()
		}
	}
}

func (c *children) lookAgain() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// begin notes that a call is in flight that makes processes for a task. The returned function ends it; pid is the process
// that the call made, 0 if none.
func (c *children) begin(id string) (end func(pid int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight[id]++
	return func(pid int) {
		c.mu.Lock()
		if c.inFlight[id]--; c.inFlight[id] == 0 {
			delete(c.inFlight, id)
		}
		if _, shared := c.tasks[id]; shared && pid > 0 {
			c.isKnown(procfs.HostPID(pid))
		}
		c.mu.Unlock()
		c.lookAgain()
	}
}

// isKnown notes an init or exec process: no orphan, whatever it looked like before. c.mu is held.
func (c *children) isKnown(pid procfs.HostPID) {
	delete(c.adopted, pid)
	if st, err := c.s.proc.Stat(pid); err == nil {
		c.known[pid] = st.StartTime
	}
}

// add makes t one of the tasks whose orphans come here. remove ends that.
func (c *children) add(t *task) {
	c.mu.Lock()
	c.tasks[t.id] = t
	c.known[t.pid] = t.startTime
	c.mu.Unlock()
	c.lookAgain()
}

func (c *children) remove(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tasks, t.id)
	delete(c.known, t.pid)
	for pid, cand := range c.adopted {
		if cand.task == t {
			delete(c.adopted, pid)
		}
	}
}

// sawExit hears of every child that containerd's reaper took.
func (c *children) sawExit(pid procfs.HostPID, status uint32, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, pid)
	if cand := c.adopted[pid]; cand != nil {
		cand.reaped, cand.status, cand.exited = true, status, at
		c.lookAgainLocked(cand)
	}
}

func (c *children) lookAgainLocked(cand *candidate) {
	if c.inFlight[cand.task.id] == 0 {
		c.lookAgain()
	}
}

// maxPasses bounds how often look asks for orphans before it goes on to the other dead.
const maxPasses = 5

// look deals with every dead child, and reports whether there were others than runc commands.
func (c *children) look() (died bool) {
	if c.onlyKnown() {
		pid := firstDead()
		if pid == 0 {
			return false
		}
		if !c.isCommand(pid) {
			c.reap()
			return true
		}
		// Its command is waited for; it may hide others.
	}
	for range maxPasses {
		taken, others := c.takeOrphans()
		others = others || c.overlooked()
		died = died || others || taken > 0
		if !others {
			return died
		}
		if taken == 0 {
			break
		}
		// Again: what dies between the look and containerd's reaper, which takes all that is dead, goes without a name
		// unless it was seen alive. That gap is kept as small as it can be.
	}
	c.reap()
	return true
}

// reap has containerd's reaper take all that is dead.
func (*children) reap() {
	if err := reaper.Reap(); err != nil {
		log.L.WithError(err).Error("reap exited children")
	}
}

// onlyKnown reports whether no task is such that the shim could have orphans to look for.
func (c *children) onlyKnown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tasks) == 0 && len(c.adopted) == 0
}

func (c *children) isCommand(pid procfs.HostPID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.commands[pid]
	return ok
}

// overlooked reports whether somebody is dead for containerd's reaper whom the list has not got: when a child is collected while
// the list is read, the kernel leaves the next one out (get_children_pid() in fs/proc/array.c), and nothing may come that would have it
// read again.
func (c *children) overlooked() bool {
	pid := firstDead()
	if pid == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.commands[pid]; ok {
		c.hidden = true // who waits for the command takes it, and then it is looked again
		return false
	}
	cand := c.adopted[pid]
	return cand == nil || c.inFlight[cand.task.id] == 0 // else the end of the call has it looked again
}

// firstDead returns one dead child, which stays, 0 if there is none: one call instead of a list of the children of each thread.
func firstDead() procfs.HostPID {
	var info unix.Siginfo
	// It does not wait: telling Go's scheduler of it would wake its other threads.
	_, _, errno := unix.RawSyscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	if errno != 0 { // ECHILD: no children
		return 0
	}
	// The fields that depend on the signal come after three ints, aligned to 8 bytes, and si_pid is the first for SIGCHLD
	// (include/uapi/asm-generic/siginfo.h, on a 64-bit architecture). It stays 0 when nobody is dead.
	return procfs.HostPID((*[8]int32)(unsafe.Pointer(&info))[4])
}

// takeOrphans reaps the dead children that are certain to be orphans and reports how many they were, and whether there are
// dead ones for containerd's reaper.
func (c *children) takeOrphans() (taken int, others bool) {
	var found []orphan
	c.mu.Lock()
	for _, pid := range c.list() {
		st, err := c.s.proc.Stat(pid)
		if err != nil || st.PPID != c.self {
			continue
		}
		if _, ok := c.commands[pid]; ok {
			continue
		}
		cand := c.candidateFor(pid, st)
		switch {
		case !st.Zombie():
			continue
		case cand == nil:
			others = true
			continue
		case c.inFlight[cand.task.id] > 0:
			continue
		}
		var ws unix.WaitStatus
		if got, err := unix.Wait4(int(pid), &ws, unix.WNOHANG, nil); err != nil || got != int(pid) {
			continue
		}
		delete(c.adopted, pid)
		found = append(found, orphan{task: cand.task, pid: int(pid), inner: int(pid), command: cand.comm,
			status: int(ws), died: time.Now()})
	}
	for pid, cand := range c.adopted {
		if cand.reaped && c.inFlight[cand.task.id] == 0 {
			delete(c.adopted, pid)
			found = append(found, orphan{task: cand.task, pid: int(pid), inner: int(pid), command: cand.comm,
				status: waitStatus(cand.status), died: cand.exited})
		}
	}
	c.mu.Unlock()

	for _, o := range found {
		o.task.reapedByShim.Add(1)
		c.s.publishOrphan(o)
	}
	return len(found), others
}

// list returns the children of all threads of the shim.
func (c *children) list() []procfs.HostPID {
	tids, err := c.s.proc.Threads(c.self)
	if err != nil {
		return nil
	}
	var all []procfs.HostPID
	for _, tid := range tids {
		pids, err := c.s.proc.ThreadChildren(c.self, tid)
		if err == nil {
			all = append(all, pids...)
		}
	}
	return all
}

// candidateFor returns what is known of a child that may be an orphan of a task; nil for all others. c.mu is held.
func (c *children) candidateFor(pid procfs.HostPID, st procfs.Stat) *candidate {
	if start, ok := c.known[pid]; ok && start == st.StartTime {
		return nil
	}
	if cand := c.adopted[pid]; cand != nil && cand.startTime == st.StartTime {
		return cand
	}
	cgroup := sweep.ContainerPath(c.s.proc, pid)
	for _, t := range c.tasks {
		if t.holds(cgroup) {
			cand := &candidate{task: t, startTime: st.StartTime, comm: st.Comm}
			c.adopted[pid] = cand
			return cand
		}
	}
	return nil
}

// waitStatus is the inverse of what containerd's reaper makes of a wait(2) status, as far as there is one: an exit code above
// 128 looks like a signal.
func waitStatus(exit uint32) int {
	if exit > 128 {
		return int(exit - 128)
	}
	return int(exit) << 8
}
