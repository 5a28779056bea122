// A PID 1 that sits in one system call while its zombies are reaped, and then looks for anything that has changed.
//
//	transparency CALL OTHER WHO ORPHANS MILLISECONDS
//
// CALL is made by the leader (WHO leader) or by a second thread (WHO thread). OTHER is the call that the other thread sits
// in meanwhile, "-" for no other thread. It prints "ready NR NR" right before the calls, one "done" line for each call when
// it has ended, "end" after the last, and "unsupported WHY" if this kernel or machine has no such call. A byte on standard
// input makes happen what the calls wait for; calls with a time-out of their own (MILLISECONDS) end by that.
//
// Every call goes through checked(), which gives all registers that the system call ABI keeps a value of their own.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <asm/prctl.h>
#include <cpuid.h>
#endif

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum { ORPHAN_CODE = 3, OWN_CODE = 7, HELPER_CODE = 42 };
enum { PATTERN = 0xa5 };

static void say(const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof line - 1, fmt, ap);
	va_end(ap);
	line[n++] = '\n';
	if (write(1, line, n) != n)
		_exit(98);
}

static void die(const char *what)
{
	say("error %s: %s", what, strerror(errno));
	_exit(99);
}

static void unsupported(const char *what)
{
	say("unsupported %s: %s", what, strerror(errno));
	pause();
	_exit(0);
}

static pid_t xfork(void)
{
	pid_t p = fork();
	if (p < 0)
		die("fork");
	return p;
}

static int64_t now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static struct timespec in_us(int64_t us)
{
	return (struct timespec){ us / 1000000, us % 1000000 * 1000 };
}

// ---- one system call with every register accounted for -------------------------------------------------------------

enum { NREGS = 40, NSTACK = 16 };

// block is what checked() works on; the assembly knows the offsets.
struct block {
	unsigned long nr;             // 0
	unsigned long args[6];        // 8
	unsigned long result;         // 56
	unsigned long sp_in, sp_out;  // 64
	unsigned long flags_in, flags_out; // 80
	unsigned char *fpu_in, *fpu_out;   // 96
	unsigned long fpu_lo, fpu_hi; // 112, amd64: components for xsave, 0: fxsave
	unsigned long stack[NSTACK];  // 128, amd64: what was below the stack pointer
	unsigned long regs[NREGS];    // 256
	unsigned long fpcr[2];        // 576, arm64
};

_Static_assert(offsetof(struct block, stack) == 128 && offsetof(struct block, regs) == 256 &&
	offsetof(struct block, fpcr) == 576, "the assembly's offsets");

// checked makes the call; in place of it spinning loops until the word at args[0] is not 0, and counting until it has counted it down to 0.
void checked(struct block *b);
void spinning(struct block *b);
void counting(struct block *b);

#if defined(__x86_64__)

enum { STACK_FILL = 0x5ac5ac5a };
static const unsigned long flags_value = 0x8d5 | 0x400 | 0x202; // CF PF AF ZF SF OF, DF, and IF that is always set

#define CHECKED(name, body) \
	__asm__(".text\n.globl " #name "\n" #name ":\n" \
	"	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n	push %rdi\n" \
	"	mov %rsp, 64(%rdi)\n" \
	"	mov 112(%rdi), %eax\n	mov 120(%rdi), %edx\n	mov 96(%rdi), %rcx\n" \
	"	test %eax, %eax\n	jz 1f\n	xrstor64 (%rcx)\n	jmp 2f\n1:	fxrstor64 (%rcx)\n2:\n" \
	"	mov $0x5ac5ac5a, %eax\n	lea -128(%rsp), %rcx\n	mov $16, %edx\n" \
	"3:	mov %rax, (%rcx)\n	add $8, %rcx\n	dec %edx\n	jnz 3b\n" \
	"	lea -256(%rsp), %rsp\n	push 80(%rdi)\n	popfq\n	lea 256(%rsp), %rsp\n" \
	"	mov %rdi, %r11\n	mov (%r11), %rax\n" \
	"	mov 8(%r11), %rdi\n	mov 16(%r11), %rsi\n	mov 24(%r11), %rdx\n" \
	"	mov 32(%r11), %r10\n	mov 40(%r11), %r8\n	mov 48(%r11), %r9\n" \
	"	movabs $0x0101010101010101, %rbx\n	movabs $0x0202020202020202, %rbp\n" \
	"	movabs $0x0303030303030303, %r12\n	movabs $0x0404040404040404, %r13\n" \
	"	movabs $0x0505050505050505, %r14\n	movabs $0x0606060606060606, %r15\n" \
	body \
	"	mov (%rsp), %rcx\n	mov %rax, 56(%rcx)\n" \
	"	lea -256(%rsp), %rsp\n	pushfq\n	pop %rax\n	lea 256(%rsp), %rsp\n	cld\n" \
	"	mov %rax, 88(%rcx)\n	mov %rsp, 72(%rcx)\n" \
	"	mov %rdi, 256(%rcx)\n	mov %rsi, 264(%rcx)\n	mov %rdx, 272(%rcx)\n" \
	"	mov %r10, 280(%rcx)\n	mov %r8, 288(%rcx)\n	mov %r9, 296(%rcx)\n" \
	"	mov %rbx, 304(%rcx)\n	mov %rbp, 312(%rcx)\n	mov %r12, 320(%rcx)\n" \
	"	mov %r13, 328(%rcx)\n	mov %r14, 336(%rcx)\n	mov %r15, 344(%rcx)\n" \
	"	lea -128(%rsp), %rsi\n	lea 128(%rcx), %rdi\n	mov $16, %edx\n" \
	"4:	mov (%rsi), %rax\n	mov %rax, (%rdi)\n	add $8, %rsi\n	add $8, %rdi\n	dec %edx\n	jnz 4b\n" \
	"	mov 112(%rcx), %eax\n	mov 120(%rcx), %edx\n	mov 104(%rcx), %rsi\n" \
	"	test %eax, %eax\n	jz 5f\n	xsave64 (%rsi)\n	jmp 6f\n5:	fxsave64 (%rsi)\n6:\n" \
	"	fninit\n	movl $0x1f80, -8(%rsp)\n	ldmxcsr -8(%rsp)\n" \
	"	pop %rdi\n	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n	ret\n")

CHECKED(checked, "	syscall\n");
CHECKED(spinning, "7:	cmpl $0, (%rdi)\n	je 7b\n	mov $0, %eax\n");
CHECKED(counting, "7:	mov (%rdi), %ecx\n	lea -1(%rcx), %ecx\n	mov %ecx, (%rdi)\n	jrcxz 8f\n	jmp 7b\n8:	mov $0, %eax\n");

