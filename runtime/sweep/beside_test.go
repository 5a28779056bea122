package sweep

import (
	"testing"
	"time"

	"github.com/reaper-shim/reaper/runtime/procfs"
)

// TestTakeAgain: a zombie that has the number of one that is known is the same, or is found again once that is known to be gone.
func TestTakeAgain(t *testing.T) {
	const pid = 7
	for _, tc := range []struct {
		name       string
		old        *zombie
		new        zombie
		remembered bool
		again      bool
	}{
		{"nobody has it", nil, zombie{id: 70, startTime: 5}, true, false},
		{"the same by its ID", &zombie{id: 70, startTime: 6}, zombie{id: 70, startTime: 5}, false, false},
		{"perhaps the same", &zombie{startTime: 5}, zombie{id: 70, startTime: 5}, false, false},
		{"another by its ID", &zombie{id: 69, startTime: 6}, zombie{id: 70, startTime: 5}, false, true},
		{"another, born later", &zombie{startTime: 4}, zombie{id: 70, startTime: 5}, false, true},
		{"on a list", &zombie{startTime: 4}, zombie{startTime: 5}, false, false}, // which it will be on again
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &Sweeper{zombies: make(map[procfs.HostPID]*zombie), numbers: &numbers{}}
			if tc.old != nil {
				tc.old.pid = pid
				s.zombies[pid] = tc.old
			}
			tc.new.pid, tc.new.firstSeen = pid, time.Now()
			done := make(chan struct{})
			close(done)
			s.beside = &besideLook{done: done, found: []*zombie{&tc.new}}
			if err := s.take(true); err != nil {
				t.Fatal(err)
			}
			if got := s.zombies[pid] == &tc.new; got != tc.remembered {
				t.Errorf("remembered: %v", got)
			}
			again := stranger{pid, tc.new.startTime, tc.new.firstSeen.Add(strangersFor)}
			if got := len(s.numbers.young) == 1 && s.numbers.young[0] == again; got != tc.again || len(s.numbers.young) > 1 {
				t.Errorf("to be looked at again: %+v", s.numbers.young)
			}
		})
	}
}
