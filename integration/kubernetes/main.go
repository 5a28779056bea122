// kubernetes runs a cluster of one node on a private containerd and shows what becomes of pods with a leaky readiness probe under
// runc.v2 and under our runtime; the results go to docs/kubernetes.md. "kubernetes install" has the DaemonSet of contrib/ install the
// runtime on a node with systemd; the results go to docs/installing.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/reaper-shim/reaper/integration/compare"
	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	page   = "docs/kubernetes.md"
	target = "e2e-kubernetes"

	// pidsLimit is podPidsLimit of the second half.
	pidsLimit = 30
)

func main() {
	if slices.Equal(os.Args[1:], []string{"install"}) {
		compare.Main(installTarget, runInstall)
		return
	}
	compare.Main(target, run)
}

func run(ctx context.Context) (err error) {
	root, err := testutil.RepoRoot()
	if err != nil {
		return err
	}
	for _, tool := range append(components, "kubectl", "containerd-shim-reaper-v2", "reaper-tracer", "goodinit") {
		if _, err := testutil.FindTool(tool); err != nil {
			return err
		}
	}
	logs := filepath.Join(root, "bin", target)
	if err := errors.Join(os.RemoveAll(logs), os.MkdirAll(logs, 0o755)); err != nil {
		return err
	}
	if err := addAddresses(); err != nil {
		return err
	}
	machine, err := benchreport.ThisMachine()
	if err != nil {
		return err
	}
	d, err := harness.Start(ctx, harness.Options{Network: harness.LoopbackNetwork})
	if err != nil {
		return err
	}
	c := &cluster{controlPlane: controlPlane{dir: filepath.Join(d.Dir, "kubernetes"), logs: logs, command: d.Command}, d: d}
	defer func() {
		err = errors.Join(err, c.close(), d.Close(), os.WriteFile(filepath.Join(logs, "containerd.log"), []byte(d.Log()), 0o644))
	}()
	fmt.Printf("start a cluster, logs in %s\n", logs)
	if err := c.up(ctx); err != nil {
		return err
	}
	r := result{Machine: machine}
	if r.Versions, err = c.versions(ctx, root); err != nil {
		return err
	}
	for _, step := range []struct {
		title string
		run   func(context.Context, *result) error
	}{
		{"RuntimeClass, kubectl exec, annotations", c.execAndAnnotations},
		{"kinds of probes, restart policies", c.probeKinds},
		{"readiness probes that leak, for two minutes", c.leakyProbes},
		{"eviction and deletion", c.evictAndDelete},
		{fmt.Sprintf("podPidsLimit: %d", pidsLimit), c.limited},
	} {
		fmt.Printf("== %s\n", step.title)
		if err := step.run(ctx, &r); err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
	}
	r.Machine.LoadEnd = benchreport.Load()
	return benchreport.RenewFile(filepath.Join(root, page), target, r.Markdown())
}
