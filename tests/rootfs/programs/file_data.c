/* Data of files: holes, sizes, limits, mappings, copies, seals. What is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

static char data[1 << 20], other[1 << 20];

static void state(int fd) {
    struct stat s;
    fstat(fd, &s);
    printf("  size %ld blocks %ld at %ld\n", (long)s.st_size, (long)s.st_blocks, (long)lseek(fd, 0, SEEK_CUR));
    fflush(stdout);
}

/* The runs of data and holes. */
static void runs(int fd) {
    off_t at = 0, end = lseek(fd, 0, SEEK_END);
    printf(" ");
    while (at < end) {
        off_t start = lseek(fd, at, SEEK_DATA);
        if (start == -1)
            break;
        off_t stop = lseek(fd, start, SEEK_HOLE);
        printf(" [%ld, %ld)", (long)start, (long)stop);
        at = stop;
    }
    printf(" of %ld\n", (long)end);
    fflush(stdout);
}

static int fresh(void) {
    unlink("/tmp/data");
    return open("/tmp/data", O_RDWR | O_CREAT, 0644);
}

static void sparse(void) {
    TITLE("holes");
    int fd = fresh();
    SHOW(pwrite(fd, data, 10, 100000));
    runs(fd), state(fd);
    SHOW(pwrite(fd, data, 5000, 8000));
    runs(fd), state(fd);
    SHOW(ftruncate(fd, 1 << 20));
    runs(fd), state(fd);
    SHOW(fallocate(fd, 0, 40000, 10000)); /* From here on it depends on the file system what counts as a hole. */
    state(fd);
    SHOW(fallocate(fd, FALLOC_FL_KEEP_SIZE, 1 << 20, 8192));
    state(fd);
    SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 4096));
    state(fd);
    SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 50000));
    state(fd);
    SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4096));
    SHOW(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096));
    SHOW(fallocate(fd, FALLOC_FL_INSERT_RANGE, 0, 4096));
    SHOW(fallocate(fd, 0x100, 0, 4096));
    SHOW(fallocate(fd, 0, 0, 0));
    SHOW(fallocate(fd, 0, -1, 1));
    SHOW(fallocate(fd, 0, 1, INT64_MAX));
    SHOW(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 8L << 40));
    SHOW(fallocate(open("/tmp/data", O_RDONLY), 0, 0, 1));
    SHOW(fallocate(open("/tmp", O_RDONLY), 0, 0, 1));
    SHOW(fallocate(open("/dev/null", O_RDWR), 0, 0, 1));
    SHOW(lseek(fd, 2 << 20, SEEK_DATA));
    SHOW(lseek(fd, 2 << 20, SEEK_HOLE));
    SHOW(lseek(fd, -1, SEEK_DATA));
    SHOW(lseek(fd, -1, SEEK_SET));
    SHOW(lseek(fd, INT64_MAX, SEEK_SET));
    SHOW(lseek(fd, 1, SEEK_CUR));
    SHOW(write(fd, "x", 1));
    SHOW(lseek(fd, 0, 7));
    SHOW(ftruncate(fd, 0));
    runs(fd), state(fd);
    SHOW(ftruncate(fd, -1));
    SHOW(ftruncate(fd, INT64_MAX));
    SHOW(truncate("/tmp", 0));
    SHOW(truncate("/tmp/missing", 0));
    SHOW(truncate("/dev/null", 0));
    close(fd);
    TITLE("room that was allocated is a hole until it is written");
    int files[] = {fresh(), memfd_create("allocated", 0)};
    for (int i = 0; i < 2; i++) {
        fd = files[i];
        SHOW(fallocate(fd, 0, 0, 65536));
        runs(fd), state(fd);
        SHOW(pwrite(fd, data, 100, 20000));
        runs(fd), state(fd);
        char *mapped = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        mapped[40000] = 'x';
        runs(fd);
        SHOW(munmap(mapped, 65536));
        SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 36864, 8192));
        runs(fd), state(fd);
        close(fd);
    }
    TITLE("what comes after the end is zero");
    fd = fresh();
    memset(data, 'x', 6000);
    SHOW(write(fd, data, 6000));
    SHOW(ftruncate(fd, 5000));
    SHOW(ftruncate(fd, 6000));
    SHOW(pread(fd, other, 6000, 0));
    printf("%d %d %d\n", other[4999], other[5000], other[5999]);
    close(fd);
}

