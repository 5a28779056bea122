/*
 * reaper-init: the first process of a container. It starts one program, forwards signals to it, reaps whatever is left to it,
 * and ends as the program ends. docs/init.md says how, and why.
 *
 * One thread, no heap, no signal handlers: all signals are blocked and taken one by one with rt_sigtimedwait(2), which
 * sleeps until there is one. Nothing that it calls after the program runs waits for another process, except that sleep.
 */
#include "parse.h"
#include "sys.h"

#ifndef VERSION
#define VERSION "dev"
#endif

#define NAME "reaper-init"
#define EXIT_USAGE 1
#define EXIT_CANNOT_RUN 126 /* as a shell says it; POSIX, Shell Command Language 2.8.2 */
#define EXIT_NOT_FOUND 127
#define SIGNAL_BASE 128

/* One turn of the loop reaps so many, and then looks for signals again: a storm of exits must not hold up a SIGTERM. */
#define REAP_BATCH 64
/* After the program has ended, zombies that are there already are still reaped and reported; but not for ever. */
#define LAST_BATCHES 16

/* The report to the shim: docs/init.md. Little endian, as both architectures are. */
#define REPORT_MAGIC 0x314e4952u /* RIN1 */
#define REPORT_ORPHAN 1u
#define REPORT_SUMMARY 2u
#define REPORT_BATCH 32
#define REPORT_ENV "REAPER_INIT_REPORT"
/* A shim that went away is looked for at most so often, and only when there is something to do anyway. */
#define RECONNECT_NS 1000000000ull

struct record {
	uint32_t magic;
	uint32_t kind;
	uint32_t pid;
	int32_t status;
	uint64_t reaped;
	uint64_t dropped;
	char comm[COMM_SIZE];
	uint64_t starttime;
	uint64_t reserved;
};
_Static_assert(sizeof(struct record) == 64, "size of a report");

enum level { FATAL, WARN, INFO, DEBUG, TRACE };

static struct {
	unsigned verbosity;
	int group;       /* -g */
	int subreaper;   /* -s */
	int warn_reap;   /* -w */
	int wait_all;    /* -W */
	int kill_left;   /* -k */
	int death_signal;
	uint8_t success[256 / 8];      /* -e: these exit codes become 0 */
	uint8_t rewrite[SIG_MAX + 1];  /* -r: what is sent for signal n; 0 is nothing */
	const char *report_path;
} opt;

static char **environment;
static int self;        /* own PID, in the own namespace */
static int child;       /* the program's */
static int child_ended;
static int child_status;
static int own_job;     /* the program took the terminal over from our process group, which a shell controls */
static int proc_fd = -1;
static sigmask old_mask;
static struct ksigaction old_chld;

static int report_fd = -1;
static int reporting;
static uint64_t last_connect;
static uint64_t reaped_total;
static uint64_t dropped_total;
static unsigned pending;
static struct record records[REPORT_BATCH];

/* ---- messages ------------------------------------------------------------------------------------------------------- */

static char line[512];
static size_t line_len;

static void put(const char *text)
{
	/* Room for the newline. */
	for (size_t i = 0; text[i] != '\0' && line_len < sizeof(line) - 1; i++)
		line[line_len++] = text[i];
}

static void put_number(long n)
{
	char digits[21];

	if (n < 0)
		put("-");
	format_number(n < 0 ? 0 - (uint64_t)n : (uint64_t)n, digits);
	put(digits);
}

/* What others chose: nothing in it may reach a terminal as a command. */
static void put_foreign(const char *text)
{
	char c[2] = "";

	for (size_t i = 0; text[i] != '\0'; i++) {
		c[0] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
		put(c);
	}
}

static const struct {
	int number;
	char text[28];
} errors[] = {
	{ EPERM, "Operation not permitted" }, { ENOENT, "No such file or directory" }, { EIO, "Input/output error" },
	{ E2BIG, "Argument list too long" }, { ENOEXEC, "Exec format error" }, { EAGAIN, "Too many processes" },
	{ ENOMEM, "Cannot allocate memory" }, { EACCES, "Permission denied" }, { ENOTDIR, "Not a directory" },
	{ EISDIR, "Is a directory" }, { EINVAL, "Invalid argument" }, { ETXTBSY, "Text file busy" },
	{ ENAMETOOLONG, "File name too long" }, { ELOOP, "Too many symbolic links" }, { ECONNREFUSED, "Connection refused" },
	{ ECONNRESET, "Connection reset" }, { EPIPE, "Broken pipe" },
};

