/* ptrace(2): who may trace whom, attaching and detaching, what /proc says. Output as natively. */
#include "trace.h"
#include <grp.h>

static int pauses(void) {
    for (;;)
        pause();
    return 0;
}

static int spins(void) {
    for (volatile unsigned long n = 0;; n++)
        ;
    return 0;
}

static int sleeps(void) {
    struct timespec time = {0, 400000000};
    return nanosleep(&time, NULL) ? errno : 22;
}

static void end(pid_t child) {
    kill(child, SIGKILL);
    wait_and_show("child", child);
}

static void attached(const char *title, int (*body)(void), const char *state) {
    printf("-- attached while it %s\n", title);
    pid_t child = plain_child(body);
    status_field(child, "State", state);
    SHOW(raw(PTRACE_ATTACH, child, 0, 0));
    printf("tracer is me: %d\n", atoi(status_field(child, "TracerPid", NULL)) == getpid());
    wait_and_show("child", child);
    printf("%s\n", status_field(child, "State", "t"));
    siginfo_t info;
    SHOW(ptrace(PTRACE_GETSIGINFO, child, 0, &info));
    printf("code %x\n", info.si_code);
    SHOW(raw(PTRACE_ATTACH, child, 0, 0));
    SHOW(raw(PTRACE_SEIZE, child, 0, 0));
    SHOW(raw(PTRACE_DETACH, child, 0, 65));
    SHOW(raw(PTRACE_DETACH, child, 0, 0));
    SHOW(raw(PTRACE_DETACH, child, 0, 0));
    printf("tracer: %s, %s\n", status_field(child, "TracerPid", NULL), status_field(child, "State", state));
    if (body == sleeps)
        wait_and_show("child", child);
    else
        end(child);
}

static void errors(void) {
    TITLE("errors");
    pid_t child = plain_child(pauses);
    pid_t unborn = 4000000;
    SHOW(raw(PTRACE_ATTACH, 0, 0, 0));
    SHOW(raw(PTRACE_ATTACH, -1, 0, 0));
    SHOW(raw(PTRACE_ATTACH, unborn, 0, 0));
    SHOW(raw(PTRACE_ATTACH, getpid(), 0, 0));
    SHOW(raw(PTRACE_CONT, child, 0, 0));
    SHOW(raw(PTRACE_KILL, child, 0, 0));
    SHOW(raw(PTRACE_INTERRUPT, child, 0, 0));
    SHOW(raw(9999, child, 0, 0));
    SHOW(raw(PTRACE_SEIZE, child, 1, 0));
    SHOW(raw(PTRACE_SEIZE, child, 0, 1 << 30));
    SHOW(raw(PTRACE_SEIZE, child, 0, PTRACE_O_TRACESYSGOOD));
    SHOW(raw(PTRACE_CONT, child, 0, 0));
    SHOW(raw(PTRACE_DETACH, child, 0, 0));
    SHOW(raw(PTRACE_GETREGS, child, 0, 0));
    SHOW(raw(PTRACE_INTERRUPT, child, 0, 0));
    wait_and_show("child", child);
    SHOW(raw(9999, child, 0, 0));
    SHOW(raw(PTRACE_LISTEN, child, 0, 0));
    SHOW(raw(PTRACE_CONT, child, 0, 0));
    end(child);
    SHOW(raw(PTRACE_CONT, child, 0, 0));
    fflush(stdout);
    child = fork();
    if (child == 0)
        _exit(0);
    status_field(child, "State", "Z");
    SHOW(raw(PTRACE_ATTACH, child, 0, 0));
    waitpid(child, NULL, 0);
}

static int traces_itself(void) {
    SHOW(raw(PTRACE_TRACEME, 0, 0, 0));
    SHOW(raw(PTRACE_TRACEME, 0, 0, 0));
    SHOW(raw(PTRACE_SEIZE, getppid(), 0, 0));
    return 0;
}

static int undumpable(void) {
    prctl(PR_SET_DUMPABLE, 0);
    for (;;)
        pause();
    return 0;
}

static int another_user(void) {
    if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
        return 1;
    prctl(PR_SET_DUMPABLE, 1);
    for (;;)
        pause();
    return 0;
}

static pid_t targets[4];

static int unprivileged(void) {
    if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
        return 1;
    for (int n = 0; n < 4; n++) {
        long result = raw(PTRACE_SEIZE, targets[n], 0, 0);
        printf("target %d: %ld %s\n", n, result, result ? strerrorname_np(errno) : "");
    }
    fflush(stdout);
    return 0;
}

static int undumpable_user(void) {
    if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
        return 1;
    prctl(PR_SET_DUMPABLE, 0);
    for (;;)
        pause();
    return 0;
}

static void permissions(void) {
    TITLE("permissions");
    int (*bodies[])(void) = {pauses, undumpable, another_user, undumpable_user};
    for (int n = 0; n < 4; n++) {
        targets[n] = plain_child(bodies[n]);
        status_field(targets[n], "State", "S");
    }
    int status;
    waitpid(plain_child(unprivileged), &status, 0);
    show_status("user", status);
    for (int n = 0; n < 4; n++) {
        SHOW(raw(PTRACE_SEIZE, targets[n], 0, 0));
        kill(targets[n], SIGKILL);
        waitpid(targets[n], &status, 0);
        show_status("target", status);
    }
}

static int traced_and_privileged(void) {
    int status;
    if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
        return 1;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        execl("/tmp/set-user-id", "set-user-id", "ids", NULL);
        _exit(9);
    }
    for (waitpid(child, &status, 0); WIFSTOPPED(status); waitpid(child, &status, 0))
        ptrace(PTRACE_CONT, child, 0, 0);
    show_status("traced", status);
    child = fork();
    if (child == 0) {
        execl("/tmp/set-user-id", "set-user-id", "ids", NULL);
        _exit(9);
    }
    waitpid(child, &status, 0);
    show_status("not traced", status);
    return 0;
}

/* A traced program gains no privileges by execve(2) that its tracer has not. */
static void set_user_id(void) {
    TITLE("set-user-ID programs");
    if (system("cp /usr/bin/trace_attach /tmp/set-user-id && chmod 4755 /tmp/set-user-id"))
        return;
    waitpid(plain_child(traced_and_privileged), NULL, 0);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "ids")) {
        printf("uid %d euid %d\n", getuid(), geteuid());
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    attached("waits", pauses, "S");
    attached("runs", spins, "R");
    attached("sleeps for a time", sleeps, "S");
    errors();
    TITLE("PTRACE_TRACEME");
    int status;
    waitpid(plain_child(traces_itself), &status, 0);
    show_status("child", status);
    permissions();
    set_user_id();
    return 0;
}
