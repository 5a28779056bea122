// The process that is measured. It reads one order per line from its standard input and answers each with one line:
//
//   fork MS      fork, _exit and waitpid, over and over for MS milliseconds   -> "COUNT NANOSECONDS"
//   thread MS    pthread_create and pthread_join                              -> "COUNT NANOSECONDS"
//   switch MS    a byte to another process and back, by pipes                 -> "COUNT NANOSECONDS"
//   tswitch MS   a byte to another thread and back                            -> "COUNT NANOSECONDS"
//   hold N       start N threads that sleep                                   -> "N 0" as soon as all run
//   drop 0       end them                                                     -> "N 0" as soon as all are gone
//
// Its arguments: the CPU that it is bound to, or "idle" for a process that only sleeps.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static long long now(void) {
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void one_fork(void) {
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0)
		_exit(0);
	if (waitpid(pid, NULL, 0) != pid)
		fail("waitpid");
}

static void *nothing(void *arg) { return arg; }

static void one_thread(void) {
	pthread_t t;
	if (pthread_create(&t, NULL, nothing, NULL) != 0)
		fail("pthread_create");
	pthread_join(t, NULL);
}

static int there[2], back[2];

// Sends every byte back that it gets, until the other end is closed.
static void *echo(void *arg) {
	char c;
	while (read(there[0], &c, 1) == 1)
		if (write(back[1], &c, 1) != 1)
			break;
	return arg;
}

static void one_switch(void) {
	char c = 0;
	if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
		fail("pipe");
}

static void run(void (*once)(void), int ms) {
	long long count = 0, from = now(), to = from;
	while (to - from < ms * 1000000LL) {
		for (int i = 0; i < 16; i++)
			once();
		count += 16;
		to = now();
	}
	printf("%lld %lld\n", count, to - from);
}

static void open_pipes(void) {
	if (pipe(there) < 0 || pipe(back) < 0)
		fail("pipe");
}

static void switch_processes(int ms) {
	open_pipes();
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0) {
		close(there[1]);
		close(back[0]);
		echo(NULL);
		_exit(0);
	}
	close(there[0]);
	close(back[1]);
	run(one_switch, ms);
	close(there[1]);
	close(back[0]);
	waitpid(pid, NULL, 0);
}

static void switch_threads(int ms) {
	pthread_t t;
	open_pipes();
	if (pthread_create(&t, NULL, echo, NULL) != 0)
		fail("pthread_create");
	run(one_switch, ms);
	close(there[1]);
	pthread_join(t, NULL);
	close(there[0]);
	close(back[0]);
	close(back[1]);
}

static pthread_barrier_t arrived;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_t *held;
static int nheld;

static void *sleeper(void *arg) {
	pthread_barrier_wait(&arrived);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	return arg;
}

static void hold(int n) {
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	pthread_barrier_init(&arrived, NULL, n + 1);
	pthread_mutex_lock(&gate);
	held = calloc(n, sizeof *held);
	for (nheld = 0; nheld < n; nheld++)
		if (pthread_create(&held[nheld], &attr, sleeper, NULL) != 0)
			fail("pthread_create");
	pthread_barrier_wait(&arrived);
	printf("%d 0\n", n);
}

static void drop(void) {
	pthread_mutex_unlock(&gate);
	for (int i = 0; i < nheld; i++)
		pthread_join(held[i], NULL);
	free(held);
	printf("%d 0\n", nheld);
	nheld = 0;
}

int main(int argc, char **argv) {
	char order[32];
	int n;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc != 2)
		return 2;
	if (strcmp(argv[1], "idle") == 0)
		for (;;)
			pause();
	cpu_set_t cpu;
	CPU_ZERO(&cpu);
	CPU_SET(atoi(argv[1]), &cpu);
	if (sched_setaffinity(0, sizeof cpu, &cpu) < 0)
		fail("sched_setaffinity");
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (scanf("%31s %d", order, &n) == 2) {
		if (strcmp(order, "fork") == 0)
			run(one_fork, n);
		else if (strcmp(order, "thread") == 0)
			run(one_thread, n);
		else if (strcmp(order, "switch") == 0)
			switch_processes(n);
		else if (strcmp(order, "tswitch") == 0)
			switch_threads(n);
		else if (strcmp(order, "hold") == 0)
			hold(n);
		else if (strcmp(order, "drop") == 0)
			drop();
		else
			return 2;
	}
	return 0;
}
