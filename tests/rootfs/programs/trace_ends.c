/* ptrace(2): ends that nobody waits for or that hold others up, instruction pointers that can't be, and who is attached to
 * in the middle of execve(2). Output as natively. */
#include "trace.h"
#include <grp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>

static volatile int *shared;

static void wait_for(int at) {
    while (!shared[at])
        usleep(1000);
}

static int waits_for_its_turn(void) {
    wait_for(0);
    return 3;
}

/* Tells what waitpid(2) says once the process or thread has gone or become a zombie. */
static void waited(const char *who, pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    for (int tries = 0; tries < 2000; tries++) {
        char text[256] = "";
        FILE *file = fopen(path, "r");
        if (!file)
            break;
        char *got = fgets(text, sizeof text, file);
        fclose(file);
        if (got && strstr(text, ") Z"))
            break;
        usleep(1000);
    }
    int status = 0;
    pid_t found = waitpid(pid, &status, __WALL | WNOHANG);
    if (found > 0)
        show_status(who, status);
    else
        printf("%s: %s\n", who, found ? strerrorname_np(errno) : "nothing");
}

static void *ends_in_its_turn(void *argument) {
    shared[1] = gettid();
    wait_for(0);
    return argument;
}

static int has_a_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, ends_in_its_turn, NULL);
    pthread_join(thread, NULL);
    shared[2] = 1;
    wait_for(3);
    return 4;
}

/* What is traced is waited for although SIGCHLD is ignored. */
static void ignored(int how) {
    TITLE(how ? "SA_NOCLDWAIT" : "SIGCHLD ignored");
    memset((void *)shared, 0, 64);
    struct sigaction action = {.sa_handler = how ? SIG_DFL : SIG_IGN, .sa_flags = how ? SA_NOCLDWAIT : 0};
    sigaction(SIGCHLD, &action, NULL);
    pid_t child = plain_child(has_a_thread);
    wait_for(1);
    pid_t thread = shared[1];
    SHOW(raw(PTRACE_SEIZE, child, 0, 0));
    SHOW(raw(PTRACE_SEIZE, thread, 0, 0));
    shared[0] = 1;
    wait_for(2);
    waited("thread", thread);
    shared[3] = 1;
    waited("child", child);
    signal(SIGCHLD, SIG_DFL);
}

/* Also where the tracer is not the parent, which is told next. */
static void ignored_elsewhere(void) {
    TITLE("SIGCHLD ignored by a tracer that is not the parent");
    memset((void *)shared, 0, 64);
    pid_t child = plain_child(waits_for_its_turn);
    fflush(stdout);
    pid_t tracer = fork();
    if (tracer == 0) {
        signal(SIGCHLD, SIG_IGN);
        SHOW(raw(PTRACE_SEIZE, child, 0, 0));
        shared[0] = 1;
        waited("tracer's", child);
        _exit(0);
    }
    wait_and_show("tracer", tracer);
    waited("child", child);
}

/* Has a thread, and runs a program in its own turn. */
static int executes(const char *path, const char *mode, const char *status) {
    pthread_t thread;
    pthread_create(&thread, NULL, ends_in_its_turn, NULL);
    wait_for(2);
    execl(path, path, mode, status, NULL);
    return 1;
}

/* Traces the thread of such a process, of which it wants to know the end. */
static pid_t seizes_the_thread(void) {
    wait_for(1);
    pid_t thread = shared[1];
    SHOW(raw(PTRACE_SEIZE, thread, 0, PTRACE_O_TRACEEXIT));
    return thread;
}

static int executes_beside_an_end(void) {
    return executes("/proc/self/exe", "later", "5");
}

/* A thread that stops at its end for its tracer is killed by execve(2) in another, which goes on. */
static void execve_beside_an_end(void) {
    TITLE("execve(2) beside a thread that is in its last stop");
    memset((void *)shared, 0, 64);
    pid_t child = plain_child(executes_beside_an_end);
    pid_t thread = seizes_the_thread();
    shared[0] = 1;
    wait_and_show("thread", thread);
    shared[2] = 1;
    /* Linux waits until the tracer knows of the end. */
    wait_and_show("thread", thread);
    shared[3] = 1;
    wait_and_show("child", child);
}

static int forks_while_stepped(void) {
    /* Which comes sooner or later; nobody stops for a blocked signal. */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pid_t child = syscall(SYS_fork);
    if (child == 0)
        _exit(7);
    int status;
    waitpid(child, &status, 0);
    show_status("the stepped one's child", status);
    return 8;
}

/* The trap flag is the tracer's: a child that it does not trace has none. */
static void stepped_fork(void) {
    TITLE("a single-stepped fork");
    pid_t child = traced_child(forks_while_stepped, 0);
    int status, steps = 0;
    do {
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        waitpid(child, &status, 0);
        steps++;
    } while (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP && registers_of(child).orig_rax != SYS_wait4);
    printf("many steps %d\n", steps > 2);
    ptrace(PTRACE_CONT, child, 0, 0);
    wait_and_show("stepped", child);
}

