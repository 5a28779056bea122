// Package installer tests reaper-install on nodes that are a directory each, with a real containerd that has that directory
// as its root. All code is in tests.
package installer
