package exporter

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/reaper-shim/reaper/internal/benchreport"
)

var writeDocs = flag.String("write-docs", "", "renew the table of metrics in this `file`")

const (
	docsFile   = "docs/exporter.md"
	docsTarget = "docs-exporter"
)

// table describes the metrics as the registry does.
func table(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range families(t) {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		text := strings.Join(labels, ", ")
		// What all containers have in common is said once.
		text = strings.NewReplacer("container, effective_mode, mode, namespace, pod", "*container*, mode, effective_mode",
			"container, mechanism, namespace, outcome, pod", "*container*, mechanism, outcome", "container, namespace, pod", "*container*").Replace(text)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), text, strings.ReplaceAll(f.GetHelp(), "|", `\|`))
	}
	if !strings.Contains(b.String(), strings.ToLower(dto.MetricType_HISTOGRAM.String())) {
		t.Error("no histogram in the table")
	}
	return b.String()
}

// TestDocs: the page lists the metrics that there are. With -write-docs it is made so.
func TestDocs(t *testing.T) {
	want, err := benchreport.Renew(string(repoFile(t, docsFile)), docsTarget, table(t))
	if err != nil {
		t.Fatal(err)
	}
	if *writeDocs != "" {
		if err := os.WriteFile(*writeDocs, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(repoFile(t, docsFile)) != want {
		t.Errorf("%s is not up to date: make %s", docsFile, docsTarget)
	}
}
