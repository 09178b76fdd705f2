/* epoll at its edges: what is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

static struct epoll_event got[64];

static void wait_now(int ep, int max) {
    int n = epoll_wait(ep, got, max, 0);
    printf("  ready %d:", n);
    for (int i = 0; i < n; i++)
        printf(" (%x %llu)", got[i].events, (unsigned long long)got[i].data.u64);
    printf("\n");
}

static int add(int ep, int op, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data}};
    return epoll_ctl(ep, op, fd, &event);
}

static void errors(void) {
    TITLE("errors");
    int ep = epoll_create1(0), p[2], file = open("/etc/passwd", O_RDONLY);
    pipe(p);
    SHOW(epoll_create(0));
    SHOW(epoll_create1(1));
    SHOW(add(ep, EPOLL_CTL_ADD, file, EPOLLIN, 0));
    SHOW(add(ep, EPOLL_CTL_ADD, 999, EPOLLIN, 0));
    SHOW(add(999, EPOLL_CTL_ADD, p[0], EPOLLIN, 0));
    SHOW(add(p[0], EPOLL_CTL_ADD, p[1], EPOLLIN, 0));
    SHOW(add(ep, EPOLL_CTL_ADD, ep, EPOLLIN, 0));
    SHOW(add(ep, EPOLL_CTL_MOD, p[0], EPOLLIN, 0));
    SHOW(add(ep, EPOLL_CTL_DEL, p[0], EPOLLIN, 0));
    SHOW(add(ep, 77, p[0], EPOLLIN, 0));
    SHOW(add(ep, EPOLL_CTL_ADD, p[0], EPOLLIN, 0));
    SHOW(add(ep, EPOLL_CTL_ADD, p[0], EPOLLIN, 0));
    SHOW(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], NULL));
    SHOW(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL));
    SHOW(epoll_wait(ep, got, 0, 0));
    SHOW(epoll_wait(ep, got, -1, 0));
    SHOW(epoll_wait(ep, (void *)-1L, 10, 0));
    SHOW(epoll_wait(p[0], got, 1, 0));
    SHOW(epoll_wait(999, got, 1, 0));
    SHOW(add(ep, EPOLL_CTL_ADD, p[0], EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 0));
    SHOW(add(ep, EPOLL_CTL_ADD, p[0], EPOLLPRI | EPOLLEXCLUSIVE, 0));
    SHOW(add(ep, EPOLL_CTL_ADD, p[0], EPOLLIN | EPOLLEXCLUSIVE, 0));
    SHOW(add(ep, EPOLL_CTL_MOD, p[0], EPOLLIN, 0));
    SHOW(add(ep, EPOLL_CTL_MOD, p[0], EPOLLIN | EPOLLEXCLUSIVE, 0));
    write(p[1], "x", 1);
    SHOW(epoll_wait(ep, (void *)8, 1, 0));
    wait_now(ep, 1);
    struct epoll_event event;
    SHOW(syscall(SYS_epoll_pwait, ep, &event, 1, 0, &event, 7));
    struct timespec bad = {0, 1000000000};
    SHOW(syscall(SYS_epoll_pwait2, ep, &event, 1, &bad, NULL, 8));
}

static void triggers(void) {
    TITLE("level, edge, oneshot");
    int ep = epoll_create1(0), level[2], edge[2], once[2];
    pipe(level), pipe(edge), pipe(once);
    add(ep, EPOLL_CTL_ADD, level[0], EPOLLIN, 1);
    add(ep, EPOLL_CTL_ADD, edge[0], EPOLLIN | EPOLLET, 2);
    add(ep, EPOLL_CTL_ADD, once[0], EPOLLIN | EPOLLONESHOT, 3);
    wait_now(ep, 10);
    write(level[1], "ab", 2), write(edge[1], "ab", 2), write(once[1], "ab", 2);
    wait_now(ep, 10);
    wait_now(ep, 10);
    write(edge[1], "c", 1), write(once[1], "c", 1);
    wait_now(ep, 10);
    char c;
    read(edge[0], &c, 1), read(level[0], &c, 1);
    wait_now(ep, 10);
    add(ep, EPOLL_CTL_MOD, once[0], EPOLLIN | EPOLLONESHOT, 4);
    add(ep, EPOLL_CTL_MOD, edge[0], EPOLLIN | EPOLLET, 5);
    wait_now(ep, 10);
    wait_now(ep, 10);
    read(level[0], &c, 1);
    wait_now(ep, 10);
    close(level[1]), close(edge[1]), close(once[1]);
    wait_now(ep, 10);
    wait_now(ep, 10);
    add(ep, EPOLL_CTL_MOD, level[0], 0, 6);
    wait_now(ep, 10);
}

static void writable(void) {
    TITLE("edge-triggered writing");
    int ep = epoll_create1(0), p[2];
    static char data[70000];
    pipe2(p, O_NONBLOCK);
    add(ep, EPOLL_CTL_ADD, p[1], EPOLLOUT | EPOLLET, 1);
    wait_now(ep, 10);
    wait_now(ep, 10);
    write(p[1], data, 100);
    wait_now(ep, 10);
    read(p[0], data, 50);
    wait_now(ep, 10);
    write(p[1], data, sizeof data);
    wait_now(ep, 10);
    read(p[0], data, 50);
    wait_now(ep, 10);
    read(p[0], data, 4096);
    wait_now(ep, 10);
    close(p[0]);
    wait_now(ep, 10);
}

static void turns(void) {
    TITLE("turns");
    int ep = epoll_create1(0);
    for (int i = 0; i < 5; i++)
        add(ep, EPOLL_CTL_ADD, eventfd(1, 0), EPOLLIN, i);
    for (int i = 0; i < 6; i++)
        wait_now(ep, 2);
}

static void descriptions(void) {
    TITLE("descriptors and descriptions");
    int ep = epoll_create1(0), e = eventfd(1, 0), copy = dup(e);
    add(ep, EPOLL_CTL_ADD, e, EPOLLIN, 1);
    SHOW(add(ep, EPOLL_CTL_ADD, copy, EPOLLIN, 2));
    wait_now(ep, 10);
    close(e);
    wait_now(ep, 10);
    SHOW(add(ep, EPOLL_CTL_DEL, e, 0, 0));
    int other = eventfd(0, 0);
    SHOW(other == e);
    SHOW(add(ep, EPOLL_CTL_ADD, other, EPOLLIN, 3));
    wait_now(ep, 10);
    close(copy);
    wait_now(ep, 10);
    if (fork() == 0) {
        uint64_t one = 1;
        write(other, &one, 8);
        close(ep);
        _exit(0);
    }
    wait(NULL);
    wait_now(ep, 10);
}

static void nesting(void) {
    TITLE("nesting");
    int chain[7], e = eventfd(0, 0);
    uint64_t v = 1;
    for (int i = 0; i < 7; i++)
        chain[i] = epoll_create1(0);
    for (int i = 0; i < 6; i++)
        SHOW(add(chain[i], EPOLL_CTL_ADD, chain[i + 1], EPOLLIN, i));
    SHOW(add(chain[2], EPOLL_CTL_ADD, chain[0], EPOLLIN, 9));
    SHOW(add(chain[0], EPOLL_CTL_ADD, chain[1], EPOLLIN | EPOLLEXCLUSIVE, 9));
    SHOW(add(chain[2], EPOLL_CTL_ADD, e, EPOLLIN, 9));
    wait_now(chain[0], 10);
    write(e, &v, 8);
    struct pollfd p = {chain[1], POLLIN | POLLOUT, 0};
    SHOW(poll(&p, 1, 0));
    printf("%x\n", p.revents);
    wait_now(chain[0], 10);
    wait_now(chain[0], 10);
    read(e, &v, 8);
    wait_now(chain[0], 10);
}

static int shared_ep;
static int woken;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *waiter(void *unused) {
    struct epoll_event event;
    int n = epoll_wait(shared_ep, &event, 1, 400);
    pthread_mutex_lock(&lock);
    woken += n;
    pthread_mutex_unlock(&lock);
    return unused;
}

static void threads(void) {
    TITLE("several waiters");
    shared_ep = epoll_create1(0);
    int e = eventfd(0, 0);
    uint64_t v = 1;
    add(shared_ep, EPOLL_CTL_ADD, e, EPOLLIN | EPOLLET, 1);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, waiter, NULL);
    usleep(100000);
    write(e, &v, 8);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    printf("an edge woke %d\n", woken);
}

static void on_alarm(int signal) {
    (void)signal;
}

static void interrupted(void) {
    TITLE("signals");
    int ep = epoll_create1(0);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    SHOW(epoll_wait(ep, got, 1, 5000));
    sigset_t blocked, none;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    SHOW(epoll_wait(ep, got, 1, 60));
    SHOW(epoll_pwait(ep, got, 1, 5000, &none));
    SHOW(epoll_pwait(ep, got, 1, 10, &blocked));
}

static void sockets(void) {
    TITLE("sockets");
    int ep = epoll_create1(0), s[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    add(ep, EPOLL_CTL_ADD, s[0], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1);
    wait_now(ep, 10);
    write(s[1], "x", 1);
    wait_now(ep, 10);
    shutdown(s[1], SHUT_WR);
    wait_now(ep, 10);
    close(s[1]);
    wait_now(ep, 10);
}

int main(void) {
    errors();
    triggers();
    writable();
    turns();
    descriptions();
    nesting();
    threads();
    interrupted();
    sockets();
    return 0;
}
