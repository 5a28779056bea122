package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	// RuncRuntime is containerd's own runtime, what ours is compared with.
	RuncRuntime = "io.containerd.runc.v2"
	// ReaperRuntime is the runtime of this project.
	ReaperRuntime = "io.containerd.reaper.v2"

	// Namespace is the containerd namespace of containers that the harness runs.
	Namespace = "reaper-test"
	// CRINamespace is the one that the CRI plugin uses.
	CRINamespace = "k8s.io"

	// EnvMark is the environment variable that every process of a daemon has: its value is the daemon's directory.
	EnvMark = "REAPER_HARNESS"

	dirPrefix = "rpr-"
	ownerFile = "owner" // pid and start time of the process that started the daemon

	startTimeout = 60 * time.Second
	stopTimeout  = 20 * time.Second
)

// Options say how to start a daemon. The zero value is good.
type Options struct {
	// Log receives the daemon's log as it is written. Without one it is kept for Daemon.Log only.
	Log io.Writer
	// ReaperOptions is the body of the TOML table of runtime options that CRI passes for the handler "reaper".
	ReaperOptions string
	// Debug sets the daemon's log level, and with it that of the shims, to debug.
	Debug bool
	// Containerd is the daemon's file name in bin/tools; "" stands for what ContainerdEnv names.
	Containerd string
	// Registry is the URL of the registry that images of all names are pulled from (CRI of containerd 2.0 and later); "" stands
	// for the names' own.
	Registry string
	// Network is what pods get that have a network namespace of their own.
	Network Network
	// Bin is the directory with the programs of this repository; "" stands for its bin.
	Bin string
	// Env is added to the daemon's environment, which its shims inherit.
	Env []string
}

// ContainerdEnv names the file in bin/tools that is the daemon of tests which ask for none, as containerd-1.7. Without it
// that is containerd, the newest.
const ContainerdEnv = "REAPER_TEST_CONTAINERD"

// Containerd returns the daemon of tests that ask for none.
func Containerd() string {
	if name := os.Getenv(ContainerdEnv); name != "" {
		return name
	}
	return "containerd"
}

// Daemon is a running containerd. Its methods may be called from any goroutine.
type Daemon struct {
	// Client talks to the daemon. Its default namespace is Namespace.
	Client *client.Client
	// Dir holds everything of the daemon.
	Dir string
	// Address is the path of the gRPC socket.
	Address string
	// CgroupParent is the cgroup, as a path from the root of each hierarchy, below which all containers belong.
	CgroupParent string
	// Snapshotter is overlayfs, or native where the temporary directory cannot carry an overlay.
	Snapshotter string

	root    string // of the repository
	opts    Options
	major   int      // of the version of the daemon that the configuration is for
	mountNS *os.File // the daemon's, open so that it outlives the daemon
	pid     int
	exited  chan struct{} // closed when the daemon has been waited for
	log     *logBuffer
}

// configTemplate is for containerd 2.0 and later.
var configTemplate = template.Must(template.New("config").Parse(`version = 3
root = '{{.Dir}}/root'
state = '{{.Dir}}/state'

[debug]
  level = '{{if .Debug}}debug{{else}}info{{end}}'

[grpc]
  address = '{{.Dir}}/c.sock'

[ttrpc]
  address = '{{.Dir}}/c.sock.ttrpc'

[plugins.'io.containerd.cri.v1.images']
  snapshotter = '{{.Snapshotter}}'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{{.Pause}}'
{{- if .Registry}}
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '{{.Dir}}/hosts'
{{- end}}

[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{{.Dir}}/cni/bin'{{if eq .Network "bridge"}}, '/usr/lib/cni', '/opt/cni/bin'{{end}}]
    conf_dir = '{{.Dir}}/cni/net.d'
{{- if .Network}}
    use_internal_loopback = true
{{- end}}
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.reaper]
      runtime_type = 'io.containerd.reaper.v2'
      pod_annotations = ['io.containerd.reaper.*']
      container_annotations = ['io.containerd.reaper.*']
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.reaper.options]
{{.ReaperOptions}}

[plugins.'io.containerd.nri.v1.nri']
  disable = true

[plugins.'io.containerd.internal.v1.opt']
  path = '{{.Dir}}/opt'

[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '{{.Dir}}/s'
`))

