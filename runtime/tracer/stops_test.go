package tracer

import "testing"

func TestClassify(t *testing.T) {
	tests := []struct {
		name   string
		status uint32
		want   stop
	}{
		{"exit(0)", 0, stop{kind: stopGone}},
		{"exit(42)", 42 << 8, stop{kind: stopGone}},
		{"killed by SIGKILL", 9, stop{kind: stopGone}},
		{"killed by SIGSEGV, core dumped", 11 | 0x80, stop{kind: stopGone}},
		{"continued", 0xffff, stop{kind: stopUnknown}},
		{"PTRACE_INTERRUPT", 128<<16 | 5<<8 | 0x7f, stop{kind: stopEvent}},
		{"group stop by SIGSTOP", 128<<16 | 19<<8 | 0x7f, stop{kind: stopGroup, sig: 19}},
		{"group stop by SIGTTIN", 128<<16 | 21<<8 | 0x7f, stop{kind: stopGroup, sig: 21}},
		{"syscall stop", (5|0x80)<<8 | 0x7f, stop{kind: stopSyscall}},
		{"SIGTRAP without TRACESYSGOOD's bit is a signal", 5<<8 | 0x7f, stop{kind: stopSignal, sig: 5}},
		{"SIGUSR1", 10<<8 | 0x7f, stop{kind: stopSignal, sig: 10}},
		{"SIGSTOP being delivered", 19<<8 | 0x7f, stop{kind: stopSignal, sig: 19}},
		{"real-time signal", 64<<8 | 0x7f, stop{kind: stopSignal, sig: 64}},
		{"PTRACE_EVENT_EXEC", 4<<16 | 5<<8 | 0x7f, stop{kind: stopUnknown}},
		{"PTRACE_EVENT_EXIT", 6<<16 | 5<<8 | 0x7f, stop{kind: stopUnknown}},
		{"PTRACE_EVENT_SECCOMP", 7<<16 | 5<<8 | 0x7f, stop{kind: stopUnknown}},
	}
	for _, tc := range tests {
		if got := classify(tc.status); got != tc.want {
			t.Errorf("%s (%#x): %v, want %v", tc.name, tc.status, got, tc.want)
		}
	}
}

func TestSignalOrigin(t *testing.T) {
	tests := []struct {
		name    string
		info    sigInfo
		outside bool
	}{
		{"kill from inside", sigInfo{code: 0, pid: 12}, false},
		{"kill from an ancestor namespace", sigInfo{code: 0, pid: 0}, true},
		{"tgkill from an ancestor namespace", sigInfo{code: -6, pid: 0}, true},
		{"tgkill from inside", sigInfo{code: -6, pid: 1}, false},
		{"kernel", sigInfo{code: 0x80, pid: 0}, true},
		{"sigqueue with a forged sender", sigInfo{code: -1, pid: 0}, false},
	}
	for _, tc := range tests {
		if got := tc.info.fromOutside(); got != tc.outside {
			t.Errorf("%s: outside %v, want %v", tc.name, got, tc.outside)
		}
	}
}
