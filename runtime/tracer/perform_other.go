//go:build !linux

package tracer

func perform(req Request) Report {
	return decline(req, ReasonUnsupportedArch, "ptrace as it is used here exists on Linux only")
}
