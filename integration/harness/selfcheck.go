package harness

import (
	"strconv"
	"strings"
)

// ParseSelfCheck reads a report of the selfcheck program: name=number pairs.
func ParseSelfCheck(report string) map[string]int {
	r := map[string]int{}
	for pair := range strings.FieldsSeq(report) {
		name, value, _ := strings.Cut(pair, "=")
		if n, err := strconv.Atoi(value); err == nil {
			r[name] = n
		}
	}
	return r
}
