package initest

import (
	"os"
	"strings"
	"testing"
)

// catatonit has no tests. These are the mistakes that its issues tell of.
func catatonitCases() []testCase {
	return []testCase{
		{"many orphans that end at once, one SIGCHLD: all are reaped", "catatonit: issue 4", func(t *testing.T) {
			run(t, 0, setup{program: shell(`"$1" burst 300`, progBin)})
		}},
		{"a program that cannot be run: an exit code, no hang", "catatonit: issue 5", func(t *testing.T) {
			run(t, 127, setup{program: []string{"nothing"}})
		}},
		{"a pipe that the program inherits ends when the program closes it", "catatonit: issue 12", func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			p := start(t, setup{files: []*os.File{w}, program: shell(`exec 3>&-; echo closed; exec sleep 1000`)})
			w.Close()
			p.expect("closed")
			if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v: somebody has the pipe", n, err)
			}
		}},
		{"LISTEN_PID=1 becomes the program's PID, LISTEN_PIDFDID goes, and the sockets stay", "catatonit: issue 13", func(t *testing.T) {
			out, _ := run(t, 0, setup{files: []*os.File{os.Stderr}, env: []string{"LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_PIDFDID=77"},
				program: shell(`[ $LISTEN_PID = $$ ] && [ $LISTEN_FDS = 1 ] && [ -z "$LISTEN_PIDFDID" ] && : >&3 && echo yes`)})
			if out != "yes" {
				t.Errorf("standard output: %q", out)
			}
		}},
		{"LISTEN_PID of another process stays", "catatonit: issue 13", func(t *testing.T) {
			out, _ := run(t, 0, setup{env: []string{"LISTEN_PID=4711", "LISTEN_PIDFDID=77"}, program: []string{"env"}})
			if !strings.Contains(out, "LISTEN_PID=4711") || !strings.Contains(out, "LISTEN_PIDFDID=77") {
				t.Errorf("environment: %s", out)
			}
		}},
	}
}
