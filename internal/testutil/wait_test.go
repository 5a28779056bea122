package testutil

import (
	"strings"
	"testing"
	"time"
)

func TestPollReportsTheLastState(t *testing.T) {
	err := Poll(3*pollEvery, func() (bool, string) { return false, "two of three" })
	if err == nil || !strings.Contains(err.Error(), "two of three") {
		t.Errorf("Poll: %v, want an error that says what was last seen", err)
	}
}

func TestPollLooksAtLeastOnce(t *testing.T) {
	if err := Poll(-time.Second, func() (bool, string) { return true, "" }); err != nil {
		t.Errorf("Poll with a deadline in the past: %v, want the condition to be looked at", err)
	}
}

func TestStableForWaitsUntilNothingChanges(t *testing.T) {
	calls := 0
	got := StableFor(t, 3*pollEvery, time.Minute, func() int {
		calls++
		return min(calls, 5)
	})
	if got != 5 {
		t.Errorf("StableFor returned %d while the value was still growing to 5", got)
	}
}

func TestFindToolNamesWhereItLooked(t *testing.T) {
	_, err := FindTool("no-such-program")
	if err == nil || !strings.Contains(err.Error(), "bin/tools") {
		t.Errorf("FindTool: %v, want an error that names the directories", err)
	}
}
