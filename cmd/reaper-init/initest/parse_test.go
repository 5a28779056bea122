package initest

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestParse runs everything that reads text under AddressSanitizer and UBSan.
func TestParse(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "parse_check")
	// A result of undefined behaviour would be a message and 0.
	out, err := exec.Command("gcc", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
		"-o", bin, "testdata/parse_check.c").CombinedOutput()
	if err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	out, err = exec.Command(bin).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Fatalf("%v\n%s", err, out)
	}
}
