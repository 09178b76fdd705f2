/* Process groups, sessions, controlling terminals and job control on a pseudoterminal, as natively. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

static int report[2];

static void groups(void) {
    TITLE("groups and sessions");
    int status;
    SHOW(setpgid(-1, 0));
    SHOW(setpgid(0, -1));
    SHOW(setpgid(99999999, 0));
    SHOW(getpgid(99999999));
    SHOW(getsid(99999999));
    SHOW(getpgid(-1));
    pid_t pid = fork();
    if (pid == 0) {
        SHOW(setsid() == getpid());
        SHOW(setsid());
        SHOW(setpgid(0, 0));
        SHOW(getpgrp() == getpid());
        SHOW(getsid(0) == getpid());
        SHOW(getsid(getppid()) == getpid());
        SHOW(open("/dev/tty", O_RDWR));
        _exit(0);
    }
    waitpid(pid, &status, 0);
    int ends[2];
    pipe(ends);
    pid = fork();
    if (pid == 0) {
        char byte;
        close(ends[1]);
        read(ends[0], &byte, 1);
        _exit(0);
    }
    SHOW(setpgid(pid, pid));
    SHOW(getpgid(pid) == pid);
    SHOW(setpgid(pid, 0));
    SHOW(setpgid(pid, getpgrp()));
    SHOW(setpgid(pid, 1));
    SHOW(kill(-99999, 0));
    SHOW(kill(0, 0));
    close(ends[1]);
    SHOW(waitpid(-pid, &status, WNOHANG));
    waitpid(pid, &status, 0);
    pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "process_groups", "sleep", NULL);
        _exit(1);
    }
    while (setpgid(pid, pid) == 0) usleep(1000);
    printf("after execve: %s\n", strerrorname_np(errno));
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

static const char *name_of(int status) {
    static char text[64];
    if (WIFSTOPPED(status))
        snprintf(text, sizeof text, "stopped by %s", sigabbrev_np(WSTOPSIG(status)));
    else if (WIFCONTINUED(status))
        snprintf(text, sizeof text, "continued");
    else if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "killed by %s", sigabbrev_np(WTERMSIG(status)));
    else
        snprintf(text, sizeof text, "exited with %d", WEXITSTATUS(status));
    return text;
}

static void show_change(pid_t pid, int options) {
    int status = 0;
    pid_t got = waitpid(pid, &status, options);
    printf("%s\n", got == pid ? name_of(status) : got == 0 ? "nothing" : strerrorname_np(errno));
    fflush(stdout);
}

/* A job in a group of its own, in the background. */
static pid_t job(void (*body)(int), int tty) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        body(tty);
        _exit(0);
    }
    setpgid(pid, pid);
    return pid;
}

static void reads(int tty) {
    char byte;
    long n = read(tty, &byte, 1);
    _exit(n == 1 ? byte : 100 + errno);
}
static void reads_ignoring(int tty) {
    signal(SIGTTIN, SIG_IGN);
    reads(tty);
}
static void reads_blocking(int tty) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTTIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    reads(tty);
}
static void writes(int tty) { _exit(write(tty, "w", 1) == 1 ? 1 : 100 + errno); }
static void writes_ignoring(int tty) {
    signal(SIGTTOU, SIG_IGN);
    writes(tty);
}
static void sets(int tty) {
    struct termios t;
    if (tcgetattr(tty, &t)) _exit(99);
    _exit(tcsetattr(tty, TCSANOW, &t) == 0 ? 2 : 100 + errno);
}
static void takes_foreground(int tty) { _exit(tcsetpgrp(tty, getpgrp()) == 0 ? 3 : 100 + errno); }
static void waits(int tty) {
    for (;;) pause();
}

