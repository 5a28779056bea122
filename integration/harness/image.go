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

// File is an entry of a layer.
type File struct {
	Name string // relative; that of a directory ends in "/"
	Mode int64  // as of chmod(2)
	Data []byte
	Link string // target of a symbolic link, or with Hard of a hard link, which is relative to the root
	Hard bool
}

// Image is an image for this machine's platform.
type Image struct {
	// Names are references with a tag: all name the same manifest.
	Names  []string
	Layers [][]byte // tar archives, as Layer makes them
	Config ocispec.ImageConfig
	// Platforms makes the names those of an index of these platforms, which may lack the machine's. What others get is a
	// file that names them.
	Platforms []ocispec.Platform
}

// Layer returns the files as a layer.
func Layer(files ...File) ([]byte, error) {
	var layer bytes.Buffer
	if err := writeTar(&layer, files); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}

// Archives returns TestImage and PauseImage as archives; root is the repository's.
func Archives(root string) ([][]byte, error) {
	test, err := TestFiles(root)
	if err != nil {
		return nil, err
	}
	pause, err := os.ReadFile(filepath.Join(root, "bin/testprogs/goodinit"))
	if err != nil {
		return nil, fmt.Errorf("%w (make testprogs)", err)
	}
	archives := make([][]byte, 0, 2)
	for _, img := range []struct {
		name  string
		files []File
		cmd   []string
	}{
		{TestImage, test, []string{"/bin/sh"}},
		{PauseImage, []File{{Name: "pause", Mode: 0o755, Data: pause}}, []string{"/pause"}},
	} {
		archive, err := ociArchive(img.name, img.files, img.cmd)
		if err != nil {
			return nil, fmt.Errorf("make image %s: %w", img.name, err)
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

func (d *Daemon) importImages(ctx context.Context) error {
	archives, err := Archives(d.root)
	if err != nil {
		return err
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

// TestFiles returns a root file system of busybox and the programs of integration/testprogs; root is the repository's.
func TestFiles(root string) ([]File, error) {
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
	files := []File{
		{Name: "bin/", Mode: 0o755}, {Name: "dev/", Mode: 0o755}, {Name: "etc/", Mode: 0o755}, {Name: "proc/", Mode: 0o755},
		{Name: "root/", Mode: 0o700}, {Name: "sys/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777},
		{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nuser:x:1000:\n")},
		{Name: "bin/busybox", Mode: 0o755, Data: data},
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
		files = append(files, File{Name: "bin/" + filepath.Base(p), Mode: 0o755, Data: data})
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			files = append(files, File{Name: "bin/" + applet, Link: "busybox"})
		}
	}
	return files, nil
}

// ociArchive returns an OCI image layout in a tar archive, with one layer and one platform: the machine's.
func ociArchive(name string, files []File, cmd []string) ([]byte, error) {
	layer, err := Layer(files...)
	if err != nil {
		return nil, err
	}
	img := Image{Layers: [][]byte{layer}, Config: ocispec.ImageConfig{Cmd: cmd, Env: []string{"PATH=/bin"}, WorkingDir: "/"}}
	blobs, manifest, err := img.blobs()
	if err != nil {
		return nil, err
	}
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
	out := []File{
		{Name: ocispec.ImageLayoutFile, Mode: 0o644, Data: layout},
		{Name: ocispec.ImageIndexFile, Mode: 0o644, Data: index},
	}
	for dgst, data := range blobs {
		out = append(out, File{Name: "blobs/sha256/" + dgst.Encoded(), Mode: 0o644, Data: data})
	}
	return Layer(out...)
}

// blobs returns all that the image consists of, by digest, and what its names stand for: its manifest or its index.
func (i Image) blobs() (map[digest.Digest][]byte, ocispec.Descriptor, error) {
	blobs := map[digest.Digest][]byte{}
	host := ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	if len(i.Platforms) == 0 {
		desc, err := i.manifest(blobs, host, i.Layers)
		return blobs, desc, err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, platform := range i.Platforms {
		layers := i.Layers
		if platform.OS != host.OS || platform.Architecture != host.Architecture {
			text := fmt.Appendf(nil, "%s/%s of %v\n", platform.OS, platform.Architecture, i.Names)
			layer, err := Layer(File{Name: "platform", Mode: 0o644, Data: text})
			if err != nil {
				return nil, ocispec.Descriptor{}, err
			}
			layers = [][]byte{layer}
		}
		desc, err := i.manifest(blobs, platform, layers)
		if err != nil {
			return nil, ocispec.Descriptor{}, err
		}
		index.Manifests = append(index.Manifests, desc)
	}
	desc, err := addBlob(blobs, ocispec.MediaTypeImageIndex, index)
	return blobs, desc, err
}

// manifest adds the blobs of the image for one platform, and returns the descriptor of the manifest.
func (i Image) manifest(blobs map[digest.Digest][]byte, platform ocispec.Platform, layers [][]byte) (ocispec.Descriptor, error) {
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	rootFS := ocispec.RootFS{Type: "layers"}
	for _, data := range layers {
		layer, err := addBlob(blobs, ocispec.MediaTypeImageLayer, data)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		manifest.Layers = append(manifest.Layers, layer)
		rootFS.DiffIDs = append(rootFS.DiffIDs, layer.Digest)
	}
	var err error
	image := ocispec.Image{Platform: platform, Config: i.Config, RootFS: rootFS}
	if manifest.Config, err = addBlob(blobs, ocispec.MediaTypeImageConfig, image); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := addBlob(blobs, ocispec.MediaTypeImageManifest, manifest)
	desc.Platform = &platform
	return desc, err
}

// addBlob adds bytes as they are, anything else as JSON.
func addBlob(blobs map[digest.Digest][]byte, mediaType string, v any) (ocispec.Descriptor, error) {
	data, raw := v.([]byte)
	if !raw {
		var err error
		if data, err = json.Marshal(v); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	dgst := digest.FromBytes(data)
	blobs[dgst] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(data))}, nil
}

func writeTar(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case f.Hard:
			h.Typeflag, h.Linkname = tar.TypeLink, f.Link
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(f.Data); err != nil {
			return err
		}
	}
	return tw.Close()
}
