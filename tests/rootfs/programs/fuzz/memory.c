/* Mappings inside one arena of the address space, what touching them does, and what /proc says of them. */
#include "fuzz.h"
#include <setjmp.h>
#include <signal.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum { PAGE = 4096, PAGES = 64 };
#define ARENA ((char *)0x1000000000)

static sigjmp_buf back;
static volatile sig_atomic_t fault_signal, fault_code;
static char *volatile fault_address;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    fault_signal = signal;
    fault_code = info->si_code;
    fault_address = info->si_addr;
    siglongjmp(back, 1);
}

static const struct named protections[] = {NAMED(PROT_READ), NAMED(PROT_WRITE), NAMED(PROT_EXEC)};

static long protection(void) {
    if (one_in(2)) {
        strcpy(flag_names, "rw");
        return PROT_READ | PROT_WRITE;
    }
    long value = pick_flags(protections, COUNT(protections), 2);
    if (value != PROT_EXEC)
        return value;
    /* Where there are protection keys, memory that can only be executed has one. */
    strcpy(flag_names, "rx");
    return PROT_READ | PROT_EXEC;
}

static char *place(void) { return ARENA + below(PAGES) * PAGE + (one_in(20) ? 100 : 0); }
static size_t length(void) { return one_in(15) ? below(3) : one_in(25) ? (size_t)-1 : (1 + below(16)) * PAGE - (one_in(5) ? 50 : 0); }

/* Addresses as offsets in the arena, others only as such. */
static void say_place(void *address) {
    if (address == MAP_FAILED)
        result(-1);
    else if ((char *)address >= ARENA && (char *)address < ARENA + PAGES * PAGE * 2)
        say(" = arena+%lx", (char *)address - ARENA);
    else
        say(" = elsewhere");
}

static void map(void) {
    static const struct named kinds[] = {NAMED(MAP_PRIVATE), NAMED(MAP_PRIVATE), NAMED(MAP_SHARED), NAMED(MAP_SHARED_VALIDATE), {"0", 0}};
    static const struct named flags[] = {NAMED(MAP_NORESERVE), NAMED(MAP_POPULATE), NAMED(MAP_STACK), NAMED(MAP_FIXED_NOREPLACE)};
    char *at = place();
    size_t size = length();
    bool anonymous = !one_in(3);
    int fd = anonymous ? -1 : any_fd();
    /* TCP sockets can be mapped on Linux to receive without copies. */
    int protocol = 0;
    socklen_t size_of_protocol = sizeof protocol;
    if (getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size_of_protocol) == 0 && protocol == IPPROTO_TCP)
        fd = -1;
    long offset = one_in(10) ? 100 : below(4) * PAGE;
    struct named kind = PICK(kinds);
    long protect = protection();
    say("mmap(+%lx, %zx, %s, ", at - ARENA, size, flag_names);
    long set = pick_flags(flags, COUNT(flags), 6);
    say("%s|%s%s, %d, %lx)", kind.name, flag_names, anonymous ? "|MAP_ANONYMOUS" : "", fd, offset);
    int fixed = set & MAP_FIXED_NOREPLACE ? 0 : MAP_FIXED;
    say_place(mmap(at, size, protect, kind.value | set | fixed | (anonymous ? MAP_ANONYMOUS : 0), fd, offset));
}

static void unmap(void) {
    char *at = place();
    size_t size = length();
    say("munmap(+%lx, %zx)", at - ARENA, size);
    if (size == (size_t)-1)
        size = 0;
    result(munmap(at, size));
}

static void protect(void) {
    char *at = place();
    size_t size = length();
    long to = protection();
    say("mprotect(+%lx, %zx, %s)", at - ARENA, size, flag_names);
    result(mprotect(at, size, to));
}

