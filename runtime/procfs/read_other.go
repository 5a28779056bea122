//go:build !linux

package procfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

const direct = false

type blocking bool

const (
	atOnce   blocking = false
	mayBlock blocking = true
)

func readDirect(string, []byte, blocking) ([]byte, error) { return nil, errors.ErrUnsupported }

func openDirect(string, blocking) (io.ReadCloser, error) { return nil, errors.ErrUnsupported }

func readDirents(uintptr, Mark, func([]byte, Mark) bool) error { return errors.ErrUnsupported }

// DirectFS returns the files below dir.
func DirectFS(dir string) fs.FS { return os.DirFS(dir) }
