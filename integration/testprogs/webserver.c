// webserver answers every HTTP request with a small page, for tests that run a web server as nginx or httpd.
//
//	webserver PORT
//
// It goes by the name that it was started under: "<name>: master process" is its command line, as nginx has it,
// /var/run/<name>.pid holds its PID, and it says on standard output that it serves.
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static const char page[] = "HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\nConnection: close\r\n\r\n<p>Hello</p>";

static void serve(int conn)
{
	// Nobody waits behind a client that connects and says nothing.
	struct timeval patience = {.tv_sec = 2};
	char request[4096];

	setsockopt(conn, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (read(conn, request, sizeof request) <= 0)
		return;
	for (size_t done = 0; done < sizeof page - 1;) {
		ssize_t n = write(conn, page + done, sizeof page - 1 - done);
		if (n <= 0)
			return;
		done += (size_t)n;
	}
	// Closing with input unread would reset the connection under the answer.
	shutdown(conn, SHUT_WR);
	while (read(conn, request, sizeof request) > 0)
		;
}

static void end(int sig)
{
	(void)sig;
	_exit(0);
}

int main(int argc, char **argv)
{
	if (argc == 2) {
		const char *base = strrchr(argv[0], '/');
		char title[64];

		snprintf(title, sizeof title, "%s: master process", base ? base + 1 : argv[0]);
		execl(argv[0], title, argv[1], "titled", NULL);
		err(1, "exec %s", argv[0]);
	}
	if (argc != 3)
		errx(2, "usage: webserver PORT");

	char name[64], file[128];
	snprintf(name, sizeof name, "%.*s", (int)strcspn(argv[0], ":"), argv[0]);
	snprintf(file, sizeof file, "/var/run/%s.pid", name);

	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, end); // PID 1 gets only what it has a handler for
	signal(SIGQUIT, end);
	int sock = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) || bind(sock, (struct sockaddr *)&addr, sizeof addr) ||
	    listen(sock, 64))
		err(1, "listen on port %s", argv[1]);

	// The file is there when the server is: who waits for it may connect.
	FILE *f = fopen(file, "w");
	if (f) {
		fprintf(f, "%d\n", getpid());
		fclose(f);
	}
	printf("%s serves port %s\n", name, argv[1]);
	fflush(stdout);
	for (;;) {
		int conn = accept(sock, NULL, NULL);
		if (conn < 0)
			continue;
		serve(conn);
		close(conn);
	}
}
