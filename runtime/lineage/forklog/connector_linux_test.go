package forklog_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

func (s *subject) openConnector(complete uint64) *forklog.Connector {
	s.t.Helper()
	log, err := forklog.OpenConnector(s.pid(), complete)
	if errors.Is(err, forklog.ErrUnsupported) || errors.Is(err, forklog.ErrPermission) {
		testutil.Lacks(s.t, err.Error(), "run as root of the initial namespaces on a kernel with CONFIG_PROC_EVENTS")
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := log.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return log
}

func settle(t *testing.T) {
	for range 8 { // of two ticks each
		waitTick(t)
	}
}

func TestConnectorIsExact(t *testing.T) {
	bin := compiled(t)
	s := newSubject(t, bin, "mix", "2", "pause", "mix", "20", "threads", "50", "exec", bin, "mix", "10", "pause")
	s.goOn()
	early := s.children()
	log := s.openConnector(0)
	settle(t)
	s.goOn()
	late := s.children()
	log.Sync()
	check(t, log, early, map[string]lineage.Fork{"own": lineage.ForkUnknown, "other": lineage.ForkUnknown})
	check(t, log, late, exact)
	if st := log.Stats(); st.Forks != 30*6+50*8 || st.Lost != 0 || st.Gaps != 0 || st.Ended {
		t.Errorf("state %+v, want %d forks: those of the subject and of nobody else", st, 30*6+50*8)
	}
}

// Opened on a process that has not forked yet, it is exact from birth.
func TestConnectorIsExactFromBirth(t *testing.T) {
	bin := compiled(t)
	for range 20 {
		s := newSubject(t, bin, "mix", "2", "threads", "2", "pause")
		log := s.openConnector(s.birth)
		s.goOn()
		all := s.children()
		log.Sync()
		check(t, log, all, exact)
	}
}

// A full receive buffer is a gap.
func TestConnectorLossIsAGap(t *testing.T) {
	bin := compiled(t)
	s := newSubject(t, bin, "flood", "8000", "mix", "1", "pause", "mix", "5", "pause")
	log := s.openConnector(0)
	settle(t)
	release := forklog.HoldConnector(log)
	s.goOn()
	before := s.children()
	release()
	log.Sync()
	if st := log.Stats(); st.Gaps == 0 {
		t.Fatalf("8000 forks unread: state %+v", st)
	}
	for _, c := range before {
		if got := log.Lookup(c.pid, c.start); got == lineage.ForkedByOther {
			t.Errorf("%s child %d, born before the gap: %v", c.who, c.pid, got)
		}
	}
	waitTick(t)
	s.goOn()
	after := s.children()
	log.Sync()
	check(t, log, after, exact)
}

func TestConnectorCloseGivesAllBack(t *testing.T) {
	testutil.Root(t)
	s := newSubject(t, "/bin/true")
	fds := openFiles(t)
	for range 3 {
		log, err := forklog.OpenConnector(s.pid(), 0)
		if err != nil {
			testutil.Lacks(t, err.Error(), "run as root of the initial namespaces on a kernel with CONFIG_PROC_EVENTS")
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
		if err := log.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	}
	if now := openFiles(t); now != fds {
		t.Errorf("%d open files, were %d", now, fds)
	}
}

// tryVariable, the number of a process, makes the test binary try both sources and say what came of it: a process cannot give up
// a capability, or leave its PID namespace, for a while only.
const tryVariable = "FORKLOG_TEST_TRY"

func TestMain(m *testing.M) {
	if os.Getenv(tryVariable) == "" {
		os.Exit(m.Run())
	}
	pid, _ := strconv.Atoi(os.Getenv(tryVariable))
	_, err := forklog.OpenConnector(procfs.HostPID(pid), 0)
	fmt.Printf("permission %v, unsupported %v: %v\n", errors.Is(err, forklog.ErrPermission), errors.Is(err, forklog.ErrUnsupported), err)
	_, err = forklog.OpenPerf(procfs.HostPID(pid), 0)
	fmt.Printf("perf: permission %v, unsupported %v: %v\n", errors.Is(err, forklog.ErrPermission), errors.Is(err, forklog.ErrUnsupported), err)
}

// Where the source cannot be had the error says so, under a name.
func TestConnectorRefused(t *testing.T) {
	testutil.Root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		drop []uintptr // capabilities
		attr unix.SysProcAttr
		want string
	}{
		"without CAP_NET_ADMIN":     {[]uintptr{unix.CAP_NET_ADMIN}, unix.SysProcAttr{}, "permission true, unsupported false"},
		"in another PID namespace":  {nil, unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}, "permission false, unsupported true"},
		"in another user namespace": {nil, unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}, "permission true, unsupported false"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), tryVariable+"=1")
			cmd.SysProcAttr = &tt.attr
			out, err := outputWithout(cmd, tt.drop)
			if err != nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%s, %v; want %s", out, err, tt.want)
			}
		})
	}
}

// outputWithout runs a program without some capabilities: it gets the bounding set of the thread that starts it.
func outputWithout(cmd *exec.Cmd, caps []uintptr) (out []byte, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with this function
		for _, c := range caps {
			if err = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return
			}
		}
		out, err = cmd.CombinedOutput()
	}()
	<-done
	return out, err
}

// What a log knew when it was closed it still knows: a proof does not become one less for it. What is born later it knows nothing of.
func TestClosedLogKeepsItsWord(t *testing.T) {
	bin := compiled(t)
	for name, open := range map[string]func(*subject) forklog.Log{
		"perf":      func(s *subject) forklog.Log { return s.openPerf() },
		"connector": func(s *subject) forklog.Log { return s.openConnector(s.birth) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSubject(t, bin, "mix", "3", "pause", "mix", "3", "pause")
			log := open(s)
			s.goOn()
			before := s.children()
			settle(t)
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			s.goOn()
			after := s.children()
			log.Sync()
			check(t, log, before, exact)
			check(t, log, after, map[string]lineage.Fork{"own": lineage.ForkUnknown, "other": lineage.ForkUnknown})
		})
	}
}
