/*
 * prog: what runs around and below reaper-init in its tests.
 *
 *   prog ns [-Pfrndo] [-u UID] CMD...   in a new PID and mount namespace: set it up and become CMD. -P: no /proc; -f: a /proc of
 *                                      another namespace stays; -r: root read-only; -n: no_new_privs; -d: drop all capabilities;
 *                                      -o: a kernel without openat2 and close_range
 *   prog outer CMD...        a PID 1 that starts CMD and ends as it does; adopts, and reaps nothing
 *   prog subreaper CMD...    a subreaper that becomes CMD
 *   prog signals             print each signal: number, si_code, value
 *   prog sigconf CMD...      ignore some signals, block others, become CMD
 *   prog orphans N [CODE]    leave N orphans that have ended (with CODE, or each with its index), and return when they are gone
 *   prog burst N             leave N orphans that end all at once, and return when they are gone
 *   prog leave N             leave N orphans that sleep; prints their PIDs. leave-stubborn: they ignore SIGTERM; leave-term: they say
 *                            that they got it, and end
 *   prog name NAME CODE      leave one orphan of that name that ends with CODE
 *   prog dstate              leave an orphan in state D (vfork), and one that has ended for each byte of standard input
 *   prog group               ignore SIGUSR1, with a child that does not; end when the child does
 *   prog closestd CMD...     close 0, 1 and 2 and become CMD
 *   prog setsid CMD...       start a session and become CMD
 *   prog storm SECONDS       leave orphans as fast as possible; prints how many
 *   prog tty                 print what the terminal thinks of this process
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "prog: %s: %s\n", what, strerror(errno));
	_exit(99);
}

static void become(char **argv)
{
	if (argv[0] == NULL) {
		errno = EINVAL;
		die("no command");
	}
	execvp(argv[0], argv);
	die(argv[0]);
}

static void old_kernel(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_openat2, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_close_range, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
		die("seccomp");
}

static void ns(int argc, char **argv)
{
	int proc = 1, foreign = 0, readonly = 0, nnp = 0, drop = 0, old = 0, uid = 0, o;

	while ((o = getopt(argc, argv, "+Pfrndou:")) != -1) {
		switch (o) {
		case 'P': proc = 0; break;
		case 'f': foreign = 1; break;
		case 'r': readonly = 1; break;
		case 'n': nnp = 1; break;
		case 'd': drop = 1; break;
		case 'o': old = 1; break;
		case 'u': uid = atoi(optarg); break;
		default: _exit(99);
		}
	}
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		die("make mounts private");
	if (!foreign && mount(proc ? "proc" : "none", "/proc", proc ? "proc" : "tmpfs", 0, NULL) != 0)
		die("mount /proc");
	if (readonly && (mount("/", "/", NULL, MS_BIND | MS_REC, NULL) != 0 || chroot("/") != 0 ||
			 mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) != 0))
		die("make / read-only");
	if (drop) {
		for (int cap = 0; cap <= 63; cap++)
			prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
	}
	if (uid != 0 && (setgid((gid_t)uid) != 0 || setuid((uid_t)uid) != 0))
		die("setuid");
	if (drop) {
		struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
		struct __user_cap_data_struct none[2] = { { 0, 0, 0 }, { 0, 0, 0 } };

		if (syscall(SYS_capset, &header, none) != 0)
			die("capset");
	}
	if ((nnp || old) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		die("no_new_privs");
	if (old)
		old_kernel();
	become(argv + optind);
}

static void outer(char **argv)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0)
		become(argv);
	while (waitpid(pid, &status, 0) < 0)
		;
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* Raw calls: the C library hides signals 32 and 33. */
static void signals(void)
{
	unsigned long long all = ~0ull;

	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
	printf("ready %d\n", getpid());
	for (;;) {
		siginfo_t info;
		long sig = syscall(SYS_rt_sigtimedwait, &all, &info, NULL, 8);

		if (sig > 0)
			printf("%ld %d %d\n", sig, info.si_code, info.si_code == SI_QUEUE ? info.si_value.sival_int : 0);
	}
}

static void sigconf(char **argv)
{
	sigset_t set;

	signal(SIGTTOU, SIG_IGN);
	signal(SIGSEGV, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTTIN);
	sigaddset(&set, SIGILL);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGRTMIN + 3);
	sigprocmask(SIG_SETMASK, &set, NULL);
	become(argv);
}

/* Shared with all below: the number of orphans, and their PIDs. */
#define MADE_MAX 65535
static int *made;

static void note_orphan(void)
{
	int i = __atomic_fetch_add(made, 1, __ATOMIC_SEQ_CST);

	if (i < MADE_MAX)
		made[1 + i] = getpid();
}

static void burst(int n)
{
	int gate[2], ready[2];
	char c;
	pid_t parent;

	if (pipe(gate) != 0 || pipe(ready) != 0)
		die("pipe");
	parent = fork();
	if (parent == 0) {
		for (int i = 0; i < n; i++) {
			pid_t pid = fork();

			if (pid < 0)
				die("fork");
			if (pid == 0) {
				note_orphan();
				close(gate[1]);
				if (read(gate[0], &c, 1) != 0)
					_exit(98);
				_exit(0);
			}
		}
		_exit(0);
	}
	waitpid(parent, NULL, 0);
	close(gate[1]);
	close(ready[1]);
	while (read(ready[0], &c, 1) < 0)
		;
}

static int up = -1;

static void is_up(void)
{
	if (write(up, "", 1) != 1)
		_exit(97);
	close(up);
}