static const unsigned long impossible[] = {1ul << 62, 1ul << 47, ~0ul << 47, ~0ul, (1ul << 47) - 8192};

static int forks(void) {
    pid_t child = syscall(SYS_fork);
    if (child == 0)
        _exit(1);
    return 2;
}

/* An instruction pointer that can't be, set where fork(2) begins: both fault when they return from it. */
static void impossible_at_a_call(void) {
    TITLE("an instruction pointer that can't be, in fork(2)");
    for (int n = 0; n < 5; n++) {
        pid_t child = traced_child(forks, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK);
        int status;
        do {
            ptrace(PTRACE_SYSCALL, child, 0, 0);
            waitpid(child, &status, 0);
        } while (WIFSTOPPED(status) && registers_of(child).orig_rax != SYS_fork);
        SHOW(ptrace(PTRACE_POKEUSER, child, offsetof(struct user_regs_struct, rip), impossible[n]));
        ptrace(PTRACE_CONT, child, 0, 0);
        wait_and_show("parent", child);
        unsigned long other = 0;
        ptrace(PTRACE_GETEVENTMSG, child, 0, &other);
        wait_and_show("child", other);
        pid_t both[] = {child, other};
        for (int which = 0; which < 2; which++) {
            siginfo_t info = {0};
            ptrace(PTRACE_CONT, both[which], 0, 0);
            wait_and_show(which ? "child" : "parent", both[which]);
            ptrace(PTRACE_GETSIGINFO, both[which], 0, &info);
            printf("code %d, address %p\n", info.si_code, info.si_addr);
            ptrace(PTRACE_CONT, both[which], 0, SIGSEGV);
            wait_and_show(which ? "child" : "parent", both[which]);
        }
    }
}

static unsigned long wanted;

static void edits(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = wanted;
}

static void faulted(int number, siginfo_t *info, void *context) {
    long long *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    printf("%s, code %d, address %p, trap %lld, error %llx\n", signal_text(number), info->si_code, info->si_addr,
           registers[REG_TRAPNO], registers[REG_ERR]);
    fflush(stdout);
    _exit(0);
}

static int returns_to_what_can_not_be(void) {
    struct sigaction action = {.sa_sigaction = edits, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    action.sa_sigaction = faulted;
    sigaction(SIGSEGV, &action, NULL);
    raise(SIGUSR1);
    return 1;
}

static void impossible_in_a_frame(void) {
    TITLE("an instruction pointer that can't be, in a signal's frame");
    for (int n = 0; n < 5; n++) {
        wanted = impossible[n];
        wait_and_show("child", plain_child(returns_to_what_can_not_be));
    }
}

static int executes_set_user_id(void) {
    prctl(PR_SET_DUMPABLE, 1);
    return executes("/tmp/trace-ends", "ids", NULL);
}

static void *attaches(void *argument) {
    return raw(PTRACE_SEIZE, *(pid_t *)argument, 0, 0) ? (void *)strerrorname_np(errno) : "done";
}

static int attaches_in_the_middle(void) {
    if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
        return 1;
    prctl(PR_SET_DUMPABLE, 1);
    pid_t child = plain_child(executes_set_user_id);
    pid_t thread = seizes_the_thread();
    shared[2] = 1;
    /* It is at its end, which execve(2) in the other thread waits for. */
    wait_and_show("thread", thread);
    pthread_t other;
    pthread_create(&other, NULL, attaches, &child);
    usleep(200000);
    ptrace(PTRACE_CONT, thread, 0, 0);
    wait_and_show("thread", thread);
    void *result;
    pthread_join(other, &result);
    printf("attach: %s\n", (char *)result);
    shared[3] = 1;
    wait_for(4);
    kill(child, SIGTERM);
    wait_and_show("child", child);
    return 0;
}

/* Nobody attaches to what is about to gain privileges. */
static void set_user_id(void) {
    TITLE("attaching in the middle of execve(2)");
    memset((void *)shared, 0, 64);
    if (system("cp /proc/$PPID/exe /tmp/trace-ends && chmod 4755 /tmp/trace-ends"))
        return;
    waitpid(plain_child(attaches_in_the_middle), NULL, 0);
}

/* What outlives execve(2). */
static volatile int *share(void) {
    FILE *file = fopen("/tmp/trace-ends-shared", "a+");
    if (!file || ftruncate(fileno(file), 4096))
        _exit(98);
    fchmod(fileno(file), 0666);
    volatile int *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    fclose(file);
    return memory;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    shared = share();
    if (argc > 1)
        wait_for(3);
    if (argc > 2)
        return atoi(argv[2]);
    if (argc > 1) {
        printf("uid %d euid %d\n", getuid(), geteuid());
        shared[4] = 1;
        for (;;)
            pause();
    }
    ignored(0);
    ignored(1);
    ignored_elsewhere();
    execve_beside_an_end();
    stepped_fork();
    impossible_at_a_call();
    impossible_in_a_frame();
    set_user_id();
    return 0;
}