// Where the parts of the FPU state are in the image of xsave: x87 and SSE (FXSAVE), AVX, and AVX-512 in three parts.
static struct { unsigned off, len; } fpu_parts[8];
static unsigned fpu_mask, fpu_size;

static void fpu_prepare(void)
{
	unsigned a, b, c, d;
	fpu_size = 512;
	if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
		unsigned lo, hi;
		__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
		__cpuid_count(0xd, 0, a, b, c, d);
		fpu_size = b;
		fpu_mask = lo & 0xe7;
		for (int i = 2; i < 8; i++)
			if (fpu_mask >> i & 1) {
				__cpuid_count(0xd, i, a, b, c, d);
				fpu_parts[i].off = b;
				fpu_parts[i].len = a;
			}
	}
}

static void fpu_fill(struct block *b)
{
	b->fpu_in = aligned_alloc(64, (fpu_size + 127) / 64 * 64);
	b->fpu_out = aligned_alloc(64, (fpu_size + 127) / 64 * 64);
	memset(b->fpu_in, 0, fpu_size);
	memset(b->fpu_out, 0, fpu_size);
	b->fpu_lo = fpu_mask;
	*(uint16_t *)b->fpu_in = 0x37f;                // control word
	b->fpu_in[4] = 0xff;                           // all registers in use
	*(uint32_t *)(b->fpu_in + 24) = 0x1f80 | 0x6000; // MXCSR, rounding toward zero
	for (int i = 0; i < 8; i++)
		for (int j = 0; j < 10; j++)
			b->fpu_in[32 + 16 * i + j] = 0x40 + 16 * i + j;
	for (int i = 160; i < 416; i++)
		b->fpu_in[i] = i * 7 + 1;
	if (fpu_mask)
		*(uint64_t *)(b->fpu_in + 512) = fpu_mask; // XSTATE_BV: none of them in its initial state
	for (int i = 2; i < 8; i++)
		for (unsigned j = 0; j < fpu_parts[i].len; j++)
			b->fpu_in[fpu_parts[i].off + j] = j * 5 + i;
}

static int fpu_same(struct block *b)
{
	const unsigned char *x = b->fpu_in, *y = b->fpu_out;
	if (memcmp(x, y, 2) || x[4] != y[4] || memcmp(x + 24, y + 24, 4) || memcmp(x + 160, y + 160, 256))
		return 0;
	for (int i = 0; i < 8; i++)
		if (memcmp(x + 32 + 16 * i, y + 32 + 16 * i, 10))
			return 0;
	for (int i = 2; i < 8; i++)
		if (memcmp(x + fpu_parts[i].off, y + fpu_parts[i].off, fpu_parts[i].len))
			return 0;
	return 1;
}

static int regs_same(struct block *b)
{
	if (memcmp(b->regs, b->args, sizeof b->args))
		return 0;
	for (int i = 1; i <= 6; i++)
		if (b->regs[5 + i] != i * 0x0101010101010101UL)
			return 0;
	return 1;
}

static int stack_same(struct block *b)
{
	for (int i = 0; i < NSTACK; i++)
		if (b->stack[i] != STACK_FILL)
			return 0;
	return b->sp_in == b->sp_out;
}

static unsigned long flags_of(unsigned long f) { return f & 0xed5; }

// The thread pointer and the other base register are among the registers that a tracer writes.
static __thread unsigned long gs_word;
static void base_set(void) { gs_word = 0x6753; if (syscall(SYS_arch_prctl, ARCH_SET_GS, &gs_word)) die("arch_prctl"); }
static int base_same(void)
{
	unsigned long gs = 0, fs = 0, self;
	syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
	syscall(SYS_arch_prctl, ARCH_GET_FS, &fs);
	__asm__("mov %%fs:0, %0" : "=r"(self));
	return gs == (unsigned long)&gs_word && fs == self;
}

#elif defined(__aarch64__)

static const unsigned long flags_value = 0xf0000000; // NZCV

