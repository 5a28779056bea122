// A PID 1 that blocks in one system call over and over again and counts the signals that it gets.
//
//	signals CALL ORPHANS INTERVAL
//
// It prints "ready RT" with the number of the first real-time signal that it counts, "term" and "cont" for each SIGTERM and
// SIGCONT, and "done" with its counts when a byte has come on standard input. Signals:
//
//	SIGALRM       from a timer of its own, every INTERVAL microseconds, overruns counted; each eighth starts a child
//	SIGCHLD       the handler waits for the children that it has started, each by its PID
//	RT to RT+2    with consecutive numbers, counted for each
//	SIGTERM, SIGCONT
//
// No handler has SA_RESTART, so that each ends the call with EINTR, and nothing else may. With a CALL that ends in "-restart" all have it, and
// nothing ends the call but SIGUSR1, which is then what it waits for in place of the byte.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ORPHAN_CODE = 3, KIDS = 64 };

static timer_t timer;
static volatile int64_t alarms;
static volatile long terms, conts, rts, disorder, odd_code, kids, reaped, runs;
static volatile int next[3];
static volatile int finish;
static int restart;
static volatile pid_t kid[KIDS];
static volatile int kid_code[KIDS];
static volatile int64_t last_run;

static int64_t now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static void note(const char *s) { if (write(1, s, strlen(s)) < 0) _exit(98); }

static void start_kid(void);

static void on_finish(int sig) { (void)sig; finish = 1; }

static void handler(int sig, siginfo_t *si, void *uc)
{
	(void)uc;
	int e = errno;
	runs++;
	last_run = now_us();
	if (sig == SIGALRM) {
		if (si->si_code != SI_TIMER)
			odd_code++;
		alarms += 1 + timer_getoverrun(timer);
		if (restart && alarms % 8 == 0)
			start_kid();
	} else if (sig == SIGTERM) {
		terms++;
		note("term\n");
	} else if (sig == SIGCONT) {
		conts++;
		note("cont\n");
	} else if (sig == SIGCHLD) {
		for (int i = 0; i < KIDS; i++) {
			int st;
			if (kid[i] && waitpid(kid[i], &st, WNOHANG) == kid[i]) {
				if (!WIFEXITED(st) || WEXITSTATUS(st) != kid_code[i])
					odd_code++;
				kid[i] = 0;
				reaped++;
			}
		}
	} else {
		int n = sig - SIGRTMIN - 1;
		rts++;
		if (si->si_code != SI_QUEUE || si->si_value.sival_int != next[n]++)
			disorder++;
	}
	errno = e;
}

// start_kid is called with all signals blocked.
static void start_kid(void)
{
	for (int i = 0; i < KIDS; i++)
		if (!kid[i]) {
			int code = 64 + kids % 64;
			pid_t p = fork();
			if (p == 0)
				_exit(code);
			if (p < 0)
				return;
			kid_code[i] = code;
			kid[i] = p;
			kids++;
			return;
		}
}

static const char *name;
static int epfd;
static pid_t living;
static sigset_t none, never;

static long call(void)
{
	static uint32_t word;
	struct timespec second = { 1, 0 }, long_time = { 100, 0 };
	struct epoll_event ev;
	siginfo_t si;
	long r;
	if (!strcmp(name, "wait4-restart"))
		r = syscall(SYS_wait4, living, NULL, 0, NULL);
	else if (!strcmp(name, "futex") || !strcmp(name, "futex-restart"))
		r = syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0);
	else if (!strcmp(name, "ppoll"))
		r = syscall(SYS_ppoll, NULL, 0, &long_time, &none, 8);
	else if (!strcmp(name, "epoll_pwait"))
		r = syscall(SYS_epoll_pwait, epfd, &ev, 1, -1, &none, 8);
	else if (!strcmp(name, "clock_nanosleep"))
		r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &second, NULL);
	else if (!strcmp(name, "pselect6"))
		r = syscall(SYS_pselect6, 0, NULL, NULL, NULL, NULL, NULL);
	else if (!strcmp(name, "rt_sigsuspend"))
		r = syscall(SYS_rt_sigsuspend, &none, 8);
	else if (!strcmp(name, "rt_sigtimedwait"))
		r = syscall(SYS_rt_sigtimedwait, &never, &si, NULL, 8);
	else
		_exit(2);
	return r < 0 ? -errno : r;
}

