/* hostile KIND [SEED [SECONDS]]: a program that means ill. It ends with 0 when the kernel has stood it.
 *
 * calls        random system calls with hostile numbers, pointers and lengths, in processes that may die of it
 * forks        forks until nothing goes any more, in every child
 * descriptors  opens until nothing goes any more
 * sockets      makes sockets until nothing goes any more
 * listens      listens at every port that there is, then connects to one as fast as it can while nobody accepts
 * signals      two processes send each other signals as fast as they can
 * memory       maps, touches and forks until nothing goes any more
 * traces       random requests of ptrace(2) with hostile arguments, to children that make random calls
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t state;
static unsigned seconds = 5;

static uint64_t draw(void) {
    uint64_t x = state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static time_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

static char *page;

static uint64_t hostile_argument(void) {
    static const uint64_t odd[] = {
        0, 1, 2, 3, 4, 7, 8, 16, 64, 100, 255, 256, 4095, 4096, 4097, 65536, 1 << 20, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
        0x7fffffffffff, 0x7ffffffff000, 0x800000000000, 0x7fffffffffffffff, 0x8000000000000000, -1ul, -2ul, -100ul, -4095ul, -4096ul, 0xffff800000000000,
    };
    switch (draw() % 6) {
    case 0:
        return odd[draw() % (sizeof odd / sizeof *odd)];
    case 1:
        return draw() % 20; /* a descriptor, a small number */
    case 2:
        return (uint64_t)page + draw() % 4096; /* its end is the end of what is mapped */
    case 3:
        return (uint64_t)page;
    case 4:
        return draw() >> draw() % 64;
    default:
        return 1ul << draw() % 64;
    }
}

/* Calls that only stop the process itself for good are left out; so are those by which root ends the machine. */
static int is_left_out(long number) {
    static const long numbers[] = {
        SYS_exit, SYS_exit_group, SYS_pause, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_reboot, SYS_kill, SYS_tkill, SYS_tgkill, SYS_rt_sigqueueinfo,
        SYS_rt_tgsigqueueinfo, SYS_pidfd_send_signal, SYS_setrlimit, SYS_prlimit64, SYS_kexec_load, SYS_init_module, SYS_swapon, SYS_swapoff, SYS_chroot,
    };
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i] == number)
            return 1;
    return 0;
}

static void call_at_random(void) {
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    for (int i = 0; i < 4096; i += 8) {
        uint64_t word = hostile_argument();
        memcpy(page + i, &word, 8);
    }
    int ends[2];
    if (pipe2(ends, O_NONBLOCK) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) || open("/proc/self/maps", O_RDONLY) < 0 || chdir("/tmp"))
        _exit(1);
    alarm(1);
    for (int i = 0; i < 200; i++) {
        long number = draw() % 8 ? draw() % 463 : (long)hostile_argument();
        if (is_left_out(number))
            continue;
        pid_t self = getpid();
        syscall(number, hostile_argument(), hostile_argument(), hostile_argument(), hostile_argument(), hostile_argument(), hostile_argument());
        if (getpid() != self) /* a fork got through */
            _exit(0);
    }
    _exit(0);
}

static void calls(void) {
    unsigned ended = 0;
    sigset_t ended_children, none;
    sigemptyset(&none);
    sigemptyset(&ended_children);
    sigaddset(&ended_children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ended_children, NULL);
    for (time_t end = now() + seconds; now() < end; ended++) {
        uint64_t seed = draw();
        pid_t child = fork();
        if (child == 0) {
            state = seed;
            sigprocmask(SIG_SETMASK, &none, NULL);
            setpgid(0, 0);
            if (seed % 2 && (setgid(1000) || setuid(1000)))
                _exit(1);
            int null = open("/dev/null", O_RDWR);
            for (int fd = 0; fd < 3; fd++)
                dup2(null, fd);
            call_at_random();
        }
        if (child < 0)
            continue;
        /* It may have blocked its alarm. */
        struct timespec limit = {0, 300000000};
        int status;
        while (waitpid(child, &status, WNOHANG) == 0)
            if (sigtimedwait(&ended_children, NULL, &limit) < 0 && errno == EAGAIN) {
                kill(child, SIGKILL);
                kill(-child, SIGKILL);
            }
        kill(-child, SIGKILL);
        while (waitpid(-1, &status, WNOHANG) > 0)
            ;
    }
    printf("%s\n", ended > 3 ? "many calls" : "too few calls");
}

