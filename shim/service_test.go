package shim

import (
	"fmt"
	goruntime "runtime"
	"testing"
)

func TestFit(t *testing.T) {
	before := goruntime.GOMAXPROCS(0)
	t.Cleanup(func() { goruntime.GOMAXPROCS(before) })
	s := &service{tasks: make(map[string]*task), processors: 4}
	for _, c := range []struct{ containers, want int }{{0, 1}, {1, 1}, {15, 1}, {16, 2}, {200, 4}, {15, 1}} {
		clear(s.tasks)
		for i := range c.containers {
			s.tasks[fmt.Sprint(i)] = nil
		}
		s.fit()
		if got := goruntime.GOMAXPROCS(0); got != c.want {
			t.Errorf("%d containers: %d processors, want %d", c.containers, got, c.want)
		}
	}
	s.processors = 1
	if s.fit(); goruntime.GOMAXPROCS(0) != 1 {
		t.Error("more processors than containerd wants")
	}
}
