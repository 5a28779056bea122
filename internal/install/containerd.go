package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// daemonPath is where systemd looks for the programs of a service (systemd.exec(5), $PATH) and where nodes have containerd.
const daemonPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// rpcTimeout is for one call to a containerd that answers at all.
const rpcTimeout = 10 * time.Second

// findProgram looks for a program of the node.
func findProgram(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for dir := range strings.SplitSeq(daemonPath, ":") {
		p := filepath.Join(dir, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("find %s: not in %s", name, daemonPath)
}

// output runs a program of the node and returns its standard output.
func output(ctx context.Context, path string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + daemonPath}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := stderr.Bytes()
		if len(text) > 2000 {
			text = text[len(text)-2000:]
		}
		return nil, fmt.Errorf("%s %s: %w: %s", path, strings.Join(args, " "), err, bytes.TrimSpace(text))
	}
	return out, nil
}

// version is that of the node's containerd.
type version struct{ major, minor int }

// askVersion reads "containerd github.com/containerd/containerd v1.7.35 …"; Debian writes "1.6.20~ds1" there.
func (in *Installer) askVersion(ctx context.Context) (version, error) {
	out, err := output(ctx, in.Containerd, "--version")
	if err != nil {
		return version{}, err
	}
	fields := strings.Fields(string(out))
	if len(fields) >= 3 {
		parts := strings.SplitN(strings.TrimPrefix(fields[2], "v"), ".", 3)
		if len(parts) >= 2 {
			major, err1 := strconv.Atoi(parts[0])
			minor, err2 := strconv.Atoi(parts[1])
			if err1 == nil && err2 == nil {
				return version{major, minor}, nil
			}
		}
	}
	return version{}, fmt.Errorf("%s --version: no version in %q", in.Containerd, out)
}

// dump has containerd read a configuration as it would at its start.
func (in *Installer) dump(ctx context.Context, path string) (dump, error) {
	out, err := output(ctx, in.Containerd, "--config", path, "config", "dump")
	if err != nil {
		return nil, err
	}
	return parseDump(out)
}

// dumpCurrent dumps the configuration that the node has.
func (in *Installer) dumpCurrent(ctx context.Context) (dump, error) {
	if _, err := os.Stat(in.ConfigPath); errors.Is(err, fs.ErrNotExist) {
		// What it then starts with. containerd 1.x dumps no file that is not there.
		out, err := output(ctx, in.Containerd, "config", "default")
		if err != nil {
			return nil, err
		}
		return parseDump(out)
	}
	d, err := in.dump(ctx, in.ConfigPath)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return d, err
}

// daemon is a connection to a running containerd.
type daemon struct {
	conn *grpc.ClientConn
	path string
}

func (in *Installer) connect(d dump) (*daemon, error) {
	path := in.Address
	if path == "" {
		path = d.address()
	}
	// By default it would wait for minutes before it looks again for a daemon that restarts.
	retry := grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: pollEvery / 2, Multiplier: 1, MaxDelay: pollEvery / 2}, MinConnectTimeout: rpcTimeout,
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(retry))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %s: %w", path, err)
	}
	return &daemon{conn: conn, path: path}, nil
}

func (d *daemon) close() { _ = d.conn.Close() }

// runtimes asks CRI for its handlers, as the daemon runs with them.
func (d *daemon) runtimes(ctx context.Context) (map[string]runtimeHandler, error) {
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	resp, err := criapi.NewRuntimeServiceClient(d.conn).Status(ctx, &criapi.StatusRequest{Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("ask CRI for its configuration: %w", err)
	}
	var config struct {
		Containerd struct {
			Runtimes map[string]runtimeHandler `json:"runtimes"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal([]byte(resp.Info["config"]), &config); err != nil {
		return nil, fmt.Errorf("ask CRI for its configuration: %w", err)
	}
	return config.Containerd.Runtimes, nil
}

type runtimeHandler struct {
	Type    string         `json:"runtimeType"`
	Options map[string]any `json:"options"`
}

// isOurs reports whether the daemon's handler is the one that was written.
func (h runtimeHandler) isOurs(options map[string]any) bool {
	text, err := json.Marshal(options)
	if err != nil {
		return false
	}
	var want map[string]any
	if err := json.Unmarshal(text, &want); err != nil {
		return false
	}
	return h.Type == runtimeType && len(want) == len(h.Options) && (len(want) == 0 || reflect.DeepEqual(want, h.Options))
}

// users names the containers of our runtime that have a task, which needs the shim to be deleted.
func (d *daemon) users(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	spaces, err := namespacesapi.NewNamespacesClient(d.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces of containerd: %w", err)
	}
	var users []string
	for _, ns := range spaces.Namespaces {
		// The header that containerd's namespaces package reads.
		nctx := metadata.AppendToOutgoingContext(ctx, "containerd-namespace", ns.Name)
		containers, err := containersapi.NewContainersClient(d.conn).List(nctx, &containersapi.ListContainersRequest{
			Filters: []string{"runtime.name==" + runtimeType},
		})
		if err != nil {
			return nil, fmt.Errorf("list containers of namespace %q: %w", ns.Name, err)
		}
		for _, c := range containers.Containers {
			_, err := tasksapi.NewTasksClient(d.conn).Get(nctx, &tasksapi.GetRequest{ContainerID: c.ID})
			if status.Code(err) == codes.NotFound {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("get task of container %s/%s: %w", ns.Name, c.ID, err)
			}
			users = append(users, ns.Name+"/"+c.ID)
		}
	}
	slices.Sort(users)
	return users, nil
}

// searchPath returns the PATH of the running daemon, or "" when that cannot be told: no daemon, or its process is not visible.
func (d *daemon) searchPath(ctx context.Context) (string, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", d.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("connect to containerd: %w", err)
	}
	defer c.Close()
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return "", fmt.Errorf("connect to %s: not a Unix socket", d.path)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return "", err
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return "", err
	}
	if cerr != nil {
		return "", fmt.Errorf("process of %s: %w", d.path, cerr)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", cred.Pid))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("PATH of containerd: %w", err)
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if path, ok := bytes.CutPrefix(kv, []byte("PATH=")); ok {
			return string(path), nil
		}
	}
	return "", nil
}
