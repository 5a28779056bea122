package main

import (
	"slices"
	"testing"
)

func TestDebianArchives(t *testing.T) {
	const targets = `http://mirror.example/debian-security/ bookworm-security
http://mirror.example/debian/ bookworm
http://mirror.example/debian/ bookworm-updates
https://other.example/node/ nodistro
https://other.example/sdk/ bookworm
http://mirror.example/debian/ bookworm
`
	want := []string{"http://mirror.example/debian-security/ bookworm-security", "http://mirror.example/debian/ bookworm"}
	if got := debianArchives(targets, "bookworm"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := debianArchives(targets, "trixie"); got != nil {
		t.Errorf("got %q of a release that is not there", got)
	}
}

func TestDependency(t *testing.T) {
	got, err := dependency("Package: linux-image-arm64\nDepends: linux-image-6.1.0-9-arm64 (= 6.1.27-1), other\n")
	if want := "linux-image-6.1.0-9-arm64=6.1.27-1"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if got, err := dependency("Package: x\nDepends: y\n"); err == nil {
		t.Errorf("got %q of a package that depends on no kernel", got)
	}
}
