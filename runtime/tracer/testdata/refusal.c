// PID 1 in states in which it must be left alone, or in which it can be served only with care.
//
//	refusal MODE ORPHANS [MILLISECONDS]
//
// The milliseconds are what "exec" waits before it replaces itself. It leaves orphans behind, prints "ready" and is in its state. A byte on standard input ends that.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ORPHAN_CODE = 3, EXIT_CODE = 33 };

static void say(const char *s)
{
	char line[256];
	int n = snprintf(line, sizeof line, "%s\n", s);
	if (write(1, line, n) != n)
		_exit(98);
}

static void die(const char *what)
{
	char line[200];
	snprintf(line, sizeof line, "error %s: %s", what, strerror(errno));
	say(line);
	_exit(99);
}

static pid_t xfork(void)
{
	pid_t p = fork();
	if (p < 0)
		die("fork");
	return p;
}

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
	while (waitpid(mid, NULL, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
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

// park waits for a byte in ppoll and says whether anything else ended the wait.
static void park(void)
{
	struct pollfd p = { .fd = 0, .events = POLLIN };
	int interrupted = 0;
	say("ready");
	while (ppoll(&p, 1, NULL, NULL) != 1)
		interrupted++;
	say(interrupted ? "woken interrupted" : "woken");
}

static void *parked(void *arg)
{
	(void)arg;
	park();
	return NULL;
}

static void for_ever(void)
{
	for (;;)
		pause();
}

static void *paused(void *arg)
{
	char c;
	if (read(*(int *)arg, &c, 1) < 0)
		_exit(97);
	_exit(ORPHAN_CODE);
}

static volatile int stop;
static volatile long tries, passed;

static void *hammer(void *arg)
{
	(void)arg;
	while (!stop) {
		tries++;
		if (syscall(SYS_getppid) >= 0)
			passed++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 3 && argc != 4)
		return 2;
	const char *mode = argv[1];
	int n = atoi(argv[2]);
	if (n > 0)
		orphans(n);
	if (!strcmp(mode, "park")) {
		park();
	} else if (!strcmp(mode, "exit")) {
		park();
		_exit(EXIT_CODE);
	} else if (!strcmp(mode, "strict")) {
		say("ready");
		if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
			die("seccomp");
		char c;
		if (read(0, &c, 1) == 1)
			say("woken");
		// All but exit(2) would kill it; exit_group(2) too.
		syscall(SYS_exit, 0);
	} else if (!strcmp(mode, "waitid-forbidden")) {
		filter(SYS_waitid, SECCOMP_RET_ERRNO | EPERM);
		park();
		siginfo_t si;
		say(waitid(P_ALL, 0, &si, WEXITED | WNOHANG) < 0 && errno == EPERM ? "still forbidden" : "allowed");
	} else if (!strcmp(mode, "waitid-kills")) {
		filter(SYS_waitid, SECCOMP_RET_KILL_PROCESS);
		park();
	} else if (!strcmp(mode, "hammer")) {
		// One thread never stops trying what is forbidden, another one is there to be interrupted.
		filter(SYS_getppid, SECCOMP_RET_ERRNO | EPERM);
		pthread_t t, h;
		pthread_create(&t, NULL, parked, NULL);
		pthread_create(&h, NULL, hammer, NULL);
		pthread_join(t, NULL);
		stop = 1;
		pthread_join(h, NULL);
		char line[100];
		snprintf(line, sizeof line, "tries %ld passed %ld", tries, passed);
		say(line);
	} else if (!strcmp(mode, "traced-from-inside")) {
		int p[2];
		if (pipe(p))
			die("pipe");
		// Its SIGCHLD must not come once there is a tracer, which would be shown it and does not look.
		siginfo_t si;
		if (n > 0 && waitid(P_ALL, 0, &si, WEXITED | WNOWAIT))
			die("waitid");
		if (xfork() == 0) {
			if (ptrace(PTRACE_SEIZE, 1, 0, 0))
				die("seize");
			if (write(p[1], "x", 1) != 1)
				_exit(1);
			char c;
			if (read(0, &c, 1) != 1)
				_exit(1);
			_exit(0); // lets go
		}
		char c;
		if (read(p[0], &c, 1) != 1)
			die("read");
		say("ready");
		for (;;)
			ppoll(NULL, 0, NULL, NULL);
	} else if (!strcmp(mode, "undumpable")) {
		if (prctl(PR_SET_DUMPABLE, 0))
			die("dumpable");
		park();
	} else if (!strcmp(mode, "live-threads")) {
		// An orphan whose leader is dead and whose other thread lives until a byte comes.
		int out[2];
		if (pipe(out))
			die("pipe");
		if (xfork() == 0) {
			setsid();
			if (xfork() == 0) {
				pthread_t t;
				static int fd;
				close(out[0]);
				pthread_create(&t, NULL, paused, &fd); // reads standard input
				pthread_exit(NULL);
			}
			_exit(0);
		}
		say("ready");
		for (;;)
			ppoll(NULL, 0, NULL, NULL);
	} else if (!strcmp(mode, "exec")) {
		// Replaces itself again and again, then ends.
		char left[20];
		if (n > 0)
			say("ready"), n = -200;
		if (n == -1)
			_exit(EXIT_CODE);
		snprintf(left, sizeof left, "%d", n + 1);
		struct timespec ms = { 0, (argc > 3 ? atoi(argv[3]) : 1) * 1000000 };
		ppoll(NULL, 0, &ms, NULL);
		execl("/proc/self/exe", argv[0], "exec", left, argv[3], NULL); // argv ends with NULL
		die("exec");
	} else
		die(mode);
	for_ever();
}
