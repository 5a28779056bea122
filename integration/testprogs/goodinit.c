// goodinit: a PID 1 that does its job. It reaps whatever it adopts as soon as SIGCHLD tells it to, and otherwise waits.
// SIGTERM and SIGINT end it with 0. It also serves as the pause container of test pods.
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void on_term(int sig)
{
	(void)sig;
	_exit(0);
}

static void on_chld(int sig)
{
	(void)sig;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction term = { .sa_handler = on_term };
	struct sigaction chld = { .sa_handler = on_chld, .sa_flags = SA_NOCLDSTOP };

	sigaction(SIGTERM, &term, NULL);
	sigaction(SIGINT, &term, NULL);
	sigaction(SIGCHLD, &chld, NULL);
	for (;;)
		pause();
}
