/* Regular files: opening, reading and writing, sizes and offsets, descriptors. */
#include "fuzz.h"
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>

static const struct named open_flags[] = {
    NAMED(O_CREAT), NAMED(O_EXCL), NAMED(O_TRUNC), NAMED(O_APPEND), NAMED(O_DIRECTORY), NAMED(O_NOFOLLOW), NAMED(O_CLOEXEC), NAMED(O_PATH), NAMED(O_SYNC),
};
static const struct named access_modes[] = {NAMED(O_RDONLY), NAMED(O_WRONLY), NAMED(O_RDWR), NAMED(O_RDWR)};
static const struct named whence[] = {NAMED(SEEK_SET), NAMED(SEEK_CUR), NAMED(SEEK_END), NAMED(SEEK_DATA), NAMED(SEEK_HOLE), {"9", 9}};
static const long sizes[] = {0, 1, 2, 7, 100, 4095, 4096, 4097, 10000, 65536, 70000};
static const long offsets[] = {-1, 0, 0, 1, 100, 4095, 4096, 5000, 8192, 65536, 100000};
static const unsigned modes[] = {0, 0644, 0600, 0755, 0444, 0222, 01777, 04755, 07777};
static char buffer[70000];

static void open_file(void) {
    struct named mode = PICK(access_modes);
    long flags = pick_flags(open_flags, COUNT(open_flags), 6);
    bool create = !one_in(3);
    const char *name = any_name();
    unsigned bits = PICK(modes);
    say("open(%s, %s|%s%s, %o)", name, mode.name, flag_names, create ? "|O_CREAT" : "", bits);
    keep(result(open(name, mode.value | flags | O_NONBLOCK | (create ? O_CREAT : 0), bits)));
}

static void open_temporary(void) {
    say("open(d, O_TMPFILE)");
    int fd = keep(result(open(one_in(3) ? "d" : ".", O_TMPFILE | O_RDWR, 0600)));
    struct stat s;
    if (fd >= 0 && fstat(fd, &s) == 0)
        say(" mode %o links %lu", s.st_mode, s.st_nlink);
}

static void close_fd(void) {
    unsigned slot = below(SLOTS);
    say("close(%d)", slots[slot]);
    result(close(slots[slot]));
    if (!one_in(5))
        slots[slot] = -1;
}

static void read_fd(void) {
    int fd = any_fd();
    long size = PICK(sizes);
    memset(buffer, 0, sizeof buffer);
    say("read(%d, %ld)", fd, size);
    say_bytes(buffer, result(read(fd, buffer, size)));
}

static void write_fd(void) {
    int fd = any_fd();
    long size = PICK(sizes);
    say("write(%d, %ld)", fd, size);
    result(write(fd, some_bytes(size), size));
}

static void pread_fd(void) {
    int fd = any_fd();
    long size = PICK(sizes), offset = PICK(offsets);
    memset(buffer, 0, sizeof buffer);
    say("pread(%d, %ld, %ld)", fd, size, offset);
    say_bytes(buffer, result(pread(fd, buffer, size, offset)));
}

static void pwrite_fd(void) {
    int fd = any_fd();
    long size = PICK(sizes), offset = PICK(offsets);
    say("pwrite(%d, %ld, %ld)", fd, size, offset);
    result(pwrite(fd, some_bytes(size), size, offset));
}

static void vectors(void) {
    int fd = any_fd();
    unsigned count = below(4);
    struct iovec v[4];
    bool reads = one_in(2);
    static const struct named flags[] = {NAMED(RWF_APPEND), NAMED(RWF_NOWAIT), NAMED(RWF_DSYNC), NAMED(RWF_HIPRI), {"0x1000", 0x1000}};
    long offset = one_in(2) ? -1 : PICK(offsets), flag = one_in(3) ? pick_flags(flags, COUNT(flags), 3) : (strcpy(flag_names, "0"), 0);
    memset(buffer, 0, sizeof buffer);
    say("%s(%d, [", reads ? "preadv2" : "pwritev2", fd);
    for (unsigned i = 0; i < count; i++) {
        v[i].iov_base = reads ? buffer + i * 10000 : (char *)some_bytes(10000);
        v[i].iov_len = PICK(sizes) % 10001;
        if (one_in(12))
            v[i].iov_base = (void *)8;
        say("%s%zu ", v[i].iov_base == (void *)8 ? "BAD:" : "", v[i].iov_len);
    }
    say("], %ld, %s)", offset, flag_names);
    long n = result(reads ? preadv2(fd, v, count, offset, flag) : pwritev2(fd, v, count, offset, flag));
    if (reads && n > 0)
        say_bytes(buffer, sizeof buffer);
}

static void bad_pointers(void) {
    int fd = any_fd();
    static void *const bad[] = {NULL, (void *)8, (void *)-4096, (void *)(1ul << 47), (void *)(1ul << 63)};
    void *at = PICK(bad);
    static const size_t lengths[] = {0, 1, 5000, 1ul << 31, 1ul << 40, -1ul};
    size_t length = PICK(lengths);
    switch (below(4)) {
    case 0:
        say("read(%d, %p, %zx)", fd, at, length);
        result(read(fd, at, length));
        break;
    case 1:
        say("write(%d, %p, %zx)", fd, at, length);
        result(write(fd, at, length));
        break;
    case 2:
        say("open(%p)", at);
        result(open(at, O_RDONLY));
        break;
    default:
        say("fstat(%d, %p)", fd, at);
        result(fstat(fd, at));
    }
}

static void seek(void) {
    int fd = any_fd();
    struct named from = PICK(whence);
    long offset = PICK(offsets);
    say("lseek(%d, %ld, %s)", fd, offset, from.name);
    result(lseek(fd, offset, from.value));
}

