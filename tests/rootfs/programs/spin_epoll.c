/*
 * A CPU-bound thread beside an epoll server: 500 round trips over a socket on the loopback interface
 * must get through while another thread never lets go of the processor.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ROUND_TRIPS = 500 };

static atomic_int stop;
static atomic_ulong spins;
static struct sockaddr_in address = {.sin_family = AF_INET};

#define MUST(CALL)                                                                                 \
    ({                                                                                             \
        long must_result = (CALL);                                                                 \
        if (must_result < 0) {                                                                     \
            perror(#CALL);                                                                         \
            exit(1);                                                                               \
        }                                                                                          \
        must_result;                                                                               \
    })

static void *spin(void *unused) {
    while (!stop)
        spins++;
    return unused;
}

static void *client(void *unused) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)&address, sizeof address));
    int sum = 0;
    for (int i = 0; i < ROUND_TRIPS; i++) {
        MUST(write(fd, &i, sizeof i));
        int answer;
        if (MUST(read(fd, &answer, sizeof answer)) != sizeof answer)
            exit(1);
        sum += answer;
    }
    printf("client: sum %d\n", sum);
    close(fd);
    return unused;
}

int main(void) {
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    MUST(bind(listener, (struct sockaddr *)&address, sizeof address));
    socklen_t length = sizeof address;
    MUST(getsockname(listener, (struct sockaddr *)&address, &length));
    MUST(listen(listener, 10));
    int epoll = MUST(epoll_create1(0));
    struct epoll_event event = {EPOLLIN, {.fd = listener}};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event));
    pthread_t threads[2];
    pthread_create(&threads[0], NULL, spin, NULL);
    pthread_create(&threads[1], NULL, client, NULL);
    int served = 0;
    for (int open = 1; open;) {
        MUST(epoll_wait(epoll, &event, 1, -1));
        if (event.data.fd == listener) {
            int accepted = MUST(accept4(listener, NULL, NULL, SOCK_NONBLOCK));
            struct epoll_event added = {EPOLLIN, {.fd = accepted}};
            MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, accepted, &added));
            continue;
        }
        int number;
        if (MUST(read(event.data.fd, &number, sizeof number)) == 0) {
            open = 0;
            continue;
        }
        number *= 2;
        MUST(write(event.data.fd, &number, sizeof number));
        served++;
    }
    stop = 1;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    printf("server: %d served, the other thread ran: %d\n", served, spins > 0);
    return 0;
}
