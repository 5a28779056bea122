package testutil

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// pollEvery is how often a condition is looked at: short beside anything that a test waits for, long beside what looking
// costs.
const pollEvery = 20 * time.Millisecond

// SlowEnv is the environment variable with the factor by which deadlines are longer on a slow machine, such as an emulated
// one.
const SlowEnv = "REAPER_TEST_SLOW"

// Slow returns d times the factor of SlowEnv.
func Slow(d time.Duration) time.Duration {
	if n, err := strconv.Atoi(os.Getenv(SlowEnv)); err == nil && n > 1 {
		return d * time.Duration(n)
	}
	return d
}

// Poll calls cond until it says done or the deadline has passed. The state that it returns goes into the error, so that a
// time-out says what was last seen.
func Poll(deadline time.Duration, cond func() (done bool, state string)) error {
	deadline = Slow(deadline)
	end := time.Now().Add(deadline)
	for {
		done, state := cond()
		if done {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %v: %s", deadline, state)
		}
		time.Sleep(pollEvery)
	}
}

// Eventually fails the test when cond has not said done within the deadline.
func Eventually(t testing.TB, deadline time.Duration, cond func() (done bool, state string)) {
	t.Helper()
	if err := Poll(deadline, cond); err != nil {
		t.Fatal(err)
	}
}

// StableFor waits until value has returned the same for the given time and returns that. It is how "exactly once" is
// tested: a second time would come after the first. The test fails when value is still changing at the deadline.
func StableFor[T comparable](t testing.TB, quiet, deadline time.Duration, value func() T) T {
	t.Helper()
	deadline = Slow(deadline)
	end := time.Now().Add(deadline)
	last, since := value(), time.Now()
	for time.Since(since) < quiet {
		if time.Now().After(end) {
			t.Fatalf("still changing after %v, last seen: %v", deadline, last)
		}
		time.Sleep(pollEvery)
		if v := value(); v != last {
			last, since = v, time.Now()
		}
	}
	return last
}