static void forks(void) {
    pid_t group = fork();
    if (group == 0) {
        setpgid(0, 0);
        for (;;)
            if (fork() < 0 && errno != EAGAIN && errno != ENOMEM)
                _exit(1);
    }
    setpgid(group, group);
    struct timespec wait = {seconds, 0};
    while (nanosleep(&wait, &wait) != 0)
        ;
    int status;
    for (int left = 1; left;) {
        left = kill(-group, SIGKILL) == 0;
        while (waitpid(-1, &status, WNOHANG) > 0)
            ;
        sched_yield();
    }
    pid_t again = fork();
    if (again == 0)
        _exit(7);
    printf("forks again: %d\n", again > 0 && waitpid(again, &status, 0) == again && WEXITSTATUS(status) == 7);
}

static void descriptors(void) {
    int count = 0, fd;
    struct rlimit limit = {100, 100}; /* more than the hard limit that was inherited is not for everybody */
    setrlimit(RLIMIT_NOFILE, &limit);
    while ((fd = open("/dev/null", O_RDONLY)) >= 0)
        count++;
    printf("%d opened, %s\n", count, strerrorname_np(errno));
    int ends[2];
    printf("pipe %d %s\n", pipe(ends), strerrorname_np(errno));
    printf("dup %d %s\n", dup(0), strerrorname_np(errno));
    printf("epoll_pwait %ld %s\n", syscall(SYS_epoll_create1, 0), strerrorname_np(errno));
    close(fd = 50);
    printf("again %d\n", open("/dev/null", O_RDONLY));
}

static void sockets(void) {
    struct rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &limit);
    long count = 0;
    while (count < 1000000 && socket(count % 2 ? AF_INET : AF_UNIX, SOCK_STREAM, 0) >= 0)
        count++;
    int error = errno;
    if (count < 1000000)
        printf("%ld sockets, then %s\n", count, strerrorname_np(error));
    for (long fd = 3; fd < count; fd++)
        close(fd);
    printf("socket again: %d\n", socket(AF_UNIX, SOCK_STREAM, 0) >= 0);
}

static int tcp_socket(int flags) {
    return socket(AF_INET, SOCK_STREAM | flags, 0);
}

/* Whether a connection can be made to `server`, and a byte crosses it. */
static int serves(int server, const struct sockaddr_in *at) {
    int client = tcp_socket(0), other = -1;
    char byte = 0;
    int crossed = connect(client, (const struct sockaddr *)at, sizeof *at) == 0 && (other = accept(server, NULL, NULL)) >= 0 &&
                  write(client, "x", 1) == 1 && read(other, &byte, 1) == 1 && byte == 'x';
    close(client);
    close(other);
    return crossed;
}

static void listens(void) {
    struct rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &limit);
    int fd, last = 2;
    while ((fd = tcp_socket(0)) >= 0 && listen(fd, 1 << 30) == 0)
        last = fd;
    printf("then %s\n", fd < 0 ? "no socket" : strerrorname_np(errno));
    for (close(fd); last > 2; last--)
        close(last);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof at;
    int server = tcp_socket(0);
    bind(server, (struct sockaddr *)&at, sizeof at);
    listen(server, 16);
    getsockname(server, (struct sockaddr *)&at, &len);
    pid_t flooders[4];
    for (int n = 0; n < 4; n++)
        if ((flooders[n] = fork()) == 0) {
            struct rlimit few = {2000, 2000};
            setrlimit(RLIMIT_NOFILE, &few);
            for (;;) {
                while ((fd = tcp_socket(SOCK_NONBLOCK)) >= 0)
                    connect(fd, (struct sockaddr *)&at, sizeof at);
                for (fd = 0; fd < 2000; fd++)
                    if (fd != server)
                        close(fd);
            }
        }
    struct timespec wait = {seconds, 0};
    while (nanosleep(&wait, &wait) != 0)
        ;
    for (int n = 0; n < 4; n++) {
        kill(flooders[n], SIGKILL);
        waitpid(flooders[n], NULL, 0);
    }
    /* What waits to be accepted is what the backlog allows. */
    int waiting = 0;
    struct pollfd poll_server = {server, POLLIN, 0};
    while (poll(&poll_server, 1, 0) == 1 && (fd = accept(server, NULL, NULL)) >= 0 && ++waiting)
        close(fd);
    printf("a backlog: %d\n", waiting > 0 && waiting <= 17);
    printf("serves again: %d\n", serves(server, &at));
}

