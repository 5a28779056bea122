package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/shim/api"
)

// ErrForeign is returned (wrapped) when the shim of a task does not know the Reaper service: the container is of another
// runtime, or of this one with mode "off" before there was a service.
var ErrForeign = errors.New("not a container of the reaper runtime")

// shimKey is a shim's socket. Paths are used again when a container with the same ID is made, inodes and times are not.
type shimKey struct {
	path  string // as we see it
	ino   uint64
	ctime syscall.Timespec
}

// shimConn is what is known about a shim: that it is foreign, or a connection to it.
type shimConn struct {
	foreign bool
	client  *ttrpc.Client
}

func (s *shimConn) close() {
	if s.client != nil {
		_ = s.client.Close()
	}
}

// shimOf finds the socket of the task's shim in its bundle.
func (n *Node) shimOf(t *Task) (shimKey, error) {
	key, err := n.socket(n.bundle(t.Namespace, t.ID))
	if err != nil {
		return shimKey{}, fmt.Errorf("find the shim of %s: %w", t.ID, err)
	}
	return key, nil
}

func (n *Node) socket(bundle string) (shimKey, error) {
	address, err := readAddress(os.DirFS(bundle))
	if err != nil {
		return shimKey{}, fmt.Errorf("bundle %s: %w", bundle, err)
	}
	path := filepath.Join(n.daemon.Root, strings.TrimPrefix(address, "unix://"))
	info, err := os.Stat(path)
	if err != nil {
		return shimKey{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != fs.ModeSocket {
		return shimKey{}, fmt.Errorf("%s is no socket", path)
	}
	return shimKey{path: path, ino: st.Ino, ctime: st.Ctim}, nil
}

// readAddress returns the address of the shim from its bundle: bootstrap.json since containerd 1.7, before that a file
// "address" (containerd, core/runtime/v2/shim_manager.go, restoreBootstrapParams).
func readAddress(bundle fs.FS) (string, error) {
	data, err := fs.ReadFile(bundle, "bootstrap.json")
	if errors.Is(err, fs.ErrNotExist) {
		data, err = fs.ReadFile(bundle, "address")
		if err != nil {
			return "", err
		}
		return checkAddress(strings.TrimSpace(string(data)))
	}
	if err != nil {
		return "", err
	}
	var params struct {
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}
	if err := json.Unmarshal(data, &params); err != nil {
		return "", fmt.Errorf("bootstrap.json: %w", err)
	}
	if params.Protocol != "" && params.Protocol != "ttrpc" {
		return "", fmt.Errorf("bootstrap.json: protocol %q: %w", params.Protocol, ErrForeign)
	}
	return checkAddress(params.Address)
}

func checkAddress(address string) (string, error) {
	if path, ok := strings.CutPrefix(address, "unix://"); !ok || !filepath.IsAbs(path) {
		return "", fmt.Errorf("address %q of a shim: want unix:// and an absolute path", address)
	}
	return address, nil
}

// connect returns what is known of the shim, and connects to it where that is nothing.
func (n *Node) connect(ctx context.Context, key shimKey) (*shimConn, error) {
	n.mu.Lock()
	s := n.shims[key]
	n.mu.Unlock()
	if s != nil {
		return s, nil
	}
	// A path below /proc/<pid>/root may be longer than that of a socket may be (unix(7): 107 bytes).
	fd, err := unix.Open(key.path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: key.path, Err: err}
	}
	defer unix.Close(fd)
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", key.path, err)
	}
	s = &shimConn{client: ttrpc.NewClient(conn)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if other := n.shims[key]; other != nil {
		s.close()
		return other, nil
	}
	n.shims[key] = s
	return s, nil
}

// replace puts what is now known of a shim in the place of old, nil for nothing.
func (n *Node) replace(key shimKey, old, s *shimConn) {
	old.close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shims[key] != old {
		return
	}
	if s == nil {
		delete(n.shims, key)
	} else {
		n.shims[key] = s
	}
}

// forget closes the connections to shims that are gone.
func (n *Node) forget(there map[shimKey][]*Task) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, s := range n.shims {
		if _, ok := there[key]; !ok {
			s.close()
			delete(n.shims, key)
		}
	}
}

// call calls a method of the shim's Reaper service. Errors are containerd's (errdefs); they wrap ErrForeign for a shim that does
// not know the service.
func call[T any](ctx context.Context, n *Node, key shimKey, f func(api.ReaperService) (T, error)) (T, error) {
	var zero T
	for try := 0; ; try++ {
		s, err := n.connect(ctx, key)
		if err != nil {
			return zero, err
		}
		if s.foreign {
			return zero, ErrForeign
		}
		v, err := f(api.NewReaperClient(s.client))
		if err == nil {
			return v, nil
		}
		if errors.Is(err, ttrpc.ErrClosed) {
			// The connection of an earlier call, perhaps: once more with a new one.
			n.replace(key, s, nil)
			if try == 0 {
				continue
			}
			return zero, err
		}
		err = errgrpc.ToNative(err)
		if errdefs.IsNotImplemented(err) {
			n.replace(key, s, &shimConn{foreign: true})
			return zero, fmt.Errorf("%w: %w", ErrForeign, err)
		}
		return zero, err
	}
}

func isForeign(err error) bool { return errors.Is(err, ErrForeign) }

// Zombies returns the zombies that the shim of the task knows of, at most limit (0: as many as the shim lists), and how many more
// there are. Errors wrap ErrForeign for a task of another runtime.
func (n *Node) Zombies(ctx context.Context, t *Task, limit uint32) ([]*api.Zombie, uint32, error) {
	resp, err := callTask(ctx, n, t, func(r api.ReaperService) (*api.ListResponse, error) {
		return r.List(ctx, &api.ListRequest{ContainerId: t.ID, Limit: limit})
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list the zombies of %s: %w", t.ID, err)
	}
	return resp.GetZombies(), resp.GetOmitted(), nil
}

// Reap has the shim of the task reap the proven orphans now. Errors wrap ErrForeign for a task of another runtime, and
// errdefs.ErrFailedPrecondition where nothing may be done.
func (n *Node) Reap(ctx context.Context, t *Task) (*api.ReapResponse, error) {
	resp, err := callTask(ctx, n, t, func(r api.ReaperService) (*api.ReapResponse, error) {
		return r.Reap(ctx, &api.ReapRequest{ContainerId: t.ID})
	})
	if err != nil {
		return nil, fmt.Errorf("reap the orphans of %s: %w", t.ID, err)
	}
	return resp, nil
}

func callTask[T any](ctx context.Context, n *Node, t *Task, f func(api.ReaperService) (T, error)) (T, error) {
	key, err := n.shimOf(t)
	if err != nil {
		var zero T
		return zero, err
	}
	return call(ctx, n, key, f)
}
