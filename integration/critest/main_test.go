package main

import (
	"maps"
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/integration/compare"
)

func TestParse(t *testing.T) {
	const report = `[{"SuiteSucceeded":false,"SpecReports":[
		{"ContainerHierarchyTexts":null,"LeafNodeType":"BeforeSuite","LeafNodeText":"","State":"passed"},
		{"ContainerHierarchyTexts":["[k8s.io] A","when b"],"LeafNodeType":"It","LeafNodeText":"works","State":"passed"},
		{"ContainerHierarchyTexts":["[k8s.io] A"],"LeafNodeType":"It","LeafNodeText":"fails","State":"failed","Failure":{"Message":"want\n  this"}},
		{"ContainerHierarchyTexts":["[k8s.io] A"],"LeafNodeType":"It","LeafNodeText":"takes long","State":"timedout","Failure":{"Message":"a minute"}},
		{"ContainerHierarchyTexts":["[k8s.io] A"],"LeafNodeType":"It","LeafNodeText":"lacks","State":"skipped","Failure":{"Message":"no AppArmor"}},
		{"ContainerHierarchyTexts":["[k8s.io] A"],"LeafNodeType":"It","LeafNodeText":"filtered","State":"skipped"}]}]`
	got, err := parse(strings.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]compare.Result{
		"[k8s.io] A when b works": {State: compare.Passed},
		"[k8s.io] A fails":        {State: compare.Failed, Detail: "failed: want this"},
		"[k8s.io] A takes long":   {State: compare.Failed, Detail: "timedout: a minute"},
		"[k8s.io] A lacks":        {State: compare.Skipped, Detail: "no AppArmor"},
	}
	if !maps.Equal(got, want) {
		t.Errorf("results %v, want %v", got, want)
	}

	for name, text := range map[string]string{
		"not JSON":          "critest version",
		"the suite's setup": `[{"SpecReports":[{"LeafNodeType":"BeforeSuite","State":"failed","Failure":{"Message":"no runtime"}}]}]`,
		"one name twice":    `[{"SpecReports":[{"LeafNodeType":"It","LeafNodeText":"x","State":"passed"},{"LeafNodeType":"It","LeafNodeText":"x","State":"passed"}]}]`,
	} {
		if got, err := parse(strings.NewReader(text)); err == nil {
			t.Errorf("%s: %v, want an error", name, got)
		}
	}
}
