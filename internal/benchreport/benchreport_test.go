package benchreport

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRenewKeepsTheText(t *testing.T) {
	const begin, end = "<!-- begin: written by make x -->", "<!-- end: written by make x -->"
	got, err := Renew("before\n"+begin+"\nold\n"+end+"\nafter\n", "x", "new\n")
	if want := "before\n" + begin + "\n\nnew\n\n" + end + "\nafter\n"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := Renew("no marks", "x", "new"); err == nil {
		t.Error("a page without marks was accepted")
	}
	if _, err := Renew(begin+end, "y", "new"); err == nil {
		t.Error("the marks of another target were accepted")
	}
}

func TestVersion(t *testing.T) {
	for in, want := range map[string]string{"v2.4.2+unknown": "2.4.2", "1.6.20~ds1": "1.6.20~ds1", "v1.7.35": "1.7.35", "2.4.2+k3s1": "2.4.2+k3s1"} {
		if got := Version(in); got != want {
			t.Errorf("Version(%q) is %q, want %q", in, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.75, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, 0.25, 2},
	} {
		if got := Quantile(c.values, c.q); got != c.want {
			t.Errorf("quantile %v of %v: %v, want %v", c.q, c.values, got, c.want)
		}
	}
}

type numbers struct {
	Machine
	Values []float64 `json:"values"`
}

func (n *numbers) Tables() string { return Spread(n.Values, 1) + " on " + n.Kernel + "\n" }

func TestKeep(t *testing.T) {
	dir := t.TempDir()
	data, doc := filepath.Join(dir, "data", "x.json"), filepath.Join(dir, "x.md")
	if err := os.WriteFile(doc, []byte("<!-- begin: written by make x --><!-- end: written by make x -->"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := ThisMachine()
	if err != nil || m.Kernel == "" || m.CPUs < 1 || m.Load == "" {
		t.Errorf("%+v, %v", m, err)
	}
	if err := Keep(&numbers{Machine: m, Values: []float64{1, 2, 3}}, new(numbers), data, doc, "x"); err != nil {
		t.Fatal(err)
	}
	// Rendered once more, from the file alone.
	if err := Keep(nil, new(numbers), data, doc, "x"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(doc)
	if want := "2.0 (1.5 to 2.5) on " + m.Kernel; err != nil || strings.Count(string(got), want) != 1 {
		t.Errorf("the page says %q, %v; want %q once", got, err, want)
	}
}