static void transfers(void) {
    TITLE("transfers");
    int fd = fresh();
    SHOW(write(fd, "0123456789", 10));
    SHOW(pwrite(fd, (void *)1, 10, 20));
    state(fd);
    SHOW(pread(fd, (void *)1, 10, 0));
    SHOW(read(fd, data, 10));
    SHOW(pread(fd, data, 10, 5));
    SHOW(pread(fd, data, 10, -1));
    SHOW(pwrite(fd, data, 10, -1));
    SHOW(pwrite(fd, data, 0, 100));
    SHOW(pwrite(fd, data, 10, INT64_MAX - 5));
    state(fd);
    struct iovec v[3] = {{data, 3}, {(void *)1, 3}, {other, 3}};
    SHOW(lseek(fd, 0, SEEK_SET));
    SHOW(readv(fd, v, 3));
    SHOW(lseek(fd, 0, SEEK_CUR));
    SHOW(writev(fd, v, 3));
    SHOW(readv(fd, v, 0));
    SHOW(readv(fd, v, -1));
    SHOW(readv(fd, v, 1025));
    v[0].iov_len = -1;
    SHOW(readv(fd, v, 1));
    SHOW(pwritev2(fd, &(struct iovec){"ab", 2}, 1, -1, 0));
    SHOW(pwritev2(fd, &(struct iovec){"ab", 2}, 1, 0, RWF_APPEND));
    SHOW(pwritev2(fd, &(struct iovec){"ab", 2}, 1, 0, 0x4000));
    SHOW(preadv2(fd, &(struct iovec){data, 20}, 1, 0, RWF_NOWAIT));
    SHOW(preadv2(fd, &(struct iovec){data, 20}, 1, -1, 0));
    state(fd);
    int dir = open("/tmp", O_RDONLY), writer = open("/tmp/data", O_WRONLY | O_APPEND);
    SHOW(read(dir, data, 10));
    SHOW(write(fd, "", 0));
    SHOW(read(writer, data, 1));
    SHOW(pwrite(writer, "end", 3, 0));
    SHOW(write(writer, "end", 3));
    state(writer);
    SHOW(fsync(fd));
    SHOW(fdatasync(dir));
    SHOW(syncfs(fd));
    SHOW(sync_file_range(fd, 0, 10, SYNC_FILE_RANGE_WRITE));
    SHOW(sync_file_range(fd, 0, 10, 64));
    SHOW(readahead(fd, 0, 10));
    SHOW(readahead(writer, 0, 10));
    SHOW(posix_fadvise(fd, 0, 10, POSIX_FADV_DONTNEED));
    SHOW(posix_fadvise(fd, 0, 10, 77));
    close(fd), close(writer), close(dir);
}

