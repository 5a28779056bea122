// PID 1 for the tests of what a killed tracer leaves behind: it sits in one system call for ever and checks itself whenever
// the call returns, which SIGUSR1 from outside makes it do. usage: crash CALL SIBLINGS
//
// Each byte on standard input makes a batch of orphans. It prints "ready", and a line for each return of the call.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ORPHAN_CODE = 3, OWN_CODE = 7, BATCH = 200 };

static void die(const char *what)
{
	dprintf(1, "error %s: %s\n", what, strerror(errno));
	_exit(99);
}

static pid_t xfork(void)
{
	pid_t p = fork();
	if (p < 0)
		die("fork");
	return p;
}

// checked_syscall makes a system call with every register that the ABI keeps across it set to a known value, and stores what
// they hold afterwards: the arguments, then the others.
long checked_syscall(long nr, const unsigned long args[6], unsigned long after[16]);

#if defined(__x86_64__)
enum { FIRST_ARG = 0, KEPT = 6 };
__asm__(".text\n"
	".globl checked_syscall\n"
	"checked_syscall:\n"
	"	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	push %rdx\n"
	"	mov %rdi, %rax\n"
	"	mov %rsi, %r11\n"
	"	mov (%r11), %rdi\n"
	"	mov 8(%r11), %rsi\n"
	"	mov 16(%r11), %rdx\n"
	"	mov 24(%r11), %r10\n"
	"	mov 32(%r11), %r8\n"
	"	mov 40(%r11), %r9\n"
	"	mov $0x101, %rbx\n	mov $0x102, %rbp\n	mov $0x103, %r12\n"
	"	mov $0x104, %r13\n	mov $0x105, %r14\n	mov $0x106, %r15\n"
	"	syscall\n"
	"	mov (%rsp), %rcx\n"
	"	mov %rdi, (%rcx)\n	mov %rsi, 8(%rcx)\n	mov %rdx, 16(%rcx)\n"
	"	mov %r10, 24(%rcx)\n	mov %r8, 32(%rcx)\n	mov %r9, 40(%rcx)\n"
	"	mov %rbx, 48(%rcx)\n	mov %rbp, 56(%rcx)\n	mov %r12, 64(%rcx)\n"
	"	mov %r13, 72(%rcx)\n	mov %r14, 80(%rcx)\n	mov %r15, 88(%rcx)\n"
	"	pop %rdx\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
	"	ret\n");
#elif defined(__aarch64__)
enum { FIRST_ARG = 1, KEPT = 6 }; // x0 holds the result
__asm__(".text\n"
	".globl checked_syscall\n"
	"checked_syscall:\n"
	"	stp x19, x20, [sp, #-64]!\n	stp x21, x22, [sp, #16]\n	stp x23, x24, [sp, #32]\n	stp x2, x30, [sp, #48]\n"
	"	mov x8, x0\n	mov x9, x1\n"
	"	ldp x0, x1, [x9]\n	ldp x2, x3, [x9, #16]\n	ldp x4, x5, [x9, #32]\n"
	"	mov x19, #0x101\n	mov x20, #0x102\n	mov x21, #0x103\n	mov x22, #0x104\n	mov x23, #0x105\n	mov x24, #0x106\n"
	"	svc #0\n"
	"	ldr x9, [sp, #48]\n"
	"	stp x0, x1, [x9]\n	stp x2, x3, [x9, #16]\n	stp x4, x5, [x9, #32]\n"
	"	stp x19, x20, [x9, #48]\n	stp x21, x22, [x9, #64]\n	stp x23, x24, [x9, #80]\n"
	"	ldp x2, x30, [sp, #48]\n	ldp x23, x24, [sp, #32]\n	ldp x21, x22, [sp, #16]\n	ldp x19, x20, [sp], #64\n"
	"	ret\n");
#else
#error "no checked_syscall for this architecture"
#endif

static volatile int usr1, conts;

static void count(int sig)
{
	if (sig == SIGUSR1)
		usr1++;
	else
		conts++;
}

static void *sibling(void *arg)
{
	int *fds = arg;
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	char c;
	long n = read(fds[0], &c, 1); // for ever
	dprintf(1, "error sibling: read returned %ld\n", n);
	_exit(98);
}

