package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	// ErrInUse is returned (wrapped) by Uninstall while tasks of ours exist: the handler, or at least the programs, have stayed.
	ErrInUse = errors.New("still in use")
	// ErrBroken is returned (wrapped) when containerd cannot read the configuration that the node has. Nothing was changed.
	ErrBroken = errors.New("the configuration is broken already")
)

// Programs are the names of what is installed. A shim finds the others beside itself, so it comes last.
var Programs = []string{"reaper-tracer", "reaper-init", "reaperctl", "containerd-shim-reaper-v2"}

// Installer says what is installed where. All paths are those of the node; a caller whose root is another changes it first,
// see OpenSource.
type Installer struct {
	// Source holds the programs. Where it is BinDir, nothing is copied and nothing removed.
	Source *os.Root
	// BinDir is a directory on containerd's PATH.
	BinDir string
	// ConfigPath is containerd's main configuration file, which need not exist.
	ConfigPath string
	// DropIn is the file with the handler, for containerd 2.x. Its name ends in ".toml".
	DropIn string
	// Containerd is the program, by path or by name.
	Containerd string
	// Address is the path of containerd's socket; "" takes what the configuration says.
	Address string
	// Handler is the name of the runtime handler.
	Handler string
	// Options are the handler's runtime options. SystemdCgroup is taken from the default handler when it is not among them.
	Options map[string]any
	// Restart is the command that restarts containerd. Without one the caller has to, and nothing is verified afterwards.
	Restart []string
	// Timeout is how long containerd may take until it serves.
	Timeout time.Duration
	// Wait is how long Uninstall waits for the last task of ours to end.
	Wait time.Duration
	// Step, if not nil, is told of each change of a file before it is made.
	Step func(what string)
	// Log is told what was done.
	Log func(format string, args ...any)
}

func (in *Installer) step(what string) {
	if in.Step != nil {
		in.Step(what)
	}
}

// prepare takes the lock and undoes what an interrupted run has left half done. The caller must call unlock.
func (in *Installer) prepare() (unlock func(), err error) {
	if filepath.Ext(in.DropIn) != ".toml" || !filepath.IsAbs(in.DropIn) || !filepath.IsAbs(in.ConfigPath) || !filepath.IsAbs(in.BinDir) {
		return nil, fmt.Errorf("paths %q, %q, %q: want absolute ones, the drop-in's ending in .toml", in.BinDir, in.ConfigPath, in.DropIn)
	}
	if in.Handler == "" || strings.Trim(in.Handler, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("handler %q: want a DNS label, as Kubernetes does", in.Handler)
	}
	if in.Containerd, err = findProgram(in.Containerd); err != nil {
		return nil, err
	}
	dir := filepath.Dir(in.ConfigPath)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: another installer is at work: %w", dir, err)
	}
	interrupted, err := in.rollBack()
	if err != nil {
		return nil, err
	}
	if interrupted {
		in.Log("an earlier run was interrupted: the configuration is again the one before it")
	}
	if err := in.sweep(append(in.configDirs(), in.BinDir)...); err != nil {
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// begin prepares a run and looks at the node as it is. The caller must call end.
func (in *Installer) begin(ctx context.Context) (before dump, d *daemon, end func(), err error) {
	unlock, err := in.prepare()
	if err != nil {
		return nil, nil, nil, err
	}
	if before, err = in.dumpCurrent(ctx); err == nil {
		d, err = in.connect(before)
	}
	if err != nil {
		unlock()
		return nil, nil, nil, err
	}
	return before, d, func() { d.close(); unlock() }, nil
}

// Install installs or upgrades. A second call changes nothing.
func (in *Installer) Install(ctx context.Context) error {
	before, d, end, err := in.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := in.checkPath(ctx, d); err != nil {
		return err
	}
	if err := in.installPrograms(ctx); err != nil {
		return err
	}
	if before.criOff() {
		in.Log("CRI is disabled in %s: the runtime %s can be used by its name, no handler was written", in.ConfigPath, runtimeType)
		return nil
	}
	p, err := in.planInstall(ctx, before)
	if err != nil {
		return err
	}
	if p.foreign {
		in.Log("%s has a handler %q with our runtime that somebody else wrote: left as it is", in.ConfigPath, in.Handler)
		return nil
	}
	return in.carryOut(ctx, d, before, p)
}

// checkPath refuses a directory in which the running daemon would not look.
func (in *Installer) checkPath(ctx context.Context, d *daemon) error {
	path, err := d.searchPath(ctx)
	if err != nil || path == "" || slices.Contains(filepath.SplitList(path), in.BinDir) {
		return err
	}
	return fmt.Errorf("directory %q for the programs: not on containerd's PATH, which is %q", in.BinDir, path)
}

// installPrograms replaces the programs that differ. Each is tried before it is in its place.
func (in *Installer) installPrograms(ctx context.Context) error {
	if err := os.MkdirAll(in.BinDir, 0o755); err != nil {
		return err
	}
	for _, name := range Programs {
		if err := in.installProgram(ctx, name); err != nil {
			return fmt.Errorf("install %s: %w", name, err)
		}
	}
	return nil
}

func (in *Installer) installProgram(ctx context.Context, name string) error {
	src, err := in.Source.Open(name)
	if err != nil {
		return err
	}
	defer src.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, src); err != nil {
		return err
	}
	want := sum.Sum(nil)
	path := filepath.Join(in.BinDir, name)
	if have, err := digest(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return err
	}
	temp, err := in.writeTemp(path, 0o755, src)
	if err != nil {
		return err
	}
	err = in.tryProgram(ctx, name, temp, want)
	if err == nil {
		err = in.rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, in.remove(temp))
	}
	in.Log("installed %s", path)
	return nil
}

