// leak: makes orphans. Each is forked twice, so that its parent is dead and the child reaper of the PID namespace has
// adopted it, then ends as told.
//
//   leak [-n count] [-r per-second] [-l life-ms] [-e exit-code] [-k signal] [-s] [-S] [-v]
//        [-w linger-ms] [-p parent-ms]
//
//   -n  how many (1)                  -l  how long each lives (0)
//   -r  at this rate (at once)        -s  the parent of each calls setsid(), as daemon(3) does
//   -e  exit code (0)                 -S  each calls setsid() itself
//   -k  die by this signal instead
//   -v  print "orphan <pid>" for each -w  stay alive for that long afterwards
//   -p  keep the parent of each alive for that long, so that it can be seen as somebody's child before it is an orphan
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void sleep_ms(long ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

int main(int argc, char **argv)
{
	long count = 1, life = 0, linger = 0, rate = 0, parent = 0;
	int code = 0, sig = 0, daemonize = 0, leader = 0, verbose = 0, c;

	while ((c = getopt(argc, argv, "n:r:l:e:k:w:p:sSv")) != -1) {
		switch (c) {
		case 'n': count = atol(optarg); break;
		case 'r': rate = atol(optarg); break;
		case 'l': life = atol(optarg); break;
		case 'e': code = atoi(optarg); break;
		case 'k': sig = atoi(optarg); break;
		case 'w': linger = atol(optarg); break;
		case 'p': parent = atol(optarg); break;
		case 's': daemonize = 1; break;
		case 'S': leader = 1; break;
		case 'v': verbose = 1; break;
		default: return 2;
		}
	}

	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (long i = 0; i < count; i++) {
		pid_t mid = fork();
		if (mid < 0) {
			perror("leak: fork");
			return 1;
		}
		if (mid == 0) {
			pid_t self = getpid();
			if (daemonize)
				setsid();
			pid_t pid = fork();
			if (pid != 0) {
				sleep_ms(parent);
				_exit(pid < 0);
			}
			if (leader)
				setsid();
			// Adopted is what counts: do not end before the one that forked us has.
			while (getppid() == self)
				sleep_ms(1);
			if (verbose)
				dprintf(1, "orphan %d\n", getpid());
			sleep_ms(life);
			if (sig) {
				signal(sig, SIG_DFL);
				raise(sig);
			}
			_exit(code);
		}
		int status;
		while (waitpid(mid, &status, 0) < 0 && errno == EINTR)
			;
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			fprintf(stderr, "leak: orphan %ld could not be forked\n", i);
			return 1;
		}
		if (rate) {
			next.tv_nsec += 1000000000L / rate;
			next.tv_sec += next.tv_nsec / 1000000000L;
			next.tv_nsec %= 1000000000L;
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
		}
	}
	sleep_ms(linger);
	return 0;
}
