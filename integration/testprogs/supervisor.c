// supervisor: a PID 1 that waits, by their numbers, for daemons that it did not fork: each is forked twice and tells its number
// through a pipe, as daemons with pid files do.
//
//   supervisor SECONDS...   for each: start a daemon, which exits with its round after 100 ms, wait that long, then collect it
//
// Prints a line for each, "round R pid P status S" or "round R pid P lost: ERROR", then "PASS" or "FAIL", and pauses.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t start_daemon(int round)
{
	int fds[2];
	pid_t pid = -1, middle;

	if (pipe(fds))
		abort();
	middle = fork();
	if (middle == 0) {
		setsid();
		pid = fork();
		if (pid == 0) {
			close(fds[0]);
			close(fds[1]);
			poll(NULL, 0, 100);
			_exit(round);
		}
		if (write(fds[1], &pid, sizeof(pid)) != sizeof(pid))
			_exit(1);
		_exit(0);
	}
	close(fds[1]);
	if (read(fds[0], &pid, sizeof(pid)) != sizeof(pid))
		abort();
	close(fds[0]);
	waitpid(middle, NULL, 0);
	return pid;
}

int main(int argc, char **argv)
{
	int failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int round = 1; round < argc; round++) {
		int status, left = (int)(1000 * atof(argv[round]));
		pid_t pid = start_daemon(round);

		poll(NULL, 0, left);
		if (waitpid(pid, &status, 0) != pid) {
			printf("round %d pid %d lost: %s\n", round, pid, strerror(errno));
			failed = 1;
		} else {
			printf("round %d pid %d status %d\n", round, pid, WEXITSTATUS(status));
			failed |= !WIFEXITED(status) || WEXITSTATUS(status) != round;
		}
	}
	puts(failed ? "FAIL" : "PASS");
	for (;;)
		poll(NULL, 0, -1);
}
