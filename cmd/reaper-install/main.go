// Command reaper-install puts containerd-shim-reaper-v2 and its runtime handler on a node, or takes them off.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/reaper-shim/reaper/internal/install"
	"github.com/reaper-shim/reaper/internal/kube"
)

// version is set by the linker.
var version = "dev"

const usage = `Usage: reaper-install [flags] install|uninstall
       reaper-install -daemonset namespace/name retire

install    copies the programs to a directory on containerd's PATH, adds the runtime handler to containerd's configuration,
           and restarts containerd if that changed. What is already as it should be is left alone.
uninstall  undoes that, once no container of the runtime is running.
retire     has a DaemonSet of reaper-install uninstall on each node, and waits until it has.

A configuration goes live only after the node's own containerd has read it and found nothing else changed. If containerd
does not come back with it, the old one is restored. An interrupted run is undone by the next one.

Exit code: 0 done; 1 an error, containerd's configuration is as before; 2 wrong usage; 3 uninstall: containers of the
runtime are running, so handler and programs have stayed; 4 containerd cannot read the configuration that the node has,
nothing was changed.

`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "reaper-install:", err)
		switch {
		case errors.Is(err, errUsage):
			os.Exit(2)
		case errors.Is(err, install.ErrInUse):
			os.Exit(3)
		case errors.Is(err, install.ErrBroken):
			os.Exit(4)
		}
		os.Exit(1)
	}
}

var errUsage = errors.New("see reaper-install -h")

func run(args []string) error {
	in := install.Installer{Log: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }}
	flags := flag.NewFlagSet("reaper-install", flag.ExitOnError)
	root := flags.String("root", "/", "root `directory` of the node; all other paths but -source are below it")
	source := flags.String("source", "", "`directory` with the programs (default that of reaper-install)")
	optionsFile := flags.String("options-file", "", "`file` with the handler's runtime options, the body of a TOML table")
	restart := flags.String("restart", "systemd", "how to restart containerd: systemd, none, or a `command` that is split at spaces")
	unit := flags.String("unit", "containerd.service", "systemd `unit` of containerd")
	verbose := flags.Bool("verbose", false, "print each change of a file before it is made")
	showVersion := flags.Bool("version", false, "print the version and exit")
	flags.StringVar(&in.BinDir, "bin-dir", "/usr/local/bin", "`directory` for the programs, on containerd's PATH; the programs of a package stay where they are")
	flags.StringVar(&in.ConfigPath, "config", "/etc/containerd/config.toml", "containerd's configuration `file`")
	flags.StringVar(&in.DropIn, "drop-in", "/etc/containerd/conf.d/reaper.toml", "`file` for the handler, with containerd 2.x")
	flags.StringVar(&in.Containerd, "containerd", "containerd", "containerd's `program`")
	flags.StringVar(&in.Address, "address", "", "containerd's `socket` (default what its configuration says)")
	flags.StringVar(&in.Handler, "handler", "reaper", "`name` of the runtime handler")
	flags.DurationVar(&in.Timeout, "timeout", time.Minute, "how long containerd may take to serve after a restart")
	flags.DurationVar(&in.Wait, "wait", 0, "uninstall: how long to wait for containers of the runtime to end")
	node := flags.String("node", "", "in a DaemonSet: label this Kubernetes `node`, and stay until told to end")
	daemonSet := flags.String("daemonset", "", "retire: the DaemonSet, as `namespace/name`")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	_ = flags.Parse(args) // exits on error
	if *showVersion {
		fmt.Println("reaper-install", version)
		return nil
	}
	if *verbose {
		in.Step = func(what string) { fmt.Println(what) }
	}
	action := flags.Arg(0)
	if flags.NArg() != 1 || action != "install" && action != "uninstall" && action != "retire" {
		return fmt.Errorf("arguments %q: want install, uninstall or retire: %w", flags.Args(), errUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var api *kube.Client
	if *node != "" || action == "retire" {
		var err error
		// While the root is still that of the pod.
		if api, err = kube.InCluster(); err != nil {
			return err
		}
	}
	if action == "retire" {
		return retire(ctx, api, *daemonSet, retryEvery)
	}
	if *optionsFile != "" {
		text, err := os.ReadFile(*optionsFile)
		if err != nil {
			return err
		}
		if in.Options, err = install.ParseOptions(text); err != nil {
			return fmt.Errorf("%s: %w", *optionsFile, err)
		}
	}
	if err := openSource(&in, *source, *root); err != nil {
		return err
	}
	switch {
	case *restart == "none":
	case *restart != "systemd":
		in.Restart = strings.Fields(*restart)
	case *root == "/":
		in.Restart = []string{"systemctl", "restart", *unit}
	default:
		in.Restart = []string{"nsenter", "--target=1", "--mount", "--", "systemctl", "restart", *unit}
	}
	if *root != "/" {
		// Symbolic links, programs and sockets are then those of the node.
		if err := syscall.Chroot(*root); err != nil {
			return fmt.Errorf("chroot to %s: %w", *root, err)
		}
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	switch {
	case api != nil:
		return runOnNode(ctx, &in, api, *node, action, retryEvery)
	case action == "uninstall":
		return in.Uninstall(ctx)
	}
	return in.Install(ctx)
}

// openSource opens the directory with the programs while the root is still our own. Programs that a package has put into
// /usr/bin are in their place already.
func openSource(in *install.Installer, dir, root string) error {
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		dir = filepath.Dir(self)
		if root == "/" && dir == "/usr/bin" {
			in.BinDir = dir
		}
	}
	var err error
	in.Source, err = os.OpenRoot(dir)
	return err
}
