// deadleader: PID 1 of a PID namespace whose leader thread exits, once a line has come on standard input. A second thread then makes an orphan in another session, which
// exits with 7, and a child of its own, which exits with 5, waits for neither, prints "ready" and sleeps.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_t leader;

static void *work(void *arg)
{
	(void)arg;
	pthread_join(leader, NULL);
	pid_t middle = fork();
	if (middle == 0) {
		setsid();
		if (fork() == 0) {
			usleep(50000);
			_exit(7);
		}
		_exit(0);
	}
	waitpid(middle, NULL, 0);
	if (fork() == 0)
		_exit(5);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
	return NULL;
}

int main(void)
{
	pthread_t t;
	getchar();
	leader = pthread_self();
	if (pthread_create(&t, NULL, work, NULL))
		return 1;
	pthread_exit(NULL);
}
