package shim

import (
	"testing"
	"time"
)

func TestAlarm(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	ring := func(most time.Duration) bool {
		select {
		case <-a.C:
			return true
		case <-time.After(most):
			return false
		}
	}
	for _, d := range []time.Duration{-time.Second, 0, 30 * time.Millisecond} {
		began := time.Now()
		a.set(d)
		if !ring(10 * time.Second) {
			t.Fatalf("set to %v: it has not rung", d)
		}
		if took := time.Since(began); took < d {
			t.Errorf("set to %v: it rang after %v", d, took)
		}
	}
	// The last one set counts.
	a.set(time.Hour)
	a.set(time.Millisecond)
	if !ring(10 * time.Second) {
		t.Error("set anew to 1 ms: it has not rung")
	}
	a.set(time.Millisecond)
	a.set(time.Hour)
	if ring(50 * time.Millisecond) {
		t.Error("set anew to an hour: it rang")
	}
}
