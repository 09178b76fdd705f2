/* What the programs about ptrace(2) share: statuses as text, and children that are traced. */
#pragma once
#include "show.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif

/* The system call itself: PEEK requests store what they read, and pointers may be bad. */
static inline long raw(long request, long pid, unsigned long addr, unsigned long data) {
    return syscall(SYS_ptrace, request, pid, addr, data);
}

static inline const char *signal_text(int number) {
    static char text[32];
    const char *name = sigabbrev_np(number);
    if (name)
        snprintf(text, sizeof text, "SIG%s", name);
    else
        snprintf(text, sizeof text, "%d", number);
    return text;
}

static inline const char *event_text(int event) {
    static const char *const names[] = {"", "FORK", "VFORK", "CLONE", "EXEC", "VFORK_DONE", "EXIT"};
    return event == PTRACE_EVENT_STOP ? "STOP" : event >= 0 && event < 7 ? names[event] : "?";
}

static inline void show_status(const char *who, int status) {
    if (WIFEXITED(status))
        printf("%s: exited with %d\n", who, WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        printf("%s: killed by %s\n", who, signal_text(WTERMSIG(status)));
    else if (WIFCONTINUED(status))
        printf("%s: continued\n", who);
    else {
        int number = WSTOPSIG(status);
        printf("%s: stopped by %s%s%s%s\n", who, signal_text(number & 0x7f), number & 0x80 ? "|0x80" : "",
               status >> 16 ? " event " : "", status >> 16 ? event_text(status >> 16) : "");
    }
    fflush(stdout);
}

/* Waits for one and shows its status. */
static inline int wait_and_show(const char *who, pid_t pid) {
    int status = 0;
    pid_t found = waitpid(pid, &status, __WALL);
    if (found < 0)
        printf("%s: waitpid: %s\n", who, strerrorname_np(errno)), fflush(stdout);
    else
        show_status(who, status);
    return status;
}

/* A child that is traced and stopped by SIGSTOP before it calls `body`, whose result is its exit status. */
static inline pid_t traced_child(int (*body)(void), long options) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0))
            _exit(99);
        raise(SIGSTOP);
        _exit(body());
    }
    int status;
    waitpid(child, &status, 0);
    if (options)
        ptrace(PTRACE_SETOPTIONS, child, 0, options);
    return child;
}

/* A child that is not traced and runs. */
static inline pid_t plain_child(int (*body)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(body());
    return child;
}

/* A field of /proc/PID/status, waiting until it begins with `wanted` if that is given. */
static inline const char *status_field(pid_t pid, const char *field, const char *wanted) {
    static char text[64];
    for (int tries = 0; tries < 2000; tries++) {
        char path[64], line[256];
        snprintf(path, sizeof path, "/proc/%d/status", pid);
        FILE *file = fopen(path, "r");
        *text = 0;
        while (file && fgets(line, sizeof line, file))
            if (!strncmp(line, field, strlen(field)) && line[strlen(field)] == ':')
                sscanf(line + strlen(field) + 1, " %63[^\n]", text);
        if (file)
            fclose(file);
        if (!wanted || !strncmp(text, wanted, strlen(wanted)))
            break;
        usleep(1000);
    }
    return text;
}

static inline struct user_regs_struct registers_of(pid_t pid) {
    struct user_regs_struct regs;
    memset(&regs, 0, sizeof regs);
    ptrace(PTRACE_GETREGS, pid, 0, &regs);
    return regs;
}
