/*
 * scheduling WHAT ROUNDS COUNT: for each round a line with the nanoseconds that COUNT times WHAT took:
 *   getppid           the system call
 *   yield             from one thread to another and back by sched_yield, two switches
 *   pipe-threads      a byte to another thread and back through two pipes
 *   pipe-processes    the same to another process
 *   fork-exec         fork, execve of a static program, wait
 *   epoll-beside-spin a byte to a thread that waits with epoll and back, beside a thread that computes;
 *                     the sender pauses for a millisecond before each, which is not counted
 * All on one processor, as a microVM has.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MUST(CALL)                                                                                 \
    ({                                                                                             \
        long must_result = (CALL);                                                                 \
        if (must_result < 0) {                                                                     \
            perror(#CALL);                                                                         \
            exit(1);                                                                               \
        }                                                                                          \
        must_result;                                                                               \
    })

static int there[2], back[2];
static atomic_int stop;

static void round_trip(void) {
    char byte = 1;
    MUST(write(there[1], &byte, 1));
    if (MUST(read(back[0], &byte, 1)) != 1)
        exit(1);
}

static void *echo(void *unused) {
    char byte;
    while (MUST(read(there[0], &byte, 1)) == 1)
        MUST(write(back[1], &byte, 1));
    return unused;
}

static void *echo_by_epoll(void *unused) {
    int epoll = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, there[0], &event));
    for (char byte = 1;;) {
        MUST(epoll_wait(epoll, &event, 1, -1));
        if (MUST(read(there[0], &byte, 1)) != 1)
            return unused;
        MUST(write(back[1], &byte, 1));
    }
}

static void *spin(void *unused) {
    while (!stop)
        ;
    return unused;
}

static void *yield(void *unused) {
    while (!stop)
        sched_yield();
    return unused;
}

static void start(void *(*function)(void *)) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, NULL) != 0)
        exit(1);
}

static void call_getppid(void) {
    syscall(SYS_getppid);
}

static void call_yield(void) {
    sched_yield();
}

static void fork_exec(void) {
    pid_t child = MUST(fork());
    if (child == 0) {
        execl("/usr/bin/true", "true", NULL);
        _exit(127);
    }
    int status;
    MUST(waitpid(child, &status, 0));
    if (status != 0)
        exit(1);
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(MUST(sched_getcpu()), &one);
    MUST(sched_setaffinity(0, sizeof one, &one));
    MUST(pipe(there));
    MUST(pipe(back));
    void (*operation)(void) = round_trip;
    int pause_us = 0;
    if (!strcmp(argv[1], "getppid")) {
        operation = call_getppid;
    } else if (!strcmp(argv[1], "yield")) {
        operation = call_yield;
        start(yield);
    } else if (!strcmp(argv[1], "pipe-threads")) {
        start(echo);
    } else if (!strcmp(argv[1], "pipe-processes")) {
        if (MUST(fork()) == 0) {
            close(there[1]);
            echo(NULL);
            return 0;
        }
    } else if (!strcmp(argv[1], "fork-exec")) {
        operation = fork_exec;
    } else if (!strcmp(argv[1], "epoll-beside-spin")) {
        pause_us = 1000;
        start(spin);
        start(echo_by_epoll);
    } else {
        return 2;
    }
    long count = strtol(argv[3], NULL, 10);
    for (long rounds = strtol(argv[2], NULL, 10); rounds > 0; rounds--) {
        struct timespec begin, end;
        if (pause_us)
            usleep(pause_us);
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (long n = 0; n < count; n++)
            operation();
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%ld\n", (end.tv_sec - begin.tv_sec) * 1000000000L + end.tv_nsec - begin.tv_nsec);
    }
    stop = 1;
    return 0;
}
