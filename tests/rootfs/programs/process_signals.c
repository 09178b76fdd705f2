/* Signals at their edges: masks, queues, siginfo, alternate stacks, restarts, contexts. Output as natively. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

#define LOG_MAX 64
static volatile int log_count;
static int log_signal[LOG_MAX], log_code[LOG_MAX], log_value[LOG_MAX];

static void record(int number, siginfo_t *info, void *context) {
    int at = log_count++;
    if (at < LOG_MAX) {
        log_signal[at] = number;
        log_code[at] = info->si_code;
        log_value[at] = info->si_code == SI_QUEUE || info->si_code == SI_TIMER ? info->si_value.sival_int : 0;
    }
}

static void show_log(void) {
    for (int n = 0; n < log_count && n < LOG_MAX; n++)
        printf("signal %d code %d value %d\n", log_signal[n], log_code[n], log_value[n]);
    log_count = 0;
    fflush(stdout);
}

static void handle(int number, int flags) {
    struct sigaction action = {.sa_sigaction = record, .sa_flags = SA_SIGINFO | flags};
    sigaction(number, &action, NULL);
}

static sigset_t set_of(int a, int b, int c) {
    sigset_t set;
    sigemptyset(&set);
    for (int n = 0; n < 3; n++)
        if ((int[]){a, b, c}[n]) sigaddset(&set, (int[]){a, b, c}[n]);
    return set;
}

static void actions(void) {
    TITLE("sigaction");
    struct sigaction old, action = {.sa_handler = SIG_IGN};
    SHOW(sigaction(SIGKILL, &action, NULL));
    SHOW(sigaction(SIGSTOP, &action, NULL));
    SHOW(sigaction(SIGKILL, NULL, &old));
    SHOW(syscall(SYS_rt_sigaction, 0, NULL, NULL, 8));
    SHOW(syscall(SYS_rt_sigaction, 65, NULL, NULL, 8));
    SHOW(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4));
    SHOW(syscall(SYS_rt_sigaction, SIGUSR1, (void *)8, NULL, 8));
    handle(SIGUSR1, SA_RESTART | SA_NODEFER | 0x400);
    unsigned long raw[4];
    SHOW(syscall(SYS_rt_sigaction, SIGUSR1, NULL, raw, 8));
    printf("flags %lx\n", raw[1]);
    SHOW(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, NULL, 8));
    SHOW(syscall(SYS_rt_sigprocmask, 77, NULL, raw, 8));
    SHOW(syscall(SYS_rt_sigprocmask, 77, raw, NULL, 8));
    SHOW(syscall(SYS_rt_sigprocmask, SIG_BLOCK, raw, NULL, 16));
    SHOW(syscall(SYS_rt_sigpending, raw, 9));
    SHOW(syscall(SYS_rt_sigsuspend, raw, 7));
    sigset_t all, now;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    sigprocmask(SIG_BLOCK, NULL, &now);
    printf("%d %d %d\n", sigismember(&now, SIGKILL), sigismember(&now, SIGSTOP), sigismember(&now, SIGTERM));
    sigemptyset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
}

static void sending(void) {
    TITLE("sending");
    SHOW(kill(getpid(), 65));
    SHOW(kill(getpid(), -1));
    SHOW(kill(99999999, 0));
    SHOW(kill(INT32_MIN, 0));
    SHOW(syscall(SYS_tkill, 0, SIGUSR1));
    SHOW(syscall(SYS_tkill, 99999999, SIGUSR1));
    SHOW(syscall(SYS_tgkill, getpid(), 0, SIGUSR1));
    SHOW(syscall(SYS_tgkill, 1, getpid(), SIGUSR1));
    SHOW(syscall(SYS_tgkill, -1, getpid(), 0));
    handle(SIGUSR1, 0);
    handle(SIGUSR2, 0);
    handle(SIGRTMIN, 0);
    handle(SIGRTMIN + 1, 0);
    kill(getpid(), SIGUSR1);
    raise(SIGUSR2);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 42});
    show_log();

    TITLE("order of delivery");
    sigset_t set = set_of(SIGUSR1, SIGRTMIN, SIGRTMIN + 1), none = set_of(0, 0, 0);
    sigprocmask(SIG_SETMASK, &set, NULL);
    for (int n = 0; n < 3; n++) {
        sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = n});
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 10 + n});
        sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 20 + n});
    }
    sigset_t pending;
    sigpending(&pending);
    printf("pending %d %d %d\n", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGRTMIN),
           sigismember(&pending, SIGUSR2));
    sigprocmask(SIG_SETMASK, &none, NULL);
    show_log();

    TITLE("pretending");
    siginfo_t info = {.si_signo = SIGUSR1, .si_code = SI_TKILL};
    pid_t other = fork();
    if (other == 0) {
        pause();
        _exit(0);
    }
    SHOW(syscall(SYS_rt_sigqueueinfo, other, SIGUSR1, &info));
    info.si_code = 5;
    SHOW(syscall(SYS_rt_sigqueueinfo, other, SIGUSR1, &info));
    SHOW(syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, &info));
    SHOW(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGUSR1, &info));
    SHOW(syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, (void *)8));
    info.si_code = -30;
    SHOW(syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, &info));
    show_log();
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);

    TITLE("full queue");
    struct rlimit limit = {3, 3};
    sigset_t rt = set_of(SIGRTMIN, SIGUSR1, 0);
    fflush(stdout);
    if (fork() == 0) {
        sigprocmask(SIG_SETMASK, &rt, NULL);
        setrlimit(RLIMIT_SIGPENDING, &limit);
        int queued = 0;
        while (queued < 50000 && sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = queued}) == 0) queued++;
        printf("%s\n", strerrorname_np(errno));
        SHOW(kill(getpid(), SIGRTMIN));
        SHOW(kill(getpid(), SIGUSR1));
        SHOW(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 1}));
        _exit(0);
    }
    wait(NULL);
}

static void waiting(void) {
    TITLE("sigtimedwait and signalfd");
    sigset_t set = set_of(SIGUSR1, SIGRTMIN, 0), none = set_of(0, 0, 0);
    siginfo_t info;
    sigprocmask(SIG_SETMASK, &set, NULL);
    SHOW(sigtimedwait(&set, &info, &(struct timespec){0, 1000000}));
    SHOW(sigtimedwait(&set, &info, &(struct timespec){0, -1}));
    SHOW(sigtimedwait(&set, &info, &(struct timespec){0, 1000000000}));
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 7});
    memset(&info, 0xff, sizeof info);
    SHOW(sigwaitinfo(&set, &info) == SIGRTMIN);
    printf("%d %d %d %d %d\n", info.si_signo, info.si_code, info.si_pid == getpid(), info.si_uid, info.si_value.sival_int);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct signalfd_siginfo got[2];
    SHOW(read(fd, got, sizeof got));
    SHOW(read(fd, got, 10));
    SHOW(signalfd(-1, &set, 1));
    SHOW(signalfd(0, &set, 0));
    kill(getpid(), SIGUSR1);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 8});
    struct pollfd p = {fd, POLLIN, 0};
    SHOW(poll(&p, 1, 0));
    SHOW(read(fd, got, sizeof got) / (long)sizeof got[0]);
    printf("%u %d %u %d | %u %d %d\n", got[0].ssi_signo, got[0].ssi_code, got[0].ssi_pid == getpid(), got[0].ssi_int,
           got[1].ssi_signo, got[1].ssi_code, got[1].ssi_int);
    SHOW(poll(&p, 1, 0));
    close(fd);
    /* One that is not waited for interrupts. */
    handle(SIGALRM, SA_RESTART);
    struct itimerval soon = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    SHOW(sigwaitinfo(&set, &info));
    show_log();
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static int ends[2];
static void alarm_soon(void) {
    struct itimerval soon = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &soon, NULL);
}
static void on_alarm(int number) { write(ends[1], "x", 1); }

