package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// HostPID is the number of a process or thread in the PID namespace of the /proc mount that is read.
type HostPID int

// String returns the decimal number.
func (p HostPID) String() string { return strconv.Itoa(int(p)) }

// NSPID is the number of a process in a PID namespace below that of the /proc mount, or in the same.
type NSPID int

// ErrVanished is returned (wrapped) when a process or thread no longer exists. It is a normal outcome: processes end
// whenever they like.
var ErrVanished = errors.New("process vanished")

// ErrNoChildren is returned (wrapped) when the kernel has no children file (CONFIG_PROC_CHILDREN=n).
var ErrNoChildren = errors.New("kernel built without CONFIG_PROC_CHILDREN")

// FS is a proc(5) file system. Its methods may be called from any goroutine.
type FS struct {
	fsys fs.FS
	dir  string // "/proc/" where the files are read without fsys, with fewer system calls; else ""
}

// New returns a reader on fsys, the root of a proc file system. Links are read with [fs.ReadLinkFS], which os.DirFS
// implements. The files of os.DirFS("/proc") are read by system calls of our own: a sweep reads thousands of them.
func New(fsys fs.FS) *FS {
	p := &FS{fsys: fsys}
	if direct && fsys == os.DirFS("/proc") {
		p.dir = "/proc/"
	}
	return p
}

// buffers are for files that are parsed and not kept.
var buffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// read reads a small file. buf may be used for it, and the data are valid only as long as buf is.
func (p *FS) read(name string, buf []byte, b blocking) ([]byte, error) {
	if p.dir != "" {
		return readDirect(p.dir+name, buf, b)
	}
	return fs.ReadFile(p.fsys, name)
}

func (p *FS) open(name string) (io.ReadCloser, error) {
	if p.dir != "" {
		return openDirect(p.dir+name, atOnce)
	}
	return p.fsys.Open(name)
}

// Stat reads /proc/<pid>/stat, which speaks for the whole thread group.
func (p *FS) Stat(pid HostPID) (Stat, error) {
	return parsed(p, pid.String()+"/stat", atOnce, ParseStat)
}

// ThreadStat reads /proc/<pid>/task/<tid>/stat, which speaks for one thread.
func (p *FS) ThreadStat(pid, tid HostPID) (Stat, error) {
	return parsed(p, threadFile(pid, tid, "stat"), atOnce, ParseStat)
}

// Status reads /proc/<pid>/status: that of the thread group's leader, with the shared pending signals in ShdPnd.
func (p *FS) Status(pid HostPID) (Status, error) {
	return parsed(p, pid.String()+"/status", mayBlock, ParseStatus)
}

// ThreadStatus reads /proc/<pid>/task/<tid>/status.
func (p *FS) ThreadStatus(pid, tid HostPID) (Status, error) {
	return parsed(p, threadFile(pid, tid, "status"), mayBlock, ParseStatus)
}

// ThreadSyscall reads /proc/<pid>/task/<tid>/syscall: the call that the thread is blocked in. Reading it needs
// PTRACE_MODE_ATTACH (ptrace(2)) over the thread and stops nothing.
func (p *FS) ThreadSyscall(pid, tid HostPID) (Syscall, error) {
	return parsed(p, threadFile(pid, tid, "syscall"), mayBlock, ParseSyscall)
}

// ThreadTimeslices reads from /proc/<pid>/task/<tid>/schedstat how often the thread was given a CPU. Kernels without CONFIG_SCHED_INFO
// have no such file.
func (p *FS) ThreadTimeslices(pid, tid HostPID) (uint64, error) {
	return parsed(p, threadFile(pid, tid, "schedstat"), atOnce, ParseSchedstat)
}

// Threads lists the threads of a process, in no order that means anything.
func (p *FS) Threads(pid HostPID) ([]HostPID, error) {
	name := path.Join(pid.String(), "task")
	entries, err := fs.ReadDir(p.fsys, name)
	if err != nil {
		return nil, wrap("read", name, err)
	}
	tids := make([]HostPID, 0, len(entries))
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("read %s: entry %q is no thread", name, e.Name())
		}
		tids = append(tids, HostPID(n))
	}
	return tids, nil
}

// PIDs lists all processes, in no order that means anything.
func (p *FS) PIDs() ([]HostPID, error) {
	var pids []HostPID
	err := p.EachPID(func(pid HostPID) bool {
		pids = append(pids, pid)
		return true
	})
	return pids, err
}

// namesAtOnce is how many names of a directory are held in memory.
const namesAtOnce = 1024

// EachPID calls f for each process, in no order that means anything, until f returns false.
func (p *FS) EachPID(f func(HostPID) bool) error {
	return p.EachPIDFrom(0, func(pid HostPID, _ Mark) bool { return f(pid) })
}

// Mark is a place in the list of all processes, which is in the order of their numbers; 0 is its beginning.
type Mark int64

// EachPIDFrom calls f for each process from a place in the list on, with its place, until f returns false. Where the list has no places
// the whole of it is read, and every place is 0.
func (p *FS) EachPIDFrom(from Mark, f func(pid HostPID, at Mark) bool) error {
	dir, err := p.fsys.Open(".")
	if err != nil {
		return wrap("open", "the root of proc", err)
	}
	defer dir.Close()
	err = readNames(dir, from, func(name []byte, at Mark) bool {
		n, err := strconv.Atoi(string(name))
		return err != nil || f(HostPID(n), at)
	})
	if err != nil {
		return wrap("read", "the root of proc", err)
	}
	return nil
}