static void copies(void) {
    TITLE("copy_file_range");
    int a = fresh(), b = open("/tmp/copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < 20000; i++)
        data[i] = i % 250;
    SHOW(write(a, data, 20000));
    off_t from = 100, to = 50;
    SHOW(copy_file_range(a, &from, b, &to, 15000, 0));
    printf("  %ld %ld\n", (long)from, (long)to);
    state(a), state(b);
    SHOW(copy_file_range(a, &from, b, NULL, 100000, 0));
    state(b);
    SHOW(copy_file_range(a, &from, b, NULL, 10, 0));
    SHOW(copy_file_range(a, NULL, a, &to, 0, 0));
    from = 0, to = 10;
    SHOW(copy_file_range(a, &from, a, &to, 20, 0));
    SHOW(copy_file_range(a, &from, a, &to, 10, 0));
    SHOW(copy_file_range(a, &from, b, &to, 10, 1));
    from = -1;
    SHOW(copy_file_range(a, &from, b, &to, 10, 0));
    int ends[2], r = open("/tmp/copy", O_RDONLY), dir = open("/tmp", O_RDONLY), append = open("/tmp/copy", O_WRONLY | O_APPEND);
    pipe2(ends, O_NONBLOCK);
    SHOW(copy_file_range(a, NULL, ends[1], NULL, 10, 0));
    SHOW(copy_file_range(a, NULL, r, NULL, 10, 0));
    SHOW(copy_file_range(a, NULL, dir, NULL, 10, 0));
    SHOW(copy_file_range(a, NULL, append, NULL, 10, 0));
    TITLE("sendfile");
    from = 7;
    SHOW(sendfile(b, a, &from, 30));
    printf("  %ld\n", (long)from);
    SHOW(lseek(a, 19990, SEEK_SET));
    SHOW(sendfile(b, a, NULL, 30));
    SHOW(sendfile(b, a, NULL, 30));
    state(a), state(b);
    SHOW(sendfile(ends[1], a, &from, 100000));
    SHOW(sendfile(ends[1], a, &from, 100000));
    SHOW(sendfile(b, ends[0], NULL, 10));
    SHOW(sendfile(r, a, NULL, 10));
    SHOW(sendfile(append, a, NULL, 10));
    SHOW(sendfile(b, dir, NULL, 10));
    TITLE("splice");
    from = 3;
    SHOW(read(ends[0], data, sizeof data));
    SHOW(splice(a, &from, ends[1], NULL, 10000, 0));
    to = 5;
    SHOW(splice(ends[0], NULL, b, &to, 20000, 0));
    printf("  %ld %ld\n", (long)from, (long)to);
    SHOW(splice(a, NULL, b, NULL, 10, 0));
    SHOW(splice(a, NULL, ends[0], NULL, 10, 0));
    SHOW(splice(ends[0], NULL, b, NULL, 10, SPLICE_F_NONBLOCK));
    SHOW(splice(ends[0], &from, b, NULL, 10, 0));
    SHOW(splice(a, &from, ends[1], NULL, 10, 64));
    SHOW(splice(dir, NULL, ends[1], NULL, 10, 0));
    close(a), close(b), close(r), close(dir), close(append), close(ends[0]), close(ends[1]);
}

static sigjmp_buf out;

static void caught(int signal, siginfo_t *info, void *context) {
    (void)context;
    siglongjmp(out, signal * 100 + info->si_code);
}

/* Touches a byte; the signal and its code, or 0. */
static int touch(volatile char *at, int write) {
    int signal = sigsetjmp(out, 1);
    if (signal)
        return signal;
    if (write)
        *at = 'w';
    else
        (void)*at;
    return 0;
}

static void mappings(void) {
    TITLE("mappings");
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL), sigaction(SIGSEGV, &action, NULL);
    int fd = fresh();
    memset(data, 'a', 10000);
    SHOW(write(fd, data, 10000));
    char *shared = mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *second = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 8192);
    printf("%d %d %d\n", shared[9999], shared[10000], shared[12287]);
    SHOW(touch(shared + 12288, 0));
    SHOW(touch(shared + 12288, 1));
    SHOW(touch(private + 12288, 0));
    SHOW(touch(private + 12288, 1));
    SHOW(touch((char *)second, 1));
    shared[0] = 'S', shared[9000] = 'S', shared[11000] = 'T';
    private[1] = 'P';
    printf("%c %c %c %d\n", private[0], private[1], second[9000 - 8192], second[11000 - 8192]);
    SHOW(pread(fd, other, 20000, 0));
    printf("%c %c %c\n", other[0], other[1], other[9000]);
    SHOW(pwrite(fd, "W", 1, 2));
    printf("%c %c\n", shared[2], private[2]);
    TITLE("growing shows zeros");
    SHOW(ftruncate(fd, 15000));
    SHOW(pread(fd, other, 20000, 0));
    printf("%d\n", other[14000]);
    SHOW(touch(shared + 12288, 1));
    SHOW(touch(shared + 16384, 1));
    TITLE("shrinking takes pages away");
    SHOW(ftruncate(fd, 4000));
    SHOW(touch(shared + 4096, 0));
    SHOW(touch(private + 4096, 0));
    printf("%d %d\n", shared[3999], shared[4000]);
    SHOW(ftruncate(fd, 9000));
    printf("%d %d %d\n", shared[4000], shared[5000], private[1]);
    SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    printf("%d %d %d\n", shared[0], private[0], private[1]);
    SHOW(msync(shared, 8192, MS_SYNC));
    SHOW(msync(shared, 8192, MS_SYNC | MS_ASYNC));
    TITLE("a child's writes are seen, the file outlives its name");
    unlink("/tmp/data");
    pid_t child = fork();
    if (child == 0) {
        shared[5] = 'C', private[5] = 'C';
        _exit(0);
    }
    waitpid(child, NULL, 0);
    printf("%c %d\n", shared[5], private[5]);
    SHOW(munmap(shared, 5 * 4096));
    SHOW(pread(fd, other, 10, 0));
    printf("%c\n", other[5]);
    TITLE("what can be mapped how");
    int r = open("/etc/passwd", O_RDONLY), w = open("/tmp/copy", O_WRONLY), dir = open("/tmp", O_RDONLY);
    SHOW(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, r, 0) == MAP_FAILED ? -1 : 0);
    SHOW(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, r, 0) == MAP_FAILED ? -1 : 0);
    SHOW(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, w, 0) == MAP_FAILED ? -1 : 0);
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, w, 0) == MAP_FAILED ? -1 : 0);
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, dir, 0) == MAP_FAILED ? -1 : 0);
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_SHARED, r, 100) == MAP_FAILED ? -1 : 0);
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_SHARED_VALIDATE, r, 0) == MAP_FAILED ? -1 : 0);
    close(fd), close(r), close(w), close(dir);
}

