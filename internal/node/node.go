package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// AddressEnv is the environment variable that ctr and nerdctl read the address of containerd's socket from.
const AddressEnv = "CONTAINERD_ADDRESS"

// DefaultStateDir and DefaultConfig are containerd's own (containerd, defaults/defaults_unix.go).
const (
	DefaultStateDir = "/run/containerd"
	DefaultConfig   = "/etc/containerd/config.toml"
)

// DefaultAddresses are where containerd listens as it comes, in k3s and RKE2, and where Docker starts one of its own.
var DefaultAddresses = []string{
	"/run/containerd/containerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/run/docker/containerd/containerd.sock",
}

const (
	// maxMessage of an answer of containerd's: the containers of a namespace come in one, with their specs (containerd,
	// defaults.DefaultMaxRecvMsgSize).
	maxMessage = 16 << 20
	// dialTimeout is for connecting to a local socket.
	dialTimeout = 2 * time.Second
)

// ErrUnavailable is returned (wrapped) when containerd cannot be reached. The error also wraps the cause: fs.ErrNotExist where
// there is no socket, fs.ErrPermission where this user may not open it.
var ErrUnavailable = errors.New("containerd cannot be reached")

// Options say where things are. The zero value finds them by itself.
type Options struct {
	// Address is the path of containerd's gRPC socket, with or without "unix://". "": what AddressEnv names, else the first
	// of DefaultAddresses that exists.
	Address string
	// StateDir is containerd's state directory, as containerd names it. "": what the daemon's command line or configuration
	// file says, else DefaultStateDir.
	StateDir string
	// Namespaces of containerd to look at. Empty: all.
	Namespaces []string
	// SkipStates has List and Snapshot leave out PID, Status and PIDs of tasks. To tell them containerd asks one shim after the other,
	// and waits for 2 s for each that hangs (containerd, plugins/services/tasks/local.go, stateTimeout).
	SkipStates bool
	// ShimTimeout is for one answer of a shim's to Snapshot. 0: DefaultShimTimeout.
	ShimTimeout time.Duration
}

// Node is a connection to a node's containerd and, once they have been asked, to its reaper shims. Its methods may be called
// from any goroutine.
type Node struct {
	address    string
	namespaces []string
	conn       *grpc.ClientConn
	proc       *procfs.FS
	cgroups    fs.FS
	daemon     Daemon
	// daemonStart is when the daemon's process began, in clock ticks since boot.
	daemonStart uint64
	shimTimeout time.Duration
	skipStates  bool

	mu    sync.Mutex
	shims map[shimKey]*shimConn // guarded by mu
}

// Daemon is what is known about the containerd.
type Daemon struct {
	Version string
	// PID on this node; 0 where it lives in another PID namespace than we do, or does not say (before 1.7).
	PID procfs.HostPID
	// Root leads to the daemon's view of the file system: "/proc/<pid>/root", or "" where PID is 0.
	Root string
	// Address is the path of its gRPC socket in our own view.
	Address string
	// Config is the path of its configuration file in the daemon's view.
	Config string
	// StateDir is its state directory in the daemon's view.
	StateDir string
}

// Open connects to containerd and asks it who it is. The caller must Close the Node. Errors wrap ErrUnavailable.
func Open(ctx context.Context, opts Options) (*Node, error) {
	address := findAddress(opts.Address)
	if err := tryConnect(ctx, address); err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrUnavailable, address, err)
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrUnavailable, address, err)
	}
	n := &Node{
		address:    address,
		namespaces: opts.Namespaces,
		conn:       conn,
		proc:       procfs.New(os.DirFS("/proc")),
		cgroups:    os.DirFS("/sys/fs/cgroup"),

		skipStates:  opts.SkipStates,
		shimTimeout: cmp.Or(opts.ShimTimeout, DefaultShimTimeout),

		shims: make(map[shimKey]*shimConn),
	}
	if err := n.identify(ctx, opts); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%w at %s: %w", ErrUnavailable, address, err)
	}
	return n, nil
}

// Close closes all connections.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, s := range n.shims {
		s.close()
		delete(n.shims, key)
	}
	return n.conn.Close()
}

// Daemon returns what was found out about containerd when the Node was opened.
func (n *Node) Daemon() Daemon { return n.daemon }

// DaemonGone reports whether the containerd that was opened is known to have ended. Another may have taken its place and answer, but
// Root leads nowhere: Open it anew.
func (n *Node) DaemonGone() bool {
	if n.daemon.PID == 0 {
		return false
	}
	st, err := n.proc.Stat(n.daemon.PID)
	return errors.Is(err, procfs.ErrVanished) || err == nil && (st.StartTime != n.daemonStart || st.Zombie())
}

