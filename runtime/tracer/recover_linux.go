package tracer

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

const (
	// recoverWait bounds one try. A thread that does not stop in that time is frozen or gets no CPU; it executes nothing of
	// its own either, and the client tries again.
	recoverWait = 10 * time.Second
	// recoverNap is between two looks at a thread that is about to stop.
	recoverNap = 200 * time.Microsecond
	// recoverLooks is how often a thread that need not stop is looked at.
	recoverLooks = 50
)

// Recover puts back what a worker that has died left behind: registers, signal mask, a stopped process. It is meant for a
// process that does nothing else, on a locked OS thread, once the worker is gone. It may be killed and run again at any
// point: what it does depends on what it finds.
//
// An error means that the thread is still as it was; the journal is then still open.
func Recover(j *Journal) error { return mend(j, archOptions(nil)) }

func mend(j *Journal, opts options) error {
	if j.phase() == phaseIdle {
		return nil
	}
	m := &mender{
		options: opts,
		j:       j.page,
		t:       &thread{tid: int(j.page.tid), tgid: int(j.page.pid)},
		proc:    procfs.New(os.DirFS("/proc")),
		until:   time.Now().Add(recoverWait),
	}
	err := m.run()
	if err == nil || errors.Is(err, errGone) || errors.Is(err, procfs.ErrVanished) {
		j.giveBack() // nobody is left who could
		j.close()
		return nil
	}
	return err
}

type mender struct {
	options
	j     *journalPage
	t     *thread
	proc  *procfs.FS
	until time.Time
	lead  bool // restartsBeforeStop: the call is issued again, whatever handler runs first
	looks int  // at a thread that may have been let go and runs
}

func (m *mender) run() error {
	for {
		st, err := m.look()
		if m.j.hurried.Load() == 1 && (err == nil || errors.Is(err, procfs.ErrVanished) && m.sameProcess()) {
			unhurry(m.t.tgid, m.t.tid)
			m.j.hurried.Store(0)
		}
		if err != nil {
			return err
		}
		switch {
		case phase(m.j.phase.Load()) == phaseHurried:
			return nil
		case st.TracerPid != 0:
			// The dead worker's hold ends before anybody can learn of its death, so this is somebody else.
			err = fmt.Errorf("thread %d is traced by process %d", m.t.tid, st.TracerPid)
		case phase(m.j.phase.Load()) == phaseAttached, m.letGo() && (m.j.pinned.Load() == 0 || m.j.otherStop.Load() == 1):
			return m.undoStop() // no pin, or a stop that has to stay
		case !m.needed(st):
			return nil
		case m.letGo() && st.State == procfs.StateRunning && !st.SigPnd.Has(sigStop) && m.looks < recoverLooks:
			m.looks++ // it stops now, or has gone on and need not be disturbed
		default:
			if err = m.t.seize(); err == nil {
				return m.attached()
			}
			if errors.Is(err, errGone) {
				return err
			}
		}
		if time.Now().After(m.until) {
			return err
		}
		time.Sleep(recoverNap)
	}
}

// sameProcess reports whether the process is the one of the journal.
func (m *mender) sameProcess() bool {
	stat, err := m.proc.Stat(procfs.HostPID(m.j.pid))
	return err == nil && stat.StartTime == m.j.started
}

// look returns the status of the thread; procfs.ErrVanished if it is not the one of the journal.
func (m *mender) look() (procfs.Status, error) {
	pid, tid := procfs.HostPID(m.j.pid), procfs.HostPID(m.j.tid)
	stat, err := m.proc.ThreadStat(pid, tid)
	if err != nil {
		return procfs.Status{}, err
	}
	if stat.StartTime != m.j.born || stat.State == procfs.StateZombie || stat.State == procfs.StateDead {
		return procfs.Status{}, procfs.ErrVanished
	}
	return settled(func() (procfs.Status, error) { return m.proc.ThreadStatus(pid, tid) })
}

// letGo reports whether the worker was about to detach, or had done so, and no recovery has touched the thread since.
func (m *mender) letGo() bool { return m.j.restored.Load() == 1 && m.j.woken.Load() == 0 }

