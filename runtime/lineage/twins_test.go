package lineage_test

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage"
	"github.com/reaper-shim/reaper/runtime/procfs"
)

// A10 of the attacks on the design, with real processes: a child of PID 1 and a process that was seen under another parent have
// the same PID and start time. The sighting must not make the child an adopted one.
func TestTwinsAreNotTheSame(t *testing.T) {
	testutil.Root(t)
	bin := testutil.Victim(t, "twins")
	// A /proc of the namespace's own: the victim reads it by its own numbers.
	cmd := exec.Command("/bin/sh", "-c", "mount -t proc proc /proc && exec "+bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run twins: %v\n%s", err, out)
	}

	const init = 1
	var (
		grandchild procfs.Stat
		twins      int
	)
	lines := bufio.NewScanner(strings.NewReader(string(out)))
	for lines.Scan() {
		if lines.Text() == "unsupported" {
			testutil.Lacks(t, "clone3 with set_tid does not work", "run on Linux 5.5 or newer, as root of the initial user namespace")
		}
		who, rest, _ := strings.Cut(lines.Text(), " ")
		ticks, line, _ := strings.Cut(rest, " ")
		now, err := strconv.ParseUint(ticks, 10, 64)
		if err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		st, err := procfs.ParseStat([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		if who == "grandchild" {
			grandchild = st
			s := lineage.NewSightings(10)
			s.Saw(st, now, init)
			if young := now < st.StartTime+lineage.MinTicks; young && s.Parent(st.PID, st.StartTime) != 0 {
				t.Errorf("a process seen %d ticks after its start is taken for identified", now-st.StartTime)
			}
			continue
		}
		if st.PPID != init {
			t.Fatalf("the own child has parent %d", st.PPID)
		}
		if st.PID == grandchild.PID && st.StartTime == grandchild.StartTime {
			twins++
		}
	}
	t.Logf("%d pairs with the same PID and start time", twins)
	if twins == 0 {
		testutil.Lacks(t, "no pair had the same PID and start time, so nothing is shown", "run on a machine that forks three times within a clock tick")
	}
}
