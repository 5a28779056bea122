// Victims for the tracer's tests: each mode is a PID 1 in some state that the tracer must respect. A victim prints one line
// per event on standard output and acts on bytes from standard input. "ready" comes right before it is what it says it is.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ORPHAN_CODE = 3, OWN_CODE = 7, HELPER_CODE = 42 };

static void die(const char *what)
{
	printf("error %s: %s\n", what, strerror(errno));
	_exit(99);
}

static void say(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof line - 1, fmt, ap);
	va_end(ap);
	line[n++] = '\n';
	if (write(1, line, n) != n)
		_exit(98);
}

static pid_t xfork(void)
{
	pid_t p = fork();
	if (p < 0)
		die("fork");
	return p;
}

static void xwait(pid_t p)
{
	while (waitpid(p, NULL, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
}

// orphans leaves n zombies behind that were forked by a child of ours in a session of its own.
static void orphans(int n)
{
	pid_t mid = xfork();
	if (mid == 0) {
		setsid();
		for (int i = 0; i < n; i++)
			if (xfork() == 0)
				_exit(ORPHAN_CODE);
		_exit(0);
	}
	xwait(mid);
}

// own leaves one zombie behind that we forked ourselves.
static pid_t own(void)
{
	pid_t p = xfork();
	if (p == 0)
		_exit(OWN_CODE);
	siginfo_t si;
	if (waitid(P_PID, p, &si, WEXITED | WNOWAIT) < 0)
		die("waitid");
	return p;
}

static int64_t now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static void wait_byte(void)
{
	char c;
	while (read(0, &c, 1) < 0)
		if (errno != EINTR)
			_exit(97);
}

static void on_signal(int sig, void (*h)(int), int flags)
{
	struct sigaction sa = { .sa_handler = h, .sa_flags = flags };
	if (sigaction(sig, &sa, NULL) < 0)
		die("sigaction");
}

static void nothing(int sig) { (void)sig; }

// checked_syscall makes system call nr with registers that the ABI keeps across it set to known values, and stores what they
// hold afterwards: the six arguments, then six that begin as kept below.
long checked_syscall(long nr, const unsigned long args[6], unsigned long after[12]);

#if defined(__x86_64__)
// All but rax, rcx and r11.
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
	"	movabs $0x0101010101010101, %rbx\n"
	"	movabs $0x0202020202020202, %rbp\n"
	"	movabs $0x0303030303030303, %r12\n"
	"	movabs $0x0404040404040404, %r13\n"
	"	movabs $0x0505050505050505, %r14\n"
	"	movabs $0x0606060606060606, %r15\n"
	"	syscall\n"
	"	mov (%rsp), %rcx\n"
	"	mov %rdi, (%rcx)\n"
	"	mov %rsi, 8(%rcx)\n"
	"	mov %rdx, 16(%rcx)\n"
	"	mov %r10, 24(%rcx)\n"
	"	mov %r8, 32(%rcx)\n"
	"	mov %r9, 40(%rcx)\n"
	"	mov %rbx, 48(%rcx)\n"
	"	mov %rbp, 56(%rcx)\n"
	"	mov %r12, 64(%rcx)\n"
	"	mov %r13, 72(%rcx)\n"
	"	mov %r14, 80(%rcx)\n"
	"	mov %r15, 88(%rcx)\n"
	"	pop %rdx\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
	"	ret\n");
#elif defined(__aarch64__)
// x0 returns the result, so that the first argument is passed over. x7, which the kernel uses to tell a tracer where it is
// (report_syscall() in arch/arm64/kernel/ptrace.c), counts into the last slot, and so do x6, x9, x15 and x28.
__asm__(".text\n"
	".globl checked_syscall\n"
	"checked_syscall:\n"
	"	stp x29, x30, [sp, #-112]!\n"
	"	stp x19, x20, [sp, #16]\n	stp x21, x22, [sp, #32]\n	stp x23, x24, [sp, #48]\n"
	"	stp x27, x28, [sp, #64]\n	stp x1, x2, [sp, #80]\n"
	"	mov x8, x0\n"
	"	mov x16, x1\n"
	"	ldp x0, x1, [x16]\n	ldp x2, x3, [x16, #16]\n	ldp x4, x5, [x16, #32]\n"
	"	mov x19, #0x0101010101010101\n	mov x20, #0x0202020202020202\n"
	"	mov x21, #0x0303030303030303\n	ldr x22, =0x0404040404040404\n"
	"	ldr x23, =0x0505050505050505\n	mov x24, #0x0606060606060606\n"
	"	mov x6, x24\n	mov x7, x24\n	mov x9, x24\n	mov x15, x24\n	mov x28, x24\n"
	"	svc #0\n"
	"	ldp x16, x17, [sp, #80]\n"
	"	ldr x16, [x16]\n"
	"	stp x16, x1, [x17]\n	stp x2, x3, [x17, #16]\n	stp x4, x5, [x17, #32]\n"
	"	stp x19, x20, [x17, #48]\n	stp x21, x22, [x17, #64]\n"
	"	cmp x6, x24\n	ccmp x7, x24, #0, eq\n	ccmp x9, x24, #0, eq\n	ccmp x15, x24, #0, eq\n	ccmp x28, x24, #0, eq\n"
	"	csel x24, x24, xzr, eq\n"
	"	stp x23, x24, [x17, #80]\n"
	"	ldp x19, x20, [sp, #16]\n	ldp x21, x22, [sp, #32]\n	ldp x23, x24, [sp, #48]\n"
	"	ldp x27, x28, [sp, #64]\n"
	"	ldp x29, x30, [sp], #112\n"
	"	ret\n"
	"	.ltorg\n");
#endif

// parked: makes one system call, checks itself after it. usage: parked CALL ORPHANS MILLISECONDS
//
// A helper process ends the calls that have no time-out when a byte arrives on standard input: it writes to a pipe, wakes a
// futex, sends SIGUSR1 and exits.
static int parked(const char *name, int n, long ms)
{
	static struct timespec ts, abs;
	static struct pollfd pfd;
	static struct epoll_event ev;
	static fd_set fds;
	static sigset_t mask, inner;
	static siginfo_t si;
	static int status;
	static struct { const sigset_t *set; size_t size; } sixth;

	int pipefd[2];
	if (pipe(pipefd) < 0)
		die("pipe");
	uint32_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (word == MAP_FAILED)
		die("mmap");
	on_signal(SIGUSR1, nothing, SA_RESTART);
	pid_t helper = xfork();
	if (helper == 0) {
		wait_byte();
		*word = 1;
		syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
		if (write(pipefd[1], "x", 1) != 1)
			_exit(1);
		kill(getppid(), SIGUSR1);
		_exit(HELPER_CODE);
	}
	pid_t mine = own();
	orphans(n);

	ts.tv_sec = ms / 1000;
	ts.tv_nsec = ms % 1000 * 1000000;
	pfd.fd = pipefd[0];
	pfd.events = POLLIN;
	int ep = epoll_create1(0);
	ev.events = EPOLLIN;
	if (epoll_ctl(ep, EPOLL_CTL_ADD, pipefd[0], &ev) < 0)
		die("epoll_ctl");
	FD_SET(pipefd[0], &fds);
	int pidfd = syscall(SYS_pidfd_open, helper, 0);

	// SIGUSR2 blocked outside, SIGUSR1 blocked where the call brings a mask of its own.
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigfillset(&inner);
	sigdelset(&inner, SIGUSR1);
	sigdelset(&inner, SIGCHLD); // a blocked one would be pending, and PID 1 left alone for that

	unsigned long a[6] = { 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6 };
#define ARGS(...) do { unsigned long v[] = { __VA_ARGS__ }; memcpy(a, v, sizeof v); } while (0)
#define P(x) ((unsigned long)(x))
	long nr = -1;
	int usr1 = 0; // woken by SIGUSR1, else it is blocked
	if (!strcmp(name, "futex")) { nr = SYS_futex; ARGS(P(word), FUTEX_WAIT, 0, 0); }
	else if (!strcmp(name, "futex-timeout")) { nr = SYS_futex; ARGS(P(word), FUTEX_WAIT, 0, P(&ts)); }
	else if (!strcmp(name, "futex-bitset")) { nr = SYS_futex; ARGS(P(word), FUTEX_WAIT_BITSET, 0, 0, 0, FUTEX_BITSET_MATCH_ANY); }
#ifdef SYS_poll
	else if (!strcmp(name, "poll")) { nr = SYS_poll; ARGS(P(&pfd), 1, P(-1)); }
	else if (!strcmp(name, "poll-timeout")) { nr = SYS_poll; ARGS(0, 0, ms); }
	else if (!strcmp(name, "epoll")) { nr = SYS_epoll_wait; ARGS(ep, P(&ev), 1, P(-1)); }
	else if (!strcmp(name, "epoll-timeout")) { nr = SYS_epoll_wait; ARGS(ep, P(&ev), 1, ms); }
	else if (!strcmp(name, "pause")) { nr = SYS_pause; usr1 = 1; }
	else if (!strcmp(name, "select")) { nr = SYS_select; ARGS(pipefd[0] + 1, P(&fds), 0, 0, 0); }
#else // what the C library does instead
	else if (!strcmp(name, "poll")) { nr = SYS_ppoll; ARGS(P(&pfd), 1, 0, 0, 8); }
	else if (!strcmp(name, "poll-timeout")) { nr = SYS_ppoll; ARGS(0, 0, P(&ts), 0, 8); }
	else if (!strcmp(name, "epoll")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, P(-1), 0, 8); }
	else if (!strcmp(name, "epoll-timeout")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, ms, 0, 8); }
	else if (!strcmp(name, "pause")) { nr = SYS_ppoll; ARGS(0, 0, 0, 0, 8); usr1 = 1; }
	else if (!strcmp(name, "select")) { nr = SYS_pselect6; ARGS(pipefd[0] + 1, P(&fds), 0, 0, 0, 0); }
