/* ptrace(2) and new processes, threads and programs; the end of tracees and of tracers. Output as natively. */
#include "trace.h"
#include <sys/mman.h>
#include <sys/prctl.h>

static int report_fd = -1;

static int forks(void) {
    pid_t child = fork();
    if (child == 0)
        _exit(3);
    int status;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status) + 1;
}

static int vforks(void) {
    pid_t child = vfork();
    if (child == 0)
        _exit(5);
    int status;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status) + 1;
}

static int in_clone(void *argument) {
    return (int)(long)argument;
}

static int clones_with(int flags) {
    static char stack[65536];
    pid_t child = clone(in_clone, stack + sizeof stack, flags, (void *)9);
    int status;
    waitpid(child, &status, __WALL);
    return WEXITSTATUS(status) + 1;
}

static int clones(void) {
    return clones_with(SIGUSR1 | CLONE_VM);
}

static int clones_untraced(void) {
    return clones_with(CLONE_UNTRACED | SIGCHLD);
}

static int clones_ptrace(void) {
    return clones_with(CLONE_PTRACE | SIGCHLD);
}

static int kills_itself(void) {
    kill(getpid(), SIGKILL);
    return 1;
}

static void *in_thread(void *argument) {
    return argument;
}

static int makes_a_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, in_thread, NULL);
    pthread_join(thread, NULL);
    return 0;
}

static int executes(void) {
    execl("/proc/self/exe", "trace_forks", "exit", "13", NULL);
    return 98;
}

static int fails_to_execute(void) {
    execl("/nowhere", "nowhere", NULL);
    return 14;
}

static void *executing_thread(void *argument) {
    (void)argument;
    execl("/proc/self/exe", "trace_forks", "exit", "15", NULL);
    return NULL;
}

static int executes_in_a_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, executing_thread, NULL);
    for (;;)
        pause();
    return 0;
}

static const char *who(pid_t pid, pid_t first, pid_t *others, int *count) {
    static char text[16];
    if (pid == first)
        return "first";
    int n = 0;
    while (n < *count && others[n] != pid)
        n++;
    if (n == *count)
        others[(*count)++] = pid;
    snprintf(text, sizeof text, "new %d", n + 1);
    return text;
}

/* Lets all go on until nobody is left. Of several who run at once one is looked at after the other, so that the order is the same everywhere. */
static void follow(const char *title, int (*body)(void), long options) {
    printf("-- %s, options %lx\n", title, options);
    pid_t first = traced_child(body, options), others[8];
    int count = 0;
    ptrace(PTRACE_CONT, first, 0, 0);
    char lines[64][128];
    int shown = 0;
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0)
            break;
        const char *name = who(pid, first, others, &count);
        unsigned long message = 0;
        int event = status >> 16;
        char text[64] = "";
        if (WIFSTOPPED(status) && event && event != PTRACE_EVENT_STOP) {
            ptrace(PTRACE_GETEVENTMSG, pid, 0, &message);
            struct user_regs_struct regs = registers_of(pid);
            if (event == PTRACE_EVENT_EXIT)
                snprintf(text, sizeof text, ", message %lx", message);
            else if (event == PTRACE_EVENT_EXEC)
                snprintf(text, sizeof text, ", was %s, call %lld, rax %lld, rdi %lld", (pid_t)message == pid ? "itself" : "another", regs.orig_rax,
                         regs.rax, regs.rdi);
            else
                snprintf(text, sizeof text, ", new one %d, rax %lld", message != 0, regs.rax);
        }
        siginfo_t info;
        memset(&info, 0, sizeof info);
        if (WIFSTOPPED(status) && !event && !ptrace(PTRACE_GETSIGINFO, pid, 0, &info))
            snprintf(text, sizeof text, ", code %x, from %s", info.si_code, info.si_pid == 0 ? "nobody" : info.si_pid == pid ? "itself" : "another");
        if (WIFEXITED(status))
            snprintf(lines[shown++], sizeof *lines, "%s: exited with %d", name, WEXITSTATUS(status));
        else if (WIFSIGNALED(status))
            snprintf(lines[shown++], sizeof *lines, "%s: killed by %d", name, WTERMSIG(status));
        else
            snprintf(lines[shown++], sizeof *lines, "%s: stopped by %d event %s%s", name, WSTOPSIG(status), event_text(event), text);
        if (WIFSTOPPED(status)) {
            int signal = WSTOPSIG(status);
            int deliver = event || signal == SIGSTOP || signal == SIGTRAP ? 0 : signal;
            ptrace(PTRACE_CONT, pid, 0, deliver);
        }
    }
    /* Each one's events in their order. */
    char names[9][16];
    strcpy(names[0], "first");
    for (int n = 0; n < count; n++)
        snprintf(names[n + 1], sizeof *names, "new %d", n + 1);
    for (int n = 0; n <= count; n++)
        for (int line = 0; line < shown; line++)
            if (!strncmp(lines[line], names[n], strlen(names[n])))
                printf("%s\n", lines[line]);
    fflush(stdout);
}

