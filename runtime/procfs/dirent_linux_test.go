package procfs

import (
	"encoding/binary"
	"reflect"
	"testing"
)

// dirent is the struct linux_dirent64 of a name, with the place of the next one.
func dirent(name string, next int64) []byte {
	b := make([]byte, 19+len(name)+1)
	b = append(b, make([]byte, -len(b)&7)...)
	binary.NativeEndian.PutUint64(b, 7)
	binary.NativeEndian.PutUint64(b[8:], uint64(next))
	binary.NativeEndian.PutUint16(b[16:], uint16(len(b)))
	b[18] = 4
	copy(b[19:], name)
	return b
}

func TestParseDirents(t *testing.T) {
	type entry struct {
		name string
		at   Mark
	}
	text := append(append(dirent("uptime", 5), dirent("1", 259)...), dirent("4194304", 1<<40)...)
	for _, tc := range []struct {
		name  string
		text  []byte
		stop  string // where no more is wanted
		want  []entry
		next  Mark
		more  bool
		wrong bool
	}{
		{"nothing", nil, "", nil, 3, true, false},
		{"all", text, "", []entry{{"uptime", 3}, {"1", 5}, {"4194304", 259}}, 1 << 40, true, false},
		{"stopped", text, "1", []entry{{"uptime", 3}, {"1", 5}}, 5, false, false},
		{"cut in a header", text[:len(text)-20], "", []entry{{"uptime", 3}, {"1", 5}}, 259, false, true},
		{"cut in a name", text[:len(text)-3], "", []entry{{"uptime", 3}, {"1", 5}}, 259, false, true},
		{"without a zero", append(dirent("12345", 5)[:24:24], 0)[:24], "", nil, 3, false, true},
	} {
		var got []entry
		next, more, err := parseDirents(tc.text, 3, func(name []byte, at Mark) bool {
			got = append(got, entry{string(name), at})
			return string(name) != tc.stop
		})
		if !reflect.DeepEqual(got, tc.want) || next != tc.next || more != tc.more || (err != nil) != tc.wrong {
			t.Errorf("%s: %v, next %d, more %v, %v", tc.name, got, next, more, err)
		}
	}
}

func FuzzParseDirents(f *testing.F) {
	f.Add(append(dirent("12", 5), dirent("x y", 6)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		_, more, err := parseDirents(data, 0, func(name []byte, _ Mark) bool {
			n += 19 + len(name)
			return true
		})
		if n > len(data) || more != (err == nil) {
			t.Errorf("%d bytes of %d, more %v, %v", n, len(data), more, err)
		}
	})
}
