package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	// densityNamespace is where containerd-stress density works (cmd/containerd-stress/density.go), and also the name of its cgroup.
	densityNamespace = "density"
	// runtimeLabel of a namespace names the runtime of containers that name none, as those of density, which ignores --runtime.
	runtimeLabel = "containerd.io/defaults/runtime"

	stressImage  = "library/alpine:latest"
	critestImage = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
)

var handlers = map[string]string{harness.RuncRuntime: "runc", harness.ReaperRuntime: "reaper"}

// measureStress runs benchmarks of others, in turns.
func measureStress(ctx context.Context, o options) (_ *stressPart, err error) {
	image, err := benchImage()
	if err != nil {
		return nil, err
	}
	registry, err := harness.NewRegistry(image)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: registry, ReadHeaderTimeout: time.Minute}
	defer server.Close()
	go func() { _ = server.Serve(listener) }()

	d, err := harness.Start(ctx, harness.Options{Registry: "http://" + listener.Addr().String(), Network: harness.BridgeNetwork})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	part := &stressPart{Containers: o.stress}
	all := make(map[string]map[string][]float64)
	memories := make(map[string][]memory)
	for range o.stressRounds {
		for _, r := range runtimes {
			m, err := density(ctx, d, r, listener.Addr().String()+"/"+stressImage, o.stress)
			if err != nil {
				return nil, fmt.Errorf("containerd-stress density with %s: %w", r, err)
			}
			memories[r] = append(memories[r], m)
			ms, err := critest(ctx, d, r, o.stress)
			if err != nil {
				return nil, fmt.Errorf("critest -benchmark with %s: %w", r, err)
			}
			if all[r] == nil {
				all[r] = make(map[string][]float64)
			}
			for name, v := range ms {
				all[r][name] = append(all[r][name], v...)
			}
		}
	}
	for _, r := range runtimes {
		c := stressCase{Runtime: r, Benchmarks: make(map[string]float64)}
		c.PSS = int64(benchreport.Median(benchreport.Values(memories[r], func(m memory) float64 { return float64(m.PSS) })))
		c.RSS = int64(benchreport.Median(benchreport.Values(memories[r], func(m memory) float64 { return float64(m.RSS) })))
		for name, v := range all[r] {
			c.Benchmarks[name] = benchreport.Median(v)
		}
		part.Cases = append(part.Cases, c)
	}
	return part, nil
}

// benchImage stands for the image that both pull.
func benchImage() (harness.Image, error) {
	root, err := testutil.RepoRoot()
	if err != nil {
		return harness.Image{}, err
	}
	files, err := harness.TestFiles(root)
	if err != nil {
		return harness.Image{}, err
	}
	for i, f := range files {
		if f.Name == "etc/passwd" { // the user that density has
			files[i].Data = slices.Concat(f.Data, []byte("games:x:12:100::/:/bin/sh\n"))
		}
	}
	layer, err := harness.Layer(files...)
	if err != nil {
		return harness.Image{}, err
	}
	return harness.Image{
		Names: []string{"docker.io/" + stressImage, critestImage}, Layers: [][]byte{layer},
		Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}},
	}, nil
}

// density returns the memory for each container.
func density(ctx context.Context, d *harness.Daemon, runtime, image string, n int) (_ memory, err error) {
	service := d.Client.NamespaceService()
	if err := service.Create(ctx, densityNamespace, map[string]string{runtimeLabel: runtime}); err != nil {
		return memory{}, err
	}
	defer func() { err = errors.Join(err, clearDensity(context.WithoutCancel(ctx), d)) }()
	tool, err := testutil.FindTool("containerd-stress")
	if err != nil {
		return memory{}, fmt.Errorf("%w (make bench builds it)", err)
	}
	cmd := d.Command(ctx, tool, "--address", d.Address, "--snapshotter", d.Snapshotter, "--image", image, "density", "--count", fmt.Sprint(n))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return memory{}, fmt.Errorf("%w: %s", err, said.Bytes())
	}
	return parseDensity(out, n)
}

