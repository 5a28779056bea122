package tracer

import (
	"sync/atomic"
	"unsafe"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// journalMagic begins a journal; its last byte is the version of the layout.
const journalMagic uint64 = 0x7265_6170_6a72_6e01

// journalSize is the size of the file; it must hold a journalPage of every architecture.
const journalSize = 4096

// phase says how far an attach has come.
type phase uint32

const (
	phaseIdle     phase = iota // nobody is traced
	phaseAttached              // a thread may be traced; its registers and signal mask are its own
	phaseArmed                 // registers and mask may be exchanged at any moment; what is needed to restore them is there
	phaseHurried               // nobody is traced; a thread is hurried
)

// journalPage is the content of a journal. The worker writes it with plain stores into shared memory, so that it costs
// nothing and survives the worker; each store after which the others mean something is atomic, and so is not moved before
// them (sync/atomic).
type journalPage struct {
	magic     uint64
	regsSize  uint32 // of registers: another architecture's are of no use
	phase     atomic.Uint32
	pinned    atomic.Uint32 // 1: a SIGSTOP that stops the process may be ours
	woken     atomic.Uint32 // 1: a recovery may have left a SIGCONT in the thread's queue
	otherStop atomic.Uint32 // 1: the process was stopped by somebody else in the course of this attach
	isInit    uint32        // 1: PID 1 of its PID namespace
	pid, tid  int32
	started   uint64 // start times of process and thread (proc_pid_stat(5), field 22)
	born      uint64
	nspid     atomic.Int64 // what waitid was or will be called for
	mask      uint64       // the thread's own blocked signals
	parked    registers    // at the event stop, before the call was restarted
	entry     registers    // at the entry stop of its own call
	end       registers    // entry, with the result that has the kernel restart the call or end it
	// 1: a recovery owes the process the stop by somebody else that it has ended. Last, so that the layout of older builds holds.
	restop atomic.Uint32
	// 1: the thread's nice value, and what it does at a fork(2), may not be its own (hurry).
	hurried atomic.Uint32
	// 1: registers and mask are the thread's own and are not touched any more. It may still stand at the delivery of the pin, or have gone on.
	restored atomic.Uint32
}

var _ = [1]struct{}{}[max(0, int(unsafe.Sizeof(journalPage{}))-journalSize)]

// Journal is where a worker writes down what has to be put back if it dies while a thread's registers are not its own. It is
// a file in memory that the client keeps. A nil Journal keeps nothing.
type Journal struct {
	page *journalPage
	mem  []byte
}

func (j *Journal) phase() phase {
	if j == nil {
		return phaseIdle
	}
	return phase(j.page.phase.Load())
}

// attached begins the journal of one attach.
func (j *Journal) attached(pid, tid procfs.HostPID, started, born uint64, isInit bool) {
	if j == nil {
		return
	}
	p := j.page
	p.pid, p.tid, p.started, p.born, p.isInit = int32(pid), int32(tid), started, born, 0
	if isInit {
		p.isInit = 1
	}
	p.pinned.Store(0)
	p.woken.Store(0)
	p.otherStop.Store(0)
	p.restop.Store(0)
	p.restored.Store(0)
	p.phase.Store(uint32(phaseAttached))
}

// arm writes down the thread's own state.
func (j *Journal) arm(parked, entry, end *registers, mask procfs.SignalSet) {
	if j == nil {
		return
	}
	p := j.page
	p.parked, p.entry, p.end, p.mask = *parked, *entry, *end, uint64(mask)
	p.phase.Store(uint32(phaseArmed))
}

// restored says that the thread is about to be let go: nothing that it does from here on is to be put back, but for a stop by the pin.
func (j *Journal) restored() {
	if j != nil {
		j.page.restored.Store(1)
	}
}

// aim says for which child waitid is called next, or askNumber.
func (j *Journal) aim(nspid procfs.NSPID) {
	if j != nil {
		j.page.nspid.Store(int64(nspid))
	}
}

func (j *Journal) pin(on bool) {
	if j == nil {
		return
	}
	var v uint32
	if on {
		v = 1
	}
	j.page.pinned.Store(v)
}

func (j *Journal) foreignStop() {
	if j != nil {
		j.page.otherStop.Store(1)
	}
}

// lend says that the thread is about to be hurried, giveBack that it is no more.
func (j *Journal) lend() {
	if j != nil {
		j.page.hurried.Store(1)
	}
}

func (j *Journal) giveBack() {
	if j == nil {
		return
	}
	j.page.hurried.Store(0)
	j.page.phase.CompareAndSwap(uint32(phaseHurried), uint32(phaseIdle))
}

// close ends the journal of an attach. What has been lent for longer stays open.
func (j *Journal) close() {
	if j == nil {
		return
	}
	end := phaseIdle
	if j.page.hurried.Load() == 1 {
		end = phaseHurried
	}
	j.page.phase.Store(uint32(end))
	j.page.restop.Store(0)
}