// x19 to x30 and the block are kept on the stack. Registers that the system call keeps: all but x0 (syscall(2), and
// kernel_entry in arch/arm64/kernel/entry.S).
#define MOVX(n, v) "	mov x" #n ", #" #v "\n	orr x" #n ", x" #n ", x" #n ", lsl #16\n	orr x" #n ", x" #n ", x" #n ", lsl #32\n"
#define CHECKED(name, body) \
	__asm__(".text\n.globl " #name "\n" #name ":\n" \
	"	sub sp, sp, #128\n" \
	"	stp x19, x20, [sp]\n	stp x21, x22, [sp, #16]\n	stp x23, x24, [sp, #32]\n" \
	"	stp x25, x26, [sp, #48]\n	stp x27, x28, [sp, #64]\n	stp x29, x30, [sp, #80]\n" \
	"	stp x0, x18, [sp, #96]\n" \
	"	mov x9, sp\n	str x9, [x0, #64]\n" \
	"	ldr x9, [x0, #96]\n" \
	"	ldp q0, q1, [x9], #32\n	ldp q2, q3, [x9], #32\n	ldp q4, q5, [x9], #32\n	ldp q6, q7, [x9], #32\n" \
	"	ldp q8, q9, [x9], #32\n	ldp q10, q11, [x9], #32\n	ldp q12, q13, [x9], #32\n	ldp q14, q15, [x9], #32\n" \
	"	ldp q16, q17, [x9], #32\n	ldp q18, q19, [x9], #32\n	ldp q20, q21, [x9], #32\n	ldp q22, q23, [x9], #32\n" \
	"	ldp q24, q25, [x9], #32\n	ldp q26, q27, [x9], #32\n	ldp q28, q29, [x9], #32\n	ldp q30, q31, [x9], #32\n" \
	"	ldr x9, [x0, #576]\n	msr fpcr, x9\n	ldr x9, [x0, #584]\n	msr fpsr, x9\n" \
	"	ldr x9, [x0, #80]\n	msr nzcv, x9\n" \
	MOVX(6, 0x106) MOVX(7, 0x107) MOVX(10, 0x10a) MOVX(11, 0x10b) MOVX(12, 0x10c) MOVX(13, 0x10d) MOVX(14, 0x10e) \
	MOVX(15, 0x10f) MOVX(16, 0x110) MOVX(17, 0x111) MOVX(18, 0x112) MOVX(19, 0x113) MOVX(20, 0x114) MOVX(21, 0x115) \
	MOVX(22, 0x116) MOVX(23, 0x117) MOVX(24, 0x118) MOVX(25, 0x119) MOVX(26, 0x11a) MOVX(27, 0x11b) MOVX(28, 0x11c) \
	MOVX(29, 0x11d) MOVX(30, 0x11e) \
	"	mov x9, x0\n	ldr x8, [x9]\n	ldp x0, x1, [x9, #8]\n	ldp x2, x3, [x9, #24]\n	ldp x4, x5, [x9, #40]\n" \
	MOVX(9, 0x109) \
	body \
	"	str x9, [sp, #112]\n	ldr x9, [sp, #96]\n	str x0, [x9, #56]\n" \
	"	str x1, [x9, #264]\n	stp x2, x3, [x9, #272]\n	stp x4, x5, [x9, #288]\n" \
	"	stp x6, x7, [x9, #304]\n	str x8, [x9, #320]\n	add x9, x9, #336\n" \
	"	stp x10, x11, [x9]\n	stp x12, x13, [x9, #16]\n	stp x14, x15, [x9, #32]\n	stp x16, x17, [x9, #48]\n" \
	"	stp x18, x19, [x9, #64]\n	stp x20, x21, [x9, #80]\n	stp x22, x23, [x9, #96]\n	stp x24, x25, [x9, #112]\n" \
	"	stp x26, x27, [x9, #128]\n	stp x28, x29, [x9, #144]\n	str x30, [x9, #160]\n" \
	"	sub x9, x9, #336\n	ldr x10, [sp, #112]\n	str x10, [x9, #328]\n" \
	"	mrs x10, nzcv\n	str x10, [x9, #88]\n	mov x10, sp\n	str x10, [x9, #72]\n" \
	"	mrs x10, fpcr\n	str x10, [x9, #576]\n	mrs x10, fpsr\n	str x10, [x9, #584]\n" \
	"	ldr x10, [x9, #104]\n" \
	"	stp q0, q1, [x10], #32\n	stp q2, q3, [x10], #32\n	stp q4, q5, [x10], #32\n	stp q6, q7, [x10], #32\n" \
	"	stp q8, q9, [x10], #32\n	stp q10, q11, [x10], #32\n	stp q12, q13, [x10], #32\n	stp q14, q15, [x10], #32\n" \
	"	stp q16, q17, [x10], #32\n	stp q18, q19, [x10], #32\n	stp q20, q21, [x10], #32\n	stp q22, q23, [x10], #32\n" \
	"	stp q24, q25, [x10], #32\n	stp q26, q27, [x10], #32\n	stp q28, q29, [x10], #32\n	stp q30, q31, [x10], #32\n" \
	"	msr fpcr, xzr\n	msr fpsr, xzr\n" \
	"	ldp x19, x20, [sp]\n	ldp x21, x22, [sp, #16]\n	ldp x23, x24, [sp, #32]\n" \
	"	ldp x25, x26, [sp, #48]\n	ldp x27, x28, [sp, #64]\n	ldp x29, x30, [sp, #80]\n	ldr x18, [sp, #104]\n" \
	"	add sp, sp, #128\n	ret\n")

CHECKED(checked, "	svc #0\n");
CHECKED(spinning, "7:	ldr w10, [x0]\n	cbz w10, 7b\n	mov x0, #0\n" MOVX(10, 0x10a));
CHECKED(counting, "7:	ldr w10, [x0]\n	sub w10, w10, #1\n	str w10, [x0]\n	cbnz w10, 7b\n	mov x0, #0\n" MOVX(10, 0x10a));

static void fpu_prepare(void) {}

static void fpu_fill(struct block *b)
{
	// The callee-saved halves d8 to d15 are only garbage to this program, which uses no floating point.
	b->fpu_in = aligned_alloc(64, 512);
	b->fpu_out = aligned_alloc(64, 512);
	for (int i = 0; i < 512; i++)
		b->fpu_in[i] = i * 7 + 1;
	b->fpcr[0] = 3 << 22; // rounding toward zero
	b->fpcr[1] = 0x1f;    // all exceptions seen
}

static int fpu_same(struct block *b)
{
	return !memcmp(b->fpu_in, b->fpu_out, 512) && b->fpcr[0] == 3 << 22 && (b->fpcr[1] & 0x1f) == 0x1f;
}

static int regs_same(struct block *b)
{
	// A stop of any kind has the kernel go on with a call that has a time-out by way of restart_syscall, whose number it leaves in x8
	// (setup_restart_syscall() in arch/arm64/kernel/signal.c).
	if (memcmp(b->regs + 1, b->args + 1, sizeof b->args - sizeof b->args[0]) || (b->regs[8] != b->nr && b->regs[8] != SYS_restart_syscall))
		return 0;
	for (unsigned long i = 6; i <= 30; i++)
		if (i != 8 && b->regs[i] != (0x100 + i) * 0x0001000100010001UL)
			return 0;
	return 1;
}

static int stack_same(struct block *b) { return b->sp_in == b->sp_out; }
static unsigned long flags_of(unsigned long f) { return f & 0xf0000000; }

static __thread unsigned long base_tls;
static void base_set(void) { __asm__ volatile("mrs %0, tpidr_el0" : "=r"(base_tls)); }
static int base_same(void)
{
	// With another thread pointer base_tls would be read from elsewhere.
	unsigned long tp;
	__asm__ volatile("mrs %0, tpidr_el0" : "=r"(tp));
	return tp == base_tls;
}

#else
#error "no checked() for this architecture"
#endif

// ---- the calls -----------------------------------------------------------------------------------------------------

static struct shared {
	uint32_t word[2]; // futex words, by slot
	pid_t tid[2];
} *shared;

static pid_t helper;
static volatile sig_atomic_t handled[2]; // SIGUSR1, by slot
static __thread int my_slot;

static void on_usr1(int sig) { (void)sig; handled[my_slot]++; }

enum how { PLAIN, TS, TV, MSEC, RCVTIMEO }; // where the relative time-out is

