package tracer

import (
	"testing"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// parkedARM64 returns what /proc says of a thread blocked in a call, and its registers before the stop.
func parkedARM64(nr int64, args [6]uint64) (procfs.Syscall, arm64Regs) {
	r := arm64Regs{sp: 0x7ffe, pc: 0x401004, sysno: int32(nr)}
	copy(r.x[:], args[:])
	r.x[7], r.x[8] = 77, uint64(nr)
	return procfs.Syscall{Nr: nr, Args: args, SP: r.sp, PC: r.pc}, r
}

func TestARM64Interrupted(t *testing.T) {
	args := [6]uint64{0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6}
	endless := call{plainEINTR: true}
	for _, tc := range []struct {
		name string
		nr   int64
		stop func(r *arm64Regs)      // what the signal path does to the registers
		seen func(s *procfs.Syscall) // what else /proc may say
		call call                    // that it is in
		ok   bool                    // parked
		hand bool                    // has to be rewound by hand
	}{
		{name: "restarted by the kernel", nr: arm64Futex, ok: true, stop: func(r *arm64Regs) { r.pc -= 4; r.sysno = -1 }},
		{name: "in restart_syscall", nr: arm64RestartSyscall, ok: true, stop: func(r *arm64Regs) { r.pc -= 4; r.sysno = -1 }},
		{
			name: "EINTR of an epoll_pwait", nr: arm64EpollPwait, call: endless, ok: true, hand: true,
			stop: func(r *arm64Regs) { r.x[0] = ^uint64(3); r.sysno = -1 },
		},
		{name: "EINTR of another", nr: arm64Ppoll, stop: func(r *arm64Regs) { r.x[0] = ^uint64(3); r.sysno = -1 }},
		{name: "returned", nr: arm64Ppoll, stop: func(r *arm64Regs) { r.x[0] = 1; r.sysno = -1 }},
		{name: "elsewhere", nr: arm64Ppoll, stop: func(r *arm64Regs) { r.pc += 40; r.sysno = -1 }},
		{
			name: "was running", nr: arm64Futex, stop: func(r *arm64Regs) { r.pc -= 4; r.sysno = -1 },
			seen: func(s *procfs.Syscall) { *s = procfs.Syscall{Running: true} },
		},
		{
			name: "EINTR of one with other arguments", nr: arm64EpollPwait, call: endless,
			stop: func(r *arm64Regs) { r.x[0] = ^uint64(3); r.x[3]++; r.sysno = -1 },
		},
	} {
		seen, own := parkedARM64(tc.nr, args)
		at := own
		tc.stop(&at)
		if tc.seen != nil {
			tc.seen(&seen)
		}
		k := at.interrupted(seen)
		code, ok := k.restartCode(tc.call)
		if ok != tc.ok {
			t.Errorf("%s: parked %v, want %v", tc.name, ok, tc.ok)
		}
		if !ok {
			continue
		}
		if k.nr() != tc.nr || k.args() != args || k.pc != own.pc || k.x[7] != 77 {
			t.Errorf("%s: %+v, want %+v", tc.name, k, own)
		}
		if byKernel := k.result() == code; byKernel == tc.hand {
			t.Errorf("%s: result %d, code %d", tc.name, k.result(), code)
		}
		next, hand := k.restart(code)
		if hand != tc.hand || next.pc != own.pc-4 || next.x[0] != args[0] || next.nr() != -1 {
			t.Errorf("%s: restart by hand %v with %+v", tc.name, hand, next)
		}
	}
}

func TestARM64Restarted(t *testing.T) {
	for _, tc := range []struct {
		parked, entry int64
		code          int64
		ok            bool
	}{
		{arm64Futex, arm64Futex, arm64RestartSys, true},
		{arm64Wait4, arm64Wait4, arm64RestartSys, true},
		{arm64Futex, arm64RestartSyscall, arm64RestartBlock, true},
		{arm64Nanosleep, arm64RestartSyscall, arm64RestartBlock, true},
		{arm64RestartSyscall, arm64RestartSyscall, arm64RestartBlock, true},
		{arm64Ppoll, arm64Ppoll, arm64RestartNoHand, true},
		{arm64ClockNanosleep, arm64ClockNanosleep, arm64RestartNoHand, true},
		{arm64EpollPwait, arm64EpollPwait, arm64RestartNoHand, true},
		{arm64Futex, arm64Ppoll, 0, false},
	} {
		_, parked := parkedARM64(tc.parked, [6]uint64{1, 2})
		_, entry := parkedARM64(tc.entry, [6]uint64{1, 2})
		if code, ok := entry.restarted(&parked, 0); code != tc.code || ok != tc.ok {
			t.Errorf("%d became %d: code %d, %v", tc.parked, tc.entry, code, ok)
		}
		entry.x[0]++
		if _, ok := entry.restarted(&parked, 0); ok {
			t.Errorf("%d became %d with another argument", tc.parked, tc.entry)
		}
	}
}

func TestARM64Registers(t *testing.T) {
	_, r := parkedARM64(arm64Futex, [6]uint64{1, 2, 3, 4, 5, 6})
	if s := r.withCall(arm64Waitid, [6]uint64{1, 42}); s.nr() != arm64Waitid || s.x[1] != 42 || s.x[8] != arm64Futex || s.pc != r.pc {
		t.Errorf("swapped: %+v", s)
	}
	const nspid = 42
	_, waitid := waitidCall(nspid)
	half := r.withCall(arm64Futex, waitid)
	restarted := half.rewound()
	if !half.swapped(&r, nspid) || !restarted.swapped(&r, nspid) || r.swapped(&r, nspid) || half.swapped(&r, nspid+1) {
		t.Error("registers with waitid's arguments are not told from the thread's own")
	}
	own := r.rewound()
	led := own
	led.x[0] = waitid[0] // what a prepared restart has taken for argument 0
	if own.x[0] = 2; own.swapped(&r, nspid) || !led.swapped(&r, nspid) {
		t.Error("a restart with argument 0 of waitid is not told from the thread's own")
	}
	full := r.withCall(arm64Waitid, waitid)
	pc, sp := r.place()
	if at, same := own.place(); at != pc-arm64InsnSize || same != sp {
		t.Errorf("rewound to %#x, %#x; want one instruction before %#x, %#x", at, same, pc, sp)
	}
	if swappedIn(r.nr()) || !swappedIn(full.nr()) {
		t.Error("the number of the call is not told from waitid's")
	}
	end := r.withResult(arm64EINTR)
	if arm64Recovered(&r, &end) != end {
		t.Error("an EINTR was not kept")
	}
	if end = r.withResult(arm64RestartSys); arm64Recovered(&r, &end) != r.rewound() {
		t.Error("a restart is not one")
	}
	if b := r.withResult(-512).rewound(); b.nr() != -1 || b.pc != r.pc-4 || b.result() != -512 {
		t.Errorf("rewound: %+v", b)
	}
	compat := r
	compat.pstate = 0x10 // PSR_MODE32_BIT
	if !r.native() || compat.native() {
		t.Error("32-bit mode is not told from 64-bit mode")
	}
	e := r
	e.x[7] = 0 // as at an entry stop
	if e.fill(&r); e.x[7] != 77 {
		t.Errorf("x7: %d", e.x[7])
	}
}

func TestARM64Calls(t *testing.T) {
	minus1 := uint64(0xffffffff)
	for _, tc := range []struct {
		nr    int64
		args  [6]uint64
		class callClass
		eintr bool
	}{
		{nr: arm64Futex, args: [6]uint64{1: 128}, class: classFutex},
		{nr: arm64Futex, args: [6]uint64{1: 6 | 128}, class: classUnsafe},
		{nr: arm64Ppoll, class: classPoll},
		{nr: arm64Pselect6, class: classRisky},
		{nr: arm64Wait4, args: [6]uint64{9}, class: classWaitOther},
		{nr: arm64Wait4, args: [6]uint64{minus1}, class: classUnsafe},
		{nr: arm64Waitid, args: [6]uint64{1, 9}, class: classWaitOther},
		{nr: arm64EpollPwait, args: [6]uint64{3: 5}, class: classEpollFinite, eintr: true},
		{nr: arm64EpollPwait, args: [6]uint64{3: minus1}, class: classRisky, eintr: true},
		{nr: arm64EpollPwait2, class: classRisky, eintr: true},
		{nr: arm64Nanosleep, class: classRisky},
		{nr: arm64ClockNanosleep, class: classRisky},
		{nr: arm64RtSigsuspend, class: classRisky},
		{nr: arm64RestartSyscall, class: classRisky},
	} {
		if c, ok := classifyARM64(tc.nr, tc.args); !ok || c.class != tc.class || c.plainEINTR != tc.eintr {
			t.Errorf("call %d: %+v, %v", tc.nr, c, ok)
		}
	}
	if c, ok := classifyARM64(63, [6]uint64{}); ok { // read
		t.Errorf("read: %+v", c)
	}
}
