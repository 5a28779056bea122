// herd: a PID 1 that makes as many zombies as it is told to and waits for none of them. It reads lines from its standard input
// and answers each with "done":
//
//   own N       N children of its own that have ended
//   adopted N   N orphans of another session that have ended
//   orphans N   N orphans of another session that live until they are killed
//   living N    N children of its own that live until it ends
//   reap N      waits for N children
//   take N      waits for the child with that number
//   other N     N children of another thread, which lives on, that have ended
//   park N      starts N threads that sleep in poll(2): the main thread sits in read(2)
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void living(long n)
{
	for (; n > 0; n--) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (pid == 0)
			for (;;)
				pause();
	}
}

static void zombies(long n)
{
	for (long i = 0; i < n; i++) {
		pid_t pid = fork();
		siginfo_t info;

		if (pid < 0)
			fail("fork");
		if (pid == 0)
			_exit(3);
		if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) < 0)
			fail("waitid");
	}
}

static void *park(void *arg)
{
	for (;;)
		poll(NULL, 0, -1);
	return arg;
}

static void *other(void *arg)
{
	zombies(*(long *)arg);
	*(long *)arg = 0;
	return park(NULL);
}

int main(void)
{
	char what[16];
	long n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (scanf("%15s %ld", what, &n) == 2) {
		if (strcmp(what, "own") == 0) {
			zombies(n);
		} else if (strcmp(what, "adopted") == 0 || strcmp(what, "orphans") == 0) {
			pid_t pid = fork();
			if (pid < 0)
				fail("fork");
			if (pid == 0) {
				setsid();
				(what[0] == 'a' ? zombies : living)(n);
				_exit(0);
			}
			if (waitpid(pid, NULL, 0) != pid)
				fail("waitpid");
		} else if (strcmp(what, "living") == 0) {
			living(n);
		} else if (strcmp(what, "reap") == 0) {
			for (; n > 0; n--)
				if (waitpid(-1, NULL, 0) < 0)
					fail("waitpid");
		} else if (strcmp(what, "take") == 0) {
			if (waitpid((pid_t)n, NULL, 0) != n)
				fail("waitpid");
		} else if (strcmp(what, "other") == 0) {
			pthread_t thread;
			volatile long left = n;
			if (pthread_create(&thread, NULL, other, (void *)&left) != 0)
				fail("pthread_create");
			while (left != 0)
				usleep(1000);
		} else if (strcmp(what, "park") == 0) {
			pthread_t thread;
			for (; n > 0; n--)
				if (pthread_create(&thread, NULL, park, NULL) != 0)
					fail("pthread_create");
		} else {
			return 2;
		}
		puts("done");
	}
	return 0;
}
