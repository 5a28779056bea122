// storm: makes orphans as fast as the machine forks. Parents that live for a moment fork BATCH children each, which end at once.
//
//   storm [-n count] [-j parents] [-b batch] [-m milliseconds] [-r rate]
//
//   -n  how many orphans (1000); 0: no limit    -j  how many parents at a time (1)
//   -b  orphans of each parent (50)             -m  end after that time, whatever -n says
//   -r  at most so many orphans a second (0: no limit)
//
// It prints "orphans N" at its end: those that were forked. Where fork(2) fails for want of PIDs it waits a moment and goes on.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

// A parent says by its exit code how many it has forked: batch is at most 200.
static int parent(int batch)
{
	for (int i = 0; i < batch; i++) {
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		if (pid < 0)
			return i;
	}
	return batch;
}

int main(int argc, char **argv)
{
	long count = 1000, forked = 0, asked = 0, rate = 0;
	int parents = 1, batch = 50, living = 0, c;
	long long end = 0, began = now_ms();

	while ((c = getopt(argc, argv, "n:j:b:m:r:")) != -1) {
		switch (c) {
		case 'n': count = atol(optarg); break;
		case 'j': parents = atoi(optarg); break;
		case 'b': batch = atoi(optarg); break;
		case 'm': end = began + atol(optarg); break;
		case 'r': rate = atol(optarg); break;
		default: return 2;
		}
	}
	if (batch < 1 || batch > 200 || parents < 1)
		return 2;
	for (;;) {
		int more = (count == 0 || asked < count) && (end == 0 || now_ms() < end);
		if (!more && living == 0)
			break;
		int early = rate != 0 && asked * 1000 > rate * (now_ms() - began);
		if (more && early && living == 0) {
			usleep(1000);
			continue;
		}
		if (more && !early && living < parents) {
			int n = count != 0 && count - asked < batch ? (int)(count - asked) : batch;
			pid_t pid = fork();
			if (pid == 0)
				_exit(parent(n));
			if (pid > 0) {
				living++;
				asked += n;
				continue;
			}
			if (living == 0)
				usleep(1000);
		}
		int status;
		if (living > 0 && wait(&status) > 0) {
			int n = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
			living--;
			forked += n;
			if (count != 0 && n < batch)
				asked = forked + (long)living * batch < asked ? forked + (long)living * batch : asked;
		}
	}
	printf("orphans %ld\n", forked);
	return 0;
}
