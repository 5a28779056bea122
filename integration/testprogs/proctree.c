// proctree: a PID 1 that grows random process trees and writes down whom it forked and what every wait gave. So does each of
// its descendants. integration/lineagecheck compares these logs with what the shim says it reaped.
//
//   proctree -s seed -n processes -d dir [-t threads] [-l late-ms] [-p pace-ms] [-b biggest] [-a] [-g]
//
//   -t  at most that many threads of PID 1 at a time, which come, fork and go (0)
//   -l  the longest time by which PID 1 asks late for the status of a child (3000)
//   -p  the longest pause between two trees (80)
//   -b  the most processes in a tree (12); with 1 all are children of PID 1
//   -a  PID 1 waits for -1 only, and so takes orphans itself
//   -g  PID 1 waits by process group also for children that have some of their own, whose orphans it then takes
//
// The same seed gives the same trees; when their processes run is the kernel's choice. At its end PID 1 logs "done" and
// blocks in poll() for ever.
//
// Each process has a file of its own in dir, <pid>.<start time>.log, and appends a line with one write(2) each, so that a
// line is whole or absent even when its writer is killed. Lines begin with CLOCK_REALTIME in ns:
//
//   init <seed> <processes> <threads> <late> <any>     first line of PID 1
//   born <forker> <its start> <how> <role> <depth>     first line of any other
//   op setsid|setpgid
//   thread start|end <tid>                             of PID 1
//   fork <pid> <start> <how> <role> <policy> <tid>     right after the fork; how: fork, clone3, vfork, cloneparent
//   sibling <pid> <start>                              a child that a child of ours made with CLONE_PARENT
//   kill <pid> <start> <signal>                        right before it
//   wait <how> <asked> <got> <status> <errno>          how: pid, waitid, group, pidfd, any; status: exit:<n>, signal:<n>, -
//   exit <status>                                      what it is about to do
//   done                                               of PID 1
//
// Nothing here uses malloc or stdio after the first fork: PID 1 may have threads, and its children are made with raw system calls.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MY_P_PIDFD 3 // P_PIDFD of linux/wait.h, which old C libraries lack

enum how { FORK, CLONE3, VFORK, CLONEPARENT };
static const char *how_name[] = { "fork", "clone3", "vfork", "cloneparent" };

// What a process does: grow a tree; fork once and end (the middle one of a double fork); the same in a session of its own
// (a daemon's); make a sibling with CLONE_PARENT; nothing but to live and to end.
enum role { TREE, DOUBLE, DAEMON, SIBLINGMAKER, LEAF };
static const char *role_name[] = { "tree", "double", "daemon", "siblingmaker", "leaf" };

enum policy { NOW, LATE, NEVER, KILL };
static const char *policy_name[] = { "now", "late", "never", "kill" };

enum wait_how { W_PID, W_WAITID, W_GROUP, W_PIDFD, W_ANY };
static const char *wait_name[] = { "pid", "waitid", "group", "pidfd", "any" };

// What a process is told by the one that forks it.
struct ctx {
	uint64_t seed;
	int budget; // processes that it and its descendants are
	int depth;  // 1 is a child of PID 1
	enum role role;
	enum how how;
	int doomed; // somebody will kill it
	int group;  // it shall lead a process group
	pid_t forker;
	unsigned long long forker_start;
};

struct kid {
	pid_t pid;
	unsigned long long start;
	enum policy policy;
	enum wait_how wait;
	long long due; // ms
	int pidfd;
	int taken; // somebody is at it, or it has been waited for
};

static const char *dir;
static int late = 3000;
static int log_fd = -1;
static pid_t self;
static unsigned long long self_start;
static int sibling_pipe = -1;

// ---- time and chance -----------------------------------------------------------------------------------------------

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

// Not nanosleep: poll() is what the programs that leak sit in, and what bears interruption.
static void pause_ms(long long ms)
{
	for (long long end = now_ms() + ms, left; (left = end - now_ms()) > 0;)
		poll(NULL, 0, left > INT_MAX ? INT_MAX : (int)left);
}

// splitmix64
static uint64_t chance(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static int below(uint64_t *state, int n)
{
	return n <= 0 ? 0 : (int)(chance(state) % (uint64_t)n);
}

// ---- the log -------------------------------------------------------------------------------------------------------

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
	char line[256];
	struct timespec ts;
	va_list args;
	int n;

	clock_gettime(CLOCK_REALTIME, &ts);
	n = snprintf(line, sizeof line, "%lld%09ld ", (long long)ts.tv_sec, ts.tv_nsec);
	va_start(args, format);
	n += vsnprintf(line + n, sizeof line - n - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	if (write(log_fd, line, n) != n)
		_exit(125); // a log with a hole would accuse the innocent
}

// Field 22 of /proc/<pid>/stat, 0 when there is no such process.
static unsigned long long start_time(pid_t pid)
{
	char path[64], buf[1024], *p;
	int fd, n, field;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof buf - 1);
	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = 0;
	p = strrchr(buf, ')');
	for (field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p + 1, NULL, 10) : 0;
}

