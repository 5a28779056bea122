package sweep

import "github.com/reaper-shim/reaper/runtime/procfs"

// OnlyInit reports whether PID 1 is the only process of its namespace, living or dead, that the cgroups named by SetCgroups and its
// threads know of. It is false where either cannot be read. A process that was brought in from outside and is in another cgroup goes
// unseen while it is not a child of PID 1.
//
// With onlyAdopted it asks only for what PID 1 can have adopted: for who knows that PID 1 has forked nobody since the last time.
func (s *Sweeper) OnlyInit(onlyAdopted bool) bool {
	leader, err := s.init()
	if err != nil || !leaderAlive(leader) {
		return false
	}
	// The others first: once there are none, whoever was orphaned before is on the lists of PID 1's children.
	if !s.onlyInCgroups(leader.NumThreads) {
		return false
	}
	threads := []procfs.HostPID{s.cfg.Init.PID}
	if leader.NumThreads > 1 && !onlyAdopted {
		if threads, err = s.cfg.Proc.Threads(s.cfg.Init.PID); err != nil {
			return false
		}
	}
	for _, tid := range threads {
		none := true
		err := s.cfg.Proc.EachChild(s.cfg.Init.PID, tid, func(procfs.HostPID) bool {
			none = false
			return false
		})
		if err != nil || !none {
			return false
		}
	}
	return true
}

// onlyInCgroups reports whether nobody but PID 1, with so many threads, is in the cgroups.
func (s *Sweeper) onlyInCgroups(threads int) bool {
	if len(s.cgroups) == 1 {
		// It counts every thread, those of zombies included, and is cheaper to read than the list.
		if n, ok := s.cgroups[0].Current(); ok {
			return n == int64(threads)
		}
	}
	found := false
	for _, c := range s.cgroups {
		pids, err := c.Procs()
		if err != nil {
			return false
		}
		for _, pid := range pids {
			if pid != s.cfg.Init.PID || found {
				return false
			}
			found = true
		}
	}
	return found
}
