package uname

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

func TestGet(t *testing.T) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	got := Get()
	if want := strings.TrimSpace(string(release)); got.Release != want {
		t.Errorf("release %q, want %q", got.Release, want)
	}
	if want := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]; got.Machine != want {
		t.Errorf("machine %q, want %q", got.Machine, want)
	}
}