// heirs says what a child inherits: its nice value, and whether it would pass that on.
static void heirs(int *nice, int *resets)
{
	int status;
	pid_t child = xfork();
	if (child == 0)
		_exit((getpriority(PRIO_PROCESS, 0) + 20) | (sched_getscheduler(0) & SCHED_RESET_ON_FORK ? 64 : 0));
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	*nice = (WEXITSTATUS(status) & 63) - 20;
	*resets = WEXITSTATUS(status) >> 6;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		die("usage");
	const char *name = argv[1];
	static struct timespec ts = { .tv_sec = 7200 }, abs;
	static struct pollfd pfd;
	static struct epoll_event ev;
	static fd_set fds;
	static sigset_t mask, mask2, inner;
	static siginfo_t si;
	static int status, pipefd[2];
	static uint32_t word;
	static struct { const sigset_t *set; size_t size; } sixth;
	if (pipe(pipefd) < 0)
		die("pipe");

	if (xfork() == 0) { // makes orphans
		char c;
		while (read(0, &c, 1) == 1) {
			pid_t mid = xfork();
			if (mid == 0) {
				setsid();
				for (int i = 0; i < BATCH; i++)
					if (xfork() == 0)
						_exit(ORPHAN_CODE);
				_exit(0);
			}
			while (waitpid(mid, NULL, 0) < 0 && errno == EINTR)
				;
		}
		pause();
	}
	pid_t other = xfork();
	if (other == 0)
		for (;;)
			pause();
	pid_t own = xfork();
	if (own == 0)
		_exit(OWN_CODE);
	if (waitid(P_PID, own, &si, WEXITED | WNOWAIT) < 0)
		die("waitid");

	struct sigaction sa = { .sa_handler = count }; // no SA_RESTART
	if (sigaction(SIGUSR1, &sa, NULL) < 0 || sigaction(SIGCONT, &sa, NULL) < 0)
		die("sigaction");
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigfillset(&inner);
	sigdelset(&inner, SIGUSR1);
	sigdelset(&inner, SIGCONT);
	sigdelset(&inner, SIGCHLD);
	if (sigprocmask(SIG_SETMASK, &mask, NULL) < 0)
		die("sigprocmask");

	pfd.fd = pipefd[0];
	pfd.events = POLLIN;
	int ep = epoll_create1(0);
	ev.events = EPOLLIN;
	if (epoll_ctl(ep, EPOLL_CTL_ADD, pipefd[0], &ev) < 0)
		die("epoll_ctl");
	FD_SET(pipefd[0], &fds);
	int pidfd = syscall(SYS_pidfd_open, other, 0);
	clock_gettime(CLOCK_MONOTONIC, &abs);
	abs.tv_sec += 7200;
	sixth.set = &inner;
	sixth.size = 8;

	unsigned long a[6] = { 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6 };
#define ARGS(...) do { unsigned long v[] = { __VA_ARGS__ }; memcpy(a, v, sizeof v); } while (0)
#define P(x) ((unsigned long)(x))
#define IS(x) (!strcmp(name, x))
	long nr = -1;
	if (IS("futex")) { nr = SYS_futex; ARGS(P(&word), FUTEX_WAIT, 0, 0); }
	else if (IS("futex-timeout")) { nr = SYS_futex; ARGS(P(&word), FUTEX_WAIT, 0, P(&ts)); }
	else if (IS("futex-bitset")) { nr = SYS_futex; ARGS(P(&word), FUTEX_WAIT_BITSET, 0, 0, 0, FUTEX_BITSET_MATCH_ANY); }
	else if (IS("ppoll")) { nr = SYS_ppoll; ARGS(P(&pfd), 1, 0, P(&inner), 8); }
	else if (IS("ppoll-timeout")) { nr = SYS_ppoll; ARGS(0, 0, P(&ts), 0, 8); }
	else if (IS("wait4")) { nr = SYS_wait4; ARGS(other, P(&status), 0, 0); }
	else if (IS("waitid")) { nr = SYS_waitid; ARGS(P_PID, other, P(&si), WEXITED, 0); }
	else if (IS("waitid-pidfd")) { nr = SYS_waitid; ARGS(P_PIDFD, pidfd, P(&si), WEXITED, 0); }
	else if (IS("epoll-pwait")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, P(-1), P(&inner), 8); }
	else if (IS("epoll-busy")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, P(-1), P(&inner), 8); }
	else if (IS("epoll-pwait2")) { nr = SYS_epoll_pwait2; ARGS(ep, P(&ev), 1, 0, 0, 8); }
	else if (IS("epoll-pwait2-timeout")) { nr = SYS_epoll_pwait2; ARGS(ep, P(&ev), 1, P(&ts), 0, 8); }
	else if (IS("epoll-pwait-timeout")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, 7200000, 0, 8); }
	else if (IS("nanosleep")) { nr = SYS_nanosleep; ARGS(P(&ts), 0); }
	else if (IS("clock-nanosleep")) { nr = SYS_clock_nanosleep; ARGS(CLOCK_MONOTONIC, 0, P(&ts), 0); }
	else if (IS("clock-nanosleep-abs")) { nr = SYS_clock_nanosleep; ARGS(CLOCK_MONOTONIC, TIMER_ABSTIME, P(&abs), 0); }
	else if (IS("sigsuspend")) { nr = SYS_rt_sigsuspend; ARGS(P(&inner), 8); }
	else if (IS("pselect6-timeout")) { nr = SYS_pselect6; ARGS(pipefd[0] + 1, P(&fds), 0, 0, P(&ts), 0); }
	else if (IS("pselect6")) { nr = SYS_pselect6; ARGS(pipefd[0] + 1, P(&fds), 0, 0, 0, P(&sixth)); }
