package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
	"github.com/reaper-shim/reaper/internal/install"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	installPage   = "docs/installing.md"
	installTarget = "e2e-install"

	installImage     = "localhost/reaper/reaper-install"
	installTag       = "test"
	installNamespace = "kube-reaper"
	buildahTool      = "buildah/usr/bin/buildah" // in bin/tools
	readyLabel       = "io.containerd.reaper/ready"
	classesPath      = "/apis/node.k8s.io/v1/runtimeclasses"
)

// installation is a cluster whose node gets the runtime by what contrib/ has for it.
type installation struct {
	controlPlane
	root    string // of the repository
	m       *machine
	config  string // of containerd, before anything is installed
	witness identity
	result  installResult
}

// runInstall runs a cluster on a node with systemd, and has the DaemonSet put the runtime there and take it away, by kustomize and by
// Helm.
func runInstall(ctx context.Context) (err error) {
	root, err := testutil.RepoRoot()
	if err != nil {
		return err
	}
	for _, tool := range append(slices.Concat(components, machineTools, install.Programs), "kubectl", "helm", buildahTool, "goodinit") {
		if _, err := testutil.FindTool(tool); err != nil {
			return err
		}
	}
	logs := filepath.Join(root, "bin", installTarget)
	if err := errors.Join(os.RemoveAll(logs), os.MkdirAll(logs, 0o755), addAddresses()); err != nil {
		return err
	}
	dir, env, err := harness.Scratch()
	if err != nil {
		return err
	}
	c := &installation{root: root, controlPlane: controlPlane{
		dir: filepath.Join(dir, "kubernetes"), logs: logs, accounts: true,
		command: func(ctx context.Context, name string, args ...string) *exec.Cmd {
			if p, err := testutil.FindTool(name); err == nil {
				name = p
			}
			cmd := exec.CommandContext(ctx, name, args...)
			cmd.Env = append(os.Environ(), env)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			return cmd
		},
	}}
	defer func() { err = errors.Join(err, c.close(dir)) }()
	machine, err := benchreport.ThisMachine()
	if err != nil {
		return err
	}
	c.result.Machine = machine
	fmt.Printf("start a cluster, logs in %s\n", logs)
	if err := c.up(ctx, dir, env); err != nil {
		return err
	}
	for _, step := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"kustomize: install", c.kustomizeInstall},
		{"kustomize: uninstall", c.kustomizeUninstall},
		{"Helm: install, on a broken configuration first", c.helmInstall},
		{"Helm: upgrade", c.helmUpgrade},
		{"Helm: uninstall", c.helmUninstall},
		{"Debian package", c.debianPackage},
	} {
		fmt.Printf("== %s\n", step.title)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w\n%s", step.title, err, c.describe())
		}
	}
	c.result.Machine.LoadEnd = benchreport.Load()
	return benchreport.RenewFile(filepath.Join(root, installPage), installTarget, c.result.Markdown())
}

// close ends the node and then the cluster, which waits for its requests to end. The logs of the node go to the others.
func (c *installation) close(dir string) error {
	var errs []error
	if c.m != nil {
		for _, log := range []string{containerdLog, kubeletLog} {
			text, err := os.ReadFile(c.m.path(log))
			errs = append(errs, err, os.WriteFile(filepath.Join(c.logs, filepath.Base(log)), text, 0o644))
		}
		errs = append(errs, c.m.close())
	}
	return errors.Join(append(errs, c.stopAll(), harness.Clear(dir, "/"+filepath.Base(dir)))...)
}

// describe tells of the installation's pods, for an error.
func (c *installation) describe() string {
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(stopTimeout))
	defer cancel()
	var b strings.Builder
	for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A"}, {"logs", "-n", installNamespace, "-l", "app.kubernetes.io/name=reaper", "--tail=30"}} {
		out, err := c.kubectl(ctx, args...)
		fmt.Fprintf(&b, "kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return b.String()
}

