package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/install"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestMain is the installer that kills itself, when killEnv says so.
func TestMain(m *testing.M) {
	if text := os.Getenv(killEnv); text != "" {
		if err := killed(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Configurations that nodes have: another handler, and settings that have to stay as they are. None ends in a newline.
const (
	config2 = `# of the node
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  max_concurrent_downloads = 7
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true`
	config3 = `# of the node
version = 3
imports = [ "/etc/containerd/more/*.toml" ]  # none there
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'native'
  max_concurrent_downloads = 7
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.other]
  runtime_type = 'io.containerd.runc.v2'`
	// Without any handler: containerd knows runc by itself.
	config1 = "[plugins.cri.containerd]\nsnapshotter = 'native'\n"
)

var nodes = []struct{ name, containerd, config string }{
	{"2.x, version 3", "containerd", config3},
	{"2.x, version 2", "containerd", config2},
	{"2.x, no file", "containerd", ""},
	{"1.7, version 2", "containerd-1.7", config2},
	{"1.7, version 1", "containerd-1.7", config1},
	{"1.7, no file", "containerd-1.7", ""},
}

// TestInstall is the life of an installation: twice, upgraded, with other options, and taken away.
func TestInstall(t *testing.T) {
	t.Parallel()
	for _, c := range nodes {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they wait for daemons most of the time
			n := newNode(t, c.containerd, c.config)
			n.start()

			n.want(0, "restarted containerd", "install")
			if !n.hasHandler("reaper") || !n.hasHandler("runc") || !n.hasHandler("other") && strings.Contains(c.config, "runtimes.other") {
				t.Fatalf("handlers after the installation:\n%s", n.dump())
			}
			if strings.Contains(c.config, "max_concurrent") && !strings.Contains(n.dump(), "max_concurrent_downloads = 7") {
				t.Errorf("a setting of the node is gone:\n%s", n.dump())
			}
			config, dropIn := n.read(configPath), n.read(dropInPath)

			n.want(0, "as it should be", "install")
			if n.restartCount() != 1 || n.read(configPath) != config || n.read(dropInPath) != dropIn {
				t.Errorf("the second installation changed something: %d restarts", n.restartCount())
			}

			// An upgrade of the programs needs no restart.
			newer := newerPrograms(t)
			if code, out := n.runFrom(newer, "install"); code != 0 || n.restartCount() != 1 || !strings.Contains(out, "installed "+shimPath) {
				t.Errorf("upgrade: exit code %d, %d restarts", code, n.restartCount())
			}
			if n.read(shimPath) != string(must(os.ReadFile(filepath.Join(newer, filepath.Base(shimPath))))(t)) {
				t.Error("the upgrade left the old shim")
			}

			options := filepath.Join(t.TempDir(), "options.toml")
			if err := os.WriteFile(options, []byte("mode = 'observe'\ngrace = '3s'\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			n.want(0, "restarted containerd", "-options-file", options, "install")
			if d := n.dump(); !strings.Contains(strings.ReplaceAll(d, `"`, "'"), "mode = 'observe'") {
				t.Errorf("the options have not arrived:\n%s", d)
			}
			n.want(0, "restarted containerd", "install")
			if strings.Contains(n.dump(), "observe") {
				t.Error("options that were taken out are still there")
			}

			n.want(0, "removed "+shimPath, "uninstall")
			if got := n.read(configPath); got != c.config {
				t.Errorf("the configuration is not what it was:\n%q, want\n%q", got, c.config)
			}
			wantTree := ""
			if c.config != "" {
				wantTree = configPath
			}
			if got := n.tree(); got != wantTree {
				t.Errorf("left: %q, want %q", got, wantTree)
			}
			n.want(0, "", "uninstall")
		})
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// programsOf returns those of install.Programs that are built.
func programsOf(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, name := range install.Programs {
		if _, err := testutil.FindTool(name); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// newerPrograms returns a directory with programs that do the same and have other contents: what follows an ELF file is not
// loaded.
func newerPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range programsOf(t) {
		content := must(os.ReadFile(testutil.Tool(t, name)))(t)
		if err := os.WriteFile(filepath.Join(dir, name), append(content, "newer"...), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestRefusals: nothing is changed where something is wrong already.
func TestRefusals(t *testing.T) {
	t.Parallel()
	t.Run("broken configuration", func(t *testing.T) {
		const broken = "version = 3\n[plugins\n"
		n := newNode(t, "containerd", broken)
		n.want(4, "broken already", "install")
		n.want(4, "broken already", "uninstall")
		if n.read(configPath) != broken || n.tree() != configPath {
			t.Errorf("changed: %s", n.tree())
		}
	})
	t.Run("a handler of that name", func(t *testing.T) {
		n := newNode(t, "containerd", config3)
		n.want(1, "choose another name", "-handler", "other", "install")
		if n.read(configPath) != config3 || n.exists(dropInPath) {
			t.Errorf("changed: %s", n.tree())
		}
	})
	t.Run("a program that does not run", func(t *testing.T) {
		n := newNode(t, "containerd", config3)
		dir := newerPrograms(t)
		if err := os.WriteFile(filepath.Join(dir, "reaper-tracer"), []byte("\x7fELF of another machine"), 0o755); err != nil {
			t.Fatal(err)
		}
		if code, _ := n.runFrom(dir, "install"); code != 1 || n.tree() != configPath {
			t.Errorf("exit code %d, files %s", code, n.tree())
		}
	})
	t.Run("an import that replaces the table", func(t *testing.T) {
		n := newNode(t, "containerd-1.7", "version = 2\nimports = ['/etc/containerd/other.toml']\n")
		n.write("/etc/containerd/other.toml", config2)
		n.want(1, "another imported file may replace the table", "install")
		if strings.Contains(n.read(configPath), "reaper") {
			t.Errorf("changed:\n%s", n.read(configPath))
		}
	})
	t.Run("CRI disabled", func(t *testing.T) {
		const docker = "disabled_plugins = ['cri']\n"
		n := newNode(t, "containerd-1.7", docker)
		n.want(0, "CRI is disabled", "install")
		if n.read(configPath) != docker || !n.exists(shimPath) {
			t.Errorf("files: %s", n.tree())
		}
	})
	t.Run("a directory that is not on PATH", func(t *testing.T) {
		n := newNode(t, "containerd", config3)
		n.start()
		// The installer sees the daemon's environment in /proc only.
		n.must(syscall.Mount("/proc", n.path("/proc"), "", syscall.MS_BIND, ""))
		t.Cleanup(func() { n.must(syscall.Unmount(n.path("/proc"), syscall.MNT_DETACH)) })
		n.want(1, "not on containerd's PATH", "-bin-dir", "/opt/bin", "install")
		if n.tree() != configPath {
			t.Errorf("changed: %s", n.tree())
		}
	})
}

// TestRestartFails: containerd does not come back, and the node has its old configuration again, with which it does.
func TestRestartFails(t *testing.T) {
	t.Parallel()
	for _, c := range nodes {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they wait for daemons most of the time
			n := newNode(t, c.containerd, c.config)
			n.start()
			n.mu.Lock()
			n.refuse = 1
			n.mu.Unlock()
			n.want(1, "again the one before", "install")
			if n.read(configPath) != c.config || n.exists(dropInPath) || n.restartCount() != 2 {
				t.Errorf("after %d restarts:\n%s", n.restartCount(), n.read(configPath))
			}
			n.awaitServing()
			n.want(0, "restarted containerd", "install")
		})
	}
}

// TestFullDisk fills the disk to every degree. Whatever comes of it, containerd can read its configuration, and that is the
// old or the new one.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, "containerd", config3)
	tmpfs := func(dir string, pages int) (umount func()) {
		n.must(os.MkdirAll(n.path(dir), 0o755))
		n.must(syscall.Mount("tmpfs", n.path(dir), "tmpfs", 0, fmt.Sprintf("mode=0755,size=%d", pages*os.Getpagesize())))
		return func() { n.must(syscall.Unmount(n.path(dir), syscall.MNT_DETACH)) }
	}
	t.Run("programs", func(t *testing.T) {
		umount := tmpfs(binDir, 1<<20/os.Getpagesize())
		defer umount()
		n.want(1, "no space left on device", "install")
		if n.read(configPath) != config3 || n.tree() != configPath {
			t.Errorf("files: %s", n.tree())
		}
	})
	n.want(0, "", "install")
	n.want(0, "", "-restart", "none", "install")
	good := map[string]bool{}
	for pages := 1; ; pages++ {
		umount := tmpfs("/etc/containerd", pages)
		n.write(configPath, config3)
		code, out := n.run("install")
		has := n.hasHandler("reaper")
		if has != (code == 0) || !has && (n.read(configPath) != config3 || n.tree() != configPath+" "+programs(n)) {
			t.Errorf("%d pages: exit code %d, handler %v, files %s", pages, code, has, n.tree())
		}
		if code != 0 && !strings.Contains(out, "no space left on device") {
			t.Errorf("%d pages: %s", pages, out)
		}
		good[fmt.Sprint(code == 0)] = true
		umount()
		if code == 0 {
			break
		}
	}
	if !good["false"] {
		t.Error("the disk was never full")
	}
}

// programs lists the programs on the node as tree does.
func programs(n *node) string {
	var names []string
	for _, f := range strings.Fields(n.tree()) {
		if strings.HasPrefix(f, binDir) {
			names = append(names, f)
		}
	}
	return strings.Join(names, " ")
}

// killEnv makes this test binary an installer that kills itself: JSON of killPlan.
const killEnv = "REAPER_TEST_INSTALL_KILL"

type killPlan struct {
	Root, Source string
	Uninstall    bool
	// Step is the change before which it dies, from 1.
	Step int
}

func killed(text string) error {
	var p killPlan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	source, err := os.OpenRoot(p.Source)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Chroot(p.Root), os.Chdir("/")); err != nil {
		return err
	}
	step := 0
	in := install.Installer{
		Source: source, BinDir: binDir, ConfigPath: configPath, DropIn: dropInPath, Containerd: "containerd", Handler: "reaper",
		Restart: []string{"/bin/sh", "/restart.sh"}, Timeout: testutil.Slow(30 * time.Second),
		Log: func(string, ...any) {},
		Step: func(what string) {
			if step++; step == p.Step {
				fmt.Println("killed before:", what)
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	}
	if p.Uninstall {
		return in.Uninstall(context.Background())
	}
	return in.Install(context.Background())
}

// TestKilled kills the installer before each of its steps. containerd can start with what it finds then, and the next run
// finishes.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, c := range nodes {
		if c.name != "2.x, version 3" && c.name != "1.7, version 2" {
			continue // each takes most of a minute
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they wait for daemons most of the time
			n := newNode(t, c.containerd, c.config)
			n.start()
			started := map[string]bool{}
			kill := func(uninstall bool, step int) (finished bool) {
				plan := must(json.Marshal(killPlan{n.root, filepath.Dir(testutil.Tool(t, "reaper-install")), uninstall, step}))(t)
				cmd := exec.Command(must(os.Executable())(t))
				cmd.Env = append(os.Environ(), killEnv+"="+string(plan))
				out, err := cmd.CombinedOutput()
				if err == nil {
					return true
				}
				if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
					t.Fatalf("step %d: %v: %s", step, err, out)
				}
				t.Logf("step %d, uninstall %v: %s", step, uninstall, out)
				// The same configuration need not be tried twice.
				n.dump()
				if state := n.read(configPath) + "\x00" + n.read(dropInPath); !started[state] {
					started[state] = true
					n.stop()
					n.start()
				}
				return false
			}
			// The programs come first, and do not depend on containerd.
			first := 1
			if c.containerd != "containerd" {
				first = 2*len(programsOf(t)) + 1
			}
			for step := first; !kill(false, step); step++ {
				n.want(0, "", "install")
				if !n.hasHandler("reaper") || strings.Contains(n.tree(), ".reaper-install-") {
					t.Fatalf("after the next installation: %s", n.tree())
				}
				n.want(0, "", "-restart", "none", "uninstall")
			}
			for step := 1; !kill(true, step); step++ {
				n.want(0, "", "uninstall")
				if n.read(configPath) != c.config || n.exists(shimPath) || strings.Contains(n.tree(), ".reaper-install-") {
					t.Fatalf("after the next removal: %s\n%s", n.tree(), n.read(configPath))
				}
				n.want(0, "", "-restart", "none", "install")
			}
			if len(started) < 2 {
				t.Errorf("containerd was started with %d configurations, want the old and the new one at least", len(started))
			}
		})
	}
}

// TestUninstallInUse: containers of ours keep what they need, and are not touched.
func TestUninstallInUse(t *testing.T) {
	t.Parallel()
	n := newNode(t, "containerd", config3)
	n.start()
	n.want(0, "restarted containerd", "install")
	if out, err := n.ctr("run", "--detach", "--null-io", "--rootfs", "--runtime", "io.containerd.reaper.v2",
		"--cgroup", "/"+filepath.Base(n.root), "/crootfs", "c1", "/bin/sh", "-c", "trap 'exit 0' TERM; while :; do read x < /dev/zero; done"); err != nil {
		t.Fatalf("ctr run: %v: %s\n%s", err, out, n.tailLog())
	}
	config, tree, restarts := n.read(configPath), n.tree(), n.restartCount()
	n.want(3, "default/c1", "uninstall")
	if n.read(configPath) != config || n.tree() != tree || n.restartCount() != restarts {
		t.Errorf("changed: %s", n.tree())
	}
	if out, err := n.ctr("task", "exec", "--exec-id", "e1", "c1", "/bin/sh", "-c", "echo lives"); err != nil || !strings.Contains(out, "lives") {
		t.Errorf("exec after the refusal: %v: %s", err, out)
	}
	// It waits for the last one.
	ended := make(chan string, 1)
	go func() {
		_, err1 := n.ctr("task", "kill", "--signal", "KILL", "c1")
		out, err2 := n.ctr("task", "delete", "--force", "c1")
		if err := errors.Join(err1, err2); err != nil {
			ended <- fmt.Sprint(err, out)
		}
		close(ended)
	}()
	n.want(0, "removed "+shimPath, "-wait", testutil.Slow(time.Minute).String(), "uninstall")
	if msg := <-ended; msg != "" {
		t.Error(msg)
	}
	if out, err := n.ctr("container", "delete", "c1"); err != nil {
		t.Errorf("delete the container after the programs are gone: %v: %s", err, out)
	}
	if n.read(configPath) != config3 {
		t.Error("the configuration is not what it was")
	}
}
