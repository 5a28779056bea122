package exporter

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/reaper-shim/reaper/internal/pngtext"
)

// TestScreens: the pictures of the status page show the columns that it has. If not: make screens.
func TestScreens(t *testing.T) {
	var want []string
	for _, m := range regexp.MustCompile(`<th[^>]*>([^<]*)</th>`).FindAllStringSubmatch(statusHTML, -1) {
		want = append(want, m[1])
	}
	if len(want) == 0 {
		t.Fatal("no titles in status.html")
	}
	for _, name := range []string{"status-light.png", "status-dark.png"} {
		png, err := os.ReadFile("../../docs/screens/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := pngtext.Get(png)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		if err := json.Unmarshal([]byte(text), &got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s shows the columns %q (%v), want %q: make screens", name, got, err, want)
		}
	}
}
