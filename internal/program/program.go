// Package program finds the programs that belong to the shim.
package program

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNotFound is returned (wrapped) by Find.
var ErrNotFound = errors.New("no such program")

// Find returns the path of the executable name: beside the executable self (usually os.Executable's answer), else on PATH.
// The error names both places.
func Find(self, name string) (string, error) {
	beside := filepath.Join(filepath.Dir(self), name)
	fi, err := os.Stat(beside)
	if err == nil && (!fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0) {
		err = errors.New("not an executable file")
	}
	if err == nil {
		return beside, nil
	}
	onPath, perr := exec.LookPath(name)
	if perr == nil {
		return filepath.Abs(onPath)
	}
	return "", fmt.Errorf("%w: %s: beside %s: %w; on PATH (%s): %w", ErrNotFound, name, self, err, os.Getenv("PATH"), perr)
}
