/* fork, vfork, clone3, wait4 and waitid at their edges: what is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static pid_t child(void (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        body();
        _exit(0);
    }
    return pid;
}

static void exits(void) { _exit(0x1234); }
static void aborts(void) {
    signal(SIGTERM, SIG_DFL);
    raise(SIGTERM);
}
static void pauses(void) {
    for (;;) pause();
}

/* What waitid told, without what differs between runs. */
static void show_info(const siginfo_t *info, pid_t pid) {
    printf("signo %d errno %d code %d pid %s uid %d status %d\n", info->si_signo, info->si_errno, info->si_code,
           info->si_pid == pid ? "the child's" : info->si_pid == 0 ? "0" : "another", info->si_uid, info->si_status);
}

/* Waits for `pid` and prints whether it came, and its status. */
static void show_wait(pid_t wanted, pid_t pid, int options) {
    int status = -1;
    pid_t got = waitpid(wanted, &status, options);
    if (got == -1)
        printf("%s\n", strerrorname_np(errno));
    else
        printf("%s, status %x\n", got == pid ? "the child" : got == 0 ? "nothing" : "another", status);
}

static void waiting(void) {
    TITLE("wait4");
    int status = -1;
    struct rusage usage;
    SHOW(wait4(-1, &status, 0, NULL));
    SHOW(wait4(getpid(), &status, 0, NULL));
    SHOW(wait4(-1, &status, 0x100, NULL));
    SHOW(wait4(-1, &status, WEXITED, NULL));
    SHOW(wait4(INT32_MIN, &status, 0, NULL));
    SHOW(wait4(-4711, &status, WNOHANG, NULL));
    pid_t pid = child(exits);
    memset(&usage, 0xff, sizeof usage);
    printf("%d\n", wait4(pid, &status, 0, &usage) == pid);
    printf("%x %ld %ld\n", status, usage.ru_nswap, usage.ru_inblock);
    pid = child(aborts);
    show_wait(0, pid, 0);
    pid = child(pauses);
    SHOW(waitpid(pid, &status, WNOHANG));
    SHOW(waitpid(pid, &status, WNOHANG | __WCLONE));
    SHOW(waitpid(pid, &status, WNOHANG | __WALL));
    kill(pid, SIGSTOP);
    show_wait(pid, pid, WUNTRACED);
    SHOW(waitpid(pid, &status, WUNTRACED | WNOHANG));
    kill(pid, SIGCONT);
    show_wait(pid, pid, WCONTINUED);
    SHOW(waitpid(pid, &status, WCONTINUED | WNOHANG));
    kill(pid, SIGKILL);
    SHOW(waitpid(pid, (int *)8, 0));
    SHOW(waitpid(pid, &status, 0));

    TITLE("waitid");
    siginfo_t info;
    SHOW(waitid(P_ALL, 0, &info, WNOHANG));
    SHOW(waitid(P_ALL, 0, &info, WEXITED | WNOHANG));
    SHOW(waitid(9, 0, &info, WEXITED));
    SHOW(waitid(P_PID, 0, &info, WEXITED));
    SHOW(waitid(P_PID, -1, &info, WEXITED));
    SHOW(waitid(P_PGID, -1, &info, WEXITED));
    SHOW(waitid(P_PIDFD, -1, &info, WEXITED));
    SHOW(waitid(P_PIDFD, 0, &info, WEXITED));
    pid = child(pauses);
    memset(&info, 0xff, sizeof info);
    SHOW(waitid(P_PID, pid, &info, WEXITED | WSTOPPED | WNOHANG));
    show_info(&info, pid);
    kill(pid, SIGSTOP);
    SHOW(waitid(P_PID, pid, &info, WSTOPPED | WNOWAIT));
    show_info(&info, pid);
    SHOW(waitid(P_PID, pid, &info, WSTOPPED));
    show_info(&info, pid);
    kill(pid, SIGCONT);
    SHOW(waitid(P_PID, pid, &info, WCONTINUED));
    show_info(&info, pid);
    kill(pid, SIGKILL);
    SHOW(waitid(P_PGID, 0, &info, WEXITED | WNOWAIT));
    show_info(&info, pid);
    SHOW(kill(pid, 0));
    SHOW(syscall(SYS_waitid, P_PID, pid, NULL, WEXITED, NULL));
    SHOW(kill(pid, 0));
    pid = child(exits);
    SHOW(waitid(P_ALL, 0, &info, WEXITED));
    show_info(&info, pid);
}

static int started;
static int thread_body(void *argument) {
    started = (int)(intptr_t)argument;
    return 7;
}

