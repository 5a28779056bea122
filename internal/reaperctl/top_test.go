package reaperctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/mattn/go-runewidth"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/shim/api"
)

type fixedNode struct {
	tasks []*node.Task
	err   error
}

func (n fixedNode) Snapshot(context.Context) ([]*node.Task, error) { return n.tasks, n.err }

func manyTasks() []*node.Task {
	var tasks []*node.Task
	for i := range uint32(50) {
		tasks = append(tasks, &node.Task{
			Namespace: "default", ID: fmt.Sprintf("t%02d", i), PID: 1, Ours: i%2 == 0, PIDs: node.PIDs{Current: int64(100 - i)},
			Stats: &api.ZombieStats{Mode: "assist", EffectiveMode: "assist", Adopted: i, ReapedByTracer: uint64(1000 - i)},
		})
	}
	tasks[0].Names.Nerdctl = hostile
	return tasks
}

func press(t *testing.T, m *top, keys ...string) {
	t.Helper()
	for _, k := range keys {
		msg := tea.KeyPressMsg{Text: k, Code: []rune(k)[0]}
		switch k {
		case "down":
			msg = tea.KeyPressMsg{Code: tea.KeyDown}
		case "end":
			msg = tea.KeyPressMsg{Code: tea.KeyEnd}
		case " ":
			msg = tea.KeyPressMsg{Text: " ", Code: tea.KeySpace}
		}
		if _, cmd := m.Update(msg); cmd != nil {
			t.Fatalf("key %q: a command", k)
		}
	}
}

// screen draws, and fails the test where that is larger than the terminal or would change it.
func screen(t *testing.T, m *top) []string {
	t.Helper()
	lines := strings.Split(m.screen(), "\n")
	if len(lines) != m.height {
		t.Errorf("%d lines on a terminal of %d", len(lines), m.height)
	}
	for _, line := range lines {
		if runewidth.StringWidth(line) > m.width || strings.ContainsAny(line, "\x1b\u202e") {
			t.Errorf("%q does not fit into %d columns, or escapes", line, m.width)
		}
	}
	return lines
}

func TestTop(t *testing.T) {
	m := newTop(t.Context(), fixedNode{tasks: manyTasks()}, time.Second, false)
	m.Update(tea.WindowSizeMsg{Width: 90, Height: 12})
	screen(t, m)
	if _, cmd := m.Update(m.ask()); cmd == nil {
		t.Error("no next time after an answer")
	}
	if lines := screen(t, m); !strings.Contains(lines[0], "50 tasks, 25 of the reaper runtime") || !strings.HasPrefix(lines[2], "t48") {
		t.Errorf("by zombies: %q", lines)
	}
	press(t, m, "r")
	if lines := screen(t, m); !strings.Contains(lines[0], "by reaped") || !strings.HasPrefix(lines[2], `a\x1b`) {
		t.Errorf("by reaped: %q", lines)
	}
	press(t, m, "n", "down", "end")
	if lines := screen(t, m); !strings.HasPrefix(lines[10], "t49") || m.cursor != 49 {
		t.Errorf("at the end, by name: cursor %d, %q", m.cursor, lines)
	}
	press(t, m, "a")
	if lines := screen(t, m); m.cursor != 24 || strings.Contains(strings.Join(lines, "\n"), "t49") {
		t.Errorf("only ours: cursor %d, %q", m.cursor, lines)
	}
	press(t, m, " ")
	if lines := screen(t, m); !strings.Contains(lines[0], "stopped at") {
		t.Errorf("stopped: %q", lines[0])
	}
	for range sortKeys {
		press(t, m, "s")
	}
	if sortKeys[m.sort].key != "n" {
		t.Errorf("s has not gone round: %q", sortKeys[m.sort].name)
	}
	m.Update(answer{err: errors.New("gone\x1b[2J"), at: time.Now()})
	if lines := screen(t, m); !strings.Contains(lines[0], `gone\x1b`) || len(m.tasks) != 50 {
		t.Errorf("without an answer: %q", lines[0])
	}
	m.Update(tea.WindowSizeMsg{})
	if m.width != 90 {
		t.Errorf("a terminal without a size is taken for %d columns", m.width)
	}
	m.Update(tea.WindowSizeMsg{Width: 20, Height: 4})
	screen(t, m)
	if _, cmd := m.Update(tea.KeyPressMsg{Code: tea.KeyEscape}); cmd == nil {
		t.Error("escape does not leave")
	}
}