static void truncate_file(void) {
    long size = PICK(offsets);
    if (one_in(2)) {
        int fd = any_fd();
        say("ftruncate(%d, %ld)", fd, size);
        result(ftruncate(fd, size));
    } else {
        const char *name = any_name();
        say("truncate(%s, %ld)", name, size);
        result(truncate(name, size));
    }
}

static void allocate(void) {
    static const struct named flags[] = {NAMED(FALLOC_FL_KEEP_SIZE), NAMED(FALLOC_FL_PUNCH_HOLE), NAMED(FALLOC_FL_ZERO_RANGE), NAMED(FALLOC_FL_COLLAPSE_RANGE)};
    int fd = any_fd();
    long mode = one_in(4) ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : pick_flags(flags, COUNT(flags), 3);
    long offset = PICK(offsets), size = PICK(sizes);
    say("fallocate(%d, %lx, %ld, %ld)", fd, mode, offset, size);
    result(fallocate(fd, mode, offset, size));
}

static void duplicate(void) {
    int fd = any_fd();
    switch (below(4)) {
    case 0:
        say("dup(%d)", fd);
        keep(result(dup(fd)));
        break;
    case 1: {
        int to = one_in(4) ? any_fd() : (int)below(30);
        int flags = one_in(2) ? O_CLOEXEC : one_in(5) ? O_APPEND : 0;
        say("dup3(%d, %d, %x)", fd, to, flags);
        keep(result(dup3(fd, to, flags)));
        break;
    }
    case 2: {
        int to = below(30);
        say("dup2(%d, %d)", fd, to);
        keep(result(dup2(fd, to)));
        break;
    }
    default: {
        int from = one_in(5) ? -1 : (int)below(40);
        say("fcntl(%d, F_DUPFD, %d)", fd, from);
        keep(result(fcntl(fd, one_in(2) ? F_DUPFD : F_DUPFD_CLOEXEC, from)));
    }
    }
}

static void control(void) {
    static const struct named flags[] = {NAMED(O_APPEND), NAMED(O_NOATIME), NAMED(O_CREAT), NAMED(O_RDWR)};
    int fd = any_fd();
    switch (below(4)) {
    case 0:
        say("F_GETFL %d", fd);
        result(fcntl(fd, F_GETFL));
        break;
    case 1: {
        long set = pick_flags(flags, COUNT(flags), 3);
        say("F_SETFL %d %s", fd, flag_names);
        result(fcntl(fd, F_SETFL, set | O_NONBLOCK));
        break;
    }
    case 2:
        say("F_GETFD %d", fd);
        result(fcntl(fd, F_GETFD));
        break;
    default: {
        int set = below(3);
        say("F_SETFD %d %d", fd, set);
        result(fcntl(fd, F_SETFD, set));
    }
    }
}

static void lock(void) {
    int fd = any_fd();
    static const struct named kinds[] = {NAMED(F_RDLCK), NAMED(F_WRLCK), NAMED(F_UNLCK)};
    static const struct named commands[] = {NAMED(F_SETLK), NAMED(F_GETLK), NAMED(F_OFD_SETLK), NAMED(F_OFD_GETLK)};
    static const struct named operations[] = {NAMED(LOCK_SH), NAMED(LOCK_EX), NAMED(LOCK_UN)};
    if (one_in(3)) {
        struct named operation = PICK(operations);
        say("flock(%d, %s)", fd, operation.name);
        result(flock(fd, operation.value | LOCK_NB));
        return;
    }
    struct named kind = PICK(kinds), command = PICK(commands), from = PICK(whence);
    struct flock range = {.l_type = kind.value, .l_whence = from.value, .l_start = PICK(offsets), .l_len = PICK(offsets)};
    say("%s(%d, %s, %s %ld %ld)", command.name, fd, kind.name, from.name, range.l_start, range.l_len);
    if (result(fcntl(fd, command.value, &range)) == 0)
        say(" type %d whence %d %ld %ld pid %d", range.l_type, range.l_whence, range.l_start, range.l_len, range.l_pid > 0 ? 1 : range.l_pid);
}

static void copy(void) {
    int from = any_fd(), to = any_fd();
    off_t in = PICK(offsets), out = PICK(offsets);
    off_t *in_at = one_in(2) ? &in : NULL, *out_at = one_in(2) ? &out : NULL;
    long size = PICK(sizes);
    if (one_in(2)) {
        say("sendfile(%d, %d, %ld, %ld)", to, from, in_at ? in : -9, size);
        result(sendfile(to, from, in_at, size));
    } else {
        say("copy_file_range(%d, %ld, %d, %ld, %ld)", from, in_at ? in : -9, to, out_at ? out : -9, size);
        result(copy_file_range(from, in_at, to, out_at, size, 0));
    }
    say(" %ld %ld", in, out);
}

static void sync_file(void) {
    int fd = any_fd();
    bool data = one_in(2);
    say("%s(%d)", data ? "fdatasync" : "fsync", fd);
    result(data ? fdatasync(fd) : fsync(fd));
}

static void advise(void) {
    int fd = any_fd(), advice = below(8);
    say("posix_fadvise(%d, %d) = %d", fd, advice, posix_fadvise(fd, 0, 100, advice));
}

static const struct choice choices[] = {
    {open_file, 12}, {open_temporary, 1}, {close_fd, 4}, {read_fd, 6}, {write_fd, 8}, {pread_fd, 3}, {pwrite_fd, 4}, {vectors, 4}, {bad_pointers, 2},
    {seek, 6}, {truncate_file, 3}, {allocate, 3}, {duplicate, 4}, {control, 3}, {lock, 5}, {copy, 4}, {sync_file, 1}, {advise, 1},
};
const struct subject files = {"files", choices, COUNT(choices)};
