//go:build !linux || !amd64

package tracer

import "errors"

// What attach.go needs to compile. Supported keeps everything here from being called.

const (
	archSupported = false
	restoreAtExit = true
)

const (
	auditArch        = 0
	errRestartNoHand = -514
	errRestartBlock  = -516
	resultEINTR      = -4
	resultECHILD     = -10
	nrRestartSyscall = 0
)

type registers struct{ Cs uint64 }

func (r *registers) native() bool                               { return false }
func (r *registers) nr() int64                                  { return -1 }
func (r *registers) args() [6]uint64                            { return [6]uint64{} }
func (r *registers) result() int64                              { return 0 }
func (r *registers) restartCode(call) (code int64, ok bool)     { return 0, false }
func (r registers) withResult(int64) registers                  { return r }
func (r registers) withCall(nr int64, args [6]uint64) registers { return r }
func (r registers) rewound() registers                          { return r }
func (r *registers) sameCall(*registers) bool                   { return false }
func (r *registers) swapped(*registers, int) bool               { return false }
func recovered(parked, entry, end *registers) registers         { return *end }
func waitidCall(int) (nr int64, args [6]uint64)                 { return 0, args }
func classifyCall(nr int64, args [6]uint64) call                { return call{class: classUnsafe} }

var errNotNative = errors.New("not a native task")