// legacyTemplate is for containerd before 2.0, where CRI is one plugin and the shims' sockets are where they always are.
var legacyTemplate = template.Must(template.New("config").Parse(`version = 2
root = '{{.Dir}}/root'
state = '{{.Dir}}/state'

[debug]
  level = '{{if .Debug}}debug{{else}}info{{end}}'

[grpc]
  address = '{{.Dir}}/c.sock'

[ttrpc]
  address = '{{.Dir}}/c.sock.ttrpc'

[plugins.'io.containerd.grpc.v1.cri']
  enable_selinux = false
  restrict_oom_score_adj = true
  sandbox_image = '{{.Pause}}'
  [plugins.'io.containerd.grpc.v1.cri'.cni]
    bin_dir = '{{.Dir}}/cni/bin'
    conf_dir = '{{.Dir}}/cni/net.d'
  [plugins.'io.containerd.grpc.v1.cri'.containerd]
    snapshotter = '{{.Snapshotter}}'
    default_runtime_name = 'runc'
    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.reaper]
      runtime_type = 'io.containerd.reaper.v2'
      pod_annotations = ['io.containerd.reaper.*']
      container_annotations = ['io.containerd.reaper.*']
      [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.reaper.options]
{{.ReaperOptions}}

[plugins.'io.containerd.internal.v1.opt']
  path = '{{.Dir}}/opt'
`))

// Start starts a daemon and waits until it serves, with the images of this package in it. The caller must Close it.
func Start(ctx context.Context, opts Options) (_ *Daemon, err error) {
	root, err := testutil.RepoRoot()
	if err != nil {
		return nil, err
	}
	if opts.Containerd == "" {
		opts.Containerd = Containerd()
	}
	for _, tool := range []string{opts.Containerd, "containerd-shim-runc-v2", "runc"} {
		if p := filepath.Join(root, "bin/tools", tool); !exists(p) {
			return nil, fmt.Errorf("start containerd: no %s (make tools)", p)
		}
	}
	clearStale()

	dir, err := newDir()
	if err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	d := &Daemon{
		Dir:          dir,
		Address:      filepath.Join(dir, "c.sock"),
		CgroupParent: "/" + filepath.Base(dir),
		Snapshotter:  "native",
		root:         root,
		opts:         opts,
		exited:       make(chan struct{}),
		log:          &logBuffer{tee: opts.Log},
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start containerd: %w\n%s", err, d.log.tail(40))
			_ = d.Close()
		}
	}()
	if overlayWorks(dir) {
		d.Snapshotter = "overlayfs"
	}
	if err := d.writeConfig(ctx); err != nil {
		return nil, err
	}
	if err := d.startProcess(); err != nil {
		return nil, err
	}
	if err := d.waitServing(ctx); err != nil {
		return nil, err
	}
	if err := d.importImages(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// writeConfig writes the configuration in the form that this version of the daemon reads.
func (d *Daemon) writeConfig(ctx context.Context) error {
	var err error
	if d.major, err = d.askMajor(ctx); err != nil {
		return err
	}
	tmpl := configTemplate
	if d.major < 2 {
		tmpl = legacyTemplate
	}
	var config bytes.Buffer
	if err := tmpl.Execute(&config, map[string]any{
		"Dir": d.Dir, "Snapshotter": d.Snapshotter, "Pause": PauseImage,
		"ReaperOptions": d.opts.ReaperOptions, "Debug": d.opts.Debug,
		"Registry": d.opts.Registry, "Network": string(d.opts.Network),
	}); err != nil {
		return err
	}
	if err := d.writeRegistry(); err != nil {
		return err
	}
	if err := d.writeNetwork(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.Dir, "config.toml"), config.Bytes(), 0o600)
}

// askMajor returns the first part of the daemon's version: "containerd github.com/containerd/containerd v1.7.35 …".
func (d *Daemon) askMajor(ctx context.Context) (int, error) {
	out, err := exec.CommandContext(ctx, d.containerd(), "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", d.opts.Containerd, err)
	}
	fields := strings.Fields(string(out))
	if len(fields) < 3 {
		return 0, fmt.Errorf("%s --version: unexpected %q", d.opts.Containerd, out)
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(fields[2], "v"), ".")
	major, err := strconv.Atoi(first)
	if err != nil {
		return 0, fmt.Errorf("%s --version: unexpected %q", d.opts.Containerd, out)
	}
	return major, nil
}

func (d *Daemon) containerd() string { return filepath.Join(d.root, "bin/tools", d.opts.Containerd) }

