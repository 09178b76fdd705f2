/* ptrace(2) and system calls: that all are seen, as they are, and that changes take effect. Output as natively. */
#include "trace.h"

/* struct ptrace_syscall_info of linux/ptrace.h. */
struct info {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t instruction_pointer, stack_pointer;
    union {
        struct {
            uint64_t nr, args[6];
        } entry;
        struct {
            int64_t rval;
            uint8_t is_error;
        } exit;
    };
};

static volatile long results[8];

static int some_calls(void) {
    results[0] = syscall(SYS_getppid) == getppid();
    results[1] = syscall(SYS_close, 12345);
    results[2] = syscall(SYS_dup, 1);
    results[3] = syscall(SYS_gettid) == getpid();
    results[4] = syscall(SYS_lseek, -1, 5L, 6L);
    return 7;
}

static const char *name(long number) {
    static char text[32];
    switch (number) {
    case SYS_getppid: return "getppid";
    case SYS_close: return "close";
    case SYS_dup: return "dup";
    case SYS_gettid: return "gettid";
    case SYS_getpid: return "getpid";
    case SYS_lseek: return "lseek";
    case SYS_exit_group: return "exit_group";
    case SYS_nanosleep: return "nanosleep";
    case SYS_clock_nanosleep: return "clock_nanosleep";
    case SYS_restart_syscall: return "restart_syscall";
    case SYS_rt_sigreturn: return "rt_sigreturn";
    case SYS_tgkill: return "tgkill";
    }
    snprintf(text, sizeof text, "%ld", number);
    return text;
}

static void show_info(pid_t child) {
    struct info info;
    memset(&info, 0xee, sizeof info);
    long size = ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info);
    struct user_regs_struct regs = registers_of(child);
    printf("  info: %ld bytes, op %d, arch %x, same place %d", size, info.op, info.arch,
           info.instruction_pointer == regs.rip && info.stack_pointer == regs.rsp);
    if (info.op == 1)
        printf(", %s %d", name(info.entry.nr), info.entry.args[0] == regs.rdi && info.entry.args[5] == regs.r9);
    if (info.op == 2)
        printf(", error %d %d", info.exit.is_error, info.exit.rval == (long)regs.rax);
    printf("\n");
}

static void every_call(long options) {
    printf("-- each stop, options %lx\n", options);
    pid_t child = traced_child(some_calls, options);
    int inside = 0;
    for (int stops = 0; stops < 100; stops++) {
        ptrace(PTRACE_SYSCALL, child, 0, 0);
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status)) {
            show_status("child", status);
            break;
        }
        inside = !inside;
        struct user_regs_struct regs = registers_of(child);
        unsigned long message = 99;
        ptrace(PTRACE_GETEVENTMSG, child, 0, &message);
        siginfo_t info;
        ptrace(PTRACE_GETSIGINFO, child, 0, &info);
        long text = ptrace(PTRACE_PEEKTEXT, child, regs.rip - 2, 0);
        long result = regs.rax;
        if (regs.orig_rax == SYS_dup && result > 0)
            result = 1; /* whatever is free */
        if ((regs.orig_rax == SYS_getppid || regs.orig_rax == SYS_getpid || regs.orig_rax == SYS_gettid) && result > 0)
            result = 1;
        printf("%s %s: rax %ld, message %ld, code %x, at a syscall %d, rcx %d r11 %d, stopped by %x\n", inside ? "enter" : "leave",
               name(regs.orig_rax), result, message, info.si_code, (text & 0xffff) == 0x050f, regs.rcx == regs.rip,
               regs.r11 == regs.eflags, WSTOPSIG(status));
        show_info(child);
    }
}

static int tells_results(void) {
    some_calls();
    for (int n = 0; n < 5; n++)
        printf("result %d: %ld\n", n, results[n]);
    fflush(stdout);
    return 0;
}

static void changed_calls(void) {
    TITLE("changed calls");
    pid_t child = traced_child(tells_results, PTRACE_O_TRACESYSGOOD);
    int inside = 0, gone = 0;
    for (int stops = 0; stops < 300; stops++) {
        ptrace(PTRACE_SYSCALL, child, 0, 0);
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status)) {
            show_status("child", status);
            break;
        }
        inside = !inside;
        struct user_regs_struct regs = registers_of(child);
        if (inside && regs.orig_rax == SYS_close && regs.rdi == 12345) {
            regs.orig_rax = -1; /* not performed */
            regs.rax = 4711;
            ptrace(PTRACE_SETREGS, child, 0, &regs);
        } else if (!inside && regs.orig_rax == (unsigned long)-1) {
            printf("after a call that was not performed: %lld\n", regs.rax);
        } else if (inside && regs.orig_rax == SYS_dup && regs.rdi == 1) {
            regs.rdi = 12345; /* another argument */
            ptrace(PTRACE_SETREGS, child, 0, &regs);
        } else if (inside && regs.orig_rax == SYS_lseek && regs.rsi == 5) {
            ptrace(PTRACE_POKEUSER, child, offsetof(struct user_regs_struct, orig_rax), SYS_getppid); /* another call */
        } else if (!inside && regs.orig_rax == SYS_getppid && gone++ == 1) {
            ptrace(PTRACE_POKEUSER, child, offsetof(struct user_regs_struct, rax), 815); /* another result */
        } else if (!inside && regs.orig_rax == SYS_getppid && gone == 3) {
            ptrace(PTRACE_POKEUSER, child, offsetof(struct user_regs_struct, rax), -38L);
        }
    }
}