static void cloning(void) {
    TITLE("clone3");
    struct clone_args args = {0};
    SHOW(syscall(SYS_clone3, &args, 8));
    SHOW(syscall(SYS_clone3, NULL, sizeof args));
    SHOW(syscall(SYS_clone3, &args, 5000));
    char large[200] = {0};
    large[150] = 1;
    SHOW(syscall(SYS_clone3, large, sizeof large));
    args.exit_signal = 65;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.exit_signal = 0;
    args.flags = CLONE_THREAD;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.flags = CLONE_SIGHAND;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.flags = CLONE_DETACHED;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.flags = 1ULL << 40;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.flags = CLONE_SIGHAND | CLONE_CLEAR_SIGHAND | CLONE_VM;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.flags = CLONE_FS | CLONE_NEWNS;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.flags = 0;
    args.stack = 4096;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.stack = 0;
    args.stack_size = 4096;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args = (struct clone_args){.set_tid_size = 1};
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    pid_t wanted = 0;
    args.set_tid = (uintptr_t)&wanted;
    SHOW(syscall(SYS_clone3, &args, sizeof args));
    args.set_tid_size = 100;
    SHOW(syscall(SYS_clone3, &args, sizeof args));

    int pidfd = -1, status;
    pid_t tid = 0;
    args = (struct clone_args){
        .flags = CLONE_PIDFD | CLONE_PARENT_SETTID, .pidfd = (uintptr_t)&pidfd, .parent_tid = (uintptr_t)&tid,
        .exit_signal = SIGCHLD};
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) pauses();
    printf("%d %d\n", pidfd >= 0, tid == pid);
    printf("cloexec %d\n", fcntl(pidfd, F_GETFD));
    struct pollfd p = {pidfd, POLLIN, 0};
    SHOW(poll(&p, 1, 0));
    siginfo_t info;
    memset(&info, 0, sizeof info);
    SHOW(waitid(P_PIDFD, pidfd, &info, WEXITED | WNOHANG));
    SHOW(syscall(SYS_pidfd_send_signal, pidfd, SIGUSR1, NULL, 8));
    SHOW(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0));
    SHOW(poll(&p, 1, 10000));
    SHOW(waitid(P_PIDFD, pidfd, &info, WEXITED));
    show_info(&info, pid);
    SHOW(waitid(P_PIDFD, pidfd, &info, WEXITED));
    SHOW(syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0));
    close(pidfd);

    TITLE("children that are not SIGCHLD's");
    args = (struct clone_args){.exit_signal = SIGUSR2};
    signal(SIGUSR2, SIG_IGN);
    pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) _exit(3);
    SHOW(waitpid(-1, &status, 0));
    show_wait(-1, pid, __WCLONE);
    args.exit_signal = 0;
    pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) _exit(4);
    show_wait(-1, pid, __WALL);

    TITLE("memory shared and not");
    static char stack[65536];
    pid = clone(thread_body, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)5);
    waitpid(pid, &status, 0);
    printf("%x %d\n", status, started);
    pid = clone(thread_body, stack + sizeof stack, SIGCHLD, (void *)6);
    waitpid(pid, &status, 0);
    printf("%x %d\n", status, started);
    volatile int shared = 1;
    pid = vfork();
    if (pid == 0) {
        shared = 2;
        _exit(9);
    }
    printf("%d\n", shared);
    waitpid(pid, &status, 0);
    printf("%x\n", status);
}

/* The parent of an orphan, found by a pipe that the orphan writes to. */
static void orphan(int to) {
    pid_t middle = fork();
    if (middle == 0) {
        pid_t parent = getpid();
        if (fork() == 0) {
            while (getppid() == parent) usleep(1000);
            pid_t now = getppid();
            write(to, &now, sizeof now);
            _exit(11);
        }
        _exit(0);
    }
    waitpid(middle, NULL, 0);
}

static void orphans(void) {
    TITLE("orphans");
    int ends[2], status, value = 5;
    pid_t now;
    pipe(ends);
    SHOW(prctl(PR_GET_CHILD_SUBREAPER, &value));
    printf("%d\n", value);
    SHOW(prctl(PR_SET_CHILD_SUBREAPER, 1));
    SHOW(prctl(PR_GET_CHILD_SUBREAPER, &value));
    printf("%d\n", value);
    orphan(ends[1]);
    read(ends[0], &now, sizeof now);
    printf("to the subreaper: %d\n", now == getpid());
    wait(&status);
    printf("%x\n", status);
    SHOW(prctl(PR_SET_CHILD_SUBREAPER, 0));
    orphan(ends[1]);
    read(ends[0], &now, sizeof now);
    printf("not here: %d\n", now != getpid());
    SHOW(wait(&status));

    TITLE("the parent's death");
    SHOW(prctl(PR_SET_PDEATHSIG, 65));
    SHOW(prctl(PR_SET_PDEATHSIG, SIGUSR1));
    SHOW(prctl(PR_GET_PDEATHSIG, &value));
    printf("%d\n", value);
    pid_t middle = fork();
    if (middle == 0) {
        value = 9;
        prctl(PR_GET_PDEATHSIG, &value);
        printf("in a child %d\n", value);
        fflush(stdout);
        int ready[2];
        pipe(ready);
        if (fork() == 0) {
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGUSR2);
            sigprocmask(SIG_BLOCK, &set, NULL);
            prctl(PR_SET_PDEATHSIG, SIGUSR2);
            write(ready[1], "r", 1);
            siginfo_t info;
            int got = sigwaitinfo(&set, &info);
            int told[3] = {got, info.si_code, 0};
            write(ends[1], told, sizeof told);
            _exit(0);
        }
        char byte;
        read(ready[0], &byte, 1);
        _exit(0);
    }
    waitpid(middle, &status, 0);
    int told[3];
    read(ends[0], told, sizeof told);
    printf("signal %d code %d\n", told[0], told[1]);
}

