/* System calls and signals that have results for memory that was never touched, when all memory is used up: their work is
 * done, so what it gave must not be lost. Another process holds the memory; it is the one that has to go.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };
static const size_t GIB = 1ul << 30;

/* Memory whose page tables are not there either. */
static void *untouched(void) {
    char *at = mmap(NULL, 2 * GIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        _exit(1);
    return (void *)(((uintptr_t)at + GIB - 1) & -GIB);
}

static long free_pages(int info) {
    char text[4096];
    ssize_t length = pread(info, text, sizeof text - 1, 0);
    text[length > 0 ? length : 0] = 0;
    const char *line = strstr(text, "MemFree:");
    return line ? atol(line + 8) / 4 : -1;
}

static pid_t holder;

/* A process that holds all memory but two pages, which don't suffice for a page with its tables. */
static void use_up_memory(void) {
    int told[2], info = open("/proc/meminfo", O_RDONLY);
    if (info < 0 || pipe(told))
        _exit(1);
    holder = fork();
    if (holder == 0) {
        char *at = untouched();
        madvise(at, GIB, MADV_NOHUGEPAGE);
        for (long left; (left = free_pages(info)) > 2;)
            for (long i = 0; i < (left + 7) / 8; i++, at += PAGE)
                *at = 1;
        if (write(told[1], "", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    char byte;
    close(told[1]);
    if (read(told[0], &byte, 1) != 1)
        printf("memory was not used up\n");
    close(told[0]);
    close(info);
}

/* That it had to go shows that there was no other memory. */
static void release_memory(void) {
    int status;
    kill(holder, SIGTERM);
    waitpid(holder, &status, 0);
    printf(", holder %s\n", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? "ended" : "not needed");
}

static void wait_for_child(void) {
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    waitid(P_PID, child, &(siginfo_t){}, WEXITED | WNOWAIT);
    int *status = untouched();
    use_up_memory();
    pid_t found = waitpid(child, status, WNOHANG);
    printf("wait4 %d %d", found == child, found > 0 ? WEXITSTATUS(*status) : -errno);
}

static int listening(struct sockaddr_in *address) {
    socklen_t length = sizeof *address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)address, sizeof *address) || listen(listener, 4) || getsockname(listener, (struct sockaddr *)address, &length))
        _exit(1);
    return listener;
}

static void accept_connection(void) {
    struct sockaddr_in address, *from = untouched();
    socklen_t length = sizeof *from;
    int listener = listening(&address), client = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client, (struct sockaddr *)&address, sizeof address))
        _exit(1);
    use_up_memory();
    int accepted = accept(listener, (struct sockaddr *)from, &length);
    int error = errno;
    printf("accept %d %d", accepted >= 0 ? 0 : error, accepted >= 0 && from->sin_family == AF_INET);
    close(accepted);
    close(listener);
    close(client);
}

static void receive(int with_message) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) || send(ends[0], "datagram", 8, 0) != 8)
        _exit(1);
    char *bytes = untouched(), *name = untouched();
    struct iovec piece = {bytes, 100};
    struct msghdr message = {.msg_name = name, .msg_namelen = 100, .msg_iov = &piece, .msg_iovlen = 1};
    socklen_t length = 100;
    use_up_memory();
    ssize_t got = with_message ? recvmsg(ends[1], &message, MSG_DONTWAIT) : recvfrom(ends[1], bytes, 100, MSG_DONTWAIT, (struct sockaddr *)name, &length);
    printf("%s %d %.8s", with_message ? "recvmsg" : "recvfrom", got == 8 ? 0 : errno, got == 8 ? bytes : "");
    close(ends[0]);
    close(ends[1]);
}

static void receive_from(void) {
    receive(0);
}

static void receive_message(void) {
    receive(1);
}

static void receive_descriptor(void) {
    int ends[2], null = open("/dev/null", O_RDONLY);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
        _exit(1);
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof null), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &null, sizeof null);
    char byte = 'x';
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (sendmsg(ends[0], &message, 0) != 1)
        _exit(1);
    struct cmsghdr *got = message.msg_control = untouched();
    use_up_memory();
    ssize_t length = recvmsg(ends[1], &message, MSG_DONTWAIT);
    printf("SCM_RIGHTS %d", length == 1 ? 0 : errno);
    printf(" %d", length == 1 && got->cmsg_type == SCM_RIGHTS && fcntl(*(int *)CMSG_DATA(got), F_GETFD) == 0);
    close(ends[0]);
    close(ends[1]);
}

static void wait_for_signal(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 42});
    siginfo_t *info = untouched();
    struct timespec now = {};
    use_up_memory();
    int number = sigtimedwait(&set, info, &now);
    printf("sigtimedwait %d %d", number == SIGRTMIN ? 0 : errno, number == SIGRTMIN ? info->si_value.sival_int : 0);
}

static void wait_for_edge(void) {
    int ends[2], epoll = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET, .data.u32 = 42};
    if (pipe(ends) || epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &wanted) || write(ends[1], "", 1) != 1)
        _exit(1);
    struct epoll_event *events = untouched();
    use_up_memory();
    int count = epoll_wait(epoll, events, 8, 0);
    printf("epoll_wait %d %d", count, count == 1 ? (int)events->data.u32 : 0);
    close(epoll);
    close(ends[0]);
    close(ends[1]);
}

static void receive_queued(void) {
    struct {
        long type;
        char text[8];
    } message = {1, "queued"}, *got = untouched();
    int queue = msgget(IPC_PRIVATE, 0600);
    if (msgsnd(queue, &message, sizeof message.text, 0))
        _exit(1);
    use_up_memory();
    ssize_t length = msgrcv(queue, got, sizeof got->text, 0, IPC_NOWAIT);
    printf("msgrcv %d %s", length == 8 ? 0 : errno, length == 8 ? got->text : "");
    msgctl(queue, IPC_RMID, NULL);
}

static void make_pipe(void) {
    int *ends = untouched(), next = dup(0);
    close(next);
    use_up_memory();
    int made = pipe2(ends, O_CLOEXEC);
    int error = errno;
    printf("pipe2 %d %d", made ? error : 0, made == 0 && ends[0] == next && ends[1] == next + 1);
    close(next);
    close(next + 1);
}

static volatile sig_atomic_t caught;

static void on_signal(int number) {
    caught = number;
}

static void catch_signal(void) {
    stack_t stack = {.ss_sp = untouched(), .ss_size = 1 << 16};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    sigaltstack(&stack, NULL);
    sigaction(SIGUSR1, &action, NULL);
    use_up_memory();
    raise(SIGUSR1);
    printf("handler %d", caught == SIGUSR1);
}

int main(void) {
    void (*const cases[])(void) = {
        wait_for_child, accept_connection, receive_from, receive_message, receive_descriptor, wait_for_signal, wait_for_edge, receive_queued, make_pipe, catch_signal,
    };
    char buffer[8192];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        cases[i]();
        release_memory();
        fflush(stdout);
    }
    return 0;
}