/* Starts work() in a process whose parent is gone when it runs. Returns when work() is up, or has ended. */
static void orphan(void (*work)(int, const char *), int n, const char *text)
{
	int gate[2], ready[2];
	char c;
	pid_t parent;

	if (pipe(gate) != 0 || pipe(ready) != 0)
		die("pipe");
	parent = fork();
	if (parent < 0)
		die("fork");
	if (parent == 0) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (pid == 0) {
			/* Returns when both parents' write ends are closed: the near one has ended, the far one has waited for it. */
			close(gate[1]);
			if (read(gate[0], &c, 1) != 0)
				_exit(98);
			close(gate[0]);
			close(ready[0]);
			note_orphan();
			up = ready[1];
			work(n, text);
			_exit(0);
		}
		_exit(0);
	}
	waitpid(parent, NULL, 0);
	close(gate[0]);
	close(gate[1]);
	close(ready[1]);
	while (read(ready[0], &c, 1) < 0)
		;
	close(ready[0]);
}

static void work_exit(int code, const char *name)
{
	if (name != NULL)
		prctl(PR_SET_NAME, name, 0, 0, 0);
	_exit(code);
}

static void work_sleep(int n, const char *text)
{
	(void)n, (void)text;
	printf("left %d\n", getpid());
	is_up();
	for (;;)
		pause();
}

static void work_ignore_term(int n, const char *text)
{
	signal(SIGTERM, SIG_IGN);
	work_sleep(n, text);
}

static void work_report_term(int n, const char *text)
{
	sigset_t set;
	int sig;

	(void)n, (void)text;
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	printf("left %d\n", getpid());
	is_up();
	do
		sigwait(&set, &sig);
	while (sig != SIGTERM);
	printf("term %d\n", getpid());
}

static void work_dstate(int n, const char *text)
{
	(void)n, (void)text;
	is_up();
	if (vfork() == 0) {
		for (;;)
			pause();
	}
}

/* Waits until nobody has the number of an orphan any more. /proc/PID/task/TID/children does not tell: proc_tid_children(5). */
static void vanish(void)
{
	struct timespec t = { 0, 1000000 };

	for (int i = 0; i < *made; i++) {
		while (kill(made[1 + i], 0) == 0 || errno != ESRCH)
			nanosleep(&t, NULL);
	}
}

static void group(void)
{
	pid_t pid;

	signal(SIGUSR1, SIG_IGN);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		signal(SIGUSR1, SIG_DFL);
		printf("ready %d\n", getpid());
		for (;;)
			pause();
	}
	waitpid(pid, NULL, 0);
}

static void storm(int seconds)
{
	long count = 0;
	time_t end = time(NULL) + seconds;

	while (time(NULL) < end) {
		pid_t pid = fork();

		if (pid == 0) {
			if (fork() >= 0)
				_exit(0);
			_exit(1);
		}
		if (pid > 0) {
			waitpid(pid, NULL, 0);
			count++;
		}
	}
	printf("storm %ld\n", count);
}

static void tty(void)
{
	int own = open("/dev/tty", O_RDWR);

	printf("tty %d foreground %d group %d sid %d\n", own >= 0, tcgetpgrp(0) == getpgrp(), getpgrp() == getpid(), getsid(0) == getpid());
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	int n = argc > 2 ? atoi(argv[2]) : 0;

	made = mmap(NULL, (MADE_MAX + 1) * sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (made == MAP_FAILED)
		die("mmap");
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(mode, "ns") == 0)
		ns(argc - 1, argv + 1);
	else if (strcmp(mode, "outer") == 0)
		outer(argv + 2);
	else if (strcmp(mode, "subreaper") == 0) {
		prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
		become(argv + 2);
	} else if (strcmp(mode, "signals") == 0)
		signals();
	else if (strcmp(mode, "sigconf") == 0)
		sigconf(argv + 2);
	else if (strcmp(mode, "orphans") == 0) {
		for (int i = 0; i < n; i++)
			orphan(work_exit, argc > 3 ? atoi(argv[3]) : i % 256, NULL);
		vanish();
		printf("gone\n");
	} else if (strcmp(mode, "burst") == 0) {
		burst(n);
		vanish();
		printf("gone\n");
	} else if (strcmp(mode, "leave") == 0) {
		for (int i = 0; i < n; i++)
			orphan(work_sleep, 0, NULL);
	} else if (strcmp(mode, "leave-stubborn") == 0) {
		for (int i = 0; i < n; i++)
			orphan(work_ignore_term, 0, NULL);
	} else if (strcmp(mode, "leave-term") == 0) {
		for (int i = 0; i < n; i++)
			orphan(work_report_term, 0, NULL);
	} else if (strcmp(mode, "name") == 0) {
		orphan(work_exit, argc > 3 ? atoi(argv[3]) : 0, argv[2]);
		vanish();
	} else if (strcmp(mode, "dstate") == 0) {
		orphan(work_dstate, 0, NULL);
		printf("ready %d\n", getpid());
		for (int i = 0;; i++) {
			char c[2];

			if (read(0, c, 1) <= 0)
				break;
			orphan(work_exit, 1, NULL);
			printf("left one\n");
		}
	} else if (strcmp(mode, "setsid") == 0) {
		if (setsid() < 0)
			die("setsid");
		become(argv + 2);
	} else if (strcmp(mode, "group") == 0)
		group();
	else if (strcmp(mode, "closestd") == 0) {
		close(0);
		close(1);
		close(2);
		become(argv + 2);
	} else if (strcmp(mode, "storm") == 0)
		storm(n);
	else if (strcmp(mode, "tty") == 0)
		tty();
	else {
		fprintf(stderr, "prog: no mode %s\n", mode);
		return 99;
	}
	return 0;
}
