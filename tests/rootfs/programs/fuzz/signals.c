/* Signals of a process to itself: what is delivered, in which order and with which details. */
#include "fuzz.h"
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <time.h>

static const int used[] = {SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGPIPE, SIGXFSZ, 34, 35, 63};
static const int odd[] = {0, -1, 65, 100, SIGKILL, SIGSTOP};

static volatile unsigned handled_count;
static struct {
    int number, code, value;
    bool own, other_stack;
} handled[64];
static char other_stack[32768];

static void handler(int number, siginfo_t *info, void *context) {
    (void)context;
    char here;
    if (handled_count < COUNT(handled)) {
        unsigned i = handled_count++;
        handled[i].number = number;
        handled[i].code = info->si_code;
        handled[i].value = info->si_code == SI_QUEUE ? info->si_value.sival_int : 0;
        handled[i].own = info->si_code <= 0 && info->si_pid == getpid();
        handled[i].other_stack = &here >= other_stack && &here < other_stack + sizeof other_stack;
    }
}

void begin_signals(void) {
    static bool begun;
    if (begun)
        return;
    begun = true;
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    for (unsigned i = 0; i < COUNT(used); i++)
        sigaction(used[i], &action, NULL);
}

void say_signals(void) {
    for (unsigned i = 0; i < handled_count; i++)
        say(" [%d code %d value %d%s%s]", handled[i].number, handled[i].code, handled[i].value, handled[i].own ? " own" : "", handled[i].other_stack ? " alternate" : "");
    handled_count = 0;
}

static sigset_t any_set(void) {
    sigset_t set;
    sigemptyset(&set);
    say("{");
    for (unsigned i = 0; i < COUNT(used); i++)
        if (one_in(4)) {
            sigaddset(&set, used[i]);
            say("%d ", used[i]);
        }
    say("}");
    return set;
}

static void say_set(const sigset_t *set) {
    say(" <");
    for (int i = 1; i < 65; i++)
        if (sigismember(set, i) == 1)
            say("%d ", i);
    say(">");
}

static int any_signal(void) { return one_in(20) ? PICK(odd) : PICK(used); }

static void act(void) {
    static const struct named flags[] = {NAMED(SA_RESTART), NAMED(SA_NODEFER), NAMED(SA_RESETHAND), NAMED(SA_ONSTACK), NAMED(SA_NOCLDWAIT), NAMED(SA_NOCLDSTOP)};
    int number = any_signal();
    unsigned kind = below(6);
    struct sigaction action = {.sa_flags = SA_SIGINFO | pick_flags(flags, COUNT(flags), 4)}, old;
    if (number == SIGCHLD) /* or children could not be waited for */
        action.sa_flags &= ~SA_NOCLDWAIT;
    say("sigaction(%d, %s, %s, ", number, kind == 0 && number != SIGCHLD ? "ignore" : "handle", flag_names);
    action.sa_mask = any_set();
    say(")");
    if (kind == 0 && number != SIGCHLD)
        action.sa_handler = SIG_IGN;
    else
        action.sa_sigaction = handler;
    if (result(sigaction(number, &action, &old)) == 0) {
        say(" was %s flags %x", old.sa_handler == SIG_IGN ? "ignored" : old.sa_handler == SIG_DFL ? "default" : "handled", old.sa_flags & ~0x04000000);
        say_set(&old.sa_mask);
    }
}

static void mask(void) {
    static const struct named how[] = {NAMED(SIG_BLOCK), NAMED(SIG_UNBLOCK), NAMED(SIG_UNBLOCK), NAMED(SIG_SETMASK), {"7", 7}};
    struct named what = PICK(how);
    say("sigprocmask(%s, ", what.name);
    sigset_t set = any_set(), old;
    sigemptyset(&old);
    say(")");
    result(sigprocmask(what.value, &set, &old));
    say_set(&old);
}

