// busy: a PID 1 like the event loops of node and many servers. It is told of every child that dies, by a SIGCHLD handler that writes
// to a pipe, and waits for none but the one child that it has forked.
//
//   busy [-w microseconds] [-t]
//
//   -w  work that long for each byte in the pipe (0)
//   -t  do so in a second thread, with SIGCHLD blocked in it: the main thread sits in poll(2) and only takes the signals
//
// Its child ends with SIGTERM at the end of the test; busy then prints "child STATUS, signals N" and ends itself with 0.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int wake[2];
static volatile sig_atomic_t signals;
static long work;
static pid_t child;

static void on_chld(int sig)
{
	int saved = errno;
	char c = 0;

	(void)sig;
	signals++;
	if (write(wake[1], &c, 1) != 1)
		abort(); // the pipe holds 65536 bytes, and the loop empties it
	errno = saved;
}

static long long now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static void *loop(void *arg)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = { .events = EPOLLIN };

	epoll_ctl(ep, EPOLL_CTL_ADD, wake[0], &ev);
	for (;;) {
		char buf[64];
		int status;

		if (epoll_wait(ep, &ev, 1, -1) < 0) {
			if (errno == EINTR)
				continue;
			perror("busy: epoll_wait");
			exit(1);
		}
		ssize_t n = read(wake[0], buf, sizeof buf);
		for (long long until = now_us() + n * work; now_us() < until;)
			;
		pid_t pid = waitpid(child, &status, WNOHANG);
		if (pid == child) {
			printf("child %d, signals %d\n", status, (int)signals);
			fflush(stdout);
			exit(0);
		}
		if (pid < 0) {
			perror("busy: waitpid"); // its status has been taken
			exit(1);
		}
	}
	return arg;
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_chld, .sa_flags = SA_RESTART };
	int threaded = 0, c;

	while ((c = getopt(argc, argv, "w:t")) != -1) {
		switch (c) {
		case 'w': work = atol(optarg); break;
		case 't': threaded = 1; break;
		default: return 2;
		}
	}
	if (pipe2(wake, 0) < 0 || sigaction(SIGCHLD, &sa, NULL) < 0)
		return 1;
	child = fork();
	if (child < 0)
		return 1;
	if (child == 0) {
		signal(SIGCHLD, SIG_DFL);
		for (;;)
			pause();
	}
	printf("child is %d\n", child);
	fflush(stdout);
	if (!threaded)
		loop(NULL);

	sigset_t set;
	pthread_t thread;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (pthread_create(&thread, NULL, loop, NULL) != 0)
		return 1;
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	for (;;)
		poll(NULL, 0, -1);
}
