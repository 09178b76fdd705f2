/*
 * System call sites that are called often, in every way that could tell whether they were rewritten to jumps: signals
 * and single steps in the middle, debuggers' reads, changed and moved text, other mappings where islands may be.
 */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { OFTEN = 2000 };

/* Sites of the program's own, in a page of text that nothing else shares. */
asm(".pushsection .text.sites, \"ax\", @progbits\n"
    ".balign 4096\n"
    ".globl sites, sites_end, number, number_site, zero, zero_site, sixth, sixth_site, third, third_site, extended, between, loads, wide, locks, moves\n"
    "sites: nop\n nop\n"
    "number:\n mov $39, %eax\n"
    "number_site: syscall\n ret\n"
    "zero: xor %eax, %eax\n"
    "zero_site: syscall\n ret\n"
    " nopw 0(%rax,%rax,1)\n"
    "third: mov %edi, %eax\n mov $5, %edx\n"
    "third_site: syscall\n ret\n"
    "extended: mov %rdi, %rax\n xor %edi, %edi\n mov $3, %r8d\n syscall\n ret\n"
    "sixth: mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n mov %r8, %r10\n mov %r9, %r8\n"
    " mov 8(%rsp), %r9\n"
    "sixth_site: syscall\n ret\n"
    /* As cancellation points and locks of glibc have them: an instruction between, and two loads. */
    "between: push %rdi\n push %rdi\n mov $146, %eax\n mov 8(%rsp), %edi\n syscall\n pop %rdi\n pop %rdi\n ret\n"
    "loads: push %rsi\n push %rdi\n mov $72, %eax\n xor %edi, %edi\n mov 8(%rsp), %rsi\n mov (%rsp), %edi\n"
    " mov 0(%rsp), %rdi\n .byte 0x48, 0x8b, 0x74, 0x24, 8, 0x8b, 0x7c, 0x24, 0\n syscall\n pop %rdi\n pop %rsi\n ret\n"
    "wide: push %rdi\n push %rsi\n mov $72, %eax\n pop %rsi\n push %rsi\n mov 8(%rsp), %rdi\n syscall\n pop %rsi\n pop %rdi\n ret\n"
    /* As Go has it, with the space behind filled up. */
    "moves: push %rbx\n mov %rdi, %rax\n mov %rsi, %rbx\n mov %rdx, %rcx\n mov %rcx, %rsi\n mov %rbx, %rdi\n syscall\n pop %rbx\n ret\n"
    ".fill 8, 1, 0xcc\n"
    "locks: mov %edi, %esi\n mov $39, %eax\n xor $0x81, %sil\n syscall\n mov %rsi, %rax\n ret\n"
    ".balign 4096\n"
    "sites_end:\n"
    ".popsection\n");
extern char sites[], sites_end[], number_site[], zero_site[], third_site[], sixth_site[];
extern long number(void), zero(int fd, void *to, size_t bytes), third(long call, long a, long b), extended(long call);
extern long sixth(long call, ...), between(long policy), loads(long fd, long command), wide(long fd, long command);
extern long locks(long operation), moves(long call, long a, long b);

static char original[4096];

static void often(void) {
    char byte;
    for (int i = 0; i < OFTEN; i++) {
        number();
        zero(-1, &byte, 1);
        third(SYS_getpid, 0, 0);
        extended(SYS_getpid);
        sixth(SYS_getpid, 0, 0, 0, 0, 0, 0);
        between(1), loads(1, F_GETFD), wide(1, F_GETFD), locks(5);
        moves(SYS_fcntl, 1, F_GETFD);
    }
}

/* Whether a debugger's view of the text is the file's. */
static int unchanged(void) {
    char seen[4096];
    struct iovec to = {seen, sizeof seen}, from = {sites, sizeof seen};
    if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != sizeof seen || memcmp(seen, original, sizeof seen))
        return 0;
    int memory = open("/proc/self/mem", O_RDONLY);
    if (pread(memory, seen, sizeof seen, (off_t)sites) != sizeof seen || memcmp(seen, original, sizeof seen))
        return 0;
    close(memory);
    int ends[2];
    if (pipe(ends) || write(ends[1], sites, sizeof seen) != sizeof seen || read(ends[0], seen, sizeof seen) != sizeof seen)
        return 0;
    close(ends[0]);
    close(ends[1]);
    return memcmp(seen, original, sizeof seen) == 0;
}

static int work(void) {
    char byte;
    return number() == getpid() && zero(-1, &byte, 1) == -EBADF && third(SYS_getpid, 0, 0) == getpid() &&
           extended(SYS_getpid) == getpid() && sixth(SYS_getpid, 0, 0, 0, 0, 0, 0) == getpid() && between(0) == 0 &&
           between(SCHED_FIFO) == 99 && between(77) == -EINVAL && loads(1, F_GETFD) == 0 && loads(-1, F_GETFD) == -EBADF &&
           loads(1, 9999) == -EINVAL && wide(1, F_GETFD) == 0 && wide(-1, F_GETFD) == -EBADF && locks(0) == 0x81 &&
           locks(0x81) == 0 && moves(SYS_fcntl, 1, F_GETFD) == 0 && moves(SYS_fcntl, -1, F_GETFD) == -EBADF;
}