static void leader(int slave, int master) {
    setsid();
    SHOW(tcgetpgrp(slave));
    SHOW(tcgetsid(slave));
    SHOW(ioctl(slave, TIOCSCTTY, 0));
    SHOW(tcgetpgrp(slave) == getpgrp());
    SHOW(tcgetsid(slave) == getsid(0));
    int tty = SHOW(open("/dev/tty", O_RDWR) > 0) ? open("/dev/tty", O_RDWR) : -1;
    SHOW(tcgetpgrp(tty) == getpgrp());
    SHOW(ioctl(slave, TIOCSCTTY, 0));
    SHOW(tcsetpgrp(slave, 99999999));
    SHOW(tcsetpgrp(slave, -1));
    SHOW(tcsetpgrp(slave, 1));
    char buffer[64];

    TITLE("a job that reads");
    pid_t pid = job(reads, slave);
    show_change(pid, WUNTRACED);
    SHOW(tcsetpgrp(slave, pid));
    kill(-pid, SIGCONT);
    show_change(pid, WCONTINUED);
    write(master, "a\n", 2);
    show_change(pid, 0);
    SHOW(tcgetpgrp(slave) == pid);
    /* The leader is in the background now. */
    signal(SIGTTOU, SIG_IGN);
    SHOW(tcsetpgrp(slave, getpgrp()));
    signal(SIGTTOU, SIG_DFL);
    tcflush(slave, TCIFLUSH);
    pid = job(reads_ignoring, slave);
    show_change(pid, WUNTRACED);
    pid = job(reads_blocking, slave);
    show_change(pid, WUNTRACED);

    TITLE("jobs that write and set");
    struct termios t;
    tcgetattr(slave, &t);
    pid = job(writes, slave);
    show_change(pid, WUNTRACED);
    t.c_lflag |= TOSTOP;
    tcsetattr(slave, TCSANOW, &t);
    pid = job(writes, slave);
    show_change(pid, WUNTRACED);
    kill(pid, SIGKILL);
    show_change(pid, WUNTRACED);
    pid = job(writes_ignoring, slave);
    show_change(pid, WUNTRACED);
    t.c_lflag &= ~TOSTOP;
    tcsetattr(slave, TCSANOW, &t);
    pid = job(sets, slave);
    show_change(pid, WUNTRACED);
    kill(pid, SIGKILL);
    show_change(pid, WUNTRACED);
    pid = job(takes_foreground, slave);
    show_change(pid, WUNTRACED);
    SHOW(tcsetpgrp(slave, pid));
    kill(pid, SIGCONT);
    show_change(pid, 0);
    signal(SIGTTOU, SIG_IGN);
    SHOW(tcsetpgrp(slave, getpgrp()));
    signal(SIGTTOU, SIG_DFL);

    TITLE("keys");
    pid = job(waits, slave);
    tcsetpgrp(slave, pid);
    write(master, "\x1a", 1);
    show_change(pid, WUNTRACED);
    kill(pid, SIGCONT);
    show_change(pid, WCONTINUED);
    write(master, "\x03", 1);
    show_change(pid, WUNTRACED);
    pid = job(waits, slave);
    signal(SIGTTOU, SIG_IGN);
    tcsetpgrp(slave, pid);
    write(master, "\x1c", 1);
    int status;
    waitpid(pid, &status, 0);
    printf("%s\n", sigabbrev_np(WTERMSIG(status)));
    tcsetpgrp(slave, getpgrp());
    signal(SIGTTOU, SIG_DFL);

    TITLE("sizes");
    struct winsize size = {20, 70, 0, 0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGWINCH);
    sigprocmask(SIG_BLOCK, &set, NULL);
    SHOW(ioctl(master, TIOCSWINSZ, &size));
    SHOW(sigtimedwait(&set, NULL, &(struct timespec){5, 0}));
    SHOW(ioctl(slave, TIOCGWINSZ, &size));
    printf("%d %d\n", size.ws_row, size.ws_col);
    SHOW(ioctl(master, TIOCSWINSZ, &size));
    SHOW(sigtimedwait(&set, NULL, &(struct timespec){0, 10000000}));
    SHOW(ioctl(master, TIOCSIG, SIGQUIT + 100));

    TITLE("the end of the session");
    pid = job(waits, slave);
    pid_t stopped = job(waits, slave);
    kill(stopped, SIGSTOP);
    waitpid(stopped, NULL, WUNTRACED);
    tcsetpgrp(slave, pid);
    pid_t pids[2] = {pid, stopped};
    write(report[1], pids, sizeof pids);
    (void)buffer;
    _exit(0);
}

/* A stopped job whose parent ends is orphaned: SIGHUP and SIGCONT. */
static void orphaned(void) {
    TITLE("orphaned groups");
    int ends[2], status;
    pipe(ends);
    fflush(stdout);
    pid_t middle = fork();
    if (middle == 0) {
        setsid();
        pid_t shell = fork();
        if (shell == 0) {
            setpgid(0, 0);
            pid_t member = fork();
            if (member == 0) {
                sigset_t set;
                sigemptyset(&set);
                sigaddset(&set, SIGHUP);
                sigaddset(&set, SIGCONT);
                sigprocmask(SIG_BLOCK, &set, NULL);
                raise(SIGSTOP);
                int told[2] = {sigwaitinfo(&set, NULL), sigwaitinfo(&set, NULL)};
                write(ends[1], told, sizeof told);
                /* Nobody could continue this group. */
                raise(SIGTSTP);
                raise(SIGTTIN);
                write(ends[1], told, sizeof told);
                _exit(0);
            }
            waitpid(member, &status, WUNTRACED);
            /* Its parent is in the same group, so the group's tie to the session is this process's own parent. */
            raise(SIGSTOP);
            _exit(0);
        }
        waitpid(shell, &status, WUNTRACED);
        _exit(0);
    }
    waitpid(middle, &status, 0);
    int told[2] = {0, 0};
    read(ends[0], told, sizeof told);
    printf("%s %s\n", sigabbrev_np(told[0]), sigabbrev_np(told[1]));
    printf("%ld\n", (long)read(ends[0], told, sizeof told));
}

int main(int argc, char **argv) {
    if (argc > 1) {
        pause();
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    groups();
    TITLE("a terminal");
    int master = posix_openpt(O_RDWR | O_NOCTTY), status;
    grantpt(master);
    unlockpt(master);
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    SHOW(tcgetpgrp(slave));
    SHOW(ioctl(slave, TIOCNOTTY));
    pipe(report);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) leader(slave, master);
    waitpid(pid, &status, 0);
    printf("%s\n", name_of(status));
    pid_t pids[2];
    read(report[0], pids, sizeof pids);
    /* SIGHUP ends the foreground job; the stopped one was orphaned. */
    for (int n = 0; n < 2; n++) {
        int tries = 0;
        while (kill(pids[n], 0) == 0 && ++tries < 5000) usleep(1000);
        printf("job %d is gone: %d\n", n, tries < 5000);
    }
    SHOW(tcgetpgrp(slave));
    orphaned();
    return 0;
}
