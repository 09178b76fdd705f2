/* Locks on files: record locks of processes and of descriptions, flock. What is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char *PATH = "/tmp/locked";

static struct flock range(int type, int whence, off_t start, off_t len) {
    return (struct flock){.l_type = type, .l_whence = whence, .l_start = start, .l_len = len};
}

static int record(int fd, int command, int type, off_t start, off_t len) {
    struct flock l = range(type, SEEK_SET, start, len);
    return fcntl(fd, command, &l);
}

/* Who stands in the way, with the process by its role. */
static void blocker(int fd, int command, int type, off_t start, off_t len, pid_t parent) {
    struct flock l = range(type, SEEK_SET, start, len);
    int result = fcntl(fd, command, &l);
    const char *who = l.l_pid == parent ? "parent" : l.l_pid == getpid() ? "self" : l.l_pid == -1 ? "description"
                      : l.l_pid == 0                                      ? "nobody"
                                                                          : "another";
    printf("%d: type %d whence %d start %ld len %ld, %s\n", result, l.l_type, l.l_whence, (long)l.l_start,
           (long)l.l_len, who);
    fflush(stdout);
}

/* Runs the body in a child, and waits for it. */
#define CHILD(...)                                                                                 \
    do {                                                                                           \
        fflush(stdout);                                                                            \
        pid_t child_pid = fork();                                                                  \
        if (child_pid == 0) {                                                                      \
            __VA_ARGS__;                                                                               \
            fflush(stdout);                                                                        \
            _exit(0);                                                                              \
        }                                                                                          \
        waitpid(child_pid, NULL, 0);                                                               \
    } while (0)

