package harness

import (
	"fmt"
	"os"
	"path/filepath"
)

// Scratch makes a directory for a program that starts daemons of its own. The environment of that program has to contain env,
// and its cgroups should be below the one that is named after the directory. What it leaves behind is cleared when the test
// process is gone, or with Clear.
func Scratch() (dir, env string, err error) {
	clearStale()
	dir, err = newDir()
	if err != nil {
		return "", "", fmt.Errorf("make scratch directory: %w", err)
	}
	return dir, EnvMark + "=" + dir, nil
}

// AdoptMounts says that processes in the mount namespace of pid belong to the directory.
func AdoptMounts(dir string, pid int) error {
	namespace, err := mountNS(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, mountNSFile), []byte(namespace), 0o600)
}

// Clear kills what belongs to the directory, and removes it with its cgroups. It returns a LeakError that names the processes.
func Clear(dir string) error {
	var leaks LeakError
	for _, pid := range marked(dir) {
		leaks.Processes = append(leaks.Processes, fmt.Sprintf("%d %s", pid, cmdline(pid)))
	}
	clearDir(dir)
	if len(leaks.Processes) > 0 {
		return &leaks
	}
	return nil
}