/* ---- registers ---- */

static void registers(void) {
    long ok = 1;
    for (int i = 0; i < OFTEN; i++) {
        unsigned long rax, rcx, r11, before, after, rdi = 0x1111, rsi = 0x2222, rdx = 0x3333;
        register unsigned long r8 asm("r8") = 8, r9 asm("r9") = 9, r10 asm("r10") = 10;
        /* With DF and CF set. */
        asm volatile("std\n stc\n pushfq\n pop %[before]\n mov $39, %%eax\n 1: syscall\n pushfq\n pop %[after]\n cld\n"
                     "lea 1b+2(%%rip), %[edge]\n sub %[edge], %%rcx"
                     : "=&a"(rax), "=&c"(rcx), "=&r"(r11), [before] "=&b"(before), [after] "=&r"(after),
                       [edge] "=&r"(r11), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r8), "+r"(r9), "+r"(r10)
                     :
                     : "r11", "memory", "cc");
        ok &= rax == (unsigned long)getpid() && rcx == 0 && before == after && (before & 0x401) == 0x401;
        ok &= rdi == 0x1111 && rsi == 0x2222 && rdx == 0x3333 && r8 == 8 && r9 == 9 && r10 == 10;
    }
    CHECK("registers and flags", ok);
}

/* ---- signals ---- */

static volatile sig_atomic_t ticks, strange;
static unsigned long low[64], high[64];
static int texts;

static void on_tick(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    unsigned long rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    int inside = 0;
    for (int i = 0; i < texts; i++)
        inside |= low[i] <= rip && rip < high[i];
    ticks++;
    strange += !inside;
}

static void note_texts(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], prot[5];
    texts = 0;
    while (maps && fgets(line, sizeof line, maps) && texts < 64)
        if (sscanf(line, "%lx-%lx %4s", &low[texts], &high[texts], prot) == 3 && prot[2] == 'x')
            texts++;
    if (maps)
        fclose(maps);
}

static void signals(void) {
    note_texts();
    struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval each = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &each, NULL);
    int ok = 1;
    while (ticks < 200)
        ok &= work();
    setitimer(ITIMER_REAL, &never, NULL);
    CHECK("calls beside signals", ok);
    CHECK("signals come in mapped text", strange == 0);
}

static int restart_pipe[2];

static void on_alarm(int signal) {
    (void)signal;
    static int times;
    if (++times == 5 && write(restart_pipe[1], "x", 1) != 1)
        abort();
}

static void restarts(void) {
    char byte;
    struct itimerval each = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    if (pipe(restart_pipe))
        abort();
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &each, NULL);
    CHECK("a call starts again", zero(restart_pipe[0], &byte, 1) == 1 && byte == 'x');
    action.sa_flags = 0;
    sigaction(SIGALRM, &action, NULL);
    CHECK("a call is interrupted", zero(restart_pipe[0], &byte, 1) == -EINTR);
    setitimer(ITIMER_REAL, &never, NULL);
}

/* ---- single steps ---- */

static volatile int steps;
static struct {
    unsigned long at, rax, rdx, r9, flags;
} trail[64];

static void on_step(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned long rip = regs[REG_RIP];
    if ((unsigned long)sites <= rip && rip < (unsigned long)sites_end && steps < 64) {
        trail[steps].at = rip - (unsigned long)sites;
        trail[steps].rax = steps == 0 ? 0 : regs[REG_RAX] == getpid() ? 1 : regs[REG_RAX];
        trail[steps].rdx = regs[REG_RDX];
        trail[steps].r9 = regs[REG_R9];
        trail[steps].flags = regs[REG_EFL] & 0x8c5; /* AF is undefined after xor */
        steps++;
    }
}

