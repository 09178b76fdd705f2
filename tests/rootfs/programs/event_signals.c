/* Signals for files that become ready: O_ASYNC, F_SETOWN, F_SETSIG. What is printed must be what it is natively. */
#include "show.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

static sigset_t all;

/* Takes what is pending and prints it. */
static void taken(void) {
    siginfo_t info;
    int signal;
    while ((signal = sigtimedwait(&all, &info, &(struct timespec){0, 0})) > 0) {
        if (info.si_code == SI_KERNEL)
            printf("  SIGIO %d, from the kernel\n", signal == SIGIO);
        else
            printf("  SIGRTMIN+%d code %d band %#lx fd %d\n", signal - SIGRTMIN, info.si_code, info.si_band, info.si_fd);
    }
    printf("  no more\n");
    fflush(stdout);
}

static void ask_for(int fd) {
    SHOW(fcntl(fd, F_SETOWN, getpid()));
    SHOW(fcntl(fd, F_SETSIG, SIGRTMIN + 1));
    SHOW(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC));
}

static void owners(void) {
    TITLE("owners");
    int fds[2];
    pipe(fds);
    SHOW(fcntl(fds[0], F_GETOWN));
    SHOW(fcntl(fds[0], F_SETOWN, 4000000));
    SHOW(fcntl(fds[0], F_SETOWN, -4000000));
    SHOW(fcntl(fds[0], F_SETOWN, (int)0x80000000));
    SHOW(fcntl(fds[0], F_SETOWN, getpid()));
    printf("%d\n", fcntl(fds[0], F_GETOWN) == getpid());
    struct f_owner_ex owner;
    SHOW(fcntl(fds[0], F_GETOWN_EX, &owner));
    printf("%d %d\n", owner.type, owner.pid == getpid());
    owner.type = F_OWNER_TID;
    SHOW(fcntl(fds[0], F_SETOWN_EX, &owner));
    owner.type = 7;
    SHOW(fcntl(fds[0], F_GETOWN_EX, &owner));
    printf("%d %d\n", owner.type, owner.pid == getpid());
    owner.type = 7;
    SHOW(fcntl(fds[0], F_SETOWN_EX, &owner));
    SHOW(fcntl(fds[0], F_SETOWN_EX, &((struct f_owner_ex){F_OWNER_PID, 4000000})));
    SHOW(fcntl(fds[0], F_SETOWN_EX, (void *)1));
    SHOW(fcntl(fds[0], F_SETOWN_EX, &((struct f_owner_ex){F_OWNER_PID, 0})));
    SHOW(fcntl(fds[0], F_GETOWN));
    SHOW(fcntl(fds[0], F_SETSIG, 65));
    SHOW(fcntl(fds[0], F_GETSIG));
    pid_t child = fork();
    if (child == 0)
        pause();
    SHOW(fcntl(fds[0], F_SETOWN, child));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    SHOW(fcntl(fds[0], F_GETOWN));
    int pair[2], number = getpid();
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    SHOW(ioctl(pair[0], FIOSETOWN, &number));
    number = 0;
    SHOW(ioctl(pair[0], SIOCGPGRP, &number));
    printf("%d\n", number == getpid());
    SHOW(ioctl(fds[0], FIOSETOWN, &number));
    close(fds[0]), close(fds[1]), close(pair[0]), close(pair[1]);
}

