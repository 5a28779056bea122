// euid prints its effective user: set-uid in an image, it shows whether no_new_privs (prctl(2)) is in force.
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %d\n", geteuid());
	return 0;
}