// up starts the control plane and the machine, and a pod under the default runtime, with orphans in it: the witness.
func (c *installation) up(ctx context.Context, dir, env string) error {
	image, err := c.buildImage(ctx, dir)
	if err != nil {
		return err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	if c.m, err = startMachine(ctx, dir, env, c.dir); err != nil {
		return err
	}
	if err := c.waitNode(ctx, time.Time{}); err != nil {
		return err
	}
	if c.result.Versions, err = c.versions(ctx, c.root); err != nil {
		return err
	}
	version, err := c.m.run(ctx, "systemctl", "--version")
	if err != nil {
		return err
	}
	systemdVersion, _, _ := strings.Cut(version, " (")
	if version, err = c.buildah(ctx, "--version"); err != nil {
		return err
	}
	buildahVersion, _, _ := strings.Cut(strings.Replace(version, " version ", " ", 1), " (")
	c.result.Versions = append(c.result.Versions, systemdVersion, buildahVersion)
	out, err := c.command(ctx, "helm", "version", "--template", "Helm {{.Version}}").Output()
	if err != nil {
		return fmt.Errorf("helm version: %w", err)
	}
	c.result.Versions = append(c.result.Versions, string(out))

	archives, err := harness.Archives(c.root)
	if err != nil {
		return err
	}
	for _, archive := range append(archives, image) {
		if err := c.m.importImage(ctx, archive); err != nil {
			return err
		}
	}
	config, err := os.ReadFile(c.m.path(containerdConfig))
	if err != nil {
		return err
	}
	c.config = string(config)
	// Its controller makes it, and no pod comes before it.
	if err := c.wait(ctx, "the default service account", startTimeout, func() (bool, string) {
		err := c.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		return err
	}
	if c.witness, err = c.startPod(ctx, "witness", ""); err != nil {
		return err
	}
	if err := c.leak(ctx, "witness"); err != nil {
		return err
	}
	return c.waitZombies(ctx, "witness", orphans)
}

// buildImage builds the image of contrib/image/Dockerfile, as an archive.
func (c *installation) buildImage(ctx context.Context, dir string) ([]byte, error) {
	storage, archive := filepath.Join(dir, "buildah"), filepath.Join(dir, "image.tar")
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o600); err != nil {
		return nil, err
	}
	name := installImage + ":" + installTag
	for _, args := range [][]string{
		{"build", "--isolation", "chroot", "--file", filepath.Join(c.root, "contrib/image/Dockerfile"), "--tag", name, c.root},
		{"push", name, "oci-archive:" + archive + ":" + name},
	} {
		args = append([]string{"--root", storage, "--runroot", storage + "-run", "--storage-driver", "vfs", args[0], "--signature-policy", policy}, args[1:]...)
		if _, err := c.buildah(ctx, args...); err != nil {
			return nil, err
		}
	}
	return os.ReadFile(archive)
}

// buildah runs the one that is unpacked in bin/tools, with its libraries and without the machine's configuration.
func (c *installation) buildah(ctx context.Context, args ...string) (string, error) {
	root := filepath.Join(c.root, "bin/tools/buildah")
	var libraries []string
	for _, dir := range []string{"lib", "usr/lib"} {
		found, err := filepath.Glob(filepath.Join(root, dir, "*-linux-gnu"))
		if err != nil {
			return "", err
		}
		libraries = append(libraries, found...)
	}
	cmd := c.command(ctx, buildahTool, args...)
	cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+strings.Join(libraries, ":"), "CONTAINERS_REGISTRIES_CONF=/dev/null", "CONTAINERS_STORAGE_CONF=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("buildah %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// identity is what tells a pod's process from any other.
type identity struct {
	pod, uid, container string
	restarts            int
	started             string // of PID 1, in clock ticks since the boot
}

// startPod makes a pod whose PID 1 never waits, and waits until it is ready.
func (c *installation) startPod(ctx context.Context, name, class string) (identity, error) {
	if err := c.createPod(ctx, name, nil, podSpec(class, "")); err != nil {
		return identity{}, err
	}
	if err := c.wait(ctx, "pod "+name, startTimeout, func() (bool, string) {
		var p pod
		err := c.get(ctx, podsPath+"/"+name, &p)
		return err == nil && p.ready(), fmt.Sprintf("%v, %+v", err, p.Status)
	}); err != nil {
		return identity{}, err
	}
	return c.identify(ctx, name)
}

func (c *installation) identify(ctx context.Context, name string) (identity, error) {
	var p pod
	if err := c.get(ctx, podsPath+"/"+name, &p); err != nil {
		return identity{}, err
	}
	if len(p.Status.ContainerStatuses) != 1 {
		return identity{}, fmt.Errorf("pod %s: %d containers, want one", name, len(p.Status.ContainerStatuses))
	}
	s := p.Status.ContainerStatuses[0]
	stat, err := c.kubectl(ctx, "exec", name, "--", "/bin/cat", "/proc/1/stat")
	if err != nil {
		return identity{}, err
	}
	// proc_pid_stat(5): starttime is field 22, the 20th behind the command.
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("pod %s: /proc/1/stat: %q", name, stat)
	}
	return identity{pod: name, uid: p.Metadata.UID, container: s.ContainerID, restarts: s.RestartCount, started: fields[19]}, nil
}

// untouched returns an error unless the pod's process is the one that it was.
func (c *installation) untouched(ctx context.Context, was identity) error {
	is, err := c.identify(ctx, was.pod)
	if err == nil && is != was {
		err = fmt.Errorf("pod %s was touched: %+v, was %+v", was.pod, is, was)
	}
	return err
}

// leak leaves orphans in a pod.
func (c *installation) leak(ctx context.Context, name string) error {
	_, err := c.kubectl(ctx, "exec", name, "--", "/bin/leak", "-n", fmt.Sprint(orphans))
	return err
}

// waitZombies waits until there are so many in a pod.
func (c *installation) waitZombies(ctx context.Context, name string, want int) error {
	return c.wait(ctx, fmt.Sprintf("%d zombies in pod %s", want, name), settle, func() (bool, string) {
		out, err := c.kubectl(ctx, "exec", name, "--", "/bin/sh", "-c", "cat /proc/[0-9]*/status 2>/dev/null | grep -c '^State:.Z'; :")
		n, nerr := strconv.Atoi(strings.TrimSpace(out))
		return errors.Join(err, nerr) == nil && n == want, fmt.Sprintf("%q, %v", out, err)
	})
}

// starts returns how often containerd has been started, and the process that it is.
func (c *installation) starts(ctx context.Context) (int, string, error) {
	log, err := os.ReadFile(c.m.path(containerdLog))
	if err != nil {
		return 0, "", err
	}
	pid, err := c.m.run(ctx, "systemctl", "show", "--property=MainPID", containerdUnit)
	return bytes.Count(log, []byte(`msg="starting containerd"`)), strings.TrimSpace(pid), err
}

// waitLabel waits until the node's label is as wanted, "" for none.
func (c *installation) waitLabel(ctx context.Context, want string) error {
	return c.wait(ctx, fmt.Sprintf("label %s=%q", readyLabel, want), startTimeout, func() (bool, string) {
		var n struct {
			Metadata struct{ Labels map[string]string }
		}
		err := c.get(ctx, "/api/v1/nodes/"+nodeName, &n)
		got, ok := n.Metadata.Labels[readyLabel]
		return err == nil && got == want && ok == (want != ""), fmt.Sprintf("%q, %v, %v", got, ok, err)
	})
}

// installed returns an error unless the node has our programs and containerd the handler.
func (c *installation) installed(ctx context.Context) error {
	for _, name := range install.Programs {
		want, err := os.ReadFile(filepath.Join(c.root, "bin", name))
		if err != nil {
			return err
		}
		got, err := os.ReadFile(c.m.path(filepath.Join(machineBin, name)))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s on the node is not the one of the image", name)
		}
	}
	text, err := os.ReadFile(c.m.path(containerdDropIn))
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte(harness.ReaperRuntime)) || !bytes.Contains(text, []byte("SystemdCgroup = true")) {
		return fmt.Errorf("%s: %q: want the handler, with the cgroup driver of the default one", containerdDropIn, text)
	}
	_, err = c.m.run(ctx, machineBin+"/reaperctl", "doctor")
	return err
}