// Conn returns the gRPC connection, for services of containerd that this package does not use.
func (n *Node) Conn() *grpc.ClientConn { return n.conn }

func findAddress(address string) string {
	if address == "" {
		address = os.Getenv(AddressEnv)
	}
	if address != "" {
		return strings.TrimPrefix(address, "unix://")
	}
	for _, a := range DefaultAddresses {
		if _, err := os.Stat(a); err == nil {
			return a
		}
	}
	return DefaultAddresses[0]
}

// tryConnect finds out why it cannot be connected to address: gRPC hides the cause.
func tryConnect(ctx context.Context, address string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, "unix", path)
}

func (n *Node) identify(ctx context.Context, opts Options) error {
	version, err := versionapi.NewVersionClient(n.conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return fmt.Errorf("ask for its version: %w", err)
	}
	server, err := introspectionapi.NewIntrospectionClient(n.conn).Server(ctx, &emptypb.Empty{})
	if err != nil {
		return fmt.Errorf("ask who it is: %w", err)
	}
	n.daemon = Daemon{Version: version.GetVersion(), Address: n.address, Config: DefaultConfig, StateDir: DefaultStateDir}
	var args []string
	if pid := int(server.GetPid()); pid > 0 && n.ourPIDs(server.GetPidns()) {
		root := fmt.Sprintf("/proc/%d/root", pid)
		if _, err := os.Stat(root + "/."); err == nil {
			n.daemon.PID, n.daemon.Root = procfs.HostPID(pid), root
			if st, err := n.proc.Stat(n.daemon.PID); err == nil {
				n.daemonStart = st.StartTime
			}
			if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil {
				args = strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
			}
		}
	}
	config, state := parseArgs(args)
	if config != "" {
		n.daemon.Config = config
	}
	if opts.StateDir != "" {
		state = opts.StateDir
	}
	if state == "" {
		// Without a file, or with one that does not say, it is the default.
		if data, err := os.ReadFile(n.daemon.Root + n.daemon.Config); err == nil {
			state = configuredState(data)
		}
	}
	if state != "" {
		n.daemon.StateDir = filepath.Clean(state)
	}
	return nil
}

// ourPIDs reports whether numbers of the PID namespace with this inode mean the same to us; 0: the daemon does not say.
func (n *Node) ourPIDs(inode uint64) bool {
	own, err := n.proc.PIDNamespace(procfs.HostPID(os.Getpid()))
	return err == nil && (inode == 0 || inode == own)
}

// parseArgs finds --config and --state in a command line of containerd's, "" for what it has not.
func parseArgs(args []string) (config, state string) {
	for i := 1; i < len(args); i++ {
		name, value, ok := strings.Cut(args[i], "=")
		if !ok && i+1 < len(args) {
			value = args[i+1]
		}
		switch name {
		case "--config", "-config", "-c":
			config = value
		case "--state", "-state":
			state = value
		}
	}
	return config, state
}

// configuredState returns the state directory that a configuration file of containerd's names, "" for none.
func configuredState(data []byte) string {
	var c struct {
		State string `toml:"state"`
	}
	if err := toml.Unmarshal(data, &c); err != nil {
		return ""
	}
	return c.State
}

func (n *Node) containers() containersapi.ContainersClient {
	return containersapi.NewContainersClient(n.conn)
}

func (n *Node) tasks() tasksapi.TasksClient { return tasksapi.NewTasksClient(n.conn) }

// listNamespaces returns the namespaces to look at, sorted.
func (n *Node) listNamespaces(ctx context.Context) ([]string, error) {
	if len(n.namespaces) > 0 {
		return n.namespaces, nil
	}
	resp, err := namespacesapi.NewNamespacesClient(n.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces of containerd: %w", err)
	}
	var names []string
	for _, ns := range resp.GetNamespaces() {
		names = append(names, ns.GetName())
	}
	slices.Sort(names)
	return names, nil
}

// bundles is the directory of the bundles of all tasks as we see it.
func (n *Node) bundles() string {
	return filepath.Join(n.daemon.Root, n.daemon.StateDir, "io.containerd.runtime.v2.task")
}

// bundle returns the path of a task's bundle as we see it.
func (n *Node) bundle(namespace, id string) string { return filepath.Join(n.bundles(), namespace, id) }

// String names the node's containerd for messages.
func (n *Node) String() string {
	return "containerd " + strconv.Quote(n.daemon.Version) + " at " + n.address
}