static void restarts(void) {
    TITLE("interruption");
    char byte;
    pipe(ends);
    struct timespec left = {0, 0};
    fd_set readable;
    for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
        printf("SA_RESTART %d\n", flags != 0);
        struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
        sigaction(SIGALRM, &action, NULL);
        alarm_soon();
        SHOW(read(ends[0], &byte, 1));
        if (!flags) read(ends[0], &byte, 1);
        struct pollfd p = {ends[0], POLLIN, 0};
        alarm_soon();
        SHOW(poll(&p, 1, 10000));
        read(ends[0], &byte, 1);
        alarm_soon();
        FD_ZERO(&readable);
        FD_SET(ends[0], &readable);
        SHOW(select(ends[0] + 1, &readable, NULL, NULL, NULL));
        read(ends[0], &byte, 1);
        alarm_soon();
        SHOW(nanosleep(&(struct timespec){10, 0}, &left));
        printf("left %d\n", left.tv_sec == 9);
        read(ends[0], &byte, 1);
        alarm_soon();
        SHOW(clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){10, 0}, &left));
        read(ends[0], &byte, 1);
        alarm_soon();
        SHOW(pause());
        read(ends[0], &byte, 1);
        alarm_soon();
        uint32_t word = 0;
        SHOW(syscall(SYS_futex, &word, 0 /* FUTEX_WAIT */, 0, &(struct timespec){0, 100000000}, NULL, 0));
        read(ends[0], &byte, 1);
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            usleep(60000);
            _exit(0);
        }
        alarm_soon();
        SHOW(waitpid(pid, NULL, 0) == pid);
        if (!flags) waitpid(pid, NULL, 0);
        read(ends[0], &byte, 1);
    }
    /* A stop and SIGCONT interrupt nothing that can go on. */
    signal(SIGALRM, SIG_DFL);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        struct pollfd p = {ends[0], POLLIN, 0};
        SHOW(nanosleep(&(struct timespec){0, 100000000}, NULL));
        SHOW(poll(&p, 1, 100));
        SHOW(read(ends[0], &byte, 1));
        _exit(0);
    }
    for (int n = 0; n < 5; n++) {
        usleep(30000);
        kill(pid, SIGSTOP);
        waitpid(pid, NULL, WUNTRACED);
        kill(pid, SIGCONT);
    }
    usleep(200000);
    write(ends[1], "y", 1);
    waitpid(pid, NULL, 0);
}