// needed reports whether the thread shows a trace of us: our mask, the pin, or a stop. A mask that is all signals by the
// thread's own will tells nothing. Nor does a thread that has not gone to sleep again: where the worker died with the pin shown to
// it, the pin is in no queue any more, and on a busy machine it can take a while until it stops the thread.
func (m *mender) needed(st procfs.Status) bool {
	if m.letGo() {
		return st.SigPnd.Has(sigStop) || st.State != procfs.StateSleeping
	}
	full := allSignals &^ unblockable
	return st.SigBlk == full || procfs.SignalSet(m.j.mask)&^unblockable == full ||
		st.SigPnd.Has(sigStop) || st.State != procfs.StateSleeping
}

// attached has the thread come to a stop and puts back what is not its own.
func (m *mender) attached() error {
	m.step("recover-seized")
	if err := m.t.interrupt(); err != nil {
		return err
	}
	for first := true; ; first = false {
		s, err := m.t.wait(time.Until(m.until))
		if err != nil {
			return err
		}
		if first && s.kind != stopGone {
			if err := m.ownMask(); err != nil {
				return err
			}
		}
		resume := 0
		switch s.kind {
		case stopGone:
			return errGone
		case stopSyscall:
			m.step("recover-led")
			if err := m.stopAgain(); err != nil {
				return err
			}
			return m.release(0)
		case stopEvent:
			if err := m.registers(); err != nil {
				return err
			}
			ours, _, _, err := m.t.pendingStops()
			if err != nil {
				return err
			}
			if ours == 0 {
				if m.j.woken.Load() == 0 {
					if led, err := m.leadOn(); err != nil {
						return err
					} else if led {
						continue
					}
					return m.release(0)
				}
				// Somebody has died in the middle of wake.
				if err := m.t.pin(); err != nil {
					return err
				}
			}
		case stopGroup:
			if err := m.registers(); err != nil {
				return err
			}
			if theirs, err := m.theirStop(); err != nil {
				return err
			} else if theirs && !m.lead {
				return m.release(0) // into the stop
			} else if theirs {
				m.j.restop.Store(1)
			}
			if err := m.wake(); err != nil {
				return err
			}
		case stopSignal:
			info, err := m.t.sigInfo()
			if err != nil {
				return err
			}
			if s.sig == sigStop {
				if err := m.registers(); err != nil {
					return err
				}
				if info.mark || info.code == siUser && info.pid == 0 && m.j.pinned.Load() == 1 || m.j.isInit == 1 && !info.fromOutside() {
					if led, err := m.leadOn(); err != nil {
						return err
					} else if led {
						continue
					}
					return m.release(0)
				}
				if !m.lead {
					return m.release(sigStop)
				}
				m.j.restop.Store(1)
				if _, err := m.leadOn(); err != nil {
					return err
				}
				continue
			}
			resume = s.sig // the mask was its own, and so are the registers
		default:
			return fmt.Errorf("unexpected %v", s)
		}
		if err := m.t.cont(resume); err != nil {
			return err
		}
	}
}

// ownMask takes down the thread's mask if it is not ours: where the worker died between two swaps, or after the last, PID 1 has gone on
// since, and may have changed it.
func (m *mender) ownMask() error {
	now, err := m.t.mask()
	if err != nil {
		return fmt.Errorf("get signal mask: %w", err)
	}
	if m.letGo() || now&^unblockable != allSignals&^unblockable {
		m.j.mask = uint64(now)
	}
	return nil
}

// registers puts the thread's own registers back if those of the swap are still there. It has then not executed a single
// instruction since: waitid's arguments survive none.
func (m *mender) registers() error {
	var r registers
	if err := m.t.getRegs(&r); err != nil {
		return fmt.Errorf("get registers: %w", err)
	}
	entry, end := m.j.entry, m.j.end
	entry.fill(&r) // a call that was caught at its entry
	end.fill(&r)
	if m.j.restored.Load() == 0 && (r.swapped(&entry, int(m.j.nspid.Load())) || r == entry.rewound()) {
		// Rewound ones are right, but a handler that runs now has to end the call.
		r = recovered(&m.j.parked, &entry, &end)
		c := classifyCall(entry.nr(), entry.args())
		m.lead = restartsBeforeStop && r == entry.rewound() && !c.plainEINTR
	} else if c := classifyCall(r.nr(), r.args()); c.plainEINTR && c.endless && r.result() == resultEINTR {
		r = r.withResult(errRestartNoHand)
	} else {
		return nil
	}
	if err := m.t.setRegs(&r); err != nil {
		return fmt.Errorf("restore registers: %w", err)
	}
	m.step("recover-registers")
	return nil
}

