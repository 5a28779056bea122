#!/bin/busybox sh
# PID 1 of the virtual machine. Everything is in a tmpfs: pivot_root(2) does not work on the first root file system.

/bin/busybox --install -s /bin
export PATH=/usr/local/bin:/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb

if [ "$1" != moved ]; then
	mkdir /new
	mount -t tmpfs -o size=95% tmpfs /new
	for f in /*; do
		case $f in /new | /proc | /sys | /dev) continue ;; esac
		cp -a "$f" /new/
		case $f in /bin | /init) ;; *) rm -rf "$f" ;; esac
	done
	mkdir -p /new/proc /new/sys /new/dev
	/new/bin/busybox mknod /new/dev/console c 5 1
	exec /new/bin/busybox switch_root /new /init moved
fi

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
# The shell and the tests into a group of their own, so that the root of the tree can give controllers to others.
mkdir /sys/fs/cgroup/init
echo $$ >/sys/fs/cgroup/init/cgroup.procs
for c in cpu memory pids io; do echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done 2>/dev/null
for m in /modules/*.ko; do [ -e "$m" ] && insmod "$m"; done

. /settings
echo "REAPER-VM-KERNEL $(uname -r) ($(sed 's/.* \(Debian [0-9][^ ]*\) .*/\1/' /proc/version))"
echo "REAPER-VM-CGROUP v2"

failed=0
run() {
	dir=$1
	shift
	echo "=== $dir"
	(cd "$dir" && ./test "$@") || { failed=1; echo "FAIL $dir"; }
}
. /tests
sync
echo "REAPER-VM-EXIT $failed"
poweroff -f
