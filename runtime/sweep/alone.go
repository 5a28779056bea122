package sweep

import "github.com/reaper-shim/reaper/runtime/procfs"

// OnlyInit reports whether PID 1 is the only process of its namespace, living or dead, that the cgroups named by SetCgroups and its
// threads know of. It is false where either cannot be read. A process that was brought in from outside and is in another cgroup goes
// unseen while it is not a child of PID 1.
func (s *Sweeper) OnlyInit() bool {
	// The living first: once there are none but PID 1, whoever was orphaned before is on the lists of its children.
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
	if !found {
		return false
	}
	threads, err := s.cfg.Proc.Threads(s.cfg.Init.PID)
	if err != nil {
		return false
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