static void put_error(long error)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		if (errors[i].number == error) {
			put(errors[i].text);
			return;
		}
	}
	put("error ");
	put_number(error);
}

static void put_signal(int sig)
{
	const char *name = signal_name(sig);

	if (*name == '\0') {
		put("signal ");
		put_number(sig);
		return;
	}
	put("SIG");
	put(name);
}

static int begin(enum level level)
{
	static const char tags[][6] = { "FATAL", "WARN ", "INFO ", "DEBUG", "TRACE" };

	if (opt.verbosity < (unsigned)level)
		return 0;
	line_len = 0;
	put("[");
	put(tags[level]);
	put(" " NAME " (");
	put_number(self);
	put(")] ");
	return 1;
}

/* A reader that does not read must not stop the reaping: what does not fit is not said. */
static void end(void)
{
	struct pollfd fd = { .fd = 2, .events = POLLOUT };
	struct timespec now = { 0 };

	line[line_len++] = '\n';
	if (sys6(__NR_ppoll, (long)&fd, 1, (long)&now, 0, SIGMASK_SIZE, 0) > 0 && (fd.revents & POLLOUT) != 0)
		sys(__NR_write, 2, line, line_len, 0);
}

static void say(enum level level, const char *text)
{
	if (begin(level)) {
		put(text);
		end();
	}
}

static void say_error(enum level level, const char *text, long error)
{
	if (begin(level)) {
		put(text);
		put(": ");
		put_error(error);
		end();
	}
}

/* ---- command line and environment ----------------------------------------------------------------------------------- */

static const char usage_text[] =
	"Usage: " NAME " [OPTIONS] [--] PROGRAM [ARGS...]\n"
	"       " NAME " --version | --help | --license\n"
	"\n"
	"Runs PROGRAM under the supervision of a valid init process: forwards signals to it, reaps what others\n"
	"leave behind, and ends as PROGRAM ends.\n"
	"\n"
	"  -s           be a subreaper (done by itself when this is not PID 1; an error if it fails)\n"
	"  -g           send signals to the process group of PROGRAM\n"
	"  -p SIGNAL    be sent SIGNAL when the parent dies\n"
	"  -e CODE      end with 0 when PROGRAM ends with CODE (0 to 255; repeatable)\n"
	"  -r OLD:NEW   send NEW for OLD, or nothing when NEW is 0 (repeatable)\n"
	"  -W           when PROGRAM has ended, wait for all that is left, and forward signals to it\n"
	"  -k           when PROGRAM has ended, kill all that is left; with -W, send it SIGTERM and wait\n"
	"  -w           warn about each process that is reaped\n"
	"  -v           more verbose output; up to three times\n"
	"  -R SOCKET    report what is reaped to this Unix socket\n"
	"  -l           show the license\n"
	"  -h           show this text\n"
	"\n"
	"Environment: TINI_SUBREAPER (-s), TINI_KILL_PROCESS_GROUP (-g), TINI_VERBOSITY (0 to 4, default 1),\n"
	REPORT_ENV " (-R).\n"
	"Exit code: PROGRAM's; 128+n if signal n killed it; 126 if it cannot be run, 127 if it is not found.\n";

static const char version_text[] = NAME " " VERSION ", takes the options of tini version 0.19.0\n";

static const char license_text[] =
	NAME " is part of containerd-shim-reaper-v2.\n"
	"Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0\n";

static int show(int fd, const char *text, size_t size, int status)
{
	sys(__NR_write, fd, text, size - 1, 0);
	return status;
}
#define SHOW(fd, text, status) show((fd), (text), sizeof(text), (status))

static int refuse(char option, const char *value)
{
	if (begin(FATAL)) {
		char name[2] = { option, '\0' };

		put("Not a valid value for -");
		put(name);
		put(": ");
		put_foreign(value);
		end();
	}
	return EXIT_USAGE;
}

