/* Children and threads, waiting for them, and what a process says of itself. */
#include "fuzz.h"
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void say_status(int status) {
    if (WIFEXITED(status))
        say(" exit %d", WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        say(" killed %d", WTERMSIG(status));
    else
        say(" stopped or continued %x", status);
}

static pid_t wait_for(pid_t child, int options) {
    int status = 0;
    pid_t found;
    while ((found = waitpid(child, &status, options)) < 0 && errno == EINTR)
        ;
    if (found > 0)
        say_status(status);
    else
        result(found);
    return found;
}

static void child(void) {
    if (depth > 1 || in_thread) {
        say("nothing");
        return;
    }
    unsigned count = below(8);
    bool vanish = one_in(4);
    say("child of %u steps", count);
    pid_t pid = fork();
    if (pid == 0) {
        run_steps(count);
        say(" end");
        begin_signals();
        if (vanish) {
            signal(SIGTERM, SIG_DFL);
            raise(SIGTERM);
        }
        _exit(below(300));
    }
    if (pid < 0) {
        result(pid);
        return;
    }
    wait_for(pid, 0);
}

static void *thread_main(void *count) {
    in_thread = true;
    run_steps((unsigned)(uintptr_t)count);
    in_thread = false;
    return NULL;
}

static void thread(void) {
    if (depth > 1 || in_thread) {
        say("nothing");
        return;
    }
    pthread_t id;
    say("thread");
    if (pthread_create(&id, NULL, thread_main, (void *)(uintptr_t)below(5)) == 0)
        pthread_join(id, NULL);
}

static void stop_and_go(void) {
    if (in_thread) { /* the signals would go to another */
        say("nothing");
        return;
    }
    say("stop and go");
    /* How many of its signals arrive by the end is a matter of time. */
    sigset_t child, old;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &old);
    pid_t pid = fork();
    if (pid == 0) {
        raise(SIGSTOP);
        _exit(7);
    }
    wait_for(pid, WUNTRACED);
    wait_for(pid, WUNTRACED | WNOHANG);
    kill(pid, SIGCONT);
    siginfo_t info = {0};
    say(" waitid");
    int waited;
    while ((waited = waitid(P_PID, pid, &info, WCONTINUED | WEXITED | WNOWAIT)) < 0 && errno == EINTR)
        ;
    result(waited);
    say(info.si_code == CLD_CONTINUED || info.si_code == CLD_EXITED ? " went on" : " code %d", info.si_code);
    pid_t found;
    int status;
    do
        found = waitpid(pid, &status, 0);
    while (found < 0 && errno == EINTR);
    say_status(status);
    struct timespec none = {0, 0};
    while (sigtimedwait(&child, NULL, &none) > 0)
        ;
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static void wait_details(void) {
    static const struct named options[] = {NAMED(WEXITED), NAMED(WSTOPPED), NAMED(WCONTINUED), NAMED(WNOWAIT), {"64", 64}};
    static const int kinds[] = {P_ALL, P_PID, P_PGID, P_PIDFD, 9};
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int kind = PICK(kinds), id = one_in(2) ? 0 : any_fd();
    long set = pick_flags(options, COUNT(options), 2);
    say("waitid(%d, %d, %s)", kind, id, flag_names);
    result(waitid(kind, id, &info, set | WNOHANG));
    say(" signal %d", info.si_signo);
}

static void groups_and_sessions(void) {
    pid_t self = getpid();
    switch (below(4)) {
    case 0:
        say("setsid");
        say(setsid() == self ? " = self" : " %s", strerrorname_np(errno));
        break;
    case 1: {
        static const int groups[] = {0, 1, -1, 999999};
        int to = PICK(groups);
        say("setpgid(0, %d)", to);
        result(setpgid(0, to));
        break;
    }
    case 2:
        say("getpgid %s getsid %s", getpgid(0) == self ? "self" : "other", getsid(0) == self ? "self" : "other");
        break;
    default:
        say("getpgid(-1)");
        result(getpgid(-1));
        say(" getsid(999999)");
        result(getsid(999999));
    }
}

static void credentials(void) {
    static const int ids[] = {-1, 0, 0, 1000, 1001, 65534};
    int a = PICK(ids), b = PICK(ids), c = PICK(ids);
    if (depth == 0 || in_thread) { /* children alone give root up */
        gid_t found[64];
        say("ids %u %u %u %u groups", getuid(), geteuid(), getgid(), getegid());
        result(getgroups(one_in(4) ? 0 : 64, found));
        return;
    }
    switch (below(7)) {
    case 0:
        say("setresuid(%d, %d, %d)", a, b, c);
        result(setresuid(a, b, c));
        break;
    case 1:
        say("setresgid(%d, %d, %d)", a, b, c);
        result(setresgid(a, b, c));
        break;
    case 2:
        say("setuid(%d)", a);
        result(setuid(a));
        break;
    case 3:
        say("setreuid(%d, %d)", a, b);
        result(setreuid(a, b));
        break;
    case 4: {
        gid_t set[3] = {1000, 50, 7};
        unsigned count = below(4);
        say("setgroups(%u)", count);
        result(setgroups(count, set));
        break;
    }
    case 5:
        say("setfsuid(%d)", a);
        result(syscall(SYS_setfsuid, a));
        break;
    default: {
        uid_t r, e, s;
        getresuid(&r, &e, &s);
        say("uids %u %u %u", r, e, s);
        getresgid(&r, &e, &s);
        say(" gids %u %u %u", r, e, s);
    }
    }
}

static void limits(void) {
    static const struct named kinds[] = {NAMED(RLIMIT_NOFILE), NAMED(RLIMIT_FSIZE), NAMED(RLIMIT_CORE), NAMED(RLIMIT_STACK), {"99", 99}};
    struct named kind = PICK(kinds);
    struct rlimit limit;
    say("rlimit %s", kind.name);
    if (result(getrlimit(kind.value, &limit)) == 0 && kind.value != RLIMIT_STACK && kind.value != RLIMIT_CORE)
        say(" %ld", (long)limit.rlim_cur);
    if (depth > 0 && !in_thread && kind.value != RLIMIT_STACK) {
        static const rlim_t values[] = {0, 5, 8, 1000, 5000, RLIM_INFINITY};
        limit.rlim_cur = PICK(values);
        say(" set %ld", (long)limit.rlim_cur);
        result(setrlimit(kind.value, &limit));
    }
}

static void about_itself(void) {
    char name[32] = "";
    switch (below(8)) {
    case 0:
        say("PR_SET_NAME");
        result(prctl(PR_SET_NAME, one_in(2) ? "fuzz" : "a name that is too long for it"));
        break;
    case 1:
        result(prctl(PR_GET_NAME, name));
        say("PR_GET_NAME %s", name);
        break;
    case 2: {
        int to = below(4);
        say("PR_SET_DUMPABLE %d", to);
        result(prctl(PR_SET_DUMPABLE, to == 2 ? 5 : 1));
        break;
    }
    case 3: {
        int to = below(70), found = -1;
        say("PR_SET_PDEATHSIG %d", to);
        result(prctl(PR_SET_PDEATHSIG, to));
        prctl(PR_GET_PDEATHSIG, &found);
        say(" %d", found);
        prctl(PR_SET_PDEATHSIG, 0);
        break;
    }
    case 4: {
        int to = (int)below(30) - 5;
        say("setpriority(%d)", to);
        result(setpriority(PRIO_PROCESS, 0, to));
        errno = 0;
        say(" %d", getpriority(PRIO_PROCESS, 0));
        break;
    }
    case 5: {
        struct sched_param parameter = {0};
        say("sched_getscheduler");
        result(sched_getscheduler(one_in(4) ? -1 : 0));
        result(sched_getparam(0, &parameter));
        break;
    }
    case 6:
        say("personality");
        result(syscall(SYS_personality, 0xffffffff));
        break;
    default:
        say("PR_SET_CHILD_SUBREAPER");
        result(prctl(PR_SET_CHILD_SUBREAPER, below(2)));
        say(" PR_GET_NO_NEW_PRIVS");
        result(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    }
}

static const struct choice choices[] = {
    {child, 8}, {thread, 3}, {stop_and_go, 2}, {wait_details, 2}, {groups_and_sessions, 2}, {credentials, 4}, {limits, 2}, {about_itself, 4},
};
const struct subject processes = {"processes", choices, COUNT(choices)};