// gone returns an error unless the node is as it was before.
func (c *installation) gone(ctx context.Context) error {
	config, err := os.ReadFile(c.m.path(containerdConfig))
	if err != nil {
		return err
	}
	if string(config) != c.config {
		return fmt.Errorf("%s is not what it was:\n%s\nwas\n%s", containerdConfig, config, c.config)
	}
	for _, dir := range []string{machineBin, filepath.Dir(containerdDropIn)} {
		entries, err := os.ReadDir(c.m.path(dir))
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("left on the node: %v in %s", entries, dir)
		}
	}
	var p struct {
		Status struct{ RuntimeHandlers []struct{ Name string } }
	}
	return c.wait(ctx, "a node without the handler", startTimeout, func() (bool, string) {
		err := c.get(ctx, "/api/v1/nodes/"+nodeName, &p)
		return err == nil && len(p.Status.RuntimeHandlers) > 0 && !slices.ContainsFunc(p.Status.RuntimeHandlers, func(h struct{ Name string }) bool { return h.Name == handler }),
			fmt.Sprintf("%v, %+v", err, p)
	})
}

// step notes what was done, and checks what has to hold after each: the witness is untouched, and containerd was started as often as it
// should be.
func (c *installation) step(ctx context.Context, did, saw string, restarts int) error {
	if err := c.untouched(ctx, c.witness); err != nil {
		return err
	}
	n, _, err := c.starts(ctx)
	if err != nil {
		return err
	}
	// The first start is systemd's.
	if n != c.result.restarts()+1+restarts {
		return fmt.Errorf("%s: containerd was restarted %d times in all, want %d", did, n-1, c.result.restarts()+restarts)
	}
	c.result.Steps = append(c.result.Steps, installStep{Did: did, Saw: saw, Restarts: restarts})
	fmt.Printf("%s: %s; %d restarts of containerd\n", did, saw, restarts)
	return nil
}