int main(int argc, char **argv)
{
	if (argc != 4 || getpid() != 1)
		return 2;
	name = argv[1];
	epfd = epoll_create1(0);
	restart = strstr(name, "-restart") != NULL;
	int own_mask = !strcmp(name, "ppoll") || !strcmp(name, "epoll_pwait") || !strcmp(name, "rt_sigsuspend");
	sigset_t all;
	sigfillset(&all);
	sigemptyset(&none);
	sigemptyset(&never);
	sigaddset(&never, SIGRTMIN + 9);
	sigprocmask(SIG_BLOCK, &never, NULL);
	int sigs[] = { SIGALRM, SIGTERM, SIGCONT, SIGCHLD, SIGRTMIN + 1, SIGRTMIN + 2, SIGRTMIN + 3 };
	for (unsigned i = 0; i < sizeof sigs / sizeof *sigs; i++) {
		struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | (restart ? SA_RESTART : 0) };
		sigfillset(&sa.sa_mask);
		sigaction(sigs[i], &sa, NULL);
	}
	struct sigaction last = { .sa_handler = on_finish };
	sigaction(SIGUSR1, &last, NULL);
	sigset_t usual;
	sigprocmask(SIG_SETMASK, &all, &usual);
	pid_t mid = fork();
	if (mid == 0) {
		setsid();
		for (int i = atoi(argv[2]); i > 0; i--)
			if (fork() == 0)
				_exit(ORPHAN_CODE);
		_exit(0);
	}
	waitpid(mid, NULL, 0);
	if (restart && (living = fork()) == 0)
		for (;;)
			pause();
	struct sigevent se = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	long every = atol(argv[3]);
	if (timer_create(CLOCK_MONOTONIC, &se, &timer))
		return 3;
	char line[256];
	int len = snprintf(line, sizeof line, "ready %d\n", SIGRTMIN + 1);
	int64_t began = now_us() + 10000;
	struct itimerspec its = { { every / 1000000, every % 1000000 * 1000 }, { began / 1000000, began % 1000000 * 1000 } };
	began -= every; // one interval before the first
	timer_settime(timer, TIMER_ABSTIME, &its, NULL);
	if (write(1, line, len) != len)
		return 3;

	// With a mask of the call's own, signals come inside the call alone.
	if (!own_mask)
		sigprocmask(SIG_SETMASK, &usual, NULL);
	long calls = 0, spurious = 0, other = 0, late = 0, due = 0;
	struct pollfd in = { .fd = 0, .events = POLLIN };
	for (;;) {
		long before = runs, conts_before = conts;
		long r = call();
		int64_t end = now_us();
		calls++;
		if (finish && r == -EINTR)
			break;
		if (restart) {
			other++;
			continue;
		}
		if (r == -EINTR && runs == before)
			spurious++;
		else if (r != -EINTR && !(r == 0 && !strcmp(name, "clock_nanosleep")))
			other++;
		// The call must end with the handler, not go on after it. Being stopped takes its time.
		if (end - last_run > 2000000 && conts == conts_before)
			late++;
		if (alarms / 8 > due) {
			due = alarms / 8;
			sigset_t old;
			sigprocmask(SIG_SETMASK, &all, &old);
			start_kid();
			sigprocmask(SIG_SETMASK, &old, NULL);
		}
		if (poll(&in, 1, 0) == 1)
			break;
	}
	sigset_t quiet = all;
	sigdelset(&quiet, SIGCHLD);
	sigdelset(&quiet, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &all, NULL); // whatever is pending is delivered here
	sigprocmask(SIG_SETMASK, &all, NULL);
	struct itimerspec off = { { 0, 0 }, { 0, 0 } };
	int64_t low = now_us();
	timer_settime(timer, 0, &off, NULL);
	int64_t high = now_us();
	// One that has expired since the signals were blocked is lost with the timer.
	int64_t min = (low - began) / every - 1, max = (high - began) / every;
	if (!restart && low - last_run > 1000000)
		late++;
	sigprocmask(SIG_SETMASK, &quiet, NULL);
	for (int i = 0; i < 2000 && reaped < kids; i++) // a SIGCHLD each, or none was lost
		poll(NULL, 0, 1);
	sigprocmask(SIG_SETMASK, &all, NULL);
	len = snprintf(line, sizeof line, "done calls=%ld alarms=%s(%lld) terms=%ld conts=%ld rts=%ld disorder=%ld odd=%ld kids=%ld reaped=%ld spurious=%ld other=%ld late=%ld\n",
		calls, alarms >= min && alarms <= max ? "ok" : "bad", (long long)(alarms - max), terms, conts, rts, disorder, odd_code, kids, reaped,
		spurious, other, late);
	if (write(1, line, len) != len)
		return 3;
	sigprocmask(SIG_SETMASK, &all, NULL);
	for (;;)
		pause();
}
