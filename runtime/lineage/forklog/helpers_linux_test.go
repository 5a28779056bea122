package forklog_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/internal/testutil"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
)

// waitTick waits for the clock of start times to move on: a gap reaches to the end of the running tick.
func waitTick(t *testing.T) {
	t.Helper()
	from := forklog.BootTicks()
	testutil.Eventually(t, 5*time.Second, func() (bool, string) {
		now := forklog.BootTicks()
		return now > from+1, fmt.Sprint(now)
	})
}
