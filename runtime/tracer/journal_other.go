//go:build !linux

package tracer

import (
	"errors"
	"os"
)

var errNoJournal = errors.New("there are journals on Linux only")

func newJournalFile() (*os.File, error) { return nil, errNoJournal }

// OpenJournal fails here.
func OpenJournal(int) (*Journal, error) { return nil, errNoJournal }

// Close does nothing here.
func (j *Journal) Close() error { return nil }

// Recover fails here.
func Recover(*Journal) error { return errNoJournal }
