// The PID 1 that is measured, or under another init its child. It is an event loop on epoll(7), and takes one order per line from its
// standard input:
//
//   pile N      N orphans that have ended                                        -> "done"
//   leak N      a process that leaks N orphans a second until "leak 0"           -> "done"
//   serve PORT  answer HTTP requests on that port of 127.0.0.1                   -> "done"
//   count 0     how many it has answered, and CLOCK_MONOTONIC in nanoseconds     -> "done" and a line
//
// It never waits for an orphan, and ends with its standard input.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int ep, listener = -1;
static pid_t leaker;
static long long answered;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void must_wait(pid_t pid)
{
	while (waitpid(pid, NULL, 0) < 0)
		if (errno != EINTR)
			fail("waitpid");
}

// The orphans are in a session that PID 1 was never in. Each has ended before its parent has: PID 1 adopts zombies.
static void pile(long n)
{
	pid_t mid = fork();

	if (mid < 0)
		fail("fork");
	if (mid == 0) {
		setsid();
		for (; n > 0; n--) {
			siginfo_t info;
			pid_t pid = fork();

			if (pid < 0)
				fail("fork");
			if (pid == 0)
				_exit(0);
			if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) < 0)
				fail("waitid");
		}
		_exit(0);
	}
	must_wait(mid);
}

static void leak(long rate)
{
	if (leaker) {
		kill(leaker, SIGKILL);
		must_wait(leaker);
		leaker = 0;
	}
	if (rate == 0)
		return;
	leaker = fork();
	if (leaker < 0)
		fail("fork");
	if (leaker > 0)
		return;
	struct timespec next;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setsid();
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (;;) {
		pid_t mid = fork();

		if (mid == 0) {
			if (fork() == 0)
				_exit(0);
			_exit(0);
		}
		if (mid > 0)
			must_wait(mid);
		next.tv_nsec += 1000000000L / rate;
		next.tv_sec += next.tv_nsec / 1000000000L;
		next.tv_nsec %= 1000000000L;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
}

static void watch(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0)
		fail("epoll_ctl");
}

static void serve(long port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons((unsigned short)port) };
	int on = 1;

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
	    bind(listener, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(listener, 128) < 0)
		fail("listen");
	watch(listener);
}

// One read is one request: wrk does not pipeline, and its requests are small.
static void answer(int fd)
{
	static const char reply[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
	char buf[4096];
	ssize_t n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		close(fd);
		return;
	}
	if (n <= 0)
		return;
	if (send(fd, reply, sizeof reply - 1, MSG_NOSIGNAL) < 0)
		close(fd);
	answered++;
}

static void order(void)
{
	char line[64], what[16];
	long n;
	ssize_t len = read(0, line, sizeof line - 1);

	if (len <= 0)
		exit(0);
	line[len] = 0;
	if (sscanf(line, "%15s %ld", what, &n) != 2)
		exit(2);
	if (strcmp(what, "pile") == 0)
		pile(n);
	else if (strcmp(what, "leak") == 0)
		leak(n);
	else if (strcmp(what, "serve") == 0)
		serve(n);
	else if (strcmp(what, "count") != 0)
		exit(2);
	puts("done");
	if (strcmp(what, "count") == 0) {
		struct timespec now;

		clock_gettime(CLOCK_MONOTONIC, &now);
		printf("%lld %lld\n", answered, now.tv_sec * 1000000000LL + now.tv_nsec);
	}
	fflush(stdout);
}

int main(void)
{
	struct epoll_event evs[64];

	ep = epoll_create1(EPOLL_CLOEXEC);
	if (ep < 0)
		fail("epoll_create1");
	watch(0);
	for (;;) {
		int n = epoll_wait(ep, evs, 64, -1);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++) {
			int fd = evs[i].data.fd;

			if (fd == 0) {
				order();
			} else if (fd == listener) {
				int conn = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
				int on = 1;

				if (conn < 0)
					continue;
				setsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
				watch(conn);
			} else {
				answer(fd);
			}
		}
	}
}
