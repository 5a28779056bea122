package tracer

import (
	"testing"
	"time"
)

// TestNoTracer: an answer is good for those who were dead before the question, of the same process, and for as long as it was given.
func TestNoTracer(t *testing.T) {
	began := time.Now()
	at := began.Add
	req := func(age time.Duration) Request { return Request{PID: 7, StartTime: 70, Age: age, Probe: true} }
	no := func(d time.Duration) answer { return answer{at: at(d), took: time.Millisecond, none: true} }
	yes := func(d time.Duration) answer { return answer{at: at(d), took: time.Millisecond} }
	other, later := req(time.Second), req(time.Second)
	other.PID, later.StartTime = 8, 71
	silent := req(time.Second)
	silent.Probe = false
	for _, tc := range []struct {
		name         string
		answers      []answer
		req          Request
		received     time.Duration
		covered, due bool
	}{
		{"never asked", nil, req(time.Second), 0, false, true},
		{"nobody may ask", nil, silent, 0, false, false},
		{"no age", nil, req(0), 0, false, true},
		{"an attach that did not come to it", []answer{{}}, req(time.Second), 0, false, true},
		{"dead long before", []answer{no(0)}, req(time.Second), 400 * time.Millisecond, true, false},
		{"dead right then", []answer{no(0)}, req(time.Second), time.Second, true, true},
		{"perhaps dead after", []answer{no(0)}, req(time.Second), time.Second + 1, false, true},
		{"no age is known", []answer{no(0)}, req(0), time.Millisecond, false, false},
		{"covered without leave to ask", []answer{no(0)}, silent, time.Second, true, false},
		{"another process", []answer{no(0)}, other, time.Millisecond, false, true},
		{"its number again", []answer{no(0)}, later, time.Millisecond, false, true},
		{"a tracer", []answer{yes(0)}, req(time.Second), time.Second, false, false},
		{"a tracer, after a while", []answer{yes(0)}, req(time.Second), askAgain, false, true},
		{"a tracer since", []answer{no(0), yes(600 * time.Millisecond)}, req(time.Second), 700 * time.Millisecond, true, false},
		{"a tracer since, and dead since", []answer{no(0), yes(600 * time.Millisecond)}, req(time.Second), 1100 * time.Millisecond, false, false},
		{"asked again", []answer{no(0), no(time.Second)}, req(time.Second), 1100 * time.Millisecond, true, false},
		{"it took long", []answer{{at: at(0), took: 20 * time.Millisecond, none: true}}, req(3 * time.Second), 1900 * time.Millisecond, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n noTracer
			for _, a := range tc.answers {
				n.heard(req(time.Second), a)
			}
			if got := n.covers(tc.req, at(tc.received)); got != tc.covered {
				t.Errorf("covered %v, want %v", got, tc.covered)
			}
			if got := n.due(tc.req, at(tc.received)); got != (tc.due && asks) {
				t.Errorf("due %v, want %v", got, tc.due && asks)
			}
		})
	}
}
