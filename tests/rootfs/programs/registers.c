/*
 * Fills every general, vector, mask and x87 register, enters the kernel in one of many ways, and
 * compares them all: nothing may change but what the system call ABI gives away (rax, rcx, r11).
 * Each way is taken many times from the same place, as a kernel may treat a place differently
 * once it knows it. Prints a line for each way; exits 1 if a register changed.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

enum { GENERAL = 12, PAGE = 4096 };

struct state {
    _Alignas(64) uint8_t vector[32][64];
    uint64_t mask[8];
    uint64_t general[16];
    uint8_t x87[8][16];
    uint32_t mxcsr;
    uint16_t control;
};
_Static_assert(__builtin_offsetof(struct state, mask) == 2048, "offset in the assembly");
_Static_assert(__builtin_offsetof(struct state, general) == 2112, "offset in the assembly");
_Static_assert(__builtin_offsetof(struct state, x87) == 2240, "offset in the assembly");
_Static_assert(__builtin_offsetof(struct state, mxcsr) == 2368, "offset in the assembly");
_Static_assert(__builtin_offsetof(struct state, control) == 2372, "offset in the assembly");

/* Named in the assembly below. */
struct state before, after;
volatile uint8_t *volatile target; /* a page to touch */
volatile int flag;                 /* set by a handler or another thread */
struct timespec short_pause = {0, 1000000};
uint8_t pipe_byte;
int pipe_ends[2];

static enum { SSE, AVX, AVX512 } level;

#define EACH8(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define EACH16(M) EACH8(M) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define EACH32(M)                                                                                  \
    EACH16(M) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23) M(24) M(25) M(26) M(27) M(28) M(29)  \
    M(30) M(31)
#define LOAD_X(n) "movups " #n "*64(%%rax), %%xmm" #n "\n"
#define LOAD_Y(n) "vmovups " #n "*64(%%rax), %%ymm" #n "\n"
#define LOAD_Z(n) "vmovups " #n "*64(%%rax), %%zmm" #n "\n"
#define LOAD_K(n) "kmovw 2048+" #n "*8(%%rax), %%k" #n "\n"
#define SAVE_X(n) "movups %%xmm" #n ", " #n "*64(%%rax)\n"
#define SAVE_Y(n) "vmovups %%ymm" #n ", " #n "*64(%%rax)\n"
#define SAVE_Z(n) "vmovups %%zmm" #n ", " #n "*64(%%rax)\n"
#define SAVE_K(n) "kmovw %%k" #n ", 2048+" #n "*8(%%rax)\n"
#define SAVE_G(i, r) "mov %%" #r ", 2112+" #i "*8(%%rax)\n"
#define LOAD_G(i, r) "mov 2112+" #i "*8(%%rax), %%" #r "\n"
#define GENERALS(M)                                                                                \
    M(0, rbx) M(1, rbp) M(2, r8) M(3, r9) M(4, r10) M(5, r12) M(6, r13) M(7, r14) M(8, r15)        \
    M(9, rdi) M(10, rsi) M(11, rdx)

