package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// archive packs the tree into a cpio archive of the format "newc", which is what the kernel unpacks at boot
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func (b *builder) archive(name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	c := &cpio{w: w}
	err = filepath.WalkDir(b.tree(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(b.tree(), path)
		if err != nil || rel == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return c.add(rel, path, info)
	})
	if err != nil {
		return fmt.Errorf("pack the initramfs: %w", err)
	}
	// The kernel opens it before devtmpfs is there.
	if err := c.header("dev/console", 0o020600, 0, 5, 1); err != nil {
		return err
	}
	if err := c.header("TRAILER!!!", 0, 0, 0, 0); err != nil {
		return err
	}
	return w.Flush()
}

type cpio struct {
	w   io.Writer
	ino int
	off int64
}

func (c *cpio) add(name, path string, info fs.FileInfo) error {
	const dir, file, link = 0o040000, 0o100000, 0o120000
	perm := int64(info.Mode().Perm())
	switch {
	case info.IsDir():
		return c.header(name, dir|perm, 0, 0, 0)
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := c.header(name, link|0o777, int64(len(to)), 0, 0); err != nil {
			return err
		}
		return c.data([]byte(to))
	case info.Mode().IsRegular():
		if err := c.header(name, file|perm, info.Size(), 0, 0); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(c.w, f)
		if err != nil {
			return err
		}
		if n != info.Size() {
			return fmt.Errorf("%s: %d bytes where %d were", path, n, info.Size())
		}
		c.off += n
		return c.pad()
	}
	return fmt.Errorf("%s: a file of type %v", path, info.Mode().Type())
}

func (c *cpio) header(name string, mode, size int64, major, minor int) error {
	c.ino++
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	return c.data([]byte(h))
}

func (c *cpio) data(b []byte) error {
	if _, err := c.w.Write(b); err != nil {
		return err
	}
	c.off += int64(len(b))
	return c.pad()
}

func (c *cpio) pad() error {
	var zero [3]byte
	n := -c.off & 3
	c.off += n
	_, err := c.w.Write(zero[:n])
	return err
}
