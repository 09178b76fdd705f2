/* ptrace(2) and signals: injected, suppressed, changed; stops of processes; PTRACE_SEIZE. Output as natively. */
#include "trace.h"

static volatile int caught, caught_code, caught_value, bad_address = 16;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)context;
    caught = number;
    caught_code = info->si_code;
    caught_value = info->si_value.sival_int;
}

static void catch(int number) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(number, &action, NULL);
}

static int raises(void) {
    catch(SIGUSR1);
    catch(SIGUSR2);
    raise(SIGUSR1);
    return caught;
}

static void show_info(pid_t child) {
    siginfo_t info;
    memset(&info, 0xee, sizeof info);
    errno = 0;
    if (ptrace(PTRACE_GETSIGINFO, child, 0, &info))
        printf("  no siginfo: %s\n", strerrorname_np(errno));
    else
        printf("  siginfo: %d, code %x, errno %d, from the child %d, from the parent %d, user %d\n", info.si_signo, info.si_code,
               info.si_errno, info.si_pid == child, info.si_pid == getpid(), info.si_uid);
}

static void injected(int signal) {
    printf("-- SIGUSR1, continued with %d\n", signal);
    pid_t child = traced_child(raises, 0);
    show_info(child);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    show_info(child);
    SHOW(raw(PTRACE_CONT, child, 0, signal));
    if (signal > 64)
        ptrace(PTRACE_KILL, child, 0, 0);
    wait_and_show("child", child);
}

static int tells(void) {
    catch(SIGUSR1);
    raise(SIGUSR1);
    printf("caught %d code %d value %d\n", caught, caught_code, caught_value);
    fflush(stdout);
    return 0;
}

static void changed_info(void) {
    TITLE("changed information");
    pid_t child = traced_child(tells, 0);
    siginfo_t info = {.si_signo = SIGUSR1, .si_code = -7};
    info.si_value.sival_int = 42;
    SHOW(raw(PTRACE_SETSIGINFO, child, 0, 8));
    SHOW(ptrace(PTRACE_SETSIGINFO, child, 0, &info));
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    SHOW(ptrace(PTRACE_SETSIGINFO, child, 0, &info));
    ptrace(PTRACE_CONT, child, 0, SIGUSR1);
    wait_and_show("child", child);
    child = traced_child(tells, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    info.si_signo = SIGUSR2; /* does not fit: replaced */
    SHOW(ptrace(PTRACE_SETSIGINFO, child, 0, &info));
    ptrace(PTRACE_CONT, child, 0, SIGUSR1);
    wait_and_show("child", child);
}

static int ignores(void) {
    signal(SIGHUP, SIG_IGN);
    raise(SIGHUP);
    raise(SIGCHLD);
    raise(SIGWINCH);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGTERM);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    raise(SIGTRAP);
    raise(SIGABRT);
    kill(getpid(), SIGKILL);
    return 1;
}

static void shown_although_ignored(void) {
    TITLE("ignored, blocked and deadly signals");
    pid_t child = traced_child(ignores, 0);
    for (int status = 0x7f; WIFSTOPPED(status);) {
        ptrace(PTRACE_CONT, child, 0, 0);
        status = wait_and_show("child", child);
    }
}

static int faults(void) {
    catch(SIGSEGV);
    *(volatile int *)(uintptr_t)bad_address = 1;
    return 5;
}

static void fault(void) {
    TITLE("a fault");
    pid_t child = traced_child(faults, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    siginfo_t info;
    ptrace(PTRACE_GETSIGINFO, child, 0, &info);
    printf("code %d address %p\n", info.si_code, info.si_addr);
    ptrace(PTRACE_CONT, child, 0, SIGTERM);
    wait_and_show("child", child);
}

static int pauses(void) {
    for (;;)
        pause();
    return 0;
}

static void show_waitid(pid_t child, int options) {
    siginfo_t info = {0};
    errno = 0;
    int result = waitid(P_PID, child, &info, options | WNOHANG);
    if (result || !info.si_pid)
        printf("waitid(%x) = %d %s\n", options, result, result ? strerrorname_np(errno) : "nothing");
    else
        printf("waitid(%x): code %d status %x\n", options, info.si_code, info.si_status);
}

static void stops(void) {
    TITLE("a stop of the process");
    pid_t child = traced_child(pauses, 0);
    show_waitid(child, WSTOPPED | WEXITED);
    ptrace(PTRACE_CONT, child, 0, 0);
    kill(child, SIGSTOP);
    siginfo_t info;
    waitid(P_PID, child, &info, WEXITED | WNOWAIT);
    show_waitid(child, WEXITED | WNOWAIT);
    wait_and_show("child", child);
    show_waitid(child, WSTOPPED | WEXITED);
    show_info(child);
    printf("%s\n", status_field(child, "State", "t"));
    ptrace(PTRACE_CONT, child, 0, SIGSTOP);
    wait_and_show("child", child);
    show_info(child);
    printf("%s\n", status_field(child, "State", "t"));
    SHOW(raw(PTRACE_LISTEN, child, 0, 0));
    SHOW(raw(PTRACE_INTERRUPT, child, 0, 0));
    ptrace(PTRACE_CONT, child, 0, 0);
    printf("%s\n", status_field(child, "State", "S"));
    kill(child, SIGTSTP);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, SIGTSTP);
    /* The group is orphaned: nothing stops. */
    kill(child, SIGCONT);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    kill(child, SIGKILL);
    wait_and_show("child", child);
}

