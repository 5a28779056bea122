//go:build !linux

package tracer

// Harden does nothing here.
func Harden() {}
