package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/shim/api"
)

// shimSocket returns the path of the socket of a container's shim, as its bundle names it and as this process reaches it: the
// daemon has a mount namespace of its own.
func shimSocket(t *testing.T, d *harness.Daemon, c *harness.Container) string {
	t.Helper()
	root := fmt.Sprintf("/proc/%d/root", d.PID())
	// The state directory is configured per daemon: the bundle is the working directory of the shim or a sibling of it.
	shim, err := c.Shim()
	if err != nil {
		t.Fatal(err)
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", shim.PID))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, filepath.Dir(cwd), c.ID(), "bootstrap.json"))
	if err != nil {
		t.Fatal(err)
	}
	var params struct{ Address string }
	if err := json.Unmarshal(data, &params); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, strings.TrimPrefix(params.Address, "unix://"))
}

func reaperClient(t *testing.T, socket string) api.ReaperService {
	t.Helper()
	// A path through /proc/<pid>/root may be longer than sun_path: go there by a link.
	link := filepath.Join(t.TempDir(), "s")
	if err := os.Symlink(socket, link); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", link)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { _ = client.Close() })
	return api.NewReaperClient(client)
}

func patient(id, grace string) harness.Spec {
	return harness.Spec{ID: id, Args: []string{"/bin/pause1", "poll"}, Annotations: map[string]string{"io.containerd.reaper.grace": grace}}
}

// TestServiceStatsListReap: what is listed is what is there, and Reap takes the proven ones now and nothing else.
func TestServiceStatsListReap(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	spec := patient("", "1h")
	spec.Runtime = runtime
	c := run(t, d, spec)
	r := reaperClient(t, shimSocket(t, d, c))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	exec(t, c, "/bin/leak", "-n", "3", "-e", "7")
	var list *api.ListResponse
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		var err error
		list, err = r.List(ctx, &api.ListRequest{ContainerId: c.ID()})
		return err == nil && len(list.GetZombies()) == 3, fmt.Sprint(list, err)
	})
	there := map[uint32]harness.Zombie{}
	for _, z := range zombies(t, c) {
		there[uint32(z.PID)] = z
	}
	for _, z := range list.GetZombies() {
		is, ok := there[z.GetPid()]
		if !ok || int(z.GetNsPid()) != is.NSPID || z.GetCommand() != is.Comm || z.GetVerdict() != "adopted" || z.GetRules() == "-" ||
			z.GetExitStatus() != 7 || int(z.GetParentPid()) != c.PID || z.GetParentCommand() != "pause1" || z.GetContainerId() != c.ID() ||
			z.GetAge().AsDuration() <= 0 || int(z.GetSession()) != is.Session {
			t.Errorf("listed %v; there is %+v (%v)", z, is, ok)
		}
	}
	if short, err := r.List(ctx, &api.ListRequest{Limit: 1}); err != nil || len(short.GetZombies()) != 1 || short.GetOmitted() != 2 {
		t.Errorf("list with limit 1: %v, %v", short, err)
	}
	stats, err := r.Stats(ctx, &api.StatsRequest{})
	if err != nil || stats.GetRevision() != 2 || len(stats.GetTasks()) != 1 || stats.GetTasks()[0].GetAdopted() != 3 {
		t.Errorf("stats %v, %v; want one task with three adopted zombies", stats, err)
	}

	var reaped uint32
	testutil.Eventually(t, 10*time.Second, func() (bool, string) { // PID 1 may be busy at a first attempt
		resp, err := r.Reap(ctx, &api.ReapRequest{ContainerId: c.ID()})
		reaped += resp.GetReaped()
		return err == nil && resp.GetLeft() == 0, fmt.Sprint(resp, err)
	})
	if zs := zombies(t, c); reaped != 3 || len(zs) != 0 {
		t.Errorf("%d reaped, %s left; want three and none", reaped, describe(zs))
	}

	for _, call := range []func() error{
		func() error { _, err := r.Stats(ctx, &api.StatsRequest{ContainerId: "no-such"}); return err },
		func() error { _, err := r.List(ctx, &api.ListRequest{ContainerId: "no-such"}); return err },
		func() error { _, err := r.Reap(ctx, &api.ReapRequest{ContainerId: "no-such"}); return err },
	} {
		if err := call(); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			t.Errorf("a container that is not there: %v, want not found", err)
		}
	}
	if _, err := r.Reap(ctx, &api.ReapRequest{}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("reap without a container: %v, want an invalid argument", err)
	}
}

