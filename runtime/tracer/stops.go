package tracer

import "fmt"

// Signal numbers that decide something here. They are the same on amd64 and arm64 (include/uapi/asm-generic/signal.h,
// arch/x86/include/uapi/asm/signal.h).
const (
	sigTrap  = 5
	sigKill  = 9
	sigChld  = 17
	sigCont  = 18
	sigStop  = 19
	sigURG   = 23
	sigWinch = 28
)

// eventStop is PTRACE_EVENT_STOP (include/uapi/linux/ptrace.h), which only threads attached with PTRACE_SEIZE report.
const eventStop = 128

// syscallBit is or-ed into SIGTRAP at syscall stops under PTRACE_O_TRACESYSGOOD (ptrace(2)).
const syscallBit = 0x80

// stopKind says which of the stops of ptrace(2) was reported.
type stopKind int

const (
	stopUnknown stopKind = iota // a stop that was not asked for (PTRACE_EVENT_EXEC and the like)
	stopGone                    // exited or killed
	stopEvent                   // PTRACE_EVENT_STOP with SIGTRAP: by PTRACE_INTERRUPT, or a SIGCONT was seen
	stopGroup                   // PTRACE_EVENT_STOP with a stop signal: the whole process is stopped
	stopSyscall                 // syscall-entry stop or syscall-exit stop
	stopSignal                  // signal-delivery stop: sig has been dequeued and is ours to pass on
)

func (k stopKind) String() string {
	switch k {
	case stopGone:
		return "gone"
	case stopEvent:
		return "event stop"
	case stopGroup:
		return "group stop"
	case stopSyscall:
		return "syscall stop"
	case stopSignal:
		return "signal-delivery stop"
	}
	return "unknown stop"
}

type stop struct {
	kind stopKind
	sig  int // stopSignal, stopGroup: the signal
}

func (s stop) String() string {
	if s.kind == stopSignal || s.kind == stopGroup {
		return fmt.Sprintf("%v (signal %d)", s.kind, s.sig)
	}
	return s.kind.String()
}

// classify reads a wait status (wait(2); the bit layout is that of include/uapi/linux/wait.h users such as glibc's
// bits/waitstatus.h, with the ptrace event in bits 16 and up as ptrace(2) has it).
func classify(status uint32) stop {
	if status&0xff != 0x7f { // not WIFSTOPPED
		if status == 0xffff { // WIFCONTINUED; not asked for
			return stop{kind: stopUnknown}
		}
		return stop{kind: stopGone}
	}
	sig, event := int(status>>8&0xff), status>>16
	switch {
	case event == eventStop && sig == sigTrap:
		return stop{kind: stopEvent}
	case event == eventStop:
		return stop{kind: stopGroup, sig: sig}
	case event != 0:
		return stop{kind: stopUnknown}
	case sig == sigTrap|syscallBit:
		return stop{kind: stopSyscall}
	}
	return stop{kind: stopSignal, sig: sig}
}
