// latewaiter: a PID 1 that forks children which end at once, does something else for a long time, and then asks for the
// status of each. Whoever reaps one of them in between steals its status.
//
//   latewaiter [-n children] [-d delay-ms] [-p]
//
// Each kind of child that a reaper could take for an orphan is there: plain ones, ones killed by a signal, session
// leaders, process-group leaders, and children that another thread of PID 1 forked. Prints one line per child
// ("child 3 pid 9 session-leader PASS exit 13") and ends with 0 when all are PASS. With -p the process then pauses.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum kind { PLAIN, SIGNALLED, SESSION, GROUP, THREAD, KINDS };
static const char *kind_name[KINDS] = { "plain", "signalled", "session-leader", "group-leader", "forked-by-thread" };
static const int signals[] = { SIGKILL, SIGTERM, SIGUSR1, SIGSEGV };

struct child {
	pid_t pid;
	enum kind kind;
	int code; // exit code
	int sig;  // or the signal
};

static pid_t start(struct child *c)
{
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	if (c->kind == SESSION)
		setsid();
	if (c->kind == GROUP)
		setpgid(0, 0);
	if (c->sig) {
		signal(c->sig, SIG_DFL);
		kill(getpid(), c->sig);
		pause();
	}
	_exit(c->code);
}

static void *thread_start(void *arg)
{
	struct child *c = arg;

	c->pid = start(c);
	// The thread stays: its children hang on it as long as it lives.
	for (;;)
		pause();
	return NULL;
}

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	int n = 10, delay = 10000, stay = 0, failed = 0, opt;

	while ((opt = getopt(argc, argv, "n:d:p")) != -1) {
		switch (opt) {
		case 'n': n = atoi(optarg); break;
		case 'd': delay = atoi(optarg); break;
		case 'p': stay = 1; break;
		default: return 2;
		}
	}
	// init of a PID namespace ignores signals without a handler when they come from inside: its children get the
	// default action all the same, since they are no init.
	struct child *kids = calloc(n, sizeof *kids);
	for (int i = 0; i < n; i++) {
		struct child *c = &kids[i];

		c->kind = i % KINDS;
		c->code = 10 + i;
		if (c->kind == SIGNALLED)
			c->sig = signals[i / KINDS % 4];
		if (c->kind == THREAD) {
			pthread_t t;

			if (pthread_create(&t, NULL, thread_start, c) != 0)
				return 3;
			while (__atomic_load_n(&c->pid, __ATOMIC_ACQUIRE) == 0)
				usleep(1000);
		} else {
			c->pid = start(c);
		}
		if (c->pid < 0) {
			perror("fork");
			return 3;
		}
	}
	printf("forked\n");
	fflush(stdout);

	for (long long end = now_ms() + delay, left; (left = end - now_ms()) > 0;)
		poll(NULL, 0, left);

	for (int i = 0; i < n; i++) {
		struct child *c = &kids[i];
		int status, ok;
		char got[64];
		pid_t r;

		do
			r = waitpid(c->pid, &status, 0);
		while (r < 0 && errno == EINTR);
		if (r < 0) {
			snprintf(got, sizeof got, "%s", strerror(errno));
			ok = 0;
		} else if (WIFSIGNALED(status)) {
			snprintf(got, sizeof got, "signal %d", WTERMSIG(status));
			ok = WTERMSIG(status) == c->sig;
		} else {
			snprintf(got, sizeof got, "exit %d", WEXITSTATUS(status));
			ok = !c->sig && WEXITSTATUS(status) == c->code;
		}
		printf("child %d pid %d %s %s %s\n", i, c->pid, kind_name[c->kind], ok ? "PASS" : "FAIL", got);
		failed |= !ok;
	}
	printf(failed ? "FAIL\n" : "PASS\n");
	fflush(stdout);
	while (stay)
		pause();
	return failed;
}