struct ctx {
	const char *name;
	int slot;
	long nr, want;
	unsigned long a[6];
	int timed;              // ends by itself after us
	int busy;               // never waits, and is made again and again until the event, with a loop in between
	int64_t us;
	enum how how;           // to be shortened when the call is issued again after an EINTR
	int arg;                // MSEC: which argument
	int usr1;               // woken by SIGUSR1: EINTR is the result
	void (*prepare)(struct ctx *); // in the helper, before the call
	void (*event)(struct ctx *);   // in the helper: what the call waits for
	int (*verify)(struct ctx *);   // further results
	int fd[4];
	sigset_t inner;
	struct timespec ts, rem;
	struct timeval tv;
	struct { const sigset_t *set; size_t size; } sixth;
	unsigned char buf[256];
	struct msghdr mh;
	struct iovec iov;
	struct sembuf sem;
	struct itimerspec its;
	siginfo_t si;
	struct iocb cb, *cbp;
	int status;
	int64_t left; // what the call says is left of its time-out, in us, or -1
	struct { void *at; size_t len; unsigned char want[256]; } mem[6];
	int nmem;
	int64_t began, took;
	struct sockaddr_un addr;
	socklen_t addrlen;
};

// expect says what memory must hold after the call.
static void expect(struct ctx *c, void *at, size_t len, const void *want)
{
	c->mem[c->nmem].at = at;
	c->mem[c->nmem].len = len;
	memcpy(c->mem[c->nmem++].want, want, len);
}

static void keep(struct ctx *c, void *at, size_t len) { expect(c, at, len, at); }

// expect_buf: buf gets these bytes, and not one more.
static void expect_buf(struct ctx *c, const char *bytes, size_t n)
{
	unsigned char want[sizeof c->buf];
	memset(want, PATTERN, sizeof want);
	memcpy(want, bytes, n);
	expect(c, c->buf, sizeof c->buf, want);
}

#define P(x) ((unsigned long)(x))
#define CALL(number, ...) do { unsigned long v[] = { __VA_ARGS__ }; c->nr = (number); memcpy(c->a, v, sizeof v); } while (0)
#define IS(s) (!strcmp(c->name, s))

static void put(int fd, const void *p, size_t n) { if (write(fd, p, n) != (ssize_t)n) _exit(96); }

static void ev_futex(struct ctx *c)
{
	shared->word[c->slot] = 1;
	syscall(SYS_futex, &shared->word[c->slot], FUTEX_WAKE, 1, NULL, NULL, 0);
}
static void ev_write(struct ctx *c) { put(c->fd[1], "x", 1); }
static void ev_eventfd(struct ctx *c) { uint64_t v = 5; put(c->fd[0], &v, 8); }
static void ev_tty(struct ctx *c) { put(c->fd[1], "x\n", 2); }
static void ev_usr1(struct ctx *c) { syscall(SYS_tgkill, 1, shared->tid[c->slot], SIGUSR1); }
static void ev_exit(struct ctx *c) { (void)c; _exit(HELPER_CODE); }
static void ev_drain(struct ctx *c)
{
	char b[4096];
	for (int i = 0; i < 17; i++)
		if (read(c->fd[0], b, sizeof b) <= 0)
			_exit(95);
}
static void ev_inotify(struct ctx *c) { int f = openat(c->fd[1], "x", O_CREAT | O_RDWR, 0600); if (f < 0) _exit(94); close(f); unlinkat(c->fd[1], "x", 0); }
static void ev_connect(struct ctx *c)
{
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(s, (struct sockaddr *)&c->addr, c->addrlen))
		_exit(93);
}
static void ev_accept(struct ctx *c) { if (accept(c->fd[0], NULL, NULL) < 0) _exit(92); }
static void pre_flock(struct ctx *c)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", c->fd[0]);
	c->fd[1] = open(path, O_RDWR); // another open file description than that of PID 1
	if (c->fd[1] < 0 || flock(c->fd[1], LOCK_EX))
		_exit(91);
}
static void ev_flock(struct ctx *c) { flock(c->fd[1], LOCK_UN); }
static void pre_lock(struct ctx *c)
{
	struct flock l = { .l_type = F_WRLCK };
	if (fcntl(c->fd[0], F_SETLK, &l))
		_exit(90);
}
static void ev_lock(struct ctx *c)
{
	struct flock l = { .l_type = F_UNLCK };
	fcntl(c->fd[0], F_SETLK, &l);
}
static void ev_msg(struct ctx *c)
{
	struct { long type; char text[4]; } m = { 1, "abc" };
	if (msgsnd(c->fd[0], &m, 4, 0))
		_exit(89);
}
static void ev_sem(struct ctx *c)
{
	struct sembuf s = { 0, 1, 0 };
	if (semop(c->fd[0], &s, 1))
		_exit(88);
}

static int v_wait4(struct ctx *c) { return WIFEXITED(c->status) && WEXITSTATUS(c->status) == HELPER_CODE; }
static int v_waitid(struct ctx *c) { return c->si.si_code == CLD_EXITED && c->si.si_status == HELPER_CODE && c->si.si_pid == helper; }
static int v_sigwait(struct ctx *c) { return c->si.si_signo == SIGUSR1 && c->si.si_code == SI_TKILL && c->si.si_pid == helper; }
static int v_aio(struct ctx *c) { struct io_event e; memcpy(&e, c->buf, sizeof e); return e.data == 77 && (e.res & POLLIN); }
static int v_rem(struct ctx *c) { c->left = c->rem.tv_sec * 1000000LL + c->rem.tv_nsec / 1000; return 1; }
static int v_ts(struct ctx *c) { c->left = c->ts.tv_sec * 1000000LL + c->ts.tv_nsec / 1000; return 1; }
#ifdef SYS_select
static int v_tv(struct ctx *c) { c->left = c->tv.tv_sec * 1000000LL + c->tv.tv_usec; return 1; }
#endif

static void pipes(struct ctx *c) { if (pipe(c->fd) < 0) die("pipe"); }

static void fill_pipe(int fd)
{
	char b[4096] = { 0 };
	int fl = fcntl(fd, F_GETFL);
	fcntl(fd, F_SETFL, fl | O_NONBLOCK);
	while (write(fd, b, sizeof b) > 0)
		;
	fcntl(fd, F_SETFL, fl);
}