#if defined(__x86_64__)
	else if (IS("poll")) { nr = SYS_poll; ARGS(P(&pfd), 1, P(-1)); }
	else if (IS("poll-timeout")) { nr = SYS_poll; ARGS(0, 0, 7200000); }
	else if (IS("epoll")) { nr = SYS_epoll_wait; ARGS(ep, P(&ev), 1, P(-1)); }
	else if (IS("epoll-timeout")) { nr = SYS_epoll_wait; ARGS(ep, P(&ev), 1, 7200000); }
	else if (IS("pause")) { nr = SYS_pause; }
	else if (IS("select")) { nr = SYS_select; ARGS(pipefd[0] + 1, P(&fds), 0, 0, 0); }
#else // what the C library makes of them
	else if (IS("poll")) { nr = SYS_ppoll; ARGS(P(&pfd), 1, 0, 0, 8); }
	else if (IS("poll-timeout")) { nr = SYS_ppoll; ARGS(0, 0, P(&ts), 0, 8); }
	else if (IS("epoll")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, P(-1), 0, 8); }
	else if (IS("epoll-timeout")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, 7200000, 0, 8); }
	else if (IS("pause")) { nr = SYS_ppoll; ARGS(0, 0, 0, 0, 8); }
	else if (IS("select")) { nr = SYS_pselect6; ARGS(pipefd[0] + 1, P(&fds), 0, 0, 0, 0); }
#endif
	else
		die(name);
	int eintr = !strncmp(name, "epoll", 5); // after any stop
	int busy = IS("epoll-busy"); // there is always something to read
	if (busy && write(pipefd[1], "x", 1) != 1)
		die("write");

	static int silent[2];
	if (pipe(silent) < 0)
		die("pipe");
	for (int i = atoi(argv[2]); i > 0; i--) {
		pthread_t t;
		if (pthread_create(&t, NULL, sibling, silent))
			die("pthread_create");
	}
	dprintf(1, "ready\n");
	int seen = 0;
	for (;;) {
		unsigned long after[16];
		static const unsigned long kept[KEPT] = { 0x101, 0x102, 0x103, 0x104, 0x105, 0x106 };
		long ret = checked_syscall(nr, a, after);
		int bad = memcmp(after + FIRST_ARG, a + FIRST_ARG, (6 - FIRST_ARG) * sizeof a[0]) || memcmp(after + 6, kept, sizeof kept);
		sigprocmask(SIG_SETMASK, NULL, &mask2);
		si.si_status = -1;
		int own_ok = waitid(P_PID, own, &si, WEXITED | WNOHANG | WNOWAIT) == 0 && si.si_status == OWN_CODE;
		if (eintr && ret == -EINTR && !bad && (usr1 == seen || busy))
			continue;
		if (busy && ret == 1 && !bad && own_ok && usr1 == seen)
			continue;
		seen = usr1;
		int nice, resets;
		heirs(&nice, &resets);
		dprintf(1, "back ret %ld regs %s mask %s own %s usr1 %d cont %d child nice %d resets %d\n", ret, bad ? "bad" : "ok",
			memcmp(&mask, &mask2, 8) ? "bad" : "ok", own_ok ? "ok" : "bad", usr1, conts, nice, resets);
	}
}
