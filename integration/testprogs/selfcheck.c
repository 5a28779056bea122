// selfcheck: a PID 1 that never waits for children and looks after itself instead. It blocks in one system call over and
// over, with a known value in every register, and checks after each return that nothing but the result has changed.
//
//   selfcheck poll|futex|nanosleep|epoll [report-file] [timeout-ms]
//
// Four times a second it writes one line of fixed length to the report file (stdout without one):
//
//   rounds=.. registers=.. result=.. early=.. mask=.. errno=.. disposition=.. eintr=.. spurious=.. max_us=..
//
// registers    rounds after which a register other than the result and the two that the system call itself uses differed
// result       a return value that this call cannot have
// early        returned before its time-out
// mask, errno  signal mask or errno differed
// disposition  the action of a signal differed
// eintr        EINTR although no handler exists: any ptrace stop does that to epoll_wait, to none of the others
// spurious     futex returned 0 without a wake-up: legal, and what is left when a tracer is killed in the act
// max_us       longest time beyond the time-out
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SAVED 16

struct regs {
	uint64_t call[7];       // number, six arguments
	uint64_t result;
	uint64_t saved[SAVED];  // what the registers held after the call, in the order of expect()
};

#if defined(__x86_64__)
// rdi rsi rdx r10 r8 r9 rbx rbp r12 r13 r14 r15 rsp-delta rcx-delta xmm0 xmm15. The system call itself changes rcx (the
// address of the next instruction) and r11 (the flags).
__attribute__((naked, noinline)) static void checked_syscall(struct regs *r __attribute__((unused)))
{
	__asm__ volatile(
		"push %%rbx; push %%rbp; push %%r12; push %%r13; push %%r14; push %%r15; push %%rdi\n\t"
		"mov %%rdi, %%r11\n\t"
		"mov 0(%%r11), %%rax; mov 8(%%r11), %%rdi; mov 16(%%r11), %%rsi; mov 24(%%r11), %%rdx\n\t"
		"mov 32(%%r11), %%r10; mov 40(%%r11), %%r8; mov 48(%%r11), %%r9\n\t"
		"movabs $0x1111111111111111, %%rbx; movabs $0x2222222222222222, %%rbp\n\t"
		"movabs $0x3333333333333333, %%r12; movabs $0x4444444444444444, %%r13\n\t"
		"movabs $0x5555555555555555, %%r14; mov %%rsp, %%r15\n\t"
		"movq %%r12, %%xmm0; movq %%r13, %%xmm15\n\t"
		"syscall\n"
		"1:\n\t"
		"mov (%%rsp), %%r11\n\t" // struct regs
		"mov %%rax, 56(%%r11)\n\t"
		"mov %%rdi, 64(%%r11); mov %%rsi, 72(%%r11); mov %%rdx, 80(%%r11); mov %%r10, 88(%%r11)\n\t"
		"mov %%r8, 96(%%r11); mov %%r9, 104(%%r11); mov %%rbx, 112(%%r11); mov %%rbp, 120(%%r11)\n\t"
		"mov %%r12, 128(%%r11); mov %%r13, 136(%%r11); mov %%r14, 144(%%r11)\n\t"
		"mov %%r15, %%rax; sub %%rsp, %%rax; mov %%rax, 152(%%r11)\n\t"
		"lea 1b(%%rip), %%rax; sub %%rcx, %%rax; mov %%rax, 160(%%r11)\n\t"
		"movq %%xmm0, 168(%%r11); movq %%xmm15, 176(%%r11)\n\t"
		"pop %%rdi; pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbp; pop %%rbx\n\t"
		"ret\n\t"
		::: "memory");
}

static int registers_differ(const struct regs *r)
{
	const uint64_t want[] = {
		r->call[1], r->call[2], r->call[3], r->call[4], r->call[5], r->call[6],
		0x1111111111111111, 0x2222222222222222, 0x3333333333333333, 0x4444444444444444, 0x5555555555555555,
		0, 0, 0x3333333333333333, 0x4444444444444444,
	};

	return memcmp(r->saved, want, sizeof want) != 0;
}
#elif defined(__aarch64__)
// x1..x7, x19..x26. x0 is the result.
__attribute__((noinline)) static void checked_syscall(struct regs *r)
{
	register uint64_t x8 __asm__("x8") = r->call[0];
	register uint64_t x0 __asm__("x0") = r->call[1];
	register uint64_t x1 __asm__("x1") = r->call[2];
	register uint64_t x2 __asm__("x2") = r->call[3];
	register uint64_t x3 __asm__("x3") = r->call[4];
	register uint64_t x4 __asm__("x4") = r->call[5];
	register uint64_t x5 __asm__("x5") = r->call[6];
	register struct regs *x9 __asm__("x9") = r;

	__asm__ volatile(
		"mov x6, #0x6666\n\t mov x7, #0x7777\n\t mov x19, #0x1919\n\t mov x20, #0x2020\n\t mov x21, #0x2121\n\t"
		"mov x22, #0x2222\n\t mov x23, #0x2323\n\t mov x24, #0x2424\n\t mov x25, #0x2525\n\t"
		"svc #0\n\t"
		"str x0, [x9, #56]\n\t"
		"stp x1, x2, [x9, #64]\n\t stp x3, x4, [x9, #80]\n\t stp x5, x6, [x9, #96]\n\t stp x7, x19, [x9, #112]\n\t"
		"stp x20, x21, [x9, #128]\n\t stp x22, x23, [x9, #144]\n\t stp x24, x25, [x9, #160]\n\t"
		: "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x5), "+r"(x8), "+r"(x9)
		:: "memory", "x6", "x7", "x19", "x20", "x21", "x22", "x23", "x24", "x25");
}

