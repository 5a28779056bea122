/*
 * The kernel's interface without a C library: numbers and structures come from the kernel's own headers (linux-libc-dev);
 * what those do not export is defined here with its source.
 */
#ifndef REAPER_INIT_SYS_H
#define REAPER_INIT_SYS_H

#include <asm/ioctls.h>
#include <asm/siginfo.h>
#include <asm/signal.h>
#include <asm/statfs.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/time.h>
#include <linux/un.h>
#include <linux/wait.h>
#include <stddef.h>
#include <stdint.h>

/* include/linux/socket.h and include/linux/net.h: not exported to user space. */
#define REAPER_AF_UNIX 1
#define REAPER_SOCK_SEQPACKET 5
#define REAPER_SOCK_NONBLOCK O_NONBLOCK
#define REAPER_SOCK_CLOEXEC O_CLOEXEC
#define REAPER_MSG_NOSIGNAL 0x4000
#define REAPER_MSG_DONTWAIT 0x40

/* The kernel's sigset_t: signal n is bit n-1. Its size goes with every rt_sig* call (signal.h: _NSIG/8). */
typedef uint64_t sigmask;
#define SIGMASK_SIZE 8
#define SIG_MAX 64

/* struct sigaction of include/linux/signal_types.h; both architectures have SA_RESTORER and so the third member. */
struct ksigaction {
	uintptr_t handler; /* SIG_DFL is 0, SIG_IGN 1 */
	unsigned long flags;
	uintptr_t restorer;
	sigmask mask;
};

#if defined(__x86_64__)

static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return ret;
}

#elif defined(__aarch64__)

static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

#else
#error "no system call for this architecture"
#endif

/* start.c; also what the compiler calls for copies and zeroing of its own. */
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int c, size_t n);

#define sys(nr, a, b, c, d) sys6((nr), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

#endif
