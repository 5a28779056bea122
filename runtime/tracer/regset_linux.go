//go:build linux && !amd64

package tracer

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ntARMSystemCall is NT_ARM_SYSTEM_CALL (include/uapi/linux/elf.h), an int.
const ntARMSystemCall = 0x404

func (t *thread) regset(req int, kind uintptr, p unsafe.Pointer, size int) error {
	t.iov.Base = (*byte)(p)
	t.iov.SetLen(size)
	_, err := t.ptrace(req, kind, uintptr(unsafe.Pointer(&t.iov)))
	return err
}

func (t *thread) getRegs(r *registers) error {
	if err := t.regset(unix.PTRACE_GETREGSET, ntPRStatus, unsafe.Pointer(&r.x), arm64RegsSize); err != nil {
		return err
	}
	if t.iov.Len != arm64RegsSize {
		return fmt.Errorf("%w: %d bytes of registers", errNotNative, t.iov.Len)
	}
	if err := t.regset(unix.PTRACE_GETREGSET, ntARMSystemCall, unsafe.Pointer(&r.sysno), 4); err != nil {
		return fmt.Errorf("get number of system call: %w", err)
	}
	r.ret = 0
	return nil
}

// setRegs writes number and arguments one after the other, and this process may be killed in between. The thread then makes its own call
// on the arguments of the one that is swapped in, which every call that is exchanged refuses without effect. It never makes
// waitid on its own arguments: that would write to where the third of them points, whatever it returns (kernel/exit.c).
func (t *thread) setRegs(r *registers) error {
	if swappedIn(r.nr()) {
		if err := t.setArgs(r); err != nil {
			return err
		}
		return t.setNumber(r)
	}
	if err := t.setNumber(r); err != nil {
		return err
	}
	return t.setArgs(r)
}

func (t *thread) setNumber(r *registers) error {
	if err := t.regset(unix.PTRACE_SETREGSET, ntARMSystemCall, unsafe.Pointer(&r.sysno), 4); err != nil {
		return fmt.Errorf("set number of system call: %w", err)
	}
	return nil
}

func (t *thread) setArgs(r *registers) error {
	return t.regset(unix.PTRACE_SETREGSET, ntPRStatus, unsafe.Pointer(&r.x), arm64RegsSize)
}