#endif
	else if (!strcmp(name, "ppoll")) { nr = SYS_ppoll; ARGS(P(&pfd), 1, 0, P(&inner), 8); usr1 = 1; }
	else if (!strcmp(name, "ppoll-timeout")) { nr = SYS_ppoll; ARGS(0, 0, P(&ts), 0, 8); }
	else if (!strcmp(name, "wait4")) { nr = SYS_wait4; ARGS(helper, P(&status), 0, 0); }
	else if (!strcmp(name, "waitid")) { nr = SYS_waitid; ARGS(P_PID, helper, P(&si), WEXITED, 0); }
	else if (!strcmp(name, "waitid-pidfd")) { nr = SYS_waitid; ARGS(P_PIDFD, pidfd, P(&si), WEXITED, 0); }
	else if (!strcmp(name, "epoll-pwait")) { nr = SYS_epoll_pwait; ARGS(ep, P(&ev), 1, P(-1), P(&inner), 8); usr1 = 1; }
	else if (!strcmp(name, "epoll-pwait2")) { nr = SYS_epoll_pwait2; ARGS(ep, P(&ev), 1, 0, 0, 8); }
	else if (!strcmp(name, "nanosleep")) { nr = SYS_nanosleep; ARGS(P(&ts), 0); }
	else if (!strcmp(name, "clock-nanosleep")) { nr = SYS_clock_nanosleep; ARGS(CLOCK_MONOTONIC, 0, P(&ts), 0); }
	else if (!strcmp(name, "clock-nanosleep-abs")) { nr = SYS_clock_nanosleep; ARGS(CLOCK_MONOTONIC, TIMER_ABSTIME, P(&abs), 0); }
	else if (!strcmp(name, "sigsuspend")) { nr = SYS_rt_sigsuspend; ARGS(P(&inner), 8); usr1 = 1; }
	else if (!strcmp(name, "pselect6")) {
		nr = SYS_pselect6;
		sixth.set = &inner;
		sixth.size = 8;
		ARGS(pipefd[0] + 1, P(&fds), 0, 0, 0, P(&sixth));
		usr1 = 1;
	} else
		die(name);
	if (!usr1 || nr == SYS_rt_sigsuspend)
		sigaddset(&mask, SIGUSR1);
	if (sigprocmask(SIG_SETMASK, &mask, NULL) < 0)
		die("sigprocmask");

	unsigned long after[12];
	static const unsigned long kept[6] = { 0x0101010101010101, 0x0202020202020202, 0x0303030303030303,
		0x0404040404040404, 0x0505050505050505, 0x0606060606060606 };
	say("ready helper %d own %d", helper, mine);
	int64_t t0 = now_us();
	clock_gettime(CLOCK_MONOTONIC, &abs);
	abs.tv_sec += ms / 1000;
	abs.tv_nsec += ms % 1000 * 1000000;
	if (abs.tv_nsec >= 1000000000) {
		abs.tv_nsec -= 1000000000;
		abs.tv_sec++;
	}
	long ret = checked_syscall(nr, a, after);
	int64_t took = now_us() - t0;

	sigset_t mask2;
	sigemptyset(&mask2);
	sigprocmask(SIG_SETMASK, NULL, &mask2);
	int st = -1;
	pid_t got = waitpid(mine, &st, WNOHANG);
	int own_ok = got == mine && WIFEXITED(st) && WEXITSTATUS(st) == OWN_CODE;
	if (nr == SYS_wait4)
		si.si_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1, ret = ret == helper ? 0 : ret;
	int helper_ok = (nr != SYS_wait4 && nr != SYS_waitid) || si.si_status == HELPER_CODE;
	say("done ret %ld us %lld regs %s mask %s own %s helper %s", ret, (long long)took,
	    memcmp(after, a, sizeof a) || memcmp(after + 6, kept, sizeof kept) ? "bad" : "ok",
	    memcmp(&mask, &mask2, 8) ? "bad" : "ok", own_ok ? "ok" : "bad", helper_ok ? "ok" : "bad");
	pause();
	return 0;
}

