package program

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	self := filepath.Join(dir, "shim")
	t.Setenv("PATH", other)
	_, err := Find(self, "prog")
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), other) {
		t.Errorf("nowhere: %v", err)
	}
	put := func(dir string, mode os.FileMode) string {
		name := filepath.Join(dir, "prog")
		os.Remove(name)
		if err := os.WriteFile(name, nil, mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	onPath := put(other, 0o755)
	if got, err := Find(self, "prog"); got != onPath || err != nil {
		t.Errorf("on PATH: %s, %v", got, err)
	}
	put(dir, 0o644)
	if got, _ := Find(self, "prog"); got != onPath {
		t.Errorf("one that cannot be executed is taken: %s", got)
	}
	beside := put(dir, 0o755)
	if got, err := Find(self, "prog"); got != beside || err != nil {
		t.Errorf("beside: %s, %v", got, err)
	}
}
