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
	a.set(20 * time.Millisecond)
	a.set(time.Hour)
	if ring(50 * time.Millisecond) {
		t.Error("set anew to an hour: it rang")
	}
}

func TestAlarmsRingTogether(t *testing.T) {
	const wait = 200 * time.Millisecond
	var alarms [3]*alarm
	for i := range alarms {
		a, err := newAlarm()
		if err != nil {
			t.Fatal(err)
		}
		defer a.close()
		alarms[i] = a
	}
	// Set at different times, they are due at one, or at two that are a whole wait apart.
	var early, late [len(alarms)]time.Time // between these
	for i, a := range alarms {
		before := time.Now()
		d := a.together(wait)
		if d <= 0 || d > wait {
			t.Fatalf("a wait of %v, want at most %v", d, wait)
		}
		early[i], late[i] = before.Add(d), time.Now().Add(d)
		<-time.After(time.Millisecond)
	}
	for i, a := range alarms {
		select {
		case <-a.C:
		case <-time.After(10 * time.Second):
			t.Fatalf("alarm %d has not rung", i)
		}
		least, most := early[i].Sub(late[0]), late[i].Sub(early[0])
		if most.Truncate(wait) < least {
			t.Errorf("alarm %d is due %v to %v after the first", i, least, most)
		}
	}
}

func TestAlign(t *testing.T) {
	const wait = 800 * time.Millisecond
	for _, c := range []struct{ at, want time.Duration }{
		{0, wait},
		{time.Millisecond, wait - time.Millisecond},
		{wait - time.Millisecond, time.Millisecond},
		{7*wait + 300*time.Millisecond, 500 * time.Millisecond},
	} {
		if got := align(wait, c.at); got != c.want || (c.at+got)%wait != 0 {
			t.Errorf("at %v: %v, want %v", c.at, got, c.want)
		}
	}
}