// kustomization writes a directory that names our image for one of contrib's, and returns it.
func (c *installation) kustomization(name string) (string, error) {
	dir := c.file("kustomize-" + name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	base, err := filepath.Rel(dir, filepath.Join(c.root, "contrib/kubernetes", name))
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("resources: [%s]\nimages: [{name: reaper-install, newName: %s, newTag: %s}]\n", base, installImage, installTag)
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644)
}

// works runs a pod of the RuntimeClass and returns it: its zombies go, while those of the witness stay.
func (c *installation) works(ctx context.Context, name string) (identity, error) {
	if err := c.installed(ctx); err != nil {
		return identity{}, err
	}
	p, err := c.startPod(ctx, name, handler)
	if err != nil {
		return p, err
	}
	if err := c.leak(ctx, name); err != nil {
		return p, err
	}
	if err := c.waitZombies(ctx, name, 0); err != nil {
		return p, err
	}
	var spec struct {
		Spec struct {
			Overhead     map[string]string
			NodeSelector map[string]string
		}
	}
	if err := c.get(ctx, podsPath+"/"+name, &spec); err != nil {
		return p, err
	}
	if spec.Spec.Overhead["memory"] == "" || spec.Spec.NodeSelector[readyLabel] != "true" {
		return p, fmt.Errorf("pod %s: %+v: want the overhead and the node selector of the RuntimeClass", name, spec.Spec)
	}
	return p, c.waitZombies(ctx, "witness", orphans)
}

func (c *installation) kustomizeInstall(ctx context.Context) error {
	dir, err := c.kustomization("base")
	if err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "apply", "-k", dir); err != nil {
		return err
	}
	if err := c.waitLabel(ctx, "true"); err != nil {
		return err
	}
	if _, err := c.works(ctx, "kustomize-pod"); err != nil {
		return err
	}
	if err := c.step(ctx, "`kubectl apply -k contrib/kubernetes/base`",
		fmt.Sprintf("programs and handler on the node, `reaperctl doctor` is content, the node has the label; %d orphans in a pod with `runtimeClassName: reaper` go, "+
			"those in a pod under runc.v2 stay", orphans), 1); err != nil {
		return err
	}
	// Another pod on a node that has all.
	if _, err := c.kubectl(ctx, "delete", "pod", "-n", installNamespace, "-l", "app.kubernetes.io/name=reaper"); err != nil {
		return err
	}
	if err := c.waitLog(ctx, "containerd runs with the configuration as it should be"); err != nil {
		return err
	}
	return c.step(ctx, "the DaemonSet's pod deleted", "its successor changes nothing", 0)
}

