package escape_test

import (
	"testing"

	"github.com/reaper-shim/reaper/internal/escape"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                 "",
		"nginx: worker":    "nginx: worker",
		"größe 子":          "größe 子",
		`say "hi"`:         `say "hi"`,
		`C:\x1b`:           `C:\\x1b`, // what is escaped cannot be taken for what was
		"a\x1b[2Jb":        `a\x1b[2Jb`,
		"two\nlines":       `two\nlines`,
		"\u202eturned":     `\u202eturned`,
		"cut \xe5\xad":     `cut \xe5\xad`,
		"\"quoted\"\x00":   `"quoted"\x00`,
		"no-break\u00a0it": `no-break\u00a0it`,
	} {
		if got := escape.Text(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if !escape.Plain(escape.Text(in)) {
			t.Errorf("%q: what comes out does not print", in)
		}
	}
}
