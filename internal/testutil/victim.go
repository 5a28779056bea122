package testutil

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// VictimsEnv names a directory with the C programs of all testdata directories, compiled statically and named without the
// ".c", and with reaper-tracer, for machines that have no compiler.
const VictimsEnv = "REAPER_TEST_VICTIMS"

// Victim returns the path of the C program testdata/name.c of the package under test, compiled. It skips the test where
// there is no compiler.
func Victim(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv(VictimsEnv); dir != "" {
		return filepath.Join(dir, name)
	}
	cc := Tool(t, "gcc")
	bin := filepath.Join(t.TempDir(), name)
	cmd := exec.Command(cc, "-static", "-pthread", "-O1", "-Wall", "-Werror", "-o", bin, filepath.Join("testdata", name+".c"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile %s.c: %v: %s", name, err, out)
	}
	return bin
}