static char alternate[65536] __attribute__((aligned(16)));
static volatile int on_alternate;
static stack_t inside;
static void on_stack(int number) {
    char here;
    on_alternate = &here >= alternate && &here < alternate + sizeof alternate;
    sigaltstack(NULL, &inside);
}

static void alternate_stacks(void) {
    TITLE("sigaltstack");
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate}, old;
    SHOW(sigaltstack(NULL, &old));
    printf("%d %zu\n", old.ss_flags, old.ss_size);
    stack.ss_size = 100;
    SHOW(sigaltstack(&stack, NULL));
    stack.ss_size = sizeof alternate;
    stack.ss_flags = 8;
    SHOW(sigaltstack(&stack, NULL));
    stack.ss_flags = 0;
    SHOW(sigaltstack(&stack, NULL));
    SHOW(sigaltstack(NULL, &old));
    printf("%d %d\n", old.ss_flags, old.ss_sp == alternate);
    struct sigaction action = {.sa_handler = on_stack, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    printf("%d %d\n", on_alternate, inside.ss_flags);
    action.sa_flags = 0;
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    printf("%d %d\n", on_alternate, inside.ss_flags);
    stack.ss_flags = SS_AUTODISARM;
    SHOW(sigaltstack(&stack, NULL));
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    printf("%d %d\n", on_alternate, inside.ss_flags);
    SHOW(sigaltstack(NULL, &old));
    printf("%x\n", old.ss_flags);
    stack.ss_flags = SS_DISABLE;
    SHOW(sigaltstack(&stack, NULL));
}

static char *page;
static volatile int faults;
static void on_fault(int number, siginfo_t *info, void *data) {
    ucontext_t *context = data;
    greg_t *regs = context->uc_mcontext.gregs;
    printf("signal %d code %d address %s trap %lld error %llx cr2 %s\n", number, info->si_code,
           info->si_addr == page ? "the page" : info->si_addr == (void *)0x10 ? "0x10" : info->si_addr ? "other" : "0",
           regs[REG_TRAPNO], regs[REG_ERR], (void *)regs[REG_CR2] == info->si_addr ? "the same" : "another");
    fflush(stdout);
    faults++;
    /* A collector's way: change the world and go on, or skip the instruction (2 bytes: mov (%rax),%eax). */
    if (faults == 1)
        mprotect(page, 4096, PROT_READ | PROT_WRITE);
    else
        regs[REG_RIP] += 2;
    regs[REG_RBX] = 0x1234;
}

