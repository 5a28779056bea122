package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// The table in docs/kernels.md is between these lines; a row is replaced by one of the same kernel, architecture and suite.
const (
	tableBegin = "<!-- begin: make test-arm64 test-vm RECORD=1 -->"
	tableEnd   = "<!-- end -->"
	tableHead  = "| kernel | architecture | cgroup | suite | passed | failed | skipped | date |\n|---|---|---|---|---|---|---|---|\n"
)

// record adds the results to the table in a file.
func record(file string, c *config, r *result) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	suite := c.suite
	if c.suite == "unit" && c.pkgs != allPackages {
		suite += " of " + c.pkgs
	}
	if c.run != "" {
		suite += " (" + strings.ReplaceAll(c.run, "|", ", ") + ")"
	}
	if c.kills != defaultKills {
		suite += fmt.Sprintf(", %d kills in each state", c.kills)
	}
	text, err := addRow(string(data), []string{
		r.kernel, c.arch, r.cgroup, suite,
		fmt.Sprint(r.passed), fmt.Sprint(r.failed), fmt.Sprint(r.skips), time.Now().UTC().Format(time.DateOnly),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// keyFields is how many fields of a row say what was tested.
const keyFields = 4

func addRow(text string, row []string) (string, error) {
	before, rest, ok := strings.Cut(text, tableBegin)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("no table between %q and %q", tableBegin, tableEnd)
	}
	key := "| " + strings.Join(row[:keyFields], " | ") + " |"
	rows := []string{"| " + strings.Join(row, " | ") + " |"}
	for line := range strings.Lines(strings.TrimPrefix(strings.TrimSpace(table), strings.TrimSpace(tableHead))) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, key) {
			rows = append(rows, line)
		}
	}
	slices.Sort(rows)
	return before + tableBegin + "\n" + tableHead + strings.Join(rows, "\n") + "\n" + tableEnd + after, nil
}
