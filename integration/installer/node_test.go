package installer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	configPath = "/etc/containerd/config.toml"
	dropInPath = "/etc/containerd/conf.d/reaper.toml"
	binDir     = "/usr/local/bin"
	shimPath   = binDir + "/containerd-shim-reaper-v2"
)

// node is a root directory in which a containerd can run.
type node struct {
	t    *testing.T
	root string
	// ns is the mount namespace whose root is the directory, open so that it outlives the daemon.
	ns *os.File

	mu       sync.Mutex
	daemon   *exec.Cmd // guarded by mu
	exited   chan struct{}
	restarts int // guarded by mu
	refuse   int // so many restarts fail; guarded by mu
}

// newNode makes a node with this containerd of bin/tools. An empty config stands for no configuration file.
func newNode(t *testing.T, containerd, config string) *node {
	t.Helper()
	testutil.Root(t)
	for _, tool := range []string{"nsenter", "unshare", "pivot_root", "reaper-install", "containerd-shim-reaper-v2"} {
		testutil.Tool(t, tool)
	}
	root, err := os.MkdirTemp("/tmp", "rpi-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, root: root}
	t.Cleanup(n.close)
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "old", "bin", "etc/containerd", "usr/bin", "usr/lib", "usr/lib64", "crootfs/bin"} {
		n.must(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	n.must(os.Symlink("usr/lib", filepath.Join(root, "lib")))
	n.must(os.Symlink("usr/lib64", filepath.Join(root, "lib64")))
	n.must(syscall.Mknod(filepath.Join(root, "dev/null"), syscall.S_IFCHR|0o666, 1<<8|3))
	for to, tool := range map[string]string{
		"usr/bin/containerd": containerd, "usr/bin/containerd-shim-runc-v2": "containerd-shim-runc-v2", "usr/bin/runc": "runc",
		"usr/bin/ctr": "ctr", "bin/sh": "busybox", "crootfs/bin/sh": "busybox",
	} {
		n.copyTool(tool, to)
	}
	n.must(os.Symlink("sh", filepath.Join(root, "bin/busybox")))
	if config != "" {
		n.write(configPath, config)
	}
	n.serveRestarts()
	return n
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) copyTool(tool, to string) {
	n.t.Helper()
	src, err := os.Open(testutil.Tool(n.t, tool))
	n.must(err)
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(n.root, to), os.O_WRONLY|os.O_CREATE, 0o755)
	n.must(err)
	_, err = io.Copy(dst, src)
	n.must(errors.Join(err, dst.Close()))
}

func (n *node) path(name string) string { return filepath.Join(n.root, name) }

func (n *node) write(name, content string) {
	n.t.Helper()
	n.must(os.WriteFile(n.path(name), []byte(content), 0o644))
}

// read returns "" for a file that is not there.
func (n *node) read(name string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.path(name))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	return string(b)
}

func (n *node) exists(name string) bool {
	_, err := os.Lstat(n.path(name))
	return err == nil
}

// restartScript is how the installer restarts the daemon: it asks the test, which is outside of the root.
const restartScript = `bb=/bin/busybox
$bb mkfifo /reply.$$ && echo $$ > /restart.fifo && read r < /reply.$$; $bb rm /reply.$$; [ "$r" = ok ]
`

func (n *node) serveRestarts() {
	n.write("/restart.sh", restartScript)
	n.must(syscall.Mkfifo(n.path("/restart.fifo"), 0o600))
	// For reading and writing, so that it does not end with the first writer.
	fifo, err := os.OpenFile(n.path("/restart.fifo"), os.O_RDWR, 0)
	n.must(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(fifo)
		for lines.Scan() {
			answer := "ok"
			if err := n.restart(); err != nil {
				answer = err.Error()
			}
			// Without blocking: who asked may have been killed.
			f, err := os.OpenFile(n.path("/reply."+lines.Text()), os.O_RDWR|syscall.O_NONBLOCK, 0)
			if err == nil {
				_, _ = f.WriteString(answer + "\n")
				// The answer is lost when nobody has the FIFO open.
				_ = testutil.Poll(time.Second, func() (bool, string) { return !n.exists("/reply." + lines.Text()), "" })
				f.Close()
			}
		}
	}()
	n.t.Cleanup(func() {
		fifo.Close()
		<-done
	})
}

func (n *node) restart() error {
	n.mu.Lock()
	n.restarts++
	refuse := n.refuse > 0
	n.refuse--
	n.mu.Unlock()
	n.stop()
	if refuse {
		return errors.New("refused by the test")
	}
	return n.startProcess()
}

// enter is what makes the directory the root of a mount namespace; pivot_root(2) and not chroot(2), since runc pivots in it.
const enter = `set -e
mount --bind "$1" "$1"
cd "$1"
for m in proc sys dev; do mount --rbind /$m $m; done
for m in usr/lib usr/lib64; do mount --rbind /$m $m; done
pivot_root . old
/bin/busybox umount -l old
exec /usr/bin/containerd
`

