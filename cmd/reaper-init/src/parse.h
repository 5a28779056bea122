/* Everything that reads text: free of system calls, so that the tests can run it under sanitizers. */
#ifndef REAPER_INIT_PARSE_H
#define REAPER_INIT_PARSE_H

#include <stddef.h>
#include <stdint.h>

#define COMM_SIZE 16 /* TASK_COMM_LEN, include/linux/sched.h */

struct proc_stat {
	char comm[COMM_SIZE]; /* any bytes; padded with NUL */
	char state;
	uint32_t ppid;
	uint64_t starttime; /* clock ticks since boot */
};

size_t text_len(const char *s);
int text_equal(const char *a, const char *b);

/* The value of an environment string if its name is this one, else NULL. */
const char *env_value(const char *entry, const char *name);

/* A decimal number of the whole text, at most max. Returns 0, or -1. */
int parse_number(const char *text, uint32_t max, uint32_t *value);

/* "SIGTERM", "TERM", "15", "RTMIN+3", "RTMAX-1": 0..64. -1 if it is none. */
int parse_signal(const char *text);

/* "OLD:NEW". Returns 0, or -1 if it is not that or OLD cannot be received. NEW is 0 to drop. */
int parse_rewrite(const char *text, int *from, int *to);

/* The name without SIG, or "" */
const char *signal_name(int sig);

/* The text of /proc/PID/stat, proc_pid_stat(5). Returns 0, or -1 if it is not one. */
int parse_stat(const char *text, size_t len, struct proc_stat *out);

/* The next number of a list that blanks separate, from *pos on. 0 at the end or at anything else. */
uint32_t next_pid(const char *text, size_t len, size_t *pos);

/* Writes "dir/name" for the element of PATH at *pos, and moves *pos behind it. Returns 1, 0 at the end of PATH, -1 if it is too long. */
int path_element(const char *path, size_t *pos, const char *name, char *out, size_t size);

/* Decimal digits and a NUL; out must hold 21. Returns the number of digits. */
size_t format_number(uint64_t n, char *out);

#endif