static const long ALL = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEVFORKDONE |
                        PTRACE_O_TRACEEXIT;

/* Runs `body` in a process of its own, which is waited for. */
static void in_process(const char *title, int (*body)(void)) {
    TITLE(title);
    pid_t child = plain_child(body);
    int status;
    waitpid(child, &status, 0);
    show_status("tracer", status);
}

static int pauses(void) {
    for (;;)
        pause();
    return 0;
}

static int writes_when_continued(void) {
    raise(SIGSTOP);
    write(report_fd, "goes on", 7);
    return 0;
}

/* The tracer ends while its tracee is stopped: it goes on, without a tracer. */
static int leaves(void) {
    pid_t child = traced_child(writes_when_continued, 0);
    ptrace(PTRACE_CONT, child, 0, 0);
    int status;
    waitpid(child, &status, 0);
    return 0;
}

static int leaves_and_kills(void) {
    pid_t child = traced_child(pauses, PTRACE_O_EXITKILL);
    write(report_fd, &child, sizeof child);
    return 0;
}

static void ends_of_tracers(void) {
    int ends[2];
    pipe(ends);
    report_fd = ends[1];
    in_process("a tracer ends", leaves);
    char text[16] = "";
    read(ends[0], text, sizeof text - 1);
    printf("%s\n", text);
    in_process("a tracer ends, EXITKILL", leaves_and_kills);
    pid_t child = 0;
    read(ends[0], &child, sizeof child);
    for (int tries = 0; tries < 2000 && kill(child, 0) == 0; tries++)
        usleep(1000);
    printf("is there: %d\n", kill(child, 0) == 0);
}

static volatile pid_t *shared;

static int waits_to_be_attached(void) {
    while (!shared[1])
        usleep(1000);
    return 21;
}

/* A tracer that is not the parent: it is told first, the parent afterwards. */
static void not_the_parent(void) {
    TITLE("a tracer that is not the parent");
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = plain_child(waits_to_be_attached);
    fflush(stdout);
    pid_t tracer = fork();
    if (tracer == 0) {
        if (ptrace(PTRACE_SEIZE, child, 0, 0))
            printf("seize: %s\n", strerrorname_np(errno));
        shared[1] = 1;
        siginfo_t info = {0};
        /* It has ended, and nobody was told but the tracer. */
        waitid(P_PID, child, &info, WEXITED | WNOWAIT);
        printf("tracer: code %d status %d\n", info.si_code, info.si_status);
        shared[2] = 1;
        while (!shared[3])
            usleep(1000);
        wait_and_show("tracer's child", child);
        SHOW(waitpid(child, NULL, 0));
        _exit(0);
    }
    while (!shared[2])
        usleep(1000);
    siginfo_t info = {0};
    SHOW(waitid(P_PID, child, &info, WEXITED | WNOHANG));
    printf("parent is told of %d\n", info.si_pid != 0);
    shared[3] = 1;
    wait_and_show("tracer", tracer);
    wait_and_show("child", child);
}

int main(int argc, char **argv) {
    if (argc > 2)
        return atoi(argv[2]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    follow("fork", forks, 0);
    follow("fork", forks, ALL);
    follow("fork", forks, PTRACE_O_TRACEFORK);
    follow("vfork", vforks, ALL);
    follow("vfork", vforks, PTRACE_O_TRACEVFORKDONE);
    follow("clone", clones, ALL);
    follow("CLONE_UNTRACED", clones_untraced, ALL);
    follow("CLONE_PTRACE", clones_ptrace, 0);
    follow("a thread", makes_a_thread, ALL);
    follow("SIGKILL", kills_itself, ALL);
    follow("execve", executes, ALL);
    follow("execve", executes, 0);
    follow("execve that fails", fails_to_execute, ALL);
    follow("execve in a thread", executes_in_a_thread, ALL & ~PTRACE_O_TRACEEXIT);
    follow("execve in a thread", executes_in_a_thread, ALL);
    ends_of_tracers();
    not_the_parent();
    return 0;
}
