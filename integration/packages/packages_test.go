//go:build packages

package packages

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/internal/testutil"
)

var programs = []string{"containerd-shim-reaper-v2", "reaper-tracer", "reaper-init", "reaper-install", "reaperctl", "reaper-exporter"}

// build makes everything into a directory of its own.
func build(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"dpkg", "dpkg-deb", "tar"} {
		testutil.Tool(t, tool)
	}
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	dist := t.TempDir()
	cmd := exec.Command("make", "-j2", "deb", "rpm", "release", "DIST="+dist)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	return dist
}

// files returns the SHA-256 sum of each file in a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		sums[e.Name()] = fmt.Sprintf("%x", sha256.Sum256(text))
	}
	return sums
}

// one returns the path of the only file that matches.
func one(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v, want one file", pattern, found, err)
	}
	return found[0]
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// putToUse has an installation below root look like one whose handler is in use: reaper-install does not take it out. It returns the file
// with the handler.
func putToUse(t *testing.T, root string) (dropIn string) {
	t.Helper()
	dropIn = filepath.Join(root, "etc/containerd/conf.d/reaper.toml")
	if err := os.WriteFile(dropIn, []byte("# written by reaper-install\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stub := []byte("#!/bin/sh\n[ \"$*\" = uninstall ] || exit 9\nexit 3\n")
	if err := os.WriteFile(filepath.Join(root, "usr/bin/reaper-install"), stub, 0o755); err != nil {
		t.Fatal(err)
	}
	return dropIn
}

func TestPackages(t *testing.T) {
	dist := build(t)

	t.Run("reproducible", func(t *testing.T) {
		if testing.Short() {
			t.Skip("-short: everything would be built a second time")
		}
		first, second := files(t, dist), files(t, build(t))
		if len(first) < 9 {
			t.Errorf("files %v, want an archive, two packages, five bills of materials and the sums", first)
		}
		for name, sum := range first {
			if second[name] != sum {
				t.Errorf("%s differs from one build to the next", name)
			}
		}
	})

	t.Run("sums", func(t *testing.T) {
		sums := files(t, dist)
		text, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		n := 0
		for lines.Scan() {
			sum, name, _ := strings.Cut(lines.Text(), "  ")
			if n++; sums[name] != sum {
				t.Errorf("%s: %s, want %s", name, sum, sums[name])
			}
		}
		if n != 6 {
			t.Errorf("%d sums, want the archive's and five bills' of materials", n)
		}
	})

	t.Run("archive", func(t *testing.T) {
		dir := t.TempDir()
		archive := one(t, dist, "*.tar.gz")
		run(t, "tar", "-C", dir, "-xf", archive)
		top := filepath.Join(dir, strings.TrimSuffix(filepath.Base(archive), ".tar.gz"))
		version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(top), "containerd-shim-reaper-"), "-linux-amd64")
		for _, p := range programs {
			flag := "--version"
			if p == "containerd-shim-reaper-v2" || p == "reaper-tracer" {
				flag = "-v"
			}
			if out := run(t, filepath.Join(top, "bin", p), flag); !strings.Contains(out, version) {
				t.Errorf("%s %s: %q, want version %q", p, flag, out, version)
			}
		}
		for _, name := range []string{"LICENSE", "README.md", "docs/installing.md", "contrib/containerd/reaper-v3.toml"} {
			if _, err := os.Stat(filepath.Join(top, name)); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("bills of materials", func(t *testing.T) {
		for _, p := range []string{"containerd-shim-reaper-v2", "reaper-tracer", "reaper-install", "reaperctl", "reaper-exporter"} {
			text, err := os.ReadFile(one(t, dist, p+"-*.cdx.json"))
			if err != nil {
				t.Fatal(err)
			}
			var bom struct {
				Format     string `json:"bomFormat"`
				Components []struct {
					Name string `json:"name"`
				} `json:"components"`
			}
			if err := json.Unmarshal(text, &bom); err != nil || bom.Format != "CycloneDX" {
				t.Errorf("%s: %v, format %q", p, err, bom.Format)
			}
			names := []string{}
			for _, c := range bom.Components {
				names = append(names, c.Name)
			}
			want := map[string]string{
				"containerd-shim-reaper-v2": "github.com/containerd/containerd/v2", "reaper-tracer": "golang.org/x/sys", "reaper-install": "k8s.io/cri-api",
				"reaperctl": "github.com/spf13/cobra", "reaper-exporter": "github.com/prometheus/client_golang",
			}[p]
			if !slices.Contains(names, want) {
				t.Errorf("%s: components %v, want %s among them", p, names, want)
			}
		}
	})

	t.Run("deb", func(t *testing.T) {
		testutil.Root(t)
		deb := one(t, dist, "*.deb")
		list := run(t, "dpkg-deb", "--contents", deb)
		for _, p := range programs {
			if !strings.Contains(list, "./usr/bin/"+p+"\n") {
				t.Errorf("no %s in\n%s", p, list)
			}
		}
		for line := range strings.Lines(list) {
			if f := strings.Fields(line); f[1] != "root/root" && f[1] != "0/0" {
				t.Errorf("owner of %s", line)
			}
		}
		root := t.TempDir()
		for _, dir := range []string{"var/lib/dpkg/updates", "var/lib/dpkg/info", "etc/containerd/conf.d"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		dpkg := func(args ...string) (string, error) {
			cmd := exec.Command("dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-not-root", "--log=/dev/null"}, args...)...)
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		if out, err := dpkg("--install", deb); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		run(t, filepath.Join(root, "usr/bin/containerd-shim-reaper-v2"), "-v")
		unit, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/reaper-exporter.service"))
		if err != nil || !bytes.Contains(unit, []byte("\nExecStart=/usr/bin/reaper-exporter\n")) {
			t.Errorf("unit of the exporter: %v, want one that starts the package's program:\n%s", err, unit)
		}
		// With the handler still there, and nothing that could take it out, the programs stay.
		dropIn := putToUse(t, root)
		if out, err := dpkg("--remove", "containerd-shim-reaper"); err == nil {
			t.Errorf("removed while in use: %s", out)
		}
		if _, err := os.Stat(filepath.Join(root, "usr/bin/containerd-shim-reaper-v2")); err != nil {
			t.Errorf("the shim went in spite of the refusal: %v", err)
		}
		if err := os.Remove(dropIn); err != nil {
			t.Fatal(err)
		}
		if out, err := dpkg("--remove", "containerd-shim-reaper"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if _, err := os.Stat(filepath.Join(root, "usr/bin/containerd-shim-reaper-v2")); !os.IsNotExist(err) {
			t.Errorf("left: %v", err)
		}
	})

	t.Run("rpm", func(t *testing.T) {
		testutil.Root(t)
		testutil.Tool(t, "rpm")
		file := one(t, dist, "*.rpm")
		root := t.TempDir()
		// Scripts of a package run in the root that it is installed to.
		for _, dir := range []string{"bin", "etc/containerd/conf.d"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		run(t, "cp", "/bin/busybox", filepath.Join(root, "bin"))
		for _, name := range []string{"sh", "grep"} {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
		const name = "containerd-shim-reaper"
		rpm := func(args ...string) (string, error) {
			out, err := exec.Command("rpm", append([]string{"--root", root}, args...)...).CombinedOutput()
			return string(out), err
		}
		must := func(args ...string) {
			t.Helper()
			if out, err := rpm(args...); err != nil {
				t.Fatalf("rpm %v: %v\n%s", args, err, out)
			}
		}
		left := func(p string) bool {
			_, err := os.Lstat(filepath.Join(root, p))
			return err == nil
		}
		must("--install", "--nodeps", file) // of /bin/sh, which no package has brought
		must("--verify", "--nodeps", name)
		for _, p := range programs {
			if !left("usr/bin/" + p) {
				t.Errorf("no %s", p)
			}
		}
		run(t, filepath.Join(root, "usr/bin/containerd-shim-reaper-v2"), "-v")
		// With the handler still there, and nothing that could take it out, the programs stay. An upgrade does not ask.
		dropIn := putToUse(t, root)
		if out, err := rpm("--erase", name); err == nil || !left("usr/bin/containerd-shim-reaper-v2") {
			t.Errorf("removed while in use: %v, %s", err, out)
		}
		must("--upgrade", "--force", "--nodeps", file)
		must("--verify", "--nodeps", name)
		if err := os.Remove(dropIn); err != nil {
			t.Fatal(err)
		}
		must("--erase", name)
		for _, p := range []string{
			"usr/bin/containerd-shim-reaper-v2", "usr/lib/systemd/system/reaper-exporter.service", "usr/share/" + name, "usr/share/doc/" + name,
		} {
			if left(p) {
				t.Errorf("%s is left", p)
			}
		}
	})
}