// waitLog waits until the installer has said something.
func (c *installation) waitLog(ctx context.Context, want string) error {
	return c.wait(ctx, fmt.Sprintf("%q from the installer", want), startTimeout, func() (bool, string) {
		out, err := c.kubectl(ctx, "logs", "-n", installNamespace, "-l", "app.kubernetes.io/name=reaper", "--tail=-1")
		return err == nil && strings.Contains(out, want), fmt.Sprintf("%v: %s", err, out)
	})
}

// waitPrevious waits until an installer that has given up has said something.
func (c *installation) waitPrevious(ctx context.Context, want string) error {
	return c.wait(ctx, fmt.Sprintf("%q from an installer that has given up", want), startTimeout, func() (bool, string) {
		out, err := c.kubectl(ctx, "logs", "-n", installNamespace, "-l", "app.kubernetes.io/name=reaper", "--tail=-1", "--previous")
		return err == nil && strings.Contains(out, want), fmt.Sprintf("%v: %s", err, out)
	})
}

// refusesWhileInUse: the node is not ready for more pods of the runtime, and the one that is there lives and is served.
func (c *installation) refusesWhileInUse(ctx context.Context, running identity) error {
	if err := c.waitLabel(ctx, "false"); err != nil {
		return err
	}
	if err := c.waitLog(ctx, "still in use"); err != nil {
		return err
	}
	if err := c.createPod(ctx, "late", nil, podSpec(handler, "")); err != nil {
		return err
	}
	if err := c.wait(ctx, "a pod that no node takes", startTimeout, func() (bool, string) {
		var p pod
		err := c.get(ctx, podsPath+"/late", &p)
		s := find(p.Status.Conditions, "PodScheduled")
		return err == nil && s.Status == "False" && s.Reason == "Unschedulable", fmt.Sprintf("%v, %+v", err, p.Status)
	}); err != nil {
		return err
	}
	if err := c.untouched(ctx, running); err != nil {
		return err
	}
	if err := c.leak(ctx, running.pod); err != nil {
		return err
	}
	if err := c.waitZombies(ctx, running.pod, 0); err != nil {
		return err
	}
	return c.installed(ctx)
}

func (c *installation) kustomizeUninstall(ctx context.Context) error {
	dir, err := c.kustomization("uninstall")
	if err != nil {
		return err
	}
	running, err := c.identify(ctx, "kustomize-pod")
	if err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "apply", "-k", dir); err != nil {
		return err
	}
	if err := c.refusesWhileInUse(ctx, running); err != nil {
		return err
	}
	const did = "`kubectl apply -k contrib/kubernetes/uninstall`"
	if err := c.step(ctx, did+", a pod running",
		"the label is `false`, a new pod of the RuntimeClass is not scheduled; the running one is untouched and its orphans go, programs and handler stay", 0); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "delete", "pod", "kustomize-pod", "late"); err != nil {
		return err
	}
	if err := c.waitLabel(ctx, ""); err != nil {
		return err
	}
	if err := c.gone(ctx); err != nil {
		return err
	}
	base, err := c.kustomization("base")
	if err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "delete", "-k", base); err != nil {
		return err
	}
	return c.step(ctx, "the pod deleted", "programs, handler and label go; containerd's configuration is byte for byte the one before", 1)
}