static int set_option(char option, const char *value)
{
	uint32_t code;
	int from;
	int to;

	switch (option) {
	case 'p':
		opt.death_signal = parse_signal(value);
		return opt.death_signal > 0 ? -1 : refuse(option, value);
	case 'e':
		if (parse_number(value, 255, &code) != 0)
			return refuse(option, value);
		opt.success[code / 8] = (uint8_t)(opt.success[code / 8] | 1u << code % 8);
		return -1;
	case 'r':
		if (parse_rewrite(value, &from, &to) != 0)
			return refuse(option, value);
		opt.rewrite[from] = (uint8_t)to;
		return -1;
	default:
		opt.report_path = value;
		return -1;
	}
}

/* Returns the index of PROGRAM, or -1 when *status is to be the end of it. Options end at the first word that is none. */
static int parse_args(int argc, char **argv, int *status)
{
	int i = 1;

	for (; i < argc && argv[i][0] == '-' && argv[i][1] != '\0'; i++) {
		if (text_equal(argv[i], "--")) {
			i++;
			break;
		}
		if (argv[i][1] == '-') {
			if (text_equal(argv[i], "--version"))
				*status = SHOW(1, version_text, 0);
			else if (text_equal(argv[i], "--help"))
				*status = SHOW(1, usage_text, 0);
			else if (text_equal(argv[i], "--license"))
				*status = SHOW(1, license_text, 0);
			else
				*status = SHOW(2, usage_text, EXIT_USAGE);
			return -1;
		}
		for (const char *o = argv[i] + 1; *o != '\0'; o++) {
			const char *value = o + 1;

			switch (*o) {
			case 's':
				opt.subreaper = 1;
				continue;
			case 'g':
				opt.group = 1;
				continue;
			case 'w':
				opt.warn_reap = 1;
				continue;
			case 'W':
				opt.wait_all = 1;
				continue;
			case 'k':
				opt.kill_left = 1;
				continue;
			case 'v':
				opt.verbosity++;
				continue;
			case 'h':
				*status = SHOW(1, usage_text, 0);
				return -1;
			case 'l':
				*status = SHOW(1, license_text, 0);
				return -1;
			case 'p':
			case 'e':
			case 'r':
			case 'R':
				break;
			default:
				*status = SHOW(2, usage_text, EXIT_USAGE);
				return -1;
			}
			/* The value is the rest of this word, or the next one. */
			if (*value == '\0') {
				if (++i >= argc) {
					*status = SHOW(2, usage_text, EXIT_USAGE);
					return -1;
				}
				value = argv[i];
			}
			*status = set_option(*o, value);
			if (*status >= 0)
				return -1;
			break;
		}
	}
	if (i >= argc) {
		*status = SHOW(2, usage_text, EXIT_USAGE);
		return -1;
	}
	return i;
}

static const char *get_env(const char *name)
{
	for (char **e = environment; *e != NULL; e++) {
		const char *value = env_value(*e, name);

		if (value != NULL)
			return value;
	}
	return NULL;
}

static void drop_env(const char *name)
{
	char **to = environment;

	for (char **from = environment; *from != NULL; from++) {
		if (env_value(*from, name) == NULL)
			*to++ = *from;
	}
	*to = NULL;
}

static void parse_env(void)
{
	const char *verbosity = get_env("TINI_VERBOSITY");
	const char *report = get_env(REPORT_ENV);
	uint32_t level;

	if (get_env("TINI_SUBREAPER") != NULL)
		opt.subreaper = 1;
	if (get_env("TINI_KILL_PROCESS_GROUP") != NULL)
		opt.group = 1;
	if (verbosity != NULL)
		opt.verbosity = parse_number(verbosity, TRACE, &level) == 0 ? level : 0;
	if (report != NULL && *report != '\0' && opt.report_path == NULL)
		opt.report_path = report;
	drop_env(REPORT_ENV);
}

/* ---- files ---------------------------------------------------------------------------------------------------------- */

/* Without standard streams the next file would get a number of theirs, and messages would be written into it. */
static int above_stdio(long fd)
{
	if (fd < 0 || fd > 2)
		return (int)fd;
	long high = sys(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 3, 0);

	sys(__NR_close, fd, 0, 0, 0);
	return (int)high;
}

/*
 * /proc is held open from before the program starts: what the program may mount over it later is not followed. It must be
 * procfs, and that of the own PID namespace: in another one the same number is another process.
 */
