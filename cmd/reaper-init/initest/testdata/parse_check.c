/*
 * parse_check: the code of reaper-init that reads text, under the sanitizers, with hostile text and a million pieces of random text.
 * It ends with 0 and says nothing, or says what is wrong.
 */
#include "../../src/parse.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed;

static void check(int ok, const char *what)
{
	if (!ok) {
		printf("wrong: %s\n", what);
		failed = 1;
	}
}
#define CHECK(c) check((c), #c)

static const char tail[] = " Z 7 7 7 0 -1 4194316 0 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615 0 0";

/* A copy of exactly that size, so that a byte read too far is seen. */
static int stat_of(const char *text, size_t len, struct proc_stat *out)
{
	char *copy = malloc(len > 0 ? len : 1);
	int ret;

	memcpy(copy, text, len);
	ret = parse_stat(copy, len, out);
	free(copy);
	return ret;
}

static void stat_named(const char *name)
{
	char text[256];
	struct proc_stat s;
	int len = snprintf(text, sizeof(text), "12 (%s)%s", name, tail);

	CHECK(stat_of(text, (size_t)len, &s) == 0);
	CHECK(s.state == 'Z' && s.ppid == 7 && s.starttime == UINT64_MAX);
	CHECK(strncmp(s.comm, name, COMM_SIZE - 1) == 0 && s.comm[COMM_SIZE - 1] == '\0');
	/* Cut anywhere, it is no stat, unless only what is behind the start time is gone. */
	for (int cut = 0; cut < len; cut++) {
		int got = stat_of(text, (size_t)cut, &s);

		CHECK(got == (cut > len - 4 ? 0 : -1));
		if (got == 0)
			CHECK(s.starttime == UINT64_MAX);
	}
}

int main(void)
{
	static const char *const bad_numbers[] = { "", "-1", "+1", " 1", "1 ", "0x1", "256", "99999999999999999999", "1a" };
	struct proc_stat s;
	uint32_t n;
	int from, to;
	char out[16];
	size_t pos;

	stat_named("sh");
	stat_named("a) R 1 (b");
	stat_named(") Z 1");
	stat_named("");
	stat_named("((((((((((((((((");
	stat_named("new\nline");
	stat_named("a name that is longer than the kernel's");
	CHECK(stat_of("1 )(", 4, &s) == -1);
	static const char large_parent[] = "1 (a) Z 99999999999 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 ";

	CHECK(stat_of(large_parent, sizeof(large_parent) - 1, &s) == -1);

	for (size_t i = 0; i < sizeof(bad_numbers) / sizeof(bad_numbers[0]); i++)
		CHECK(parse_number(bad_numbers[i], 255, &n) == -1);
	CHECK(parse_number("255", 255, &n) == 0 && n == 255);
	CHECK(parse_number("4294967295", UINT32_MAX, &n) == 0 && n == UINT32_MAX);
	CHECK(parse_number("4294967296", UINT32_MAX, &n) == -1);

	CHECK(parse_signal("TERM") == 15 && parse_signal("SIGTERM") == 15 && parse_signal("15") == 15);
	CHECK(parse_signal("RTMIN") == 34 && parse_signal("SIGRTMIN+30") == 64 && parse_signal("RTMAX-30") == 34);
	CHECK(parse_signal("RTMIN+31") == -1 && parse_signal("RTMAX+1") == -1 && parse_signal("RTMIN-1") == -1);
	CHECK(parse_signal("SIG") == -1 && parse_signal("TER") == -1 && parse_signal("TERMX") == -1 && parse_signal("65") == -1);
	CHECK(parse_rewrite("TERM:0", &from, &to) == 0 && from == 15 && to == 0);
	CHECK(parse_rewrite("TERM:", &from, &to) == -1 && parse_rewrite(":", &from, &to) == -1 && parse_rewrite("", &from, &to) == -1);

	pos = 0;
	CHECK(next_pid("1 22 333", 8, &pos) == 1 && next_pid("1 22 333", 8, &pos) == 22 && next_pid("1 22 333", 8, &pos) == 0);
	pos = 0;
	CHECK(next_pid("x1 ", 3, &pos) == 0);
	pos = 0;
	CHECK(next_pid("99999999999 ", 12, &pos) == 0);

	pos = 0;
	CHECK(path_element("/a:/b", &pos, "c", out, sizeof(out)) == 1 && strcmp(out, "/a/c") == 0);
	CHECK(path_element("/a:/b", &pos, "c", out, sizeof(out)) == 1 && strcmp(out, "/b/c") == 0);
	CHECK(path_element("/a:/b", &pos, "c", out, sizeof(out)) == 0);
	pos = 0;
	CHECK(path_element("", &pos, "c", out, sizeof(out)) == 1 && strcmp(out, "c") == 0);
	CHECK(path_element("", &pos, "c", out, sizeof(out)) == 0);
	pos = 0;
	CHECK(path_element("/a:", &pos, "twelve bytes", out, sizeof(out)) == 1 && strlen(out) == 15);
	pos = 0;
	CHECK(path_element("/a", &pos, "thirteenbytes", out, sizeof(out)) == -1);

	srand(1);
	for (int i = 0; i < 1000000; i++) {
		static const char letters[] = "()  \n0123456789:+-SIGRTMNAX\\=Z\377";
		char text[48];
		char big[24];
		size_t len = (size_t)rand() % sizeof(text);

		for (size_t j = 0; j < len; j++)
			text[j] = letters[(size_t)rand() % (sizeof(letters) - 1)];
		if (i % 16 == 0)
			stat_of(text, len, &s);
		pos = 0;
		while (next_pid(text, len, &pos) != 0)
			;
		text[len > 0 ? len - 1 : 0] = '\0';
		int sig = parse_signal(text);

		CHECK(sig >= -1 && sig <= 64);
		CHECK(strlen(signal_name(sig)) < 8);
		if (parse_rewrite(text, &from, &to) == 0)
			CHECK(from >= 1 && from <= 64 && to >= 0 && to <= 64);
		if (parse_number(text, 255, &n) == 0)
			CHECK(n <= 255);
		env_value(text, "LISTEN_PID");
		pos = 0;
		while (path_element(text, &pos, "name", out, sizeof(out)) != 0)
			CHECK(strlen(out) < sizeof(out));
		uint64_t number = (uint64_t)rand() << 33 ^ (uint64_t)rand() << 11 ^ (uint64_t)rand();

		CHECK(format_number(number, big) == strlen(big) && strtoull(big, NULL, 10) == number);
	}
	return failed;
}
