package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	containerdUnit = "containerd.service"
	systemd        = "/lib/systemd/systemd"

	// Paths on a machine, where nodes have them.
	containerdConfig = "/etc/containerd/config.toml"
	containerdDropIn = "/etc/containerd/conf.d/reaper.toml"
	containerdLog    = "/var/log/containerd.log"
	kubeletLog       = "/var/log/kubelet.log"
	machineBin       = "/usr/local/bin"
)

// machineTools are the programs of bin/tools that a machine has in /usr/bin.
var machineTools = []string{"containerd", "containerd-shim-runc-v2", "ctr", "kubelet", "runc"}

// machine is a node with systemd as PID 1, whose services containerd and the kubelet are: systemd runs in PID, mount, UTS and
// cgroup namespaces of its own, with a directory for its root. All that it runs ends with it. The caller must close it.
type machine struct {
	dir    string
	cmd    *exec.Cmd // PID 1
	exited chan struct{}
}

// enterMachine makes the directory $1/root the root of a mount namespace and runs systemd in it, in a cgroup namespace that begins at the
// cgroup of the remaining arguments. /usr is that of this machine, with what is written to it in $1/usr; /usr/local is $1/local.
const enterMachine = `set -e
dir=$1
shift
for procs; do echo 0 > "$procs"; done
exec unshare --cgroup -- /bin/sh -c "$SETUP" sh "$dir"
`

const setUpMachine = `set -e
mount --make-rprivate /
mount --bind "$1/root" "$1/root"
cd "$1/root"
mount -t overlay -o "lowerdir=/usr,upperdir=$1/usr,workdir=$1/work" overlay usr
mount --bind "$1/local" usr/local
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for node in null zero full random urandom tty kmsg; do
	: > dev/$node
	mount --bind /dev/$node dev/$node
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
for link in fd stdin stdout stderr; do
	case $link in fd) ln -s /proc/self/fd dev/fd ;; stdin) ln -s fd/0 dev/stdin ;; stdout) ln -s fd/1 dev/stdout ;; stderr) ln -s fd/2 dev/stderr ;; esac
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	mount -t cgroup2 cgroup2 sys/fs/cgroup
else
	mount -t tmpfs -o mode=0755 tmpfs sys/fs/cgroup
	while IFS=: read -r id controllers path; do
		case $controllers in
		'') continue ;;
		name=*) options=none,$controllers ;;
		*) options=$controllers ;;
		esac
		mkdir "sys/fs/cgroup/${controllers#name=}"
		mount -t cgroup -o "$options" cgroup "sys/fs/cgroup/${controllers#name=}"
	done < /proc/self/cgroup
fi
pivot_root . old
cd /
` + ownSysctls + `umount -l /old
mount --make-rshared /
exec env -i container=oci PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin ` + systemd + ` --system --unit=node.target \
	--show-status=no --log-target=null
`

// machineFiles returns the files of a machine.
func machineFiles(controlPlaneDir string) (map[string]string, error) {
	kubelet, err := kubeletConfig(map[string]any{
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock", "cgroupDriver": "systemd",
	})
	if err != nil {
		return nil, err
	}
	network, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "pods", "plugins": []any{map[string]any{
		"type": "ptp", "ipam": map[string]any{
			"type": "host-local", "ranges": [][]map[string]string{{{"subnet": "10.88.0.0/24"}}}, "routes": []map[string]string{{"dst": "0.0.0.0/0"}},
		},
	}}})
	if err != nil {
		return nil, err
	}
	files := map[string]string{
		"etc/passwd":                     "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":                      "root:x:0:\n",
		"etc/machine-id":                 strings.Repeat("0123456789abcdef", 2) + "\n",
		"etc/os-release":                 "ID=reaper-test\nPRETTY_NAME='a directory with systemd'\n",
		"etc/resolv.conf":                "nameserver 127.0.0.1\n",
		"etc/hosts":                      "127.0.0.1 localhost\n",
		"etc/cni/net.d/10-pods.conflist": string(network),
		"etc/kubernetes/kubelet.json":    string(kubelet),
		containerdConfig: fmt.Sprintf(`# of the node
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '%s'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # without CAP_SYS_RESOURCE
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/usr/lib/cni']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true
`, harness.PauseImage),
		"etc/systemd/system/node.target": "[Unit]\nDefaultDependencies=no\nWants=" + containerdUnit + " kubelet.service\n",
		"etc/systemd/system/" + containerdUnit: `[Unit]
DefaultDependencies=no
[Service]
Type=notify
ExecStart=/usr/bin/containerd
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNOFILE=65536
TasksMax=infinity
StandardOutput=append:` + containerdLog + `
StandardError=append:` + containerdLog + `
`,
		"etc/systemd/system/kubelet.service": `[Unit]
DefaultDependencies=no
After=` + containerdUnit + `
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/kubelet --config /etc/kubernetes/kubelet.json --kubeconfig /etc/kubernetes/kubeconfig --hostname-override ` + nodeName + ` --node-ip ` + nodeAddress + `
Restart=always
RestartSec=1
StandardOutput=append:` + kubeletLog + `
StandardError=append:` + kubeletLog + `
`,
	}
	const authority = "etc/kubernetes/ca.crt"
	for from, to := range map[string]string{"kubeconfig": "etc/kubernetes/kubeconfig", "certs/apiserver.crt": authority} {
		text, err := os.ReadFile(filepath.Join(controlPlaneDir, from))
		if err != nil {
			return nil, err
		}
		files[to] = strings.ReplaceAll(string(text), filepath.Join(controlPlaneDir, "certs/apiserver.crt"), "/"+authority)
	}
	return files, nil
}