enum { OFTEN = 3000 };

static int calls_often(void) {
    for (int n = 0; n < OFTEN; n++)
        syscall(SYS_getppid);
    raise(SIGSTOP);
    long sum = 0;
    for (int n = 0; n < 100; n++)
        sum += syscall(SYS_getppid);
    return sum == 100 * 17 ? 3 : 4;
}

/* Calls by sites that had been rewritten before anybody traced. */
static void frequent_calls(void) {
    TITLE("frequent calls");
    pid_t child = traced_child(calls_often, PTRACE_O_TRACESYSGOOD);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    int enter = 0, leave = 0, strange = 0;
    for (int inside = 0;;) {
        ptrace(PTRACE_SYSCALL, child, 0, 0);
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status)) {
            show_status("child", status);
            break;
        }
        inside = !inside;
        struct user_regs_struct regs = registers_of(child);
        if (regs.orig_rax != SYS_getppid)
            continue;
        long text = ptrace(PTRACE_PEEKTEXT, child, regs.rip - 2, 0);
        strange += (text & 0xffff) != 0x050f || regs.rcx != regs.rip || regs.r11 != regs.eflags;
        if (inside) {
            enter++;
        } else {
            leave++;
            ptrace(PTRACE_POKEUSER, child, offsetof(struct user_regs_struct, rax), 17);
        }
    }
    printf("%d entered, %d left, %d strange\n", enter, leave, strange);
}

static void nothing(int number) {
    (void)number;
}

static int sleeps(void) {
    struct timespec time = {0, 300000000};
    signal(SIGUSR1, nothing);
    return syscall(SYS_nanosleep, &time, &time) ? errno : 0;
}

/* A call that a signal interrupts: suppressed it is restarted, delivered it fails. */
static void interrupted_calls(int deliver) {
    printf("-- interrupted, %s\n", deliver ? "delivered" : "suppressed");
    pid_t child = traced_child(sleeps, PTRACE_O_TRACESYSGOOD);
    for (int sent = 0;;) {
        ptrace(PTRACE_SYSCALL, child, 0, 0);
        int status = 0;
        if (sent == 1) {
            status_field(child, "State", "S");
            kill(child, SIGUSR1);
            sent = 2;
        }
        waitpid(child, &status, 0);
        struct user_regs_struct regs = registers_of(child);
        if (!WIFSTOPPED(status)) {
            show_status("child", status);
            break;
        }
        if (WSTOPSIG(status) == SIGUSR1) {
            printf("SIGUSR1 in %s, rax %lld\n", name(regs.orig_rax), regs.rax);
            ptrace(PTRACE_SYSCALL, child, 0, deliver ? SIGUSR1 : 0);
            waitpid(child, &status, 0);
            regs = registers_of(child);
            printf("then %s, rax %lld\n", name(regs.orig_rax), regs.rax);
        } else if (regs.orig_rax == SYS_nanosleep || regs.orig_rax == SYS_restart_syscall) {
            printf("%s, rax %lld\n", name(regs.orig_rax), regs.rax);
            if (!sent)
                sent = 1;
        }
    }
}

/* Only some stops are asked for. */
static void mixed_requests(void) {
    TITLE("entered, then continued");
    pid_t child = traced_child(some_calls, PTRACE_O_TRACESYSGOOD);
    ptrace(PTRACE_SYSCALL, child, 0, 0);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("child", child);
    TITLE("killed in a call");
    child = traced_child(some_calls, PTRACE_O_TRACESYSGOOD);
    ptrace(PTRACE_SYSCALL, child, 0, 0);
    wait_and_show("child", child);
    kill(child, SIGKILL);
    wait_and_show("child", child);
    TITLE("a signal at a system call");
    child = traced_child(some_calls, 0);
    ptrace(PTRACE_SYSCALL, child, 0, 0);
    wait_and_show("child", child);
    ptrace(PTRACE_CONT, child, 0, SIGTERM);
    wait_and_show("child", child);
    siginfo_t info;
    SHOW(ptrace(PTRACE_GETSIGINFO, child, 0, &info));
    printf("code %x\n", info.si_code);
    ptrace(PTRACE_CONT, child, 0, SIGTERM);
    wait_and_show("child", child);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    every_call(PTRACE_O_TRACESYSGOOD);
    every_call(0);
    changed_calls();
    frequent_calls();
    interrupted_calls(0);
    interrupted_calls(1);
    mixed_requests();
    return 0;
}
