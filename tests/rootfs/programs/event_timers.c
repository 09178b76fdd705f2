/* timerfd, signalfd, pidfd at their edges: what is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sched.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

#define MS 1000000L

static int events(int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    poll(&p, 1, 0);
    return p.revents;
}

static void timers(void) {
    TITLE("timerfd");
    uint64_t v = 0;
    struct itimerspec set = {{0, 0}, {0, 0}}, old;
    SHOW(timerfd_create(CLOCK_PROCESS_CPUTIME_ID, 0));
    SHOW(timerfd_create(CLOCK_MONOTONIC, 1));
    int t = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    SHOW(timerfd_settime(0, 0, &set, NULL));
    SHOW(timerfd_settime(999, 0, &set, NULL));
    SHOW(timerfd_settime(t, 4, &set, NULL));
    SHOW(timerfd_settime(t, 0, NULL, NULL));
    SHOW(timerfd_settime(t, 0, &set, (void *)1));
    set.it_value.tv_nsec = 1000000000;
    SHOW(timerfd_settime(t, 0, &set, NULL));
    set.it_value = (struct timespec){-1, 0};
    SHOW(timerfd_settime(t, 0, &set, NULL));
    set.it_value = (struct timespec){0, 0};
    set.it_interval.tv_nsec = -1;
    SHOW(timerfd_settime(t, 0, &set, NULL));
    SHOW(read(t, &v, 8));
    SHOW(read(t, &v, 7));
    SHOW(write(t, &v, 8));
    set = (struct itimerspec){{0, 0}, {0, 30 * MS}};
    SHOW(timerfd_settime(t, 0, &set, &old));
    printf("%ld.%ld\n", (long)old.it_value.tv_sec, old.it_value.tv_nsec);
    SHOW(timerfd_gettime(t, &old));
    printf("%d\n", old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 30 * MS);
    printf("%x\n", events(t));
    usleep(50000);
    printf("%x\n", events(t));
    SHOW(timerfd_gettime(t, &old));
    printf("%ld.%ld\n", (long)old.it_value.tv_sec, old.it_value.tv_nsec);
    SHOW(read(t, &v, 8));
    printf("%d\n", (int)v);
    SHOW(read(t, &v, 8));
    /* Periods that nobody read count. */
    set = (struct itimerspec){{0, 20 * MS}, {0, 10 * MS}};
    timerfd_settime(t, 0, &set, NULL);
    usleep(100000);
    SHOW(read(t, &v, 8));
    printf("about five: %d\n", v >= 5 && v <= 12);
    SHOW(timerfd_gettime(t, &old));
    printf("%ld %d\n", old.it_interval.tv_nsec, old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 20 * MS);
    SHOW(fcntl(t, F_SETFL, 0));
    SHOW(read(t, &v, 8));
    printf("%d\n", (int)v);
    set = (struct itimerspec){{0, 0}, {0, 1}};
    SHOW(timerfd_settime(t, TFD_TIMER_ABSTIME, &set, NULL));
    SHOW(read(t, &v, 8));
    printf("%d\n", (int)v);
    /* Absolute on other clocks; edge-triggered epoll hears of every expiration that was read before. */
    int clocks[] = {CLOCK_REALTIME, CLOCK_BOOTTIME};
    for (int i = 0; i < 2; i++) {
        int c = timerfd_create(clocks[i], 0), ep = epoll_create1(0);
        struct epoll_event event = {EPOLLIN | EPOLLET, {.fd = c}};
        epoll_ctl(ep, EPOLL_CTL_ADD, c, &event);
        struct timespec now;
        clock_gettime(clocks[i], &now);
        set = (struct itimerspec){{0, 10 * MS}, now};
        set.it_value.tv_nsec += 10 * MS;
        if (set.it_value.tv_nsec >= 1000000000)
            set.it_value.tv_sec++, set.it_value.tv_nsec -= 1000000000;
        SHOW(timerfd_settime(c, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &set, NULL));
        SHOW(epoll_wait(ep, &event, 1, 1000));
        SHOW(epoll_wait(ep, &event, 1, 30));
        SHOW(read(c, &v, 8));
        SHOW(epoll_wait(ep, &event, 1, 1000));
    }
    struct stat s;
    fstat(t, &s);
    printf("mode %o\n", s.st_mode);
}

