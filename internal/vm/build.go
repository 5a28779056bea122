package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

//go:embed init.sh
var initScript []byte

// builder makes the file system of the machine.
type builder struct {
	*config
	m    machine
	root string // of the repository
	work string
	deb  *debian

	tests strings.Builder // shell commands
}

// Where things are in the machine.
const (
	guestSrc     = "/src" // packages with their testdata, in the layout of the repository
	guestVictims = "/victims"
)

func (b *builder) tree() string { return filepath.Join(b.work, "tree") }

func (b *builder) path(guest string) string { return filepath.Join(b.tree(), guest) }

func (b *builder) memory() string {
	switch {
	case b.config.memory != "":
		return b.config.memory
	case b.suite == "integration":
		return "3G"
	}
	return "1G"
}

// unit builds the tests of the packages with what they need.
func (b *builder) unit(ctx context.Context) error {
	args := append([]string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}"}, strings.Fields(b.pkgs)...)
	list, err := output(ctx, b.root, b.goEnv(), "go", args...)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(b.path(guestVictims), 0o755); err != nil {
		return err
	}
	for dir := range strings.SplitSeq(strings.TrimSpace(list), "\n") {
		rel, err := filepath.Rel(b.root, dir)
		if err != nil {
			return err
		}
		if err := b.test(ctx, rel); err != nil {
			return err
		}
		if err := b.victims(ctx, dir); err != nil {
			return err
		}
	}
	worker := filepath.Join(b.path(guestVictims), "reaper-tracer")
	if _, err := output(ctx, b.root, b.goEnv(), "go", "build", "-o", worker, "./cmd/reaper-tracer"); err != nil {
		return err
	}
	return b.system()
}

func (b *builder) goEnv() []string {
	return []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + b.arch}
}

// test builds the tests of one package and has them run.
func (b *builder) test(ctx context.Context, rel string) error {
	fmt.Println("build the tests of", rel)
	guest := filepath.Join(guestSrc, rel)
	bin := filepath.Join(guest, "test")
	if err := os.MkdirAll(b.path(guest), 0o755); err != nil {
		return err
	}
	if _, err := output(ctx, b.root, b.goEnv(), "go", "test", "-c", "-o", b.path(bin), "./"+rel); err != nil {
		return err
	}
	from := filepath.Join(b.root, rel, "testdata")
	if _, err := os.Stat(from); err == nil {
		if err := os.CopyFS(b.path(filepath.Join(guest, "testdata")), os.DirFS(from)); err != nil {
			return err
		}
	}
	fmt.Fprintf(&b.tests, "run %s -test.v -test.parallel=1 -test.timeout=%v", guest, b.timeout)
	if b.run != "" {
		fmt.Fprintf(&b.tests, " -test.run='%s'", b.run)
	}
	b.tests.WriteString("\n")
	return nil
}

// victims compiles the C programs of a package's tests.
func (b *builder) victims(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "testdata", "*.c"))
	if err != nil {
		return err
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".c")
		flags := append([]string{"-static", "-O1", "-pthread"}, b.m.cflags...)
		if strings.HasSuffix(name, "32") {
			if b.arch != "amd64" {
				continue
			}
			flags = []string{"-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector", "-O1"}
		}
		out := filepath.Join(b.path(guestVictims), name)
		if _, err := output(ctx, dir, nil, b.m.gcc, append(flags, "-o", out, file)...); err != nil {
			return fmt.Errorf("%w (make deps-vm installs the compiler)", err)
		}
	}
	return nil
}

// system adds what every machine has: busybox, init, and what there is to be run.
func (b *builder) system() error {
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"} {
		if err := os.MkdirAll(b.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(filepath.Join(b.deb.tree, "bin/busybox"), b.path("bin/busybox")); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":  "root:x:0:\n",
		"etc/hosts":  "127.0.0.1 localhost\n",
		"tests":      b.tests.String(),
		"settings": fmt.Sprintf("export REAPER_TEST_SLOW=%d REAPER_TEST_VICTIMS=%s REAPER_CRASH_KILLS=%d REAPER_TRANSPARENCY_REQUESTS=%d\n",
			b.slow, guestVictims, b.kills, b.reaps),
	} {
		if err := os.WriteFile(b.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(b.path("init"), initScript, 0o755)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