static void open_log(void)
{
	char path[512];

	if (log_fd >= 0)
		close(log_fd); // that of the forker
	self = syscall(SYS_getpid);
	self_start = start_time(self);
	snprintf(path, sizeof path, "%s/%d.%llu.log", dir, (int)self, self_start);
	log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (log_fd < 0)
		_exit(126);
}

// ---- forking -------------------------------------------------------------------------------------------------------

static void node(struct ctx *c) __attribute__((noreturn));

// A function of its own: the child borrows this stack frame until it has called execve.
static __attribute__((noinline)) pid_t vfork_exec(char *const argv[], int group)
{
	static char *const env[] = { NULL };
	pid_t pid = vfork();

	if (pid == 0) {
		if (group)
			setpgid(0, 0);
		execve("/proc/self/exe", argv, env);
		_exit(127);
	}
	return pid;
}

static pid_t spawn_vfork(const struct ctx *c)
{
	char args[160], late_arg[16];
	char *argv[] = { "proctree", "-d", (char *)dir, "-l", late_arg, "-W", args, NULL };

	snprintf(late_arg, sizeof late_arg, "%d", late);
	snprintf(args, sizeof args, "%llu %d %d %d %d %d %d %d %llu", (unsigned long long)c->seed, c->budget, c->depth, c->role,
		c->how, c->doomed, c->group, (int)c->forker, c->forker_start);
	return vfork_exec(argv, c->group);
}

// Forks as c says and logs it. In the child it does not return.
static void spawn(struct ctx *c, struct kid *k)
{
	int fd = -1;
	pid_t pid;

	c->forker = self;
	c->forker_start = self_start;
	c->group = k->wait == W_GROUP;
	c->doomed = k->policy == KILL;
	switch (c->how) {
	case VFORK:
		pid = spawn_vfork(c);
		break;
	case CLONE3: {
		struct clone_args a = { .exit_signal = SIGCHLD };

		if (k->wait == W_PIDFD) {
			a.flags = CLONE_PIDFD;
			a.pidfd = (uintptr_t)&fd;
		}
		pid = syscall(SYS_clone3, &a, sizeof a);
		break;
	}
	case CLONEPARENT:
		pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
		break;
	default:
		pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	}
	if (pid == 0)
		node(c);
	if (pid < 0) {
		note("error fork %d", errno);
		_exit(124);
	}
	if (c->group)
		setpgid(pid, pid); // as shells do: whoever of the two comes first
	k->pid = pid;
	k->start = start_time(pid);
	// A descriptor is opened at once for those that are waited for soon, and just before the wait for the others, when the
	// child is long dead.
	if (k->wait == W_PIDFD && k->policy == NOW && fd < 0)
		fd = syscall(SYS_pidfd_open, pid, 0);
	if (k->policy == NEVER && fd >= 0) {
		close(fd);
		fd = -1;
	}
	k->pidfd = fd;
	note("fork %d %llu %s %s %s %d", (int)pid, k->start, how_name[c->how], role_name[c->role], policy_name[k->policy],
		(int)syscall(SYS_gettid));
}

// ---- waiting -------------------------------------------------------------------------------------------------------

static void note_wait(enum wait_how how, long asked, long got, int status, int err)
{
	if (got > 0 && WIFSIGNALED(status))
		note("wait %s %ld %ld signal:%d 0", wait_name[how], asked, got, WTERMSIG(status));
	else if (got > 0)
		note("wait %s %ld %ld exit:%d 0", wait_name[how], asked, got, WEXITSTATUS(status));
	else
		note("wait %s %ld 0 - %d", wait_name[how], asked, err);
}

static pid_t wait_id(int type, int id, int *status)
{
	siginfo_t si = { 0 };

	if (waitid(type, id, &si, WEXITED) < 0)
		return -1;
	*status = si.si_code == CLD_EXITED ? (si.si_status & 0xff) << 8 : si.si_status & 0x7f;
	return si.si_pid;
}

