// Package escape makes text that a container or its user chose fit to be shown on a terminal, in a page or in a label.
package escape

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text escapes what does not print, direction marks among it, as in a Go string, and so the backslash.
func Text(s string) string {
	if Plain(s) && !strings.Contains(s, `\`) {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// Plain reports whether all of s prints.
func Plain(s string) bool {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return false
			}
		}
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
