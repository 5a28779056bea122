package scan

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestEnclosing(t *testing.T) {
	for _, tt := range []struct{ dir, want, engine, id string }{
		{"/docker/" + id, "/docker/" + id, "docker", id},
		{"/docker/" + id + "/init.scope", "/docker/" + id, "docker", id},
		{"/system.slice/docker-" + id + ".scope", "/system.slice/docker-" + id + ".scope", "docker", id},
		{"/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope", "/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope", "containerd", id},
		{"/kubepods/besteffort/pod1/" + id, "/kubepods/besteffort/pod1/" + id, "", id},
		{"/machine.slice/libpod-" + id + ".scope/container", "/machine.slice/libpod-" + id + ".scope", "podman", id},
		{"/crio-" + id + ".scope", "/crio-" + id + ".scope", "crio", id},
		{"/test/c1/below", "/test/c1", "", ""},
		{"/test/c10", "/test/c10", "", ""},
		{"/system.slice/cron.service", "/system.slice/cron.service", "", ""},
		{"/x-" + id[1:] + ".scope", "/x-" + id[1:] + ".scope", "", ""},
		{"", "", "", ""},
	} {
		got := enclosing(tt.dir, []string{"/test/c1"})
		engine, cid := EngineOf(got)
		if got != tt.want || engine != tt.engine || cid != tt.id {
			t.Errorf("%q: %q, %q, %q; want %q, %q, %q", tt.dir, got, engine, cid, tt.want, tt.engine, tt.id)
		}
	}
}

// tree is a /proc of processes of which one file each is written here.
type tree fstest.MapFS

func (p tree) add(pid, ppid int, state, comm string, exit int, nspid, cgroup string) {
	stat := fmt.Sprintf("%d (%s) %s %d %d %d 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0%s %d\n", pid, comm, state, ppid, pid, pid,
		strings.Repeat(" 0", 27), exit)
	dir := fmt.Sprint(pid)
	p[dir+"/stat"] = &fstest.MapFile{Data: []byte(stat)}
	p[dir+"/status"] = &fstest.MapFile{Data: []byte(fmt.Sprintf("Name:\tx\nState:\t%s\nTgid:\t%d\nPPid:\t%d\nThreads:\t1\nNSpid:\t%s\n", state, pid, ppid, nspid))}
	p[dir+"/cgroup"] = &fstest.MapFile{Data: []byte("0::" + cgroup + "\n")}
}

func TestScan(t *testing.T) {
	p := tree{}
	p.add(1, 0, "S", "systemd", 0, "1", "/init.scope")
	p.add(50, 1, "S", "node", 0, "50 1", "/test/c1")
	p.add(51, 50, "Z", "sh) Z 1 (", 3<<8, "51 7", "/test/c1")
	p.add(52, 50, "Z", "git", 9, "52 8", "/test/c1")
	p.add(53, 50, "S", "worker", 0, "53 9", "/test/c1/below")
	p.add(54, 53, "Z", "curl", 0, "54 10", "/test/c1/below")
	p.add(60, 1, "S", "cron", 0, "60", "/system.slice/cron.service")
	p.add(61, 60, "Z", "job", 0, "61", "/system.slice/cron.service")
	p.add(70, 0, "Z", "going", 0, "70", "/")
	// The line of a process that the kernel is just releasing.
	p["70/stat"] = &fstest.MapFile{Data: []byte("70 (going) Z 0 -1 -1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0" + strings.Repeat(" 0", 27) + " 0\n")}
	cgroups := fstest.MapFS{
		"test/c1/cgroup.procs": {}, "test/c1/pids.current": {Data: []byte("5\n")}, "test/c1/pids.max": {Data: []byte("100\n")},
		"test/c1/below/cgroup.procs": {}, "system.slice/cron.service/cgroup.procs": {}, "system.slice/cron.service/pids.max": {Data: []byte("max\n")},
	}
	res, err := Scan(procfs.New(fstest.MapFS(p)), cgroups, []string{"/test/c1"})
	if err != nil {
		t.Fatal(err)
	}
	if res.Processes != 8 || res.Zombies() != 4 || len(res.Groups) != 2 {
		t.Fatalf("%+v; want 8 processes and 4 zombies in 2 groups", res)
	}
	c1 := res.Groups[0]
	if c1.Cgroup != "/test/c1" || c1.Max != 100 || len(c1.Parents) != 2 {
		t.Fatalf("first group %+v; want the container with the most zombies, and its two parents", c1)
	}
	node := c1.Parents[0]
	if !node.Init() || node.Command != "node" || len(node.Zombies) != 2 {
		t.Errorf("first parent %+v; want PID 1 with two zombies", node)
	}
	if z := node.Zombies[0]; z.Command != "sh) Z 1 (" || z.NSPID != 7 || z.Status != 3<<8 || z.StartTime != 777 {
		t.Errorf("first zombie %+v", z)
	}
	if worker := c1.Parents[1]; worker.Init() || worker.NSPID != 9 || len(worker.Zombies) != 1 {
		t.Errorf("second parent %+v; want the worker, which is not PID 1", worker)
	}
	if cron := res.Groups[1]; cron.Cgroup != "/system.slice/cron.service" || cron.ID != "" || cron.Max != 0 || cron.Parents[0].Init() {
		t.Errorf("second group %+v", cron)
	}
}
