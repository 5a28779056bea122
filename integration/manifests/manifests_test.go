// Package manifests tests what contrib/ hands out for Kubernetes: rendered by Helm's and kustomize's own libraries, and decoded
// strictly into the types of the API.
package manifests

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const (
	contrib = "../../contrib"
	label   = "io.containerd.reaper/ready"
)

// object is a decoded manifest.
type object struct {
	metav1.TypeMeta
	name string
	any
}

// kinds are the types that contrib may use.
var kinds = map[string]func() any{
	"node.k8s.io/v1 RuntimeClass":                     func() any { return &nodev1.RuntimeClass{} },
	"apps/v1 DaemonSet":                               func() any { return &appsv1.DaemonSet{} },
	"batch/v1 Job":                                    func() any { return &batchv1.Job{} },
	"v1 ServiceAccount":                               func() any { return &corev1.ServiceAccount{} },
	"v1 ConfigMap":                                    func() any { return &corev1.ConfigMap{} },
	"v1 Namespace":                                    func() any { return &corev1.Namespace{} },
	"rbac.authorization.k8s.io/v1 ClusterRole":        func() any { return &rbacv1.ClusterRole{} },
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() any { return &rbacv1.ClusterRoleBinding{} },
	"rbac.authorization.k8s.io/v1 Role":               func() any { return &rbacv1.Role{} },
	"rbac.authorization.k8s.io/v1 RoleBinding":        func() any { return &rbacv1.RoleBinding{} },
}

// decode fails the test for a field that the API does not have.
func decode(t *testing.T, text []byte) []object {
	t.Helper()
	var objects []object
	docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := docs.Read()
		if err == io.EOF {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		raw, err := yaml.ToJSON(doc)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if string(raw) == "null" {
			continue
		}
		var meta struct {
			metav1.TypeMeta
			metav1.ObjectMeta `json:"metadata"`
		}
		if err := json.Unmarshal(raw, &meta); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		make := kinds[meta.APIVersion+" "+meta.Kind]
		if make == nil {
			t.Fatalf("kind %s %s is not expected", meta.APIVersion, meta.Kind)
		}
		o := object{meta.TypeMeta, meta.Name, make()}
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(o.any); err != nil {
			t.Fatalf("%s %s: %v", meta.Kind, meta.Name, err)
		}
		objects = append(objects, o)
	}
}