static void open_proc(void)
{
	struct statfs fs;
	char number[24];
	char own[24];
	int fd = above_stdio(sys(__NR_openat, AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0));

	if (fd < 0)
		return;
	long n = sys(__NR_readlinkat, fd, "self", number, sizeof(number) - 1);

	if (n > 0) {
		number[n] = '\0';
		format_number((uint64_t)self, own);
		if (sys(__NR_fstatfs, fd, &fs, 0, 0) == 0 && fs.f_type == PROC_SUPER_MAGIC && text_equal(number, own)) {
			proc_fd = fd;
			return;
		}
	}
	sys(__NR_close, fd, 0, 0, 0);
}

static int open_below_proc(const char *name)
{
	struct open_how how = { .flags = O_RDONLY | O_CLOEXEC, .resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS };
	long fd = sys(__NR_openat2, proc_fd, name, &how, sizeof(how));

	/* Linux before 5.6, or a seccomp profile that does not know it. */
	if (fd == -ENOSYS || fd == -EPERM)
		fd = sys(__NR_openat, proc_fd, name, O_RDONLY | O_CLOEXEC, 0);
	return (int)fd;
}

/* comm and start time of a child that is a zombie. 0, or -1 when they cannot be had. */
static int read_stat(int pid, struct proc_stat *stat)
{
	static char text[1024];
	char name[21 + sizeof("/stat")];
	size_t n = format_number((uint64_t)pid, name);

	if (proc_fd < 0)
		return -1;
	memcpy(name + n, "/stat", sizeof("/stat"));
	int fd = open_below_proc(name);

	if (fd < 0)
		return -1;
	long len = sys(__NR_read, fd, text, sizeof(text), 0);

	sys(__NR_close, fd, 0, 0, 0);
	if (len <= 0 || parse_stat(text, (size_t)len, stat) != 0)
		return -1;
	return stat->ppid == (uint32_t)self ? 0 : -1;
}

/* The program's pipes and files are not ours to hold open. Standard error is, for messages, and the terminal of a job. */
static void close_files(void)
{
	int keep[4] = { own_job ? 0 : -1, 2, proc_fd, report_fd };
	int from = 0;

	for (;;) {
		int next = -1;

		for (size_t i = 0; i < sizeof(keep) / sizeof(keep[0]); i++) {
			if (keep[i] >= from && (next < 0 || keep[i] < next))
				next = keep[i];
		}
		unsigned last = next < 0 ? ~0u : (unsigned)next - 1;

		if (next != from && sys(__NR_close_range, from, last, 0, 0) < 0) {
			/* Linux before 5.9. */
			for (unsigned fd = (unsigned)from; fd <= last && fd < 4096; fd++)
				sys(__NR_close, fd, 0, 0, 0);
		}
		if (next < 0)
			return;
		from = next + 1;
	}
}

/* ---- the report to the shim ----------------------------------------------------------------------------------------- */

static void add_record(uint32_t kind, int pid, int status, const struct proc_stat *stat)
{
	struct record *r = &records[pending++];

	memset(r, 0, sizeof(*r));
	r->magic = REPORT_MAGIC;
	r->kind = kind;
	r->pid = (uint32_t)pid;
	r->status = status;
	r->reaped = reaped_total;
	r->dropped = dropped_total;
	if (stat != NULL) {
		memcpy(r->comm, stat->comm, COMM_SIZE);
		r->starttime = stat->starttime;
	}
}