static void pipes(void) {
    TITLE("pipes");
    int fds[2];
    pipe(fds);
    SHOW(write(fds[1], "x", 1));
    ask_for(fds[0]);
    taken();
    SHOW(write(fds[1], "x", 1));
    taken();
    SHOW(fcntl(fds[0], F_SETSIG, 0));
    SHOW(write(fds[1], "x", 1));
    taken();
    SHOW(fcntl(fds[0], F_SETFL, 0));
    SHOW(write(fds[1], "x", 1));
    taken();
    int on = 1;
    SHOW(ioctl(fds[0], FIOASYNC, &on));
    printf("%d\n", (fcntl(fds[0], F_GETFL) & O_ASYNC) != 0);
    SHOW(close(fds[1]));
    taken();
    close(fds[0]);
    pipe(fds);
    ask_for(fds[1]);
    SHOW(close(fds[0]));
    taken();
    close(fds[1]);
    TITLE("what is not told of");
    int event = eventfd(0, 0);
    ask_for(event);
    SHOW(eventfd_write(event, 1));
    taken();
    SHOW(ioctl(event, FIOASYNC, &on));
    on = 0;
    SHOW(ioctl(event, FIOASYNC, &on));
    int file = open("/tmp/signals", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ask_for(file);
    SHOW(write(file, "x", 1));
    taken();
    close(event), close(file);
}

static void sockets(void) {
    TITLE("sockets");
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    ask_for(pair[0]);
    SHOW(write(pair[1], "x", 1));
    taken();
    SHOW(close(pair[1]));
    taken();
    close(pair[0]);
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    ask_for(pair[0]);
    SHOW(write(pair[1], "x", 1));
    SHOW(write(pair[1], "x", 1));
    taken();
    close(pair[0]), close(pair[1]);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&at, size), listen(listener, 5);
    getsockname(listener, (struct sockaddr *)&at, &size);
    ask_for(listener);
    SHOW(connect(client, (struct sockaddr *)&at, size));
    taken();
    int server = accept(listener, NULL, NULL);
    ask_for(server);
    SHOW(write(client, "x", 1));
    taken();
    close(server), close(client), close(listener);
    taken();
}

static void terminals(void) {
    TITLE("terminals");
    int master, slave;
    openpty(&master, &slave, NULL, NULL, NULL);
    ask_for(slave);
    SHOW(write(master, "line\n", 5));
    SHOW(poll(&(struct pollfd){slave, POLLIN, 0}, 1, 10000));
    taken();
    close(slave), close(master);
    taken();
}

static void *another(void *fds) {
    struct f_owner_ex owner = {F_OWNER_TID, gettid()};
    int *pipe = fds;
    fcntl(pipe[0], F_SETOWN_EX, &owner);
    write(pipe[1], "x", 1);
    sigset_t pending;
    sigpending(&pending);
    printf("the thread has it: %d\n", sigismember(&pending, SIGIO));
    return NULL;
}

static void whom(void) {
    TITLE("threads and groups");
    int fds[2];
    pipe(fds);
    fcntl(fds[0], F_SETFL, O_ASYNC);
    pthread_t thread;
    pthread_create(&thread, NULL, another, fds);
    pthread_join(thread, NULL);
    taken();
    SHOW(write(fds[1], "x", 1));
    taken();
    fflush(stdout);
    int ready[2];
    pipe(ready);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        write(ready[1], "x", 1);
        siginfo_t info;
        printf("the group's child: %d\n", sigtimedwait(&all, &info, &(struct timespec){10, 0}) == SIGIO);
        exit(0);
    }
    char byte;
    read(ready[0], &byte, 1);
    SHOW(fcntl(fds[0], F_SETOWN, -child));
    SHOW(fcntl(fds[0], F_GETOWN) == -child);
    SHOW_AFTER(child, write(fds[1], "x", 1));
    taken();
    TITLE("by default it ends the process");
    child = fork();
    if (child == 0) {
        sigprocmask(SIG_UNBLOCK, &all, NULL);
        fcntl(fds[0], F_SETOWN, getpid());
        write(fds[1], "x", 1);
        exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("%d\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
}

static void *close_own(void *fd) {
    SHOW(syscall(SYS_close_range, *(int *)fd, *(int *)fd, 2));
    SHOW(fcntl(*(int *)fd, F_GETFD));
    return NULL;
}

static void ranges(void) {
    TITLE("close_range");
    int fd = dup(0);
    pthread_t thread;
    pthread_create(&thread, NULL, close_own, &fd);
    pthread_join(thread, NULL);
    SHOW(fcntl(fd, F_GETFD));
    SHOW(syscall(SYS_close_range, fd, fd, 6));
    SHOW(fcntl(fd, F_GETFD));
    SHOW(syscall(SYS_close_range, fd, fd, 8));
    SHOW(syscall(SYS_close_range, fd, fd, 2));
    SHOW(fcntl(fd, F_GETFD));
}

int main(void) {
    sigemptyset(&all);
    sigaddset(&all, SIGIO), sigaddset(&all, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &all, NULL);
    owners();
    pipes();
    sockets();
    terminals();
    whom();
    ranges();
    return 0;
}
