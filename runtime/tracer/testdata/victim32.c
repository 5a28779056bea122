// A 32-bit PID 1 without libc: leaves one orphan behind and waits for a child that lives.
static long call(long nr, long a, long b, long c)
{
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "0"(nr), "b"(a), "c"(b), "d"(c) : "memory");
	return r;
}

enum { NR_exit = 1, NR_fork = 2, NR_write = 4, NR_waitpid = 7, NR_pause = 29 };

static void pause_for_ever(void)
{
	for (;;)
		call(NR_pause, 0, 0, 0);
}

void _start(void)
{
	static const char ready[] = "ready\n";
	long mid = call(NR_fork, 0, 0, 0);
	if (mid == 0) {
		if (call(NR_fork, 0, 0, 0) == 0)
			call(NR_exit, 3, 0, 0);
		call(NR_exit, 0, 0, 0);
	}
	call(NR_waitpid, mid, 0, 0);
	long child = call(NR_fork, 0, 0, 0);
	if (child == 0)
		pause_for_ever();
	call(NR_write, 1, (long)ready, sizeof ready - 1);
	call(NR_waitpid, child, 0, 0);
	call(NR_exit, 1, 0, 0);
}
