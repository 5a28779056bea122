package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/internal/termsvg"
)

// TestScreen: the picture of the demo shows the table that it prints. If not: make screens.
func TestScreen(t *testing.T) {
	svg, err := os.ReadFile("../../docs/screens/demo.svg")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := termsvg.Text(svg)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(lines, func(line string) bool {
		return slices.Equal(strings.Fields(line), strings.Fields(strings.Join(titles, " ")))
	})
	if len(lines) == 0 || lines[0] != "$ make demo" || at < 0 || len(lines) < at+3 {
		t.Errorf("%q: no table with %q: make screens", lines, titles)
	}
}
