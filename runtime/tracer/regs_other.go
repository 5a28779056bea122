//go:build !linux || (!amd64 && !arm64)

package tracer

import "errors"

// What attach.go needs to compile. Supported keeps everything here from being called.

const (
	archSupported = false
	restoreAtExit = true
)

const (
	auditArch          = 0
	restartsBeforeStop = true
	errRestartNoIntr   = -513
	errRestartNoHand   = arm64RestartNoHand
	resultEINTR        = arm64EINTR
	resultECHILD       = -10
	nrNothing          = arm64Getpid
)

type registers = arm64Regs

func recovered(_, entry, end *registers) registers { return arm64Recovered(entry, end) }

const asks = false

func waitidCall(int) (nr int64, args [6]uint64)  { return 0, args }
func classifyCall(nr int64, args [6]uint64) call { return call{class: classUnsafe} }

var errNotNative = errors.New("not a native task")
