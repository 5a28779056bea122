package shim

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
)

const devTmpfs = `{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid"]}`

// bundle makes a bundle with a spec and an image in which links are made, and a directory on PATH with a reaper-init.
func bundle(t *testing.T, spec string, image map[string]string) (*taskapi.CreateTaskRequest, string) {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "rootfs")
	for name, target := range image {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(name, nil, 0o755)
		if target != "" {
			err = errors.Join(os.Remove(name), os.Symlink(target, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, initName), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	return &taskapi.CreateTaskRequest{ID: "c1", Bundle: dir}, filepath.Join(bin, initName)
}

func specOf(t *testing.T, r *taskapi.CreateTaskRequest) *spec {
	t.Helper()
	sp, err := readSpec(r.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	return sp
}

func TestInsertInit(t *testing.T) {
	spec := `{"ociVersion":"1.2.0","process":{"args":["app","-x"],"env":["PATH=/opt:/bin"],"cwd":"/srv","user":{"uid":7},"terminal":true},` +
		`"root":{"path":"rootfs","readonly":true},"mounts":[{"destination":"/proc","type":"proc","source":"proc"},` + devTmpfs + `],` +
		`"linux":{"maskedPaths":["/proc/acpi"],"resources":{"memory":{"limit":9007199254740993}}},"x-unknown":[1,2.5,{"a":null}]}`
	r, init := bundle(t, spec, map[string]string{"bin/app": ""})
	dir, reason, err := insertInit(t.Context(), r, specOf(t, r))
	if err != nil || reason != "" {
		t.Fatalf("reason %q, error %v", reason, err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("directory of the socket: %v, %v", fi, err)
	}
	name := filepath.Join(r.Bundle, "config.json")
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the spec's mode is now %v, %v", fi, err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// Exactly this has changed; numbers that a float64 cannot hold are as they were.
	want := strings.Replace(spec, `"args":["app","-x"]`,
		`"args":["/dev/.reaper/init","-R","/dev/.reaper/report/socket","--","app","-x"]`, 1)
	want = strings.Replace(want, devTmpfs, devTmpfs+
		`,{"destination":"/dev/.reaper/init","type":"bind","source":"`+init+`","options":["bind","ro","nosuid","nodev"]}`+
		`,{"destination":"/dev/.reaper/report","type":"bind","source":"`+dir+`","options":["bind","ro","nosuid","nodev","noexec"]}`, 1)
	if got, want := decode(t, string(data)), decode(t, want); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func decode(t *testing.T, text string) any {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestInsertInitLeavesAlone(t *testing.T) {
	for _, tt := range []struct {
		name        string
		args        string
		image       map[string]string
		annotations map[string]string
		reason      string // "" where it is inserted
	}{
		{name: "pod's own container", args: `["/pause"]`, annotations: map[string]string{sandboxAnnotation: "sandbox"}, reason: "pod's own"},
		{name: "container of a pod", args: `["/app"]`, annotations: map[string]string{sandboxAnnotation: "container"}},
		{name: "tini", args: `["/usr/bin/tini","--","app"]`, reason: "tini"},
		{name: "systemd behind a link", args: `["/sbin/start"]`,
			image: map[string]string{"lib/systemd/systemd": "", "sbin/start": "/lib/systemd/systemd"}, reason: "systemd"},
		{name: "found on PATH", args: `["start"]`,
			image: map[string]string{"lib/systemd/systemd": "", "bin/start": "../lib/systemd/systemd"}, reason: "systemd"},
		{name: "relative to the working directory", args: `["./start"]`,
			image: map[string]string{"srv/s6-svscan": "", "srv/start": "s6-svscan"}, reason: "s6-svscan"},
		{name: "link out of the image", args: `["/start"]`, image: map[string]string{"start": "../../../../../../bin/sh"}},
		{name: "link in a circle", args: `["/a"]`, image: map[string]string{"a": "b", "b": "a"}},
		{name: "no such file", args: `["nothing"]`},
		{name: "an application", args: `["app"]`, image: map[string]string{"bin/app": "", "usr/bin/init": ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := `{"process":{"args":` + tt.args + `,"env":["A=b","PATH=/opt:/bin"],"cwd":"/srv"},"root":{"path":"rootfs"},"mounts":[` + devTmpfs + `]}`
			r, _ := bundle(t, spec, tt.image)
			sp := specOf(t, r)
			sp.Annotations = tt.annotations
			_, reason, err := insertInit(t.Context(), r, sp)
			if err != nil {
				t.Fatal(err)
			}
			if tt.reason == "" && reason != "" || !strings.Contains(reason, tt.reason) {
				t.Errorf("reason %q, want %q", reason, tt.reason)
			}
			data, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			if changed := string(data) != spec; changed != (tt.reason == "") {
				t.Errorf("spec changed: %v", changed)
			}
		})
	}
}

func TestInsertInitRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, spec string
		noInit     bool
		want       []string
	}{
		{name: "no args", spec: `{"process":{"args":[]},"mounts":[` + devTmpfs + `]}`, want: []string{"process.args", "empty"}},
		{name: "no process", spec: `{}`, want: []string{"process.args"}},
		{name: "args of another type", spec: `{"process":{"args":{"a":1}}}`, want: []string{"config.json", "args"}},
		{name: "dev of the image", spec: `{"process":{"args":["/a"]},"mounts":[{"destination":"/proc"}]}`,
			want: []string{"/dev", "tmpfs", "part of the image", AnnotationMode}},
		{name: "dev of the host", spec: `{"process":{"args":["/a"]},"mounts":[{"destination":"/dev/","type":"bind","source":"/dev"}]}`,
			want: []string{"/dev", "tmpfs", `type "bind"`}},
		{name: "no reaper-init", spec: `{"process":{"args":["/a"]},"mounts":[` + devTmpfs + `]}`, noInit: true,
			want: []string{"mode init", initName, "PATH"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, _ := bundle(t, tt.spec, nil)
			if tt.noInit {
				t.Setenv("PATH", t.TempDir())
			}
			_, _, err := insertInit(t.Context(), r, specOf(t, r))
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%v does not say %q", err, part)
				}
			}
			if strings.Contains(tt.name, "dev") && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is no invalid argument", err)
			}
			entries, err := os.ReadDir(r.Bundle)
			if err != nil || len(entries) != 1 {
				t.Errorf("left in the bundle: %v, %v", entries, err)
			}
			if data, err := os.ReadFile(filepath.Join(r.Bundle, "config.json")); err != nil || string(data) != tt.spec {
				t.Errorf("spec changed to %s, %v", data, err)
			}
		})
	}
}