func (c *installation) helm(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, testutil.Slow(10*time.Minute))
	defer cancel()
	cmd := c.command(ctx, "helm", append(args, "--namespace", installNamespace)...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+c.file("kubeconfig"), "HOME="+c.file("home"))
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("helm %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

func (c *installation) helmInstall(ctx context.Context) error {
	broken := c.config + "[plugins\n"
	config := c.m.path(containerdConfig)
	if err := os.WriteFile(config, []byte(broken), 0o600); err != nil {
		return err
	}
	_, before, err := c.starts(ctx)
	if err != nil {
		return err
	}
	if _, err := c.helm(ctx, "install", "reaper", filepath.Join(c.root, "contrib/helm/reaper"), "--create-namespace",
		"--set", "image.repository="+installImage, "--set", "image.tag="+installTag, "--set", "exporter.enabled=true"); err != nil {
		return err
	}
	// Between two tries the container is terminated, or waits with a last state.
	const status = "jsonpath={.items[*].status.containerStatuses[*].state.terminated.exitCode} {.items[*].status.containerStatuses[*].lastState.terminated.exitCode}"
	if err := c.wait(ctx, "an installer that gives up", startTimeout, func() (bool, string) {
		out, err := c.kubectl(ctx, "get", "pods", "-n", installNamespace, "-l", "app.kubernetes.io/name=reaper", "-o", status)
		return err == nil && slices.Contains(strings.Fields(out), "4"), fmt.Sprintf("%v: %s", err, out)
	}); err != nil {
		return err
	}
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	if string(text) != broken {
		return fmt.Errorf("the broken configuration was changed: %s", text)
	}
	if err := c.waitLabel(ctx, ""); err != nil {
		return err
	}
	_, after, err := c.starts(ctx)
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("containerd is another process: %s, was %s", after, before)
	}
	if err := c.step(ctx, "`helm install` where containerd's configuration is broken",
		"the installer ends with exit code 4 and is tried again; nothing is changed, containerd runs on, the node has no label", 0); err != nil {
		return err
	}
	// A start that fails where the handler is, as one that a new version of containerd refuses.
	const dropIn = "/etc/systemd/system/" + containerdUnit + ".d/refuse.conf"
	if err := os.MkdirAll(filepath.Dir(c.m.path(dropIn)), 0o755); err != nil {
		return err
	}
	refuse := "[Service]\nExecStartPre=/bin/sh -c '! test -e " + containerdDropIn + "'\n"
	if err := os.WriteFile(c.m.path(dropIn), []byte(refuse), 0o600); err != nil {
		return err
	}
	if _, err := c.m.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	if err := os.WriteFile(config, []byte(c.config), 0o600); err != nil {
		return err
	}
	if err := c.waitPrevious(ctx, "the configuration is again the one before"); err != nil {
		return err
	}
	if err := c.waitLabel(ctx, ""); err != nil {
		return err
	}
	// Between two tries.
	if err := c.wait(ctx, "the old configuration and a containerd that runs", startTimeout, func() (bool, string) {
		text, err := os.ReadFile(config)
		if err != nil || string(text) != c.config {
			return false, fmt.Sprintf("%v: %s", err, text)
		}
		_, err = c.m.run(ctx, "systemctl", "is-active", containerdUnit)
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		return err
	}
	if err := c.untouched(ctx, c.witness); err != nil {
		return err
	}
	if err := os.Remove(c.m.path(dropIn)); err != nil {
		return err
	}
	if _, err := c.m.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	if err := c.waitLabel(ctx, "true"); err != nil {
		return err
	}
	if _, err := c.works(ctx, "helm-pod"); err != nil {
		return err
	}
	// Who knows how often it was tried.
	n, _, err := c.starts(ctx)
	if err != nil {
		return err
	}
	if err := c.step(ctx, "the configuration repaired, but at first a containerd that does not start with the handler",
		"the installer puts the old configuration back, with which containerd runs; the node has no label. When containerd would start, the next try "+
			"installs; the pods as above", n-1-c.result.restarts()); err != nil {
		return err
	}
	if err := c.scrape(ctx, infoOf("helm-pod")); err != nil {
		return err
	}
	return c.step(ctx, "`exporter.enabled=true`", "`reaper-exporter` has no capabilities, serves the pod's metrics on its address, and names the mode", 0)
}

// scrape waits until the exporter of the chart says something.
func (c *installation) scrape(ctx context.Context, want string) error {
	var list struct {
		Items []struct{ Status struct{ PodIP string } }
	}
	path := "/api/v1/namespaces/" + installNamespace + "/pods?labelSelector=" + url.QueryEscape("app.kubernetes.io/name=reaper-exporter")
	return c.wait(ctx, "the exporter", startTimeout, func() (bool, string) {
		if err := c.get(ctx, path, &list); err != nil || len(list.Items) != 1 || list.Items[0].Status.PodIP == "" {
			return false, fmt.Sprintf("%v, pods %+v", err, list.Items)
		}
		text, err := metrics(ctx, list.Items[0].Status.PodIP)
		return err == nil && strings.Contains(text, want), fmt.Sprintf("%v: %.3000s", err, text)
	})
}

func (c *installation) helmUpgrade(ctx context.Context) error {
	if _, err := c.helm(ctx, "upgrade", "reaper", filepath.Join(c.root, "contrib/helm/reaper"), "--reuse-values", "--set", "options.mode=observe"); err != nil {
		return err
	}
	if err := c.waitLog(ctx, "restarted containerd"); err != nil {
		return err
	}
	if err := c.wait(ctx, "the option", startTimeout, func() (bool, string) {
		text, err := os.ReadFile(c.m.path(containerdDropIn))
		return err == nil && strings.Contains(string(text), "mode = 'observe'"), fmt.Sprintf("%v: %s", err, text)
	}); err != nil {
		return err
	}
	if err := c.waitLabel(ctx, "true"); err != nil {
		return err
	}
	observed, err := c.startPod(ctx, "observed-pod", handler)
	if err != nil {
		return err
	}
	if err := errors.Join(c.leak(ctx, observed.pod), c.waitZombies(ctx, observed.pod, orphans)); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "delete", "pod", observed.pod); err != nil {
		return err
	}
	return c.step(ctx, "`helm upgrade --set options.mode=observe`", "the option is in force for new pods: orphans stay", 1)
}