/* Load everything, do ENTRY, store everything. 256 bytes keep clear of the compiler's red zone. */
#define RUN(LOADS, SAVES, ENTRY, END)                                                              \
    asm volatile("sub $256, %%rsp\n push %%rbp\n push %%rbx\n"                                     \
                 "lea before(%%rip), %%rax\n"                                                      \
                 "fninit\n fldcw 2372(%%rax)\n"                                                    \
                 "fldt 2240+7*16(%%rax)\n fldt 2240+6*16(%%rax)\n fldt 2240+5*16(%%rax)\n"         \
                 "fldt 2240+4*16(%%rax)\n fldt 2240+3*16(%%rax)\n fldt 2240+2*16(%%rax)\n"         \
                 "fldt 2240+1*16(%%rax)\n fldt 2240+0*16(%%rax)\n"                                 \
                 "ldmxcsr 2368(%%rax)\n" LOADS GENERALS(LOAD_G) ENTRY                              \
                 "lea after(%%rip), %%rax\n" SAVES GENERALS(SAVE_G)                                \
                 "stmxcsr 2368(%%rax)\n fnstcw 2372(%%rax)\n"                                      \
                 "fstpt 2240+0*16(%%rax)\n fstpt 2240+1*16(%%rax)\n fstpt 2240+2*16(%%rax)\n"      \
                 "fstpt 2240+3*16(%%rax)\n fstpt 2240+4*16(%%rax)\n fstpt 2240+5*16(%%rax)\n"      \
                 "fstpt 2240+6*16(%%rax)\n fstpt 2240+7*16(%%rax)\n fninit\n" END                  \
                 "pop %%rbx\n pop %%rbp\n add $256, %%rsp\n"                                       \
                 :                                                                                 \
                 :                                                                                 \
                 : "rax", "rcx", "rdx", "rdi", "rsi", "r8", "r9", "r10", "r11", "r12", "r13",      \
                   "r14", "r15", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",   \
                   "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",    \
                   "xmm15")

#define ENTER(ENTRY)                                                                               \
    do {                                                                                           \
        if (level == AVX512)                                                                       \
            RUN(EACH32(LOAD_Z) EACH8(LOAD_K), EACH32(SAVE_Z) EACH8(SAVE_K), ENTRY,                 \
                "vzeroupper\n");                                                                   \
        else if (level == AVX)                                                                     \
            RUN(EACH16(LOAD_Y), EACH16(SAVE_Y), ENTRY, "vzeroupper\n");                            \
        else                                                                                       \
            RUN(EACH16(LOAD_X), EACH16(SAVE_X), ENTRY, "");                                        \
        _mm_setcsr(0x1f80);                                                                        \
    } while (0)

static uint64_t seed = 88172645463325252;

static uint64_t next_random(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void fill(void) {
    memset(&before, 0, sizeof before);
    memset(&after, 0, sizeof after);
    for (size_t i = 0; i < sizeof before.vector; i++)
        before.vector[i / 64][i % 64] = (uint8_t)(next_random() >> 11);
    for (int i = 0; i < 8; i++)
        before.mask[i] = next_random() & 0xffff;
    for (int i = 0; i < GENERAL; i++)
        before.general[i] = next_random();
    for (int i = 0; i < 8; i++) { /* normal numbers, so that loading does not change them */
        uint64_t mantissa = next_random() | 1ull << 63;
        uint16_t exponent = 0x3fff + (next_random() & 0xff);
        memcpy(before.x87[i], &mantissa, 8);
        memcpy(before.x87[i] + 8, &exponent, 2);
    }
    before.mxcsr = 0x5f80 | (next_random() & 0x3f); /* rounding up, random sticky flags */
    before.control = 0x0b7f;                        /* rounding up */
}

static int failures;

static void differs(const char *entry, const char *what, int number) {
    if (failures++ < 20)
        printf("%s: %s%d changed\n", entry, what, number);
}

static void compare(const char *entry) {
    int registers = level == AVX512 ? 32 : 16, bytes = level == AVX512 ? 64 : level == AVX ? 32 : 16;
    for (int i = 0; i < registers; i++)
        if (memcmp(before.vector[i], after.vector[i], bytes))
            differs(entry, "vector register ", i);
    for (int i = 0; i < 8; i++) {
        if (level == AVX512 && before.mask[i] != after.mask[i])
            differs(entry, "mask register ", i);
        if (memcmp(before.x87[i], after.x87[i], 10))
            differs(entry, "x87 register ", i);
    }
    for (int i = 0; i < GENERAL; i++)
        if (before.general[i] != after.general[i])
            differs(entry, "general register ", i);
    if (before.mxcsr != after.mxcsr)
        differs(entry, "mxcsr ", 0);
    if (before.control != after.control)
        differs(entry, "x87 control word ", 0);
}

#define WAY(NAME, TIMES, PREPARE, ENTRY)                                                           \
    do {                                                                                           \
        for (int round = 0; round < TIMES; round++) {                                              \
            fill();                                                                                \
            PREPARE;                                                                               \
            ENTER(ENTRY);                                                                          \
            compare(NAME);                                                                         \
        }                                                                                          \
        printf("%s: %s\n", NAME, failures ? "FAILED" : "kept");                                    \
    } while (0)

/* Overwrites the vector and x87 registers, as any real handler may. */
static void scramble(void) {
    if (level != SSE)
        asm volatile("vpcmpeqd %%xmm0, %%xmm0, %%xmm0\n vmovaps %%ymm0, %%ymm1\n"
                     "vmovaps %%ymm0, %%ymm7\n vmovaps %%ymm0, %%ymm15\n vzeroupper" ::
                         : "xmm0", "xmm1", "xmm7", "xmm15");
    else
        asm volatile("pcmpeqd %%xmm0, %%xmm0\n movaps %%xmm0, %%xmm15" ::: "xmm0", "xmm15");
    asm volatile("fninit\n fldpi\n fldpi");
    asm volatile("fninit");
    _mm_setcsr(0x1f80);
}

static void skip_two_bytes(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
    scramble();
}

static void set_flag(int signal) {
    (void)signal;
    scramble();
    flag = 1;
}

static void *spin_then_set_flag(void *unused) {
    (void)unused;
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        scramble();
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < 60000000);
    flag = 1;
    return NULL;
}

static void *write_after_a_while(void *unused) {
    (void)unused;
    usleep(3000);
    scramble();
    if (write(pipe_ends[1], "x", 1) != 1)
        abort();
    return NULL;
}

static pthread_t other;

static void start(void *(*body)(void *)) {
    flag = 0;
    if (pthread_create(&other, NULL, body, NULL))
        abort();
    pthread_detach(other);
}

static void fresh_page(int populate) {
    if (target)
        munmap((void *)target, PAGE);
    target = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (populate)
        (void)*target;
}

static void map_file(const char *path) {
    if (target)
        munmap((void *)target, PAGE);
    FILE *file = fopen(path, "r");
    if (!file)
        abort();
    target = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(file), 0);
    fclose(file);
}

