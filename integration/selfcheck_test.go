package integration

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestSelfCheck has a PID 1 that blocks in one system call over and over and checks after each that nothing in it has
// changed: registers, signal mask, errno, dispositions, the result and the time it took. Orphans keep the tracer at work.
func TestSelfCheck(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	events := subscribe(t, d)
	for _, mode := range []string{"poll", "futex", "nanosleep", "epoll"} {
		// Short: many returns. Long: most stops hit the middle of a call, and one that began its time-out anew each time
		// would never return.
		for _, timeout := range []int{20, 1500} {
			t.Run(fmt.Sprintf("%s %d ms", mode, timeout), func(t *testing.T) {
				t.Parallel()
				c := run(t, d, harness.Spec{
					Runtime: runtime, Args: []string{"/bin/selfcheck", mode, "/report", strconv.Itoa(timeout)},
					Annotations: map[string]string{"io.containerd.reaper.grace": "100ms"},
				})
				exec(t, c, "/bin/leak", "-n", "200", "-r", "20")
				testutil.Eventually(t, grace+3*time.Second, func() (bool, string) {
					zs := zombies(t, c)
					return len(zs) == 0, describe(zs)
				})
				// The report is a quarter of a second old, or a round.
				want := selfReport(t, c)["rounds"] + 2
				var r map[string]int
				testutil.Eventually(t, 10*time.Second, func() (bool, string) {
					r = selfReport(t, c)
					return r["rounds"] >= want, fmt.Sprintf("PID 1 reports %v", r)
				})
				s := finalStats(t, events, c)
				t.Logf("%d stops, longest %v: %v", s.GetAttaches(), s.GetLongestStop().AsDuration(), r)
				for _, key := range []string{"registers", "result", "early", "mask", "errno", "disposition", "spurious"} {
					if r[key] != 0 {
						t.Errorf("%s=%d, want 0", key, r[key])
					}
				}
				// Any stop gives EINTR to epoll_wait (signal(7)).
				if mode != "epoll" && r["eintr"] != 0 {
					t.Errorf("eintr=%d, want 0", r["eintr"])
				}
				if late := time.Duration(r["max_us"]) * time.Microsecond; late > time.Second {
					t.Errorf("a call took %v longer than its time-out", late)
				}
				if s.GetAttaches() < 5 {
					t.Errorf("PID 1 was stopped %d times in 10 s of leaking: the test proves nothing", s.GetAttaches())
				}
			})
		}
	}
}

// selfReport reads what the selfcheck program says of itself.
func selfReport(t *testing.T, c *harness.Container) map[string]int {
	t.Helper()
	var r map[string]int
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		data, err := c.ReadFile("/report")
		if err != nil {
			return false, err.Error()
		}
		r = harness.ParseSelfCheck(string(data))
		return len(r) == 10, fmt.Sprintf("report %q", strings.TrimSpace(string(data)))
	})
	return r
}