static uint64_t now_ns(void)
{
	struct __kernel_timespec t = { 0 };

	sys(__NR_clock_gettime, CLOCK_MONOTONIC, &t, 0, 0);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void connect_report(void)
{
	struct sockaddr_un address = { .sun_family = REAPER_AF_UNIX };
	size_t len = text_len(opt.report_path);
	uint64_t now = now_ns();

	if (last_connect != 0 && now - last_connect < RECONNECT_NS)
		return;
	last_connect = now;
	int fd = above_stdio(sys(__NR_socket, REAPER_AF_UNIX, REAPER_SOCK_SEQPACKET | REAPER_SOCK_CLOEXEC | REAPER_SOCK_NONBLOCK, 0, 0));

	if (fd < 0) {
		say_error(WARN, "No socket for the report", -fd);
		return;
	}
	memcpy(address.sun_path, opt.report_path, len + 1);
	long ret = sys(__NR_connect, fd, &address, sizeof(address), 0);

	if (ret < 0) {
		say_error(INFO, "Nobody takes the report", -ret);
		sys(__NR_close, fd, 0, 0, 0);
		return;
	}
	report_fd = fd;
}

static void close_report(void)
{
	if (report_fd >= 0)
		sys(__NR_close, report_fd, 0, 0, 0);
	report_fd = -1;
}

static long send_records(const struct record *r, unsigned count)
{
	return sys6(__NR_sendto, report_fd, (long)r, (long)(count * sizeof(*r)), REAPER_MSG_NOSIGNAL | REAPER_MSG_DONTWAIT, 0, 0);
}

/* Sends what is pending. What the shim has no room for, or what nobody takes, is counted and forgotten. */
static void flush_report(void)
{
	long ret = -EPIPE;

	if (pending == 0)
		return;
	if (report_fd >= 0)
		ret = send_records(records, pending);
	if (ret < 0 && ret != -EAGAIN && ret != -ENOBUFS && ret != -ENOMEM) {
		close_report();
		connect_report();
		if (report_fd >= 0)
			ret = send_records(records, pending);
	}
	if (ret < 0)
		dropped_total += pending;
	pending = 0;
}

static void start_report(void)
{
	struct sockaddr_un address;

	if (opt.report_path == NULL)
		return;
	if (opt.report_path[0] != '/' || text_len(opt.report_path) >= sizeof(address.sun_path)) {
		say(WARN, "The path of the report's socket is not absolute or too long: nothing is reported");
		return;
	}
	reporting = 1;
	connect_report();
	add_record(REPORT_SUMMARY, 0, 0, NULL);
	if (report_fd >= 0)
		flush_report();
	pending = 0;
}

/* ---- signals -------------------------------------------------------------------------------------------------------- */

/*
 * To all that is left. As PID 1 that is everyone in the namespace; otherwise kill(-1) would mean the whole machine, so it
 * is the own children, and whoever remains of the program's process group where /proc cannot tell.
 */
static void broadcast(int sig)
{
	static char text[4096];
	char name[64];
	size_t n;
	size_t have = 0;
	int fd = -1;

	if (self == 1) {
		sys(__NR_kill, -1, sig, 0, 0);
		return;
	}
	if (proc_fd >= 0) {
		n = format_number((uint64_t)self, name);
		memcpy(name + n, "/task/", 6);
		n += 6;
		n += format_number((uint64_t)self, name + n);
		memcpy(name + n, "/children", sizeof("/children"));
		fd = open_below_proc(name);
	}
	if (fd < 0) {
		sys(__NR_kill, -child, sig, 0, 0);
		return;
	}
	for (;;) {
		long got = sys(__NR_read, fd, text + have, sizeof(text) - have, 0);
		size_t pos = 0;
		size_t done = 0;
		uint32_t pid;

		if (got <= 0)
			break;
		have += (size_t)got;
		while ((pid = next_pid(text, have, &pos)) != 0) {
			sys(__NR_kill, pid, sig, 0, 0);
			done = pos;
		}
		/* The last number may be cut. */
		have -= done;
		for (size_t i = 0; i < have; i++)
			text[i] = text[done + i];
	}
	sys(__NR_close, fd, 0, 0, 0);
}

static void send_signal(int sig, siginfo_t *info)
{
	long ret = -EINVAL;

	if (child_ended) {
		broadcast(sig);
		return;
	}
	if (opt.group) {
		ret = sys(__NR_kill, -child, sig, 0, 0);
		/* The program may have joined another group. */
		if (ret != -ESRCH)
			goto sent;
	} else if (info->si_code < 0 && info->si_code != SI_TKILL) {
		/* sigqueue(3) and its like carry a value. The kernel lets it pass on: kernel/signal.c, do_rt_sigqueueinfo. */
		info->si_signo = sig;
		ret = sys(__NR_rt_sigqueueinfo, child, sig, info, 0);
	}
	if (ret < 0)
		ret = sys(__NR_kill, child, sig, 0, 0);
sent:
	/* The program can be one that we may not signal, set-user-ID for example. That is no reason to end. */
	if (ret < 0)
		say_error(WARN, "Cannot forward a signal", -ret);
}

static void set_foreground(int group)
{
	sys(__NR_ioctl, 0, TIOCSPGRP, &group, 0);
}

static int foreground(void)
{
	int group = -1;

	return sys(__NR_ioctl, 0, TIOCGPGRP, &group, 0) == 0 ? group : -1;
}

/* Stop together with the program, so that a shell sees its job stop. PID 1 of a namespace cannot be stopped from inside. */
static void suspend(void)
{
	siginfo_t info;

	if (self == 1)
		return;
	sys(__NR_kill, self, SIGSTOP, 0, 0);
	/* Continued. That the program stopped as well is no news now. */
	sys6(__NR_waitid, P_PID, child, (long)&info, WSTOPPED | WNOHANG, 0, 0);
}

static void forward(int sig, siginfo_t *info)
{
	int to = opt.rewrite[sig];

	/* Our own message's fault: a pipe without reader, or a file at the limit of its size. */
	if ((sig == SIGPIPE || sig == SIGXFSZ) && info->si_code == SI_USER && info->si_pid == self)
		return;
	if (begin(DEBUG)) {
		put(to == 0 ? "Dropping signal: " : "Passing signal: ");
		put_signal(sig);
		if (to != 0 && to != sig) {
			put(" as ");
			put_signal(to);
		}
		end();
	}
	if (sig == SIGCONT && own_job && !child_ended) {
		/* fg gives the terminal to our group, which is not the one that reads from it. */
		int own = (int)sys(__NR_getpgid, 0, 0, 0, 0);

		if (foreground() == own)
			set_foreground(child);
		if (to == SIGCONT && sys(__NR_kill, -child, SIGCONT, 0, 0) == 0)
			return;
	}
	if (to != 0)
		send_signal(to, info);
	if (sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU)
		suspend();
}

/* ---- children ------------------------------------------------------------------------------------------------------- */

static void found_dead(int pid, int status, const struct proc_stat *stat)
{
	if (pid == child) {
		child_ended = 1;
		child_status = status;
		say(DEBUG, "The program has ended");
		return;
	}
	reaped_total++;
	if (reporting) {
		add_record(REPORT_ORPHAN, pid, status, stat);
		if (pending == REPORT_BATCH)
			flush_report();
	}
	if (begin(opt.warn_reap ? WARN : DEBUG)) {
		put("Reaped zombie process with pid=");
		put_number(pid);
		if (stat != NULL) {
			put(" (");
			put_foreign(stat->comm);
			put(")");
		}
		put((status & 0x7f) == 0 ? ", exit code " : ", killed by signal ");
		put_number((status & 0x7f) == 0 ? status >> 8 & 0xff : status & 0x7f);
		end();
	}
}

enum reaped { NONE_LEFT, NONE_DEAD, MORE };

/* Reaps up to REAP_BATCH zombies. It never waits, so a child in state D does not hold up the others. */
static enum reaped reap(void)
{
	/* A name can be had only as long as the zombie is there. */
	int look = reporting || opt.warn_reap || opt.verbosity >= DEBUG;
	enum reaped result = MORE;

	for (int i = 0; i < REAP_BATCH && result == MORE; i++) {
		struct proc_stat stat;
		const struct proc_stat *known = NULL;
		int status = 0;
		long pid = -1;

		if (look) {
			siginfo_t info;

			info.si_pid = 0;
			pid = sys6(__NR_waitid, P_ALL, 0, (long)&info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0, 0);
			if (pid == 0)
				pid = info.si_pid;
			if (pid > 0 && pid != child && read_stat((int)pid, &stat) == 0)
				known = &stat;
		}
		if (!look || pid > 0)
			pid = sys(__NR_wait4, pid, &status, WNOHANG | __WALL, 0);
		if (pid > 0)
			found_dead((int)pid, status, known);
		else
			result = pid == 0 ? NONE_DEAD : NONE_LEFT;
	}
	flush_report();
	return result;
}

/* A job of a shell that was stopped from the terminal: the shell waits for us to stop. */
static void follow_stop(void)
{
	siginfo_t info;

	info.si_pid = 0;
	if (sys6(__NR_waitid, P_PID, child, (long)&info, WSTOPPED | WNOHANG, 0, 0) == 0 && info.si_pid == child)
		suspend();
}

static int exit_code(int status)
{
	int code = (status & 0x7f) == 0 ? status >> 8 & 0xff : SIGNAL_BASE + (status & 0x7f);

	return (opt.success[code / 8] >> code % 8 & 1) != 0 ? 0 : code;
}

static int supervise(void)
{
	static const sigmask all = ~0ull;
	struct __kernel_timespec at_once = { 0 };
	enum reaped left = reap();
	int last = 0;

	for (;;) {
		siginfo_t info;

		if (child_ended && opt.kill_left && (last == 0 || !opt.wait_all) && left != NONE_LEFT) {
			broadcast(opt.wait_all ? SIGTERM : SIGKILL);
			/* A stopped process acts on SIGTERM when it goes on. */
			if (opt.wait_all)
				broadcast(SIGCONT);
			last = 1;
		}
		if (child_ended && (left == NONE_LEFT || !(opt.wait_all || opt.kill_left)))
			break;
		long sig = sys(__NR_rt_sigtimedwait, &all, &info, left == MORE ? &at_once : NULL, SIGMASK_SIZE);

		if (sig == SIGCHLD)
			say(DEBUG, "Received SIGCHLD");
		else if (sig > 0)
			forward((int)sig, &info);
		/* After every signal: a flood of others must not hide SIGCHLD. */
		left = reap();
		if (own_job && !child_ended)
			follow_stop();
	}
	for (int i = 0; i < LAST_BATCHES && left == MORE; i++)
		left = reap();
	if (reporting) {
		add_record(REPORT_SUMMARY, 0, 0, NULL);
		flush_report();
	}
	return exit_code(child_status);
}

/* ---- start ---------------------------------------------------------------------------------------------------------- */

/* Rules of execvp(3), except that a file without a known format is not given to a shell: runc would not do it either. */
static long exec_program(char **argv)
{
	static char candidate[4096];
	const char *path;
	size_t pos = 0;
	long error = ENOENT;
	int denied = 0;
	int more;

	if (argv[0][0] == '\0')
		return ENOENT;
	for (const char *c = argv[0]; *c != '\0'; c++) {
		if (*c == '/')
			return -sys(__NR_execve, argv[0], argv, environment, 0);
	}
	path = get_env("PATH");
	if (path == NULL)
		path = "/bin:/usr/bin"; /* confstr(_CS_PATH) of the GNU C library */
	while ((more = path_element(path, &pos, argv[0], candidate, sizeof(candidate))) != 0) {
		if (more < 0) {
			error = ENAMETOOLONG;
			continue;
		}
		error = -sys(__NR_execve, candidate, argv, environment, 0);
		switch (error) {
		case EACCES:
			denied = 1;
			continue;
		case ENOENT:
		case ENOTDIR:
		case ENODEV:
		case ESTALE:
		case ETIMEDOUT:
			continue;
		default:
			return error;
		}
	}
	/* Found, but not for us: say that rather than that another directory has none. */
	return denied ? EACCES : error;
}

/*
 * sd_listen_fds(3): the variable names the process that the sockets are for. If that was us, it is the program now.
 * LISTEN_PIDFDID says the same with a number that nobody knows beforehand, and is optional.
 */
static void pass_sockets_on(void)
{
	static char entry[sizeof("LISTEN_PID=") + 21] = "LISTEN_PID=";
	const char *value = get_env("LISTEN_PID");
	uint32_t pid;

	if (value == NULL || parse_number(value, INT32_MAX, &pid) != 0 || pid != (uint32_t)self)
		return;
	format_number((uint64_t)sys(__NR_getpid, 0, 0, 0, 0), entry + sizeof("LISTEN_PID=") - 1);
	for (char **e = environment; *e != NULL; e++) {
		if (env_value(*e, "LISTEN_PID") != NULL)
			*e = entry;
	}
	drop_env("LISTEN_PIDFDID");
}

static int run_program(char **argv, int take_terminal)
{
	long error;

	sys(__NR_setpgid, 0, 0, 0, 0);
	/* SIGTTOU is still blocked, so this works from the background: drivers/tty/tty_jobctrl.c, __tty_check_change. */
	if (take_terminal)
		set_foreground((int)sys(__NR_getpid, 0, 0, 0, 0));
	pass_sockets_on();
	sys(__NR_rt_sigaction, SIGCHLD, &old_chld, NULL, SIGMASK_SIZE);
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &old_mask, NULL, SIGMASK_SIZE);
	error = exec_program(argv);

	self = (int)sys(__NR_getpid, 0, 0, 0, 0);
	if (begin(FATAL)) {
		put("exec ");
		put_foreign(argv[0]);
		put(" failed: ");
		put_error(error);
		end();
	}
	return error == ENOENT || error == ENOTDIR ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN;
}