static int uring(struct ctx *c)
{
	struct io_uring_params p = { 0 };
	int fd = syscall(SYS_io_uring_setup, 4, &p);
	if (fd < 0)
		return -1;
	size_t len = p.sq_off.array + p.sq_entries * 4;
	unsigned char *ring = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	struct io_uring_sqe *e = mmap(NULL, p.sq_entries * sizeof *e, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	if (ring == MAP_FAILED || (void *)e == MAP_FAILED)
		return -1;
	memset(e, 0, sizeof *e);
	e->opcode = IORING_OP_POLL_ADD;
	e->fd = c->fd[0];
	e->poll_events = POLLIN;
	((uint32_t *)(ring + p.sq_off.array))[0] = 0;
	__atomic_store_n((uint32_t *)(ring + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, fd, 1, 0, 0, NULL, 0) == 1 ? fd : -1;
}

static void listener(struct ctx *c, int backlog)
{
	c->fd[0] = socket(AF_UNIX, SOCK_STREAM, 0);
	c->addr.sun_family = AF_UNIX;
	c->addrlen = sizeof c->addr;
	// A name by the kernel, in the abstract namespace.
	if (bind(c->fd[0], (struct sockaddr *)&c->addr, sizeof c->addr.sun_family) || listen(c->fd[0], backlog) ||
	    getsockname(c->fd[0], (struct sockaddr *)&c->addr, &c->addrlen))
		die("listen");
}

static void setup(struct ctx *c)
{
	uint32_t *word = &shared->word[c->slot];
	unsigned long inner = P(&c->inner);
	struct epoll_event *ev = (struct epoll_event *)c->buf;
	size_t len = strlen(c->name);
	c->timed = len > 8 && !strcmp(c->name + len - 8, "-timeout");
	c->busy = len > 5 && !strcmp(c->name + len - 5, "-busy");
	c->left = -1;
	c->nr = -2; // not known
	memset(c->buf, PATTERN, sizeof c->buf);
	c->ts = in_us(c->us);
	c->tv = (struct timeval){ c->us / 1000000, c->us % 1000000 };
	sigfillset(&c->inner);
	sigdelset(&c->inner, SIGUSR1);
	sigdelset(&c->inner, SIGCHLD); // a blocked one would be pending, and PID 1 left alone for that
	for (int i = 0; i < 6; i++)
		c->a[i] = 0xa1 + i;

	if (IS("futex")) {
		CALL(SYS_futex, P(word), FUTEX_WAIT, 0, 0);
		c->event = ev_futex;
	} else if (IS("futex-timeout")) {
		CALL(SYS_futex, P(word), FUTEX_WAIT, 0, P(&c->ts));
		c->want = -ETIMEDOUT, c->how = TS;
		keep(c, &c->ts, sizeof c->ts);
	} else if (IS("futex-bitset-timeout")) {
		CALL(SYS_futex, P(word), FUTEX_WAIT_BITSET, 0, P(&c->ts), 0, FUTEX_BITSET_MATCH_ANY);
		c->want = -ETIMEDOUT;
	} else if (IS("futex_waitv")) {
		struct { uint64_t val, addr; uint32_t flags, zero; } w = { 0, P(word), 2, 0 };
		memcpy(c->buf, &w, sizeof w);
		CALL(SYS_futex_waitv, P(c->buf), 1, 0, 0, 0);
		c->event = ev_futex;
		keep(c, c->buf, sizeof c->buf);
	} else if (!strncmp(c->name, "epoll", 5)) {
		pipes(c);
		int ep = epoll_create1(0);
		struct epoll_event e = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };
		if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd[0], &e) < 0)
			die("epoll_ctl");
		int finite = c->timed;
		if (!finite) {
			unsigned char want[sizeof c->buf];
			memset(want, PATTERN, sizeof want);
			memcpy(want, &e.events, sizeof e.events); // where there is padding the kernel leaves it alone
			memcpy(want + offsetof(struct epoll_event, data), &e.data, sizeof e.data);
			expect(c, c->buf, sizeof c->buf, want);
			c->event = ev_write, c->want = 1;
			if (c->busy) {
				put(c->fd[1], "x", 1); // and nobody reads it
				c->event = ev_futex;
			}
		} else
			keep(c, c->buf, sizeof c->buf);
		if (!strncmp(c->name, "epoll_pwait2", 12)) {
			CALL(SYS_epoll_pwait2, P(ep), P(ev), 1, finite ? P(&c->ts) : 0, inner, 8);
			c->how = TS;
		} else if (!strncmp(c->name, "epoll_pwait", 11)) {
			CALL(SYS_epoll_pwait, P(ep), P(ev), 1, finite ? P(c->us / 1000) : P(-1), inner, 8);
			c->how = MSEC, c->arg = 3;
		} else {
#ifdef SYS_epoll_wait
			CALL(SYS_epoll_wait, P(ep), P(ev), 1, finite ? P(c->us / 1000) : P(-1));
			c->how = MSEC, c->arg = 3;
#endif
		}
#ifdef SYS_poll
	} else if (IS("poll") || IS("poll-timeout")) {
		pipes(c);
		struct pollfd p = { c->fd[0], POLLIN, 0 };
		memcpy(c->buf, &p, sizeof p);
		CALL(SYS_poll, P(c->buf), 1, c->timed ? P(c->us / 1000) : P(-1));
		c->how = MSEC, c->arg = 2;
		c->event = ev_write, c->want = !c->timed;
		p.revents = c->timed ? 0 : POLLIN;
		expect(c, c->buf, sizeof p, &p);
#endif
	} else if (IS("ppoll") || IS("ppoll-timeout") || IS("ppoll-left")) {
		pipes(c);
		struct pollfd p = { c->fd[0], POLLIN, 0 };
		memcpy(c->buf, &p, sizeof p);
		CALL(SYS_ppoll, P(c->buf), 1, IS("ppoll") ? 0 : P(&c->ts), inner, 8);
		c->event = ev_write, c->want = !c->timed;
		p.revents = c->timed ? 0 : POLLIN;
		expect(c, c->buf, sizeof p, &p);
		if (!IS("ppoll"))
			c->verify = v_ts;
#ifdef SYS_select
	} else if (IS("select") || IS("select-timeout") || IS("select-left")) {
		pipes(c);
		fd_set s, *in = (fd_set *)c->buf;
		FD_ZERO(in);
		FD_SET(c->fd[0], in);
		CALL(SYS_select, c->fd[0] + 1, P(in), 0, 0, IS("select") ? 0 : P(&c->tv));
		c->event = ev_write, c->want = !c->timed;
		s = *in;
		if (c->timed)
			FD_ZERO(&s);
		expect(c, in, sizeof s, &s);
		if (!IS("select"))
			c->verify = v_tv;
#endif
	} else if (IS("pselect6") || IS("pselect6-timeout") || IS("pselect6-left")) {
		pipes(c);
		fd_set s, *in = (fd_set *)c->buf;
		FD_ZERO(in);
		FD_SET(c->fd[0], in);
		c->sixth.set = &c->inner;
		c->sixth.size = 8;
		CALL(SYS_pselect6, c->fd[0] + 1, P(in), 0, 0, IS("pselect6") ? 0 : P(&c->ts), P(&c->sixth));
		c->event = ev_write, c->want = !c->timed;
		s = *in;
		if (c->timed)
			FD_ZERO(&s);
		expect(c, in, sizeof s, &s);
		if (!IS("pselect6"))
			c->verify = v_ts;
	} else if (IS("nanosleep-timeout")) {
		CALL(SYS_nanosleep, P(&c->ts), P(&c->rem));
		keep(c, &c->ts, sizeof c->ts);
	} else if (IS("nanosleep-left")) {
		CALL(SYS_nanosleep, P(&c->ts), P(&c->rem));
		keep(c, &c->ts, sizeof c->ts);
		c->event = ev_usr1, c->usr1 = 1, c->want = -EINTR, c->verify = v_rem;
	} else if (IS("clock_nanosleep-timeout")) {
		CALL(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, P(&c->ts), P(&c->rem));
		keep(c, &c->ts, sizeof c->ts);
	} else if (IS("clock_nanosleep-left")) {
		CALL(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, P(&c->ts), P(&c->rem));
		keep(c, &c->ts, sizeof c->ts);
		c->event = ev_usr1, c->usr1 = 1, c->want = -EINTR, c->verify = v_rem;
	} else if (IS("clock_nanosleep-abs-timeout")) {
		CALL(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, P(&c->ts), P(&c->rem));
#ifdef SYS_pause
	} else if (IS("pause")) {
		c->nr = SYS_pause;
		c->event = ev_usr1, c->usr1 = 1, c->want = -EINTR;
#endif
	} else if (IS("rt_sigsuspend")) {
		CALL(SYS_rt_sigsuspend, inner, 8);
		c->event = ev_usr1, c->usr1 = 1, c->want = -EINTR;
	} else if (IS("rt_sigtimedwait") || IS("rt_sigtimedwait-timeout")) {
		sigset_t *s = (sigset_t *)c->buf;
		memset(s, 0, sizeof *s);
		sigaddset(s, SIGUSR1);
		CALL(SYS_rt_sigtimedwait, P(s), P(&c->si), c->timed ? P(&c->ts) : 0, 8);
		c->how = TS;
		c->event = ev_usr1, c->want = c->timed ? -EAGAIN : SIGUSR1;
		if (!c->timed)
			c->verify = v_sigwait;
		keep(c, c->buf, sizeof c->buf);
	} else if (IS("read-pipe")) {
		pipes(c);
		CALL(SYS_read, c->fd[0], P(c->buf), 100);
		c->event = ev_write, c->want = 1;
		expect_buf(c, "x", 1);
	} else if (IS("read-tty")) {
		c->fd[1] = posix_openpt(O_RDWR | O_NOCTTY);
		if (c->fd[1] < 0 || grantpt(c->fd[1]) || unlockpt(c->fd[1]) ||
		    (c->fd[0] = open(ptsname(c->fd[1]), O_RDWR | O_NOCTTY)) < 0)
			unsupported("pty");
		CALL(SYS_read, c->fd[0], P(c->buf), 100);
		c->event = ev_tty, c->want = 2;
		expect_buf(c, "x\n", 2);
	} else if (IS("read-socket")) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, c->fd))
			die("socketpair");
		CALL(SYS_read, c->fd[0], P(c->buf), 100);
		c->event = ev_write, c->want = 1;
		expect_buf(c, "x", 1);
	} else if (IS("read-eventfd")) {
		c->fd[0] = eventfd(0, 0);
		CALL(SYS_read, c->fd[0], P(c->buf), 8);
		c->event = ev_eventfd, c->want = 8;
		expect_buf(c, "\5\0\0\0\0\0\0\0", 8);
	} else if (IS("read-timerfd-timeout")) {
		c->fd[0] = timerfd_create(CLOCK_MONOTONIC, 0);
		CALL(SYS_read, c->fd[0], P(c->buf), 8);
		c->want = 8;
		expect_buf(c, "\1\0\0\0\0\0\0\0", 8);
	} else if (IS("read-inotify")) {
		char dir[200];
		const char *tmp = getenv("TMPDIR");
		snprintf(dir, sizeof dir, "%s/inotify-XXXXXX", tmp ? tmp : "/tmp");
		c->fd[0] = inotify_init1(0);
		if (c->fd[0] < 0 || !mkdtemp(dir) || inotify_add_watch(c->fd[0], dir, IN_CREATE) < 0)
			unsupported("inotify");
		c->fd[1] = open(dir, O_DIRECTORY | O_RDONLY); // it goes with the test's own directory
		struct { struct inotify_event e; char name[16]; } w = { { 1, IN_CREATE, 0, 16 }, "x" };
		CALL(SYS_read, c->fd[0], P(c->buf), 100);
		c->event = ev_inotify, c->want = sizeof w;
		expect_buf(c, (char *)&w, sizeof w);
	} else if (IS("write-pipe")) {
		pipes(c);
		fill_pipe(c->fd[1]);
		CALL(SYS_write, c->fd[1], P(c->buf), 100);
		c->event = ev_drain, c->want = 100;
		keep(c, c->buf, sizeof c->buf);
	} else if (IS("accept")) {
		listener(c, 8);
		CALL(SYS_accept, c->fd[0], 0, 0);
		c->event = ev_connect, c->want = -4095; // whatever descriptor is free
	} else if (IS("connect")) {
		listener(c, 0);
		ev_connect(c); // fills the queue
		c->fd[1] = socket(AF_UNIX, SOCK_STREAM, 0);
		CALL(SYS_connect, c->fd[1], P(&c->addr), c->addrlen);
		c->event = ev_accept;
		keep(c, &c->addr, sizeof c->addr);
	} else if (IS("recvmsg") || IS("recvmsg-timeout")) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, c->fd))
			die("socketpair");
		struct timeval tv = c->timed ? c->tv : (struct timeval){ 600, 0 };
		if (setsockopt(c->fd[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv))
			die("setsockopt");
		c->iov = (struct iovec){ c->buf, 100 };
		c->mh.msg_iov = &c->iov;
		c->mh.msg_iovlen = 1;
		CALL(SYS_recvmsg, c->fd[0], P(&c->mh), 0);
		c->how = RCVTIMEO;
		c->event = ev_write, c->want = c->timed ? -EAGAIN : 1;
		expect_buf(c, "x", !c->timed);
		keep(c, &c->mh, sizeof c->mh);
	} else if (IS("flock")) {
		c->fd[0] = memfd_create("lock", 0);
		CALL(SYS_flock, c->fd[0], LOCK_EX);
		c->prepare = pre_flock, c->event = ev_flock;
	} else if (IS("fcntl-lock")) {
		c->fd[0] = memfd_create("lock", 0);
		struct flock l = { .l_type = F_WRLCK };
		memcpy(c->buf, &l, sizeof l);
		CALL(SYS_fcntl, c->fd[0], F_SETLKW, P(c->buf));
		c->prepare = pre_lock, c->event = ev_lock;
		keep(c, c->buf, sizeof c->buf);
	} else if (IS("msgrcv")) {
		c->fd[0] = msgget(IPC_PRIVATE, 0600);
		if (c->fd[0] < 0)
			unsupported("msgget");
		CALL(SYS_msgrcv, c->fd[0], P(c->buf), 100, 0, 0);
		c->event = ev_msg, c->want = 4;
		expect_buf(c, "\1\0\0\0\0\0\0\0abc", 12);
	} else if (IS("semtimedop") || IS("semtimedop-timeout")) {
		c->fd[0] = semget(IPC_PRIVATE, 1, 0600);
		if (c->fd[0] < 0)
			unsupported("semget");
		c->sem = (struct sembuf){ 0, -1, 0 };
		CALL(SYS_semtimedop, c->fd[0], P(&c->sem), 1, c->timed ? P(&c->ts) : 0);
		c->how = TS;
		c->event = ev_sem, c->want = c->timed ? -EAGAIN : 0;
		keep(c, &c->sem, sizeof c->sem);
	} else if (IS("io_getevents")) {
		aio_context_t aio = 0;
		pipes(c);
		if (syscall(SYS_io_setup, 8, &aio))
			unsupported("io_setup");
		c->cb = (struct iocb){ .aio_data = 77, .aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = c->fd[0], .aio_buf = POLLIN };
		c->cbp = &c->cb;
		if (syscall(SYS_io_submit, aio, 1, &c->cbp) != 1)
			unsupported("IOCB_CMD_POLL");
		CALL(SYS_io_getevents, aio, 1, 1, P(c->buf), 0);
		c->event = ev_write, c->want = 1, c->verify = v_aio;
	} else if (IS("io_uring_enter")) {
		pipes(c);
		int fd = uring(c);
		if (fd < 0)
			unsupported("io_uring");
		CALL(SYS_io_uring_enter, fd, 0, 1, IORING_ENTER_GETEVENTS, 0, 0);
		c->event = ev_write;
	} else if (IS("wait4")) {
		CALL(SYS_wait4, 0, P(&c->status), 0, 0);
		c->event = ev_exit, c->verify = v_wait4;
	} else if (IS("waitid")) {
		CALL(SYS_waitid, P_PID, 0, P(&c->si), WEXITED, 0);
		c->event = ev_exit, c->verify = v_waitid;
	} else if (IS("waitid-pidfd")) {
		CALL(SYS_waitid, P_PIDFD, 0, P(&c->si), WEXITED, 0);
		c->event = ev_exit, c->verify = v_waitid;
	} else if (IS("sendfile")) {
		pipes(c);
		fill_pipe(c->fd[1]);
		int f = memfd_create("data", 0);
		put(f, c->buf, 100);
		lseek(f, 0, SEEK_SET);
		CALL(SYS_sendfile, c->fd[1], f, 0, 100);
		c->event = ev_drain, c->want = 100;
	} else if (IS("splice")) {
		pipes(c);
		if (pipe(c->fd + 2))
			die("pipe");
		CALL(SYS_splice, c->fd[0], 0, c->fd[3], 0, 100, 0);
		c->event = ev_write, c->want = 1;
	} else if (IS("spin")) {
		CALL(-1, P(word));
		c->event = ev_futex;
	}
	if (c->nr == -2) {
		errno = ENOSYS;
		unsupported(c->name);
	}
}

