package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	packageName  = "containerd-shim-reaper"
	exporterUnit = "reaper-exporter.service"
	exporterPort = "9918"
)

// debianPackage: the package on a node without the DaemonSet, its exporter as a service, and its removal.
func (c *installation) debianPackage(ctx context.Context) error {
	deb, err := c.buildDeb(ctx)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/var/lib/dpkg/updates", "/var/lib/dpkg/info", "/var/tmp", "/etc/systemd/system/" + exporterUnit + ".d"} {
		if err := os.MkdirAll(c.m.path(dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"/var/lib/dpkg/status": "",
		// What a service depends on otherwise sets up the whole machine, sysctls included.
		"/etc/systemd/system/" + exporterUnit + ".d/test.conf": "[Unit]\nDefaultDependencies=no\n",
	} {
		if err := os.WriteFile(c.m.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	const file = "/images/package.deb"
	if err := os.WriteFile(c.m.path(file), deb, 0o644); err != nil {
		return err
	}
	if _, err := c.m.run(ctx, "dpkg", "--install", file); err != nil {
		return err
	}
	out, err := c.m.run(ctx, "reaper-install", "install")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "restarted containerd") {
		return fmt.Errorf("reaper-install: %s, want a restart", out)
	}
	if _, err := c.m.run(ctx, "reaperctl", "doctor"); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "apply", "-f", filepath.Join(c.root, "contrib/containerd/runtimeclass.yaml")); err != nil {
		return err
	}
	running, err := c.startPod(ctx, "package-pod", handler)
	if err != nil {
		return err
	}
	if err := errors.Join(c.leak(ctx, running.pod), c.waitZombies(ctx, running.pod, 0)); err != nil {
		return err
	}
	if err := c.step(ctx, "the Debian package installed, then `reaper-install install`",
		"`reaperctl doctor` is content; orphans in a pod with `runtimeClassName: reaper` go", 1); err != nil {
		return err
	}
	if _, err := c.m.run(ctx, "systemctl", "enable", "--now", exporterUnit); err != nil {
		return err
	}
	if err := c.wait(ctx, "the exporter", startTimeout, func() (bool, string) {
		text, err := metrics(ctx, nodeAddress)
		return err == nil && strings.Contains(text, infoOf(running.pod)), fmt.Sprintf("%v: %.3000s", err, text)
	}); err != nil {
		return err
	}
	if err := c.step(ctx, "`systemctl enable --now reaper-exporter`", "it serves the pod's metrics, with the restrictions of its unit", 0); err != nil {
		return err
	}
	if out, err := c.m.run(ctx, "dpkg", "--remove", packageName); err == nil || !strings.Contains(out, "still in use") {
		return fmt.Errorf("dpkg --remove while a pod is running: %v, %s", err, out) //nolint:errorlint // nil when it has removed the package
	}
	if err := errors.Join(c.untouched(ctx, running), c.leak(ctx, running.pod), c.waitZombies(ctx, running.pod, 0)); err != nil {
		return err
	}
	if _, err := c.m.run(ctx, "systemctl", "is-active", exporterUnit); err != nil {
		return err
	}
	if err := c.step(ctx, "`dpkg --remove`, the pod running", "it fails and removes nothing; the pod is untouched and its orphans go, the exporter runs on", 0); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "delete", "pod", running.pod); err != nil {
		return err
	}
	if _, err := c.m.run(ctx, "dpkg", "--remove", packageName); err != nil {
		return err
	}
	if out, err := c.m.run(ctx, "/bin/sh", "-c", "ls /usr/bin | grep reaper; systemctl is-active "+exporterUnit); err == nil || strings.TrimSpace(out) != "inactive" {
		return fmt.Errorf("left on the node: %s", out)
	}
	if err := c.gone(ctx); err != nil {
		return err
	}
	return c.step(ctx, "the pod deleted, `dpkg --remove`", "programs and service are gone, containerd's configuration is the one before", 1)
}

// buildDeb makes the package.
func (c *installation) buildDeb(ctx context.Context) ([]byte, error) {
	dist := c.file("dist")
	cmd := c.command(ctx, "make", "deb", "DIST="+dist)
	cmd.Dir = c.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make deb: %w: %s", err, bytes.TrimSpace(out))
	}
	found, err := filepath.Glob(filepath.Join(dist, "*.deb"))
	if err != nil || len(found) != 1 {
		return nil, errors.Join(fmt.Errorf("make deb: %q, want one package", found), err)
	}
	return os.ReadFile(found[0])
}

// infoOf is the line of metrics that says which mode is in force for a pod of the tests.
func infoOf(pod string) string {
	return fmt.Sprintf(`reaper_container_info{container="main",effective_mode="assist",mode="assist",namespace="default",pod="%s"} 1`+"\n", pod)
}

// metrics returns what an exporter says.
func metrics(ctx context.Context, address string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+":"+exporterPort+"/metrics", http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Timeout: testutil.Slow(10 * time.Second)}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", req.URL, resp.Status)
	}
	return string(text), err
}
