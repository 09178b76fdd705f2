/* Random mappings, protections, moves, advice, forks and writes (by the program and by the kernel), every byte compared
 * with a model: what a translation that was not flushed, or a page shared that should have been copied, would break. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 1536, STEPS = 20000, UNMAPPED = -1 };

static char *const base = (char *)0x500000000;
static int protection[PAGES];
static unsigned char value[PAGES];
static uint64_t state;
static int pipe_ends[2];

static int below(int n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int)((state >> 11) % (uint64_t)n);
}

static char *page(int index) { return base + (size_t)index * PAGE; }

static void fail(const char *what, long step, int index) {
    printf("%s at step %ld, page %d: errno %d\n", what, step, index, errno);
    exit(1);
}

static void compare(long step, int index) {
    if (protection[index] > 0 && *(volatile unsigned char *)page(index) != value[index])
        fail("wrong content", step, index);
}

/* The kernel writes a byte into a page. */
static void kernel_writes(int index, unsigned char byte) {
    if (write(pipe_ends[1], &byte, 1) != 1 || read(pipe_ends[0], page(index), 1) != 1)
        fail("pipe", byte, index);
}

/* A child writes everywhere and must not be seen; it sees what was there. */
static void fork_and_scribble(long step) {
    pid_t child = fork();
    if (child < 0)
        fail("fork", step, 0);
    if (child == 0) {
        for (int i = 0; i < PAGES; i++) {
            compare(step, i);
            if (protection[i] == (PROT_READ | PROT_WRITE))
                *page(i) ^= 0x55;
        }
        _exit(0);
    }
    /* The parent writes while the child does. */
    for (int i = 0; i < PAGES; i += 3)
        if (protection[i] == (PROT_READ | PROT_WRITE))
            *page(i) = (char)(value[i] = (unsigned char)step);
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        fail("child", step, status);
}

static void step_once(long step) {
    int first = below(4) ? below(PAGES) : below(3) * 512;
    int count = below(5) ? 1 + below(40) : below(2) ? 512 : 1 + below(700);
    if (first + count > PAGES)
        count = PAGES - first;
    size_t bytes = (size_t)count * PAGE;
    int mapped = 1, alike = 1;
    for (int i = first; i < first + count; i++) {
        mapped &= protection[i] != UNMAPPED;
        alike &= protection[i] == protection[first];
    }
    switch (below(12)) {
    case 0:
    case 1: {
        int wanted = below(4) ? PROT_READ | PROT_WRITE : PROT_READ;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (count > 100 && !below(8) ? MAP_POPULATE : 0);
        if (mmap(page(first), bytes, wanted, flags, -1, 0) != page(first))
            fail("mmap", step, first);
        for (int i = first; i < first + count; i++)
            protection[i] = wanted, value[i] = 0;
        break;
    }
    case 2:
        if (munmap(page(first), bytes))
            fail("munmap", step, first);
        for (int i = first; i < first + count; i++)
            protection[i] = UNMAPPED;
        break;
    case 3:
    case 4: {
        int wanted = below(3) ? PROT_READ | PROT_WRITE : below(2);
        if ((mprotect(page(first), bytes, wanted) == 0) != mapped)
            fail("mprotect", step, first);
        for (int i = first; i < first + count && protection[i] != UNMAPPED; i++)
            protection[i] = wanted;
        break;
    }
    case 5:
        madvise(page(first), bytes, MADV_DONTNEED);
        for (int i = first; i < first + count; i++)
            value[i] = 0;
        break;
    case 6: {
        int to = below(PAGES);
        if (!mapped || !alike || to + count > PAGES || (to < first + count && first < to + count))
            break;
        if (mremap(page(first), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, page(to)) != page(to)) {
            if (errno == EFAULT)
                break; /* Several mappings that happen to be alike. */
            fail("mremap", step, first);
        }
        for (int i = 0; i < count; i++) {
            protection[to + i] = protection[first + i];
            value[to + i] = value[first + i];
            protection[first + i] = UNMAPPED;
        }
        break;
    }
    case 7: {
        static const int advice[] = {MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_NORMAL};
        madvise(page(first), bytes, advice[below(5)]);
        break;
    }
    case 8:
        for (int i = first; i < first + count; i += 7)
            if (protection[i] == (PROT_READ | PROT_WRITE))
                kernel_writes(i, value[i] = (unsigned char)step);
        break;
    case 9:
        if (!below(20)) {
            fork_and_scribble(step);
            break;
        }
        /* fall through */
    default:
        for (int i = first; i < first + count; i++)
            if (protection[i] == (PROT_READ | PROT_WRITE))
                *page(i) = (char)(value[i] = (unsigned char)step);
    }
    for (int k = 0; k < 12; k++)
        compare(step, below(PAGES));
}

int main(int argc, char **argv) {
    state = argc > 1 ? strtoull(argv[1], NULL, 0) | 1 : 88172645463325252ull;
    if (pipe(pipe_ends))
        fail("pipe", 0, 0);
    for (int i = 0; i < PAGES; i++)
        protection[i] = UNMAPPED;
    for (long step = 0; step < STEPS; step++)
        step_once(step);
    for (int i = 0; i < PAGES; i++)
        compare(STEPS, i);
    puts("every byte as it should be");
    return 0;
}
