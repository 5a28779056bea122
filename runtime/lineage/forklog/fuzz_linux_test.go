package forklog

import (
	"slices"
	"testing"
)

func FuzzParseCPUList(f *testing.F) {
	for _, list := range []string{"0\n", "0-3,8,10-11", "0-", "-1", "3-1", "0-8191", "0-99999999999999999999", "0,,1", ","} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		if len(list) > 4096 { // a page, as sysfs files are
			return
		}
		cpus, err := parseCPUList(list)
		if err != nil && cpus != nil {
			t.Errorf("error %v with values", err)
		}
		if err == nil && (len(cpus) == 0 || slices.Min(cpus) < 0 || slices.Max(cpus) >= maxPossible) {
			t.Errorf("%q accepted as %v", list, cpus)
		}
	})
}
