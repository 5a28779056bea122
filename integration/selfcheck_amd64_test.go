package integration

import (
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"

	"os"
)

// TestSelfCheckNotices changes registers of the selfcheck program in the middle of its system call: a check that did not
// see that would prove nothing elsewhere.
func TestSelfCheckNotices(t *testing.T) {
	prog := testutil.Tool(t, "selfcheck")
	for name, change := range map[string]func(*unix.PtraceRegs){
		"rbx": func(r *unix.PtraceRegs) { r.Rbx++ },
		"r15": func(r *unix.PtraceRegs) { r.R15 ^= 1 << 40 },
		"r8":  func(r *unix.PtraceRegs) { r.R8-- },
	} {
		t.Run(name, func(t *testing.T) {
			report := filepath.Join(t.TempDir(), "report")
			cmd := osexec.Command(prog, "poll", report, "500")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
			read := func() map[string]int {
				data, err := os.ReadFile(report)
				if err != nil {
					return nil
				}
				return harness.ParseSelfCheck(string(data))
			}
			testutil.Eventually(t, 10*time.Second, func() (bool, string) { return read()["rounds"] > 0, "no report" })
			pid := cmd.Process.Pid
			// All requests to a tracee come from the thread that attached.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if err := unix.PtraceSeize(pid); err != nil {
				testutil.Lacks(t, "ptrace: "+err.Error(), "run as root, with kernel.yama.ptrace_scope below 3")
			}
			if err := unix.PtraceInterrupt(pid); err != nil {
				t.Fatal(err)
			}
			var status unix.WaitStatus
			if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
				t.Fatal(err)
			}
			var regs unix.PtraceRegs
			if err := unix.PtraceGetRegs(pid, &regs); err != nil {
				t.Fatal(err)
			}
			change(&regs)
			if err := unix.PtraceSetRegs(pid, &regs); err != nil {
				t.Fatal(err)
			}
			if err := unix.PtraceDetach(pid); err != nil {
				t.Fatal(err)
			}
			testutil.Eventually(t, 10*time.Second, func() (bool, string) {
				return read()["registers"] > 0, "the program has not noticed"
			})
		})
	}
}