static int caught_code, caught_status, caught;
static void on_child(int number, siginfo_t *info, void *context) {
    caught++;
    caught_code = info->si_code;
    caught_status = info->si_status;
}

static void child_signals(void) {
    TITLE("SIGCHLD");
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO};
    int status;
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, &old);
    sigaction(SIGCHLD, &action, NULL);
    pid_t pid = child(exits);
    sigsuspend(&old);
    printf("%d code %d status %d\n", caught, caught_code, caught_status);
    waitpid(pid, &status, 0);
    pid = child(pauses);
    kill(pid, SIGSTOP);
    sigsuspend(&old);
    printf("%d code %d status %d\n", caught, caught_code, caught_status);
    kill(pid, SIGCONT);
    sigsuspend(&old);
    printf("%d code %d status %d\n", caught, caught_code, caught_status);
    action.sa_flags |= SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, NULL);
    kill(pid, SIGSTOP);
    waitpid(pid, &status, WUNTRACED);
    sigset_t pending;
    sigpending(&pending);
    printf("%d\n", sigismember(&pending, SIGCHLD));
    kill(pid, SIGKILL);
    sigsuspend(&old);
    printf("%d code %d status %d\n", caught, caught_code, caught_status);
    waitpid(pid, &status, 0);
    action.sa_flags = SA_SIGINFO | SA_NOCLDWAIT;
    sigaction(SIGCHLD, &action, NULL);
    pid = child(exits);
    SHOW(waitpid(-1, &status, 0));
    sigpending(&pending);
    printf("%d\n", sigismember(&pending, SIGCHLD));
    signal(SIGCHLD, SIG_IGN);
    pid = child(exits);
    SHOW(waitpid(-1, &status, 0));
    sigpending(&pending);
    printf("%d\n", sigismember(&pending, SIGCHLD));
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static void *child_of_a_thread(void *ready) {
    pid_t pid = child(exits);
    *(pid_t *)ready = pid;
    return NULL;
}

static void thread_children(void) {
    TITLE("children of threads");
    pthread_t thread;
    pid_t pid;
    pthread_create(&thread, NULL, child_of_a_thread, &pid);
    pthread_join(thread, NULL);
    /* Another thread inherits the child of one that has ended. */
    show_wait(pid, pid, __WNOTHREAD);
    SHOW(syscall(SYS_pidfd_open, 0, 0));
    SHOW(syscall(SYS_pidfd_open, -1, 0));
    SHOW(syscall(SYS_pidfd_open, getpid(), 1));
    SHOW(syscall(SYS_pidfd_open, 99999999, 0));
}

static void *executes(void *argument) {
    execl("/proc/self/exe", "process_wait", "executed", argument, NULL);
    return NULL;
}

static void *outlives(void *argument) {
    usleep(20000);
    if (argument) _exit(21);
    return NULL;
}

static void *spins(void *argument) {
    for (volatile int on = 1; on;);
    return NULL;
}

static void one_of_many(void) {
    TITLE("one thread of many");
    char pid_text[16];
    pthread_t thread;
    /* execve by another thread than the first: it takes its id, and the others are gone. */
    pid_t pid = fork();
    if (pid == 0) {
        snprintf(pid_text, sizeof pid_text, "%d", getpid());
        pthread_create(&thread, NULL, spins, NULL);
        pthread_create(&thread, NULL, executes, pid_text);
        for (;;) pause();
    }
    show_wait(pid, pid, 0);
    /* The first thread ends before the others: the last one, or exit_group, says how the process ended. */
    for (int n = 0; n < 2; n++) {
        pid = fork();
        if (pid == 0) {
            pthread_create(&thread, NULL, outlives, n ? "" : NULL);
            syscall(SYS_exit, 5);
        }
        usleep(5000);
        show_wait(pid, pid, WNOHANG);
        show_wait(pid, pid, 0);
    }
    /* A signal for the process reaches it though its first thread is gone. */
    pid = fork();
    if (pid == 0) {
        pthread_create(&thread, NULL, spins, NULL);
        syscall(SYS_exit, 5);
    }
    usleep(5000);
    kill(pid, SIGTERM);
    show_wait(pid, pid, 0);
    /* One thread's fault is the end of all. */
    pid = fork();
    if (pid == 0) {
        pthread_create(&thread, NULL, spins, NULL);
        volatile int *volatile nowhere = (int *)8;
        *nowhere = 1;
    }
    int status;
    waitpid(pid, &status, 0);
    printf("signal %d\n", WTERMSIG(status));
}

static int executed(const char *pid) {
    printf("the same process %d, thread %d\n", atoi(pid) == getpid(), syscall(SYS_gettid) == getpid());
    return 6;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 2) return executed(argv[2]);
    waiting();
    cloning();
    orphans();
    child_signals();
    thread_children();
    one_of_many();
    return 0;
}
