//go:build !linux

package tracer

type executor struct{}

func newExecutor(options) *executor { return &executor{} }

func (*executor) close() {}

func (*executor) perform(req Request) Report {
	return decline(req, ReasonUnsupportedArch, "ptrace as it is used here exists on Linux only")
}
