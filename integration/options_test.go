package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestBadConfigurationFailsCreate: the error names the key, the value and what is allowed, and nothing is left behind.
func TestBadConfigurationFailsCreate(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	for name, tt := range map[string]struct {
		annotations map[string]string
		options     string
		want        []string
	}{
		"unknown mode": {map[string]string{"io.containerd.reaper.mode": "asist"}, "",
			[]string{"io.containerd.reaper.mode", `"asist"`, "assist", "observe", "off"}},
		"malformed grace": {map[string]string{"io.containerd.reaper.grace": "soon"}, "",
			[]string{"io.containerd.reaper.grace", `"soon"`, "500ms"}},
		"negative grace": {map[string]string{"io.containerd.reaper.grace": "-1s"}, "",
			[]string{"io.containerd.reaper.grace", `"-1s"`, "from 0s"}},
		"option mode":    {nil, `mode = "x"`, []string{"mode", `"x"`, "assist", "observe", "off"}},
		"unknown option": {nil, `moed = "off"`, []string{"moed", "mode"}},
	} {
		t.Run(name, func(t *testing.T) {
			id := "bad-" + strings.ReplaceAll(name, " ", "-")
			before := d.Processes()
			mounts := d.Mounts()
			spec := harness.Spec{ID: id, Runtime: runtime, Args: []string{"/bin/pause1"}, Annotations: tt.annotations}
			if tt.options != "" {
				spec.Options = &runtimeoptions.Options{ConfigBody: []byte(tt.options)}
			}
			c, err := d.Create(t.Context(), spec)
			if err == nil {
				removeAtEnd(t, c)
				t.Fatal("created")
			}
			if !errdefs.IsInvalidArgument(err) && tt.options == "" {
				t.Errorf("%v is no invalid argument", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				var left []string
				if now := d.Processes(); len(now) > len(before) {
					left = append(left, fmt.Sprintf("processes %v, were %v", now, before))
				}
				if now := d.Mounts(); len(now) > len(mounts) {
					left = append(left, fmt.Sprintf("mounts %v, were %v", now, mounts))
				}
				for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
					if dir := filepath.Join(root, d.CgroupParent, id); exists(dir) {
						left = append(left, dir)
					}
				}
				bundles, _ := filepath.Glob(filepath.Join(d.Dir, "state", "io.containerd.runtime.v2.task", "*", id))
				left = append(left, bundles...)
				return len(left) == 0, strings.Join(left, "; ")
			})
		})
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// TestOptionForms: the same option in every form in which clients pass options.
func TestOptionForms(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	root := filepath.Join(t.TempDir(), "runc-root")
	file := filepath.Join(t.TempDir(), "options.toml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf("Root = %q\nmode = 'observe'\n", root)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		options  any
		wantRoot string
	}{
		"none":           {nil, ""},
		"a runc message": {&runcoptions.Options{Root: root}, root},
		"a TOML table":   {&runtimeoptions.Options{ConfigBody: []byte(fmt.Sprintf("Root = %q", root))}, root},
		"a TOML file":    {&runtimeoptions.Options{ConfigPath: file}, root},
	} {
		t.Run(name, func(t *testing.T) {
			c := run(t, d, harness.Spec{Runtime: runtime, Options: tt.options, Args: []string{"/bin/pause1"}})
			// runc keeps the state of a container below its root: the option has reached it.
			if tt.wantRoot != "" && !exists(filepath.Join(tt.wantRoot, d.Client.DefaultNamespace(), c.ID())) {
				t.Errorf("runc's state is not in %s", tt.wantRoot)
			}
			if res, err := c.Exec(t.Context(), "/bin/sh", "-c", "exit 4"); err != nil || res.Code != 4 {
				t.Errorf("exec: exit code %d, %v; want 4", res.Code, err)
			}
		})
	}
}

// TestInfo: containerd runs -info with the options before it uses a runtime for the first time.
func TestInfo(t *testing.T) {
	d := daemon(t)
	reaper(t)
	info := func(opts any) (*types.RuntimeInfo, error) {
		var in []byte
		if opts != nil {
			msg, err := typeurl.MarshalAnyToProto(opts)
			if err != nil {
				t.Fatal(err)
			}
			if in, err = proto.Marshal(msg); err != nil {
				t.Fatal(err)
			}
		}
		cmd := d.Command(t.Context(), "containerd-shim-reaper-v2", "-info")
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.Output()
		if err != nil {
			var exit *osexec.ExitError
			if errors.As(err, &exit) {
				return nil, fmt.Errorf("%w: %s", err, exit.Stderr)
			}
			return nil, err
		}
		var i types.RuntimeInfo
		return &i, proto.Unmarshal(out, &i)
	}
	for name, opts := range map[string]any{
		"none":         nil,
		"runc message": &runcoptions.Options{SystemdCgroup: true},
		"TOML table":   &runtimeoptions.Options{ConfigBody: []byte("SystemdCgroup = true\nmode = 'observe'")},
	} {
		i, err := info(opts)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if i.GetName() != harness.ReaperRuntime || i.GetFeatures() == nil {
			t.Errorf("%s: name %q, features %v", name, i.GetName(), i.GetFeatures() != nil)
		}
		if opts == nil {
			continue
		}
		v, err := typeurl.UnmarshalAny(i.GetOptions())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if o, ok := v.(*runcoptions.Options); !ok || !o.SystemdCgroup {
			t.Errorf("%s: options %v, want those of runc", name, v)
		}
	}
	if _, err := info(&runtimeoptions.Options{ConfigBody: []byte("mode = 'x'")}); err == nil || !strings.Contains(err.Error(), "mode") {
		t.Errorf("a bad mode: %v, want an error that names it", err)
	}
	out, err := d.Command(context.Background(), "containerd-shim-reaper-v2", "-v").Output()
	if err != nil || !strings.Contains(string(out), "containerd-shim-reaper-v2:\n  Version:") {
		t.Errorf("-v: %q, %v", out, err)
	}
}
