/* poll, select, eventfd at their edges: what is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static int pipe_fds[2];

static void on_alarm(int signal) {
    (void)signal;
}

static long elapsed_ms(struct timespec since) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - since.tv_sec) * 1000 + (now.tv_nsec - since.tv_nsec) / 1000000;
}

static void polls(void) {
    TITLE("poll");
    struct pollfd p[4] = {{pipe_fds[0], POLLIN, 7}, {-1, POLLIN, 7}, {999, POLLIN, 7}, {pipe_fds[1], POLLOUT, 7}};
    SHOW(poll(p, 4, 0));
    printf("%x %x %x %x\n", p[0].revents, p[1].revents, p[2].revents, p[3].revents);
    SHOW(poll(p, 2, 10));
    printf("%x %x\n", p[0].revents, p[1].revents);
    SHOW(poll(NULL, 0, 5));
    SHOW(poll((void *)1, 1, 0));
    SHOW(poll(p, 1000000, 0));
    struct rlimit limit = {3, 1024}, old;
    getrlimit(RLIMIT_NOFILE, &old);
    limit.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    SHOW(poll(p, 4, 0));
    setrlimit(RLIMIT_NOFILE, &old);
    int file = open("/etc/passwd", O_RDONLY);
    struct pollfd regular = {file, POLLIN | POLLOUT | POLLPRI, 0};
    SHOW(poll(&regular, 1, -1));
    printf("%x\n", regular.revents);
    struct timespec start, t = {0, 1000000000};
    SHOW(ppoll(p, 1, &t, NULL));
    t = (struct timespec){-1, 0};
    SHOW(ppoll(p, 1, &t, NULL));
    t = (struct timespec){0, 20000000};
    clock_gettime(CLOCK_MONOTONIC, &start);
    SHOW(syscall(SYS_ppoll, p, 1, &t, NULL, 8));
    printf("left %ld.%09ld, waited enough: %d\n", (long)t.tv_sec, t.tv_nsec, elapsed_ms(start) >= 20);
    SHOW(syscall(SYS_ppoll, p, 1, NULL, &t, 4));
    struct itimerval timer = {{0, 0}, {0, 20000}};
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    SHOW(poll(p, 1, 5000));
    setitimer(ITIMER_REAL, &timer, NULL);
    t = (struct timespec){5, 0};
    SHOW(syscall(SYS_ppoll, p, 1, &t, NULL, 8));
    printf("time was taken off: %d\n", t.tv_sec == 4 && t.tv_nsec > 500000000);
    sigset_t blocked, none;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    SHOW(poll(p, 1, 60));
    SHOW(ppoll(p, 1, NULL, &none));
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    printf("blocked again: %d\n", sigismember(&now, SIGALRM));
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
}

static void show_sets(int n, fd_set *a, fd_set *b, fd_set *c) {
    fd_set *sets[3] = {a, b, c};
    for (int s = 0; s < 3; s++)
        for (int fd = 0; fd < n; fd++)
            if (sets[s] && FD_ISSET(fd, sets[s]))
                printf(" %d:%d", s, fd);
    printf("\n");
}

static void selects(void) {
    TITLE("select");
    fd_set r, w, x;
    int hi = pipe_fds[1] + 1;
    struct timeval t = {0, 0};
#define FILL                                                                                       \
    do {                                                                                           \
        FD_ZERO(&r);                                                                               \
        FD_ZERO(&w);                                                                               \
        FD_ZERO(&x);                                                                               \
        FD_SET(pipe_fds[0], &r);                                                                   \
        FD_SET(pipe_fds[1], &w);                                                                   \
        FD_SET(pipe_fds[0], &x);                                                                   \
    } while (0)
    FILL;
    SHOW(select(hi, &r, &w, &x, &t));
    show_sets(hi, &r, &w, &x);
    FILL;
    t.tv_usec = 10000;
    SHOW(select(hi, &r, NULL, &x, &t));
    show_sets(hi, &r, NULL, &x);
    printf("left %ld.%06ld\n", (long)t.tv_sec, (long)t.tv_usec);
    FILL;
    t = (struct timeval){5, 0};
    SHOW(select(hi, &r, &w, &x, &t));
    printf("left most: %d\n", t.tv_sec == 4 || t.tv_sec == 5);
    FILL;
    SHOW(select(-1, &r, &w, &x, &t));
    SHOW(select(pipe_fds[0], &r, &w, &x, &t) >= 0);
    show_sets(hi, &r, &w, &x);
    FILL;
    FD_SET(40, &r);
    SHOW(select(60, &r, &w, &x, &t));
    show_sets(60, &r, &w, &x);
    FILL;
    t = (struct timeval){0, -1};
    SHOW(select(hi, &r, &w, &x, &t));
    t = (struct timeval){-1, 0};
    SHOW(select(hi, &r, &w, &x, &t));
    t = (struct timeval){0, 1500000};
    SHOW(select(hi, NULL, &w, NULL, &t));
    SHOW(select(hi, (void *)1, NULL, NULL, &t));
    t = (struct timeval){0, 0};
    SHOW(select(1 << 30, NULL, NULL, NULL, &t));
    struct itimerval timer = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    FILL;
    t = (struct timeval){5, 0};
    SHOW(select(hi, &r, NULL, NULL, &t));
    printf("sets are as they were:");
    show_sets(hi, &r, NULL, NULL);
}

static void *add_later(void *fd) {
    usleep(20000);
    uint64_t one = 1;
    write((int)(intptr_t)fd, &one, 8);
    return NULL;
}

static void counters(void) {
    TITLE("eventfd");
    uint64_t v;
    char big[16] = {1};
    SHOW(eventfd(0, 0x10));
    int e = SHOW(eventfd(3, EFD_NONBLOCK)) ;
    struct pollfd p = {e, POLLIN | POLLOUT, 0};
    SHOW(poll(&p, 1, 0));
    printf("%x\n", p.revents);
    SHOW(read(e, big, 16));
    printf("%d\n", big[0]);
    SHOW(read(e, &v, 8));
    SHOW(read(e, big, 7));
    SHOW(write(e, big, 7));
    SHOW(write(e, big, 16));
    v = UINT64_MAX;
    SHOW(write(e, &v, 8));
    v = UINT64_MAX - 1;
    SHOW(write(e, &v, 8));
    SHOW(poll(&p, 1, 0));
    printf("%x\n", p.revents);
    v = 1;
    SHOW(write(e, &v, 8));
    v = 0;
    SHOW(write(e, &v, 8));
    SHOW(read(e, &v, 8));
    printf("%llx\n", (unsigned long long)v);
    int s = SHOW(eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK));
    SHOW(read(s, &v, 8));
    printf("%llu\n", (unsigned long long)v);
    SHOW(read(s, &v, 8));
    SHOW(read(s, &v, 8));
    int blocking = eventfd(0, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, add_later, (void *)(intptr_t)blocking);
    SHOW(read(blocking, &v, 8));
    pthread_join(thread, NULL);
}

int main(void) {
    pipe(pipe_fds);
    polls();
    selects();
    counters();
    return 0;
}