#define STEP(CALL)                                                                                 \
    ({                                                                                             \
        steps = 0;                                                                                 \
        asm volatile("pushq $0x102\n popfq" ::: "memory", "cc");                                     \
        CALL;                                                                                      \
        asm volatile("pushfq\n andl $~0x100, (%%rsp)\n popfq" ::: "memory", "cc");                 \
        printf("%s:", #CALL);                                                                      \
        for (int i = 0; i < steps; i++)                                                            \
            printf(" %lx(%lx %lx %lx %lx)", trail[i].at, trail[i].rax,                             \
                   i ? trail[i].rdx - trail[0].rdx : 0, i ? trail[i].r9 - trail[0].r9 : 0,         \
                   trail[i].flags & (i ? ~0ul : 0));                                               \
        printf("\n");                                                                              \
    })

static void single_steps(void) {
    struct sigaction action = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    for (int round = 0; round < 2; round++) {
        STEP(number());
        STEP(zero(-1, NULL, 0));
        STEP(third(SYS_getpid, 0, 0));
        STEP(extended(SYS_getpid));
        STEP(sixth(SYS_getpid, 0, 0, 0, 0, 0, 9));
        STEP(between(SCHED_FIFO));
        STEP(loads(1, F_GETFD));
        STEP(wide(1, F_GETFD));
        STEP(locks(5));
        STEP(moves(SYS_fcntl, 1, F_GETFD));
    }
    CHECK("calls after single steps", work());
}

/* ---- text that changes ---- */

static void jump_to_the_call(void) {
    long result = SYS_getpid;
    void *site = number_site;
    asm volatile("call *%1" : "+a"(result) : "r"(site) : "rcx", "r11", "memory");
    CHECK("a jump to the syscall instruction", result == getpid());
}

static void changed_text(void) {
    CHECK("writable", mprotect(sites, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
    CHECK("the program's own", memcmp(sites, original, 4096) == 0);
    often();
    CHECK("it stays so", memcmp(sites, original, 4096) == 0);
    ((unsigned char *)number)[1] = SYS_getuid;
    asm volatile("" ::: "memory");
    for (int i = 0; i < OFTEN; i++)
        if (number() != (long)getuid()) {
            CHECK("changed code", 0);
            return;
        }
    ((unsigned char *)number)[1] = SYS_getpid;
    CHECK("not writable", mprotect(sites, 4096, PROT_READ | PROT_EXEC) == 0);
    often();
    CHECK("calls from changed text", work());
}

static int own_file(void) {
    int file = open("/proc/self/exe", O_RDONLY);
    if (file < 0)
        abort();
    return file;
}

/* Where the page of sites is in the file. */
static off_t place_in_file(int file) {
    static char page[4096];
    for (off_t at = 0; pread(file, page, sizeof page, at) == sizeof page; at += sizeof page)
        if (!memcmp(page, original, sizeof page))
            return at;
    return -1;
}

static void mapped_again(void) {
    int file = own_file();
    off_t at = place_in_file(file);
    CHECK("the file shows the original", at >= 0);
    CHECK("fixed, over the text",
          mmap(sites, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, at) == sites && work());
    often();
    CHECK("calls from text mapped anew", work() && unchanged());
    char *second = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, at);
    close(file);
    long (*second_number)(void) = (long (*)(void))(second + ((char *)number - sites));
    int ok = second != MAP_FAILED;
    for (int i = 0; ok && i < OFTEN; i++)
        ok = second_number() == getpid();
    CHECK("a second mapping", ok);
    char *third_place = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *moved = mremap(second, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, third_place);
    second_number = (long (*)(void))(moved + ((char *)number - sites));
    for (int i = 0; ok && i < OFTEN; i++)
        ok = second_number() == getpid();
    CHECK("moved", moved == third_place && ok);
    CHECK("gone", munmap(moved, 4096) == 0);
    CHECK("dropped", madvise(sites, 4096, MADV_DONTNEED) == 0 && work());
}

/* Maps everything that is free within reach of a jump, where islands must be. */
static void crowded(void) {
    const unsigned long step = 64 << 20;
    unsigned long around = (unsigned long)sites & ~(step - 1);
    unsigned long first = around > (2ul << 30) ? around - (2ul << 30) : 0;
    int ok = 1;
    for (unsigned long at = first; at < around + (2ul << 30); at += step)
        mmap((void *)at, step, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    for (unsigned long at = around - step < around ? around - step : 0; at < around + 2 * step; at += 4096) {
        mmap((void *)at, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        if (at % (1 << 20) == 0)
            ok &= work();
    }
    often();
    CHECK("calls where everything is mapped", ok && work() && unchanged());
}

/* ---- processes and threads ---- */

static void *in_thread(void *unused) {
    often();
    return work() ? unused : NULL;
}

static void processes(void) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        often();
        _exit(work() && unchanged() ? 7 : 1);
    }
    CHECK("a child", waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    for (int i = 0; i < 50; i++) {
        child = vfork();
        if (child == 0)
            _exit(number() == 0);
        if (waitpid(child, &status, 0) != child || status != 0) {
            CHECK("vfork", 0);
            return;
        }
    }
    pthread_t threads[4];
    void *result;
    int ok = 1;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, in_thread, sites);
    for (int i = 0; i < 4; i++)
        ok &= pthread_join(threads[i], &result) == 0 && result == sites;
    CHECK("threads", ok);
    for (int i = 0; i < 30; i++) {
        child = fork();
        if (child == 0) {
            sixth(SYS_execve, "/proc/self/exe", (char *[]){"rewritten", "child", NULL}, (char *[]){NULL}, 0, 0, 0);
            _exit(1);
        }
        ok &= waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 9;
    }
    CHECK("programs anew", ok);
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) {
        often();
        return work() ? 9 : 1;
    }
    int file = own_file();
    /* Loads would show rewritten bytes, so the original is taken before anything is called often. */
    memcpy(original, sites, sizeof original);
    close(file);
    single_steps();
    often();
    CHECK("calls", work());
    CHECK("debuggers see the file's text", unchanged());
    registers();
    signals();
    restarts();
    single_steps();
    jump_to_the_call();
    processes();
    mapped_again();
    crowded();
    processes();
    changed_text();
    return check_failures != 0;
}
