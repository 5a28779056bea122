// twins: PID 1 of a PID namespace. Again and again a child of its own and a grandchild get the same PID within one clock tick.
// For each it prints the line of /proc/<pid>/stat and CLOCK_BOOTTIME in ticks, read before the line: "grandchild TICKS STAT"
// and "own TICKS STAT".
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const pid_t twin = 500;

static pid_t fork_as(pid_t want)
{
	struct clone_args args;
	pid_t tid = want;

	memset(&args, 0, sizeof(args));
	args.exit_signal = SIGCHLD;
	args.set_tid = (uintptr_t)&tid;
	args.set_tid_size = 1;
	return syscall(SYS_clone3, &args, sizeof(args));
}

static void show(const char *who)
{
	char line[1024];
	struct timespec now;
	ssize_t n;
	int fd;

	clock_gettime(CLOCK_BOOTTIME, &now);
	fd = open("/proc/500/stat", O_RDONLY);
	n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);
	close(fd);
	if (n <= 0)
		return;
	line[n] = 0;
	printf("%s %lld %s", who, (long long)now.tv_sec * 100 + now.tv_nsec / 10000000, line);
	fflush(stdout);
}

int main(void)
{
	for (int i = 0; i < 50; i++) {
		pid_t middle = fork();
		if (middle == 0) {
			pid_t g = fork_as(twin);
			if (g == 0) {
				pause();
				_exit(0);
			}
			if (g < 0)
				_exit(1);
			show("grandchild");
			kill(g, SIGKILL);
			waitpid(g, NULL, 0);
			_exit(0);
		}
		int status;
		waitpid(middle, &status, 0);
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			puts("unsupported");
			return 0;
		}
		pid_t own = fork_as(twin);
		if (own == 0)
			_exit(3);
		siginfo_t info;
		waitid(P_PID, own, &info, WEXITED | WNOWAIT);
		show("own");
		waitpid(own, NULL, 0);
	}
	return 0;
}