static long touch(void *address) {
    long rbx = 0, value = (long)address;
    asm volatile("mov (%%rax), %%eax" : "+a"(value), "+b"(rbx)::"memory");
    return rbx;
}

static void contexts(void) {
    TITLE("faults and contexts");
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%lx\n", touch(page));
    printf("%lx\n", touch((void *)0x10));
    printf("%lx\n", touch((void *)0x8000000000000000));
    munmap(page, 4096);
    printf("%lx\n", touch(page));
    asm volatile("ud2" ::: "rbx");
    int zero = 0;
    fflush(stdout);
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        signal(SIGFPE, SIG_DFL);
        asm volatile("idivl %0" ::"m"(zero), "a"(1), "d"(0));
        _exit(0);
    }
    waitpid(pid, &status, 0);
    printf("%d\n", WTERMSIG(status));
    /* Blocked or ignored, a fault ends the process. */
    for (int n = 0; n < 2; n++) {
        pid = fork();
        if (pid == 0) {
            sigset_t set = set_of(SIGSEGV, 0, 0);
            if (n)
                signal(SIGSEGV, SIG_IGN);
            else
                sigprocmask(SIG_BLOCK, &set, NULL);
            touch((void *)0x10);
            _exit(0);
        }
        waitpid(pid, &status, 0);
        printf("%d\n", WTERMSIG(status));
    }
}

static void on_nested(int number) {
    log_signal[log_count] = number;
    log_code[log_count] = log_value[log_count] = 0;
    log_count++;
    if (log_count == 1) raise(number);
    if (number == SIGUSR1) raise(SIGUSR2);
}