// parseDensity reads what density tells of n+1 containers, which it takes for n, in kB.
func parseDensity(out []byte, n int) (memory, error) {
	var r struct{ PSS, RSS int64 }
	if err := json.Unmarshal(out, &r); err != nil {
		return memory{}, fmt.Errorf("decode %q: %w", out, err)
	}
	if r.PSS <= 0 || r.RSS <= 0 {
		return memory{}, fmt.Errorf("no memory in %q", out)
	}
	return memory{PSS: r.PSS << 10 / int64(n+1), RSS: r.RSS << 10 / int64(n+1)}, nil
}

// clearDensity removes what density leaves: an image, a namespace and a cgroup.
func clearDensity(ctx context.Context, d *harness.Daemon) error {
	in := namespaces.WithNamespace(ctx, densityNamespace)
	images, err := d.Client.ImageService().List(in)
	for _, i := range images {
		err = errors.Join(err, d.Client.ImageService().Delete(in, i.Name))
	}
	// Its snapshots and content are gone only after garbage collection.
	err = errors.Join(err, testutil.Poll(time.Minute, func() (bool, string) {
		err := d.Client.NamespaceService().Delete(ctx, densityNamespace)
		return err == nil, fmt.Sprint(err)
	}))
	cgroups, gerr := filepath.Glob("/sys/fs/cgroup/*/" + densityNamespace)
	for _, dir := range append(cgroups, "/sys/fs/cgroup/"+densityNamespace) {
		if rerr := os.Remove(dir); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return errors.Join(err, gerr)
}

// critest returns how long each operation took, in ms, by its name.
func critest(ctx context.Context, d *harness.Daemon, runtime string, n int) (map[string][]float64, error) {
	tool, err := testutil.FindTool("critest")
	if err != nil {
		return nil, fmt.Errorf("%w (make bench builds it)", err)
	}
	dir, err := os.MkdirTemp("", "critest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	params := filepath.Join(dir, "params.yaml")
	if err := os.WriteFile(params, fmt.Appendf(nil, "containersNumber: %d\npodsNumber: %d\n", n, n), 0o600); err != nil {
		return nil, err
	}
	endpoint := "unix://" + d.Address
	out, err := d.Command(ctx, tool, "-benchmark", "-runtime-endpoint", endpoint, "-image-endpoint", endpoint, "-runtime-handler", handlers[runtime],
		"-benchmarking-params-file", params, "-benchmarking-output-dir", dir, "-ginkgo.no-color").CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	ms := make(map[string][]float64)
	for _, name := range []string{"container", "pod"} {
		text, rerr := os.ReadFile(filepath.Join(dir, name+"_benchmark_data.json"))
		if rerr != nil {
			return nil, errors.Join(rerr, err, fmt.Errorf("it said: %.4000s", out))
		}
		if perr := parseCritest(text, ms); perr != nil {
			return nil, fmt.Errorf("%s benchmark: %w", name, perr)
		}
	}
	return ms, nil
}

// parseCritest adds the times of a results file (cri-tools, pkg/benchmark, LifecycleBenchmarksResultsSet).
func parseCritest(text []byte, ms map[string][]float64) error {
	var r struct {
		OperationsNames []string
		Datapoints      []struct{ OperationsDurationsNs []int64 }
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	if len(r.Datapoints) == 0 {
		return errors.New("no data")
	}
	for _, p := range r.Datapoints {
		if len(p.OperationsDurationsNs) != len(r.OperationsNames) {
			return fmt.Errorf("%d durations of %d operations", len(p.OperationsDurationsNs), len(r.OperationsNames))
		}
		for i, name := range r.OperationsNames {
			ms[name] = append(ms[name], millis(time.Duration(p.OperationsDurationsNs[i])))
		}
	}
	return nil
}
