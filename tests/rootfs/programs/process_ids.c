/* Credentials, limits, masks, roots and namespaces at their edges: output as natively, as far as a container allows. */
#include "show.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void in_child(void (*body)(void)) {
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        body();
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    if (status) printf("status %x\n", status);
}

static void show_ids(void) {
    uid_t r, e, s;
    gid_t gr, ge, gs;
    getresuid(&r, &e, &s);
    getresgid(&gr, &ge, &gs);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    syscall(SYS_capget, &header, data);
    printf("uid %d %d %d gid %d %d %d setuid %d %d\n", r, e, s, gr, ge, gs, data[0].effective >> CAP_SETUID & 1,
           data[0].permitted >> CAP_SETUID & 1);
}

static void users(void) {
    TITLE("user ids");
    show_ids();
    SHOW(setreuid(1000, 1001));
    show_ids();
    SHOW(setuid(1002));
    SHOW(setuid(1000));
    show_ids();
    SHOW(seteuid(1001));
    show_ids();
    SHOW(setresuid(-1, -1, 0));
    SHOW(setresuid(1001, 1000, 1001));
    show_ids();
    SHOW(setreuid(-1, 1001));
    show_ids();
    SHOW(setgid(5));
    SHOW(setgroups(0, NULL));
    SHOW(getgroups(-1, NULL));
}

static void temporarily(void) {
    TITLE("effective ids");
    SHOW(seteuid(1000));
    show_ids();
    SHOW(seteuid(0));
    show_ids();
    SHOW(setfsuid(1000));
    SHOW(setfsuid(-1));
    SHOW(setfsuid(0));
    gid_t groups[4] = {7, 5, 6, 5};
    SHOW(setgroups(4, groups));
    memset(groups, 0, sizeof groups);
    SHOW(getgroups(0, NULL));
    SHOW(getgroups(3, groups));
    SHOW(getgroups(4, groups));
    printf("%d %d %d %d\n", groups[0], groups[1], groups[2], groups[3]);
    SHOW(setgroups(70000, groups));
    SHOW(setgroups(2, (void *)8));
    SHOW(setresgid(1, 2, 3));
    show_ids();
    SHOW(prctl(PR_SET_KEEPCAPS, 1));
    SHOW(setuid(1000));
    show_ids();
    SHOW(prctl(PR_GET_KEEPCAPS));
}

