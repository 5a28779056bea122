package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
)

// sample is a result with all parts: ours takes half of what runc.v2 takes.
func sample() *result {
	w := where{Machine: benchreport.Machine{Date: "2026-01-02", Kernel: "6.1", CPUs: 2, Commit: "abc"}, Containerd: "v2", Runc: "1.5", Took: 12}
	r := &result{plots: "benchmarks"}
	r.Start, r.Idle = &startPart{where: w, Rounds: 1}, &idlePart{where: w, Settle: 60, Seconds: 180}
	r.Density = &densityPart{where: w, Pods: 4, Workers: 2, Window: 10, Rate: 5, Grace: 1}
	for i, runtime := range runtimes {
		f := 2 / float64(i+1)
		for _, op := range []string{opStart, opRun, opExec, opInfo} {
			r.Start.Cases = append(r.Start.Cases, startCase{Op: op, Parallel: 1, Runtime: runtime, MS: []float64{9 * f, 10 * f, 11 * f}})
		}
		for _, n := range []int{1, 3} {
			m := memory{RSS: int64(5e6 * f), PSS: int64(4e6 * f), PrivateDirty: int64(3e6 * f)}
			r.Idle.Pods = append(r.Idle.Pods, podIdle{Runtime: runtime, Containers: n, Memory: m, CPU: 100 * f, Switches: 3 * f})
		}
		c := densityCase{Runtime: runtime, Started: 3, Memory: memory{RSS: 20e6, PSS: 10e6, PrivateDirty: 8e6}, Leaking: 1, Leaked: 50, Left: 50}
		if runtime == harness.ReaperRuntime {
			c.Left, c.ReapMS = 0, []float64{1100, 1200, 1400}
		}
		r.Density.Runtimes = append(r.Density.Runtimes, c)
	}
	r.Sweep = &sweepPart{where: w, Cases: []sweepCase{
		{Processes: 10, Children: true, Micros: []float64{50}, Full: []float64{90}}, {Processes: 100, Children: true, Micros: []float64{300}, Full: []float64{400}},
		{Processes: 10, Micros: []float64{20}, Full: []float64{90}}, {Processes: 100, Micros: []float64{20}, Full: []float64{400}},
	}}
	r.Reap = &reapPart{where: w, Orphans: 100, Rate: 50, Cases: []reapCase{
		{Who: whoNobody, Samples: []reapSample{{Container: 200, Shim: 1, Left: 100}}}, {Who: whoAssist, Samples: []reapSample{{Container: 210, Shim: 90}}},
	}}
	r.Stress = &stressPart{where: w, Containers: 5, Cases: []stressCase{
		{Runtime: harness.RuncRuntime, PSS: 4e6, RSS: 11e6, Benchmarks: map[string]float64{"start": 7}},
		{Runtime: harness.ReaperRuntime, PSS: 3e6, RSS: 8e6, Benchmarks: map[string]float64{"start": 6.5}},
	}}
	return r
}

func TestTables(t *testing.T) {
	page := sample().Tables()
	for _, want := range []string{
		"Measured on 2026-01-02 at commit abc in 12 s: Linux 6.1",
		"| create and start | 1 | 20.0 (19.0 to 21.0) | 22.0 | 10.0 (9.5 to 10.5) | 11.0 | **0.50** | 0.50 |",
		"| resident, MB | 3 | 10.00 (10.00 to 10.00) | 5.00 (5.00 to 5.00) | **0.50** |",
		"| context switches a second | 1 | 6.0 (6.0 to 6.0) | 3.0 (3.0 to 3.0) | **0.50** |",
		"all pods of both runtimes at the same time: 1 of each size",
		"| zombies left 3 s later | 50 | 0 |",
		"longest |  | 1.20, 1.40, 1.40 |",
		"| 100 | PID 1 | 300 (300 to 300) | 400 (400 to 400) | 3.00 |",
		"| reaper.v2, PID 1 is made to | 210 (210 to 210) | 90 (90 to 90) | 0 (0 to 0) |",
		"| critest: start | 7.0 | 6.5 |",
		"![Latencies of both runtimes](benchmarks/start.svg)",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "%!", "<nil>"} {
		if strings.Contains(page, bad) {
			t.Errorf("%q in\n%s", bad, page)
		}
	}
	// Parts that were not measured, or not all of them, leave a page all the same.
	if page := new(result).Tables(); strings.Contains(page, "###") {
		t.Errorf("tables of nothing: %s", page)
	}
	half := sample()
	half.Start.Cases, half.Idle.Pods, half.Stress.Cases[1].Benchmarks = half.Start.Cases[:1], nil, nil
	if page := half.Tables(); strings.Contains(page, "NaN") || strings.Contains(page, "%!") {
		t.Errorf("half a run: %s", page)
	}
}

