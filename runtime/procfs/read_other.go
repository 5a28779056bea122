//go:build !linux

package procfs

import (
	"errors"
	"io"
)

const direct = false

func readDirect(string, []byte) ([]byte, error) { return nil, errors.ErrUnsupported }

func openDirect(string) (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