static void handlers(void) {
    TITLE("nesting and masks");
    struct sigaction action = {.sa_handler = on_nested, .sa_flags = 0};
    sigaction(SIGUSR2, &action, NULL);
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    show_log();
    action.sa_flags = SA_RESETHAND | SA_NODEFER;
    sigaction(SIGUSR1, &action, NULL);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        raise(SIGUSR1);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("%d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    /* exec keeps the mask and what is ignored. */
    pid = fork();
    if (pid == 0) {
        sigset_t set = set_of(SIGHUP, SIGUSR2, 0);
        sigprocmask(SIG_SETMASK, &set, NULL);
        signal(SIGTERM, SIG_IGN);
        kill(getpid(), SIGHUP);
        execl("/proc/self/exe", "process_signals", "after", NULL);
    }
    waitpid(pid, &status, 0);
}

static void after_exec(void) {
    sigset_t now, pending;
    struct sigaction action;
    sigprocmask(SIG_BLOCK, NULL, &now);
    sigpending(&pending);
    sigaction(SIGTERM, NULL, &action);
    printf("HUP %d USR2 %d INT %d pending HUP %d TERM ignored %d\n", sigismember(&now, SIGHUP),
           sigismember(&now, SIGUSR2), sigismember(&now, SIGINT), sigismember(&pending, SIGHUP),
           action.sa_handler == SIG_IGN);
    sigaction(SIGUSR1, NULL, &action);
    printf("USR1 default %d\n", action.sa_handler == SIG_DFL);
}

static void timers(void) {
    TITLE("timers");
    struct itimerval value = {{0, 0}, {0, 1000000}}, old;
    SHOW(setitimer(ITIMER_REAL, &value, NULL));
    SHOW(setitimer(3, &value, NULL));
    SHOW(getitimer(-1, &value));
    value = (struct itimerval){{0, 0}, {100, 0}};
    SHOW(setitimer(ITIMER_VIRTUAL, &value, NULL));
    SHOW(getitimer(ITIMER_VIRTUAL, &old));
    printf("%d\n", old.it_value.tv_sec == 99 || old.it_value.tv_sec == 100);
    memset(&value, 0, sizeof value);
    SHOW(setitimer(ITIMER_VIRTUAL, &value, &old));
    SHOW(alarm(100));
    SHOW(alarm(0) == 100);
    handle(SIGVTALRM, 0);
    handle(SIGPROF, 0);
    value = (struct itimerval){{0, 0}, {0, 10000}};
    setitimer(ITIMER_VIRTUAL, &value, NULL);
    while (!log_count);
    show_log();
    setitimer(ITIMER_PROF, &value, NULL);
    while (!log_count);
    show_log();

    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    event.sigev_value.sival_int = 99;
    SHOW(timer_create(CLOCK_REALTIME + 77, &event, &timer));
    event.sigev_signo = 0;
    SHOW(timer_create(CLOCK_MONOTONIC, &event, &timer));
    event.sigev_signo = SIGRTMIN;
    event.sigev_notify = 17;
    SHOW(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer));
    event.sigev_notify = SIGEV_SIGNAL;
    SHOW(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec set = {{0, 10000000}, {0, 10000000}}, got;
    sigset_t block = set_of(SIGRTMIN, 0, 0), none = set_of(0, 0, 0);
    sigprocmask(SIG_SETMASK, &block, NULL);
    SHOW(timer_settime(timer, 0, &set, NULL));
    usleep(55000);
    siginfo_t info;
    SHOW(sigwaitinfo(&block, &info) == SIGRTMIN);
    printf("code %d value %d overrun %d same %d\n", info.si_code, info.si_value.sival_int, info.si_overrun >= 3,
           info.si_overrun == timer_getoverrun(timer));
    set = (struct itimerspec){{0, 0}, {0, 0}};
    SHOW(timer_settime(timer, 0, &set, &got));
    printf("%ld %ld\n", (long)got.it_interval.tv_nsec, (long)(got.it_value.tv_nsec <= 10000000));
    SHOW(timer_gettime(timer, &got));
    printf("%ld %ld\n", (long)got.it_value.tv_sec, (long)got.it_value.tv_nsec);
    set.it_value.tv_nsec = 1000000000;
    SHOW(timer_settime(timer, 0, &set, NULL));
    SHOW(timer_delete(timer));
    SHOW(timer_delete(timer));
    SHOW(timer_gettime(timer, &got));
    SHOW(syscall(SYS_timer_getoverrun, 12345));
    event.sigev_notify = SIGEV_THREAD_ID;
    ((int *)&event)[4] = getpid();
    SHOW(timer_create(CLOCK_MONOTONIC, &event, &timer));
    set = (struct itimerspec){{0, 0}, {0, 1000000}};
    SHOW(timer_settime(timer, 0, &set, NULL));
    SHOW(sigwaitinfo(&block, &info) == SIGRTMIN);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Timers are not inherited, an alarm is kept over exec and not over fork. */
    alarm(100);
    fflush(stdout);
    if (fork() == 0) {
        SHOW(alarm(0));
        SHOW(timer_gettime(timer, &got));
        _exit(0);
    }
    wait(NULL);
    alarm(0);
}

static volatile int thread_got;
static void on_thread(int number) { thread_got = syscall(SYS_gettid); }
static int go[2];
static void *takes(void *argument) {
    char byte;
    *(int *)argument = syscall(SYS_gettid);
    while (read(go[0], &byte, 1) != 1);
    return NULL;
}

static void threads(void) {
    TITLE("threads");
    sigset_t block = set_of(SIGUSR1, 0, 0), none = set_of(0, 0, 0);
    pthread_t thread;
    volatile int tid = 0;
    pipe(go);
    signal(SIGUSR1, on_thread);
    pthread_create(&thread, NULL, takes, (void *)&tid);
    while (!tid) usleep(100);
    /* A signal for the process goes to the thread that does not block it. */
    sigprocmask(SIG_SETMASK, &block, NULL);
    kill(getpid(), SIGUSR1);
    while (!thread_got) usleep(100);
    printf("%d\n", thread_got == tid);
    thread_got = 0;
    sigprocmask(SIG_SETMASK, &none, NULL);
    pthread_kill(thread, SIGUSR1);
    while (!thread_got) usleep(100);
    printf("%d\n", thread_got == tid);
    write(go[1], "g", 1);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1) {
        after_exec();
        return 0;
    }
    actions();
    sending();
    waiting();
    restarts();
    alternate_stacks();
    contexts();
    handlers();
    timers();
    threads();
    return 0;
}
