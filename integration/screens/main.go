// Command screens runs reaperctl, the demo and reaper-exporter on containers that leak and makes the pictures in docs/screens of what they
// show. Run it with "make screens", as root.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/console"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/reaper-shim/reaper/integration/browser"
	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/pngtext"
	"github.com/reaper-shim/reaper/internal/termsvg"
	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	dir = "docs/screens"
	// The terminal, in columns and lines. Pictures are only as large as what is shown.
	columns, lines = 120, 100
	topLines       = 10
	pageWidth      = 1280
	// history is how long the exporter watches before its page is shown, so that its lines show something.
	history = time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := screens(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "screens:", err)
		os.Exit(1)
	}
}

func screens(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run make screens as root")
	}
	if _, err := browser.Find(); err != nil {
		return fmt.Errorf("%w: make deps-browser", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := demo(ctx); err != nil {
		return err
	}
	d, err := harness.Start(ctx, harness.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	s, err := start(ctx, d)
	if err != nil {
		return err
	}
	end := s.leakOn(ctx)
	defer func() { err = errors.Join(err, end()) }()
	if err := s.page(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{{"ps"}, {"zombies", "api"}, {"leaks", "legacy", "--for", "12s"}, {"doctor"}} {
		if err := s.reaperctl(ctx, args...); err != nil {
			return err
		}
	}
	return s.top(ctx)
}

// scene is a node with containers that leak.
type scene struct {
	d          *harness.Daemon
	containers map[string]*harness.Container
	shown      *strings.Replacer // paths of this daemon's into those of an installed one
}

func start(ctx context.Context, d *harness.Daemon) (*scene, error) {
	bin, err := testutil.FindTool("reaperctl")
	if err != nil {
		return nil, err
	}
	s := &scene{d: d, containers: map[string]*harness.Container{}, shown: strings.NewReplacer(
		d.Dir+"/c.sock", "/run/containerd/containerd.sock", d.Dir+"/state", "/run/containerd",
		d.Dir+"/config.toml", "/etc/containerd/config.toml", filepath.Dir(bin), "/usr/local/bin")}
	pause := []string{"/bin/pause1", "poll"}
	for _, c := range []struct {
		name, runtime string
		annotations   map[string]string
		args          []string
	}{
		{name: "web", runtime: harness.ReaperRuntime, args: pause},
		{name: "api", runtime: harness.ReaperRuntime, annotations: map[string]string{"grace": "1h"},
			args: []string{"/bin/sh", "-c", "(exit 5) & exec /bin/pause1 poll"}},
		{name: "cron", runtime: harness.ReaperRuntime, annotations: map[string]string{"mode": "init"}, args: pause},
		{name: "build", runtime: harness.ReaperRuntime, annotations: map[string]string{"mode": "observe"}, args: pause},
		{name: "legacy", runtime: harness.RuncRuntime, args: pause},
	} {
		spec := harness.Spec{Runtime: c.runtime, Args: c.args, Labels: map[string]string{"nerdctl/name": c.name},
			Annotations: map[string]string{}, Extra: []oci.SpecOpts{oci.WithPidsLimit(64)}}
		for key, value := range c.annotations {
			spec.Annotations["io.containerd.reaper."+key] = value
		}
		if s.containers[c.name], err = d.Run(ctx, spec); err != nil {
			return nil, err
		}
	}
	for _, leak := range []struct{ name, script string }{
		{"api", "for i in 1 2 3; do nc 127.0.0.1 1 & done; exit 0"},
		{"build", "for i in 1 2; do sleep 0 & done; exit 0"},
		{"legacy", "for i in 1 2 3 4; do sleep 0 & done; exit 0"},
	} {
		if err := s.sh(ctx, leak.name, leak.script); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// sh runs a script in a container by an exec.
func (s *scene) sh(ctx context.Context, name, script string) error {
	r, err := s.containers[name].Exec(ctx, "/bin/sh", "-c", script)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("exit code %d: %s", r.Code, r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("in %s: %s: %w", name, script, err)
	}
	return nil
}

// leakOn has things left behind again and again until end is called.
func (s *scene) leakOn(ctx context.Context) (end func() error) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		failures error
	)
	for _, l := range []struct {
		name, script string
		every        time.Duration
	}{
		// The shell lives long enough to be seen as the parent of what it leaves behind.
		{"web", "sleep 0.6 & sleep 0.3; exit 0", 700 * time.Millisecond},
		{"cron", "sleep 0 & exit 0", 2500 * time.Millisecond},
		{"legacy", "(sleep 0.6; exec nc 127.0.0.1 1) & sleep 0.3; exit 0", 3 * time.Second},
	} {
		wg.Go(func() {
			ticker := time.NewTicker(l.every)
			defer ticker.Stop()
			for ctx.Err() == nil {
				// One that has begun is finished.
				if err := s.sh(context.WithoutCancel(ctx), l.name, l.script); err != nil {
					mu.Lock()
					failures = errors.Join(failures, err)
					mu.Unlock()
					return
				}
				select {
				case <-ticker.C:
				case <-ctx.Done():
				}
			}
		})
	}
	return func() error {
		cancel()
		wg.Wait()
		return failures
	}
}

func (s *scene) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	bin, err := testutil.FindTool("reaperctl")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, bin, append([]string{"--address", s.d.Address}, args...)...)
	cmd.Env = append(s.d.Env(), "TZ=UTC")
	return cmd, nil
}

// reaperctl runs it to its end.
func (s *scene) reaperctl(ctx context.Context, args ...string) error {
	cmd, err := s.command(ctx, args...)
	if err != nil {
		return err
	}
	t, err := run(cmd, lines)
	if err != nil {
		return err
	}
	if err := t.wait(); err != nil {
		return fmt.Errorf("reaperctl %s: %w: %s", strings.Join(args, " "), err, t.output())
	}
	return save(args[0], "reaperctl "+strings.Join(args, " "), s.shown.Replace(t.output()), lines)
}

// top shows the live table, and leaves it by its key.
func (s *scene) top(ctx context.Context) (err error) {
	cmd, err := s.command(ctx, "top")
	if err != nil {
		return err
	}
	t, err := run(cmd, topLines)
	if err != nil {
		return err
	}
	var shown string
	wait := testutil.Poll(20*time.Second, func() (bool, string) {
		shown = t.output()
		text := strings.Join(screen(shown, topLines).Lines(), "\n")
		return strings.Contains(text, "by zombies") && strings.Contains(text, "legacy"), text
	})
	if _, err := io.WriteString(t.terminal, "q"); err != nil {
		return errors.Join(err, wait)
	}
	if err := errors.Join(wait, t.wait()); err != nil {
		return fmt.Errorf("reaperctl top: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "top.svg"), screen(shown, topLines).SVG("reaperctl top"), 0o644)
}

// demo runs make demo, but for what that builds.
func demo(ctx context.Context) error {
	bin, err := os.MkdirTemp("", "demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	program := filepath.Join(bin, "demo")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./integration/demo").CombinedOutput(); err != nil {
		return fmt.Errorf("build the demo: %w: %s", err, out)
	}
	t, err := run(exec.CommandContext(ctx, program), lines)
	if err != nil {
		return err
	}
	if err := t.wait(); err != nil {
		return fmt.Errorf("the demo: %w: %s", err, t.output())
	}
	return save("demo", "make demo", t.output(), lines)
}

// page shows the exporter's status page, in a light and in a dark theme.
func (s *scene) page(ctx context.Context) (err error) {
	bin, err := testutil.FindTool("reaper-exporter")
	if err != nil {
		return err
	}
	cmd := exec.Command(bin, "--containerd.address", s.d.Address, "--containerd.state", s.d.Dir+"/state",
		"--web.listen-address", "127.0.0.1:0", "--poll-interval", "1s")
	var log harness.Output
	cmd.Env, cmd.Stdout, cmd.Stderr = s.d.Env(), &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	}()
	var url string
	if err := testutil.Poll(20*time.Second, func() (bool, string) {
		_, rest, found := strings.Cut(log.String(), `msg="Listening on" address=`)
		if fields := strings.Fields(rest); found && len(fields) > 0 {
			url = "http://" + fields[0] + "/status"
		}
		return url != "", log.String()
	}); err != nil {
		return err
	}
	select {
	case <-time.After(history):
	case <-ctx.Done():
		return ctx.Err()
	}
	b, err := browser.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	for name, dark := range map[string]bool{"status-light.png": false, "status-dark.png": true} {
		p, err := b.Look(url, browser.View{Width: pageWidth, Dark: dark})
		if err != nil {
			return err
		}
		if len(p.Rows) < 4 || p.TableWidth > pageWidth || len(b.Problems()) > 0 {
			return fmt.Errorf("the status page has %d rows in a table %d pixels wide; %q", len(p.Rows), p.TableWidth, b.Problems())
		}
		titles, err := json.Marshal(p.Columns)
		if err != nil {
			return err
		}
		png, err := pngtext.Set(p.PNG, string(titles))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), png, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// tty is a program that runs on a terminal.
type tty struct {
	cmd      *exec.Cmd
	terminal console.Console
	read     chan struct{} // closed at the end of the output

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func run(cmd *exec.Cmd, height uint16) (*tty, error) {
	terminal, path, err := console.NewPty()
	if err != nil {
		return nil, err
	}
	t := &tty{cmd: cmd, terminal: terminal, read: make(chan struct{})}
	slave, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		defer slave.Close()
		err = terminal.Resize(console.WinSize{Width: columns, Height: height})
	}
	if err != nil {
		terminal.Close()
		return nil, err
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "TERM=xterm-256color", "NO_COLOR=", "COLORTERM=")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		terminal.Close()
		return nil, err
	}
	go func() {
		defer close(t.read)
		_, _ = io.Copy(t, terminal) // ends with EIO when nobody has the terminal open any more
	}()
	return t, nil
}

// Write keeps what the program has written.
func (t *tty) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.Write(p)
}

func (t *tty) output() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.String()
}

func (t *tty) wait() error {
	err := t.cmd.Wait()
	<-t.read
	return errors.Join(err, t.terminal.Close())
}

// screen is what a terminal shows after that output.
func screen(output string, height int) *termsvg.Screen {
	s := termsvg.NewScreen(columns, height)
	go func() { _, _ = io.Copy(io.Discard, s.Answers()) }()
	_, _ = io.WriteString(s, output) // an emulator takes everything
	_ = s.Close()
	return s
}

// save makes the picture of a command at a shell's prompt.
func save(name, command, output string, height int) error {
	prompt := "\x1b[2m$\x1b[0m \x1b[1m" + command + "\x1b[0m\r\n"
	return os.WriteFile(filepath.Join(dir, name+".svg"), screen(prompt+output, height).SVG(command), 0o644)
}
