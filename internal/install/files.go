package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// tempPrefix marks what an interrupted run may leave. No name with it ends in ".toml", which an import could match.
const tempPrefix = ".reaper-install-"

func tempName(path, suffix string) string {
	return filepath.Join(filepath.Dir(path), tempPrefix+filepath.Base(path)+suffix)
}

// writeTemp writes a file beside path and returns its name. Its content is on the disk when it returns.
func (in *Installer) writeTemp(path string, mode fs.FileMode, content io.Reader) (_ string, err error) {
	name := tempName(path, ".new")
	in.step("write " + name)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(name)))
		}
	}()
	if _, err := io.Copy(f, content); err != nil {
		return "", err
	}
	// Not at the creation: the umask is somebody else's.
	if err := f.Chmod(mode); err != nil {
		return "", err
	}
	return name, f.Sync()
}

// rename is rename(2), on the disk when it returns.
func (in *Installer) rename(from, to string) error {
	in.step("rename " + from + " to " + to)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// remove is unlink(2), on the disk when it returns. What is not there is removed.
func (in *Installer) remove(path string) error {
	in.step("remove " + path)
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// sweep removes what interrupted runs have left in these directories, but for a journal and its old files.
func (in *Installer) sweep(dirs ...string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if len(e.Name()) > len(tempPrefix) && e.Name()[:len(tempPrefix)] == tempPrefix {
				if err := in.remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// readOptional returns nil and no error where there is no file.
func readOptional(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && b == nil {
		b = []byte{}
	}
	return b, err
}

// change is what becomes of one file of the configuration.
type change struct {
	path string
	// old and new are the contents, nil for no file.
	old, new []byte
}

func (c change) nothing() bool {
	return (c.old == nil) == (c.new == nil) && bytes.Equal(c.old, c.new)
}

// journal says how to go back. It exists from before the first file of the configuration is replaced until containerd is
// known to run with the new ones.
type journal struct {
	// Replaced have their old content beside them, in a file with the suffix ".old".
	Replaced []string `json:"replaced,omitempty"`
	// Created were not there.
	Created []string `json:"created,omitempty"`
}

// goLive makes the changes, in their order. After an error nothing has changed, or rollBack has to be called.
func (in *Installer) goLive(changes []change) error {
	var j journal
	for _, c := range changes {
		if c.old == nil {
			j.Created = append(j.Created, c.path)
			continue
		}
		j.Replaced = append(j.Replaced, c.path)
		old := tempName(c.path, ".old")
		if err := in.remove(old); err != nil {
			return err
		}
		in.step("link " + c.path + " to " + old)
		if err := os.Link(c.path, old); err != nil {
			return fmt.Errorf("keep the old %s: %w", c.path, err)
		}
		if err := syncDir(filepath.Dir(old)); err != nil {
			return err
		}
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	temp, err := in.writeTemp(in.journalPath(), 0o600, bytes.NewReader(text))
	if err != nil {
		return err
	}
	// All that needs space on the disk is written before anything is replaced.
	temps := make([]string, len(changes))
	for i, c := range changes {
		if c.new == nil {
			continue
		}
		mode := fs.FileMode(0o644)
		if fi, err := os.Stat(c.path); err == nil {
			mode = fi.Mode().Perm()
		}
		if temps[i], err = in.writeTemp(c.path, mode, bytes.NewReader(c.new)); err != nil {
			return err
		}
		if err := keepOwner(c.path, temps[i]); err != nil {
			return err
		}
	}
	if err := in.rename(temp, in.journalPath()); err != nil {
		return err
	}
	for i, c := range changes {
		if c.new == nil {
			err = in.remove(c.path)
		} else {
			err = in.rename(temps[i], c.path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func keepOwner(path, temp string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("owner of %s: no stat", path)
	}
	return os.Chown(temp, int(st.Uid), int(st.Gid))
}

// rollBack undoes what goLive did, in this process or in an earlier one. It reports whether there was a journal.
func (in *Installer) rollBack() (bool, error) {
	text, err := readOptional(in.journalPath())
	if err != nil || text == nil {
		return false, err
	}
	var j journal
	if err := json.Unmarshal(text, &j); err != nil {
		return true, fmt.Errorf("read journal %s: %w", in.journalPath(), err)
	}
	// Backwards: the main file stops importing a file before that one goes.
	for i := len(j.Replaced) - 1; i >= 0; i-- {
		err := in.rename(tempName(j.Replaced[i], ".old"), j.Replaced[i])
		// An interrupted rollBack may have been here before.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return true, fmt.Errorf("roll back %s: %w", j.Replaced[i], err)
		}
	}
	for i := len(j.Created) - 1; i >= 0; i-- {
		if err := in.remove(j.Created[i]); err != nil {
			return true, fmt.Errorf("roll back %s: %w", j.Created[i], err)
		}
	}
	return true, in.remove(in.journalPath())
}

// commit forgets how to go back.
func (in *Installer) commit() error {
	if err := in.remove(in.journalPath()); err != nil {
		return err
	}
	return in.sweep(in.configDirs()...)
}

func (in *Installer) journalPath() string { return tempName(in.ConfigPath, ".journal") }

func (in *Installer) configDirs() []string {
	return []string{filepath.Dir(in.ConfigPath), filepath.Dir(in.mainPath()), filepath.Dir(in.DropIn)}
}

// mainPath is the file behind ConfigPath, which may be a symbolic link.
func (in *Installer) mainPath() string {
	if p, err := filepath.EvalSymlinks(in.ConfigPath); err == nil {
		return p
	}
	return in.ConfigPath
}