// start sets what is counted from the beginning of the call.
static void start(struct ctx *c)
{
	struct timespec end = in_us(c->began + c->us);
	if (IS("futex-bitset-timeout") || IS("clock_nanosleep-abs-timeout")) {
		c->ts = end;
		keep(c, &c->ts, sizeof c->ts);
	} else if (IS("read-timerfd-timeout")) {
		c->its.it_value = end;
		if (timerfd_settime(c->fd[0], TFD_TIMER_ABSTIME, &c->its, NULL))
			die("timerfd_settime");
	} else if (IS("wait4"))
		c->a[0] = helper;
	else if (IS("waitid"))
		c->a[1] = helper;
	else if (IS("waitid-pidfd") && (int)(c->a[1] = syscall(SYS_pidfd_open, helper, 0)) < 0)
		unsupported("pidfd_open");
}

// again shortens the time-out for a call that is issued once more after EINTR, as its man page tells programs to do.
static void again(struct ctx *c)
{
	if (!c->timed)
		return;
	int64_t left = c->began + c->us - now_us();
	if (left < 1)
		left = 1;
	switch (c->how) {
	case TS:
		c->ts = in_us(left);
		break;
	case MSEC:
		c->a[c->arg] = (left + 999) / 1000;
		break;
	case RCVTIMEO: {
		struct timeval tv = { left / 1000000, left % 1000000 };
		if (setsockopt(c->fd[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv))
			die("setsockopt");
		break;
	}
	default:
		break;
	}
}

static void *run(void *arg)
{
	struct ctx *c = arg;
	struct block b = { .flags_in = flags_value };
	int regs = 1, fpu = 1, flags = 1, stack = 1, mask = 1, pending = 1, memory = 1, base = 1, eintr = 0;
	sigset_t set, set2, pend, pend2;
	my_slot = c->slot;
	shared->tid[c->slot] = syscall(SYS_gettid);
	fpu_fill(&b);
	base_set();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN + 5);
	if (!c->usr1 || c->nr == SYS_rt_sigsuspend)
		sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	sigpending(&pend);
	c->began = now_us();
	start(c);
#define LOOK(made) do { \
		regs &= regs_same(&b); \
		fpu &= fpu_same(&b); \
		flags &= !(made) || flags_of(b.flags_in) == flags_of(b.flags_out); \
		stack &= stack_same(&b); \
		base &= base_same(); \
		sigemptyset(&set2); \
		pthread_sigmask(SIG_SETMASK, NULL, &set2); \
		mask &= !memcmp(&set, &set2, 8); \
		sigpending(&pend2); \
		pending &= !memcmp(&pend, &pend2, 8); \
	} while (0)
	for (;;) {
		if (c->busy) {
			uint32_t count = 2000;
			b.nr = -1;
			memcpy(b.args, c->a, sizeof c->a);
			b.args[0] = P(&count);
			counting(&b);
			LOOK(1);
		}
		b.nr = c->nr;
		memcpy(b.args, c->a, sizeof c->a);
		if (c->nr == -1)
			spinning(&b);
		else
			checked(&b);
		c->took = now_us() - c->began;
		LOOK(c->nr != -1);
		if (c->busy && (long)b.result == c->want && !*(volatile uint32_t *)&shared->word[c->slot])
			continue;
		if ((long)b.result != -EINTR || (c->usr1 && handled[c->slot]))
			break;
		eintr++;
		again(c);
	}
	long ret = b.result;
	for (int i = 0; i < c->nmem; i++)
		if (!(c->mem[i].at == &c->ts && eintr)) // shortened by again()
			memory &= !memcmp(c->mem[i].at, c->mem[i].want, c->mem[i].len);
	int result = ret == c->want || (c->want == -4095 && ret > 2) || (IS("wait4") && ret == helper);
	int data = !result || !c->verify || c->verify(c);