// startMachine makes a machine in dir, one of harness.Scratch, and starts it. It is a node of the control plane whose files are in
// controlPlaneDir.
func startMachine(ctx context.Context, dir, env, controlPlaneDir string) (*machine, error) {
	m := &machine{dir: dir, exited: make(chan struct{})}
	for _, sub := range []string{
		"root/dev", "root/proc", "root/sys", "root/run", "root/tmp", "root/usr", "root/old", "root/root", "root/images",
		"root/var/log", "root/var/lib", "root/etc/containerd/conf.d", "usr/bin", "work", "local/bin",
	} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, m.path(link)); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink("/run", m.path("var/run")); err != nil {
		return nil, err
	}
	for _, name := range machineTools {
		tool, err := testutil.FindTool(name)
		if err != nil {
			return nil, err
		}
		// A copy and not a mount: runc makes an overlay of its directory.
		text, err := os.ReadFile(tool)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, "usr/bin", name), text, 0o755); err != nil {
			return nil, err
		}
	}
	files, err := machineFiles(controlPlaneDir)
	if err != nil {
		return nil, err
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(m.path(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	procs, err := harness.MakeCgroups("/" + filepath.Base(dir))
	if err != nil {
		return nil, err
	}
	m.cmd = exec.Command("/bin/sh", append([]string{"-c", enterMachine, "sh", dir}, procs...)...)
	m.cmd.Env = append(os.Environ(), env, "SETUP="+setUpMachine)
	var output bytes.Buffer
	m.cmd.Stdout, m.cmd.Stderr = &output, &output
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS, Setpgid: true, Pdeathsig: syscall.SIGKILL,
	}
	started := make(chan error)
	go func() {
		// The parent death signal comes when the thread ends that forked (prctl(2)): keep it.
		runtime.LockOSThread()
		err := m.cmd.Start()
		started <- err
		if err == nil {
			_ = m.cmd.Wait()
			close(m.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start a machine: %w", err)
	}
	if err := m.waitSystemd(ctx); err != nil {
		_ = m.close()
		return nil, fmt.Errorf("start a machine: %w\n%s", err, output.Bytes())
	}
	return m, nil
}

// waitSystemd waits until systemd has started its target.
func (m *machine) waitSystemd(ctx context.Context) error {
	ended := func() bool {
		select {
		case <-m.exited:
			return true
		default:
			return false
		}
	}
	if err := testutil.Poll(startTimeout, func() (bool, string) {
		if ended() || ctx.Err() != nil {
			return true, ""
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", m.cmd.Process.Pid))
		if err != nil || filepath.Base(exe) != filepath.Base(systemd) {
			return false, fmt.Sprint(exe, err)
		}
		out, err := m.command(ctx, "systemctl", "is-active", "node.target", containerdUnit, "kubelet.service").CombinedOutput()
		return err == nil, fmt.Sprintf("%v: %s", err, out)
	}); err != nil {
		return err
	}
	if ended() {
		return fmt.Errorf("it ended: %v", m.cmd.ProcessState)
	}
	return ctx.Err()
}

// path returns where a file of the machine is. What is below a mount on the machine is not seen there.
func (m *machine) path(name string) string {
	if rest, ok := strings.CutPrefix(name, "/usr/local/"); ok {
		return filepath.Join(m.dir, "local", rest)
	}
	return filepath.Join(m.dir, "root", name)
}

// command prepares a program of the machine that runs on it.
func (m *machine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	args = append([]string{"--target", strconv.Itoa(m.cmd.Process.Pid), "--mount", "--pid", "--uts", "--", name}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/usr/sbin", "HOME=/root"}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a program on the machine and returns what it prints.
func (m *machine) run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, testutil.Slow(2*time.Minute))
	defer cancel()
	out, err := m.command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("on the machine: %s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// importImage has containerd of the machine import an archive.
func (m *machine) importImage(ctx context.Context, archive []byte) error {
	const file = "/images/image.tar"
	if err := os.WriteFile(m.path(file), archive, 0o600); err != nil {
		return err
	}
	_, err := m.run(ctx, "ctr", "--namespace", harness.CRINamespace, "images", "import", file)
	return errors.Join(err, os.Remove(m.path(file)))
}

// close ends the machine. Its directory is the caller's to clear.
func (m *machine) close() error {
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-m.exited
	return nil
}
