//go:build !linux

package tracer

func perform(req Request, _ options) Report {
	return decline(req, ReasonUnsupportedArch, "ptrace as it is used here exists on Linux only")
}