#define OK(x) ((x) ? "ok" : "bad")
	say("done call=%s ret=%ld result=%s us=%lld left=%lld eintr=%d handled=%d regs=%s fpu=%s flags=%s stack=%s base=%s mask=%s pending=%s memory=%s data=%s",
	    c->name, ret, OK(result), (long long)c->took, (long long)c->left, eintr, (int)handled[c->slot], OK(regs), OK(fpu), OK(flags),
	    OK(stack), OK(base), OK(mask), OK(pending), OK(memory), OK(data));
	return NULL;
}

static pid_t own_child(void)
{
	pid_t p = xfork();
	if (p == 0)
		_exit(OWN_CODE);
	siginfo_t si;
	if (waitid(P_PID, p, &si, WEXITED | WNOWAIT) < 0)
		die("waitid");
	return p;
}

// orphans makes zombies. They are dead when it returns: a SIGCHLD that came later, while pthread_create has all signals blocked, would be
// kept, and interrupt what the new thread sits in.
static void orphans(int n)
{
	pid_t mid = xfork();
	if (mid == 0) {
		pid_t *pids = calloc(n, sizeof *pids);
		setsid();
		for (int i = 0; i < n; i++)
			if ((pids[i] = xfork()) == 0)
				_exit(ORPHAN_CODE);
		for (int i = 0; i < n; i++) {
			siginfo_t si;
			if (waitid(P_PID, pids[i], &si, WEXITED | WNOWAIT))
				die("waitid");
		}
		_exit(0);
	}
	while (waitpid(mid, NULL, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
}

static void queue(int sig, int value)
{
	if (sigqueue(1, sig, (union sigval){ .sival_int = value }))
		die("sigqueue");
}

// waiting fetches the signals that were pending all the time: SIGUSR2 once, three real-time ones with 1, 2, 3.
static int waiting(void)
{
	sigset_t s;
	siginfo_t si;
	struct timespec none = { 0, 0 };
	sigemptyset(&s);
	sigaddset(&s, SIGUSR2);
	if (sigtimedwait(&s, &si, &none) != SIGUSR2 || sigtimedwait(&s, &si, &none) != -1)
		return 0;
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN + 5);
	for (int i = 1; i <= 3; i++)
		if (sigtimedwait(&s, &si, &none) != SIGRTMIN + 5 || si.si_value.sival_int != i || si.si_code != SI_QUEUE)
			return 0;
	return sigtimedwait(&s, &si, &none) == -1;
}

int main(int argc, char **argv)
{
	if (argc != 6 || getpid() != 1)
		return 2;
	static struct ctx ctx[2];
	int other = strcmp(argv[2], "-") != 0, who = !strcmp(argv[3], "thread");
	int n = 1 + other;
	if (unshare(CLONE_NEWIPC)) // System V objects end with us
		errno = 0;
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("mmap");
	fpu_prepare();
	struct sigaction sa = { .sa_handler = on_usr1, .sa_flags = SA_RESTART };
	sigaction(SIGUSR1, &sa, NULL);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN + 5);
	sigprocmask(SIG_SETMASK, &set, NULL);
	for (int i = 0; i < n; i++) {
		ctx[i].name = argv[1 + i];
		ctx[i].slot = i;
		ctx[i].us = atoll(argv[5]) * 1000;
		setup(&ctx[i]);
	}
	int sync[2];
	if (pipe(sync))
		die("pipe");
	helper = xfork();
	if (helper == 0) {
		char c;
		for (int i = 0; i < n; i++)
			if (ctx[i].prepare)
				ctx[i].prepare(&ctx[i]);
		put(sync[1], "x", 1);
		helper = getpid();
		if (read(0, &c, 1) != 1)
			_exit(97);
		for (int last = 0; last < 2; last++) // what ends this process comes last
			for (int i = 0; i < n; i++)
				if (ctx[i].event && !ctx[i].timed && last == (ctx[i].event == ev_exit))
					ctx[i].event(&ctx[i]);
		for (;;)
			pause();
	}
	char c;
	close(sync[1]);
	if (read(sync[0], &c, 1) != 1)
		die("helper");
	pid_t mine = own_child();
	orphans(atoi(argv[4]));
	if (kill(1, SIGUSR2))
		die("kill");
	for (int i = 1; i <= 3; i++)
		queue(SIGRTMIN + 5, i);
	if (ctx[0].busy)
		say("ready -1 -1");
	else
		say("ready %ld %ld", ctx[0].nr, other ? ctx[1].nr : ctx[0].nr);
	pthread_t t;
	if (who || other) {
		if (pthread_create(&t, NULL, run, &ctx[who ? 0 : 1]))
			die("pthread_create");
	}
	if (who ? other : 1)
		run(&ctx[who ? 1 : 0]);
	if (who || other)
		pthread_join(t, NULL);
	int st = -1;
	pid_t got = waitpid(mine, &st, WNOHANG);
	say("end own=%s signals=%s", OK(got == mine && WIFEXITED(st) && WEXITSTATUS(st) == OWN_CODE), OK(waiting()));
	pause();
	return 0;
}
