package main

import (
	"maps"
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/integration/compare"
)

func TestParse(t *testing.T) {
	const events = `{"Action":"start"}
{"Action":"output","Output":"=== RUN   TestA\n"}
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"    a_test.go:1: fine\n"}
{"Action":"pass","Test":"TestA"}
not an event
{"Action":"run","Test":"TestB"}
{"Action":"run","Test":"TestB/one"}
{"Action":"pass","Test":"TestB/one"}
{"Action":"run","Test":"TestB/two"}
{"Action":"output","Test":"TestB/two","Output":"    log_hook.go:47: time=\"now\" level=debug\n"}
{"Action":"output","Test":"TestB/two","Output":"    b_test.go:2: expected 7\n"}
{"Action":"fail","Test":"TestB/two"}
{"Action":"fail","Test":"TestB"}
{"Action":"run","Test":"TestC"}
{"Action":"run","Test":"TestC/one"}
{"Action":"pass","Test":"TestC/one"}
{"Action":"output","Test":"TestC","Output":"        \tError:      \tReceived unexpected error:\n"}
{"Action":"fail","Test":"TestC"}
{"Action":"run","Test":"TestD"}
{"Action":"output","Test":"TestD","Output":"    d_test.go:3: no criu\n"}
{"Action":"skip","Test":"TestD"}
{"Action":"run","Test":"TestE"}
{"Action":"fail"}
`
	var log strings.Builder
	got, err := parse(strings.NewReader(events), &log)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]compare.Result{
		"TestA":     {State: compare.Passed},
		"TestB/one": {State: compare.Passed},
		"TestB/two": {State: compare.Failed, Detail: "expected 7"},
		"TestC/one": {State: compare.Passed},
		"TestC":     {State: compare.Failed, Detail: "Received unexpected error:"},
		"TestD":     {State: compare.Skipped, Detail: "no criu"},
		"TestE":     {State: compare.Failed},
	}
	if !maps.Equal(got, want) {
		t.Errorf("results %v, want %v", got, want)
	}
	if !strings.Contains(log.String(), "=== RUN   TestA\n") || !strings.Contains(log.String(), "not an event\n") {
		t.Errorf("log is %q", log.String())
	}
}

func TestPattern(t *testing.T) {
	if got := pattern([]string{"TestA/x", "TestA/y", "TestB"}); got != "^(TestA|TestB)$" {
		t.Errorf("pattern %q, want each test once", got)
	}
}