// theirStop reports whether the group stop is, or also is, somebody else's: a pin that is still pending has stopped nobody,
// and a SIGSTOP from outside that is pending was sent since. What this cannot see is a SIGSTOP from outside that another
// thread took while waitid was in flight: then nothing is left of it but the stop, which is taken for ours.
func (m *mender) theirStop() (bool, error) {
	ours, _, outside, err := m.t.pendingStops()
	return ours > 0 || outside > 0 || m.j.pinned.Load() == 0, err
}

// wake ends the group stop with a SIGCONT, which wakes all threads, and takes that SIGCONT back with another pin: a stop
// signal removes it from the queues (prepare_signal() in kernel/signal.c). So no handler sees it, and the thread that we
// hold is stopped again if we die. The pin does not concern the other threads.
func (m *mender) wake() error {
	m.j.woken.Store(1) // before the mask, which the next recovery would else take for the thread's own
	if err := m.t.setMask(allSignals); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	if err := m.t.queue(sigCont); err != nil {
		return fmt.Errorf("send SIGCONT: %w", err)
	}
	m.step("recover-woken")
	if err := m.t.pin(); err != nil {
		return fmt.Errorf("send SIGSTOP: %w", err)
	}
	m.step("recover-pinned")
	return nil
}

// stopAgain repeats somebody else's stop that has been ended to lead the thread to its call: what ends the stop may have a handler.
func (m *mender) stopAgain() error {
	if m.j.restop.Load() == 0 {
		return nil
	}
	st, err := m.look()
	if err != nil {
		return err
	}
	if (st.SigPnd | st.ShdPnd).Has(sigCont) {
		return nil // ended meanwhile
	}
	if err := unix.Kill(m.t.tgid, unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d again: %w", m.t.tgid, err)
	}
	return nil
}

// leadOn resumes the thread, with its signals blocked, up to the entry of its own call, if a handler is about to run. Behind the
// exit of waitid the kernel restarts nothing, so that the handler would return to a rewound call, which it has to end; a call that
// has been entered the kernel ends as it does without any tracer. If we die meanwhile, the mask says so to the next recovery.
func (m *mender) leadOn() (led bool, err error) {
	if !m.lead {
		return false, nil
	}
	st, err := m.look()
	if err != nil {
		return false, err
	}
	if (st.SigPnd|st.ShdPnd)&st.SigCgt&^procfs.SignalSet(m.j.mask) == 0 && m.j.restop.Load() == 0 {
		return false, nil
	}
	if err := m.t.setMask(allSignals); err != nil {
		return false, fmt.Errorf("block signals: %w", err)
	}
	if err := m.t.syscall(0); err != nil {
		return false, fmt.Errorf("resume to the entry of its call: %w", err)
	}
	return true, nil
}

// release restores the mask and detaches.
func (m *mender) release(sig int) error {
	if err := m.t.setMask(procfs.SignalSet(m.j.mask)); err != nil {
		return fmt.Errorf("restore signal mask: %w", err)
	}
	m.step("recover-mask")
	if err := m.t.detach(sig); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	m.step("recover-detached")
	return nil
}

// undoStop is for a worker that has left no pin behind: a SIGSTOP from inside may have become effective, because the process was traced
// (see attach.undoStop).
func (m *mender) undoStop() error {
	if m.j.isInit == 0 || m.j.otherStop.Load() == 1 {
		return nil
	}
	for range recoverLooks {
		st, err := m.look()
		if err != nil {
			return err
		}
		if (st.SigPnd | st.ShdPnd).Has(sigStop) || st.State == procfs.StateStopped {
			if err := m.t.sendCont(); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("send SIGCONT: %w", err)
			}
			return nil
		}
		if st.State != procfs.StateRunning {
			return nil // parked again: it has gone through its signals
		}
		time.Sleep(recoverNap)
	}
	return nil
}