static void send(void) {
    int number = any_signal();
    if (number == SIGKILL || number == SIGSTOP)
        number = 0;
    switch (in_thread ? 1 : below(4)) { /* else which thread takes it is the kernel's choice */
    case 0:
        say("kill(self, %d)", number);
        result(kill(getpid(), number));
        break;
    case 1:
        say("raise(%d)", number);
        result(tgkill(getpid(), gettid(), number));
        break;
    case 2: {
        union sigval value = {.sival_int = below(1000)};
        say("sigqueue(self, %d, %d)", number, value.sival_int);
        result(sigqueue(getpid(), number, value));
        break;
    }
    default:
        say("kill(999999, %d)", number);
        result(kill(999999, number));
    }
}

static void pending(void) {
    sigset_t set;
    sigemptyset(&set);
    say("sigpending");
    result(sigpending(&set));
    say_set(&set);
}

static void take(void) {
    struct timespec none = {0, one_in(8) ? -1 : 0};
    siginfo_t info = {0};
    say("sigtimedwait(");
    sigset_t set = any_set();
    say(")");
    if (result(sigtimedwait(&set, &info, &none)) > 0)
        say(" code %d value %d", info.si_code, info.si_code == SI_QUEUE ? info.si_value.sival_int : 0);
}

static void stack(void) {
    if (in_thread) {
        say("nothing");
        return;
    }
    static const size_t sizes[] = {0, 100, 2048, 8192, sizeof other_stack};
    static const int flags[] = {0, 0, SS_DISABLE, SS_ONSTACK, 99, 1 << 31};
    stack_t new = {.ss_sp = other_stack, .ss_flags = PICK(flags), .ss_size = PICK(sizes)}, old = {0};
    say("sigaltstack(%x, %zu)", new.ss_flags, new.ss_size);
    if (new.ss_size == 2048) /* too small for the frames of some machines */
        new.ss_size = 16384;
    result(sigaltstack(&new, &old));
    say(" was %x %zu", old.ss_flags, old.ss_size);
}

static void suspend(void) {
    sigset_t set, old;
    sigemptyset(&set);
    sigemptyset(&old);
    say("sigsuspend with %d pending", SIGUSR1);
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO}, before;
    sigaction(SIGUSR1, &action, &before);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, &old);
    raise(SIGUSR1);
    sigfillset(&set);
    sigdelset(&set, SIGUSR1);
    result(sigsuspend(&set));
    sigprocmask(SIG_SETMASK, &old, NULL);
    sigaction(SIGUSR1, &before, NULL);
}

static void by_descriptor(void) {
    if (one_in(2)) {
        say("signalfd(");
        sigset_t set = any_set();
        say(")");
        keep(result(signalfd(-1, &set, SFD_NONBLOCK)));
    } else {
        int fd = any_fd();
        struct signalfd_siginfo info[2] = {{0}};
        say("signalfd read(%d)", fd);
        long n = result(read(fd, info, one_in(5) ? 10 : sizeof info));
        if (n == sizeof *info)
            say(" %u %d %d", info[0].ssi_signo, info[0].ssi_code, info[0].ssi_int);
    }
}

static void timers(void) {
    struct itimerval timer = {0};
    static const int kinds[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF, 7};
    int kind = PICK(kinds);
    if (one_in(2)) {
        timer.it_value.tv_sec = one_in(2) ? 0 : 1000;
        timer.it_interval.tv_usec = one_in(4) ? 1000000 : 0;
        say("setitimer(%d, %ld, %ld)", kind, timer.it_value.tv_sec, timer.it_interval.tv_usec);
        result(setitimer(kind, &timer, NULL));
    } else {
        say("getitimer(%d)", kind);
        result(getitimer(kind, &timer));
        say(" %s", timer.it_value.tv_sec > 900 ? "armed" : "off");
    }
}

static const struct choice choices[] = {{act, 6}, {mask, 6}, {send, 8}, {pending, 3}, {take, 3}, {stack, 2}, {suspend, 1}, {by_descriptor, 3}, {timers, 2}};
const struct subject signals = {"signals", choices, COUNT(choices)};
