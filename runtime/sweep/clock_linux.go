package sweep

import (
	"time"

	"golang.org/x/sys/unix"
)

// BootTicks returns CLOCK_BOOTTIME in clock ticks, the unit and clock of start times in /proc/<pid>/stat
// (fs/proc/array.c, do_task_stat: nsec_to_clock_t(start_boottime)). USER_HZ is 100 on every ABI.
func BootTicks() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // no process is old enough then, and nothing is taken for seen
	}
	return uint64(ts.Nano() / (int64(time.Second) / userHZ))
}

const userHZ = 100