// tryProgram checks that a program arrived whole, and that this machine can run it from there.
func (in *Installer) tryProgram(ctx context.Context, name, temp string, want []byte) error {
	have, err := digest(temp)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		return fmt.Errorf("%s has the SHA-256 sum %x after it was written, want %x", temp, have, want)
	}
	flag := "-v"
	if name == "reaper-init" {
		flag = "--version"
	}
	_, err = output(ctx, temp, flag)
	return err
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}

// plan is what becomes of the configuration.
type plan struct {
	// changes stand in the order in which any prefix of them is a good configuration.
	changes []change
	present bool // the handler, afterwards
	options map[string]any
	foreign bool
}

func (in *Installer) importPattern() string {
	return filepath.Join(filepath.Dir(in.DropIn), strings.TrimSuffix(filepath.Base(in.DropIn), ".toml")+"*.toml")
}

// newMain is the main file that is created where there is none.
func newMain(version int) []byte { return fmt.Appendf(nil, "version = %d %s\n", version, note) }

// bare returns the main file without anything of ours, nil where we created it.
func (in *Installer) bare(main []byte) ([]byte, error) {
	text, err := dropBlock(main)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", in.ConfigPath, err)
	}
	text = dropImport(text, in.importPattern())
	for v := range criPlugins {
		if bytes.Equal(text, newMain(v)) {
			return nil, nil
		}
	}
	return text, nil
}

func (in *Installer) planInstall(ctx context.Context, before dump) (plan, error) {
	ver, err := in.askVersion(ctx)
	if err != nil {
		return plan{}, err
	}
	main, err := readOptional(in.mainPath())
	if err != nil {
		return plan{}, err
	}
	dropIn, err := readOptional(in.DropIn)
	if err != nil {
		return plan{}, err
	}
	bare, err := in.bare(main)
	if err != nil {
		return plan{}, err
	}
	ours := dropIn != nil || bytes.Contains(main, []byte(blockBegin))
	if h := before.handler(in.Handler); h != nil && !ours {
		if h["runtime_type"] == runtimeType {
			return plan{foreign: true}, nil
		}
		return plan{}, fmt.Errorf("%s has a handler %q with the runtime_type %q: choose another name", in.ConfigPath, in.Handler, h["runtime_type"])
	}
	p := plan{present: true, options: map[string]any{}}
	if before.systemdCgroup() {
		p.options["SystemdCgroup"] = true
	}
	for k, v := range in.Options {
		p.options[k] = v
	}
	if ver == (version{1, 6}) {
		// It passes options in a file only, and the shim tells the cgroup driver by the form of the path.
		if len(in.Options) > 0 {
			return plan{}, errors.New("runtime options: containerd 1.6 passes none, use annotations")
		}
		clear(p.options)
	}
	if bare == nil {
		bare = newMain(min(ver.major, 2) + 1)
	}
	file, err := parseMain(bare)
	if err != nil {
		return plan{}, fmt.Errorf("%s: %w", in.ConfigPath, err)
	}
	tables, err := handlerTables(file.Version, in.Handler, p.options)
	if err != nil {
		return plan{}, err
	}
	if ver.major < 2 {
		known, err := defaultHandlers(bare, file.Version, before.withoutHandler(in.Handler))
		if err != nil {
			return plan{}, fmt.Errorf("%s: %w", in.ConfigPath, err)
		}
		p.changes = []change{{in.mainPath(), main, slices.Concat(bare, []byte(blockBegin), []byte(known), []byte(tables), []byte(blockEnd))}}
		return p, nil
	}
	newMain := bare
	if !file.imports(in.ConfigPath, in.DropIn) {
		if newMain, err = addImport(bare, in.importPattern()); err != nil {
			return plan{}, fmt.Errorf("%s: %w", in.ConfigPath, err)
		}
	}
	p.changes = []change{
		{in.DropIn, dropIn, fmt.Appendf(nil, "%s\nversion = %d\n\n%s", note, file.Version, tables)},
		{in.mainPath(), main, newMain},
	}
	return p, nil
}