static void signals(void) {
    TITLE("signalfd");
    sigset_t set, more;
    struct signalfd_siginfo info[3];
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGKILL);
    sigprocmask(SIG_BLOCK, &set, NULL);
    more = set;
    sigaddset(&more, SIGUSR2);
    sigprocmask(SIG_BLOCK, &more, NULL);
    SHOW(signalfd(-1, &set, 1));
    SHOW(syscall(SYS_signalfd4, -1, &set, 4, 0));
    SHOW(signalfd(0, &set, 0));
    SHOW(signalfd(999, &set, 0));
    int fd = signalfd(-1, &set, SFD_NONBLOCK);
    SHOW(read(fd, info, sizeof info));
    SHOW(read(fd, info, 100));
    SHOW(write(fd, info, 128));
    printf("%x\n", events(fd));
    raise(SIGUSR1), raise(SIGUSR1), raise(SIGUSR2);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77});
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 78});
    printf("%x\n", events(fd));
    SHOW(read(fd, info, sizeof info) / 128);
    for (int i = 0; i < 3; i++)
        printf("signal %d code %d own %d value %d\n", info[i].ssi_signo, info[i].ssi_code,
               info[i].ssi_pid == (unsigned)getpid() && info[i].ssi_uid == getuid(), info[i].ssi_int);
    SHOW(read(fd, info, sizeof info));
    SHOW(signalfd(fd, &more, 0) == fd);
    SHOW(read(fd, info, sizeof info) / 128);
    printf("signal %d\n", info[0].ssi_signo);
    int child = fork();
    if (child == 0)
        _exit(9);
    SHOW(fcntl(fd, F_SETFL, 0));
    SHOW(read(fd, info, 128));
    printf("signal %d code %d child %d status %d\n", info[0].ssi_signo, info[0].ssi_code,
           info[0].ssi_pid == (unsigned)child, info[0].ssi_status);
    waitpid(child, NULL, 0);
    int ep = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.fd = fd}};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
    SHOW(epoll_wait(ep, &event, 1, 0));
    kill(getpid(), SIGUSR1);
    SHOW(epoll_wait(ep, &event, 1, 1000));
    read(fd, info, 128);
    SHOW(epoll_wait(ep, &event, 1, 0));
}

static void processes(void) {
    TITLE("pidfd");
    int p[2];
    pipe(p);
    int child = fork();
    if (child == 0) {
        char c;
        read(p[0], &c, 1);
        _exit(3);
    }
    int fd = syscall(SYS_pidfd_open, child, 0);
    SHOW(syscall(SYS_pidfd_open, child, 0x40000000));
    SHOW(syscall(SYS_pidfd_open, 99999, 0));
    SHOW(syscall(SYS_pidfd_open, -1, 0));
    printf("%x\n", events(fd));
    int ep = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.fd = fd}};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
    SHOW(epoll_wait(ep, &event, 1, 0));
    SHOW(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
    SHOW(syscall(SYS_pidfd_send_signal, 0, 0, NULL, 0));
    int theirs = syscall(SYS_pidfd_getfd, fd, p[1], 0);
    SHOW(theirs >= 0);
    SHOW(write(theirs, "x", 1));
    SHOW(epoll_wait(ep, &event, 1, 5000));
    printf("%x\n", events(fd));
    siginfo_t info;
    SHOW(waitid(P_PIDFD, fd, &info, WEXITED));
    printf("status %d\n", info.si_status);
    SHOW(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
    SHOW(read(fd, &info, 8));
}

static void refused(void) {
    TITLE("anonymous files");
    char path[64], text[64];
    sigset_t none;
    sigemptyset(&none);
    int fds[] = {epoll_create1(0), timerfd_create(CLOCK_MONOTONIC, 0), signalfd(-1, &none, 0)};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fds[i]);
        int n = readlink(path, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        printf("%s %x\n", text, fcntl(fds[i], F_GETFL));
        SHOW(open(path, O_RDWR));
        SHOW(fsync(fds[i]));
        SHOW(ftruncate(fds[i], 0));
        SHOW(read(fds[i], (void *)1, 0));
    }
}

static void by_proc(void) {
    TITLE("a process by its directory in /proc");
    int self = open("/proc/self", O_DIRECTORY), other = open("/proc", O_DIRECTORY), inner = open("/proc/self/task", O_DIRECTORY);
    SHOW(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0)), SHOW(syscall(SYS_pidfd_send_signal, other, 0, NULL, 0));
    SHOW(syscall(SYS_pidfd_send_signal, inner, 0, NULL, 0)), SHOW(syscall(SYS_pidfd_getfd, self, 0, 0));
    int child = fork();
    if (child == 0)
        _exit(0);
    char path[32];
    sprintf(path, "/proc/%d", child);
    int gone = open(path, O_DIRECTORY);
    waitpid(child, NULL, 0);
    SHOW(syscall(SYS_pidfd_send_signal, gone, 0, NULL, 0));
}

static void not_open(void) {
    TITLE("a descriptor that is no more than a path");
    int path = open("/", O_PATH), epoll = epoll_create1(0), event = eventfd(0, 0);
    struct itimerspec setting = {{0, 0}, {1, 0}};
    sigset_t set;
    sigemptyset(&set);
    SHOW(timerfd_settime(path, 0, &setting, NULL)), SHOW(timerfd_gettime(path, &setting));
    SHOW(signalfd(path, &set, 0));
    SHOW(epoll_ctl(path, EPOLL_CTL_ADD, event, &(struct epoll_event){0}));
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, path, &(struct epoll_event){0}));
    SHOW(epoll_wait(path, &(struct epoll_event){0}, 1, 0));
    SHOW(inotify_add_watch(path, "/", IN_CREATE)), SHOW(inotify_rm_watch(path, 1));
    SHOW(syscall(SYS_pidfd_send_signal, path, 0, NULL, 0)), SHOW(syscall(SYS_pidfd_getfd, path, 0, 0));
    SHOW(vmsplice(path, NULL, 0, 0)), SHOW(setns(path, 0));
}

int main(void) {
    timers();
    signals();
    processes();
    refused();
    by_proc();
    not_open();
    return 0;
}
