//go:build !linux

package pidfd

import (
	"errors"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// Supported reports whether this kernel tells enough.
func Supported() bool { return false }

// Open is not supported here.
func Open(procfs.HostPID) (int, error) { return -1, errors.ErrUnsupported }

// Close does nothing.
func Close(int) {}

// Look is not supported here.
func Look(int) (Facts, error) { return Facts{}, errors.ErrUnsupported }