func (n *node) startProcess() error {
	var cmd *exec.Cmd
	if n.ns == nil {
		cmd = exec.Command("unshare", "--mount", "/bin/sh", "-c", enter, "sh", n.root)
	} else {
		cmd = exec.Command("nsenter", "--mount=/proc/self/fd/3", "--", "/usr/bin/containerd")
		cmd.ExtraFiles = []*os.File{n.ns}
	}
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	log, err := os.OpenFile(n.path("/containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	n.mu.Lock()
	n.daemon, n.exited = cmd, exited
	n.mu.Unlock()
	if n.ns != nil {
		return nil
	}
	// The namespace is complete when the daemon itself runs in it.
	if err := testutil.Poll(20*time.Second, func() (bool, string) {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
		return filepath.Base(exe) == "containerd" || isClosed(exited), exe
	}); err != nil {
		return err
	}
	n.ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid))
	return err
}

// start starts the daemon and waits until CRI serves.
func (n *node) start() {
	n.t.Helper()
	n.must(n.startProcess())
	n.awaitServing()
}

// awaitServing waits until the daemon has loaded CRI.
func (n *node) awaitServing() {
	n.t.Helper()
	testutil.Eventually(n.t, 60*time.Second, func() (bool, string) {
		out, err := n.ctr("plugins", "ls")
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) >= 3 && f[0] == "io.containerd.grpc.v1" && f[1] == "cri" {
				return err == nil && f[len(f)-1] == "ok", line + n.tailLog()
			}
		}
		return false, out + "\n" + n.tailLog()
	})
}

func (n *node) tailLog() string {
	text := n.read("/containerd.log")
	if len(text) > 3000 {
		text = text[len(text)-3000:]
	}
	return text
}

func (n *node) ctr(args ...string) (string, error) {
	if n.ns == nil {
		return "", errors.New("no daemon")
	}
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Slow(30*time.Second))
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--mount=/proc/self/fd/3", "--", "/usr/bin/ctr"}, args...)...)
	cmd.ExtraFiles = []*os.File{n.ns}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// stop stops the daemon, if there is one. Shims stay.
func (n *node) stop() {
	n.mu.Lock()
	cmd, exited := n.daemon, n.exited
	n.daemon = nil
	n.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(testutil.Slow(20 * time.Second)):
		_ = cmd.Process.Kill()
		<-exited
	}
}

func (n *node) restartCount() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.restarts
}

func (n *node) close() {
	n.stop()
	if n.ns != nil {
		n.ns.Close()
	}
	// The sockets that Docker's and CRI's plugins left are files; what was mounted went with the namespace.
	if err := os.RemoveAll(n.root); err != nil {
		n.t.Error(err)
	}
}

// run runs reaper-install on the node, and returns its exit code and what it printed.
func (n *node) run(args ...string) (int, string) {
	n.t.Helper()
	return n.runFrom(filepath.Dir(testutil.Tool(n.t, "reaper-install")), args...)
}

// runFrom is run with the programs of another directory.
func (n *node) runFrom(source string, args ...string) (int, string) {
	n.t.Helper()
	restart := "/bin/sh /restart.sh"
	if n.ns == nil {
		restart = "none"
	}
	cmd := exec.Command(testutil.Tool(n.t, "reaper-install"),
		append([]string{"-root", n.root, "-source", source, "-restart", restart, "-timeout", testutil.Slow(30 * time.Second).String()}, args...)...)
	out, err := cmd.CombinedOutput()
	n.t.Logf("reaper-install %s\n%s", strings.Join(args, " "), out)
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// want runs reaper-install and fails the test unless it exits with code and prints text.
func (n *node) want(code int, text string, args ...string) {
	n.t.Helper()
	got, out := n.run(args...)
	if got != code || !strings.Contains(out, text) {
		n.t.Fatalf("reaper-install %v: exit code %d, want %d and %q:\n%s\n%s", args, got, code, text, out, n.tailLog())
	}
}

// dump is the configuration as the node's containerd understands it. It fails the test if it cannot.
func (n *node) dump() string {
	n.t.Helper()
	what := "dump"
	if !n.exists(configPath) {
		what = "default"
	}
	cmd := exec.Command("/usr/bin/containerd", "config", what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: n.root}
	cmd.Dir = "/"
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("containerd cannot read its configuration: %v: %s\n%s\n%s", err, stderr.String(), n.read(configPath), n.read(dropInPath))
	}
	return string(out)
}

// hasHandler reports whether the configuration has a handler.
func (n *node) hasHandler(name string) bool {
	n.t.Helper()
	return strings.Contains(strings.ReplaceAll(n.dump(), `"`, "'"), "containerd.runtimes."+name+"]\n")
}

// tree lists the files below the directories that an installer writes to, without those that programs are.
func (n *node) tree() string {
	n.t.Helper()
	var names []string
	for _, dir := range []string{"/etc/containerd", binDir} {
		n.must(filepath.WalkDir(n.path(dir), func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				names = append(names, strings.TrimPrefix(path, n.root))
			}
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}))
	}
	return strings.Join(names, " ")
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