static pid_t seized_child(int (*body)(void), long options) {
    pid_t child = plain_child(body);
    status_field(child, "State", "S");
    if (raw(PTRACE_SEIZE, child, 0, options))
        printf("seize: %s\n", strerrorname_np(errno));
    return child;
}

static void seized(void) {
    TITLE("seized");
    pid_t child = seized_child(pauses, 0);
    show_waitid(child, WSTOPPED | WEXITED);
    SHOW(raw(PTRACE_CONT, child, 0, 0));
    SHOW(raw(PTRACE_INTERRUPT, child, 0, 0));
    wait_and_show("child", child);
    show_info(child);
    SHOW(raw(PTRACE_LISTEN, child, 0, 0));
    printf("%s\n", status_field(child, "State", "t"));
    SHOW(raw(PTRACE_CONT, child, 0, 0));
    SHOW(raw(PTRACE_INTERRUPT, child, 0, 0));
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    TITLE("seized, stopped and continued");
    kill(child, SIGSTOP);
    wait_and_show("child", child);
    show_info(child);
    ptrace(PTRACE_CONT, child, 0, SIGSTOP);
    wait_and_show("child", child);
    show_info(child);
    SHOW(raw(PTRACE_LISTEN, child, 0, 0));
    show_waitid(child, WSTOPPED | WEXITED);
    kill(child, SIGCONT);
    wait_and_show("child", child);
    show_info(child);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    show_info(child);
    ptrace(PTRACE_CONT, child, 0, SIGCONT);
    TITLE("seized, another stop after the first");
    kill(child, SIGTTIN);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, SIGSTOP);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    printf("%s\n", status_field(child, "State", "S"));
    kill(child, SIGTTOU);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, SIGSTOP);
    wait_and_show("child", child);
    TITLE("detached from a stopped process");
    SHOW(raw(PTRACE_DETACH, child, 0, 0));
    printf("%s\n", status_field(child, "State", "T"));
    TITLE("attached to a stopped process");
    SHOW(raw(PTRACE_ATTACH, child, 0, 0));
    printf("%s\n", status_field(child, "State", "t"));
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    show_info(child);
    SHOW(raw(PTRACE_DETACH, child, 0, SIGTERM));
    printf("%s\n", status_field(child, "State", "Z"));
    wait_and_show("child", child);
}

static int blocks(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_SETMASK, &set, NULL);
    sigset_t empty;
    sigemptyset(&empty);
    raise(SIGUSR1);
    raise(SIGSTOP);
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    return sigismember(&now, SIGKILL) + 2 * sigismember(&now, SIGINT);
}

static void masks(void) {
    TITLE("masks");
    pid_t child = traced_child(blocks, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    unsigned long mask = 0;
    SHOW(raw(PTRACE_GETSIGMASK, child, 4, (unsigned long)&mask));
    SHOW(raw(PTRACE_GETSIGMASK, child, 8, (unsigned long)&mask));
    printf("mask %lx\n", mask);
    mask = 1ul << (SIGKILL - 1) | 1ul << (SIGINT - 1);
    SHOW(raw(PTRACE_SETSIGMASK, child, 8, (unsigned long)&mask));
    SHOW(raw(PTRACE_GETSIGMASK, child, 8, (unsigned long)&mask));
    printf("mask %lx\n", mask);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
}

static int stopped_later(void) {
    raise(SIGSTOP);
    return 0;
}

/* A SIGCONT that comes while the tracer looks at a stop signal undoes the stop. */
static void continued_meanwhile(void) {
    TITLE("continued while a stop signal is looked at");
    pid_t child = traced_child(stopped_later, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    kill(child, SIGCONT);
    ptrace(PTRACE_CONT, child, 0, SIGSTOP);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
}

static int program_with_handler(void) {
    catch(SIGCHLD);
    pid_t child = traced_child(raises, 0);
    printf("SIGCHLD: %d code %d status of a stop %d\n", caught, caught_code, caught_value);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    printf("SIGCHLD: %d code %d\n", caught, caught_code);
    ptrace(PTRACE_CONT, child, 0, SIGKILL);
    wait_and_show("child", child);
    printf("SIGCHLD: %d code %d\n", caught, caught_code);
    return 0;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    static const int with[] = {0, SIGUSR1, SIGUSR2, SIGTERM, SIGKILL, 65, 1 << 30};
    for (unsigned n = 0; n < sizeof with / sizeof *with; n++)
        injected(with[n]);
    changed_info();
    shown_although_ignored();
    fault();
    stops();
    seized();
    masks();
    continued_meanwhile();
    TITLE("what the tracer is sent");
    program_with_handler();
    return 0;
}