static volatile sig_atomic_t caught;

static void on_signal(int number) {
    (void)number;
    caught++;
}

static void signals(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NODEFER};
    /* On one processor a longer queue overflows the stack with nested handlers, on Linux too, or never ends. */
    setrlimit(RLIMIT_SIGPENDING, &(struct rlimit){100, 100});
    for (int number = SIGRTMIN; number <= SIGRTMAX; number++)
        sigaction(number, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    pid_t other = fork();
    pid_t target = other ? other : getppid();
    for (time_t end = now() + seconds; now() < end;)
        for (int i = 0; i < 1000; i++) {
            union sigval value = {.sival_int = i};
            sigqueue(target, SIGRTMIN + i % 30, value);
            kill(target, SIGUSR1);
        }
    if (other == 0)
        _exit(0);
    kill(other, SIGKILL);
    while (waitpid(other, NULL, 0) < 0 && errno == EINTR)
        ;
    printf("caught some: %d\n", caught > 0);
}

static void take_memory(void) {
    for (size_t size = 1ul << 30; size >= 4096; size /= 2) {
        char *at;
        while ((at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED)
            for (size_t i = 0; i < size; i += 4096) {
                at[i] = 1;
                if (i % (64 << 20) == 0)
                    fork();
            }
    }
    _exit(0);
}

static void memory(void) {
    pid_t group = fork();
    if (group == 0) {
        setpgid(0, 0);
        take_memory();
    }
    setpgid(group, group);
    int status;
    for (time_t end = now() + seconds; now() < end && waitpid(-1, &status, WNOHANG) == 0;)
        usleep(10000);
    for (int left = 1; left;) {
        left = kill(-group, SIGKILL) == 0;
        while (waitpid(-1, &status, WNOHANG) > 0)
            ;
        sched_yield();
    }
    char *some = malloc(4 << 20);
    printf("memory again: %d\n", some && memset(some, 1, 4 << 20) == some);
}

/* A child for `traces`: it makes calls, forks and faults until it is killed. */
static void be_traced(void) {
    if (draw() % 2)
        ptrace(PTRACE_TRACEME, 0, 0, 0);
    for (;;) {
        switch (draw() % 8) {
        case 0:
            raise(draw() % 64 + 1);
            break;
        case 1:
            if (fork() == 0)
                _exit(0);
            break;
        case 2:
            usleep(100);
            break;
        case 3:
            waitpid(-1, NULL, WNOHANG);
            break;
        default:
            for (int n = 0; n < 100; n++)
                getppid();
        }
    }
}

static void ask(pid_t child) {
    static const int requests[] = {
        PTRACE_PEEKTEXT, PTRACE_PEEKUSER, PTRACE_POKEDATA, PTRACE_POKEUSER, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_GETFPREGS, PTRACE_SETFPREGS,
        PTRACE_ATTACH, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_LISTEN, PTRACE_SETOPTIONS, PTRACE_GETEVENTMSG, PTRACE_GETSIGINFO, PTRACE_SETSIGINFO,
        PTRACE_GETREGSET, PTRACE_SETREGSET, PTRACE_GETSIGMASK, PTRACE_SETSIGMASK, 0x420e, PTRACE_PEEKSIGINFO, PTRACE_SYSEMU, PTRACE_SINGLEBLOCK,
    };
    static const int goes_on[] = {PTRACE_CONT, PTRACE_SYSCALL, PTRACE_SINGLESTEP, PTRACE_DETACH};
    static unsigned long area[2048];
    for (int n = draw() % 6; n > 0; n--) {
        int request = draw() % 16 ? requests[draw() % (sizeof requests / sizeof *requests)] : (int)hostile_argument();
        uint64_t address = draw() % 2 ? hostile_argument() : draw() % 1000 & ~7ul, data = draw() % 2 ? hostile_argument() : (uint64_t)area;
        struct iovec io = {draw() % 4 ? area : (void *)hostile_argument(), draw() % 4 ? sizeof area : hostile_argument()};
        if (request == PTRACE_GETREGSET || request == PTRACE_SETREGSET) {
            static const int kinds[] = {1, 2, 0x202};
            address = draw() % 8 ? kinds[draw() % 3] : address;
            data = draw() % 8 ? (uint64_t)&io : data;
        }
        /* What was read is written back with a word changed. */
        if (draw() % 2)
            area[draw() % 8 ? draw() % 128 : draw() % 2048] = hostile_argument();
        syscall(SYS_ptrace, request, child, address, data);
    }
    syscall(SYS_ptrace, goes_on[draw() % 64 ? draw() % 3 : 3], child, 0, draw() % 2 ? 0 : draw() % 66);
}

/* Traces children, of which some trace themselves. */
static void trace_at_random(void) {
    pid_t children[4];
    for (int n = 0; n < 4; n++) {
        uint64_t seed = draw();
        if ((children[n] = fork()) == 0) {
            state = seed;
            be_traced();
        }
        if (draw() % 2)
            syscall(SYS_ptrace, draw() % 2 ? PTRACE_SEIZE : PTRACE_ATTACH, children[n], 0, draw() % 2 ? 0 : draw() & 0x10007f);
    }
    for (int turn = 0; turn < 1000; turn++) {
        int status;
        pid_t found = waitpid(-1, &status, WNOHANG | __WALL | (draw() % 2 ? WUNTRACED | WCONTINUED : 0));
        if (found > 0 && WIFSTOPPED(status))
            ask(found);
        else if (found < 0)
            break;
        else
            ask(children[draw() % 4]);
        if (found == 0)
            sched_yield();
        if (draw() % 256 == 0 && children[0] > 0)
            kill(children[draw() % 4], draw() % 64 + 1);
    }
    _exit(0);
}

static void traces(void) {
    unsigned rounds = 0;
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    for (time_t end = now() + seconds; now() < end; rounds++) {
        uint64_t seed = draw();
        pid_t tracer = fork();
        if (tracer == 0) {
            state = seed;
            int null = open("/dev/null", O_RDWR);
            for (int fd = 0; fd < 3; fd++)
                dup2(null, fd);
            /* Tracees do what their registers happen to say, to others of this user at the most. */
            if (setgid(1000) || setuid(1000))
                _exit(1);
            prctl(PR_SET_DUMPABLE, 1);
            setpgid(0, 0);
            trace_at_random();
        }
        /* It may have stopped itself, and leave others behind. */
        for (int tries = 0; tries < 300 && waitpid(tracer, NULL, WNOHANG) == 0; tries++)
            usleep(1000);
        pid_t killer = fork();
        if (killer == 0) {
            if (setgid(1000) == 0 && setuid(1000) == 0)
                kill(-1, SIGKILL);
            _exit(0);
        }
        while (waitpid(-1, NULL, 0) >= 0 || errno == EINTR)
            ;
    }
    printf("%s\n", rounds > 3 ? "many rounds" : "too few rounds");
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } kinds[] = {{"calls", calls}, {"forks", forks}, {"descriptors", descriptors}, {"sockets", sockets}, {"listens", listens}, {"signals", signals}, {"memory", memory}, {"traces", traces}};
    state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    seconds = argc > 3 ? atoi(argv[3]) : seconds;
    for (unsigned i = 0; argc > 1 && i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, argv[1]) == 0) {
            kinds[i].run();
            return 0;
        }
    return 2;
}
