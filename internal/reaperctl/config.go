package reaperctl

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/reaper-shim/reaper/internal/node"
)

// containerdConfig is what of containerd's configuration matters here. CRI is one plugin until 1.7, and two from 2.0 on.
type containerdConfig struct {
	Imports []string `toml:"imports"`
	Plugins map[string]struct {
		Containerd struct {
			DefaultRuntimeName string                `toml:"default_runtime_name"`
			Runtimes           map[string]criRuntime `toml:"runtimes"`
		} `toml:"containerd"`
	} `toml:"plugins"`
}

type criRuntime struct {
	RuntimeType          string   `toml:"runtime_type"`
	RuntimePath          string   `toml:"runtime_path"`
	PodAnnotations       []string `toml:"pod_annotations"`
	ContainerAnnotations []string `toml:"container_annotations"`
}

// criPlugins are the names of the plugin with the runtimes: 2.0 and later, before.
var criPlugins = []string{"io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"}

// maxImports bounds how many files are read, and with that a circle of imports.
const maxImports = 64

// ourAnnotations is what a handler has to let through.
const ourAnnotations = "io.containerd.reaper."

// handlers reads the daemon's configuration and returns CRI's runtimes by name. It knows of imports what containerd does: globs,
// relative to the importing file; what is read later wins.
func handlers(root, file string) (map[string]criRuntime, error) {
	found := make(map[string]criRuntime)
	files, seen := []string{file}, map[string]bool{}
	for len(files) > 0 && len(seen) < maxImports {
		name := files[0]
		files = files[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		data, err := os.ReadFile(root + name)
		if err != nil {
			return nil, fmt.Errorf("read containerd's configuration: %w", err)
		}
		var c containerdConfig
		if err := toml.Unmarshal(data, &c); err != nil {
			return nil, fmt.Errorf("containerd's configuration %s: %w", name, err)
		}
		for _, plugin := range criPlugins {
			for handler, r := range c.Plugins[plugin].Containerd.Runtimes {
				found[handler] = r
			}
		}
		for _, pattern := range c.Imports {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(name), pattern)
			}
			matches, err := filepath.Glob(root + pattern)
			if err != nil {
				return nil, fmt.Errorf("containerd's configuration %s: imports %q: %w", name, pattern, err)
			}
			for _, m := range matches {
				files = append(files, strings.TrimPrefix(m, root))
			}
		}
	}
	return found, nil
}

// configChecks looks for CRI handlers of the runtime. A node without CRI needs none.
func configChecks(d node.Daemon) []Check {
	const name = "containerd's configuration"
	all, err := handlers(d.Root, d.Config)
	if err != nil {
		return []Check{ok(name, "%s", err).but(statusNote, "there is no handler for Kubernetes without it: README, \"containerd (CRI)\"")}
	}
	var ours []string
	for handler, r := range all {
		if r.RuntimeType == runtimeName || filepath.Base(r.RuntimePath) == shimBinary || filepath.Base(r.RuntimeType) == shimBinary {
			ours = append(ours, handler)
		}
	}
	slices.Sort(ours)
	if len(ours) == 0 {
		return []Check{ok(name, "%s has no CRI handler with runtime_type = '%s'", d.Config, runtimeName).
			but(statusNote, "needed for Kubernetes, not for nerdctl and ctr: README, \"containerd (CRI)\"")}
	}
	var checks []Check
	for _, handler := range ours {
		r := all[handler]
		c := ok(name, "%s: handler %q, annotations allowed", d.Config, handler)
		var missing []string
		if !allows(r.PodAnnotations) {
			missing = append(missing, "pod_annotations")
		}
		if !allows(r.ContainerAnnotations) {
			missing = append(missing, "container_annotations")
		}
		if len(missing) > 0 {
			c.Found = fmt.Sprintf("%s: handler %q, without %s", d.Config, handler, strings.Join(missing, " and "))
			c = c.but(statusFail, "set %s = ['%s*'] and restart containerd: annotations of pods do nothing without", strings.Join(missing, " and "), ourAnnotations)
		}
		checks = append(checks, c)
	}
	return checks
}

// allows reports whether a list of patterns lets all of our annotations through (containerd, internal/cri/util, GetPassthroughAnnotations).
func allows(patterns []string) bool {
	for _, annotation := range []string{"mode", "grace", "reapUnproven", "reapOwn"} {
		if !slices.ContainsFunc(patterns, func(p string) bool {
			match, err := path.Match(p, ourAnnotations+annotation)
			return err == nil && match
		}) {
			return false
		}
	}
	return true
}

// version reads the first two numbers of a version.
func version(s string) (major, minor int, known bool) {
	n, _ := fmt.Sscanf(s, "%d.%d", &major, &minor)
	return major, minor, n == 2
}

// programVersion asks a shim for its version, "" where it does not say: a line "  Version:  …" (containerd, pkg/shim).
func programVersion(ctx context.Context, file string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, file, "-v").Output()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if v, found := strings.CutPrefix(strings.TrimSpace(line), "Version:"); found {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