static void filter(int nr, uint32_t action)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = { sizeof f / sizeof f[0], f };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p) < 0)
		die("seccomp");
}

// park blocks in poll on standard input, for as many bytes as it takes to see a newline.
static void park(void)
{
	struct pollfd p = { .fd = 0, .events = POLLIN };
	long interrupted = 0;
	say("ready");
	while (poll(&p, 1, -1) != 1)
		interrupted++;
	say("woken interrupted %ld", interrupted);
}

// restless looks for a byte five thousand times a second.
static void restless(void)
{
	struct timespec ts = { .tv_nsec = 200 * 1000 };
	struct pollfd pfd = { .fd = 0, .events = POLLIN };

	while (ppoll(&pfd, 1, &ts, NULL) <= 0)
		;
}

// seccomp-hammer: hardly ever out of poll, and tries a forbidden call whenever it is. seccomp-busy: never in it for long.
static void seccomp_hammer(int n, int ms)
{
	orphans(n);
	filter(SYS_getppid, SECCOMP_RET_ERRNO | EPERM);
	say("ready");
	long tries = 0, passed = 0;
	struct pollfd p = { .fd = 0, .events = POLLIN };
	while (poll(&p, 1, ms) == 0) {
		for (int i = 0; i < 50; i++, tries++)
			if (syscall(SYS_getppid) >= 0)
				passed++;
	}
	say("done tries %ld passed %ld", tries, passed);
	pause();
}

