package tracer

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const goarch = runtime.GOARCH

func (t *thread) rawRegset(req, kind int, iov *unix.Iovec) error {
	_, err := t.ptrace(req, uintptr(kind), uintptr(unsafe.Pointer(iov)))
	return err
}

func wordAt(b []byte, i int) *uint64 { return (*uint64)(unsafe.Pointer(&b[8*i])) }

// rewind has the thread issue its interrupted call anew with the arguments that it had at first, past the kernel's own way of
// restarting it.
func (t *thread) rewind() error {
	var buf [8 * regWords]byte
	gpr, err := t.words(unix.PTRACE_GETREGSET, ntPRStatus, buf[:])
	if err != nil {
		return err
	}
	rewindRegs(gpr)
	_, err = t.words(unix.PTRACE_SETREGSET, ntPRStatus, gpr)
	return err
}
