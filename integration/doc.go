// Package integration tests the shim end to end: a real containerd, a real runc, real containers. See the package harness
// for how they are run, and the Makefile (test-integration) for how to run them.
package integration