static void ranges(void) {
    TITLE("ranges");
    pid_t me = getpid();
    int fd = open(PATH, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(fd, 100);
    SHOW(record(fd, F_SETLK, F_WRLCK, 10, 20));
    SHOW(record(fd, F_SETLK, F_RDLCK, 15, 5));
    SHOW(record(fd, F_SETLK, F_WRLCK, 50, 0));
    SHOW(record(fd, F_SETLK, F_UNLCK, 60, 10));
    SHOW(record(fd, F_SETLK, F_WRLCK, 30, 5));
    CHILD({
        for (int at = 0; at < 80; at += 5) {
            blocker(fd, F_GETLK, F_RDLCK, at, 5, me);
            blocker(fd, F_GETLK, F_WRLCK, at, 5, me);
        }
        SHOW(record(fd, F_SETLK, F_RDLCK, 15, 5));
        SHOW(record(fd, F_SETLK, F_WRLCK, 15, 5));
        SHOW(record(fd, F_SETLK, F_RDLCK, 10, 5));
        SHOW(record(fd, F_SETLK, F_WRLCK, 60, 10));
    });
    TITLE("arguments");
    struct flock l = range(F_WRLCK, SEEK_END, -10, 5);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(F_WRLCK, SEEK_CUR, 5, -5);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(F_WRLCK, SEEK_CUR, 4, -5);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(F_WRLCK, SEEK_SET, -1, 5);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(F_WRLCK, SEEK_SET, INT64_MAX, 1);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(F_WRLCK, SEEK_SET, INT64_MAX, 2);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(F_WRLCK, SEEK_END, INT64_MAX, 2);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(F_WRLCK, 9, 0, 2);
    SHOW(fcntl(fd, F_SETLK, &l));
    l = range(9, SEEK_SET, 0, 2);
    SHOW(fcntl(fd, F_SETLK, &l));
    SHOW(fcntl(fd, F_GETLK, &l));
    l = range(F_UNLCK, SEEK_SET, 0, 2);
    SHOW(fcntl(fd, F_GETLK, &l));
    SHOW(fcntl(fd, F_SETLK, (void *)1));
    SHOW(fcntl(fd, F_SETLK, NULL));
    int r = open(PATH, O_RDONLY), w = open(PATH, O_WRONLY), p = open(PATH, O_PATH);
    SHOW(record(r, F_SETLK, F_WRLCK, 0, 1));
    SHOW(record(r, F_SETLK, F_RDLCK, 0, 1));
    SHOW(record(w, F_SETLK, F_RDLCK, 0, 1));
    SHOW(record(w, F_GETLK, F_RDLCK, 0, 1));
    SHOW(record(p, F_SETLK, F_RDLCK, 0, 1));
    SHOW(record(-1, F_SETLK, F_RDLCK, 0, 1));
    SHOW(record(w, F_SETLK, F_UNLCK, 0, 1));
    TITLE("a close gives up the process's locks");
    SHOW(record(fd, F_SETLK, F_WRLCK, 0, 100));
    CHILD(SHOW(record(fd, F_SETLK, F_WRLCK, 0, 1)));
    close(r);
    CHILD(SHOW(record(fd, F_SETLK, F_WRLCK, 0, 1)));
    SHOW(record(fd, F_SETLK, F_WRLCK, 0, 100));
    dup2(1, w);
    CHILD(SHOW(record(fd, F_SETLK, F_WRLCK, 0, 1)));
    TITLE("they are not inherited, and end with the process");
    CHILD({
        SHOW(record(fd, F_SETLK, F_WRLCK, 0, 100));
        CHILD(blocker(fd, F_GETLK, F_WRLCK, 0, 1, me));
    });
    SHOW(record(fd, F_SETLK, F_WRLCK, 0, 100));
    close(fd);
}

static void descriptions(void) {
    TITLE("open file descriptions");
    pid_t me = getpid();
    int a = open(PATH, O_RDWR), b = open(PATH, O_RDWR), a2 = dup(a);
    SHOW(record(a, F_OFD_SETLK, F_WRLCK, 0, 10));
    SHOW(record(b, F_OFD_SETLK, F_RDLCK, 0, 10));
    SHOW(record(b, F_OFD_SETLK, F_WRLCK, 10, 10));
    SHOW(record(b, F_SETLK, F_WRLCK, 5, 1));
    blocker(b, F_OFD_GETLK, F_RDLCK, 0, 10, me);
    blocker(b, F_GETLK, F_RDLCK, 0, 10, me);
    blocker(a, F_OFD_GETLK, F_RDLCK, 5, 10, me);
    SHOW(record(a2, F_OFD_SETLK, F_RDLCK, 0, 10));
    SHOW(record(b, F_OFD_SETLK, F_RDLCK, 0, 10));
    struct flock l = range(F_WRLCK, SEEK_SET, 100, 1);
    l.l_pid = me;
    SHOW(fcntl(a, F_OFD_SETLK, &l));
    SHOW(fcntl(a, F_OFD_GETLK, &l));
    SHOW(record(a, F_SETLK, F_WRLCK, 30, 10));
    SHOW(record(a, F_OFD_SETLK, F_WRLCK, 30, 10));
    blocker(a, F_OFD_GETLK, F_WRLCK, 30, 10, me);
    SHOW(close(a));
    SHOW(record(b, F_OFD_SETLK, F_WRLCK, 0, 10));
    CHILD({
        SHOW(record(a2, F_OFD_SETLK, F_WRLCK, 20, 5));
    });
    SHOW(record(b, F_OFD_SETLK, F_WRLCK, 20, 5));
    SHOW(close(a2));
    SHOW(record(b, F_OFD_SETLK, F_WRLCK, 0, 30));
    close(b);
}

static void nothing(int signal) {
    (void)signal;
}

static void whole_files(void) {
    TITLE("flock");
    int a = open(PATH, O_RDWR), b = open(PATH, O_RDONLY), a2 = dup(a), p = open(PATH, O_PATH);
    SHOW(flock(a, LOCK_EX));
    SHOW(flock(b, LOCK_SH | LOCK_NB));
    SHOW(flock(a2, LOCK_SH | LOCK_NB));
    SHOW(flock(b, LOCK_SH | LOCK_NB));
    SHOW(flock(b, LOCK_EX | LOCK_NB));
    SHOW(flock(a, LOCK_EX | LOCK_NB));
    SHOW(flock(b, LOCK_UN));
    SHOW(flock(a, LOCK_EX | LOCK_NB));
    SHOW(record(b, F_SETLK, F_RDLCK, 0, 0));
    CHILD({
        SHOW(flock(a, LOCK_SH | LOCK_NB));
        SHOW(flock(b, LOCK_SH | LOCK_NB));
        SHOW(flock(b, LOCK_UN));
    });
    SHOW(close(a));
    SHOW(flock(b, LOCK_EX | LOCK_NB));
    SHOW(flock(a2, LOCK_UN));
    SHOW(flock(b, LOCK_EX | LOCK_NB));
    SHOW(flock(a2, LOCK_SH | LOCK_NB));
    SHOW(flock(b, 0));
    SHOW(flock(b, LOCK_SH | LOCK_EX));
    SHOW(flock(b, LOCK_NB));
    SHOW(flock(b, 128 | LOCK_SH));
    SHOW(flock(-1, LOCK_SH));
    SHOW(flock(p, LOCK_SH));
    SHOW(flock(open("/tmp", O_RDONLY), LOCK_EX));
    int ends[2];
    pipe(ends);
    SHOW(flock(ends[0], LOCK_EX));
    SHOW(flock(ends[1], LOCK_EX | LOCK_NB));
    SHOW(flock(open("/dev/null", O_RDONLY), LOCK_EX));
    close(a2), close(b);
}

static void leases(void) {
    TITLE("leases");
    int fd = open("/proc/version", O_RDONLY);
    SHOW(fcntl(fd, F_GETLEASE));
    SHOW(fcntl(fd, F_NOTIFY, DN_MODIFY));
    close(fd);
}

/* Waits for the lock on a byte; 1 if that would have been for ever. */
static int deadlocks(int fd, off_t at) {
    return record(fd, F_SETLKW, F_WRLCK, at, 1) == -1 && errno == EDEADLK;
}

static void waiting(void) {
    TITLE("waiting");
    int fd = open(PATH, O_RDWR), to_child[2], to_parent[2];
    char c = 'x';
    pipe(to_child), pipe(to_parent);
    SHOW(record(fd, F_SETLK, F_WRLCK, 0, 10));
    pid_t child = fork();
    if (child == 0) {
        write(to_parent[1], &c, 1);
        SHOW(record(fd, F_SETLKW, F_RDLCK, 5, 1));
        printf("the child has it\n");
        fflush(stdout);
        _exit(0);
    }
    read(to_parent[0], &c, 1);
    printf("the parent gives it up\n");
    fflush(stdout);
    record(fd, F_SETLK, F_RDLCK, 0, 10);
    waitpid(child, NULL, 0);

    TITLE("a signal ends the wait");
    SHOW(record(fd, F_SETLK, F_WRLCK, 0, 10));
    int other = open(PATH, O_RDWR);
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = nothing}, NULL);
    CHILD({
        ualarm(20000, 20000);
        SHOW(record(fd, F_SETLKW, F_WRLCK, 0, 1));
        SHOW(record(other, F_OFD_SETLKW, F_WRLCK, 0, 1));
    });
    SHOW(flock(fd, LOCK_EX));
    ualarm(20000, 20000);
    SHOW(flock(other, LOCK_SH));
    ualarm(0, 0);
    close(other);

    TITLE("a circle of three: one of them, whoever closes it, gets EDEADLK");
    SHOW(record(fd, F_SETLK, F_UNLCK, 0, 0));
    SHOW(record(fd, F_SETLK, F_WRLCK, 0, 1));
    child = fork();
    if (child == 0) {
        record(fd, F_SETLK, F_WRLCK, 1, 1);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            record(fd, F_SETLK, F_WRLCK, 2, 1);
            write(to_parent[1], &c, 1);
            _exit(deadlocks(fd, 1));
        }
        read(to_child[0], &c, 1);
        int count = deadlocks(fd, 0);
        record(fd, F_SETLK, F_UNLCK, 0, 0);
        int status;
        waitpid(grandchild, &status, 0);
        _exit(count + WEXITSTATUS(status));
    }
    read(to_parent[0], &c, 1);
    write(to_child[1], &c, 1);
    int count = deadlocks(fd, 2), status;
    SHOW(record(fd, F_SETLK, F_UNLCK, 0, 0));
    waitpid(child, &status, 0);
    printf("%d\n", count + WEXITSTATUS(status));
    close(fd);
}

int main(void) {
    ranges();
    descriptions();
    whole_files();
    leases();
    waiting();
    return 0;
}
