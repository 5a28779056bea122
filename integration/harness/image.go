package harness

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	// TestImage holds busybox and the programs of integration/testprogs, all in /bin.
	TestImage = "localhost/reaper/test:latest"
	// PauseImage is the sandbox image of pods. Its program reaps, as that of Kubernetes does.
	PauseImage = "localhost/reaper/pause:latest"
)

// file is an entry of an image's only layer. A directory ends in "/".
type file struct {
	name string
	mode int64
	data []byte
	link string // of a symbolic link
}

func (d *Daemon) importImages(ctx context.Context) error {
	test, err := testFiles(d.root)
	if err != nil {
		return err
	}
	pause, err := os.ReadFile(filepath.Join(d.root, "bin/testprogs/goodinit"))
	if err != nil {
		return fmt.Errorf("%w (make testprogs)", err)
	}
	archives := make([][]byte, 0, 2)
	for _, img := range []struct {
		name  string
		files []file
		cmd   []string
	}{
		{TestImage, test, []string{"/bin/sh"}},
		{PauseImage, []file{{name: "pause", mode: 0o755, data: pause}}, []string{"/pause"}},
	} {
		archive, err := ociArchive(img.name, img.files, img.cmd)
		if err != nil {
			return fmt.Errorf("make image %s: %w", img.name, err)
		}
		archives = append(archives, archive)
	}
	for _, ns := range []string{Namespace, CRINamespace} {
		for _, archive := range archives {
			if err := d.importImage(namespaces.WithNamespace(ctx, ns), archive); err != nil {
				return fmt.Errorf("import into %s: %w", ns, err)
			}
		}
	}
	return nil
}

func (d *Daemon) importImage(ctx context.Context, archive []byte) error {
	imported, err := d.Client.Import(ctx, bytes.NewReader(archive))
	if err != nil {
		return err
	}
	for _, img := range imported {
		if err := client.NewImage(d.Client, img).Unpack(ctx, d.Snapshotter); err != nil {
			return fmt.Errorf("unpack %s: %w", img.Name, err)
		}
	}
	return nil
}

// testFiles is a root file system of busybox and our programs.
func testFiles(root string) ([]file, error) {
	busybox, err := testutil.FindTool("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w (make deps)", err)
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	files := []file{
		{name: "bin/", mode: 0o755}, {name: "dev/", mode: 0o755}, {name: "etc/", mode: 0o755}, {name: "proc/", mode: 0o755},
		{name: "root/", mode: 0o700}, {name: "sys/", mode: 0o755}, {name: "tmp/", mode: 0o1777},
		{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")},
		{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\nuser:x:1000:\n")},
		{name: "bin/busybox", mode: 0o755, data: data},
	}
	ours, err := filepath.Glob(filepath.Join(root, "bin/testprogs/*"))
	if err != nil || len(ours) == 0 {
		return nil, fmt.Errorf("no programs in bin/testprogs (make testprogs): %w", err)
	}
	for _, p := range ours {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: "bin/" + filepath.Base(p), mode: 0o755, data: data})
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			files = append(files, file{name: "bin/" + applet, link: "busybox"})
		}
	}
	return files, nil
}

// ociArchive returns an OCI image layout in a tar archive, with one layer and one platform: the machine's.
func ociArchive(name string, files []file, cmd []string) ([]byte, error) {
	var layer bytes.Buffer
	if err := writeTar(&layer, files); err != nil {
		return nil, err
	}
	var blobs []file
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		dgst := digest.FromBytes(data)
		blobs = append(blobs, file{name: "blobs/sha256/" + dgst.Encoded(), mode: 0o644, data: data})
		return ocispec.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(data))}
	}
	marshal := func(mediaType string, v any) (ocispec.Descriptor, error) {
		data, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return blob(mediaType, data), nil
	}
	platform := ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	layerDesc := blob(ocispec.MediaTypeImageLayer, layer.Bytes())
	config, err := marshal(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platform,
		Config:   ocispec.ImageConfig{Cmd: cmd, Env: []string{"PATH=/bin"}, WorkingDir: "/"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDesc.Digest}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := marshal(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layerDesc},
	})
	if err != nil {
		return nil, err
	}
	manifest.Platform = &platform
	manifest.Annotations = map[string]string{images.AnnotationImageName: name}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return nil, err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = writeTar(&out, append(blobs,
		file{name: ocispec.ImageLayoutFile, mode: 0o644, data: layout},
		file{name: ocispec.ImageIndexFile, mode: 0o644, data: index}))
	return out.Bytes(), err
}

func writeTar(w io.Writer, files []file) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	return tw.Close()
}
