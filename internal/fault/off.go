//go:build !reaperfault

// Package fault makes the evidence wrong on purpose, so that a test can show that it would notice. It does nothing, and costs
// nothing, unless the program is built with the tag reaperfault; with it, the environment variable REAPER_FAULT names the fault.
package fault

// InvertSession makes rule S say the opposite.
const InvertSession = false

// ForgetsFork reports whether a fork log is to forget the fork of this child.
func ForgetsFork(pid int) bool { return false }
