/* Every fault a program can cause arrives as its signal, with the right code and address. */
#define _GNU_SOURCE
#include "check.h"
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

static sigjmp_buf escape;
static volatile int seen_signal, seen_code, seen_trap;
static volatile uintptr_t seen_address, seen_instruction;

static void on_fault(int signal, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    seen_signal = signal;
    seen_code = info->si_code;
    seen_address = (uintptr_t)info->si_addr;
    seen_instruction = registers[REG_RIP];
    seen_trap = registers[REG_TRAPNO];
    siglongjmp(escape, 1);
}

/* Runs STATEMENT, which must raise SIGNAL with CODE from trap TRAP. */
#define FAULT(NAME, SIGNAL, CODE, TRAP, STATEMENT)                                                 \
    do {                                                                                           \
        seen_signal = 0;                                                                           \
        if (!sigsetjmp(escape, 1)) {                                                               \
            STATEMENT;                                                                             \
        }                                                                                          \
        if (seen_signal != SIGNAL || seen_code != CODE || seen_trap != TRAP)                       \
            printf("signal %d code %d trap %d\n", seen_signal, seen_code, seen_trap);              \
        CHECK(NAME, seen_signal == SIGNAL && seen_code == CODE && seen_trap == TRAP);              \
    } while (0)

static char alternate[1 << 16];
static volatile int depth_sum;

static int recurse(int depth) {
    volatile char frame[1024];
    frame[0] = (char)depth;
    return depth < 0 ? 0 : recurse(depth + 1) + frame[0];
}

static volatile int count;
static void on_count(int signal) { (void)signal, count++; }

int main(void) {
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (int i = 0; i < 5; i++)
        sigaction(signals[i], &action, NULL);

    FAULT("divide error", SIGFPE, FPE_INTDIV, 0, asm volatile("xor %%ecx, %%ecx\n divl %%ecx" ::: "eax", "ecx", "edx"));
    FAULT("breakpoint", SIGTRAP, SI_KERNEL, 3, asm volatile("int3"));
    FAULT("invalid opcode", SIGILL, ILL_ILLOPN, 6, asm volatile("ud2"));
    FAULT("privileged instruction", SIGSEGV, SI_KERNEL, 13, asm volatile("hlt"));
    FAULT("privileged register", SIGSEGV, SI_KERNEL, 13, asm volatile("mov %%cr0, %%rax" ::: "rax"));
    FAULT("port input", SIGSEGV, SI_KERNEL, 13, asm volatile("inb $0x80, %%al" ::: "eax"));
    FAULT("non-canonical address", SIGSEGV, SI_KERNEL, 13,
          asm volatile("movabs $0x8000000000000000, %%rax\n movb (%%rax), %%al" ::: "rax"));
    FAULT("upper half", SIGSEGV, SEGV_MAPERR, 14,
          asm volatile("mov $0xffffffff80000000, %%rax\n movb (%%rax), %%al" ::: "rax"));
    CHECK("with its address", seen_address == 0xffffffff80000000);
    FAULT("null pointer", SIGSEGV, SEGV_MAPERR, 14, asm volatile("movb 16, %%al" ::: "eax"));
    CHECK("with its address", seen_address == 16);
    void (*volatile nowhere)(void) = (void (*)(void))0x1230;
    FAULT("call of nothing", SIGSEGV, SEGV_MAPERR, 14, nowhere());
    CHECK("with the instruction's address", seen_address == 0x1230 && seen_instruction == 0x1230);
    FAULT("SSE division by zero", SIGFPE, FPE_FLTDIV, 19,
          _mm_setcsr(0x1d80);
          asm volatile("mov $1, %%eax\n cvtsi2sd %%eax, %%xmm0\n pxor %%xmm1, %%xmm1\n divsd %%xmm1, %%xmm0" ::: "eax", "xmm0", "xmm1"));
    _mm_setcsr(0x1f80);
    FAULT("x87 division by zero", SIGFPE, FPE_FLTDIV, 16, asm volatile(
              "fninit\n push $0x37b\n fldcw (%%rsp)\n pop %%rax\n fld1\n fldz\n fdivrp\n fwait" ::: "rax"));
    asm volatile("fninit");
    FAULT("single step", SIGTRAP, TRAP_TRACE, 1,
          asm volatile("pushf\n orl $0x100, (%%rsp)\n popf\n nop\n nop" ::: "cc", "memory"));
    FAULT("stack overflow", SIGSEGV, SEGV_MAPERR, 14, depth_sum = recurse(0));

    struct sigaction counting = {.sa_handler = on_count, .sa_flags = SA_NODEFER};
    sigaction(SIGUSR1, &counting, NULL);
    sigset_t set, old, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK("blocked", sigprocmask(SIG_BLOCK, &set, &old) == 0 && raise(SIGUSR1) == 0 && count == 0);
    CHECK("pending", sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
    CHECK("delivered once unblocked", sigprocmask(SIG_SETMASK, &old, NULL) == 0 && count == 1);
    sigaction(SIGRTMIN, &counting, NULL);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, &old);
    union sigval value = {.sival_int = 5};
    count = 0;
    CHECK("real-time signals queue", sigqueue(getpid(), SIGRTMIN, value) == 0 &&
          sigqueue(getpid(), SIGRTMIN, value) == 0 && kill(getpid(), SIGUSR1) == 0 &&
          kill(getpid(), SIGUSR1) == 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    CHECK("two of them, and one ordinary", count == 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigqueue(getpid(), SIGRTMIN, value);
    siginfo_t info;
    CHECK("sigwaitinfo", sigwaitinfo(&set, &info) == SIGRTMIN && info.si_value.sival_int == 5 &&
          info.si_code == SI_QUEUE && info.si_pid == getpid());
    struct timespec none = {0, 1000000};
    CHECK("sigtimedwait times out", sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN);
    return check_failures != 0;
}
