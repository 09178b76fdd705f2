/* Whoever waits is woken: several readers or writers of a pipe, senders to a full datagram socket, who accepts at a listener
 * that is shut down. And descriptors in messages within messages are let go of. Output as natively. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PIPE_BYTES = 65536, CHAIN = 1000 };

static int ends[2];
static int receiver, sender;

static void pause_a_little(void) {
    usleep(200000);
}

static void *read_one(void *unused) {
    char byte;
    return (void *)read(ends[0], &byte, 1);
}

static void *move_one(void *unused) {
    static int nowhere = -1;
    if (nowhere < 0)
        nowhere = open("/dev/null", O_WRONLY);
    return (void *)splice(ends[0], NULL, nowhere, NULL, 1, 0);
}

static void *write_some(void *unused) {
    static char bytes[4096];
    return (void *)write(ends[1], bytes, sizeof bytes);
}

static void show_joined(const char *what, pthread_t thread) {
    struct timespec until;
    void *result = NULL;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    int error = pthread_timedjoin_np(thread, &result, &until);
    printf("%s: %ld%s\n", what, (long)result, error ? ", still waits" : "");
}

static void pipes(void) {
    static char bytes[PIPE_BYTES];
    pthread_t threads[3];
    if (pipe(ends))
        exit(1);
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, read_one, NULL);
    pause_a_little();
    printf("written: %zd\n", write(ends[1], "abcdefgh", 8));
    for (int i = 0; i < 3; i++)
        show_joined("reader", threads[i]);
    if (pipe(ends))
        exit(1);
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, move_one, NULL);
    pause_a_little();
    printf("written: %zd\n", write(ends[1], "abcdefgh", 8));
    for (int i = 0; i < 3; i++)
        show_joined("mover", threads[i]);
    if (pipe(ends))
        exit(1);
    printf("filled: %zd\n", write(ends[1], bytes, sizeof bytes));
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, write_some, NULL);
    pause_a_little();
    printf("read: %zd\n", read(ends[0], bytes, sizeof bytes));
    for (int i = 0; i < 3; i++)
        show_joined("writer", threads[i]);
}

static void connect_datagrams(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path + 1, name);
    socklen_t len = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
    receiver = socket(AF_UNIX, SOCK_DGRAM, 0);
    sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (bind(receiver, (void *)&address, len) || connect(sender, (void *)&address, len))
        exit(1);
}

static void fill(void) {
    static char bytes[1000];
    while (send(sender, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

static void *drain(void *unused) {
    char bytes[1000];
    pause_a_little();
    while (recv(receiver, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
    return NULL;
}

static void *close_receiver(void *unused) {
    pause_a_little();
    close(receiver);
    return NULL;
}

static void datagrams(void) {
    pthread_t thread;
    struct pollfd poller = {.events = POLLOUT};
    connect_datagrams("drained");
    poller.fd = sender;
    fill();
    printf("full: %d\n", poll(&poller, 1, 0));
    pthread_create(&thread, NULL, drain, NULL);
    printf("drained: %d\n", poll(&poller, 1, 10000));
    pthread_join(thread, NULL);
    int watcher = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET};
    fill();
    epoll_ctl(watcher, EPOLL_CTL_ADD, sender, &event);
    while (epoll_wait(watcher, &event, 1, 0) > 0)
        ;
    pthread_create(&thread, NULL, drain, NULL);
    printf("drained, by edge: %d\n", epoll_wait(watcher, &event, 1, 10000));
    pthread_join(thread, NULL);
    connect_datagrams("closed");
    fill();
    pthread_create(&thread, NULL, close_receiver, NULL);
    static char bytes[1000];
    ssize_t sent = send(sender, bytes, sizeof bytes, 0);
    printf("closed: %zd %s\n", sent, sent < 0 ? strerror(errno) : "");
    pthread_join(thread, NULL);
}

static void *accept_one(void *listener) {
    int got = accept(*(int *)listener, NULL, NULL);
    return (void *)(long)(got < 0 ? -errno : got);
}

static void listeners(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    pthread_t thread;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, sizeof address.sun_family) || listen(listener, 1))
        exit(1);
    pthread_create(&thread, NULL, accept_one, &listener);
    pause_a_little();
    shutdown(listener, SHUT_RDWR);
    show_joined("accept", thread);
    struct pollfd poller = {.fd = listener, .events = POLLIN};
    int ready = poll(&poller, 1, 0);
    printf("listener: %d %#x\n", ready, poller.revents);
}

/* Each pair of sockets carries the pair before it, so that the last close is the end of them all. */
static void chain(void) {
    int before[2], pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, before))
        exit(1);
    for (int n = 0; n < CHAIN; n++) {
        union {
            struct cmsghdr header;
            char bytes[CMSG_SPACE(sizeof before)];
        } control = {.header = {CMSG_LEN(sizeof before), SOL_SOCKET, SCM_RIGHTS}};
        struct iovec data = {"x", 1};
        struct msghdr message = {
            .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        memcpy(CMSG_DATA(&control.header), before, sizeof before);
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || sendmsg(pair[0], &message, 0) != 1)
            exit(1);
        close(before[0]);
        close(before[1]);
        memcpy(before, pair, sizeof pair);
    }
    close(before[0]);
    close(before[1]);
    printf("chain: closed\n");
}

int main(void) {
    pipes();
    datagrams();
    listeners();
    chain();
    fflush(stdout);
    _exit(0);
}
