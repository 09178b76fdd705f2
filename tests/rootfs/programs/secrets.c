/*
 * For tests of snapshots: obeys lines on standard input, one answer each, ready once it has begun
 * to listen. A secret comes as its two halves (8 bytes each, the first one even), so that it is
 * nowhere in memory where it was not planted.
 *
 *   plant A B      the secret wherever a program can put it
 *   hide A B       the secret in page-table entries that are not present
 *   scan A B BYTES how often it is in the first BYTES of guest-physical memory
 *   map BYTES      a mapping of the kernel's low memory planted in every root; where it is
 *   probe ADDRESS  whether that can be read
 *   redirect N BYTES  when the VM is to stop: makes the kernel's own map of large page N lead elsewhere, and stops
 *   linger BYTES   when the VM is to stop: puts endless loops in the place of the kernel's code, and stops
 *   park           tells the VM process that the kernel has parked
 *   count
 *   generation     what is shown in the mapping of /dev/vmgenid
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* torpor_abi::layout; kernel memory is no secret from a program: the VM is the boundary. */
#define DIRECT_MAP 0x7f8000000000UL
#define BOOT_TABLES 0x22000UL
#define BOOT_TABLES_BYTES 0x1e000UL
#define DOORBELL 0xf00000000UL
#define QUIESCE_WANTED (0x20000UL + 424) /* torpor_abi::shared::Control::quiesce */
enum { KERNEL_GIGABYTE = 448 }; /* of the kernel's slot: where its image is linked */
enum { PAGE = 4096, LARGE = 2 << 20, QUIESCED = 0x60, PARKED = 0x70, REQUESTED = 1 };

static volatile uint64_t *physical(uint64_t gpa) { return (volatile uint64_t *)(DIRECT_MAP + gpa); }

static char halves[2][9];

static void whole(char *into) {
    memcpy(into, halves[0], 8);
    memcpy(into + 8, halves[1], 8);
}

__attribute__((target("avx512f"))) static void spin_avx512(const char *secret) {
    __m512i value = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)secret));
    uint64_t half;
    memcpy(&half, secret, 8);
    __asm__ volatile("vmovdqa64 %0, %%zmm16\nvmovdqa64 %0, %%zmm31\nvmovdqa64 %0, %%zmm5\n"
                     "kmovw %k1, %%k7\n1: pause\njmp 1b\n" ::"v"(value), "r"(half)
                     : "xmm16", "xmm31", "xmm5");
}

__attribute__((target("avx2"))) static void spin_avx(const char *secret) {
    __m256i value = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)secret));
    __asm__ volatile("vmovdqa %0, %%ymm15\nvmovdqa %0, %%ymm5\n1: pause\njmp 1b\n" ::"x"(value)
                     : "xmm15", "xmm5");
}

/* Never enters the kernel by itself, with the secret in all registers that can hold it. */
static void *spin(void *unused) {
    static char secret[16];
    whole(secret);
    _mm_setcsr(0x9fc0);
    if (__builtin_cpu_supports("avx512f"))
        spin_avx512(secret);
    if (__builtin_cpu_supports("avx2"))
        spin_avx(secret);
    __asm__ volatile("movdqu (%0), %%xmm15\n1: pause\njmp 1b\n" ::"r"(secret) : "xmm15");
    return unused;
}

static void must(int ok, const char *what) {
    if (!ok) {
        printf("failed: %s\n", what);
        exit(1);
    }
}

static int plant(void) {
    static char in_data[64 << 10];
    char secret[17] = {0}, name[64];
    whole(secret);
    for (size_t at = 0; at < sizeof in_data; at += 16)
        memcpy(in_data + at, secret, 16);
    char *heap = malloc(1 << 20), *freed = malloc(100000);
    for (size_t at = 0; at + 16 <= 1 << 20; at += 16)
        memcpy(heap + at, secret, 16);
    memcpy(freed + 50000, secret, 16);
    free(freed);
    char *gone = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t at = 0; at + 16 <= 1 << 20; at += PAGE)
        memcpy(gone + at, secret, 16);
    munmap(gone, 1 << 20);
    char *discarded =
        mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(discarded, secret, 16);
    madvise(discarded, 1 << 20, MADV_DONTNEED);
    int ends[2];
    must(pipe(ends) == 0 && write(ends[1], in_data, 32768) == 32768, "pipe");
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    must(write(ends[1], in_data, 32768) == 32768, "socket");
    snprintf(name, sizeof name, "/tmp/%s", secret);
    int file = open(name, O_CREAT | O_RDWR, 0600);
    must(file >= 0 && write(file, in_data, sizeof in_data) == sizeof in_data, "file");
    must(symlink(secret, "/tmp/link") == 0, "symlink");
    snprintf(name, sizeof name, "/tmp/%s.gone", secret);
    file = open(name, O_CREAT | O_RDWR, 0600);
    must(file >= 0 && write(file, in_data, sizeof in_data) == sizeof in_data, "file");
    must(unlink(name) == 0, "unlink");
    must(prctl(PR_SET_NAME, secret) == 0 && sethostname(secret, 16) == 0, "names");
    int memory = memfd_create(secret, 0);
    must(memory >= 0 && write(memory, in_data, sizeof in_data) == sizeof in_data, "memfd");
    setenv("SECRET", secret, 1);
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        memcpy(heap + 100, secret, 16);
        pause();
    }
    pthread_t thread;
    must(pthread_create(&thread, NULL, spin, NULL) == 0, "thread");
    return 0;
}