// Waits until it has the status of k, and says what it got on the way. Those in kids that it gets for -1 are marked as well.
static void wait_kid(struct kid *k, struct kid *kids, int n)
{
	k->taken = 1;
	for (;;) {
		pid_t got = -1;
		int status = 0;
		long asked = k->pid;

		switch (k->wait) {
		case W_PID: got = waitpid(k->pid, &status, 0); break;
		case W_WAITID: got = wait_id(P_PID, k->pid, &status); break;
		case W_GROUP:
			asked = -k->pid;
			got = waitpid(-k->pid, &status, 0);
			break;
		case W_PIDFD:
			if (k->pidfd < 0)
				k->pidfd = syscall(SYS_pidfd_open, k->pid, 0); // fails when the child has been reaped
			if (k->pidfd >= 0)
				got = wait_id(MY_P_PIDFD, k->pidfd, &status);
			break;
		case W_ANY:
			asked = -1;
			got = waitpid(-1, &status, 0);
			break;
		}
		int err = got < 0 ? errno : 0;

		note_wait(k->wait, asked, got, status, err);
		if (err == EINTR)
			continue;
		for (int i = 0; got > 0 && i < n; i++)
			if (kids[i].pid == got)
				kids[i].taken = 1;
		if (got == k->pid || got < 0)
			break;
	}
	if (k->pidfd >= 0)
		close(k->pidfd);
	k->pidfd = -1;
}

static void kill_kid(struct kid *k)
{
	note("kill %d %llu %d", (int)k->pid, k->start, SIGKILL);
	kill(k->pid, SIGKILL);
}

// ---- a process of a tree -------------------------------------------------------------------------------------------

static void end(uint64_t *r) __attribute__((noreturn));
static void end(uint64_t *r)
{
	static const int signals[] = { SIGKILL, SIGTERM, SIGUSR1, SIGHUP };

	if (below(r, 4) == 0) {
		int sig = signals[below(r, 4)];

		note("exit signal:%d", sig);
		signal(sig, SIG_DFL); /* whoever started us may ignore it: nohup does */
		kill(self, sig);
		for (;;)
			pause();
	}
	int code = below(r, 3) ? below(r, 256) : 0;

	note("exit exit:%d", code);
	_exit(code);
}

static void live(uint64_t *r)
{
	int kind = below(r, 20);

	if (kind < 10)
		return;
	pause_ms(kind < 15 ? below(r, 20) : kind < 19 ? below(r, 200) : below(r, 1500));
}

// How the next child is made and what becomes of it, for everybody but PID 1.
static void choose(uint64_t *r, struct ctx *c, struct kid *k)
{
	static const enum wait_how waits[] = { W_PID, W_WAITID, W_GROUP, W_PIDFD, W_ANY };
	static const enum how hows[] = { FORK, FORK, CLONE3, VFORK };
	int p = below(r, 10);

	c->seed = chance(r);
	c->how = hows[below(r, 4)];
	c->role = TREE;
	if (c->budget > 1) {
		int role = below(r, 10);

		c->role = role < 2 ? DOUBLE : role < 4 ? DAEMON : TREE;
	}
	*k = (struct kid){ .pidfd = -1 };
	k->policy = p < 3 ? NOW : p < 6 ? LATE : p < 9 ? NEVER : KILL;
	k->wait = waits[below(r, 5)];
}

// A child of ours forks with CLONE_PARENT, which gives us a second one. We live until both are done: were we to die first, its parent
// and so that of what it forks would be PID 1, which no rule but the proc connector can see.
static void sibling_pair(uint64_t *r, int depth)
{
	struct ctx c = { .seed = chance(r), .budget = 2, .depth = depth + 1, .role = SIBLINGMAKER, .how = FORK };
	struct kid kids[2] = { { .policy = NOW, .wait = W_PID, .pidfd = -1 }, { .policy = NOW, .wait = W_PID, .pidfd = -1 } };
	int fds[2];
	pid_t pid = 0;

	if (pipe2(fds, O_CLOEXEC) < 0)
		_exit(124);
	sibling_pipe = fds[1];
	spawn(&c, &kids[0]);
	close(fds[1]);
	sibling_pipe = -1;
	if (read(fds[0], &pid, sizeof pid) == sizeof pid) {
		kids[1].pid = pid;
		kids[1].start = start_time(pid);
		note("sibling %d %llu", (int)pid, kids[1].start);
		wait_kid(&kids[1], kids, 2);
	}
	close(fds[0]);
	wait_kid(&kids[0], kids, 2);
}

