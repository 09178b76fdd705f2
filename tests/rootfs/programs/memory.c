/* Memory system calls and the signals of wrong accesses, as their manual pages describe them. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { PAGE = 4096 };

static sigjmp_buf escape;
static volatile int seen_signal, seen_code;
static volatile uintptr_t seen_address;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    seen_signal = signal;
    seen_code = info->si_code;
    seen_address = (uintptr_t)info->si_addr;
    siglongjmp(escape, 1);
}

/* Whether reading (or writing) *address raises `signal` with `code` and that very address. */
static int faults(volatile char *address, int writing, int signal, int code) {
    seen_signal = 0;
    if (!sigsetjmp(escape, 1)) {
        if (writing)
            *address = 1;
        else
            (void)*address;
        return 0;
    }
    int right = seen_signal == signal && seen_code == code && seen_address == (uintptr_t)address;
    if (!right)
        printf("signal %d code %d address offset %ld\n", seen_signal, seen_code,
               (long)(seen_address - (uintptr_t)address));
    return right;
}

static int fails_with(void *result, int error) { return result == MAP_FAILED && errno == error; }

static char *anonymous(size_t bytes) {
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void anonymous_memory(void) {
    char *a = anonymous(8 * PAGE);
    CHECK("anonymous memory is zero", a != MAP_FAILED && a[0] == 0 && a[8 * PAGE - 1] == 0);
    memset(a, 7, 8 * PAGE);
    CHECK("munmap of the middle", munmap(a + 2 * PAGE, 2 * PAGE) == 0);
    CHECK("what was unmapped faults", faults(a + 2 * PAGE, 0, SIGSEGV, SEGV_MAPERR));
    CHECK("its neighbours stay", a[2 * PAGE - 1] == 7 && a[4 * PAGE] == 7);
    CHECK("mprotect", mprotect(a, PAGE, PROT_READ) == 0);
    CHECK("write to read-only memory", faults(a + 5, 1, SIGSEGV, SEGV_ACCERR));
    CHECK("reading it works", a[5] == 7);
    CHECK("mprotect none", mprotect(a, PAGE, PROT_NONE) == 0);
    CHECK("read of PROT_NONE", faults(a + 5, 0, SIGSEGV, SEGV_ACCERR));
    CHECK("mprotect back", mprotect(a, PAGE, PROT_READ | PROT_WRITE) == 0 && a[5] == 7);
    CHECK("mprotect over a hole is ENOMEM", mprotect(a, 8 * PAGE, PROT_READ) == -1 && errno == ENOMEM);
    CHECK("unaligned mprotect is EINVAL", mprotect(a + 1, PAGE, PROT_READ) == -1 && errno == EINVAL);
    CHECK("munmap of nothing succeeds", munmap(a + 2 * PAGE, PAGE) == 0);
    CHECK("mmap of no bytes is EINVAL", fails_with(anonymous(0), EINVAL));
    char *fixed = mmap(a + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK("MAP_FIXED replaces", fixed == a + 4 * PAGE && fixed[0] == 0 && a[5 * PAGE] == 7);
    CHECK("MAP_FIXED_NOREPLACE does not",
          fails_with(mmap(a, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST));
    char *hint = mmap(a + 2 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK("a hint to a free place is taken", hint == a + 2 * PAGE);
    char *elsewhere = mmap(a, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK("a hint to a taken place is not", elsewhere != MAP_FAILED && elsewhere != a);
    CHECK("null pointer", faults((char *)8, 0, SIGSEGV, SEGV_MAPERR));
}

static void reservations(void) {
    size_t terabyte = 1ull << 40;
    char *r = mmap(NULL, terabyte, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK("a terabyte reserved", r != MAP_FAILED);
    CHECK("a piece of it opened", mprotect(r + terabyte / 2, 16 * PAGE, PROT_READ | PROT_WRITE) == 0);
    r[terabyte / 2 + 5] = 9;
    CHECK("and used", r[terabyte / 2 + 5] == 9);
    CHECK("the rest is closed", faults(r + terabyte / 2 + 16 * PAGE, 0, SIGSEGV, SEGV_ACCERR));
    CHECK("aligned cut", munmap(r, terabyte / 4) == 0 && munmap(r + terabyte / 4 * 3, terabyte / 4) == 0);
    CHECK("released", munmap(r, terabyte) == 0);
    char *w = mmap(NULL, terabyte, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK("a writable terabyte", w != MAP_FAILED);
    for (size_t i = 0; i < 64; i++)
        w[i * (terabyte / 64)] = (char)i;
    int right = 1;
    for (size_t i = 0; i < 64; i++)
        right &= w[i * (terabyte / 64)] == (char)i;
    CHECK("touched far apart", right && munmap(w, terabyte) == 0);
}

static void remapping(void) {
    char *a = anonymous(4 * PAGE);
    strcpy(a, "content");
    char *b = mremap(a, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
    CHECK("mremap grows", b != MAP_FAILED && strcmp(b, "content") == 0 && b[63 * PAGE] == 0);
    CHECK("mremap shrinks", mremap(b, 64 * PAGE, PAGE, 0) == b);
    CHECK("what it gave up faults", faults(b + PAGE, 0, SIGSEGV, SEGV_MAPERR));
    char *place = anonymous(4 * PAGE);
    CHECK("mremap to a fixed place", mremap(b, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    CHECK("moved with content", strcmp(place, "content") == 0);
    char *shared = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(shared, "in both");
    /* The hint is an argument of the call that the C library leaves out. */
    char *twin = (char *)syscall(SYS_mremap, shared, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK("mremap lets shared memory stay", twin != MAP_FAILED && !strcmp(twin, "in both") && !strcmp(shared, "in both"));
    CHECK("mremap takes no crooked hint",
          fails_with((void *)syscall(SYS_mremap, shared, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 1), EINVAL));
    CHECK("mremap of nothing is EFAULT", fails_with(mremap(b, PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT));
}

static void advice(void) {
    char *a = anonymous(4 * PAGE);
    memset(a, 3, 4 * PAGE);
    CHECK("MADV_DONTNEED", madvise(a + PAGE, PAGE, MADV_DONTNEED) == 0);
    CHECK("zero afterwards", a[PAGE] == 0 && a[0] == 3 && a[2 * PAGE] == 3);
    CHECK("MADV_FREE", madvise(a, PAGE, MADV_FREE) == 0 && (a[0] == 3 || a[0] == 0));
    CHECK("MADV_WILLNEED", madvise(a, 4 * PAGE, MADV_WILLNEED) == 0);
    CHECK("madvise of a hole is ENOMEM", munmap(a + 2 * PAGE, PAGE) == 0 &&
          madvise(a, 4 * PAGE, MADV_DONTNEED) == -1 && errno == ENOMEM);
    CHECK("unknown advice is EINVAL", madvise(a, PAGE, 12345) == -1 && errno == EINVAL);
    unsigned char present[4] = {9, 9, 9, 9};
    char *m = anonymous(4 * PAGE);
    m[PAGE] = 1;
    CHECK("mincore", mincore(m, 4 * PAGE, present) == 0 && (present[1] & 1));
    CHECK("mincore of a hole is ENOMEM", mincore(a, 4 * PAGE, present) == -1 && errno == ENOMEM);
    void *start = sbrk(0);
    CHECK("brk grows", sbrk(1 << 20) == start && (memset(start, 1, 1 << 20), 1));
    CHECK("brk shrinks", sbrk(-(1 << 20)) != (void *)-1 && sbrk(0) == start);
    CHECK("and is zero again", sbrk(PAGE) == start && *(char *)start == 0);
}

static void files(const char *image_file) {
    int fd = open("/tmp/mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
    char text[PAGE + 100];
    memset(text, 'x', sizeof text);
    CHECK("file written", write(fd, text, sizeof text) == (ssize_t)sizeof text);
    char *s = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK("mapped twice", s != MAP_FAILED && p != MAP_FAILED && s[0] == 'x' && p[PAGE + 99] == 'x');
    s[10] = 'S';
    char byte = 0;
    CHECK("shared write is seen by read", pread(fd, &byte, 1, 10) == 1 && byte == 'S');
    CHECK("and by an untouched private mapping", p[10] == 'S');
    p[20] = 'P';
    CHECK("private write is not seen", pread(fd, &byte, 1, 20) == 1 && byte == 'x' && s[20] == 'x');
    CHECK("write is seen by the shared mapping", pwrite(fd, "W", 1, 30) == 1 && s[30] == 'W');
    CHECK("zeros behind the end of the file", s[PAGE + 100] == 0 && s[2 * PAGE - 1] == 0);
    CHECK("beyond its last page is SIGBUS", faults(s + 2 * PAGE, 0, SIGBUS, BUS_ADRERR));
    CHECK("growing the file mends that", ftruncate(fd, 3 * PAGE) == 0 && s[2 * PAGE] == 0);
    CHECK("shrinking takes it away", ftruncate(fd, 50) == 0 && faults(s + PAGE, 0, SIGBUS, BUS_ADRERR));
    CHECK("the last page stays, zeroed behind the end", s[10] == 'S' && s[60] == 0);
    CHECK("msync", msync(s, PAGE, MS_SYNC) == 0);
    close(fd);
    CHECK("mapping outlives the descriptor", s[10] == 'S');

    int image = open(image_file, O_RDONLY);
    struct stat status;
    CHECK("file of the image", image >= 0 && fstat(image, &status) == 0 && status.st_size > PAGE);
    if (image < 0)
        exit(2);
    size_t last = status.st_size & ~(off_t)(PAGE - 1), tail = status.st_size % PAGE;
    char *i = mmap(NULL, last + 2 * PAGE, PROT_READ, MAP_PRIVATE, image, 0);
    char *copy = malloc(status.st_size);
    CHECK("read whole", pread(image, copy, status.st_size, 0) == status.st_size);
    CHECK("mapping equals reading", memcmp(i, copy, status.st_size) == 0);
    int zeros = 1;
    for (size_t k = tail; tail && k < PAGE; k++)
        zeros &= i[last + k] == 0;
    CHECK("zeros behind its end", zeros);
    CHECK("SIGBUS beyond", faults(i + last + (tail ? PAGE : 0), 0, SIGBUS, BUS_ADRERR));
    CHECK("writing it is refused", faults(i, 1, SIGSEGV, SEGV_ACCERR));
    char *mine = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, image, 0);
    mine[0] = 'm';
    CHECK("a private copy is written", mine[0] == 'm' && i[0] == copy[0]);
    CHECK("a writable shared mapping of a read-only descriptor is EACCES",
          fails_with(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, image, 0), EACCES));
    CHECK("bad descriptor is EBADF", fails_with(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, 999, 0), EBADF));
    CHECK("unaligned offset is EINVAL", fails_with(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, image, 5), EINVAL));
    char outside[10], *volatile nothing = (char *)8;
    int zero = open("/dev/zero", O_RDONLY);
    CHECK("read into nothing is EFAULT", read(zero, nothing, 10) == -1 && errno == EFAULT);
    CHECK("read into read-only memory is EFAULT", read(zero, i, 10) == -1 && errno == EFAULT);
    CHECK("read from /dev/zero", read(zero, outside, 10) == 10 && outside[9] == 0);
}

static void code_in_memory(void) {
    unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
    unsigned char *page = (unsigned char *)anonymous(PAGE);
    memcpy(page, code, sizeof code);
    seen_signal = 0;
    if (!sigsetjmp(escape, 1))
        ((int (*)(void))page)();
    CHECK("memory without PROT_EXEC does not run", seen_signal == SIGSEGV && seen_code == SEGV_ACCERR);
    CHECK("made executable", mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK("it runs", ((int (*)(void))page)() == 42);
    CHECK("made writable", mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0 && (page[1] = 43));
    CHECK("and executable again", mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK("the change runs", ((int (*)(void))page)() == 43);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    anonymous_memory();
    reservations();
    remapping();
    advice();
    files("/proc/self/exe");
    code_in_memory();
    return check_failures != 0;
}