func (c *installation) helmUninstall(ctx context.Context) error {
	running, err := c.identify(ctx, "helm-pod")
	if err != nil {
		return err
	}
	type answer struct {
		out string
		err error
	}
	done := make(chan answer, 1)
	go func() {
		out, err := c.helm(ctx, "uninstall", "reaper", "--wait")
		done <- answer{out, err}
	}()
	if err := c.refusesWhileInUse(ctx, running); err != nil {
		select {
		case a := <-done:
			err = errors.Join(err, a.err)
		default:
		}
		return err
	}
	select {
	case a := <-done:
		return errors.Join(fmt.Errorf("helm uninstall has not waited for the pod: %s", a.out), a.err)
	default:
	}
	if err := c.step(ctx, "`helm uninstall`, a pod running", "it waits; label, new pods, the running one, programs and handler as above", 0); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "delete", "pod", "helm-pod", "late"); err != nil {
		return err
	}
	if a := <-done; a.err != nil {
		return a.err
	}
	if err := c.waitLabel(ctx, ""); err != nil {
		return err
	}
	if err := c.gone(ctx); err != nil {
		return err
	}
	switch err := c.get(ctx, classesPath+"/"+handler, nil); {
	case err == nil:
		return errors.New("helm uninstall has left the RuntimeClass")
	case !errors.Is(err, errNotFound):
		return err
	}
	return c.step(ctx, "the pod deleted", "`helm uninstall` ends; programs, handler, label and RuntimeClass are gone, containerd's configuration is the one before", 1)
}

// installStep is what was done and seen.
type installStep struct {
	Did, Saw string
	Restarts int // of containerd
}

// installResult is what a run has shown.
type installResult struct {
	Machine  benchreport.Machine
	Versions []string
	Steps    []installStep
}

func (r installResult) restarts() int {
	n := 0
	for _, s := range r.Steps {
		n += s.Restarts
	}
	return n
}

// Markdown returns the result for the page.
func (r installResult) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s, %d CPUs, load %s before and %s after. %s.\n\n| done | seen | restarts of containerd |\n|---|---|--:|\n",
		r.Machine.Date, r.Machine.Kernel, r.Machine.CPUs, r.Machine.Load, r.Machine.LoadEnd, strings.Join(r.Versions, ", "))
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "| %s | %s | %d |\n", s.Did, s.Saw, s.Restarts)
	}
	return b.String()
}
