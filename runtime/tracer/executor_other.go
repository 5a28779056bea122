//go:build !linux

package tracer

import "time"

type executor struct{}

func newExecutor(options) *executor { return &executor{} }

func (*executor) close() {}

func (*executor) perform(req Request) Report {
	return decline(req, ReasonUnsupportedArch, "ptrace as it is used here exists on Linux only")
}

// awaitInput does not wait: the read of the request does.
func awaitInput(int, time.Duration) (bool, error) { return true, nil }