static void *sleeper(void *arg)
{
	(void)arg;
	struct pollfd p = { .fd = 0, .events = POLLIN };
	say("ready");
	while (poll(&p, 1, -1) != 1)
		;
	say("woken");
	pause();
	return NULL;
}

// storm: counts signals that come from outside; real-time ones carry consecutive numbers.
static volatile long usr1s, rts, disorder;

static void on_usr1(int sig) { (void)sig; usr1s++; }

static void on_rt(int sig, siginfo_t *si, void *uc)
{
	(void)sig;
	(void)uc;
	if (si->si_value.sival_int != rts)
		disorder++;
	rts++;
}

static void storm(int n)
{
	orphans(n);
	on_signal(SIGUSR1, on_usr1, 0);
	struct sigaction sa = { .sa_sigaction = on_rt, .sa_flags = SA_SIGINFO };
	sigaction(SIGRTMIN + 1, &sa, NULL);
	struct pollfd p = { .fd = 0, .events = POLLIN };
	long bad = 0;
	say("ready rt %d", SIGRTMIN + 1);
	for (;;) {
		int r = poll(&p, 1, -1);
		if (r == 1)
			break;
		if (r != -1 || errno != EINTR)
			bad++;
	}
	say("done usr1 %ld rt %ld disorder %ld bad %ld", usr1s, rts, disorder, bad);
	pause();
}

