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
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	// nodeAddress is the node's, in a network namespace of this program's: the kubelet takes no loopback address.
	nodeAddress = "10.99.0.1"
	nodeName    = "node"
	// serviceAddress is that of the service kubernetes.default, the first of --service-cluster-ip-range: there is no kube-proxy.
	serviceAddress = "10.96.0.1"
	apiServer      = "https://" + nodeAddress
	etcdURL        = "http://127.0.0.1:2379"
	etcdPeerURL    = "http://127.0.0.1:2380"

	startTimeout = 3 * time.Minute
	stopTimeout  = 30 * time.Second
)

// components are the programs of the cluster in the order of their start.
var components = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"}

// controlPlane is a Kubernetes cluster without a node. stopAll ends it.
type controlPlane struct {
	dir  string // for its files
	logs string // directory for the components' logs
	// command prepares a program of bin/tools.
	command func(ctx context.Context, name string, args ...string) *exec.Cmd
	// accounts gives pods the credentials of their service account.
	accounts bool

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

func (c *controlPlane) file(name string) string { return filepath.Join(c.dir, name) }

// ready makes the client for the API server, and asks whether that is ready.
func (c *controlPlane) ready(ctx context.Context) error {
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
func (c *controlPlane) writeCredentials() error {
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

// start starts a component.
func (c *controlPlane) start(name string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(c.logs, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not bound to a context: components end in the reverse order, after what needs them.
	cmd := c.command(context.Background(), name, args...)
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
func (c *controlPlane) stop(p *component) error {
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
func (c *controlPlane) get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

// call makes a request of the API; body and into are JSON, and may be nil.
func (c *controlPlane) call(ctx context.Context, method, path string, body, into any) error {
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
func (c *controlPlane) kubectl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, testutil.Slow(3*time.Minute))
	defer cancel()
	cmd := c.command(ctx, "kubectl", append([]string{"--kubeconfig", c.file("kubeconfig")}, args...)...)
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

func (c *controlPlane) node(ctx context.Context) (node, error) {
	var n node
	err := c.get(ctx, "/api/v1/nodes/"+nodeName, &n)
	return n, err
}

// heartbeat returns when the node last said that it is ready, zero if there is no node.
func (c *controlPlane) heartbeat(ctx context.Context) (time.Time, error) {
	n, err := c.node(ctx)
	if errors.Is(err, errNotFound) {
		return time.Time{}, nil
	}
	return n.condition("Ready").LastHeartbeatTime, err
}

// addAddresses adds the addresses to the loopback device: the network namespace has no other.
func addAddresses() error {
	for alias, address := range map[string]string{"lo:1": nodeAddress, "lo:2": serviceAddress} {
		if err := addAddress(alias, address); err != nil {
			return fmt.Errorf("add address %s to %s: %w", address, alias, err)
		}
	}
	return nil
}

// addAddress adds an address by an alias (netdevice(7)).
func addAddress(alias, address string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(alias)
	if err != nil {
		return err
	}
	if err := req.SetInet4Addr(netip.MustParseAddr(address).AsSlice()); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req)
}

// startControlPlane starts all components but the kubelet, and waits until the API server is ready.
func (c *controlPlane) startControlPlane(ctx context.Context) error {
	c.died = make(chan error, len(components)+1)
	if err := os.MkdirAll(c.file("certs"), 0o700); err != nil {
		return err
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
	admission := "--disable-admission-plugins=ServiceAccount"
	if c.accounts {
		admission = "--enable-admission-plugins=ServiceAccount"
	}
	if err := c.start("kube-apiserver", "--etcd-servers", etcdURL, "--cert-dir", c.file("certs"),
		"--bind-address", "0.0.0.0", "--advertise-address", nodeAddress, "--secure-port", "443", "--endpoint-reconciler-type", "none",
		// The node's name is in nobody's DNS.
		"--kubelet-preferred-address-types", "InternalIP",
		"--service-cluster-ip-range", "10.96.0.0/24", "--authorization-mode", "Node,RBAC", "--token-auth-file", c.file("tokens"),
		admission, "--allow-privileged", "--service-account-issuer", "https://kubernetes.default.svc",
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
		"--root-ca-file", c.file("certs/apiserver.crt"),
		// A machine that others share may be slow.
		"--node-monitor-grace-period", "5m",
	); err != nil {
		return err
	}
	return c.start("kube-scheduler", "--kubeconfig", c.file("kubeconfig"), "--leader-elect=false", "--bind-address", "127.0.0.1")
}

// stopAll stops all components, the last one first.
func (c *controlPlane) stopAll() error {
	var errs []error
	for _, p := range slices.Backward(slices.Clone(c.running)) {
		errs = append(errs, c.stop(p))
	}
	return errors.Join(errs...)
}

// wait waits for a condition, and gives up when the context or a component of the cluster ends. The state that the condition
// returns goes into the error.
func (c *controlPlane) wait(ctx context.Context, what string, deadline time.Duration, cond func() (done bool, state string)) error {
	const every = 200 * time.Millisecond
	deadline = testutil.Slow(deadline)
	end := time.After(deadline)
	for {
		done, state := cond()
		if done {
			return nil
		}
		select {
		case <-time.After(every):
		case err := <-c.died:
			return fmt.Errorf("wait for %s: %w", what, err)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-end:
			return fmt.Errorf("wait for %s: not within %v: %s", what, deadline, state)
		}
	}
}

// waitNode waits until the node has said, after a point in time, that it is ready.
func (c *controlPlane) waitNode(ctx context.Context, after time.Time) error {
	return c.wait(ctx, "the node", startTimeout, func() (bool, string) {
		n, err := c.node(ctx)
		if err != nil {
			return false, err.Error()
		}
		ready := n.condition("Ready")
		// A kubelet that was there before has left a node that is ready.
		return ready.Status == "True" && ready.LastHeartbeatTime.After(after) && len(n.Spec.Taints) == 0,
			fmt.Sprintf("conditions %v, taints %v", n.Status.Conditions, n.Spec.Taints)
	})
}

// kubeletConfig returns the configuration of a kubelet with these settings besides.
func kubeletConfig(more map[string]any) ([]byte, error) {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": nodeAddress, "failCgroupV1": false, "failSwapOn": false, "makeIPTablesUtilChains": false,
		// The network namespace is this program's alone.
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"},
		// How full the machine's disk is, is none of these tests' business.
		"evictionHard":                map[string]string{"memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	}
	maps.Copy(config, more)
	return json.Marshal(config)
}

// versions returns the programs with their versions as they tell them.
func (c *controlPlane) versions(ctx context.Context, root string) ([]string, error) {
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
		list = append(list, name+" "+strings.TrimSuffix(strings.TrimPrefix(named[name], "containerd://"), "+unknown"))
	}
	return append(list, compare.ToolVersion(root, "runc")), nil
}
