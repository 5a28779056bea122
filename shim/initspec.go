package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/reaper-shim/reaper/internal/program"
)

const (
	// initName is the file name of the init that mode "init" starts.
	initName = "reaper-init"
	// initDir is where it is in the container. /dev is a tmpfs that the OCI runtime makes, so that nothing is written to the
	// image's file system.
	initDir    = "/dev/.reaper"
	initPath   = initDir + "/init"
	reportDir  = initDir + "/report"
	reportName = "socket"

	sandboxAnnotation = "io.kubernetes.cri.container-type" // of CRI; the value of a pod's own container is "sandbox"
)

// knownInits are programs that want to be PID 1 and reap, by file name.
var knownInits = []string{
	"catatonit", "docker-init", "dumb-init", "init", "my_init", "openrc-init", "reaper-init", "runit", "runit-init",
	"s6-linux-init", "s6-svscan", "systemd", "tini", "tini-static",
}

// initSpec is what is read and changed of a spec for mode "init". Everything else of it is kept as it is.
type initSpec struct {
	all     map[string]json.RawMessage
	process map[string]json.RawMessage
	mounts  []json.RawMessage

	args []string
	env  []string
	cwd  string
	root string // of the bundle's own root file system
}

// specMount is a mount of the spec (OCI runtime-spec, config.md#mounts).
type specMount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type,omitempty"`
	Source      string   `json:"source,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// insertInit makes reaper-init the first process of the container, with the entrypoint as its argument, and returns the
// directory on the host in which its socket has to be. Where it does not belong, the reason says why and the bundle is left as
// it is.
func insertInit(ctx context.Context, r *taskapi.CreateTaskRequest, bundled *spec) (socketDir, reason string, err error) {
	if bundled.Annotations[sandboxAnnotation] == "sandbox" {
		return "", "the pod's own container", nil
	}
	sp, err := parseInitSpec(bundled.data)
	if err != nil {
		return "", "", fmt.Errorf("mode %s: parse %s: %w", ModeInit, bundled.file, err)
	}
	if found := sp.knownInit(ctx, r); found != "" {
		return "", fmt.Sprintf("the entrypoint is an init itself (%s)", found), nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", "", fmt.Errorf("find %s: %w", initName, err)
	}
	init, err := program.Find(self, initName)
	if err != nil {
		return "", "", fmt.Errorf("mode %s: %w", ModeInit, err)
	}
	if err := sp.checkDev(); err != nil {
		return "", "", err
	}
	socketDir = filepath.Join(r.Bundle, "reaper")
	// Everybody in the container may find the socket; who may talk is decided when they connect.
	if err := os.Mkdir(socketDir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", "", fmt.Errorf("mode %s: %w", ModeInit, err)
	}
	if err := sp.rewrite(init, socketDir); err != nil {
		return "", "", err
	}
	if err := sp.write(bundled.file); err != nil {
		return "", "", fmt.Errorf("mode %s: write %s: %w", ModeInit, bundled.file, err)
	}
	return socketDir, "", nil
}

func parseInitSpec(data []byte) (*initSpec, error) {
	sp := &initSpec{}
	if err := json.Unmarshal(data, &sp.all); err != nil {
		return nil, err
	}
	var root struct {
		Path string `json:"path"`
	}
	if err := errors.Join(
		field(sp.all, "process", &sp.process), field(sp.all, "mounts", &sp.mounts), field(sp.all, "root", &root),
	); err != nil {
		return nil, err
	}
	if err := errors.Join(
		field(sp.process, "args", &sp.args), field(sp.process, "env", &sp.env), field(sp.process, "cwd", &sp.cwd),
	); err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	if len(sp.args) == 0 {
		return nil, fmt.Errorf("process.args is empty: %w", errdefs.ErrInvalidArgument)
	}
	sp.root = root.Path
	return sp, nil
}

// field decodes a member of an object, if it is there.
func field(in map[string]json.RawMessage, key string, into any) error {
	raw, ok := in[key]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// setField encodes a member of an object.
func setField(in map[string]json.RawMessage, key string, from any) error {
	raw, err := json.Marshal(from)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	in[key] = raw
	return nil
}

// checkDev makes sure that the mount points can be made without a write to the image.
func (sp *initSpec) checkDev() error {
	dev := "part of the image"
	for _, raw := range sp.mounts {
		var m specMount
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("mode %s: mounts: %w", ModeInit, err)
		}
		if path.Clean(m.Destination) != "/dev" {
			continue
		}
		if m.Type == "tmpfs" {
			return nil
		}
		dev = "a mount of type " + quote(m.Type)
	}
	return fmt.Errorf("mode %s puts %s below /dev, which has to be a tmpfs and is %s in this container: "+
		"choose another %s: %w", ModeInit, initName, dev, AnnotationMode, errdefs.ErrInvalidArgument)
}

func (sp *initSpec) rewrite(init, socketDir string) error {
	sp.args = append([]string{initPath, "-R", reportDir + "/" + reportName, "--"}, sp.args...)
	for _, m := range []specMount{
		{Destination: initPath, Type: "bind", Source: init, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		{Destination: reportDir, Type: "bind", Source: socketDir, Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"}},
	} {
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		sp.mounts = append(sp.mounts, raw)
	}
	if err := setField(sp.process, "args", sp.args); err != nil {
		return err
	}
	return errors.Join(setField(sp.all, "process", sp.process), setField(sp.all, "mounts", sp.mounts))
}

// write replaces the spec as a whole, so that there is never a half of it.
func (sp *initSpec) write(name string) error {
	data, err := json.Marshal(sp.all)
	if err != nil {
		return err
	}
	old, err := os.Stat(name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".config-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(old.Mode().Perm())
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// knownInit returns the name of the known init that the entrypoint is, or "". /sbin/init is often a symbolic link: it is
// followed inside the image, which is mounted for that, read-only, as the wrapped service has not done it yet.
func (sp *initSpec) knownInit(ctx context.Context, r *taskapi.CreateTaskRequest) string {
	if name := path.Base(sp.args[0]); slices.Contains(knownInits, name) {
		return name
	}
	if len(r.Rootfs) == 0 {
		root := sp.root
		if !filepath.IsAbs(root) {
			root = filepath.Join(r.Bundle, root)
		}
		return sp.knownInitIn(root)
	}
	var found string
	err := mount.WithReadonlyTempMount(ctx, mount.FromProto(r.Rootfs), func(root string) error {
		found = sp.knownInitIn(root)
		return nil
	})
	if err != nil {
		// No reason to fail: an init runs below reaper-init too, but is not PID 1 then.
		log.G(ctx).WithField("id", r.ID).WithError(err).Warn("cannot look whether the entrypoint is an init itself")
	}
	return found
}

func (sp *initSpec) knownInitIn(root string) string {
	for _, candidate := range sp.candidates() {
		// Links of the image lead to nowhere outside of root.
		full, err := fs.RootPath(root, candidate)
		if err != nil {
			continue
		}
		fi, err := os.Lstat(full)
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		if name := filepath.Base(full); slices.Contains(knownInits, name) {
			return name
		}
		return ""
	}
	return ""
}

// candidates lists where execvp(3) would look for the entrypoint.
func (sp *initSpec) candidates() []string {
	name := sp.args[0]
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join("/", sp.cwd, name)
		}
		return []string{name}
	}
	search := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, kv := range sp.env {
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = value
		}
	}
	var all []string
	for _, dir := range strings.Split(search, ":") {
		if !path.IsAbs(dir) {
			dir = path.Join("/", sp.cwd, dir)
		}
		all = append(all, path.Join(dir, name))
	}
	return all
}