static int registers_differ(const struct regs *r)
{
	const uint64_t want[] = {
		r->call[2], r->call[3], r->call[4], r->call[5], r->call[6], 0x6666, 0x7777,
		0x1919, 0x2020, 0x2121, 0x2222, 0x2323, 0x2424, 0x2525,
	};

	return memcmp(r->saved, want, sizeof want) != 0;
}
#else
#error "selfcheck: no system call wrapper for this architecture"
#endif

static int64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

// dispositions returns a sum of every signal's action, which is equal only if none has changed (the actions here are all
// SIG_DFL or SIG_IGN, 0 or 1).
static uint64_t dispositions(void)
{
	uint64_t sum = 0;

	for (int sig = 1; sig <= 64; sig++) {
		struct sigaction sa;

		if (sigaction(sig, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN)
			sum |= 1ULL << (sig - 1);
	}
	return sum;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "poll";
	int out = argc > 2 ? open(argv[2], O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0644) : 1;
	long timeout = argc > 3 ? atol(argv[3]) : 50;
	static uint32_t word;
	struct timespec ts = { .tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000 };
	struct timespec rem;
	struct epoll_event ev;
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct regs r = { 0 };
	int64_t want = 0;

	if (out < 0) {
		perror(argv[2]);
		return 1;
	}
	// A mask and dispositions that no default has. SIGTRAP is ignored: a forced SIGTRAP would reset it (kernel/signal.c,
	// force_sig_info_to_task).
	sigset_t mask, old;
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigaddset(&mask, SIGHUP);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	signal(SIGTRAP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);

	if (strcmp(mode, "poll") == 0) {
#ifdef SYS_poll
		r.call[0] = SYS_poll;
		r.call[3] = timeout;
#else
		r.call[0] = SYS_ppoll;
		r.call[3] = (uintptr_t)&rem; // ppoll writes the rest of the time back
#endif
	} else if (strcmp(mode, "futex") == 0) {
		r.call[0] = SYS_futex;
		r.call[1] = (uintptr_t)&word;
		r.call[2] = FUTEX_WAIT_PRIVATE;
		r.call[4] = (uintptr_t)&ts;
		want = -ETIMEDOUT;
	} else if (strcmp(mode, "nanosleep") == 0) {
		r.call[0] = SYS_nanosleep;
		r.call[1] = (uintptr_t)&ts;
		r.call[2] = (uintptr_t)&rem;
	} else if (strcmp(mode, "epoll") == 0) {
		r.call[0] = SYS_epoll_pwait;
		r.call[1] = ep;
		r.call[2] = (uintptr_t)&ev;
		r.call[3] = 1;
		r.call[4] = timeout;
	} else {
		fprintf(stderr, "selfcheck: unknown mode %s\n", mode);
		return 2;
	}

	uint64_t actions = dispositions();
	unsigned long rounds = 0, registers = 0, result = 0, early = 0, masks = 0, errnos = 0, disposition = 0;
	unsigned long eintr = 0, spurious = 0;
	int64_t max_us = 0, written = 0;

	for (;;) {
		int64_t begin, took;
		int e;

		rem = ts;
		errno = 4711;
		begin = now_us();
		checked_syscall(&r);
		e = errno;
		took = now_us() - begin;

		rounds++;
		registers += registers_differ(&r) != 0;
		errnos += e != 4711;
		// The kernel knows the first 64 bits of sigset_t.
		sigprocmask(SIG_SETMASK, NULL, &old);
		masks += memcmp(&old, &mask, 8) != 0;
		disposition += dispositions() != actions;
		if ((int64_t)r.result == -EINTR) {
			eintr++;
		} else if ((int64_t)r.result == 0 && want == -ETIMEDOUT) {
			spurious++;
		} else {
			result += (int64_t)r.result != want;
			early += took < timeout * 1000 - 100;
			if (took - timeout * 1000 > max_us)
				max_us = took - timeout * 1000;
		}

		if (begin + took - written > 250000) {
			char line[256];
			int n = snprintf(line, sizeof line,
					 "rounds=%lu registers=%lu result=%lu early=%lu mask=%lu errno=%lu "
					 "disposition=%lu eintr=%lu spurious=%lu max_us=%lld",
					 rounds, registers, result, early, masks, errnos, disposition, eintr, spurious,
					 (long long)max_us);
			memset(line + n, ' ', sizeof line - n);
			line[sizeof line - 1] = '\n';
			// In one write at offset 0: a reader never sees half a line.
			if (argc > 2 ? pwrite(out, line, sizeof line, 0) : write(out, line, sizeof line)) {
			}
			written = begin + took;
		}
	}
}