// nested: an adopted zombie of a nested PID namespace, whose number there is that of our own child here.
static void nested(void)
{
	pid_t mine = xfork();
	if (mine == 0)
		_exit(HELPER_CODE);
	int fd[2];
	if (pipe(fd) < 0)
		die("pipe");
	pid_t mid = xfork();
	if (mid == 0) {
		setsid();
		if (unshare(CLONE_NEWPID) < 0)
			die("unshare");
		if (xfork() == 0) { // PID 1 in there
			for (;;)
				pause();
		}
		if (xfork() == 0) { // PID 2 in there
			_exit(ORPHAN_CODE);
		}
		_exit(0);
	}
	xwait(mid);
	say("ready own %d", mine);
	wait_byte();
	int st = -1;
	pid_t got = waitpid(mine, &st, WNOHANG);
	say("done got %d status %d", got == mine, WIFEXITED(st) ? WEXITSTATUS(st) : -1);
	pause();
}

// traced_orphan leaves a zombie behind that the caller traces, and has not waited for.
static pid_t traced_orphan(void)
{
	int fd[2];
	if (pipe(fd) < 0)
		die("pipe");
	pid_t mid = xfork();
	if (mid == 0) {
		pid_t o = xfork();
		if (o == 0)
			for (;;)
				pause();
		if (write(fd[1], &o, sizeof o) != sizeof o)
			_exit(1);
		_exit(0);
	}
	pid_t o;
	if (read(fd[0], &o, sizeof o) != sizeof o)
		_exit(1);
	xwait(mid);
	if (ptrace(PTRACE_SEIZE, o, 0, 0) < 0)
		_exit(1);
	kill(o, SIGKILL);
	return o;
}

