/* Clocks, timers and waiting with time limits: order and bounds, never exact durations. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t))
        abort();
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int64_t kernel_ns(clockid_t clock) {
    struct timespec t;
    if (syscall(SYS_clock_gettime, clock, &t))
        abort();
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int monotonic(clockid_t clock) {
    int64_t last = now_ns(clock);
    for (int i = 0; i < 100000; i++) {
        int64_t next = i % 100 ? now_ns(clock) : kernel_ns(clock);
        if (next < last)
            return 0;
        last = next;
    }
    return 1;
}

static volatile int ticks;
static void on_tick(int signal) { (void)signal, ticks++; }

static void *set_event(void *argument) {
    usleep(20000);
    uint64_t three = 3;
    if (write(*(int *)argument, &three, 8) != 8)
        abort();
    return NULL;
}

int main(void) {
    CHECK("vDSO", getauxval(AT_SYSINFO_EHDR) != 0);
    CHECK("monotonic clock never runs back", monotonic(CLOCK_MONOTONIC));
    CHECK("real-time clock runs on", monotonic(CLOCK_REALTIME));
    CHECK("coarse clocks", llabs(now_ns(CLOCK_MONOTONIC) - now_ns(CLOCK_MONOTONIC_COARSE)) < 100000000);
    CHECK("time agrees with the clock", llabs(time(NULL) - now_ns(CLOCK_REALTIME) / 1000000000) <= 1);
    struct timeval day;
    CHECK("so does gettimeofday", gettimeofday(&day, NULL) == 0 &&
          llabs(day.tv_sec - now_ns(CLOCK_REALTIME) / 1000000000) <= 1);
    CHECK("boot time is not behind", now_ns(CLOCK_BOOTTIME) >= now_ns(CLOCK_MONOTONIC) - 1000000);
    int64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID), thread_cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (volatile int i = 0; i < 20000000; i++)
        ;
    CHECK("processor time passes", now_ns(CLOCK_PROCESS_CPUTIME_ID) > cpu && now_ns(CLOCK_THREAD_CPUTIME_ID) > thread_cpu);
    struct timespec t;
    CHECK("unknown clock is EINVAL", clock_gettime(77, &t) == -1 && errno == EINVAL);
    CHECK("resolution", clock_getres(CLOCK_MONOTONIC, &t) == 0 && t.tv_sec == 0 && t.tv_nsec == 1);
    CHECK("getcpu", sched_getcpu() >= 0);

    struct timespec pause = {0, 15000000}, rest;
    int64_t begin = now_ns(CLOCK_MONOTONIC);
    CHECK("nanosleep", nanosleep(&pause, NULL) == 0 && now_ns(CLOCK_MONOTONIC) - begin >= 15000000);
    begin = now_ns(CLOCK_MONOTONIC);
    int64_t until = begin + 10000000;
    struct timespec moment = {until / 1000000000, until % 1000000000};
    CHECK("clock_nanosleep until", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL) == 0 &&
          now_ns(CLOCK_MONOTONIC) >= until);
    cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    usleep(50000);
    CHECK("sleeping takes no processor time", now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu < 40000000);

    struct sigaction action = {.sa_handler = on_tick};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval soon = {.it_value = {0, 10000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    pause.tv_nsec = 0, pause.tv_sec = 5;
    CHECK("a signal ends a sleep", nanosleep(&pause, &rest) == -1 && errno == EINTR && rest.tv_sec == 4 && ticks == 1);
    struct itimerval often = {{0, 3000}, {0, 3000}};
    ticks = 0;
    setitimer(ITIMER_REAL, &often, NULL);
    while (ticks < 5)
        ;
    CHECK("an interval timer interrupts a loop", getitimer(ITIMER_REAL, &soon) == 0 && soon.it_interval.tv_usec == 3000);
    struct itimerval off = {0};
    CHECK("and is disarmed", setitimer(ITIMER_REAL, &off, &soon) == 0);

    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    timer_t timer;
    struct itimerspec in_10_ms = {.it_value = {0, 10000000}}, left;
    ticks = 0;
    CHECK("POSIX timer", timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &in_10_ms, NULL) == 0);
    while (!ticks)
        ;
    CHECK("has fired once", timer_gettime(timer, &left) == 0 && left.it_value.tv_nsec == 0 && timer_delete(timer) == 0);

    uint64_t value = 0;
    int tfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    CHECK("timerfd unarmed is EAGAIN", read(tfd, &value, 8) == -1 && errno == EAGAIN);
    struct itimerspec interval = {{0, 5000000}, {0, 5000000}};
    CHECK("timerfd armed", timerfd_settime(tfd, 0, &interval, NULL) == 0);
    usleep(28000);
    CHECK("counts expirations", read(tfd, &value, 8) == 8 && value >= 4);
    CHECK("read into a short buffer is EINVAL", read(tfd, &value, 4) == -1 && errno == EINVAL);

    int efd = eventfd(0, 0), epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event want = {EPOLLIN, {.u64 = 1}}, got[4];
    CHECK("epoll", epoll_ctl(epoll, EPOLL_CTL_ADD, efd, &want) == 0);
    CHECK("twice is EEXIST", epoll_ctl(epoll, EPOLL_CTL_ADD, efd, &want) == -1 && errno == EEXIST);
    begin = now_ns(CLOCK_MONOTONIC);
    CHECK("times out", epoll_wait(epoll, got, 4, 10) == 0 && now_ns(CLOCK_MONOTONIC) - begin >= 10000000);
    pthread_t thread;
    pthread_create(&thread, NULL, set_event, &efd);
    CHECK("an event ends the wait", epoll_wait(epoll, got, 4, 5000) == 1 && got[0].data.u64 == 1 && got[0].events == EPOLLIN);
    CHECK("eventfd's value", read(efd, &value, 8) == 8 && value == 3);
    pthread_join(thread, NULL);
    CHECK("level-triggered", eventfd_write(efd, 1) == 0 && epoll_wait(epoll, got, 4, 0) == 1 && epoll_wait(epoll, got, 4, 0) == 1);
    want.events = EPOLLIN | EPOLLET;
    CHECK("edge-triggered", epoll_ctl(epoll, EPOLL_CTL_MOD, efd, &want) == 0 && epoll_wait(epoll, got, 4, 0) == 1 &&
          epoll_wait(epoll, got, 4, 0) == 0 && eventfd_write(efd, 1) == 0 && epoll_wait(epoll, got, 4, 0) == 1);
    want.events = EPOLLIN | EPOLLONESHOT;
    CHECK("one shot", epoll_ctl(epoll, EPOLL_CTL_MOD, efd, &want) == 0 && epoll_wait(epoll, got, 4, 0) == 1 &&
          eventfd_write(efd, 1) == 0 && epoll_wait(epoll, got, 4, 0) == 0);
    CHECK("removed", epoll_ctl(epoll, EPOLL_CTL_DEL, efd, NULL) == 0 && epoll_wait(epoll, got, 4, 0) == 0);
    int file = open("/tmp", O_RDONLY | O_DIRECTORY);
    CHECK("a file cannot be waited for", epoll_ctl(epoll, EPOLL_CTL_ADD, file, &want) == -1 && errno == EPERM);
    struct epoll_event nested = {EPOLLIN, {.u64 = 2}};
    int outer = epoll_create1(0);
    want.events = EPOLLIN;
    CHECK("epoll in epoll", epoll_ctl(outer, EPOLL_CTL_ADD, epoll, &nested) == 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, efd, &want) == 0 &&
          epoll_wait(outer, got, 4, 1000) == 1 && got[0].data.u64 == 2);

    int ends[2];
    CHECK("pipe", pipe(ends) == 0);
    struct pollfd fds[2] = {{ends[0], POLLIN, 0}, {ends[1], POLLOUT, 0}};
    CHECK("poll", poll(fds, 2, 0) == 1 && fds[0].revents == 0 && fds[1].revents == POLLOUT);
    char block[PIPE_BUF] = {0};
    long written = 0;
    while (poll(&fds[1], 1, 0) == 1)
        written += write(ends[1], block, sizeof block);
    CHECK("a pipe holds 64 KiB", written == 65536);
    close(ends[1]);
    while (read(ends[0], block, sizeof block) > 0)
        ;
    CHECK("hang-up", poll(fds, 1, 0) == 1 && fds[0].revents == POLLHUP);
    signal(SIGPIPE, SIG_IGN);
    CHECK("another pipe", pipe(ends) == 0 && close(ends[0]) == 0);
    CHECK("writing to nobody is EPIPE", write(ends[1], "x", 1) == -1 && errno == EPIPE);
    return check_failures != 0;
}