static void node(struct ctx *c)
{
	uint64_t r = c->seed;
	struct kid kids[32];
	int n = 0, left = c->budget - 1;

	open_log();
	note("born %d %llu %s %s %d", (int)c->forker, c->forker_start, how_name[c->how], role_name[c->role], c->depth);
	if (c->group)
		setpgid(0, 0);
	switch (c->role) {
	case SIBLINGMAKER: {
		struct ctx s = { .seed = chance(&r), .budget = 1, .depth = c->depth, .role = LEAF, .how = CLONEPARENT };
		struct kid k = { .policy = NEVER, .wait = W_PID, .pidfd = -1 };

		spawn(&s, &k);
		if (write(sibling_pipe, &k.pid, sizeof k.pid) != sizeof k.pid)
			_exit(124);
		close(sibling_pipe);
		live(&r);
		end(&r);
	}
	case DAEMON:
		if (setsid() >= 0)
			note("op setsid");
		// fall through
	case DOUBLE: {
		struct ctx s = { .seed = chance(&r), .budget = left, .depth = c->depth + 1, .role = TREE,
			.how = below(&r, 2) ? FORK : CLONE3 };
		struct kid k = { .policy = NEVER, .wait = W_PID, .pidfd = -1 };

		spawn(&s, &k);
		end(&r);
	}
	case LEAF:
		close(sibling_pipe);
		live(&r);
		end(&r);
	case TREE:
		break;
	}
	int op = below(&r, 10);

	if (op < 2 && setsid() >= 0)
		note("op setsid");
	else if (op < 4 && setpgid(0, 0) == 0)
		note("op setpgid");

	while (left > 0 && n < 32) {
		// Who is to be killed may die before the pair is done.
		if (left >= 2 && !c->doomed && below(&r, 5) == 0) {
			sibling_pair(&r, c->depth);
			left -= 2;
			continue;
		}
		struct ctx child = { .budget = 1 + below(&r, left), .depth = c->depth + 1 };

		left -= child.budget;
		choose(&r, &child, &kids[n]);
		spawn(&child, &kids[n]);
		n++;
		if (kids[n - 1].policy == NOW)
			wait_kid(&kids[n - 1], kids, n);
		else if (below(&r, 3) == 0)
			pause_ms(below(&r, 30));
	}
	for (int i = 0; i < n; i++) {
		if (kids[i].taken)
			continue;
		if (kids[i].policy == KILL) {
			pause_ms(below(&r, 100));
			kill_kid(&kids[i]);
			if (below(&r, 3))
				wait_kid(&kids[i], kids, n);
		} else if (kids[i].policy == LATE) {
			int longest = c->depth == 1 && below(&r, 8) == 0 ? late : 300;

			pause_ms(below(&r, longest));
			wait_kid(&kids[i], kids, n);
		}
	}
	live(&r);
	end(&r);
}

// ---- PID 1 ---------------------------------------------------------------------------------------------------------

static struct {
	pthread_mutex_t mu;
	struct kid *kids; // those that are waited for later
	int n, threads;
	int running;
	int any, group;
	uint64_t seed;
} init = { .mu = PTHREAD_MUTEX_INITIALIZER };

// Forks the job-th tree of PID 1. Its child is waited for at once or put into the list.
static void job(int number, int budget)
{
	static const enum wait_how waits[] = { W_PID, W_WAITID, W_GROUP, W_PIDFD };
	uint64_t r = init.seed * 1000003ULL + number;
	struct ctx c = { .budget = budget, .depth = 1 };
	struct kid k;
	int p;

	chance(&r);
	choose(&r, &c, &k);
	p = below(&r, 20);
	k.policy = p < 4 ? NOW : p < 14 ? LATE : p < 18 ? NEVER : KILL;
	k.wait = init.any ? W_ANY : waits[below(&r, 4)];
	if (k.wait == W_GROUP && budget > 1 && !init.group)
		k.wait = W_WAITID;
	k.due = now_ms() + (k.policy == KILL ? below(&r, 300) : below(&r, late));
	spawn(&c, &k);
	if (k.policy == NOW && !init.any) {
		wait_kid(&k, NULL, 0);
		return;
	}
	pthread_mutex_lock(&init.mu);
	struct kid *stored = &init.kids[init.n++];
	*stored = k;
	pthread_mutex_unlock(&init.mu);
	if (k.policy == NOW)
		wait_kid(stored, init.kids, init.n);
}

