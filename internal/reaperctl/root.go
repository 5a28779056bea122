// Package reaperctl is the command of that name: see its help, and docs/reaperctl.md.
package reaperctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/node"
)

// Exit codes. They are part of the interface: docs/reaperctl.md lists them.
const (
	ExitOK          = 0
	ExitError       = 1 // anything else went wrong
	ExitUsage       = 2 // the command line is wrong
	ExitUnavailable = 3 // containerd cannot be reached
	ExitNoContainer = 4 // no container, or more than one, is meant by the argument
	ExitForeign     = 5 // the container is not of the reaper runtime
	ExitNotOK       = 6 // doctor: a check failed; reap: proven orphans are left, or nothing may be reaped there
)

// errNotOK is the error of a command that did its work and found something that is not as it should be. What, it has printed.
var errNotOK = errors.New("not ok")

const long = `reaperctl shows which containers of this node leave zombies behind, what the reaper shims do about them, and what keeps
them from it. It needs root: the sockets of containerd and of its shims are root's.

Exit codes:
  0  done
  1  something went wrong; standard error says what
  2  the command line is wrong
  3  containerd cannot be reached
  4  no container, or more than one, is meant by CONTAINER
  5  the container is not of the reaper runtime
  6  doctor: a check failed; reap: proven orphans are left, or nothing may be reaped there

CONTAINER is an ID or its first three or more characters, namespace/pod/container, pod/container, the name of a container or a pod
that only one has, or a name of nerdctl's.

With -o json and -o yaml names of fields keep their meaning; new ones may be added. Durations are seconds.`

// app is one run of the command.
type app struct {
	out, err io.Writer
	format   string
	tty      bool // out is a terminal
	color    bool
	width    int // of the terminal, in columns; 0 where out is none
	node     node.Options

	running bool // the command line was understood
}

// Main runs the command with its arguments and returns the exit code.
func Main(ctx context.Context, version string, args []string, out, errOut io.Writer) int {
	a := &app{out: out, err: errOut}
	a.tty, a.color, a.width = terminal(out)
	root := a.command(version)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := ExitOK
	switch {
	case err == nil:
	case errors.Is(err, errNotOK):
		return ExitNotOK
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return ExitOK // interrupted, as is the way to end events and top
	case !a.running:
		code = ExitUsage
	default:
		code = exitCode(err)
	}
	if err != nil {
		fmt.Fprintf(errOut, "reaperctl: %s\n", safe(err.Error()))
		if h := hint(err, code, os.Geteuid()); h != "" {
			fmt.Fprintln(errOut, h)
		}
	}
	return code
}

func exitCode(err error) int {
	switch {
	case errors.Is(err, node.ErrUnavailable):
		return ExitUnavailable
	case errors.Is(err, node.ErrNotFound), errors.Is(err, node.ErrAmbiguous):
		return ExitNoContainer
	case errors.Is(err, node.ErrForeign):
		return ExitForeign
	case errdefs.IsFailedPrecondition(err):
		return ExitNotOK
	default:
		return ExitError
	}
}

// hint says what can be done about an error.
func hint(err error, code, uid int) string {
	switch {
	case errors.Is(err, fs.ErrPermission) && uid != 0:
		return "The sockets of containerd and of its shims are root's: run reaperctl as root."
	case code == ExitUnavailable && errors.Is(err, syscall.ECONNREFUSED):
		return "Nobody listens there: containerd is not running."
	case code == ExitUnavailable && errors.Is(err, fs.ErrNotExist):
		return "Is containerd running? Another socket is named by --address or " + node.AddressEnv + ". \"reaperctl scan\" works without."
	case errors.Is(err, node.ErrNotFound), errors.Is(err, node.ErrAmbiguous):
		return "\"reaperctl ps -o wide\" lists names and IDs."
	case errors.Is(err, node.ErrForeign):
		return "Only shims of io.containerd.reaper.v2 know about zombies; \"reaperctl scan\" finds those of any container."
	case code == ExitUsage:
		return "\"reaperctl --help\" says more."
	default:
		return ""
	}
}

func (a *app) command(version string) *cobra.Command {
	root := &cobra.Command{
		Use:           "reaperctl",
		Short:         "Zombies of containers: who leaves them, what is done about them, what keeps it from being done",
		Long:          long,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(formats, a.format) {
				return fmt.Errorf("--output %s: want one of %s", safe(a.format), strings.Join(formats, ", "))
			}
			a.running = true
			return nil
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	f := root.PersistentFlags()
	f.StringVarP(&a.format, "output", "o", "table", "`format`: "+strings.Join(formats, ", "))
	f.StringVarP(&a.node.Address, "address", "a", "", "`path` of containerd's socket (default "+node.AddressEnv+", else the first that exists of "+
		strings.Join(node.DefaultAddresses, ", ")+")")
	f.StringSliceVarP(&a.node.Namespaces, "namespace", "n", nil, "containerd `namespaces` to look at (default all)")
	f.StringVar(&a.node.StateDir, "state", "", "containerd's state `directory` (default what its command line or configuration says)")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	root.AddCommand(a.psCommand(), a.zombiesCommand(), a.reapCommand(), a.scanCommand(), a.eventsCommand(), a.doctorCommand(), a.leaksCommand(), a.topCommand())
	return root
}

// open connects to containerd. The caller must close the node.
func (a *app) open(ctx context.Context) (*node.Node, error) { return node.Open(ctx, a.node) }

// completeContainer offers the names and IDs of the tasks on the node.
func (a *app) completeContainer(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	n, err := a.open(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer n.Close()
	tasks, err := n.List(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completions(tasks, prefix), cobra.ShellCompDirectiveNoFileComp
}

// completions are names where a container has one; IDs once the prefix can be one. A name that would need escaping is not offered: a
// shell takes it for something else.
func completions(tasks []*node.Task, prefix string) []cobra.Completion {
	var out []cobra.Completion
	for _, t := range tasks {
		name := t.Name()
		if !strings.HasPrefix(name, prefix) || name == "" && prefix != "" {
			name = t.ID
		}
		if strings.HasPrefix(name, prefix) && plain(name) {
			out = append(out, cobra.CompletionWithDesc(name, safe(t.Namespace+", "+t.Runtime)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
