//go:build !amd64 || !linux

package tracer

const archSupported = false
