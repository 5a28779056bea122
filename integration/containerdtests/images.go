package main

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reaper-shim/reaper/integration/harness"
)

// registries are the hosts of the images.
var registries = []string{"ghcr.io", "registry.k8s.io"}

// Users that tests ask for. Number 1000 has to be none of them.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
backup:x:34:34:backup:/var/backups:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
www-data:x:33:
backup:x:34:
nogroup:x:65534:
`
	// Tests want SIGTERM to end it also as PID 1, which busybox's own ignores there.
	netcat = `#!/bin/sh
trap 'exit 143' TERM
busybox nc "$@" &
wait $!
`
)

// imageList returns stand-ins for the images of the tests (containerd v2.4.2, integration/images/image_list.go, and names in
// the tests), with what the tests look at. One cannot be made: that which is named by the digest of its manifest.
func imageList(root string) ([]harness.Image, error) {
	base, err := harness.TestFiles(root)
	if err != nil {
		return nil, err
	}
	for i, f := range base {
		switch f.Name {
		case "etc/passwd":
			base[i].Data = []byte(passwd)
		case "etc/group":
			base[i].Data = []byte(group)
		case "bin/nc":
			base[i] = harness.File{Name: f.Name, Mode: 0o755, Data: []byte(netcat)}
		}
	}
	layer, err := harness.Layer(base...)
	if err != nil {
		return nil, err
	}
	copyUp, err := harness.Layer(
		harness.File{Name: "test_dir/", Mode: 0o755},
		harness.File{Name: "test_dir/test_file", Mode: 0o644, Data: []byte("test_content\n")},
	)
	if err != nil {
		return nil, err
	}
	var euid []byte
	for _, f := range base {
		if f.Name == "bin/euid" {
			euid = f.Data
		}
	}
	if euid == nil {
		return nil, fmt.Errorf("no bin/testprogs/euid (make testprogs)")
	}
	ownership, err := harness.Layer(
		harness.File{Name: "run/", Mode: 0o755}, harness.File{Name: "test_dir/", Mode: 0o755},
		harness.File{Name: "bin/bash", Mode: 0o755, Data: []byte("#!/bin/sh\nexec /bin/sh \"$@\"\n")},
		harness.File{Name: "usr/", Mode: 0o755}, harness.File{Name: "usr/bin/", Mode: 0o755},
		harness.File{Name: "usr/bin/passwd", Mode: 0o4755, Data: euid}, // looked at, not run
	)
	if err != nil {
		return nil, err
	}

	pause, err := harness.Layer(harness.File{Name: "pause", Mode: 0o755, Data: euid})
	if err != nil {
		return nil, err
	}

	// As the real ones are: for more platforms than a test asks for.
	linux := []ocispec.Platform{
		{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"},
		{OS: "linux", Architecture: "ppc64le"}, {OS: "linux", Architecture: "s390x"},
	}
	config := func(name string, cmd ...string) ocispec.ImageConfig {
		return ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: cmd, Labels: map[string]string{"name": name}}
	}
	list := []harness.Image{
		{Names: []string{"ghcr.io/containerd/busybox:1.36"}, Layers: [][]byte{layer}, Platforms: linux, Config: config("busybox", "sh")},
		{
			Names:  []string{"registry.k8s.io/e2e-test-images/busybox:1.29-2"},
			Layers: [][]byte{layer}, Platforms: linux, Config: config("e2e-busybox", "sh"),
		},
		{
			Names:  []string{"ghcr.io/containerd/volume-copy-up:2.2"},
			Layers: [][]byte{layer, copyUp}, Platforms: linux, Config: config("volume-copy-up", "sh"),
		},
		{
			Names:  []string{"ghcr.io/containerd/volume-ownership:2.1"},
			Layers: [][]byte{layer, ownership}, Platforms: linux, Config: config("volume-ownership", "sh"),
		},
		{
			Names:     []string{"ghcr.io/containerd/windows/nanoserver:1809"},
			Platforms: []ocispec.Platform{{OS: "windows", Architecture: "amd64", OSVersion: "10.0.17763.1"}},
		},
	}
	for _, tag := range []string{"3.6", "3.10.2"} {
		list = append(list, harness.Image{
			Names:  []string{"registry.k8s.io/pause:" + tag},
			Layers: [][]byte{pause}, Platforms: linux, Config: config("pause-"+tag, "/pause"),
		})
	}
	return list, nil
}
