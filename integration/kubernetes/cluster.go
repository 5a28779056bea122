package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/integration/compare"
	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	// nodeAddress is the node's, in a network namespace of this program's: the kubelet takes no loopback address.
	nodeAddress = "10.99.0.1"
	nodeName    = "node"
	apiServer   = "https://" + nodeAddress + ":6443"
	etcdURL     = "http://127.0.0.1:2379"
	etcdPeerURL = "http://127.0.0.1:2380"

	startTimeout = 3 * time.Minute
	stopTimeout  = 30 * time.Second
)

// components are the programs of the cluster in the order of their start.
var components = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"}

// isolate hides from the kubelet what it would change on the machine: sysctls (k8s.io/kubernetes, pkg/kubelet/cm,
// setupKernelTunables) are files of its own, and /var/lib/kubelet, /var/log/containers and CNI's cache are in memory. All of it is in
// the mount namespace of containerd.
const isolate = `set -e
mount -t tmpfs -o mode=0755 tmpfs /var/lib
mount -t tmpfs -o mode=0755 tmpfs /var/log
mkdir "$1"
for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	[ -e /proc/sys/$f ] || continue
	copy=$1/$(echo $f | tr / .)
	cat /proc/sys/$f > "$copy"
	mount --bind "$copy" /proc/sys/$f
done
`

// cluster is a Kubernetes cluster of one node. close ends it.
type cluster struct {
	d    *harness.Daemon
	logs string // directory for the components' logs

	token   string
	client  *http.Client
	running []*component
	died    chan error // a component that nobody has stopped
}

// component is a running program.
type component struct {
	name    string
	process *os.Process
	stopped chan struct{} // closed when somebody wants it to end
	exited  chan struct{} // closed when it has been waited for
}

// addNodeAddress adds nodeAddress to the loopback device: the network namespace has no other.
func addNodeAddress() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("add address %s: %w", nodeAddress, err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo:1") // an alias (netdevice(7))
	if err != nil {
		return err
	}
	if err := req.SetInet4Addr(netip.MustParseAddr(nodeAddress).AsSlice()); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req); err != nil {
		return fmt.Errorf("add address %s to lo: %w", nodeAddress, err)
	}
	return nil
}

func (c *cluster) file(name string) string { return filepath.Join(c.d.Dir, "kubernetes", name) }