func TestRender(t *testing.T) {
	dir := t.TempDir()
	data, doc, plots := filepath.Join(dir, "b.json"), filepath.Join(dir, "docs/b.md"), filepath.Join(dir, "docs/pictures")
	text, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(doc), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{data: string(text), doc: "# Page\n<!-- begin: written by make bench --><!-- end: written by make bench -->\nend\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	render := func() map[string]string {
		if err := run(t.Context(), options{}, "", data, doc, plots, true); err != nil {
			t.Fatal(err)
		}
		out := make(map[string]string)
		files, err := filepath.Glob(filepath.Join(dir, "docs/*"))
		if err != nil {
			t.Fatal(err)
		}
		pictures, err := filepath.Glob(filepath.Join(plots, "*.svg"))
		if err != nil || len(pictures) != 5 {
			t.Fatalf("pictures %v, %v: want 5", pictures, err)
		}
		for _, f := range append(files, pictures...) {
			if b, err := os.ReadFile(f); err == nil {
				out[f] = string(b)
			}
		}
		return out
	}
	first := render()
	if page := first[doc]; !strings.Contains(page, "(pictures/start.svg)") || !strings.HasSuffix(page, "-->\nend\n") {
		t.Errorf("the page: %s", page)
	}
	for name, text := range first {
		if strings.HasSuffix(name, ".svg") && (!strings.Contains(text, "</svg>") || strings.Contains(text, "NaN")) {
			t.Errorf("%s: %.300s", name, text)
		}
	}
	for name, text := range render() {
		if text != first[name] {
			t.Errorf("%s is another one the second time", name)
		}
	}
}

func TestParse(t *testing.T) {
	m, err := parseRollup("00400000-7ffe rollup\nRss:    11204 kB\nPss:    11196 kB\nPss_Dirty: 3 kB\nPrivate_Dirty:   3728 kB\n")
	if want := (memory{11204 << 10, 11196 << 10, 3728 << 10}); err != nil || m != want {
		t.Errorf("%+v, %v; want %+v", m, err, want)
	}
	for _, bad := range []string{"", "Rss: 1 kB\nPss: 1 kB\n", "Rss: x kB\nPss: 1 kB\nPrivate_Dirty: 1 kB\n"} {
		if m, err := parseRollup(bad); err == nil {
			t.Errorf("%q gave %+v", bad, m)
		}
	}
	n, err := parseSwitches("Name:\tx\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n")
	if err != nil || n != 42 {
		t.Errorf("%d, %v; want 42", n, err)
	}
	if n, err := parseSwitches("voluntary_ctxt_switches:\t40\n"); err == nil {
		t.Errorf("half of the counts gave %d", n)
	}
	if r := ratio([]float64{1}, []float64{0}); r != "" {
		t.Errorf("a ratio to nothing: %s", r)
	}
	if math.Abs(millis(1500000)-1.5) > 1e-9 {
		t.Errorf("1.5 ms are %v", millis(1500000))
	}
	if _, err := choose("start,nonsense"); err == nil || !strings.Contains(err.Error(), "idle") {
		t.Errorf("a part that is none: %v", err)
	}
	var o options
	if err := o.parse("1,x"); err == nil {
		t.Error("sizes \"1,x\" were accepted")
	}
}

func TestParseStress(t *testing.T) {
	m, err := parseDensity([]byte(`{"pss":42,"rss":84,"pssPerContainer":42,"rssPerContainer":84}`), 20)
	if want := (memory{PSS: 2048, RSS: 4096}); err != nil || m != want {
		t.Errorf("%+v, %v; want %+v: it starts one container more than it says", m, err, want)
	}
	if m, err := parseDensity([]byte(`{}`), 1); err == nil {
		t.Errorf("nothing gave %+v", m)
	}
	ms := make(map[string][]float64)
	const data = `{"operationsNames":["CreatePod","StopPod"],"numParallel":1,"datapoints":[{"operationsDurationsNs":[1500000,2000000]},{"operationsDurationsNs":[2500000,3000000]}]}`
	if err := parseCritest([]byte(data), ms); err != nil || len(ms["CreatePod"]) != 2 || ms["StopPod"][1] != 3 {
		t.Errorf("%v, %v", ms, err)
	}
	for _, bad := range []string{`{}`, `{"operationsNames":["a"],"datapoints":[{"operationsDurationsNs":[]}]}`, `x`} {
		if err := parseCritest([]byte(bad), ms); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
