// forker: makes children in many ways and says of each who forked it: "own PID START" for its own, "other PID START" for a
// grandchild. START is field 22 of /proc/PID/stat, read while the child was a zombie. The rest of the line of arguments is run
// in order:
//
//   mix N      N rounds of fork, vfork, posix_spawn, clone3, clone with exit signal 0, a grandchild
//   threads N  N rounds of 8 threads at once that fork each and end
//   flood N    N forks one after the other, waited for, only counted: "count N" at the end
//   exec FILE  goes on as FILE, with the rest of the arguments
//   nobody     becomes user and group 65534
//   lesscap    gives up CAP_NET_BIND_SERVICE, but not in its bounding set: execve gives it back to root
//   pause      prints "pause" and reads a line
#define _GNU_SOURCE
#include <linux/capability.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static unsigned long long start_of(pid_t pid)
{
	char name[64], line[1024], *p;
	FILE *f;
	int field;

	snprintf(name, sizeof(name), "/proc/%d/stat", pid);
	f = fopen(name, "r");
	if (!f)
		return 0;
	line[fread(line, 1, sizeof(line) - 1, f)] = 0;
	fclose(f);
	p = strrchr(line, ')');
	for (field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p, NULL, 10) : 0;
}

static void report(const char *who, pid_t pid)
{
	siginfo_t info;

	waitid(P_PID, pid, &info, WEXITED | WNOWAIT | __WALL);
	printf("%s %d %llu\n", who, pid, start_of(pid));
	fflush(stdout);
	waitpid(pid, NULL, __WALL);
}

static pid_t clone3_child(int exit_signal)
{
	struct clone_args args;

	memset(&args, 0, sizeof(args));
	args.exit_signal = exit_signal;
	return syscall(SYS_clone3, &args, sizeof(args));
}

static void mix(int n)
{
	char *argv[] = { "true", NULL };
	pid_t pid;

	for (int i = 0; i < n; i++) {
		pid = fork();
		if (pid == 0)
			_exit(1);
		report("own", pid);
		pid = vfork();
		if (pid == 0)
			_exit(2);
		report("own", pid);
		if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) == 0)
			report("own", pid);
		pid = clone3_child(SIGCHLD);
		if (pid == 0)
			_exit(3);
		report("own", pid);
		pid = clone3_child(0);
		if (pid == 0)
			_exit(4);
		report("own", pid);
		pid = fork();
		if (pid == 0) {
			pid_t grand = fork();
			if (grand == 0)
				_exit(5);
			report("other", grand);
			_exit(0);
		}
		report("own", pid);
	}
}

static void *thread(void *arg)
{
	(void)arg;
	pid_t pid = fork();
	if (pid == 0)
		_exit(6);
	report("own", pid);
	return NULL;
}

static void threads(int n)
{
	pthread_t t[8];

	for (int i = 0; i < n; i++) {
		for (int j = 0; j < 8; j++)
			if (pthread_create(&t[j], NULL, thread, NULL))
				abort();
		for (int j = 0; j < 8; j++)
			pthread_join(t[j], NULL);
	}
}

static void flood(int n)
{
	for (int i = 0; i < n; i++) {
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		waitpid(pid, NULL, 0);
	}
	printf("count %d\n", n);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[16];

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "mix")) {
			mix(atoi(argv[++i]));
		} else if (!strcmp(argv[i], "threads")) {
			threads(atoi(argv[++i]));
		} else if (!strcmp(argv[i], "flood")) {
			flood(atoi(argv[++i]));
		} else if (!strcmp(argv[i], "pause")) {
			printf("pause\n");
			fflush(stdout);
			if (!fgets(line, sizeof(line), stdin))
				return 0;
		} else if (!strcmp(argv[i], "nobody")) {
			if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
				abort();
		} else if (!strcmp(argv[i], "lesscap")) {
			struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
			struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

			if (syscall(SYS_capget, &head, data))
				abort();
			data[0].permitted &= ~(1u << CAP_NET_BIND_SERVICE);
			data[0].effective &= ~(1u << CAP_NET_BIND_SERVICE);
			data[0].inheritable &= ~(1u << CAP_NET_BIND_SERVICE);
			if (syscall(SYS_capset, &head, data))
				abort();
		} else if (!strcmp(argv[i], "exec")) {
			execv(argv[i + 1], argv + i + 1);
			perror(argv[i + 1]);
			return 1;
		}
	}
	return 0;
}