func (in *Installer) planUninstall() (plan, error) {
	main, err := readOptional(in.mainPath())
	if err != nil {
		return plan{}, err
	}
	dropIn, err := readOptional(in.DropIn)
	if err != nil {
		return plan{}, err
	}
	p := plan{}
	if main != nil {
		bare, err := in.bare(main)
		if err != nil {
			return plan{}, err
		}
		p.changes = append(p.changes, change{in.mainPath(), main, bare})
	}
	p.changes = append(p.changes, change{in.DropIn, dropIn, nil})
	return p, nil
}

// carryOut validates a plan, makes it live, restarts containerd, and goes back when containerd does not come back with it.
func (in *Installer) carryOut(ctx context.Context, d *daemon, before dump, p plan) error {
	p.changes = slices.DeleteFunc(p.changes, change.nothing)
	if len(p.changes) == 0 {
		return in.settle(ctx, d, p)
	}
	for _, c := range p.changes {
		if err := os.MkdirAll(filepath.Dir(c.path), 0o755); err != nil {
			return err
		}
	}
	if err := in.validate(ctx, before, p); err != nil {
		return errors.Join(fmt.Errorf("the new configuration is not good, nothing was changed: %w", err), in.commit())
	}
	err := in.goLive(p.changes)
	if err == nil {
		err = in.checkLive(ctx, before, p)
	}
	if err == nil {
		for _, c := range p.changes {
			in.Log("changed %s", c.path)
		}
		err = in.restart(ctx, d, p)
	}
	if err == nil {
		return in.commit()
	}
	return in.goBack(ctx, d, err)
}

// goBack restores the configuration after an error, and has containerd run with it.
func (in *Installer) goBack(ctx context.Context, d *daemon, cause error) error {
	live, err := in.rollBack()
	if err != nil {
		return errors.Join(cause, err)
	}
	if err := in.commit(); err != nil {
		return errors.Join(cause, err)
	}
	if !live {
		return cause
	}
	cause = fmt.Errorf("the configuration is again the one before: %w", cause)
	if len(in.Restart) == 0 {
		return cause
	}
	// Also when the caller's time is up.
	ctx = context.WithoutCancel(ctx)
	if err := in.runRestart(ctx); err != nil {
		return errors.Join(cause, err)
	}
	return errors.Join(cause, in.await(ctx, "containerd serves again", func(ctx context.Context) error {
		_, err := d.runtimes(ctx)
		return err
	}))
}

// settle is for a configuration that is as it should be: does containerd run with it? An interrupted run may have been killed
// before its restart.
func (in *Installer) settle(ctx context.Context, d *daemon, p plan) error {
	if len(in.Restart) == 0 {
		return nil
	}
	runtimes, err := d.runtimes(ctx)
	if err == nil && in.runsWith(runtimes, p) {
		in.Log("containerd runs with the configuration as it should be")
		return nil
	}
	return in.restart(ctx, d, p)
}

func (in *Installer) runsWith(runtimes map[string]runtimeHandler, p plan) bool {
	h, ok := runtimes[in.Handler]
	return ok == p.present && (!ok || h.isOurs(p.options))
}

// validate has containerd read the new configuration from files that are not live.
func (in *Installer) validate(ctx context.Context, before dump, p plan) error {
	check := tempName(in.ConfigPath, ".check")
	main, err := readOptional(in.mainPath())
	if err != nil {
		return err
	}
	for _, c := range p.changes {
		if c.path == in.mainPath() {
			main = c.new
		}
	}
	for _, c := range p.changes {
		if c.path != in.DropIn || c.new == nil {
			continue
		}
		staged, err := in.writeTemp(c.path, 0o600, bytes.NewReader(c.new))
		if err != nil {
			return err
		}
		if main, err = addImport(dropImport(main, in.importPattern()), staged); err != nil {
			return err
		}
	}
	temp, err := in.writeTemp(check, 0o600, bytes.NewReader(main))
	if err != nil {
		return err
	}
	after, err := in.dump(ctx, temp)
	if err != nil {
		return err
	}
	// Uninstall: the file with the handler is still there, and an import of its directory finds it.
	if !p.present {
		return compare(before, after, in.Handler, after.handler(in.Handler) != nil, nil, false)
	}
	return compare(before, after, in.Handler, true, p.options, false)
}