static void alarm_in_5_ms(void) {
    struct itimerval soon = {.it_value = {0, 5000}};
    flag = 0;
    setitimer(ITIMER_REAL, &soon, NULL);
}

int main(void) {
    __builtin_cpu_init();
    level = __builtin_cpu_supports("avx512f") ? AVX512 : __builtin_cpu_supports("avx2") ? AVX : SSE;
    struct sigaction skip = {.sa_sigaction = skip_two_bytes, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &skip, NULL);
    sigaction(SIGFPE, &skip, NULL);
    sigaction(SIGSEGV, &skip, NULL);
    struct sigaction set = {.sa_handler = set_flag};
    sigaction(SIGALRM, &set, NULL);
    sigaction(SIGTRAP, &set, NULL);
    sigaction(SIGUSR1, &set, NULL);
    if (pipe(pipe_ends))
        abort();

    WAY("no entry", 3, , "");
    WAY("system call", 200, , "mov $39, %%eax\n syscall\n");
    WAY("system call by xor", 200, , "push %%rdi\n mov $-1, %%rdi\n xor %%eax, %%eax\n syscall\n pop %%rdi\n");
    WAY("unknown system call", 50, , "mov $9999, %%eax\n syscall\n");
    WAY("yield", 200, , "mov $24, %%eax\n syscall\n");
    WAY("sleep", 20, ,
        "push %%rdi\n push %%rsi\n lea short_pause(%%rip), %%rdi\n xor %%esi, %%esi\n"
        "mov $35, %%eax\n syscall\n pop %%rsi\n pop %%rdi\n");
    WAY("blocking read", 20, start(write_after_a_while),
        "push %%rdi\n push %%rsi\n push %%rdx\n movl pipe_ends(%%rip), %%edi\n"
        "lea pipe_byte(%%rip), %%rsi\n mov $1, %%edx\n xor %%eax, %%eax\n syscall\n"
        "pop %%rdx\n pop %%rsi\n pop %%rdi\n");
    WAY("read fault", 100, fresh_page(0), "mov target(%%rip), %%rax\n movb (%%rax), %%cl\n");
    WAY("write fault", 100, fresh_page(0), "mov target(%%rip), %%rax\n movb $1, (%%rax)\n");
    WAY("copy-on-write fault", 100, fresh_page(1), "mov target(%%rip), %%rax\n movb $1, (%%rax)\n");
    WAY("file read fault", 50, map_file("/proc/self/exe"), "mov target(%%rip), %%rax\n movb (%%rax), %%cl\n");
    WAY("file write fault", 50, map_file("/proc/self/exe"), "mov target(%%rip), %%rax\n movb $1, (%%rax)\n");
    WAY("illegal instruction", 100, , "ud2\n");
    WAY("division by zero", 100, , "xor %%ecx, %%ecx\n divl %%ecx\n");
    WAY("segmentation fault", 100, , "xor %%eax, %%eax\n movb (%%rax), %%cl\n");
    WAY("breakpoint", 100, , "int3\n");
    WAY("signal to itself", 100, , /* kill(getpid(), SIGUSR1) */
        "push %%rdi\n push %%rsi\n mov $39, %%eax\n syscall\n mov %%eax, %%edi\n"
        "mov $10, %%esi\n mov $62, %%eax\n syscall\n pop %%rsi\n pop %%rdi\n");
    WAY("timer signal", 20, alarm_in_5_ms(), "1: cmpl $0, flag(%%rip)\n je 1b\n");
    WAY("preemption", 5, start(spin_then_set_flag), "1: cmpl $0, flag(%%rip)\n je 1b\n");
    return failures ? 1 : 0;
}