// zombie-traced: an orphan that is being traced by a process that does not wait for it: PID 1 itself, or another.
static void zombie_traced(int itself)
{
	if (itself) {
		pid_t o = traced_orphan();
		park();
		int st = -1;
		if (waitpid(o, &st, __WALL | WNOHANG) != o)
			die("waitpid");
		say("its tracer is told of signal %d", WIFSIGNALED(st) ? WTERMSIG(st) : -1);
		pause();
	}
	int ack[2];
	if (pipe(ack) < 0)
		die("pipe");
	if (xfork() == 0) {
		traced_orphan();
		if (write(ack[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	char c;
	if (read(ack[0], &c, 1) != 1)
		die("read");
	park();
	pause();
}


static char *self;

// exec-loop: a thread other than the leader replaces the program again and again.
static void *execer(void *arg)
{
	char *argv[] = { self, "exec-loop", arg, NULL };
	usleep(3000);
	execv("/proc/self/exe", argv);
	execv(self, argv);
	die("exec");
	return NULL;
}

static volatile long signals;
static void count(int sig) { (void)sig; signals++; }

#if defined(__aarch64__)
// wait_events is epoll_wait(2). wrong counts the registers beside the result that it has changed (syscall(2): it keeps all). They have
// other values each time.
static int wait_events(int ep, struct epoll_event *got, int n, int ms, long *wrong)
{
	static unsigned long round;
	unsigned long v = ++round * 0x9e3779b97f4a7c15;
	register long x8 __asm__("x8") = SYS_epoll_pwait;
	register long x0 __asm__("x0") = ep;
	register unsigned long x1 __asm__("x1") = (unsigned long)got, x2 __asm__("x2") = n, x3 __asm__("x3") = ms, x4 __asm__("x4") = 0;
	register unsigned long x5 __asm__("x5") = 8, x6 __asm__("x6") = v, x7 __asm__("x7") = v + 7, x9 __asm__("x9") = v + 9;
	register unsigned long x15 __asm__("x15") = v + 15, x16 __asm__("x16") = v + 16, x17 __asm__("x17") = v + 17;
	__asm__ volatile("svc #0"
			 : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x5), "+r"(x6), "+r"(x7), "+r"(x8), "+r"(x9), "+r"(x15),
			   "+r"(x16), "+r"(x17)
			 :
			 : "memory", "cc");
	long res = x0;
	*wrong += (x1 != (unsigned long)got) + (x2 != (unsigned long)n) + (x3 != (unsigned long)ms) + (x4 != 0) + (x5 != 8) + (x6 != v) +
		  (x7 != v + 7) + (x8 != SYS_epoll_pwait) + (x9 != v + 9) + (x15 != v + 15) + (x16 != v + 16) + (x17 != v + 17);
	if (res < 0) {
		errno = -res;
		return -1;
	}
	return res;
}
#else
static int wait_events(int ep, struct epoll_event *got, int n, int ms, long *wrong)
{
	(void)wrong;
	return epoll_wait(ep, got, n, ms);
}
#endif

// serve is a server that never waits: there is always something to do. It stops at a byte on standard input and says how often it
// went round, how often it was interrupted, how often a call did not do what it must or changed a register, and how many real-time signals came.
static void serve(void)
{
	on_signal(SIGRTMIN, count, SA_RESTART);
	int ep = epoll_create1(0), fd = eventfd(1, 0);
	long rounds = 0, eintr = 0, bad = 0;
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = 1 };
	if (ep < 0 || fd < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev))
		die("epoll");
	ev.data.u32 = 2;
	if (epoll_ctl(ep, EPOLL_CTL_ADD, 0, &ev))
		die("epoll");
	for (int end = 0; !end; rounds++) {
		struct epoll_event got[2] = { 0 };
		int n = wait_events(ep, got, 2, 60000, &bad);
		if (n < 0 && errno == EINTR) {
			eintr++;
			continue;
		}
		int served = 0;
		for (int i = 0; i < n; i++) {
			served |= got[i].data.u32 == 1;
			end |= got[i].data.u32 == 2;
		}
		uint64_t v = 0;
		bad += !served || read(fd, &v, sizeof v) != sizeof v || v != 1;
		for (volatile int i = 0; i < 2000; i++)
			;
		bad += write(fd, &v, sizeof v) != sizeof v;
	}
	wait_byte();
	say("served %ld %ld %ld %ld", rounds, eintr, bad, signals);
	pause();
}

// sigwaiter computes for a moment and then waits for a signal that does not come, which any stop in the middle ends with EINTR (signal(7)). At a
// byte on standard input it says how often it went round, and how often that happened.
static void sigwaiter(void)
{
	sigset_t never;
	struct timespec ts = { .tv_nsec = 10000000 };
	long rounds = 0, cut = 0;
	int told = 0;
	sigemptyset(&never);
	sigaddset(&never, SIGRTMIN + 9);
	sigprocmask(SIG_BLOCK, &never, NULL);
	for (; ioctl(0, FIONREAD, &told) == 0 && told == 0; rounds++) { // no call that it could be made to reap at
		for (volatile int i = 0; i < 300000; i++)
			;
		cut += syscall(SYS_rt_sigtimedwait, &never, NULL, &ts, 8) != -1 || errno != EAGAIN;
	}
	wait_byte();
	say("waited %ld %ld", rounds, cut);
	pause();
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	int n = argc > 2 && strcmp(mode, "parked") ? atoi(argv[2]) : 1;
	self = argv[0];
	setvbuf(stdout, NULL, _IONBF, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL); // no victim outlives the test, whatever happens

	if (!strcmp(mode, "parked") && argc == 5)
		return parked(argv[2], atoi(argv[3]), atol(argv[4]));
	if (!strcmp(mode, "restless")) {
		orphans(n);
		say("ready");
		restless();
		say("woken");
	} else if (!strcmp(mode, "park")) {
		orphans(n);
		park();
		pause();
	} else if (!strcmp(mode, "sigwaiter")) {
		orphans(n);
		say("ready");
		sigwaiter();
	} else if (!strcmp(mode, "seccomp-hammer")) {
		seccomp_hammer(n, 1);
	} else if (!strcmp(mode, "seccomp-busy")) {
		seccomp_hammer(n, 0);
	} else if (!strcmp(mode, "seccomp-kill")) {
		orphans(n);
		filter(SYS_waitid, SECCOMP_RET_KILL_PROCESS);
		park();
		pause();
	} else if (!strcmp(mode, "sigchld-pending")) {
		sigset_t s;
		sigemptyset(&s);
		sigaddset(&s, SIGCHLD);
		on_signal(SIGCHLD, nothing, 0);
		sigprocmask(SIG_BLOCK, &s, NULL);
		orphans(n);
		park();
		pause();
	} else if (!strcmp(mode, "leader-dead")) {
		orphans(n);
		pthread_t t;
		pthread_create(&t, NULL, sleeper, NULL);
		pthread_exit(NULL);
	} else if (!strcmp(mode, "stop-flood") || !strcmp(mode, "chld-flood")) {
		int sig = strcmp(mode, "stop-flood") ? SIGCHLD : SIGSTOP;
		orphans(n);
		if (xfork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) {
				kill(1, sig);
				for (volatile int i = 0; i < 2000; i++)
					;
			}
		}
		park();
		pause();
	} else if (!strcmp(mode, "storm")) {
		storm(n);
	} else if (!strcmp(mode, "nested")) {
		nested();
	} else if (!strcmp(mode, "zombie-traced")) {
		orphans(1);
		zombie_traced(n);
	} else if (!strcmp(mode, "trace-later")) {
		orphans(n);
		park();
		wait_byte();
		zombie_traced(1);
	} else if (!strcmp(mode, "vfork")) {
		orphans(n);
		say("ready");
		pid_t p = vfork();
		if (p == 0) {
			struct timespec ts = { 0, 500000000 };
			syscall(SYS_nanosleep, &ts, NULL);
			_exit(HELPER_CODE);
		}
		int st = -1;
		waitpid(p, &st, 0);
		say("done status %d", WIFEXITED(st) ? WEXITSTATUS(st) : -1);
		pause();
	} else if (!strcmp(mode, "wait-any")) {
		// __WNOTHREAD in a thread that has no children of its own would return at once; a child that lives keeps it.
		orphans(n);
		pid_t p = xfork();
		if (p == 0)
			for (;;)
				pause();
		setpgid(p, p);
		say("ready");
		// Of a group that only the living child is in: the kernel passes over the zombies.
		waitpid(-p, NULL, 0);
	} else if (!strcmp(mode, "exec-loop")) {
		if (n > 0)
			orphans(n), say("ready");
		pthread_t t;
		pthread_create(&t, NULL, execer, "0");
		for (;;)
			poll(NULL, 0, -1);
	} else if (!strcmp(mode, "read")) {
		orphans(n);
		say("ready");
		wait_byte();
		say("woken");
		pause();
	} else if (!strcmp(mode, "serve")) {
		orphans(n);
		say("ready");
		serve();
	} else if (!strcmp(mode, "spin")) {
		orphans(n);
		say("ready");
		for (volatile long i = 0;; i++)
			;
	}
	die(mode);
}