// Waits for a child whose time has come. Returns how long it is to the next one, in ms, or -1 when nobody is left.
static long long due(void)
{
	struct kid *k = NULL;
	long long now = now_ms(), next = -1;

	pthread_mutex_lock(&init.mu);
	for (int i = 0; i < init.n; i++) {
		struct kid *e = &init.kids[i];

		if (e->taken || e->policy == NEVER)
			continue;
		if (next < 0 || e->due < next) {
			next = e->due;
			k = e;
		}
	}
	if (k && next <= now)
		k->taken = 1;
	pthread_mutex_unlock(&init.mu);
	if (!k)
		return -1;
	if (next > now)
		return next - now;
	if (k->policy == KILL)
		kill_kid(k);
	// Without -a nobody but us waits for it, and the list is not touched.
	wait_kid(k, init.any ? init.kids : NULL, init.any ? init.n : 0);
	return 0;
}

struct batch {
	int first, count;
	int budget[4];
};

static void *worker(void *arg)
{
	struct batch b = *(struct batch *)arg;
	uint64_t r = init.seed ^ (uint64_t)b.first << 32;

	free(arg);
	note("thread start %d", (int)syscall(SYS_gettid));
	for (int i = 0; i < b.count; i++) {
		job(b.first + i, b.budget[i]);
		pause_ms(below(&r, 60));
		if (below(&r, 2))
			due();
	}
	if (below(&r, 3) == 0)
		pause_ms(below(&r, 1500)); // its children hang on its list for that long
	note("thread end %d", (int)syscall(SYS_gettid));
	pthread_mutex_lock(&init.mu);
	init.running--;
	pthread_mutex_unlock(&init.mu);
	return NULL;
}

static int running(void)
{
	pthread_mutex_lock(&init.mu);
	int n = init.running;
	pthread_mutex_unlock(&init.mu);
	return n;
}

static void start_thread(struct batch *b)
{
	pthread_attr_t attr;
	pthread_t t;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_mutex_lock(&init.mu);
	init.running++;
	pthread_mutex_unlock(&init.mu);
	if (pthread_create(&t, &attr, worker, b) != 0)
		_exit(124);
	pthread_attr_destroy(&attr);
}

int main(int argc, char **argv)
{
	int processes = 100, pace = 80, biggest = 12, opt, number = 0;
	const char *child = NULL;

	while ((opt = getopt(argc, argv, "s:n:t:d:l:p:b:agW:")) != -1) {
		switch (opt) {
		case 's': init.seed = strtoull(optarg, NULL, 10); break;
		case 'n': processes = atoi(optarg); break;
		case 't': init.threads = atoi(optarg); break;
		case 'd': dir = optarg; break;
		case 'l': late = atoi(optarg); break;
		case 'p': pace = atoi(optarg); break;
		case 'b': biggest = atoi(optarg); break;
		case 'a': init.any = 1; break;
		case 'g': init.group = 1; break;
		case 'W': child = optarg; break;
		default: return 2;
		}
	}
	// A child that a thread has just forked could be taken before its fork is in the log.
	if (!dir || (init.any && init.threads))
		return 2;
	if (child) { // after vfork
		struct ctx c;
		unsigned long long seed;
		int role, how, forker;

		if (sscanf(child, "%llu %d %d %d %d %d %d %d %llu", &seed, &c.budget, &c.depth, &role, &how, &c.doomed, &c.group,
			&forker, &c.forker_start) != 9)
			return 2;
		c.seed = seed;
		c.role = role;
		c.how = how;
		c.forker = forker;
		node(&c);
	}

	struct rlimit none = { 0, 0 };
	setrlimit(RLIMIT_CORE, &none);
	init.kids = calloc(processes + 1, sizeof *init.kids);
	open_log();
	note("init %llu %d %d %d %d", (unsigned long long)init.seed, processes, init.threads, late, init.any);

	uint64_t r = init.seed;
	for (int left = processes; left > 0;) {
		struct batch b = { .first = number, .count = init.threads ? 1 + below(&r, 4) : 1 };
		int threaded = init.threads && below(&r, 2), wait = below(&r, pace);

		for (int i = 0; i < b.count; i++) {
			b.budget[i] = left > 0 ? 1 + below(&r, left < biggest ? left : biggest) : 0;
			left -= b.budget[i];
			if (b.budget[i] == 0)
				b.count = i;
		}
		number += b.count;
		if (threaded && running() < init.threads) {
			struct batch *copy = malloc(sizeof *copy);

			if (!copy)
				return 3;
			*copy = b;
			start_thread(copy);
		} else {
			for (int i = 0; i < b.count; i++)
				job(b.first + i, b.budget[i]);
		}
		while (due() == 0)
			;
		pause_ms(wait);
	}
	for (long long next; (next = due()) >= 0 || running() > 0;)
		pause_ms(next > 0 && next < 20 ? next : next == 0 ? 0 : 20);
	note("done");
	for (;;)
		poll(NULL, 0, -1);
}