/* Whether the terminal is to be the program's: it is ours to give if we are in its foreground. */
static int prepare_terminal(void)
{
	int own = (int)sys(__NR_getpgid, 0, 0, 0, 0);
	int leader = (int)sys(__NR_getsid, 0, 0, 0, 0) == self;

	/* A session leader without terminal gets the one that it was given. The kernel refuses what is not for us. */
	if (leader && foreground() < 0)
		sys(__NR_ioctl, 0, TIOCSCTTY, 0, 0);
	if (foreground() != own)
		return 0;
	own_job = !leader && self != 1;
	return 1;
}

int reaper_main(int argc, char **argv, char **envp)
{
	static const sigmask all = ~0ull;
	struct ksigaction chld = { 0 };
	int parent = (int)sys(__NR_getppid, 0, 0, 0, 0);
	int status = EXIT_USAGE;
	int terminal;
	int program;
	long ret;

	/* First of all, so that no signal gets lost, or ends us, from here on. */
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &all, &old_mask, SIGMASK_SIZE);
	self = (int)sys(__NR_getpid, 0, 0, 0, 0);
	environment = envp;
	opt.verbosity = WARN;
	for (int i = 0; i <= SIG_MAX; i++)
		opt.rewrite[i] = (uint8_t)(i == SIGTSTP || i == SIGTTIN || i == SIGTTOU ? 0xff : i);
	program = parse_args(argc, argv, &status);
	if (program < 0)
		return status;
	parse_env();
	/* A group is stopped by what it cannot ignore, as dumb-init does; one process gets what was sent. */
	for (int i = SIGTSTP; i <= SIGTTOU; i++) {
		if (opt.rewrite[i] == 0xff)
			opt.rewrite[i] = (uint8_t)(opt.group ? SIGSTOP : i);
	}

	if (opt.death_signal > 0) {
		ret = sys6(__NR_prctl, PR_SET_PDEATHSIG, opt.death_signal, 0, 0, 0, 0);
		if (ret < 0) {
			say_error(FATAL, "Cannot set the parent-death signal", -ret);
			return EXIT_USAGE;
		}
		/* The parent may have died before. */
		if ((int)sys(__NR_getppid, 0, 0, 0, 0) != parent)
			sys(__NR_kill, self, opt.death_signal, 0, 0);
	}
	if (opt.subreaper || self != 1) {
		ret = sys6(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, 0);
		if (ret < 0 && opt.subreaper) {
			say_error(FATAL, "Cannot register as child subreaper", -ret);
			return EXIT_USAGE;
		}
		if (ret < 0)
			say(WARN, "Neither PID 1 nor child subreaper: zombie reaping won't work");
	}
	/* Kept: the file is opened before anything of the program's can be mounted over it. */
	if (opt.report_path != NULL || opt.warn_reap || opt.verbosity >= DEBUG || ((opt.wait_all || opt.kill_left) && self != 1))
		open_proc();
	start_report();
	terminal = prepare_terminal();

	/* If whoever started us ignored SIGCHLD, nothing could be waited for. Stops are of interest to a job of a shell only. */
	chld.flags = own_job ? 0 : SA_NOCLDSTOP;
	sys(__NR_rt_sigaction, SIGCHLD, &chld, &old_chld, SIGMASK_SIZE);

	ret = sys6(__NR_clone, SIGCHLD, 0, 0, 0, 0, 0);
	if (ret < 0) {
		say_error(FATAL, "Cannot start a process", -ret);
		return EXIT_USAGE;
	}
	if (ret == 0)
		return run_program(argv + program, terminal);
	child = (int)ret;
	/* The program does it as well: whoever comes first, a signal to its group finds it. */
	sys(__NR_setpgid, child, child, 0, 0);
	close_files();
	/* Nobody's mount is kept busy. */
	sys(__NR_chdir, "/", 0, 0, 0);
	if (begin(INFO)) {
		put("Spawned child process '");
		put_foreign(argv[program]);
		put("' with pid '");
		put_number(child);
		put("'");
		end();
	}
	return supervise();
}
