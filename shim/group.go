package shim

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Grouping says which pods (or containers that are in none) have one shim process in common.
type Grouping string

// The groupings. None crosses a namespace of containerd's.
const (
	GroupPod       Grouping = "pod"       // one shim for each pod, as runc.v2 does it
	GroupNamespace Grouping = "namespace" // one for each namespace of Kubernetes'
	GroupNode      Grouping = "node"      // one
)

var groupings = []Grouping{GroupPod, GroupNamespace, GroupNode}

func (o tomlOptions) grouping() (Grouping, error) {
	if o.Grouping == nil {
		return GroupPod, nil
	}
	g := Grouping(*o.Grouping)
	if !slices.Contains(groupings, g) {
		return "", fmt.Errorf("option grouping = %s: want one of %v", quote(*o.Grouping), groupings)
	}
	return g, nil
}

// Annotations that CRI sets.
const (
	annotationGroup            = "io.containerd.runc.v2.group" // by which containerd's runc manager groups
	annotationSandboxID        = "io.kubernetes.cri.sandbox-id"
	annotationSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
)

// group is the directory that a shim for several pods works in, where others have their first bundle: it outlives them all. Every
// start and the end of the shim take its lock, so that nobody is sent to a shim that is about to go.
//
//	group.lock     for flock(2)
//	members/ID     a task that a start has sent here; its time says when
//	config.json    the group, in the form that containerd's manager reads
//	address, log   as in a bundle
type group struct {
	dir string

	// Of the shim alone, under service.mu:
	log string   // the bundle whose log is the shim's now
	out *os.File // and the log, once it is not the first one
}

const (
	groupPrefix = "reaper-" // of directories, beside the sockets of shims
	lockFile    = "group.lock"
	membersDir  = "members"
	// memberWait is how long a shim without tasks waits for one that a start has announced.
	memberWait = 2 * time.Minute
	// taskVersion is that of the task API, as containerd's manager answers.
	taskVersion = 3
)

// lock takes the group's lock. The file is closed on exec: a shim that is started under it does not hold it.
func (g *group) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(g.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func (g *group) member(id string) string { return filepath.Join(g.dir, membersDir, id) }

// announced returns how long it takes until nobody need be waited for any more, 0 if nobody need be now. It forgets the others.
func (g *group) announced(now time.Time) time.Duration {
	entries, _ := os.ReadDir(filepath.Join(g.dir, membersDir))
	var wait time.Duration
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue
		}
		if left := memberWait - now.Sub(info.ModTime()); left > 0 {
			wait = max(wait, left)
		} else {
			_ = os.Remove(g.member(e.Name()))
		}
	}
	return wait
}

// startGrouped is the start of a task in a group.
func startGrouped(ctx context.Context, m ctrdshim.Shim, params *bootstrap.BootstrapParams, grouping Grouping) (res *bootstrap.BootstrapResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start in a group (%s): %w", grouping, err)
		}
	}()
	bundle, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	sp, err := readSpec(bundle)
	if err != nil {
		return nil, err
	}
	sockets := params.GetSocketDir()
	if sockets == "" {
		sockets = filepath.Join(defaults.DefaultStateDir, "s")
	}
	name, err := groupName(ctx, grouping, params.GetContainerdGrpcAddress(), sp.Annotations)
	if err != nil {
		return nil, err
	}
	g := &group{dir: filepath.Join(sockets, groupPrefix+name)}
	if dir := groupOf(sockets, sp.Annotations[annotationSandboxID]); dir != "" {
		g.dir, name = dir, strings.TrimPrefix(filepath.Base(dir), groupPrefix)
	}
	if err := os.MkdirAll(filepath.Join(g.dir, membersDir), 0o700); err != nil {
		return nil, err
	}
	unlock, err := g.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	id := params.GetInstanceID()
	if err := os.WriteFile(g.member(id), nil, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(g.member(id))
		}
	}()
	// Nothing in the directory is touched while there is a shim: it may only just be looking around.
	if address, err := os.ReadFile(filepath.Join(g.dir, addressFile)); err == nil && ctrdshim.CanConnect(string(address)) {
		return &bootstrap.BootstrapResult{Version: taskVersion, Protocol: "ttrpc", Address: string(address)}, nil
	}
	if err := g.furnish(id, bundle, sockets, name); err != nil {
		return nil, err
	}
	// containerd's manager looks at where it is, and starts the shim there.
	if err := os.Chdir(g.dir); err != nil {
		return nil, err
	}
	res, err = m.Start(ctx, params)
	if back := os.Chdir(bundle); err == nil {
		err = back
	}
	if err != nil {
		return nil, err
	}
	// By which the shim finds its socket when it ends.
	if err := os.WriteFile(filepath.Join(g.dir, addressFile), []byte(res.GetAddress()), 0o600); err != nil {
		return nil, err
	}
	return res, nil
}