static void remap(void) {
    static const long flags[] = {0, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, MREMAP_FIXED, 64};
    char *from = place(), *to = place();
    size_t old = one_in(8) ? 0 : length(), new = length();
    long set = PICK(flags);
    say("mremap(+%lx, %zx, %zx, %lx, +%lx)", from - ARENA, old, new, set, to - ARENA);
    say_place(mremap(from, old, new, set, to));
}

static void advise(void) {
    static const struct named advice[] = {
        NAMED(MADV_NORMAL), NAMED(MADV_DONTNEED), NAMED(MADV_DONTNEED), NAMED(MADV_WILLNEED), NAMED(MADV_REMOVE), NAMED(MADV_FREE), NAMED(MADV_DONTFORK), NAMED(MADV_WIPEONFORK), {"99", 99},
    };
    char *at = place();
    size_t size = length();
    struct named what = PICK(advice);
    /* Whether a freed page still holds its bytes is the kernel's choice. */
    if (what.value == MADV_FREE)
        what = (struct named)NAMED(MADV_DONTNEED);
    say("madvise(+%lx, %zx, %s)", at - ARENA, size, what.name);
    result(madvise(at, size, what.value));
}

static void synchronise(void) {
    static const int flags[] = {MS_SYNC, MS_ASYNC, MS_SYNC | MS_ASYNC, MS_INVALIDATE, 0, 99};
    char *at = place();
    size_t size = length();
    int set = PICK(flags);
    say("msync(+%lx, %zx, %x)", at - ARENA, size, set);
    result(msync(at, size, set));
}

static void touch(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old_segv, old_bus;
    char *at = place() + below(PAGE);
    bool writes = one_in(2);
    char value = 'a' + below(26);
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    say("%s +%lx", writes ? "write" : "read", at - ARENA);
    if (sigsetjmp(back, 1) == 0) {
        if (writes)
            *(volatile char *)at = value;
        else
            say(" = %d", *(volatile char *)at);
    } else
        say(" signal %d code %d%s", fault_signal, fault_code, fault_address == at ? "" : " WRONG ADDRESS");
    sigaction(SIGSEGV, &old_segv, NULL);
    sigaction(SIGBUS, &old_bus, NULL);
}

static void through_the_kernel(void) {
    int fd = any_fd();
    char *at = place() + below(PAGE);
    size_t size = one_in(2) ? below(100) : below(20000);
    if (one_in(2)) {
        say("pwrite(%d, +%lx, %zu)", fd, at - ARENA, size);
        result(pwrite(fd, at, size, below(5000)));
    } else {
        say("pread(%d, +%lx, %zu)", fd, at - ARENA, size);
        result(pread(fd, at, size, below(5000)));
    }
}

static void show_map(void) {
    char text[300];
    int fd = openat(PROC, "self/maps", O_RDONLY | O_CLOEXEC);
    FILE *maps = fd < 0 ? NULL : fdopen(fd, "r");
    say("maps:");
    if (maps == NULL) {
        result(-1);
        return;
    }
    while (fgets(text, sizeof text, maps)) {
        unsigned long begin, end, offset, inode;
        char permissions[8], path[200] = "";
        if (sscanf(text, "%lx-%lx %7s %lx %*s %lu %199s", &begin, &end, permissions, &offset, &inode, path) >= 5 &&
            begin >= (unsigned long)ARENA && begin < (unsigned long)(ARENA + 2 * PAGES * PAGE)) {
            const char *tail = strrchr(path, '/');
            say(" %lx-%lx%s@%lx%s", begin - (unsigned long)ARENA, end - (unsigned long)ARENA, permissions, offset, tail ? tail : "");
        }
    }
    fclose(maps);
}

static const struct choice choices[] = {
    {map, 10}, {unmap, 3}, {protect, 4}, {remap, 5}, {advise, 3}, {synchronise, 1}, {touch, 10}, {through_the_kernel, 4}, {show_map, 3},
};
const struct subject memory = {"memory", choices, COUNT(choices)};
