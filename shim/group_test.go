package shim

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// newGroup returns a group in a directory of the test's.
func newGroup(t *testing.T) *group {
	t.Helper()
	g := &group{dir: filepath.Join(t.TempDir(), groupPrefix+"test")}
	if err := os.MkdirAll(filepath.Join(g.dir, membersDir), 0o700); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *group) announce(t *testing.T, id string, at time.Time) {
	t.Helper()
	if err := os.WriteFile(g.member(id), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(g.member(id), at, at); err != nil {
		t.Fatal(err)
	}
}

func TestAnnounced(t *testing.T) {
	g := newGroup(t)
	now := time.Now()
	if wait := g.announced(now); wait != 0 {
		t.Errorf("nobody announced: %v", wait)
	}
	g.announce(t, "old", now.Add(-memberWait))
	g.announce(t, "new", now.Add(-memberWait/2))
	if wait := g.announced(now); wait <= 0 || wait > memberWait/2 {
		t.Errorf("waits for %v, want about %v", wait, memberWait/2)
	}
	if _, err := os.Lstat(g.member("old")); !os.IsNotExist(err) {
		t.Errorf("one that never came is still expected: %v", err)
	}
	if wait := g.announced(now.Add(memberWait)); wait != 0 {
		t.Errorf("later: %v", wait)
	}
}

// A shim finds in its directory what its own start has put there, and nobody who was sent to the one before.
func TestFurnish(t *testing.T) {
	g := newGroup(t)
	now := time.Now()
	for _, bundle := range []string{"/bundles/first", "/bundles/second"} {
		g.announce(t, "dead", now)
		g.announce(t, "mine", now)
		if err := g.furnish("mine", bundle, "/sockets", "name"); err != nil {
			t.Fatal(err)
		}
		for link, want := range map[string]string{logFifo: bundle + "/log", "s": "/sockets"} {
			if got, err := os.Readlink(filepath.Join(g.dir, link)); err != nil || got != want {
				t.Errorf("%s is a link to %q (%v), want %q", link, got, err, want)
			}
		}
		if sp, err := readSpec(g.dir); err != nil || sp.Annotations[annotationGroup] != groupPrefix+"name" {
			t.Errorf("config.json: %+v, %v", sp, err)
		}
		if _, err := os.Lstat(g.member("dead")); !os.IsNotExist(err) {
			t.Errorf("the task of a shim that is gone: %v", err)
		}
		if _, err := os.Lstat(g.member("mine")); err != nil {
			t.Error(err)
		}
	}
}

func TestGroupLock(t *testing.T) {
	g := newGroup(t)
	unlock, err := g.lock()
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		unlock, err := (&group{dir: g.dir}).lock()
		if err == nil {
			unlock()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("locked twice (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	unlock()
	if err := <-second; err != nil {
		t.Error(err)
	}
}

func TestGroupName(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	in := func(namespace string) map[string]string {
		return map[string]string{annotationSandboxNamespace: namespace, annotationSandboxID: namespace}
	}
	name := func(g Grouping, daemon string, annotations map[string]string) string {
		t.Helper()
		n, err := groupName(ctx, g, daemon, annotations)
		if err != nil || len(n) != 32 {
			t.Fatalf("%q, %v", n, err)
		}
		return n
	}
	blue := name(GroupNamespace, "a", in("blue"))
	for what, other := range map[string]string{
		"another namespace": name(GroupNamespace, "a", in("red")), "another daemon": name(GroupNamespace, "b", in("blue")),
		"the node": name(GroupNode, "a", in("blue")), "no namespace": name(GroupNamespace, "a", nil),
	} {
		if other == blue {
			t.Errorf("%s has the same group", what)
		}
	}
	if name(GroupNamespace, "a", in("blue")) != blue || name(GroupNode, "a", in("blue")) != name(GroupNode, "a", in("red")) {
		t.Error("one group has two names")
	}
	ctx = namespaces.WithNamespace(t.Context(), "moby")
	if name(GroupNamespace, "a", in("blue")) == blue {
		t.Error("another namespace of containerd's has the same group")
	}
}

func TestGroupOf(t *testing.T) {
	g := newGroup(t)
	g.announce(t, "pod", time.Now())
	sockets := filepath.Dir(g.dir)
	for sandbox, want := range map[string]string{"pod": g.dir, "other": "", "": "", ".": "", "..": "", "../members/pod": "", "a/b": ""} {
		if got := groupOf(sockets, sandbox); got != want {
			t.Errorf("sandbox %q: %q, want %q", sandbox, got, want)
		}
	}
}