/* Bit 0 of the first half is clear, so an entry that holds it is not present. The second is put behind it likewise. */
static int hide(void) {
    uint64_t first, second;
    memcpy(&first, halves[0], 8);
    memcpy(&second, halves[1], 8);
    int hidden = 0;
    for (uint64_t at = BOOT_TABLES; at < BOOT_TABLES + BOOT_TABLES_BYTES; at += 16)
        if (physical(at)[0] == 0 && physical(at)[1] == 0) {
            physical(at)[0] = first;
            physical(at)[1] = second & ~1UL;
            hidden++;
        }
    return hidden;
}

static long scan(uint64_t bytes) {
    uint64_t first, second;
    memcpy(&first, halves[0], 8);
    memcpy(&second, halves[1], 8);
    long found = 0;
    for (uint64_t at = 0; at + 16 <= bytes; at += 1) {
        const char *here = (const char *)DIRECT_MAP + at;
        here = memchr(here, halves[0][0], bytes - 16 - at);
        if (!here)
            break;
        at = (uint64_t)here - DIRECT_MAP;
        uint64_t now[2];
        memcpy(now, here, 16);
        found += now[0] == first && (now[1] | 1) == (second | 1);
    }
    return found;
}

/* Guest-physical address of a page of ours, which holds a number that is nowhere else. */
static uint64_t find(volatile uint64_t *page, uint64_t bytes) {
    uint64_t mark = 0x9e3779b97f4a7c15UL * (uint64_t)getpid() ^ (uint64_t)page;
    page[7] = mark;
    for (uint64_t gpa = 0; gpa < bytes; gpa += PAGE)
        if (physical(gpa)[7] == mark) {
            page[7] = ~mark;
            int same = physical(gpa)[7] == ~mark;
            page[7] = mark;
            if (same)
                return gpa;
        }
    return 0;
}

static volatile uint64_t *page(void) {
    volatile uint64_t *at =
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    must(at != MAP_FAILED, "mmap");
    return at;
}

/* A new subtree under every root: the boot tables' and, by the kernel's shared entry 255, all that share theirs. */
static unsigned long plant_mapping(uint64_t bytes) {
    volatile uint64_t *directory = page();
    uint64_t directory_gpa = find(directory, bytes);
    must(directory_gpa != 0, "find");
    directory[7] = 0;
    for (int at = 0; at < 512; at++)
        directory[at] = ((uint64_t)at * LARGE) | 0xe7;
    /* An unused entry of the table that the kernel's entry 255 points to, the same for all roots. */
    volatile uint64_t *upper = physical(physical(BOOT_TABLES)[255] & ~0xfffUL & ~(1UL << 63));
    for (int at = 511; at >= 0; at--)
        if (upper[at] == 0) {
            upper[at] = directory_gpa | 0x67;
            return DIRECT_MAP + ((unsigned long)at << 30);
        }
    must(0, "no free entry");
    return 0;
}

static sigjmp_buf back;

static void caught(int number) { siglongjmp(back, number); }

static int probe(unsigned long address) {
    signal(SIGSEGV, caught);
    signal(SIGBUS, caught);
    if (sigsetjmp(back, 1))
        return 0;
    *(volatile char *)address;
    return 1;
}

/* When a stop is wanted: makes the kernel's entry for a large page lead to the last one of memory, and stops the VM. */
static void redirect(int gigabyte, int number, uint64_t bytes) {
    volatile uint64_t *upper = physical(physical(BOOT_TABLES)[255] & ~0xfffUL & ~(1UL << 63));
    volatile uint64_t *directory = physical(upper[gigabyte] & ~0xfffUL & ~(1UL << 63));
    puts("0");
    while (*(volatile uint32_t *)(DIRECT_MAP + QUIESCE_WANTED) == 0)
        ;
    directory[number] = (bytes - LARGE) | 0xe7;
    *(volatile uint32_t *)(DIRECT_MAP + DOORBELL + QUIESCED) = REQUESTED;
}

static void linger(uint64_t bytes) {
    volatile uint16_t *code = (volatile uint16_t *)physical(bytes - LARGE);
    for (int at = 0; at < LARGE / 2; at++)
        code[at] = 0xfeeb; /* jmp to itself */
    redirect(KERNEL_GIGABYTE, 0, bytes);
}

int main(void) {
    char line[256];
    unsigned long count = 0, number = 0, bytes = 0;
    int device = open("/dev/vmgenid", O_RDONLY);
    const volatile uint64_t *id = mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    mkdir("/run/torpor", 0755);
    close(open("/run/torpor/ready", O_CREAT | O_WRONLY, 0644));
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "plant %8s %8s", halves[0], halves[1]) == 2)
            printf("%d\n", plant());
        else if (sscanf(line, "hide %8s %8s", halves[0], halves[1]) == 2)
            printf("%d\n", hide());
        else if (sscanf(line, "scan %8s %8s %lu", halves[0], halves[1], &bytes) == 3)
            printf("%ld\n", scan(bytes));
        else if (sscanf(line, "map %lu", &bytes) == 1)
            printf("%lu\n", plant_mapping(bytes));
        else if (sscanf(line, "probe %lu", &number) == 1)
            printf("%d\n", probe(number));
        else if (sscanf(line, "redirect %lu %lu", &number, &bytes) == 2)
            redirect(0, (int)number, bytes);
        else if (sscanf(line, "linger %lu", &bytes) == 1)
            linger(bytes);
        else if (strcmp(line, "park\n") == 0)
            *(volatile uint32_t *)(DIRECT_MAP + DOORBELL + PARKED) = 0, puts("0");
        else if (strcmp(line, "generation\n") == 0)
            printf("%016lx%016lx\n", id[0], id[1]);
        else if (strcmp(line, "count\n") == 0)
            printf("%lu\n", ++count);
        else
            printf("unknown: %s", line);
    }
    return 0;
}
