// Package main is a file that takes the place of one of containerd-stress when make builds that.
package main

import "syscall"

// setRlimit asks for as many open files as anybody may have. containerd-stress asks for 100,000, and panics where the hard limit is
// lower and CAP_SYS_RESOURCE is missing.
func setRlimit() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}