static void limits(void) {
    TITLE("RLIMIT_FSIZE");
    struct rlimit limit = {10000, RLIM_INFINITY}, none = {RLIM_INFINITY, RLIM_INFINITY};
    int fd = fresh();
    signal(SIGXFSZ, SIG_IGN);
    SHOW(setrlimit(RLIMIT_FSIZE, &limit));
    SHOW(write(fd, data, 8000));
    SHOW(write(fd, data, 8000));
    SHOW(write(fd, data, 8000));
    SHOW(pwrite(fd, data, 10, 9995));
    SHOW(pwrite(fd, data, 10, 20000));
    SHOW(pwrite(fd, data, 0, 20000));
    SHOW(ftruncate(fd, 20000));
    SHOW(truncate("/tmp/data", 10001));
    SHOW(ftruncate(fd, 10000));
    SHOW(fallocate(fd, 0, 0, 10001));
    SHOW(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 20000));
    state(fd);
    signal(SIGXFSZ, SIG_DFL);
    pid_t child = fork();
    if (child == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        pwrite(fd, data, 10, 20000);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("ended by %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    int ends[2];
    pipe(ends);
    SHOW(write(ends[1], data, 20000));
    SHOW(setrlimit(RLIMIT_FSIZE, &none));
    close(fd), close(ends[0]), close(ends[1]);
    TITLE("RLIMIT_NOFILE");
    getrlimit(RLIMIT_NOFILE, &none);
    limit.rlim_cur = 10, limit.rlim_max = none.rlim_max;
    for (int i = 3; i < 40; i++)
        close(i);
    SHOW(setrlimit(RLIMIT_NOFILE, &limit));
    int last, opened = 0;
    while ((last = open("/dev/null", O_RDONLY)) >= 0)
        opened++;
    printf("%d then %s\n", opened, strerrorname_np(errno));
    SHOW(dup(0));
    SHOW(dup2(0, 10));
    SHOW(dup2(0, 9));
    SHOW(fcntl(0, F_DUPFD, 10));
    SHOW(fcntl(0, F_DUPFD, 3));
    SHOW(pipe(ends));
    close(9);
    SHOW(pipe(ends));
    SHOW(open("/dev/null", O_RDONLY));
    SHOW(setrlimit(RLIMIT_NOFILE, &none));
}

static void seals(void) {
    TITLE("memfd and seals");
    int fd = SHOW(memfd_create("name", MFD_ALLOW_SEALING | MFD_CLOEXEC));
    SHOW(fcntl(fd, F_GETFD));
    SHOW(fcntl(fd, F_GET_SEALS));
    SHOW(ftruncate(fd, 8192));
    char *writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    SHOW(munmap(writable, 4096));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    SHOW(write(fd, "x", 1));
    SHOW(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
    char *readable = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    SHOW(readable == MAP_FAILED ? -1 : 0);
    SHOW(mprotect(readable, 4096, PROT_READ | PROT_WRITE));
    SHOW(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0);
    SHOW(ftruncate(fd, 4096));
    SHOW(ftruncate(fd, 8192));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    SHOW(ftruncate(fd, 4096));
    SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
    SHOW(ftruncate(fd, 16384));
    SHOW(fallocate(fd, 0, 0, 16384));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
    SHOW(fcntl(fd, F_GET_SEALS));
    SHOW(fcntl(fd, F_ADD_SEALS, 0x1000));
    close(fd);
    fd = memfd_create("plain", 0);
    SHOW(fcntl(fd, F_GET_SEALS));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int n = readlink(path, data, 100);
    printf("%.*s\n", n > 0 ? n : 0, data);
    int reopened = open(path, O_RDONLY);
    SHOW(write(fd, "shared", 6));
    SHOW(read(reopened, data, 10));
    SHOW(write(reopened, "x", 1));
    struct stat s;
    fstat(fd, &s);
    printf("mode %o links %ld\n", s.st_mode, (long)s.st_nlink);
    SHOW(memfd_create("x", 0x4000));
    char name[300];
    memset(name, 'n', sizeof name);
    name[249] = 0;
    SHOW(memfd_create(name, 0) >= 0);
    name[249] = 'n', name[250] = 0;
    SHOW(memfd_create(name, 0));

}

int main(void) {
    sparse();
    transfers();
    copies();
    mappings();
    limits();
    seals();
    return 0;
}