// checkLive reads what containerd is about to read.
func (in *Installer) checkLive(ctx context.Context, before dump, p plan) error {
	after, err := in.dumpCurrent(ctx)
	if err != nil {
		return err
	}
	return compare(before, after, in.Handler, p.present, p.options, true)
}

func (in *Installer) restart(ctx context.Context, d *daemon, p plan) error {
	if len(in.Restart) == 0 {
		in.Log("containerd has to be restarted")
		return nil
	}
	if err := in.runRestart(ctx); err != nil {
		return err
	}
	if err := in.await(ctx, "containerd serves with the new configuration", func(ctx context.Context) error {
		runtimes, err := d.runtimes(ctx)
		if err == nil && !in.runsWith(runtimes, p) {
			err = fmt.Errorf("CRI's handler %q: %+v", in.Handler, runtimes[in.Handler])
		}
		return err
	}); err != nil {
		return err
	}
	in.Log("restarted containerd: it runs with the configuration as it should be")
	return nil
}

func (in *Installer) runRestart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, in.Timeout)
	defer cancel()
	program, err := findProgram(in.Restart[0])
	if err != nil {
		return fmt.Errorf("restart containerd: %w", err)
	}
	in.step("restart")
	cmd := exec.CommandContext(ctx, program, in.Restart[1:]...)
	cmd.Env = []string{"PATH=" + daemonPath}
	// What it starts may keep the pipes open.
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("restart containerd: %s: %w: %s", strings.Join(in.Restart, " "), err, bytes.TrimSpace(out))
	}
	in.step("restarted")
	return nil
}

// pollEvery is how often containerd is asked whether it serves.
const pollEvery = 200 * time.Millisecond

// await calls ready until it returns no error.
func (in *Installer) await(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, in.Timeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s: %w", in.Timeout, what, err)
		case <-time.After(pollEvery):
		}
	}
}

// Uninstall takes the handler and the programs away. While a task of ours exists it changes nothing and returns ErrInUse: the
// restart of a container of a running pod needs the handler, and its end needs the shim.
func (in *Installer) Uninstall(ctx context.Context) error {
	before, d, end, err := in.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := in.awaitUnused(ctx, d); err != nil {
		return err
	}
	p, err := in.planUninstall()
	if err != nil {
		return err
	}
	if before.criOff() {
		p.changes = nil
	}
	if h := before.handler(in.Handler); h != nil && len(slices.DeleteFunc(slices.Clone(p.changes), change.nothing)) == 0 {
		return fmt.Errorf("%s has a handler %q that somebody else wrote: take it out first", in.ConfigPath, in.Handler)
	}
	if !before.criOff() {
		if err := in.carryOut(ctx, d, before, p); err != nil {
			return err
		}
		// A pod may have started before the handler was gone.
		if err := in.awaitUnused(ctx, d); err != nil {
			return err
		}
	}
	if own, err := in.inPlace(); err != nil || own {
		return err
	}
	for _, name := range slices.Backward(Programs) {
		path := filepath.Join(in.BinDir, name)
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := in.remove(path); err != nil {
			return err
		}
		in.Log("removed %s", path)
	}
	return nil
}

// inPlace reports whether Source is BinDir itself: what is there belongs to a package, which takes it away.
func (in *Installer) inPlace() (bool, error) {
	src, err := in.Source.Stat(".")
	if err != nil {
		return false, err
	}
	dst, err := os.Stat(in.BinDir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(src, dst), err
}

// awaitUnused returns ErrInUse when tasks of ours exist and Wait is over.
func (in *Installer) awaitUnused(ctx context.Context, d *daemon) error {
	end := time.Now().Add(in.Wait)
	for {
		var users []string
		// An interrupted run may have left a daemon that is just starting.
		err := in.await(ctx, "are containers of ours running?", func(ctx context.Context) (err error) {
			users, err = d.users(ctx)
			return err
		})
		if err != nil || len(users) == 0 {
			return err
		}
		if !time.Now().Before(end) {
			return fmt.Errorf("%w: tasks of %s: %q", ErrInUse, runtimeType, users)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
