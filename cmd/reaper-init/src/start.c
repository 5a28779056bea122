/* Where the kernel enters the program: argc, argv, NULL, envp, NULL lie at the stack pointer (SysV ABI, both architectures). */
#include "sys.h"

int reaper_main(int argc, char **argv, char **envp);
void start_c(long *sp);

#if defined(__x86_64__)
__asm__(".globl _start\n.type _start,@function\n_start:\n"
	"	xor %ebp,%ebp\n	mov %rsp,%rdi\n	and $-16,%rsp\n	call start_c\n	hlt\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n.type _start,%function\n_start:\n"
	"	mov x29,xzr\n	mov x30,xzr\n	mov x0,sp\n	and sp,x0,#-16\n	bl start_c\n	brk #0\n");
#endif

__attribute__((noreturn, used)) void start_c(long *sp)
{
	int argc = (int)sp[0];
	char **argv = (char **)(sp + 1);
	int status = reaper_main(argc, argv, argv + argc + 1);

	for (;;)
		sys(__NR_exit_group, status, 0, 0, 0);
}

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
	char *t = to;
	const char *f = from;

	while (n-- > 0)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int c, size_t n)
{
	char *t = to;

	while (n-- > 0)
		*t++ = (char)c;
	return to;
}
