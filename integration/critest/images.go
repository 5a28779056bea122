package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reaper-shim/reaper/integration/harness"
)

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"
)

const (
	pgrep = `#!/bin/sh
for dir in /proc/[0-9]*; do
	[ "$(cat $dir/comm 2>/dev/null)" = "$1" ] && echo ${dir#/proc/} && found=1
done
[ "$found" ]
`
	ipcs = `#!/bin/sh
exec cat /proc/sysvipc/shm
`
)

// imageList returns stand-ins for the images that critest pulls (cri-tools v1.36.0, pkg/validate and pkg/framework), with the
// behaviour that its specs look at. One cannot be made: test-image-digest is named by the digest of its manifest.
func imageList(root string) ([]harness.Image, error) {
	program := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(root, "bin/testprogs", name)) }
	base, err := harness.TestFiles(root)
	if err != nil {
		return nil, err
	}
	base = append(base,
		harness.File{Name: "usr/", Mode: 0o755}, harness.File{Name: "usr/sbin/", Mode: 0o755},
		harness.File{Name: "var/", Mode: 0o755}, harness.File{Name: "var/run/", Mode: 0o755},
		// Debian's busybox lacks these two.
		harness.File{Name: "bin/pgrep", Mode: 0o755, Data: []byte(pgrep)}, harness.File{Name: "bin/ipcs", Mode: 0o755, Data: []byte(ipcs)},
	)
	for i, f := range base {
		if f.Link != "" {
			// As in the real image: a spec masks one of them, and the others have to stay.
			base[i].Link, base[i].Hard, base[i].Mode = "bin/"+f.Link, true, 0o755
		}
		switch f.Name {
		case "etc/passwd":
			base[i].Data = append(base[i].Data, "www-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"...)
		case "etc/group":
			base[i].Data = append(base[i].Data, "www-data:x:33:\nnogroup:x:65534:\n"...)
		}
	}
	layer, err := harness.Layer(base...)
	if err != nil {
		return nil, err
	}

	var list []harness.Image
	add := func(edit func(*harness.Image), names ...string) {
		img := harness.Image{
			Names: names, Layers: [][]byte{layer},
			// The label makes another image of what is otherwise the same.
			Config: ocispec.ImageConfig{
				Env: []string{"PATH=/usr/sbin:/bin"}, Cmd: []string{"/bin/sh"}, Labels: map[string]string{"name": names[0]},
			},
		}
		if edit != nil {
			edit(&img)
		}
		list = append(list, img)
	}
	user := func(name string) func(*harness.Image) { return func(i *harness.Image) { i.Config.User = name } }

	add(nil, e2e+"busybox:1.29-2")
	for _, name := range []string{"test-image-latest:latest", "test-image-tag:test", "test-image-tag:all", "test-image-1:latest",
		"test-image-2:latest", "test-image-3:latest"} {
		add(nil, staging+name)
	}
	add(nil, staging+"test-image-tags:1", staging+"test-image-tags:2", staging+"test-image-tags:3")
	add(user("1002"), staging+"test-image-user-uid:latest")
	add(user("www-data"), staging+"test-image-user-username:latest")
	add(user("1003:1003"), staging+"test-image-user-uid-group:latest")
	add(user("www-data:www-data"), staging+"test-image-user-username-group:latest")

	groups, err := harness.Layer(
		harness.File{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\n")},
		harness.File{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
	)
	if err != nil {
		return nil, err
	}
	add(func(i *harness.Image) {
		i.Layers = append(i.Layers, groups)
		i.Config.User = "1000"
	}, staging+"test-image-predefined-group:latest")

	webserver, err := program("webserver")
	if err != nil {
		return nil, fmt.Errorf("%w (make testprogs)", err)
	}
	for _, web := range []struct{ image, name, port string }{
		{e2e + "nginx:1.14-2", "nginx", "80"},
		{e2e + "httpd:2.4.39-4", "httpd", "80"},
		{staging + "hostnet-nginx-" + runtime.GOARCH + ":latest", "nginx", "12003"},
	} {
		path := "usr/sbin/" + web.name
		server, err := harness.Layer(harness.File{Name: path, Mode: 0o755, Data: webserver})
		if err != nil {
			return nil, err
		}
		add(func(i *harness.Image) {
			i.Layers = append(i.Layers, server)
			i.Config.Cmd = []string{"/" + path, web.port}
		}, web.image)
	}

	euid, err := program("euid")
	if err != nil {
		return nil, fmt.Errorf("%w (make testprogs)", err)
	}
	setuid, err := harness.Layer(harness.File{Name: "bin/euid", Mode: 0o4755, Data: euid})
	if err != nil {
		return nil, err
	}
	add(func(i *harness.Image) {
		i.Layers = append(i.Layers, setuid)
		i.Config.Cmd = []string{"/bin/euid"}
	}, e2e+"nonewprivs:1.3")

	add(func(i *harness.Image) { i.Config.Cmd = []string{"/bin/goodinit"} }, "registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9")
	return list, nil
}
