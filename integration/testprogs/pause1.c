// pause1: a PID 1 that never waits for anything, like most programs that end up as PID 1 of a container.
//
//   pause1 [pause|poll|futex|nanosleep|epoll|work] [-n threads] [-t] [-u] [-- command args...]
//
// The word chooses the system call that it is blocked in; with "work" it never is: it always finds something to do. -n starts so many
// threads that sleep. -t installs a SIGTERM handler that exits with 0, and the command is started as a child that nobody
// will ever wait for: at once, or with -u at each SIGUSR1.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void on_term(int sig)
{
	(void)sig;
	_exit(0);
}

static void *idle(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static char **command;

static void start(int sig)
{
	(void)sig;
	pid_t pid = fork();
	if (pid == 0) {
		execv(command[0], command);
		_exit(127);
	}
	if (pid < 0)
		_exit(1);
}

int main(int argc, char **argv)
{
	int later = 0;
	const char *mode = "pause";
	int i = 1;

	for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "-t") == 0) {
			struct sigaction sa = { .sa_handler = on_term };
			sigaction(SIGTERM, &sa, NULL);
		} else if (strcmp(argv[i], "-n") == 0 && i + 1 < argc) {
			pthread_t thread;
			for (int n = atoi(argv[++i]); n > 0; n--)
				if (pthread_create(&thread, NULL, idle, NULL) != 0)
					return 1;
		} else if (strcmp(argv[i], "-u") == 0) {
			later = 1;
		} else {
			mode = argv[i];
		}
	}
	if (i + 1 < argc) {
		command = argv + i + 1;
		if (later) {
			struct sigaction sa = { .sa_handler = start, .sa_flags = SA_RESTART };
			sigaction(SIGUSR1, &sa, NULL);
		} else {
			start(0);
		}
	}

	static int word;
	struct timespec second = { .tv_sec = 1 };
	int ep = epoll_create1(EPOLL_CLOEXEC);
	for (;;) {
		if (strcmp(mode, "work") == 0) {
			struct pollfd always = { .fd = 1, .events = POLLOUT };
			poll(&always, 0, 0);
			for (volatile int n = 0; n < 5000; n++)
				;
		} else if (strcmp(mode, "pause") == 0) {
			pause();
		} else if (strcmp(mode, "poll") == 0) {
			poll(NULL, 0, -1);
		} else if (strcmp(mode, "futex") == 0) {
			syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &second, NULL, 0);
		} else if (strcmp(mode, "nanosleep") == 0) {
			nanosleep(&second, NULL);
		} else if (strcmp(mode, "epoll") == 0) {
			struct epoll_event ev;
			epoll_wait(ep, &ev, 1, 1000);
		} else {
			fprintf(stderr, "pause1: unknown mode %s\n", mode);
			return 2;
		}
	}
}
