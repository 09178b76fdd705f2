/* Epoll and the descriptors that tell events. */
#include "fuzz.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/timerfd.h>
#include <time.h>

static int epolls[3] = {-1, -1, -1};

static void make_epoll(void) {
    say("epoll_create1");
    epolls[below(COUNT(epolls))] = keep(result(epoll_create1(one_in(3) ? EPOLL_CLOEXEC : one_in(9) ? 1 : 0)));
}

/* Mostly one that is. */
static int an_epoll(void) { return one_in(6) ? any_fd() : PICK(epolls); }

static void control(void) {
    static const struct named operations[] = {NAMED(EPOLL_CTL_ADD), NAMED(EPOLL_CTL_ADD), NAMED(EPOLL_CTL_ADD), NAMED(EPOLL_CTL_MOD), NAMED(EPOLL_CTL_DEL), {"7", 7}};
    static const struct named events[] = {
        NAMED(EPOLLIN), NAMED(EPOLLIN), NAMED(EPOLLOUT), NAMED(EPOLLPRI), NAMED(EPOLLRDHUP), NAMED(EPOLLET), NAMED(EPOLLONESHOT), NAMED(EPOLLEXCLUSIVE),
    };
    int epoll = an_epoll(), fd = any_fd();
    struct named operation = PICK(operations);
    struct epoll_event event = {.events = pick_flags(events, COUNT(events), 3), .data.u64 = fd};
    say("epoll_ctl(%d, %s, %d, %s)", epoll, operation.name, fd, flag_names);
    result(epoll_ctl(epoll, operation.value, fd, &event));
}

static int by_data(const void *a, const void *b) {
    const struct epoll_event *x = a, *y = b;
    return x->data.u64 < y->data.u64 ? -1 : x->data.u64 > y->data.u64 ? 1 : (int)x->events - (int)y->events;
}

static void wait(void) {
    struct epoll_event found[20];
    int epoll = an_epoll(), most = one_in(10) ? (int)below(3) - 1 : 20;
    say("epoll_wait(%d, %d)", epoll, most);
    long n = result(epoll_wait(epoll, found, most, 0));
    if (most == 20 && n > 0)
        qsort(found, n, sizeof *found, by_data);
    for (long i = 0; most == 20 && i < n; i++)
        say(" %lu:%x", found[i].data.u64, found[i].events);
}

static void counter(void) {
    uint64_t value = one_in(6) ? -1 : one_in(6) ? -2 : below(100);
    switch (below(3)) {
    case 0: {
        int flags = EFD_NONBLOCK | (one_in(3) ? EFD_SEMAPHORE : 0) | (one_in(12) ? 2 : 0);
        unsigned initial = below(4);
        say("eventfd(%u, %x)", initial, flags);
        keep(result(eventfd(initial, flags)));
        break;
    }
    case 1: {
        int fd = any_fd();
        say("write 8 (%d, %lx)", fd, value);
        result(write(fd, &value, one_in(9) ? 4 : 8));
        break;
    }
    default: {
        int fd = any_fd();
        say("read 8 (%d)", fd);
        if (result(read(fd, &value, 8)) == 8)
            say(" %lx", value);
    }
    }
}

static void timer(void) {
    struct itimerspec timer = {0};
    int fd = any_fd();
    switch (below(3)) {
    case 0: {
        static const struct named clocks[] = {NAMED(CLOCK_REALTIME), NAMED(CLOCK_MONOTONIC), NAMED(CLOCK_BOOTTIME), NAMED(CLOCK_PROCESS_CPUTIME_ID), {"99", 99}};
        struct named clock = PICK(clocks);
        say("timerfd_create(%s)", clock.name);
        keep(result(timerfd_create(clock.value, TFD_NONBLOCK)));
        break;
    }
    case 1:
        timer.it_value.tv_sec = one_in(3) ? 0 : 1000;
        timer.it_value.tv_nsec = one_in(9) ? -1 : 0;
        timer.it_interval.tv_sec = below(3);
        say("timerfd_settime(%d, %ld, %ld)", fd, timer.it_value.tv_sec, timer.it_value.tv_nsec);
        result(timerfd_settime(fd, 0, &timer, NULL));
        break;
    default:
        say("timerfd_gettime(%d)", fd);
        if (result(timerfd_gettime(fd, &timer)) == 0)
            say(" %s interval %ld", timer.it_value.tv_sec > 900 ? "armed" : "off", timer.it_interval.tv_sec);
    }
}

