/* ptrace(2) and many threads: each is stopped, asked and let go on by itself. Output as natively. */
#include "trace.h"
#include <dirent.h>
#include <sys/mman.h>

enum { THREADS = 40, ROUNDS = 50 };

static volatile int *go_on;

static void *calls(void *argument) {
    for (int n = 0; n < ROUNDS; n++)
        syscall(SYS_getppid);
    return argument;
}

static int makes_threads(void) {
    pthread_t threads[THREADS];
    for (int n = 0; n < THREADS; n++)
        pthread_create(&threads[n], NULL, calls, NULL);
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
    return 6;
}

/* As strace -f: every call of every thread, from its first on. */
static void followed(void) {
    TITLE("followed");
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE;
    pid_t first = traced_child(makes_threads, options);
    ptrace(PTRACE_SYSCALL, first, 0, 0);
    int calls = 0, made = 0, begun = 0, ended = 0, strange = 0;
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0)
            break;
        if (WIFEXITED(status)) {
            if (pid == first)
                show_status("first", status);
            else
                ended++;
            continue;
        }
        if (!WIFSTOPPED(status)) {
            strange++;
            continue;
        }
        if (status >> 8 == (SIGTRAP | PTRACE_EVENT_CLONE << 8))
            made++;
        else if (WSTOPSIG(status) == SIGSTOP)
            begun++;
        else if (WSTOPSIG(status) == (SIGTRAP | 0x80))
            calls += registers_of(pid).orig_rax == SYS_getppid;
        else
            strange++;
        ptrace(PTRACE_SYSCALL, pid, 0, 0);
    }
    printf("%d made, %d begun, %d ended, %d stops at getppid, %d strange\n", made, begun, ended, calls, strange);
}

static void *waits(void *argument) {
    while (!*go_on)
        usleep(1000);
    return argument;
}

static int has_threads(void) {
    pthread_t threads[THREADS];
    for (int n = 0; n < THREADS; n++)
        pthread_create(&threads[n], NULL, waits, NULL);
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
    return 8;
}

static int tasks(pid_t pid, pid_t *found) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *directory = opendir(path);
    int count = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (*entry->d_name != '.' && count <= THREADS)
            found[count++] = atoi(entry->d_name);
    if (directory)
        closedir(directory);
    return count;
}

/* As gdb -p: attaches to each thread, stops all, and detaches. */
static void attached(int seize) {
    printf("-- %s\n", seize ? "seized" : "attached");
    *go_on = 0;
    pid_t first = plain_child(has_threads), found[THREADS + 1];
    while (tasks(first, found) <= THREADS)
        usleep(1000);
    int ok = 0, stopped = 0, detached = 0;
    for (int n = 0; n <= THREADS; n++)
        ok += raw(seize ? PTRACE_SEIZE : PTRACE_ATTACH, found[n], 0, 0) == 0;
    for (int n = 0; n <= THREADS; n++) {
        int status;
        if (seize)
            raw(PTRACE_INTERRUPT, found[n], 0, 0);
        if (waitpid(found[n], &status, __WALL) == found[n] && WIFSTOPPED(status))
            stopped += seize ? status >> 16 == PTRACE_EVENT_STOP : WSTOPSIG(status) == SIGSTOP;
    }
    int read = 0;
    for (int n = 0; n <= THREADS; n++) {
        struct user_regs_struct regs = registers_of(found[n]);
        read += regs.rip != 0 && regs.fs_base != 0;
    }
    printf("%d attached, %d stopped, %d read\n", ok, stopped, read);
    kill(first, SIGSTOP);
    kill(first, SIGCONT);
    *go_on = 1;
    for (int n = 0; n <= THREADS; n++)
        detached += raw(PTRACE_DETACH, found[n], 0, 0) == 0;
    printf("%d detached\n", detached);
    int status;
    waitpid(first, &status, 0);
    show_status("first", status);
}

/* The whole group stops; some of it is traced. */
static void stopped_in_part(void) {
    TITLE("a stop of a process that is traced in part");
    *go_on = 0;
    pid_t first = plain_child(has_threads), found[THREADS + 1];
    while (tasks(first, found) <= THREADS)
        usleep(1000);
    for (int n = 1; n <= THREADS; n += 2)
        ptrace(PTRACE_SEIZE, found[n], 0, 0);
    kill(first, SIGSTOP);
    int status;
    /* The signal may have been shown to a thread that is traced. */
    int stops = 0, seen = 0;
    while (stops < THREADS / 2 || !seen) {
        pid_t pid = waitpid(-1, &status, __WALL | WUNTRACED);
        if (pid == first) {
            seen++;
            continue;
        }
        if (status >> 16 == PTRACE_EVENT_STOP) {
            stops++;
            raw(PTRACE_LISTEN, pid, 0, 0);
        } else {
            ptrace(PTRACE_CONT, pid, 0, WSTOPSIG(status));
        }
    }
    printf("%d stopped, parent told %d\n", stops, seen);
    *go_on = 1;
    kill(first, SIGCONT);
    int ended = 0;
    for (;;) {
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0)
            break;
        if (WIFSTOPPED(status))
            ptrace(PTRACE_CONT, pid, 0, status >> 16 ? 0 : WSTOPSIG(status));
        else if (pid == first)
            show_status("first", status);
        else
            ended++;
    }
    printf("%d threads ended\n", ended);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    go_on = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    followed();
    attached(0);
    attached(1);
    stopped_in_part();
    return 0;
}
