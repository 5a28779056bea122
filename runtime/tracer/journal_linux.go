package tracer

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newJournalFile makes an empty journal (memfd_create(2), Linux 3.17).
func newJournalFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("reaper-tracer-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make journal: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal")
	if err := f.Truncate(journalSize); err != nil {
		f.Close()
		return nil, fmt.Errorf("make journal: %w", err)
	}
	return f, nil
}

// OpenJournal maps the journal behind a file descriptor that came from a [Client]. An empty one is begun.
func OpenJournal(fd int) (*Journal, error) {
	mem, err := unix.Mmap(fd, 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	j := &Journal{page: (*journalPage)(unsafe.Pointer(&mem[0])), mem: mem}
	if j.page.magic == 0 {
		j.page.magic, j.page.regsSize = journalMagic, uint32(unsafe.Sizeof(registers{}))
	}
	if j.page.magic != journalMagic || j.page.regsSize != uint32(unsafe.Sizeof(registers{})) {
		err := fmt.Errorf("%w: journal of another build: %#x, registers of %d bytes", errProtocol, j.page.magic, j.page.regsSize)
		_ = unix.Munmap(mem)
		return nil, err
	}
	return j, nil
}

// Close unmaps the journal.
func (j *Journal) Close() error {
	j.page = nil
	return unix.Munmap(j.mem)
}
