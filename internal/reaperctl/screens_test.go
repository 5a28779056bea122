package reaperctl

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/reaper-shim/reaper/internal/termsvg"
)

// TestScreens: the pictures in docs show the columns that there are. If not: make screens.
func TestScreens(t *testing.T) {
	for name, s := range map[string]struct {
		command string // "" where the screen has no prompt
		table   *table
		says    string
	}{
		"ps":      {command: "reaperctl ps", table: sampleList().table(false)},
		"zombies": {command: "reaperctl zombies ", table: sampleZombies().table(false)},
		"leaks":   {command: "reaperctl leaks ", table: sampleLeaks().table(false), says: "What to change:"},
		"doctor":  {command: "reaperctl doctor", table: Diagnosis{Checks: []Check{ok("kernel", "Linux 6.12")}}.table(false), says: "Nothing is missing."},
		"top":     {table: sampleList().table(false), says: keysLine},
	} {
		t.Run(name, func(t *testing.T) {
			svg, err := os.ReadFile("../../docs/screens/" + name + ".svg")
			if err != nil {
				t.Fatal(err)
			}
			lines, err := termsvg.Text(svg)
			if err != nil {
				t.Fatal(err)
			}
			if len(lines) < 3 {
				t.Fatalf("%d lines", len(lines))
			}
			if s.command != "" && !strings.HasPrefix(lines[0], "$ "+s.command) {
				t.Errorf("the first line is %q, want $ %s", lines[0], s.command)
			}
			if got, want := strings.Fields(lines[1]), strings.Fields(strings.Join(s.table.titles, " ")); !slices.Equal(got, want) {
				t.Errorf("columns %q, want %q: make screens", got, want)
			}
			if s.says != "" && !slices.ContainsFunc(lines, func(line string) bool { return strings.HasSuffix(line, s.says) }) {
				t.Errorf("no %q in %q: make screens", s.says, lines)
			}
		})
	}
}
