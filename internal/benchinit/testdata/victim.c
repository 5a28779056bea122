/*
 * victim: the program below an init that is measured.
 *
 *   victim true       ends with 0
 *   victim wait       ends with standard input
 *   victim burst N    for each line of standard input: leaves N orphans that end at once, and prints the nanoseconds from their
 *                     release until the init has no child but this one
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int alone(void)
{
	char path[64], text[4096], *rest;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", getppid(), getppid());
	fd = open(path, O_RDONLY);
	if (fd < 0 || (n = read(fd, text, sizeof(text) - 1)) < 0)
		exit(3);
	close(fd);
	text[n] = '\0';
	return strtol(text, &rest, 10) == getpid() && rest[strspn(rest, " \n")] == '\0';
}

static void burst(int n)
{
	int gate[2];
	pid_t parent;
	long long began;
	char c;

	if (pipe(gate) != 0)
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
		}
		_exit(0);
	}
	if (waitpid(parent, &n, 0) != parent || n != 0)
		exit(3);
	close(gate[0]);
	began = now();
	close(gate[1]);
	while (!alone()) {
		struct timespec t = { 0, 500000 };

		nanosleep(&t, NULL);
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