// groupName returns a name for the group that is one for each containerd, namespace of its, group in that, and build of this shim:
// what starts after an upgrade gets a shim of its own.
func groupName(ctx context.Context, grouping Grouping, daemon string, annotations map[string]string) (string, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return "", err
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	st, ok := self.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("stat of %s: no inode", self.Name())
	}
	key := []string{daemon, namespace, string(grouping), fmt.Sprint(st.Dev, st.Ino, st.Size, st.Mtim.Nano())}
	if grouping == GroupNamespace {
		key = append(key, annotations[annotationSandboxNamespace])
	}
	data, err := json.Marshal(key)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))[:32], nil
}

// groupOf returns the directory of the group that a pod is in, "" for none: its containers stay with it, whatever else has been
// started by now.
func groupOf(sockets, sandbox string) string {
	if identifiers.Validate(sandbox) != nil { // as containerd demands of IDs: it is no path
		return ""
	}
	dirs, _ := filepath.Glob(filepath.Join(sockets, groupPrefix+"*")) // errs on a bad pattern only
	for _, dir := range dirs {
		if _, err := os.Lstat((&group{dir: dir}).member(sandbox)); err == nil {
			return dir
		}
	}
	return ""
}

// furnish puts into the directory what a shim looks for at its start, and takes out who went with the last one.
func (g *group) furnish(id, bundle, sockets, name string) error {
	members, err := os.ReadDir(filepath.Join(g.dir, membersDir))
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Name() != id {
			_ = os.Remove(g.member(m.Name())) // what stays is waited for a little
		}
	}
	config, err := json.Marshal(map[string]any{"annotations": map[string]string{annotationGroup: groupPrefix + name}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(g.dir, specFile), config, 0o600); err != nil {
		return err
	}
	for link, target := range map[string]string{logFifo: filepath.Join(bundle, logFifo), "s": sockets} {
		link = filepath.Join(g.dir, link)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	return nil
}

// logFifo is where containerd reads the log of a bundle's shim.
const logFifo = "log"

// currentGroup returns the group that this process is the shim of, nil if it is that of one pod.
func currentGroup() (*group, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, lockFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	g := &group{dir: dir}
	// What containerd's code has opened; the link in the directory may be the next start's already.
	if target, err := os.Readlink("/proc/self/fd/2"); err == nil {
		g.log = filepath.Dir(target)
	}
	return g, nil
}

// logTo makes the log of another bundle that of the shim.
func (g *group) logTo(bundle string) {
	// Without a reader there would be nobody to write to.
	f, err := os.OpenFile(filepath.Join(bundle, logFifo), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	raw, err := f.SyscallConn()
	if err == nil {
		// Where a panic is written, as containerd's own shims have it.
		cerr := raw.Control(func(fd uintptr) { err = unix.Dup3(int(fd), int(os.Stderr.Fd()), 0) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		f.Close()
		return
	}
	log.L.Logger.SetOutput(f) // waits for who is writing to the one before
	if g.out != nil {
		g.out.Close()
	}
	g.log, g.out = bundle, f
}
