package exporter

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"

	"github.com/reaper-shim/reaper/internal/testutil"
)

const (
	dashboardFile = "contrib/grafana/reaper.json"
	rulesFile     = "contrib/prometheus/reaper.rules.yml"
	rulesTestFile = "contrib/prometheus/reaper.rules.test.yml"
)

func repoFile(t *testing.T, name string) []byte {
	t.Helper()
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// expressions returns every PromQL expression of the dashboard and of the rules.
func expressions(t *testing.T) []string {
	t.Helper()
	var out []string
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Definition string } }
	}
	if err := json.Unmarshal(repoFile(t, dashboardFile), &dashboard); err != nil {
		t.Fatalf("%s: %v", dashboardFile, err)
	}
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			out = append(out, target.Expr)
		}
	}
	for _, v := range dashboard.Templating.List {
		if v.Definition != "" {
			out = append(out, v.Definition)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(repoFile(t, rulesFile), &rules); err != nil {
		t.Fatalf("%s: %v", rulesFile, err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			out = append(out, r.Expr)
		}
	}
	if len(out) < 20 {
		t.Fatalf("only %d expressions found", len(out))
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\breaper_[a-z0-9_]+`)
	selector   = regexp.MustCompile(`\b(reaper_[a-z0-9_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"`)
	// scraped are labels that Prometheus adds.
	scraped = []string{"instance", "job"}
)

// Dashboard and rules name metrics that there are, labels that these have, and of verdicts and the like values that there are.
func TestContribMetrics(t *testing.T) {
	served := make(map[string]*dto.MetricFamily)
	for _, f := range families(t) {
		served[f.GetName()] = f
		if f.GetType() == dto.MetricType_HISTOGRAM {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				served[f.GetName()+suffix] = f
			}
		}
	}
	for _, expr := range expressions(t) {
		names := metricName.FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("no metric of ours in %s", expr)
		}
		for _, name := range names {
			if served[name] == nil {
				t.Errorf("there is no %s: %s", name, expr)
			}
		}
		for _, s := range selector.FindAllStringSubmatch(expr, -1) {
			if served[s[1]] == nil {
				continue
			}
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				if label := m[1]; !slices.Contains(scraped, label) && !hasLabel(served[s[1]], label) {
					t.Errorf("%s has no label %s: %s", s[1], label, expr)
				}
				if m[1] == "verdict" || m[1] == "state" {
					for value := range strings.SplitSeq(m[2], "|") {
						if !hasValue(served[s[1]], m[1], value) {
							t.Errorf("%s has no %s=%q: %s", s[1], m[1], value, expr)
						}
					}
				}
			}
		}
	}
}

func hasLabel(f *dto.MetricFamily, name string) bool {
	return slices.ContainsFunc(f.GetMetric()[0].GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == name })
}

func hasValue(f *dto.MetricFamily, name, value string) bool {
	return slices.ContainsFunc(f.GetMetric(), func(m *dto.Metric) bool {
		return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == name && l.GetValue() == value })
	})
}

// The rules are rules, and each fires when it should and not before.
func TestContribRules(t *testing.T) {
	promtool := testutil.Tool(t, "promtool")
	root, err := testutil.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "rules", rulesFile}, {"test", "rules", rulesTestFile}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	// promtool does not ask for a test of each.
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllSubmatch(repoFile(t, rulesFile), -1) {
		if !strings.Contains(string(repoFile(t, rulesTestFile)), "alertname: "+string(alert[1])+"\n") {
			t.Errorf("no test has %s fire", alert[1])
		}
	}
}

// promtool parses the expressions of the dashboard too, as rules.
func TestContribDashboardParses(t *testing.T) {
	promtool := testutil.Tool(t, "promtool")
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	type group struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	}
	var rules []rule
	for _, expr := range expressions(t) {
		if strings.HasPrefix(expr, "label_values(") {
			continue // Grafana's
		}
		rules = append(rules, rule{"x:y:z" + strings.Repeat("z", len(rules)), strings.ReplaceAll(expr, "$__rate_interval", "5m")})
	}
	data, err := yaml.Marshal(map[string]any{"groups": []group{{"dashboard", rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The manifests parse, and name only flags and ports that there are.
func TestContribManifests(t *testing.T) {
	var set map[string]any
	daemonSet := repoFile(t, "contrib/kubernetes/reaper-exporter.yaml")
	if err := yaml.Unmarshal(daemonSet, &set); err != nil {
		t.Fatal(err)
	}
	if set["kind"] != "DaemonSet" || !strings.Contains(string(daemonSet), "containerPort: "+strings.TrimPrefix(defaultAddress, ":")) {
		t.Errorf("%v with another port than %s", set["kind"], defaultAddress)
	}
	unit := repoFile(t, "contrib/systemd/reaper-exporter.service")
	var help strings.Builder
	if code := Main(t.Context(), "test", []string{"--help"}, &help, &help); code != exitOK {
		t.Fatalf("--help: exit code %d", code)
	}
	flags := regexp.MustCompile(`--[a-z][a-z.-]+[a-z]`).FindAllString(string(daemonSet)+string(unit), -1)
	if len(flags) == 0 {
		t.Error("no flags found")
	}
	for _, flag := range flags {
		if !strings.Contains(help.String(), flag+" ") {
			t.Errorf("there is no flag %s", flag)
		}
	}
}
