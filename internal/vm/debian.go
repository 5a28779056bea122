package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// debian is what was taken from Debian's packages.
type debian struct {
	kernel  string // the image that boots
	modules string // directory of the modules
	tree    string // files of the other packages
}

// packages fetches the kernel and other packages and unpacks them below dir. Packages that are there already are not
// fetched again. apt works on lists and a status of its own: the machine's stay as they are.
func (c *config) packages(ctx context.Context, dir string, others ...string) (*debian, error) {
	version := c.version
	if version == "" {
		version = "newest"
	}
	dir = filepath.Join(dir, c.release+"-"+version)
	d := &debian{tree: filepath.Join(dir, "tree")}
	if err := d.find(); err == nil {
		return d, nil
	}
	// The first run in a tree: apt is called in it before aptRoot has put anything there.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	archives := []string{c.mirror + "/debian " + c.release, c.mirror + "/debian-security " + c.release + "-security"}
	if c.mirror == "" {
		// What apt knows of its own sources, whether it has fetched their lists or not.
		targets, err := output(ctx, dir, []string{"LC_ALL=C"}, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
		if err != nil {
			return nil, err
		}
		if archives = debianArchives(targets, c.release); len(archives) == 0 {
			return nil, fmt.Errorf("apt has no archive of Debian %s: name one with -mirror", c.release)
		}
	}
	apt, err := c.aptRoot(dir, archives)
	if err != nil {
		return nil, err
	}
	env := []string{"APT_CONFIG=" + apt, "LC_ALL=C"}
	fmt.Println("fetch package lists of Debian", c.release, c.arch)
	if _, err := output(ctx, dir, env, "apt-get", "-q", "update"); err != nil {
		return nil, err
	}
	meta := "linux-image-" + c.arch
	if c.version != "" {
		meta += "=" + c.version
	}
	show, err := output(ctx, dir, env, "apt-cache", "show", "--no-all-versions", meta)
	if err != nil {
		return nil, err
	}
	kernel, err := dependency(show)
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", meta, err)
	}
	fmt.Println("fetch", kernel, strings.Join(others, " "))
	if _, err := output(ctx, dir, env, "apt-get", append([]string{"-q", "download", kernel}, others...)...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return nil, err
	}
	for _, deb := range debs {
		if _, err := output(ctx, dir, nil, "dpkg-deb", "-x", deb, d.tree); err != nil {
			return nil, err
		}
		if err := os.Remove(deb); err != nil {
			return nil, err
		}
	}
	return d, d.find()
}

// dependency returns the real kernel package of a meta package, as apt-get takes it.
func dependency(show string) (string, error) {
	for line := range strings.Lines(show) {
		deps, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		// linux-image-6.1.0-9-arm64 (= 6.1.27-1)
		for dep := range strings.SplitSeq(deps, ",") {
			name, version, _ := strings.Cut(strings.TrimSpace(dep), " ")
			if !strings.HasPrefix(name, "linux-image-") {
				continue
			}
			if v, ok := strings.CutPrefix(strings.Trim(version, "()"), "= "); ok {
				name += "=" + v
			}
			return name, nil
		}
	}
	return "", errors.New("it depends on no kernel")
}

func (d *debian) find() error {
	for pattern, to := range map[string]*string{"boot/vmlinuz-*": &d.kernel, "lib/modules/*": &d.modules} {
		found, err := filepath.Glob(filepath.Join(d.tree, pattern))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("%d files %s in the packages, want 1", len(found), pattern)
		}
		*to = found[0]
	}
	return nil
}

// debianArchives finds the archives of a release and of its security updates among lines "URI suite".
func debianArchives(targets, release string) []string {
	var out []string
	for line := range strings.Lines(targets) {
		uri, suite, _ := strings.Cut(strings.TrimSpace(line), " ")
		path := strings.TrimSuffix(uri, "/")
		if suite == release && strings.HasSuffix(path, "/debian") || suite == release+"-security" && strings.HasSuffix(path, "/debian-security") {
			out = append(out, uri+" "+suite)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c *config) aptRoot(dir string, archives []string) (conf string, err error) {
	for _, sub := range []string{"apt/lists/partial", "apt/cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	const key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
	sources := ""
	for _, a := range archives {
		sources += "deb " + key + a + " main\n"
	}
	files := map[string]string{
		"status":  "",
		"sources": sources,
		"conf": fmt.Sprintf(`Dir::State "%[1]s";
Dir::State::status "%[1]s/status";
Dir::State::lists "%[1]s/lists";
Dir::Cache "%[1]s/cache";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::sourcelist "%[1]s/sources";
APT::Architecture "%[2]s";
APT::Architectures "%[2]s";
APT::Sandbox::User "root";
Acquire::Languages "none";
`, filepath.Join(dir, "apt"), c.arch),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, "apt", name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "apt", "conf"), nil
}

// output runs a program and returns what it says; the error has what it complained of.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