func only[T any](t *testing.T, objects []object) T {
	t.Helper()
	var found []T
	for _, o := range objects {
		if v, ok := o.any.(T); ok {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T, want one", len(found), *new(T))
	}
	return found[0]
}

// check is what holds of both ways to install.
func check(t *testing.T, objects []object) {
	t.Helper()
	class := only[*nodev1.RuntimeClass](t, objects)
	if class.Handler != "reaper" || class.Scheduling == nil || class.Scheduling.NodeSelector[label] != "true" {
		t.Errorf("RuntimeClass %+v: want the handler reaper on nodes that have it", class)
	}
	if class.Overhead == nil || class.Overhead.PodFixed.Memory().IsZero() {
		t.Error("RuntimeClass without overhead")
	}
	ds := only[*appsv1.DaemonSet](t, objects)
	pod := ds.Spec.Template.Spec
	c := pod.Containers[0]
	if !pod.HostPID || c.SecurityContext == nil || c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged {
		t.Error("the DaemonSet can neither see containerd nor restart it")
	}
	if last := c.Args[len(c.Args)-1]; last != "$(ACTION)" {
		t.Errorf("last argument %q, want the one that retire changes", last)
	}
	for k, v := range ds.Spec.Selector.MatchLabels {
		if ds.Spec.Template.Labels[k] != v {
			t.Errorf("the selector asks for %s=%s, which the pods have not", k, v)
		}
	}
	mounted := map[string]bool{}
	for _, v := range pod.Volumes {
		mounted[v.Name] = true
	}
	for _, m := range c.VolumeMounts {
		if !mounted[m.Name] {
			t.Errorf("no volume %s", m.Name)
		}
	}
	account := only[*corev1.ServiceAccount](t, objects)
	if pod.ServiceAccountName != account.Name {
		t.Errorf("service account %q, want %q", pod.ServiceAccountName, account.Name)
	}
	role, binding := only[*rbacv1.ClusterRole](t, objects), only[*rbacv1.ClusterRoleBinding](t, objects)
	if binding.RoleRef.Name != role.Name || binding.Subjects[0].Name != account.Name || binding.Subjects[0].Namespace != ds.Namespace {
		t.Errorf("binding %+v", binding)
	}
	for _, rule := range role.Rules {
		if strings.Join(rule.Resources, " ") != "nodes" {
			t.Errorf("the cluster role may touch %v, want nodes only", rule.Resources)
		}
	}
}

// render renders the chart with these runtime options, as "helm install reaper -n kube-reaper" does.
func render(t *testing.T, options map[string]any) []object {
	t.Helper()
	values := map[string]any{"image": map[string]any{"repository": "registry.example/reaper-install"}, "options": options}
	objects, err := tryRender(t, values)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func tryRender(t *testing.T, values map[string]any) ([]object, error) {
	t.Helper()
	c, err := loader.Load(filepath.Join(contrib, "helm/reaper"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "reaper", Namespace: "kube-reaper", IsInstall: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	var objects []object
	for name, text := range files {
		if strings.HasSuffix(name, ".yaml") {
			objects = append(objects, decode(t, []byte(text))...)
		}
	}
	return objects, nil
}

func TestHelm(t *testing.T) {
	objects := render(t, nil)
	check(t, objects)
	ds, job := only[*appsv1.DaemonSet](t, objects), only[*batchv1.Job](t, objects)
	if job.Annotations["helm.sh/hook"] != "pre-delete" {
		t.Errorf("annotations of the Job that uninstalls: %v", job.Annotations)
	}
	if args := strings.Join(job.Spec.Template.Spec.Containers[0].Args, " "); !strings.Contains(args, ds.Name) || !strings.HasSuffix(args, " retire") {
		t.Errorf("arguments of the Job: %s", args)
	}
	if role := only[*rbacv1.Role](t, objects); role.Rules[0].ResourceNames[0] != ds.Name {
		t.Errorf("the role names %v, want %s only", role.Rules, ds.Name)
	}
	if n := ds.Spec.Template.Spec.Containers[0].Name; n != "reaper-install" {
		t.Errorf("container %q, want the one that retire patches", n)
	}
}

// checkExporter is what holds of the exporter by Helm and by itself.
func checkExporter(t *testing.T, objects []object) *appsv1.DaemonSet {
	t.Helper()
	ds := only[*appsv1.DaemonSet](t, objects)
	pod := ds.Spec.Template
	c := pod.Spec.Containers[0]
	if pod.Annotations["prometheus.io/scrape"] != "true" || pod.Annotations["prometheus.io/port"] != strconv.Itoa(int(c.Ports[0].ContainerPort)) {
		t.Errorf("annotations %v, port %d: Prometheus does not find it", pod.Annotations, c.Ports[0].ContainerPort)
	}
	if len(c.Command) != 1 || c.Command[0] != "/reaper-exporter" {
		t.Errorf("command %q, want the exporter of the one image", c.Command)
	}
	s := c.SecurityContext
	if s == nil || s.Privileged != nil || s.Capabilities == nil || len(s.Capabilities.Add) > 0 || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" ||
		s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || pod.Spec.HostPID || pod.Spec.HostNetwork {
		t.Errorf("security context %+v, want no capabilities", s)
	}
	if pod.Spec.AutomountServiceAccountToken == nil || *pod.Spec.AutomountServiceAccountToken {
		t.Error("it has credentials for the API, and needs none")
	}
	state := pod.Spec.Volumes[0].HostPath.Path
	if m := c.VolumeMounts[0]; m.Name != pod.Spec.Volumes[0].Name || m.MountPath != state || !m.ReadOnly {
		t.Errorf("mount %+v of %s", m, state)
	}
	if want := []string{"--containerd.address=" + state + "/containerd.sock", "--containerd.state=" + state}; !slices.Equal(c.Args, want) {
		t.Errorf("arguments %q, want %q", c.Args, want)
	}
	for k, v := range ds.Spec.Selector.MatchLabels {
		if pod.Labels[k] != v {
			t.Errorf("the selector asks for %s=%s, which the pods have not", k, v)
		}
	}
	return ds
}

// TestHelmExporter: the exporter comes when it is asked for, beside all else, and looks where the values say.
func TestHelmExporter(t *testing.T) {
	values := map[string]any{
		"image":      map[string]any{"repository": "registry.example/reaper-install"},
		"exporter":   map[string]any{"enabled": true},
		"containerd": map[string]any{"state": "/run/k3s/containerd"},
	}
	objects, err := tryRender(t, values)
	if err != nil {
		t.Fatal(err)
	}
	isExporter := func(o object) bool { return strings.HasSuffix(o.name, "-exporter") }
	ds := checkExporter(t, slices.DeleteFunc(slices.Clone(objects), func(o object) bool { return !isExporter(o) }))
	if got := ds.Spec.Template.Spec.Volumes[0].HostPath.Path; got != "/run/k3s/containerd" {
		t.Errorf("it looks in %s", got)
	}
	rest := slices.DeleteFunc(objects, isExporter)
	check(t, rest)
	installer := only[*appsv1.DaemonSet](t, rest)
	if installer.Spec.Template.Spec.Containers[0].Image != ds.Spec.Template.Spec.Containers[0].Image {
		t.Error("the two DaemonSets have two images, want one")
	}
	// Each pod belongs to one of them.
	matches := true
	for k, v := range installer.Spec.Selector.MatchLabels {
		matches = matches && ds.Spec.Template.Labels[k] == v
	}
	if matches {
		t.Errorf("the installer's selector takes the exporter's pods: %v", ds.Spec.Template.Labels)
	}
}

func TestExporter(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(contrib, "kubernetes/reaper-exporter.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	checkExporter(t, decode(t, text))
}

// TestDockerfile: the image has every program that the manifests start, and that the installer installs.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(contrib, "image/Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	var copied []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "COPY" {
			if f[len(f)-1] != "/" {
				t.Errorf("%s: want all of it in /", line)
			}
			for _, name := range f[1 : len(f)-1] {
				copied = append(copied, filepath.Base(name))
			}
		}
	}
	for _, want := range []string{"reaper-install", "reaper-exporter", "reaperctl", "containerd-shim-reaper-v2", "reaper-tracer", "reaper-init"} {
		if !slices.Contains(copied, want) {
			t.Errorf("no %s among %q", want, copied)
		}
	}
}

func TestHelmWithoutImage(t *testing.T) {
	if _, err := tryRender(t, nil); err == nil || !strings.Contains(err.Error(), "image.repository") {
		t.Errorf("%v, want an error that names the value", err)
	}
}

// TestHelmOptions: the handler's options arrive as TOML, also values that would break out of a string.
func TestHelmOptions(t *testing.T) {
	config := only[*corev1.ConfigMap](t, render(t, map[string]any{"mode": "observe", "SystemdCgroup": true, "grace": "3s\" # '"}))
	var got map[string]any
	if err := toml.Unmarshal([]byte(config.Data["options.toml"]), &got); err != nil {
		t.Fatalf("%v in\n%s", err, config.Data["options.toml"])
	}
	if got["mode"] != "observe" || got["SystemdCgroup"] != true || got["grace"] != "3s\" # '" {
		t.Errorf("options %v", got)
	}
}

func TestKustomize(t *testing.T) {
	build := func(dir string) []object {
		m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(contrib, dir))
		if err != nil {
			t.Fatal(err)
		}
		text, err := m.AsYaml()
		if err != nil {
			t.Fatal(err)
		}
		return decode(t, text)
	}
	action := func(objects []object) string {
		return only[*appsv1.DaemonSet](t, objects).Spec.Template.Spec.Containers[0].Env[0].Value
	}
	base := build("kubernetes/base")
	check(t, base)
	if a := action(base); a != "install" {
		t.Errorf("base: action %q", a)
	}
	uninstall := build("kubernetes/uninstall")
	check(t, uninstall)
	if a := action(uninstall); a != "uninstall" {
		t.Errorf("uninstall: action %q", a)
	}
}

func TestRuntimeClass(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(contrib, "containerd/runtimeclass.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if class := only[*nodev1.RuntimeClass](t, decode(t, text)); class.Handler != "reaper" {
		t.Errorf("handler %q", class.Handler)
	}
}
