/* Pipes and FIFOs at their edges: what is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

static char data[200000];

static int events(int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    poll(&p, 1, 0);
    return p.revents;
}

static int queued(int fd) {
    int n = -1;
    ioctl(fd, FIONREAD, &n);
    return n;
}

static void capacity(void) {
    TITLE("how much fits");
    int sizes[] = {1, 2, 511, 1000, 1365, 1366, 2048, 3000, 4095, 4096, 4097, 5000, 65535, 65536, 65537, 100000};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int p[2], count = 0;
        long n, total = 0;
        pipe2(p, O_NONBLOCK);
        while ((n = write(p[1], data, sizes[i])) > 0)
            total += n, count++;
        printf("%d: %d writes, %ld bytes, %d queued, poll %x\n", sizes[i], count, total, queued(p[0]), events(p[1]));
        n = read(p[0], data, 100);
        printf("  after a read of %ld: poll %x, write of 100: %zd\n", n, events(p[1]), write(p[1], data, 100));
        n = read(p[0], data, 4096);
        printf("  after a read of %ld: poll %x, write of 5000: %zd\n", n, events(p[1]), write(p[1], data, 5000));
        close(p[0]), close(p[1]);
    }
}

static void packets(void) {
    TITLE("packets");
    int p[2];
    SHOW(pipe2(p, O_DIRECT | O_NONBLOCK));
    SHOW(write(p[1], "first", 5));
    SHOW(write(p[1], "second", 6));
    SHOW(write(p[1], data, 5000));
    SHOW(queued(p[0]));
    SHOW(read(p[0], data, 3));
    SHOW(read(p[0], data, 100));
    SHOW(read(p[0], data, 10000));
    SHOW(read(p[0], data, 10000));
    SHOW(read(p[0], data, 10000));
    SHOW(fcntl(p[1], F_SETFL, O_NONBLOCK));
    SHOW(write(p[1], "ab", 2));
    SHOW(write(p[1], "cd", 2));
    SHOW(fcntl(p[1], F_SETFL, O_NONBLOCK | O_DIRECT));
    SHOW(write(p[1], "ef", 2));
    SHOW(read(p[0], data, 100));
    int n = 0;
    while (write(p[1], "x", 1) == 1)
        n++;
    printf("%d packets of one byte\n", n);
}

static void ends(void) {
    TITLE("ends");
    int p[2];
    SHOW(pipe2(p, O_NONBLOCK));
    printf("%x %x\n", events(p[0]), events(p[1]));
    SHOW(read(p[0], data, 1));
    SHOW(read(p[0], data, 0));
    SHOW(write(p[0], data, 1));
    SHOW(read(p[1], data, 1));
    SHOW(write(p[1], (void *)1, 10));
    SHOW(write(p[1], "abc", 3));
    SHOW(read(p[0], (void *)1, 2));
    printf("%d queued\n", queued(p[0]));
    struct iovec v[3] = {{"12", 2}, {NULL, 0}, {"345", 3}};
    SHOW(writev(p[1], v, 3));
    SHOW(close(p[1]));
    printf("%x\n", events(p[0]));
    SHOW(read(p[0], data, 100));
    SHOW(read(p[0], data, 100));
    printf("%x\n", events(p[0]));
    pipe2(p, O_NONBLOCK);
    close(p[0]);
    printf("%x\n", events(p[1]));
    signal(SIGPIPE, SIG_IGN);
    SHOW(write(p[1], "x", 1));
    SHOW(write(p[1], "", 0));
    signal(SIGPIPE, SIG_DFL);
    int child = fork();
    if (child == 0) {
        write(p[1], "x", 1);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("ended by signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    SHOW(lseek(p[1], 0, SEEK_SET));
    SHOW(pwrite(p[1], "x", 1, 0));
    SHOW(fsync(p[1]));
    SHOW(ftruncate(p[1], 0));
    SHOW(pipe2(p, O_APPEND));
    SHOW(pipe2((int *)1, 0));
}

static void sizes(void) {
    TITLE("F_SETPIPE_SZ");
    int p[2];
    pipe2(p, O_NONBLOCK);
    SHOW(fcntl(p[0], F_GETPIPE_SZ));
    SHOW(fcntl(p[0], F_SETPIPE_SZ, 5000));
    SHOW(fcntl(p[1], F_GETPIPE_SZ));
    SHOW(write(p[1], data, 10000));
    SHOW(fcntl(p[0], F_SETPIPE_SZ, 0));
    SHOW(read(p[0], data, 4096));
    SHOW(fcntl(p[0], F_SETPIPE_SZ, 0));
    SHOW(fcntl(p[0], F_SETPIPE_SZ, 1 << 20));
    SHOW(fcntl(p[0], F_SETPIPE_SZ, -1));
    SHOW(fcntl(open("/dev/null", O_RDWR), F_GETPIPE_SZ));
    struct stat s;
    SHOW(fstat(p[0], &s));
    printf("mode %o size %ld links %ld blocks %ld\n", s.st_mode, (long)s.st_size, (long)s.st_nlink, (long)s.st_blocks);
}

static void fifos(void) {
    TITLE("FIFOs");
    SHOW(mkfifo("/tmp/fifo", 0600));
    SHOW(mkfifo("/tmp/fifo", 0600));
    SHOW(open("/tmp/fifo", O_WRONLY | O_NONBLOCK));
    int r = SHOW(open("/tmp/fifo", O_RDONLY | O_NONBLOCK));
    printf("%x\n", events(r));
    SHOW(read(r, data, 1));
    int w = SHOW(open("/tmp/fifo", O_WRONLY | O_NONBLOCK));
    printf("%x %x\n", events(r), events(w));
    SHOW(read(r, data, 1));
    SHOW(write(w, "hello", 5));
    SHOW(close(w));
    printf("%x\n", events(r));
    SHOW(read(r, data, 2));
    w = SHOW(open("/tmp/fifo", O_WRONLY));
    printf("%x\n", events(r));
    SHOW(close(r));
    printf("%x\n", events(w));
    int rw = SHOW(open("/tmp/fifo", O_RDWR));
    printf("%x\n", events(rw));
    SHOW(close(w));
    SHOW(write(rw, "x", 1));
    printf("%x\n", events(rw));
    SHOW(read(rw, data, 10));
    SHOW(close(rw));
    /* Blocking opens meet each other. */
    int child = fork();
    if (child == 0) {
        w = open("/tmp/fifo", O_WRONLY);
        write(w, "from the child", 14);
        _exit(0);
    }
    r = SHOW(open("/tmp/fifo", O_RDONLY));
    SHOW(read(r, data, 100));
    SHOW(read(r, data, 100));
    waitpid(child, NULL, 0);
    unlink("/tmp/fifo");
    /* A pipe opened again through /proc is the same pipe. */
    int p[2];
    char path[64];
    pipe(p);
    snprintf(path, sizeof path, "/proc/self/fd/%d", p[1]);
    int again = open(path, O_WRONLY);
    printf("opened %d, writes %zd\n", again >= 0, write(again, "again", 5));
    SHOW(read(p[0], data, 100));
    int n = readlink(path, data, sizeof data);
    data[n] = 0;
    printf("%.6s\n", data);
}

int main(void) {
    capacity();
    packets();
    ends();
    sizes();
    fifos();
    return 0;
}
