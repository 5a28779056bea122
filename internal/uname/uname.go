// Package uname says which kernel runs.
package uname

import "golang.org/x/sys/unix"

// Info is what is used of what uname(2) tells.
type Info struct {
	Release string // as 6.1.0-13-amd64
	Machine string // as x86_64
}

// Get asks the kernel. The call can only fail for a bad address (uname(2)); the strings are empty then.
func Get() Info {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Info{}
	}
	return Info{Release: unix.ByteSliceToString(u.Release[:]), Machine: unix.ByteSliceToString(u.Machine[:])}
}
