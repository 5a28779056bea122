package reaperctl

import (
	"strings"
	"testing"

	"github.com/mattn/go-runewidth"
)

// TestFold: what stands below a table is broken between words on a terminal, and nowhere else.
func TestFold(t *testing.T) {
	const text = "In 8s. What to change:\n- \"leak\" should wait for \"a-word-that-is-longer-than-the-terminal\" before it ends\n\n日本 日本 日本 日本 日本"
	for width, want := range map[int]string{
		0:   text,
		20:  "In 8s. What to\nchange:\n- \"leak\" should wait\n  for\n  \"a-word-that-is-longer-than-the-terminal\"\n  before it ends\n\n日本 日本 日本 日本\n日本",
		200: text,
	} {
		got := fold(text, width)
		if got != want {
			t.Errorf("%d columns: %q, want %q", width, got, want)
		}
		for line := range strings.Lines(got) {
			if n := runewidth.StringWidth(strings.TrimSpace(line)); width > 0 && n > width && strings.Contains(strings.TrimSpace(line), " ") {
				t.Errorf("%q has %d columns of %d", line, n, width)
			}
		}
	}
}
