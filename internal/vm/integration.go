package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Programs of this machine that the integration tests use and busybox does not have in full.
var programs = []string{"nsenter", "ps", "criu", "tar"}

// modules in the order of their dependence: the first for the containers, all others for CRIU.
var modules = []string{
	"fs/overlayfs/overlay.ko",
	"net/unix/unix_diag.ko", "net/ipv4/inet_diag.ko", "net/ipv4/tcp_diag.ko", "net/ipv4/udp_diag.ko", "net/ipv4/raw_diag.ko",
	"net/packet/af_packet_diag.ko", "net/netlink/netlink_diag.ko",
	"crypto/crc32c_generic.ko", "lib/libcrc32c.ko", "net/netfilter/nfnetlink.ko", "net/netfilter/nf_tables.ko",
}

// integration brings the tests of ./integration with containerd, runc and all that "make build tools testprogs" has made. They
// are of this machine's architecture, and so is the virtual one.
func (b *builder) integration(ctx context.Context) error {
	if b.arch != runtime.GOARCH {
		return fmt.Errorf("the tools in bin/ are for %s", runtime.GOARCH)
	}
	if err := b.test(ctx, "integration"); err != nil {
		return err
	}
	for _, name := range []string{"go.mod", "Makefile"} { // what marks the root of the repository
		if err := copyFile(filepath.Join(b.root, name), b.path(filepath.Join(guestSrc, name))); err != nil {
			return err
		}
	}
	if err := os.CopyFS(b.path(guestSrc+"/contrib"), os.DirFS(filepath.Join(b.root, "contrib"))); err != nil {
		return err
	}
	skip := map[string]bool{"golangci-lint": true}
	for _, dir := range []string{"bin", "bin/tools", "bin/testprogs"} {
		files, err := os.ReadDir(filepath.Join(b.root, dir))
		if err != nil {
			return fmt.Errorf("%w (make build tools testprogs)", err)
		}
		for _, f := range files {
			from := filepath.Join(b.root, dir, f.Name())
			if info, err := os.Stat(from); err != nil || !info.Mode().IsRegular() || skip[f.Name()] {
				continue
			}
			if err := b.program(ctx, from, filepath.Join(guestSrc, dir, f.Name())); err != nil {
				return err
			}
		}
	}
	for _, name := range programs {
		from, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("%w (make deps-vm)", err)
		}
		if err := b.program(ctx, from, filepath.Join("/usr/local/bin", name)); err != nil {
			return err
		}
	}
	for i, name := range modules {
		to := fmt.Sprintf("/modules/%02d-%s", i, filepath.Base(name))
		if err := copyFile(filepath.Join(b.deb.modules, "kernel", name), b.path(to)); err != nil {
			return err
		}
	}
	return b.system()
}

// program copies a program with the libraries that it is linked with.
func (b *builder) program(ctx context.Context, from, guest string) error {
	if err := copyFile(from, b.path(guest)); err != nil {
		return err
	}
	// "name => /path (address)", "/path/of/the/loader (address)"; ldd fails for static programs.
	out, err := output(ctx, "", []string{"LC_ALL=C"}, "ldd", from)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(out) {
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			err := copyFile(word, b.path(word))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
