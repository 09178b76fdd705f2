/* Pipes: what fits, splicing, and what polling says of them. */
#include "fuzz.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

static const unsigned sizes[] = {0, 1, 10, 1000, 4095, 4096, 4097, 20000, 65536};

static void make(void) {
    static const struct named flags[] = {NAMED(O_CLOEXEC), NAMED(O_DIRECT), NAMED(O_APPEND)};
    int ends[2] = {-1, -1};
    long set = one_in(3) ? pick_flags(flags, COUNT(flags), 3) : 0;
    say("pipe2(%lx)", set);
    if (result(pipe2(ends, set | O_NONBLOCK)) == 0)
        say(" %d %d", keep(ends[0]), keep(ends[1]));
}

static void queued(void) {
    int fd = any_fd(), count = -1;
    say("FIONREAD %d", fd);
    result(ioctl(fd, FIONREAD, &count));
    say(" %d", count);
}

static void size(void) {
    static const long wanted[] = {0, 1, 4096, 5000, 65536, 1 << 20, -1};
    int fd = any_fd();
    long to = PICK(wanted);
    say("pipe size %d %ld", fd, to);
    result(one_in(2) ? fcntl(fd, F_GETPIPE_SZ) : fcntl(fd, F_SETPIPE_SZ, to));
}

static void move(void) {
    static const struct named flags[] = {NAMED(SPLICE_F_MOVE), NAMED(SPLICE_F_MORE), NAMED(SPLICE_F_GIFT), {"0x100", 0x100}};
    int from = any_fd(), to = any_fd();
    unsigned count = PICK(sizes);
    long set = one_in(3) ? pick_flags(flags, COUNT(flags), 4) : 0;
    off_t at = below(5000);
    switch (below(4)) {
    case 0:
        say("tee(%d, %d, %u, %lx)", from, to, count, set);
        result(tee(from, to, count, set | SPLICE_F_NONBLOCK));
        break;
    case 1: {
        /* The pipe may hold these pages themselves: nobody writes to them later. */
        static char given[8000] = "given";
        struct iovec v[2] = {{given, count % 5000}, {given, 100}};
        say("vmsplice(%d, %zu, %lx)", to, v[0].iov_len, set);
        result(vmsplice(to, v, 1 + below(2), set | SPLICE_F_NONBLOCK));
        break;
    }
    default: {
        off_t *in = one_in(3) ? &at : NULL, *out = one_in(4) ? &at : NULL;
        say("splice(%d, %s, %d, %s, %u, %lx)", from, in ? "at" : "-", to, out ? "at" : "-", count, set);
        result(splice(from, in, to, out, count, set | SPLICE_F_NONBLOCK));
        say(" %ld", at);
    }
    }
}

static void poll_all(void) {
    struct pollfd polled[SLOTS];
    static const struct named events[] = {NAMED(POLLIN), NAMED(POLLOUT), NAMED(POLLPRI), NAMED(POLLRDHUP), NAMED(POLLRDNORM), NAMED(POLLWRNORM)};
    long asked = pick_flags(events, COUNT(events), 2);
    say("poll(%s)", flag_names);
    for (unsigned i = 0; i < SLOTS; i++)
        polled[i] = (struct pollfd){slots[i], asked, 0};
    result(poll(polled, SLOTS, 0));
    for (unsigned i = 0; i < SLOTS; i++)
        say(" %d:%x", slots[i], polled[i].revents);
}

static const struct choice choices[] = {{make, 6}, {queued, 2}, {size, 2}, {move, 6}, {poll_all, 3}};
const struct subject pipes = {"pipes", choices, COUNT(choices)};
