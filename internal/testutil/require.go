package testutil

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// RequireEnv is the environment variable that turns a skip because of something that the machine lacks into a failure,
// so that a green run of CI means that everything was tested.
const RequireEnv = "REAPER_TEST_REQUIRE"

// Lacks skips the test because the machine lacks something, or fails it when RequireEnv is 1. The remedy says what to do.
func Lacks(t testing.TB, reason, remedy string) {
	t.Helper()
	msg := fmt.Sprintf("%s. Remedy: %s", reason, remedy)
	if os.Getenv(RequireEnv) == "1" {
		t.Fatalf("%s (a skip without %s=1)", msg, RequireEnv)
	}
	t.Skip(msg)
}

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Lacks(t, "needs root", "run the test as root, in a machine of its own if in doubt")
	}
}

// RepoRoot returns the root of the repository: the nearest directory above the working directory of the test, its
// package's, that holds this module's go.mod.
func RepoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		// Two marks: the modules below integration/tools have a go.mod as well.
		if isFile(filepath.Join(dir, "go.mod")) && isFile(filepath.Join(dir, "Makefile")) {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("find repository: no directory with go.mod and Makefile above the working directory")
		}
		dir = up
	}
}

// FindTool returns the path of a program: one of this project (bin/), one built by make tools (bin/tools/), or one on
// PATH, in that order.
func FindTool(name string) (string, error) {
	root, rerr := RepoRoot() // none on a machine that has only the tests
	if rerr == nil {
		for _, dir := range []string{"bin", "bin/tools", "bin/testprogs"} {
			if p := filepath.Join(root, dir, name); isFile(p) {
				return p, nil
			}
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", errors.Join(fmt.Errorf("find program %s: not in bin, bin/tools or bin/testprogs, and %w", name, err), rerr)
	}
	return p, nil
}

// Tool returns the path of a program as FindTool does, and skips the test when there is none.
func Tool(t testing.TB, name string) string {
	t.Helper()
	p, err := FindTool(name)
	if err != nil {
		Lacks(t, err.Error(), "make build tools testprogs")
	}
	return p
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}
