package main

import (
	"math"
	"strings"
	"testing"
)

func TestParseWrk(t *testing.T) {
	const report = `Running 4s test @ http://127.0.0.1:1/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   226.87us  113.57us   4.48ms   92.27%
    Req/Sec    69.72k     5.63k   80.27k    65.00%
  Latency Distribution
     50%  212.00us
     75%  244.00us
     90%  306.00us
     99%    1.49ms
  277474 requests in 4.00s, 23.29MB read
`
	s, err := parseWrk(report + "Requests/sec:  69364.76\nTransfer/sec:      5.82MB\n")
	if err != nil || s.Requests != 69364.76 || s.P50US != 212 || math.Abs(s.P99US-1490) > 1e-6 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{
		"", report, report + "Requests/sec: many\n",
		report + "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec:  69364.76\n",
		report + "  Non-2xx or 3xx responses: 277474\nRequests/sec:  69364.76\n",
	} {
		if s, err := parseWrk(bad); err == nil {
			t.Errorf("%q: %+v and no error", bad, s)
		}
	}
}

func TestTurnsLoss(t *testing.T) {
	// What changes from pair to pair is far more than what is lost in each.
	var same, less []pair
	for i := range 400 {
		n := int64(1000 + i%7*100)
		noise := int64(i%5) - 2
		same = append(same, pair{With: rate{n + noise, 1e9}, Without: rate{n, 1e9}})
		less = append(less, pair{With: rate{n - n/50 + noise, 1e9}, Without: rate{n, 1e9}})
	}
	if low, high := interval(same); low > 0 || high < 0 || high-low > 0.1 {
		t.Errorf("nothing lost: %.2f to %.2f", low, high)
	}
	low, high := interval(less)
	if got := turnsLoss(less); got < 1.9 || got > 2.1 || low > got || high < got || high-low > 0.1 {
		t.Errorf("2 %% lost: %.2f (%.2f to %.2f)", got, low, high)
	}
}

func TestTablesOfFewNumbers(t *testing.T) {
	r := &result{Zombies: 100, Rate: 100, Piles: pileCases(), Serving: serveCases(), Turns: turnsCases()}
	r.Piles[0].Samples = []pileSample{{WallNS: 5e6, InitNS: 1e6, WorkerNS: 2e6, stops: stops{StopNS: []int64{1e6, 2e6}, Reaped: 100}}}
	r.Piles[2].Samples = []pileSample{{WallNS: 7777e3, InitNS: 0.5e6, stops: stops{Reaped: 100}}}
	r.Serving[0].Samples = []serveSample{{Requests: 1000, P50US: 1, P99US: 2}}
	r.Serving[1].Samples = []serveSample{{Requests: 800, P50US: 1, P99US: 2, Left: 400}}
	r.Serving[2].Samples = []serveSample{{Requests: 796, P50US: 1, P99US: 2, Left: 3,
		stops: stops{StopNS: []int64{4e6}, Reaped: 397, Refusals: map[string]int64{"busy": 5}}}}
	r.Turns[1].Pairs = []pair{{With: rate{990, 1e9}, Without: rate{1000, 1e9}, Reaped: 50, StopNS: 2e6, CPUNS: 12e6}, {With: rate{500, 5e8}, Without: rate{2000, 2e9}, Reaped: 40, StopNS: 1e6}}
	got := r.Tables()
	for _, want := range []string{
		"| one CPU | reaper, in batches | **30.0 (30.0 to 30.0)** | 50 (50 to 50) | 10.0 (10.0 to 10.0) | 20.0 (20.0 to 20.0) | 2 | 1.50 | 1.99 | 2.00 |",
		"| one CPU | tini as PID 1 |  |  | 5.0 (5.0 to 5.0) |  |  | | | |",
		"| leak, nobody reaps | 800 (800 to 800) |  | 20.00 (20.00 to 20.00) |",
		"| **0.50 (0.50 to 0.50)** | 20.40 (20.40 to 20.40) |", "| 397 | 3 | 4.00 | 4.00 | 4.00 |", "leak, reaper, in batches: busy 5.",
		"| reaper, in batches | 2 | 1000 (1000 to 1000) | 60 | **0.67 (0.00 to 1.00)** | 0.20 | 0.80 |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the tables lack %q:\n%s", want, got)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if strings.Contains(got, bad) {
			t.Errorf("the tables have %q:\n%s", bad, got)
		}
	}
}