static void capabilities(void) {
    TITLE("capabilities");
    struct __user_cap_header_struct header = {0x12345678, 0};
    struct __user_cap_data_struct data[2];
    SHOW(syscall(SYS_capget, &header, data));
    printf("%x\n", header.version);
    SHOW(syscall(SYS_capget, &header, NULL));
    header.pid = -1;
    SHOW(syscall(SYS_capget, &header, data));
    header.pid = 99999999;
    SHOW(syscall(SYS_capget, &header, data));
    header.pid = 0;
    SHOW(syscall(SYS_capget, &header, data));
    data[0].effective &= ~(1u << CAP_KILL);
    SHOW(syscall(SYS_capset, &header, data));
    data[0].permitted &= ~(1u << CAP_KILL);
    SHOW(syscall(SYS_capset, &header, data));
    data[0].permitted |= 1u << CAP_KILL;
    SHOW(syscall(SYS_capset, &header, data));
    header.pid = 1;
    SHOW(syscall(SYS_capset, &header, data));
    SHOW(prctl(PR_CAPBSET_READ, CAP_KILL));
    SHOW(prctl(PR_CAPBSET_DROP, CAP_KILL));
    SHOW(prctl(PR_CAPBSET_READ, CAP_KILL));
    SHOW(prctl(PR_CAPBSET_READ, 99));
    SHOW(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    SHOW(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    SHOW(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SHOW(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    SHOW(prctl(PR_GET_SECUREBITS));
    SHOW(prctl(PR_GET_DUMPABLE));
    SHOW(prctl(PR_SET_DUMPABLE, 2));
    SHOW(prctl(PR_SET_DUMPABLE, 0));
    SHOW(prctl(PR_GET_DUMPABLE));
    char name[16] = "";
    SHOW(prctl(PR_SET_NAME, "a name that is far too long"));
    SHOW(prctl(PR_GET_NAME, name));
    printf("%s\n", name);
    SHOW(prctl(PR_SET_NAME, 8));
    SHOW(prctl(99999));
    SHOW(prctl(PR_GET_TIMERSLACK));
    SHOW(prctl(PR_SET_TIMERSLACK, 1));
    SHOW(prctl(PR_GET_TIMERSLACK));
}

static void killing(void) {
    TITLE("who may send signals");
    pid_t root = getppid();
    /* Whatever was inherited: */
    struct rlimit limit = {0, 0};
    SHOW(setrlimit(RLIMIT_NICE, &limit));
    SHOW(setpriority(PRIO_PROCESS, 0, 0));
    SHOW(setresuid(1000, 1000, 1000));
    SHOW(kill(root, 0));
    SHOW(kill(1, 0));
    SHOW(kill(1, SIGTERM));
    SHOW(kill(getpid(), 0));
    SHOW(setpriority(PRIO_PROCESS, 0, -5));
    SHOW(setpriority(PRIO_PROCESS, root, 5));
    SHOW(setpriority(PRIO_PROCESS, 0, 5));
    errno = 0;
    SHOW(getpriority(PRIO_PROCESS, 0));
    SHOW(setpriority(PRIO_PROCESS, 0, 4));
    SHOW(getpriority(7, 0));
    SHOW(getpriority(PRIO_PROCESS, 99999999));
    SHOW(nice(100));
    SHOW(getpriority(PRIO_PROCESS, 0));
}

static void limits(void) {
    TITLE("limits");
    struct rlimit limit = {10, 5}, old;
    SHOW(setrlimit(RLIMIT_NOFILE, &limit));
    SHOW(setrlimit(99, &limit));
    SHOW(getrlimit(99, &limit));
    SHOW(prlimit(99999999, RLIMIT_NOFILE, NULL, &old));
    SHOW(prlimit(-1, RLIMIT_NOFILE, NULL, &old));
    limit = (struct rlimit){20, 30};
    SHOW(setrlimit(RLIMIT_NOFILE, &limit));
    SHOW(dup2(0, 19));
    SHOW(dup2(0, 20));
    SHOW(fcntl(0, F_DUPFD, 20));
    SHOW(prlimit(0, RLIMIT_NOFILE, NULL, &old));
    printf("%ld %ld\n", (long)old.rlim_cur, (long)old.rlim_max);
    limit = (struct rlimit){0, 0};
    SHOW(setrlimit(RLIMIT_CORE, &limit));
    SHOW(setresuid(1000, 1000, 1000));
    limit = (struct rlimit){20, 31};
    SHOW(setrlimit(RLIMIT_NOFILE, &limit));
    SHOW(prlimit(getppid(), RLIMIT_NOFILE, NULL, &old));
    limit = (struct rlimit){0, 0};
    SHOW(setrlimit(RLIMIT_NPROC, &limit));
    SHOW(fork());
}

static void processor_limit(void) {
    struct rlimit limit = {0, 0};
    getrlimit(RLIMIT_CPU, &limit);
    limit.rlim_cur = 1;
    setrlimit(RLIMIT_CPU, &limit);
    for (;;);
}

static void masks(void) {
    TITLE("umask and chroot");
    struct stat st;
    SHOW(umask(027));
    SHOW(umask(07777));
    SHOW(umask(027));
    int fd = open("/tmp/masked", O_RDWR | O_CREAT | O_TRUNC, 0666);
    fstat(fd, &st);
    printf("%o\n", st.st_mode);
    unlink("/tmp/masked");
    mkdir("/tmp/root", 0755);
    mkdir("/tmp/root/inner", 0755);
    SHOW(chroot("/tmp/missing"));
    SHOW(chroot("/proc/self/stat"));
    int outside = open("/", O_RDONLY | O_DIRECTORY);
    SHOW(chroot("/tmp/root"));
    char cwd[256] = "";
    SHOW(syscall(SYS_getcwd, cwd, sizeof cwd) > 0);
    printf("%d\n", strncmp(cwd, "(unreachable)/", 14));
    SHOW(chdir("/"));
    SHOW(chdir("../../.."));
    SHOW(access("inner", F_OK));
    SHOW(access("/tmp", F_OK));
    SHOW(fchdir(outside));
    SHOW(access("tmp/root", F_OK));
    SHOW(chroot("."));
    SHOW(access("/tmp/root", F_OK));
    rmdir("/tmp/root/inner");
    rmdir("/tmp/root");
    SHOW(setresuid(1000, 1000, 1000));
    SHOW(chroot("/"));
}

static void namespaces(void) {
    TITLE("namespaces");
    const char *names[] = {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"};
    for (unsigned n = 0; n < sizeof names / sizeof names[0]; n++) {
        char path[64], target[64] = "";
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[n]);
        long len = readlink(path, target, sizeof target - 1);
        struct stat st, same;
        int fd = open(path, O_RDONLY), ok = fd >= 0 && fstat(fd, &st) == 0 && stat(path, &same) == 0;
        char expected[64];
        if (ok) snprintf(expected, sizeof expected, "%s:[%lu]", strstr(names[n], "pid") ? "pid" : strstr(names[n], "time") ? "time" : names[n], st.st_ino);
        printf("%s link %d open %d number %d mode %o\n", names[n], len > 0, fd >= 0, ok && !strcmp(expected, target), ok ? st.st_mode : 0);
        if (fd >= 0) close(fd);
    }
    SHOW(setresuid(1000, 1000, 1000));
    SHOW(unshare(CLONE_NEWNS));
    SHOW(unshare(CLONE_NEWNET | CLONE_NEWPID));
    SHOW(unshare(1));
    SHOW(unshare(CLONE_FS | CLONE_FILES | CLONE_SYSVSEM));
    SHOW(unshare(0));
    SHOW(setns(-1, 0));
    SHOW(setns(0, 0));
    SHOW(mount("none", "/tmp", "tmpfs", 0, NULL));
    SHOW(umount("/tmp"));
    SHOW(syscall(SYS_clone, CLONE_NEWUTS | SIGCHLD, 0, 0, 0, 0));
    SHOW(sethostname("x", 1));
}

static void io_priorities(void) {
    TITLE("I/O priorities");
    enum { PROCESS = 1, GROUP, USER };
    setpgid(0, 0); /* what others run as is not known */
    SHOW(syscall(SYS_ioprio_get, PROCESS, 0)), SHOW(syscall(SYS_ioprio_get, PROCESS, getpid()));
    static const int values[] = {0x4003, 0x4007, 0x2000, 0x2004, 0x6000, 0x6003, 0x4002, 0, 3, 0x8000, 0xe000, 0x4108, -1, 1 << 20 | 0x4001};
    for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
        printf("%x\n", values[i]);
        SHOW(syscall(SYS_ioprio_set, PROCESS, 0, values[i])), SHOW(syscall(SYS_ioprio_get, PROCESS, 0));
    }
    SHOW(syscall(SYS_ioprio_set, GROUP, 0, 0x4005)), SHOW(syscall(SYS_ioprio_get, GROUP, 0));
    SHOW(syscall(SYS_ioprio_get, PROCESS, 99999999)), SHOW(syscall(SYS_ioprio_set, PROCESS, 99999999, 0x4001));
    SHOW(syscall(SYS_ioprio_get, GROUP, 99999999)), SHOW(syscall(SYS_ioprio_get, USER, 99999999));
    SHOW(syscall(SYS_ioprio_get, 0, 0)), SHOW(syscall(SYS_ioprio_get, 4, 0)), SHOW(syscall(SYS_ioprio_set, 4, 0, 0x4001));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        SHOW(syscall(SYS_ioprio_get, PROCESS, 0)), SHOW(syscall(SYS_ioprio_set, PROCESS, 0, 0x6000)), SHOW(syscall(SYS_ioprio_get, GROUP, 0));
        _exit(0);
    }
    waitpid(child, NULL, 0);
    setuid(1000);
    SHOW(syscall(SYS_ioprio_set, PROCESS, 0, 0x2000)), SHOW(syscall(SYS_ioprio_set, PROCESS, 0, 0x4001)), SHOW(syscall(SYS_ioprio_set, PROCESS, 0, 0x6000));
    SHOW(syscall(SYS_ioprio_set, PROCESS, getppid(), 0x4001));
    SHOW(syscall(SYS_ioprio_get, USER, 1000));
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    in_child(users);
    in_child(temporarily);
    in_child(capabilities);
    in_child(killing);
    in_child(limits);
    in_child(io_priorities);
    TITLE("processor time");
    in_child(processor_limit);
    in_child(masks);
    in_child(namespaces);
    return 0;
}