// newDir makes the daemon's directory. Its name is short: the path of a unix socket has at most 107 bytes (unix(7)), and a
// shim's is "/s/" and 64 hexadecimal digits longer than this one.
func newDir() (string, error) {
	for _, base := range []string{os.TempDir(), "/tmp", "/run"} {
		if len(base) > 20 {
			continue
		}
		dir, err := os.MkdirTemp(base, dirPrefix)
		if err != nil {
			continue
		}
		// The user who is root of a user namespace has to get to the root file system.
		if err := os.Chmod(dir, 0o711); err != nil {
			return "", err
		}
		self, err := procStat(os.Getpid())
		if err != nil {
			return "", err
		}
		owner := fmt.Sprintf("%d %d", os.Getpid(), self.StartTime)
		if err := os.WriteFile(filepath.Join(dir, ownerFile), []byte(owner), 0o600); err != nil {
			return "", err
		}
		for _, sub := range []string{"fifo", "s", "cni/bin", "cni/net.d"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
				return "", err
			}
		}
		return dir, nil
	}
	return "", errors.New("no temporary directory with a short name can be written to")
}

func (d *Daemon) startProcess() error {
	// The directory may not exist on a machine without a containerd. It stays afterwards: removing it would take away
	// the mount point under a daemon that somebody else started.
	if err := os.MkdirAll("/run/containerd", 0o711); err != nil {
		return err
	}
	args := []string{d.containerd(), "--config", filepath.Join(d.Dir, "config.toml")}
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if d.mountNS == nil {
		script := `mount -t tmpfs -o mode=0711 tmpfs /run/containerd && : > "$0" && exec "$@"`
		if os.Getenv(OCIRuntimeEnv) != "" {
			script = hideUnified + script
		}
		args = append([]string{"/bin/sh", "-c", script, MountMark(d.Dir)}, args...)
		attr.Unshareflags = syscall.CLONE_NEWNS // os/exec makes all mounts private with it
	} else {
		args = append([]string{"nsenter", "--mount=/proc/self/fd/3", "--"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	if d.mountNS != nil {
		cmd.ExtraFiles = []*os.File{d.mountNS}
	}
	cmd.Env = append(d.Env(), d.opts.Env...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	cmd.SysProcAttr = attr
	exited := make(chan struct{})
	d.exited = exited
	started := make(chan error, 1)
	go func() {
		// The parent death signal comes when the thread ends that forked (prctl(2)): keep it.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			d.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		return err
	}
	if d.mountNS != nil {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", d.pid))
	if err != nil {
		return err
	}
	d.mountNS = ns
	return nil
}

func (d *Daemon) waitServing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, testutil.Slow(startTimeout))
	defer cancel()
	for d.Client == nil {
		c, err := client.New(d.Address, client.WithDefaultNamespace(Namespace), client.WithTimeout(testutil.Slow(time.Second)))
		switch {
		case err == nil:
			d.Client = c
		case d.stopped():
			return errors.New("it exited")
		case ctx.Err() != nil:
			return fmt.Errorf("no answer on %s within %v: %w", d.Address, startTimeout, err)
		}
	}
	var last error
	for {
		serving, err := d.Client.IsServing(ctx)
		if err == nil && serving {
			last = d.pluginErrors(ctx)
			if last == nil {
				return nil
			}
		} else {
			last = fmt.Errorf("not serving: %w", err)
		}
		select {
		case <-d.exited:
			return errors.New("it exited")
		case <-ctx.Done():
			return last
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pluginErrors returns the error of a plugin that the tests cannot do without.
func (d *Daemon) pluginErrors(ctx context.Context) error {
	needed := map[string]bool{
		"io.containerd.grpc.v1/cri": true, "io.containerd.runtime.v2/task": true,
		"io.containerd.snapshotter.v1/" + d.Snapshotter: true,
	}
	if d.major >= 2 {
		needed["io.containerd.cri.v1/runtime"] = true
	}
	resp, err := d.Client.IntrospectionService().Plugins(ctx)
	if err != nil {
		return err
	}
	for _, p := range resp.Plugins {
		name := p.Type + "/" + p.ID
		if needed[name] && p.InitErr != nil {
			return fmt.Errorf("plugin %s: %s", name, p.InitErr.Message)
		}
		delete(needed, name)
	}
	for name := range needed {
		return fmt.Errorf("plugin %s is missing", name)
	}
	return nil
}

// PID returns the process ID of the daemon.
func (d *Daemon) PID() int { return d.pid }

// Log returns what the daemon and the shims have logged.
func (d *Daemon) Log() string { return d.log.tail(-1) }

// Env returns the environment of the daemon and of programs that talk to it: the programs of this repository come first
// on PATH, then the shims that belong to the daemon's version, and EnvMark is set.
func (d *Daemon) Env() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		// What would lead a client somewhere else.
		case "PATH", "NOTIFY_SOCKET", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINER_RUNTIME_ENDPOINT", "TTRPC_ADDRESS":
		default:
			if !strings.HasPrefix(name, "OTEL_") {
				env = append(env, kv)
			}
		}
	}
	bin := filepath.Join(d.root, "bin")
	ours := bin
	if d.opts.Bin != "" {
		ours = d.opts.Bin
	}
	tools := filepath.Join(bin, "tools")
	return append(env,
		"PATH="+strings.Join([]string{ours, filepath.Join(tools, "shims", d.opts.Containerd), tools, os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":"),
		EnvMark+"="+d.Dir)
}

// Command prepares a command that runs in the daemon's mount namespace with its environment: ctr, nerdctl and crictl see
// the FIFOs and the state of the shims there, and no other daemon's. Paths have to be absolute.
func (d *Daemon) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if p, err := testutil.FindTool(name); err == nil {
		name = p
	}
	args = append([]string{"--mount=/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(d.mountNS.Fd())), "--", name}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = d.Env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Kill kills the daemon as a crash would, and waits until it is gone. The shims and their containers stay.
func (d *Daemon) Kill() error {
	if err := syscall.Kill(d.pid, syscall.SIGKILL); err != nil {
		return err
	}
	<-d.exited
	return nil
}

// Restart starts a daemon again, in the same place, after the last one has been stopped with Kill or Stop. It may be of
// another version: containerd is a file name in bin/tools, "" for the same as before.
func (d *Daemon) Restart(ctx context.Context, containerd string) error {
	if !d.stopped() {
		return errors.New("restart containerd: it is running")
	}
	if containerd != "" {
		d.opts.Containerd = containerd
	}
	if err := d.writeConfig(ctx); err != nil {
		return fmt.Errorf("restart %s: %w", d.opts.Containerd, err)
	}
	err := d.startProcess()
	if err == nil {
		err = d.waitServing(ctx)
	}
	if err != nil {
		return fmt.Errorf("restart %s: %w\n%s", d.opts.Containerd, err, d.log.tail(40))
	}
	return nil
}

// Stop asks the daemon to end, as systemd does, and waits until it has. The shims and their containers stay.
func (d *Daemon) Stop() error {
	if err := syscall.Kill(d.pid, syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.exited:
		return nil
	case <-time.After(testutil.Slow(stopTimeout)):
		return fmt.Errorf("containerd did not stop within %v of SIGTERM", stopTimeout)
	}
}

func (d *Daemon) stopped() bool {
	select {
	case <-d.exited:
		return true
	default:
		return false
	}
}

// Close stops everything that runs in the daemon, then the daemon, and removes its directory and cgroups. What it finds
// that should not be there any more, it removes as well, and returns as a LeakError.
func (d *Daemon) Close() error {
	var errs []error
	if d.Client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(2*stopTimeout))
		errs = append(errs, d.deleteAll(ctx))
		cancel()
		errs = append(errs, d.leaks())
		errs = append(errs, d.Client.Close())
	}
	if d.pid != 0 && !d.stopped() {
		if err := d.Stop(); err != nil {
			errs = append(errs, err)
			_ = syscall.Kill(d.pid, syscall.SIGKILL)
			<-d.exited
		}
	}
	clearDir(d.Dir)
	if d.mountNS != nil {
		errs = append(errs, d.mountNS.Close())
	}
	return errors.Join(errs...)
}

// deleteAll deletes the pods of CRI and then all containers of all namespaces.
func (d *Daemon) deleteAll(ctx context.Context) error {
	var errs []error
	if err := d.deletePods(ctx); err != nil {
		errs = append(errs, err)
	}
	names, err := d.Client.NamespaceService().List(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, ns := range names {
		nctx := namespaces.WithNamespace(ctx, ns)
		containers, err := d.Client.Containers(nctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, c := range containers {
			if err := deleteContainer(nctx, c); err != nil {
				errs = append(errs, fmt.Errorf("delete container %s/%s: %w", ns, c.ID(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// deletePods removes pods through CRI, which knows of mounts and network namespaces that containerd does not.
func (d *Daemon) deletePods(ctx context.Context) error {
	containers, err := d.Client.Containers(namespaces.WithNamespace(ctx, CRINamespace))
	if err != nil || len(containers) == 0 {
		return err
	}
	out, err := d.Command(ctx, "crictl", "--timeout", "30s", "--runtime-endpoint", "unix://"+d.Address, "rmp", "--all", "--force").CombinedOutput()
	if err != nil {
		return fmt.Errorf("crictl rmp --all --force: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func deleteContainer(ctx context.Context, c client.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	err = c.Delete(ctx, client.WithSnapshotCleanup)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// logBuffer keeps a log in memory.
type logBuffer struct {
	tee io.Writer

	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tee != nil {
		_, _ = l.tee.Write(p)
	}
	return l.buf.Write(p)
}

// tail returns the last n lines, all with n < 0.
func (l *logBuffer) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.SplitAfter(l.buf.String(), "\n")
	if n >= 0 && len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "")
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