// TestServiceReapTakesWhatIsProvenOnly: neither PID 1's own children, nor anything in mode observe.
func TestServiceReapTakesWhatIsProvenOnly(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	// A shell that executes pause1 in its place: the child that it forked before has no one to wait for it.
	own := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/sh", "-c", "(exit 5) & exec /bin/pause1 poll"}})
	r := reaperClient(t, shimSocket(t, d, own))
	testutil.Eventually(t, 10*time.Second, func() (bool, string) {
		list, err := r.List(ctx, &api.ListRequest{})
		zs := list.GetZombies()
		return err == nil && len(zs) == 1 && zs[0].GetVerdict() != "adopted" && zs[0].GetExitStatus() == 5, fmt.Sprint(list, err)
	})
	resp, err := r.Reap(ctx, &api.ReapRequest{ContainerId: own.ID()})
	if zs := zombies(t, own); err != nil || resp.GetReaped() != 0 || resp.GetLeft() != 1 || len(zs) != 1 {
		t.Errorf("reap: %v, %v, then %s; want PID 1's own child left alone", resp, err, describe(zs))
	}

	watched := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"},
		Annotations: map[string]string{"io.containerd.reaper.mode": "observe"}})
	exec(t, watched, "/bin/leak")
	_, err = reaperClient(t, shimSocket(t, d, watched)).Reap(ctx, &api.ReapRequest{ContainerId: watched.ID()})
	if !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) || len(zombies(t, watched)) != 1 {
		t.Errorf("reap in mode observe: %v, want a failed precondition and the zombie left", err)
	}
}

// TestServiceIsForRootOnly: another user cannot open the socket, and where its mode would let him the server does not answer.
func TestServiceIsForRootOnly(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	c := run(t, d, harness.Spec{Runtime: runtime, Args: []string{"/bin/pause1", "poll"}})
	socket := shimSocket(t, d, c)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the shim's socket: %v, %v; want no access for group and others", info, err)
	}
	if out := asNobody(t, socket); !strings.Contains(out, "permission denied") {
		t.Errorf("as nobody: %q, want the socket not to open", out)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := asNobody(t, socket); !strings.HasPrefix(out, "refused") {
		t.Errorf("as nobody, past the mode of the socket: %q, want the connection to be closed", out)
	}
	if out := asUser(t, socket, 0); !strings.HasPrefix(out, "answered") {
		t.Errorf("as root: %q, want an answer", out)
	}
}

// serviceEnv makes the test binary a client of the socket that it names, in TestServiceClient.
const serviceEnv = "REAPER_TEST_SERVICE_SOCKET"

func asNobody(t *testing.T, socket string) string { return asUser(t, socket, 65534) }

// asUser asks for the statistics as another user and returns what came of it. The socket is handed over as a descriptor of its
// path, opened by root: the directories above it must not be what keeps the user out.
func asUser(t *testing.T, socket string, uid uint32) string {
	t.Helper()
	path, err := unix.Open(socket, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(path), socket)
	defer f.Close()
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := osexec.CommandContext(ctx, "/proc/self/fd/4", "-test.run=^TestServiceClient$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), serviceEnv+"=/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f, exe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "client: "); ok {
			return rest
		}
	}
	t.Fatalf("the client as user %d said nothing: %v, %q", uid, err, out)
	return ""
}

// TestServiceClient is the client that asUser runs, and no test.
func TestServiceClient(t *testing.T) {
	socket := os.Getenv(serviceEnv)
	if socket == "" {
		return
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Println("client:", err)
		return
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	resp, err := api.NewReaperClient(client).Stats(ctx, &api.StatsRequest{})
	switch {
	case err == nil:
		fmt.Println("client: answered", len(resp.GetTasks()))
	case ctx.Err() != nil:
		fmt.Println("client: no answer")
	default:
		fmt.Println("client: refused", err)
	}
}