static void watch(void) {
    static const struct named masks[] = {NAMED(IN_ALL_EVENTS), NAMED(IN_CREATE), NAMED(IN_MODIFY), NAMED(IN_ONLYDIR), NAMED(IN_ONESHOT), NAMED(IN_MASK_ADD), NAMED(IN_DONT_FOLLOW)};
    int fd = any_fd();
    switch (below(4)) {
    case 0:
        say("inotify_init1");
        keep(result(inotify_init1(IN_NONBLOCK)));
        break;
    case 1: {
        int descriptor = below(4);
        say("inotify_rm_watch(%d, %d)", fd, descriptor);
        result(inotify_rm_watch(fd, descriptor));
        break;
    }
    case 2: {
        const char *name = one_in(2) ? "." : any_name();
        long mask = pick_flags(masks, COUNT(masks), 2);
        say("inotify_add_watch(%d, %s, %s)", fd, name, flag_names);
        result(inotify_add_watch(fd, name, mask));
        break;
    }
    default: {
        static char buffer[8192] __attribute__((aligned(8)));
        memset(buffer, 0, sizeof buffer);
        say("inotify read(%d)", fd);
        long n = result(read(fd, buffer, sizeof buffer));
        for (long at = 0; at + (long)sizeof(struct inotify_event) <= n;) {
            struct inotify_event *event = (void *)(buffer + at);
            if (event->wd > 100 || event->len > 256)
                break; /* not an inotify descriptor */
            say(" %d:%x:%s%s", event->wd, event->mask, event->len ? event->name : "", event->cookie ? "+" : "");
            at += sizeof *event + event->len;
        }
    }
    }
}

static void memory_file(void) {
    static const struct named flags[] = {NAMED(MFD_CLOEXEC), NAMED(MFD_ALLOW_SEALING), NAMED(MFD_ALLOW_SEALING), {"0x100", 0x100}};
    static const struct named seals[] = {NAMED(F_SEAL_SEAL), NAMED(F_SEAL_SHRINK), NAMED(F_SEAL_GROW), NAMED(F_SEAL_WRITE), NAMED(F_SEAL_FUTURE_WRITE), {"0x100", 0x100}};
    int fd = any_fd();
    switch (below(3)) {
    case 0: {
        long set = pick_flags(flags, COUNT(flags), 3);
        say("memfd_create(%s)", flag_names);
        keep(result(memfd_create("memory", set)));
        break;
    }
    case 1: {
        long set = pick_flags(seals, COUNT(seals), 4);
        say("F_ADD_SEALS(%d, %s)", fd, flag_names);
        result(fcntl(fd, F_ADD_SEALS, set));
        break;
    }
    default:
        say("F_GET_SEALS(%d)", fd);
        result(fcntl(fd, F_GET_SEALS));
    }
}

static void select_all(void) {
    fd_set in, out, other;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&other);
    for (unsigned i = 0; i < SLOTS; i++)
        if (slots[i] >= 0 && slots[i] < FD_SETSIZE) {
            FD_SET(slots[i], &in);
            FD_SET(slots[i], &out);
            FD_SET(slots[i], &other);
        }
    struct timeval none = {0, 0};
    say("select");
    result(select(200, &in, &out, &other, &none));
    for (int fd = 0; fd < 200; fd++)
        if (FD_ISSET(fd, &in) || FD_ISSET(fd, &out) || FD_ISSET(fd, &other))
            say(" %d:%d%d%d", fd, !!FD_ISSET(fd, &in), !!FD_ISSET(fd, &out), !!FD_ISSET(fd, &other));
}

static const struct choice choices[] = {{make_epoll, 4}, {control, 8}, {wait, 8}, {counter, 6}, {timer, 4}, {watch, 6}, {memory_file, 4}, {select_all, 2}};
const struct subject events = {"events", choices, COUNT(choices)};
