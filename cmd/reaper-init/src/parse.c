#include "parse.h"

size_t text_len(const char *s)
{
	size_t n = 0;

	while (s[n] != '\0')
		n++;
	return n;
}

int text_equal(const char *a, const char *b)
{
	while (*a != '\0' && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

/* What follows the prefix, or NULL. */
static const char *after(const char *text, const char *prefix)
{
	while (*prefix != '\0') {
		if (*text++ != *prefix++)
			return NULL;
	}
	return text;
}

const char *env_value(const char *entry, const char *name)
{
	const char *rest = after(entry, name);

	return rest != NULL && *rest == '=' ? rest + 1 : NULL;
}

/* Digits up to the end. The sum is looked at before it can overflow. */
static int number_of(const char *text, size_t len, uint64_t max, uint64_t *value)
{
	uint64_t n = 0;

	if (len == 0)
		return -1;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -1;
		uint64_t digit = (uint64_t)(text[i] - '0');

		if (n > max / 10 || n * 10 > max - digit)
			return -1;
		n = n * 10 + digit;
	}
	*value = n;
	return 0;
}

int parse_number(const char *text, uint32_t max, uint32_t *value)
{
	uint64_t n;

	if (number_of(text, text_len(text), max, &n) != 0)
		return -1;
	*value = (uint32_t)n;
	return 0;
}

/* Index is the number: signal(7), the same on amd64 and arm64. An array of arrays needs no relocation and no pointer. */
static const char names[32][8] = {
	"", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
	"STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
};

/* The C libraries keep 32 and 33 for themselves and call 34 SIGRTMIN; signal(7). Whoever writes a name means theirs. */
#define RT_MIN 34
#define RT_MAX 64

static int signal_of(const char *text, size_t len)
{
	uint64_t n;

	if (number_of(text, len, RT_MAX, &n) == 0)
		return (int)n;
	if (len > 3 && after(text, "SIG") != NULL) {
		text += 3;
		len -= 3;
	}
	for (int i = 1; i < 32; i++) {
		if (len == text_len(names[i]) && after(text, names[i]) != NULL)
			return i;
	}
	if (len < 5 || (after(text, "RTMIN") == NULL && after(text, "RTMAX") == NULL))
		return -1;
	int min = text[4] == 'N';

	if (len == 5)
		return min ? RT_MIN : RT_MAX;
	if (text[5] != (min ? '+' : '-') || number_of(text + 6, len - 6, RT_MAX - RT_MIN, &n) != 0)
		return -1;
	return min ? RT_MIN + (int)n : RT_MAX - (int)n;
}

int parse_signal(const char *text)
{
	return signal_of(text, text_len(text));
}

int parse_rewrite(const char *text, int *from, int *to)
{
	size_t colon = 0;

	while (text[colon] != ':') {
		if (text[colon] == '\0')
			return -1;
		colon++;
	}
	*from = signal_of(text, colon);
	*to = parse_signal(text + colon + 1);
	if (*from < 1 || *to < 0)
		return -1;
	/* KILL and STOP reach nobody; CHLD is how the program lives. */
	return *from == 9 || *from == 19 || *from == 17 ? -1 : 0;
}

const char *signal_name(int sig)
{
	return sig > 0 && sig < 32 ? names[sig] : "";
}

/*
 * The name stands in brackets and may hold brackets, blanks and newlines, so its end is the last bracket. Nothing in it is escaped,
 * unlike in /proc/PID/status (fs/proc/array.c, do_task_stat).
 */
int parse_stat(const char *text, size_t len, struct proc_stat *out)
{
	size_t open = 0;
	size_t close = len;
	size_t fill = 0;

	while (open < len && text[open] != '(')
		open++;
	while (close > open && text[close - 1] != ')')
		close--;
	if (close <= open + 1)
		return -1;
	close--;
	for (size_t i = open + 1; i < close && fill < COMM_SIZE - 1; i++)
		out->comm[fill++] = text[i];
	while (fill < COMM_SIZE)
		out->comm[fill++] = '\0';

	/* Fields are counted from 1, and the name is the second. Each must end inside the text: a cut number is a wrong number. */
	size_t pos = close + 1;

	for (int field = 3; field <= 22; field++) {
		if (pos >= len || text[pos] != ' ')
			return -1;
		size_t start = ++pos;

		while (pos < len && text[pos] != ' ' && text[pos] != '\n')
			pos++;
		if (pos == len || pos == start)
			return -1;
		uint64_t n;

		switch (field) {
		case 3:
			out->state = text[start];
			break;
		case 4:
			if (number_of(text + start, pos - start, UINT32_MAX, &n) != 0)
				return -1;
			out->ppid = (uint32_t)n;
			break;
		case 22:
			if (number_of(text + start, pos - start, UINT64_MAX, &out->starttime) != 0)
				return -1;
			break;
		default:
			break;
		}
	}
	return 0;
}

uint32_t next_pid(const char *text, size_t len, size_t *pos)
{
	uint64_t n;

	while (*pos < len && (text[*pos] == ' ' || text[*pos] == '\n'))
		(*pos)++;
	size_t start = *pos;

	while (*pos < len && text[*pos] >= '0' && text[*pos] <= '9')
		(*pos)++;
	/* A number that ends with the buffer may go on behind it. */
	if (*pos == len || number_of(text + start, *pos - start, INT32_MAX, &n) != 0)
		return 0;
	return (uint32_t)n;
}

int path_element(const char *path, size_t *pos, const char *name, char *out, size_t size)
{
	size_t start = *pos;
	size_t end = start;
	size_t fill = 0;

	/* Behind the last element stands what cannot be an index of the text. */
	if (start == SIZE_MAX)
		return 0;
	while (path[end] != '\0' && path[end] != ':')
		end++;
	*pos = path[end] == ':' ? end + 1 : SIZE_MAX;
	if (size < 2 || end - start > size - 2 || text_len(name) > size - 2 - (end - start))
		return -1;
	for (size_t i = start; i < end; i++)
		out[fill++] = path[i];
	/* An empty element is the working directory (exec(3)). */
	if (end > start)
		out[fill++] = '/';
	for (size_t i = 0; name[i] != '\0'; i++)
		out[fill++] = name[i];
	out[fill] = '\0';
	return 1;
}

size_t format_number(uint64_t n, char *out)
{
	char digits[20];
	size_t count = 0;

	do {
		digits[count++] = (char)('0' + n % 10);
		n /= 10;
	} while (n > 0);
	for (size_t i = 0; i < count; i++)
		out[i] = digits[count - 1 - i];
	out[count] = '\0';
	return count;
}
