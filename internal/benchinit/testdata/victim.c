/*
 * victim: the program below an init that is measured.
 *
 *   victim true       ends with 0
 *   victim wait       ends with standard input
 *   victim burst N    for each line of standard input: leaves N orphans that end at once, and prints the nanoseconds from their
 *                     release until none of them has its number any more
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void burst(int n)
{
	static pid_t *pids;
	int gate[2];
	pid_t parent;
	long long began;
	int status;
	char c;

	if (pids == NULL)
		pids = mmap(NULL, (size_t)n * sizeof(*pids), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (pids == MAP_FAILED || pipe(gate) != 0)
		exit(3);
	parent = fork();
	if (parent < 0)
		exit(3);
	if (parent == 0) {
		for (int i = 0; i < n; i++) {
			pid_t pid = fork();

			if (pid < 0)
				_exit(3);
			if (pid == 0) {
				close(gate[1]);
				_exit(read(gate[0], &c, 1) == 0 ? 0 : 3);
			}
			pids[i] = pid;
		}
		_exit(0);
	}
	if (waitpid(parent, &status, 0) != parent || status != 0)
		exit(3);
	close(gate[0]);
	began = now();
	close(gate[1]);
	for (int i = 0; i < n; i++) {
		while (kill(pids[i], 0) == 0) {
			struct timespec t = { 0, 200000 };

			nanosleep(&t, NULL);
		}
	}
	printf("%lld\n", now() - began);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	char c;

	if (strcmp(mode, "true") == 0)
		return 0;
	if (strcmp(mode, "wait") == 0) {
		puts("ready");
		fflush(stdout);
		return read(0, &c, 1) != 0;
	}
	if (strcmp(mode, "burst") == 0) {
		while (read(0, &c, 1) == 1)
			burst(atoi(argv[2]));
		return 0;
	}
	return 2;
}
