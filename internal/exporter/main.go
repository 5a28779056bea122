package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/escape"
	"github.com/reaper-shim/reaper/internal/node"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

const long = `reaper-exporter serves what the reaper shims of this node know of zombies: to Prometheus at /metrics, to people at /status.
It has to run as root, for the sockets of containerd and of its shims are root's, and needs no capabilities.

TLS, client certificates and basic auth are set in the file of --web.config.file, as for other exporters:
https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md`

const (
	defaultAddress = ":9918"
	// minInterval: a look takes the shims some time.
	minInterval = time.Second
	// headerTimeout is for a client that says nothing, shutdownTimeout for the answers under way at the end.
	headerTimeout   = 10 * time.Second
	shutdownTimeout = 5 * time.Second
)

// options of the command line.
type options struct {
	node        node.Options
	addresses   []string
	systemd     bool
	webConfig   string
	interval    time.Duration
	retain      time.Duration
	topCommands int
	level       string
}

// Main runs the command with its arguments until ctx ends, and returns the exit code. The log goes to errOut.
func Main(ctx context.Context, version string, args []string, out, errOut io.Writer) int {
	var (
		o       options
		running bool
	)
	cmd := &cobra.Command{
		Use:           "reaper-exporter",
		Short:         "Zombies of this node's containers, for Prometheus",
		Long:          long,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level, err := o.check()
			if err != nil {
				return err
			}
			running = true
			return o.serve(cmd.Context(), version, slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level})))
		},
	}
	cmd.SetOut(out)
	cmd.SetErr(errOut)
	f := cmd.Flags()
	f.StringSliceVar(&o.addresses, "web.listen-address", []string{defaultAddress}, "`address` to listen on; can be given more than once")
	f.BoolVar(&o.systemd, "web.systemd-socket", false, "listen on the sockets that systemd passes, and on no address")
	f.StringVar(&o.webConfig, "web.config.file", "", "`file` that turns on TLS or authentication")
	f.StringVar(&o.node.Address, "containerd.address", "", "`path` of containerd's socket (default "+node.AddressEnv+", else the first that exists of "+
		strings.Join(node.DefaultAddresses, ", ")+")")
	f.StringVar(&o.node.StateDir, "containerd.state", "", "containerd's state `directory` (default what its command line or configuration says, if they can be read)")
	f.StringSliceVar(&o.node.Namespaces, "containerd.namespace", nil, "`namespaces` of containerd to look at (default all)")
	f.DurationVar(&o.node.ShimTimeout, "shim-timeout", time.Second, "`time` that one shim has to answer")
	f.DurationVar(&o.interval, "poll-interval", 10*time.Second, "`time` between two looks when nobody scrapes")
	f.DurationVar(&o.retain, "retain", time.Hour, "`time` for which the counters of a container that is gone are served")
	f.IntVar(&o.topCommands, "top-commands", 10, "`number` of commands that have a series of their own")
	f.StringVar(&o.level, "log.level", "info", "debug, info, warn or error")
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(errOut, "reaper-exporter: %s\n", escape.Text(err.Error()))
		if running {
			return exitError
		}
		fmt.Fprintln(errOut, `"reaper-exporter --help" says more.`)
		return exitUsage
	}
	return exitOK
}

// check returns the log level, or what is wrong with the options.
func (o *options) check() (level slog.Level, err error) {
	switch {
	case o.node.ShimTimeout <= 0:
		return level, fmt.Errorf("--shim-timeout %v: want more than 0s", o.node.ShimTimeout)
	case o.interval < minInterval:
		return level, fmt.Errorf("--poll-interval %v: want %v or more", o.interval, minInterval)
	case o.retain < 0:
		return level, fmt.Errorf("--retain %v: want 0s or more", o.retain)
	case o.topCommands < 0:
		return level, fmt.Errorf("--top-commands %d: want 0 or more", o.topCommands)
	}
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return level, fmt.Errorf("--log.level %q: want debug, info, warn or error", o.level)
	}
	return level, nil
}

func (o *options) serve(ctx context.Context, version string, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	o.node.SkipStates = true
	e := newExporter(config{
		open: func(ctx context.Context) (source, error) { return node.Open(ctx, o.node) },
		log:  log, now: time.Now, interval: o.interval, retain: o.retain, topCommands: o.topCommands,
	})
	handler, err := e.handler(version)
	if err != nil {
		cancel()
		return err
	}
	done := make(chan struct{})
	go func() { e.run(ctx); close(done) }()
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		stopped <- server.Shutdown(ctx)
	}()
	err = web.ListenAndServe(server, &web.FlagConfig{WebListenAddresses: &o.addresses, WebSystemdSocket: &o.systemd, WebConfigFile: &o.webConfig}, log)
	cancel()
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		err = <-stopped
	}
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