// LastPID reads from /proc/loadavg (proc_loadavg(5)) the number that was given last, in the PID namespace of the caller. Whoever is forked
// next gets a greater one, until the kernel begins again with the low numbers (kernel.pid_max in proc_sys_kernel(5)).
func (p *FS) LastPID() (HostPID, error) {
	return parsed(p, "loadavg", atOnce, ParseLastPID)
}

// PIDMax reads from /proc/sys/kernel/pid_max (proc_sys_kernel(5)) the number that is one more than the greatest that is given.
func (p *FS) PIDMax() (HostPID, error) {
	return parsed(p, "sys/kernel/pid_max", atOnce, ParsePIDMax)
}

// readNames calls f for each name in a directory from a place on, until f returns false.
func readNames(dir fs.File, from Mark, f func(name []byte, at Mark) bool) error {
	if d, ok := dir.(interface{ Fd() uintptr }); ok && direct {
		return readDirents(d.Fd(), from, f)
	}
	d, ok := dir.(fs.ReadDirFile)
	if !ok {
		return errors.ErrUnsupported
	}
	for {
		entries, err := d.ReadDir(namesAtOnce)
		for _, e := range entries {
			if !f([]byte(e.Name()), 0) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ThreadChildren reads /proc/<pid>/task/<tid>/children: the children, living and zombie, that hang on this thread. The
// list is not a snapshot: a child missing from one read proves nothing (proc(5)).
func (p *FS) ThreadChildren(pid, tid HostPID) ([]HostPID, error) {
	var pids []HostPID
	err := p.EachChild(pid, tid, func(child HostPID) bool {
		pids = append(pids, child)
		return true
	})
	return pids, err
}

// EachChild calls f for each child that ThreadChildren would return, in the kernel's order, which is that in which they came
// to the thread, until f returns false. It needs the same little memory for any number of them. The kernel finds its place in the
// list anew for each page of text, some 600 children (fs/proc/array.c, get_children_pid), so that the front of a very long list
// costs less than its end. f has been called for what came before an error.
func (p *FS) EachChild(pid, tid HostPID, f func(HostPID) bool) error {
	name := threadFile(pid, tid, "children")
	file, err := p.open(name)
	if err != nil {
		// Thread alive but file missing: the kernel does not have it.
		if errors.Is(err, fs.ErrNotExist) {
			if _, serr := fs.Stat(p.fsys, threadFile(pid, tid, "stat")); serr == nil {
				return fmt.Errorf("read %s: %w", name, ErrNoChildren)
			}
		}
		return wrap("read", name, err)
	}
	defer file.Close()
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	buf := *b
	kept := 0 // bytes of a number that the last read cut
	for {
		n, err := file.Read(buf[kept:])
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return wrap("read", name, err)
		}
		data := buf[:kept+n]
		whole := len(data)
		if !end {
			whole = bytes.LastIndexByte(data, ' ') + 1
		}
		if whole == 0 && len(data) == len(buf) {
			return fmt.Errorf("parse %s: children: a number of %d bytes", name, len(buf))
		}
		more, perr := eachChild(data[:whole], f)
		if perr != nil {
			return fmt.Errorf("parse %s: %w", name, perr)
		}
		if end || !more {
			return nil
		}
		kept = copy(buf, data[whole:])
	}
}

// Cgroups reads /proc/<pid>/cgroup. Of a zombie only the line of the unified hierarchy (cgroup v2) is true: those of the v1
// hierarchies say "/" from the moment of its exit (kernel/cgroup/cgroup.c, proc_cgroup_show: PF_EXITING).
func (p *FS) Cgroups(pid HostPID) ([]Cgroup, error) {
	return parsed(p, pid.String()+"/cgroup", mayBlock, ParseCgroups)
}

// Cpuset reads /proc/<pid>/cpuset: the path of the process in the hierarchy of the cpuset controller. On cgroup v1 it is true
// of zombies as well (kernel/cgroup/cpuset.c, proc_cpuset_show). The file needs CONFIG_PROC_PID_CPUSET.
func (p *FS) Cpuset(pid HostPID) (string, error) {
	return parsed(p, pid.String()+"/cpuset", mayBlock, func(data []byte) (string, error) {
		return strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), deletedSuffix), nil
	})
}

// PIDNamespace returns the inode number of the PID namespace that the process lives in.
func (p *FS) PIDNamespace(pid HostPID) (uint64, error) {
	name := path.Join(pid.String(), "ns", "pid")
	link, err := fs.ReadLink(p.fsys, name)
	if err != nil {
		return 0, wrap("read link", name, err)
	}
	return parseNSLink(link)
}

func parseNSLink(link string) (uint64, error) {
	num, ok := strings.CutPrefix(link, "pid:[")
	if ok {
		num, ok = strings.CutSuffix(num, "]")
	}
	if ok {
		if ino, err := strconv.ParseUint(num, 10, 64); err == nil {
			return ino, nil
		}
	}
	return 0, fmt.Errorf("namespace link %q: want \"pid:[inode]\"", link)
}

func threadFile(pid, tid HostPID, name string) string {
	return pid.String() + "/task/" + tid.String() + "/" + name
}

// parsed reads a file and parses it. What parse returns may not refer to the text.
func parsed[T any](p *FS, name string, block blocking, parse func([]byte) (T, error)) (T, error) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	data, err := p.read(name, *b, block)
	if err != nil {
		var zero T
		return zero, wrap("read", name, err)
	}
	v, err := parse(data)
	if err != nil {
		return v, fmt.Errorf("parse %s: %w", name, err)
	}
	return v, nil
}

// wrap turns the two errors that a vanished task gives into ErrVanished: ENOENT when it was gone at open(2), ESRCH when
// it went between open and read.
func wrap(op, name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%s %s: %w", op, name, ErrVanished)
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}
