package tracer

import (
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	moreDeeds[deedHalf] = func(j *Journal) {
		t := &thread{tid: int(j.page.tid)}
		r := j.page.entry
		nr, args := waitidCall(int(j.page.nspid.Load()))
		r = r.withCall(nr, args)
		if err := t.setArgs(&r); err != nil {
			panic(err)
		}
		unix.Kill(unix.Getpid(), unix.SIGKILL)
	}
}

// deedHalf is to write the arguments of waitid without its number, and to die: see thread.setRegs.
const deedHalf = "half"

// TestHalfSwapped: the worker dies between the two halves of the swap, and PID 1's call goes on all the same.
func TestHalfSwapped(t *testing.T) {
	for _, call := range crashCalls {
		t.Run(call, func(t *testing.T) {
			startCrash(t, call, 0).outlives("masked", "1", deedHalf)
		})
	}
}