// up starts the cluster and waits until its node is ready.
func (c *cluster) up(ctx context.Context) error {
	c.died = make(chan error, len(components)+1)
	if err := os.MkdirAll(c.file("certs"), 0o700); err != nil {
		return err
	}
	if out, err := c.d.Command(ctx, "/bin/sh", "-c", isolate, "sh", c.file("sysctl")).CombinedOutput(); err != nil {
		return fmt.Errorf("prepare the node's file system: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := c.writeCredentials(); err != nil {
		return err
	}
	if err := c.start("etcd", "--data-dir", c.file("etcd"), "--unsafe-no-fsync", "--name", "default",
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", etcdPeerURL, "--initial-advertise-peer-urls", etcdPeerURL, "--initial-cluster", "default="+etcdPeerURL,
	); err != nil {
		return err
	}
	if err := c.start("kube-apiserver", "--etcd-servers", etcdURL, "--cert-dir", c.file("certs"),
		"--bind-address", nodeAddress, "--advertise-address", nodeAddress, "--secure-port", "6443", "--endpoint-reconciler-type", "none",
		// The node's name is in nobody's DNS.
		"--kubelet-preferred-address-types", "InternalIP",
		"--service-cluster-ip-range", "10.96.0.0/24", "--authorization-mode", "Node,RBAC", "--token-auth-file", c.file("tokens"),
		// Pods here need no token, and so no account.
		"--disable-admission-plugins", "ServiceAccount", "--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", c.file("account.key"), "--service-account-signing-key-file", c.file("account.key"),
	); err != nil {
		return err
	}
	if err := c.wait(ctx, "the API server", startTimeout, func() (bool, string) {
		err := c.ready(ctx)
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		return err
	}
	if err := c.start("kube-controller-manager", "--kubeconfig", c.file("kubeconfig"), "--leader-elect=false", "--bind-address", "127.0.0.1",
		"--cert-dir", c.file("certs"), "--service-account-private-key-file", c.file("account.key"),
		// A machine that others share may be slow.
		"--node-monitor-grace-period", "5m",
	); err != nil {
		return err
	}
	if err := c.start("kube-scheduler", "--kubeconfig", c.file("kubeconfig"), "--leader-elect=false", "--bind-address", "127.0.0.1"); err != nil {
		return err
	}
	return c.startKubelet(ctx, -1)
}

// ready makes the client for the API server, and asks whether that is ready.
func (c *cluster) ready(ctx context.Context) error {
	// Holds the authority that the API server has made up as well, once it is written to its end.
	cert, err := os.ReadFile(c.file("certs/apiserver.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(cert) {
		return errors.New("no certificate in apiserver.crt yet")
	}
	c.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: testutil.Slow(30 * time.Second)}
	return c.get(ctx, "/readyz", nil)
}

// writeCredentials makes the token of the one user there is, the key of service accounts, and the kubeconfig.
func (c *cluster) writeCredentials() error {
	c.token = rand.Text()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	kubeconfig, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{
			"server": apiServer, "certificate-authority": c.file("certs/apiserver.crt"),
		}}},
		"users":    []any{map[string]any{"name": "admin", "user": map[string]any{"token": c.token}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c", "user": "admin"}}},
	})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"tokens":      []byte(c.token + ",admin,admin,system:masters\n"),
		"account.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"kubeconfig":  kubeconfig,
	} {
		if err := os.WriteFile(c.file(name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// startKubelet starts the kubelet and waits until the node is ready. -1 is no limit.
func (c *cluster) startKubelet(ctx context.Context, podPidsLimit int) error {
	if err := c.makeCgroups(); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": nodeAddress, "containerRuntimeEndpoint": "unix://" + c.d.Address,
		"cgroupDriver": "cgroupfs", "cgroupRoot": c.d.CgroupParent, "failCgroupV1": false, "failSwapOn": false,
		"podPidsLimit": podPidsLimit, "podLogsDir": c.file("pods"), "volumePluginDir": c.file("plugins"),
		"makeIPTablesUtilChains": false,
		// The network namespace is this program's alone.
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"},
		// How full the machine's disk is, is none of these tests' business.
		"evictionHard":                map[string]string{"memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file("kubelet.json"), config, 0o600); err != nil {
		return err
	}
	before, err := c.heartbeat(ctx)
	if err != nil {
		return err
	}
	if err := c.start("kubelet", "--config", c.file("kubelet.json"), "--kubeconfig", c.file("kubeconfig"), "--root-dir", c.file("kubelet"),
		"--cert-dir", c.file("kubelet-certs"), "--hostname-override", nodeName, "--node-ip", nodeAddress); err != nil {
		return err
	}
	return c.wait(ctx, "the node", startTimeout, func() (bool, string) {
		n, err := c.node(ctx)
		if err != nil {
			return false, err.Error()
		}
		ready := n.condition("Ready")
		// A kubelet that was there before has left a node that is ready.
		return ready.Status == "True" && ready.LastHeartbeatTime.After(before) && len(n.Spec.Taints) == 0,
			fmt.Sprintf("conditions %v, taints %v", n.Status.Conditions, n.Spec.Taints)
	})
}

// heartbeat returns when the node last said that it is ready, zero if there is no node.
func (c *cluster) heartbeat(ctx context.Context) (time.Time, error) {
	n, err := c.node(ctx)
	if errors.Is(err, errNotFound) {
		return time.Time{}, nil
	}
	return n.condition("Ready").LastHeartbeatTime, err
}

func (c *cluster) node(ctx context.Context) (node, error) {
	var n node
	err := c.get(ctx, "/api/v1/nodes/"+nodeName, &n)
	return n, err
}

// makeCgroups makes the kubelet's root in each hierarchy: it has to be there.
func (c *cluster) makeCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		roots = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	for _, procs := range roots {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(procs), c.d.CgroupParent), 0o755); err != nil {
			return fmt.Errorf("make the kubelet's cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroups removes the kubelet's own cgroups. What it keeps below them for pods stays, and is found as left behind.
func (c *cluster) removeCgroups() error {
	var errs []error
	for _, class := range []string{"kubepods/besteffort", "kubepods/burstable", "kubepods"} {
		for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			dirs, err := filepath.Glob(filepath.Join(pattern, c.d.CgroupParent, class))
			errs = append(errs, err)
			for _, dir := range dirs {
				errs = append(errs, os.Remove(dir))
			}
		}
	}
	return errors.Join(errs...)
}

// start starts a component.
func (c *cluster) start(name string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(c.logs, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not bound to a context: components end in the reverse order, after what needs them.
	cmd := c.d.Command(context.Background(), name, args...)
	cmd.SysProcAttr.Setpgid = true // ctrl-C is for this program
	cmd.Stdout, cmd.Stderr = log, log
	p := &component{name: name, stopped: make(chan struct{}), exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent death signal comes when the thread ends that forked (prctl(2)): keep it.
		runtime.LockOSThread()
		err := cmd.Start()
		p.process = cmd.Process
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		select {
		case <-p.stopped:
		default:
			c.died <- fmt.Errorf("%s ended: %w\n%s", name, err, tail(log.Name(), 20))
		}
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.running = append(c.running, p)
	return nil
}

// stop ends a component and waits until it has.
func (c *cluster) stop(p *component) error {
	c.running = slices.DeleteFunc(c.running, func(q *component) bool { return q == p })
	close(p.stopped)
	_ = p.process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(testutil.Slow(stopTimeout)):
		_ = p.process.Kill()
		<-p.exited
		return fmt.Errorf("%s did not stop within %v of SIGTERM", p.name, stopTimeout)
	}
}

// stopKubelet stops the kubelet; pods live on.
func (c *cluster) stopKubelet() error {
	i := slices.IndexFunc(c.running, func(p *component) bool { return p.name == "kubelet" })
	if i < 0 {
		return errors.New("no kubelet is running")
	}
	return c.stop(c.running[i])
}

// removePods has the kubelet end all pods that are still there, as after a step that failed.
func (c *cluster) removePods() error {
	if len(podCgroups(c.d.CgroupParent)) == 0 || len(c.running) < len(components) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(stopTimeout))
	defer cancel()
	return errors.Join(
		c.call(ctx, http.MethodDelete, "/apis/apps/v1/namespaces/default/deployments", nil, nil),
		c.call(ctx, http.MethodDelete, "/api/v1/namespaces/default/pods?gracePeriodSeconds=1", nil, nil),
		c.wait(ctx, "the end of all pods", stopTimeout, func() (bool, string) {
			left := podCgroups(c.d.CgroupParent)
			return len(left) == 0, fmt.Sprint(left)
		}))
}

// close ends all pods and stops all components, the last one first. Pods that are there all the same are left to containerd's harness.
func (c *cluster) close() error {
	errs := []error{c.removePods()}
	for _, p := range slices.Backward(slices.Clone(c.running)) {
		errs = append(errs, c.stop(p))
	}
	// The kubelet makes its directory a mount of its own (and shared), and leaves it.
	if out, err := c.d.Command(context.Background(), "umount", c.file("kubelet")).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("not mounted")) {
		errs = append(errs, fmt.Errorf("unmount the kubelet's directory: %w: %s", err, bytes.TrimSpace(out)))
	}
	leftovers := podCgroups(c.d.CgroupParent)
	if len(leftovers) == 0 {
		errs = append(errs, c.removeCgroups())
	}
	return errors.Join(errs...)
}

// podCgroups lists the directories of the kubelet's cgroups for pods.
func podCgroups(parent string) []string {
	var out []string
	for _, pattern := range []string{"kubepods/pod*", "kubepods/*/pod*"} {
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			found, _ := filepath.Glob(filepath.Join(mount, parent, pattern))
			out = append(out, found...)
		}
	}
	return out
}

func tail(file string, n int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(data), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

var errNotFound = errors.New("not found")

// get reads an object of the API. It returns errNotFound for one that is not there.
func (c *cluster) get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

// call makes a request of the API; body and into are JSON, and may be nil.
func (c *cluster) call(ctx context.Context, method, path string, body, into any) error {
	var reader io.Reader = http.NoBody
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, apiServer+path, reader)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s %s: %w", method, path, errNotFound)
	case resp.StatusCode >= 300:
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, compare.OneLine(string(text)))
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// kubectl runs kubectl and returns what it prints.
func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, testutil.Slow(3*time.Minute))
	defer cancel()
	cmd := c.d.Command(ctx, "kubectl", append([]string{"--kubeconfig", c.file("kubeconfig")}, args...)...)
	cmd.SysProcAttr.Setpgid = true
	cmd.Env = append(cmd.Env, "HOME="+c.file("home")) // its cache
	cmd.WaitDelay = 5 * time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, compare.OneLine(errOut.String()))
	}
	return out.String(), nil
}

// versions returns the programs with their versions as they tell them.
func (c *cluster) versions(ctx context.Context, root string) ([]string, error) {
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := c.get(ctx, "/version", &v); err != nil {
		return nil, err
	}
	n, err := c.node(ctx)
	if err != nil {
		return nil, err
	}
	named := map[string]string{
		"Kubernetes": v.GitVersion, "kubelet": n.Status.NodeInfo.KubeletVersion, "containerd": n.Status.NodeInfo.ContainerRuntimeVersion,
	}
	out, err := exec.CommandContext(ctx, filepath.Join(root, "bin/tools/etcd"), "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("etcd --version: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	named["etcd"] = strings.TrimPrefix(first, "etcd Version: ")
	var list []string
	for _, name := range slices.Sorted(maps.Keys(named)) {
		list = append(list, name+" "+strings.TrimPrefix(named[name], "containerd://"))
	}
	return append(list, compare.ToolVersion(root, "runc")), nil
}
