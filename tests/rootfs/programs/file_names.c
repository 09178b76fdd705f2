/* Names, attributes and permissions of files. What is printed must be what it is natively. */
#include "show.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>

static char buffer[70000];

static void mode(const char *path) {
    struct stat s;
    if (lstat(path, &s))
        printf("  %s: %s\n", path, strerrorname_np(errno));
    else
        printf("  %s: mode %o links %ld owner %d:%d\n", path, s.st_mode, S_ISDIR(s.st_mode) ? 0 : (long)s.st_nlink,
               s.st_uid, s.st_gid);
    fflush(stdout);
}

static void make(const char *path, int mode) {
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, mode);
    write(fd, path, strlen(path));
    close(fd);
}

/* Runs the body in a child, and waits for it. */
#define CHILD(...)                                                                                 \
    do {                                                                                           \
        fflush(stdout);                                                                            \
        if (fork() == 0) {                                                                         \
            __VA_ARGS__;                                                                               \
            fflush(stdout);                                                                        \
            _exit(0);                                                                              \
        }                                                                                          \
        wait(NULL);                                                                                \
    } while (0)

static void become(int uid, int gid) {
    syscall(SYS_setgroups, 0, NULL);
    syscall(SYS_setresgid, gid, gid, gid);
    syscall(SYS_setresuid, uid, uid, uid);
}

static void unnamed(void) {
    TITLE("O_TMPFILE");
    int fd = open(".", O_TMPFILE | O_RDWR, 0640);
    struct stat s;
    fstat(fd, &s);
    printf("mode %o links %ld\n", s.st_mode, (long)s.st_nlink);
    SHOW(write(fd, "text", 4));
    SHOW(linkat(fd, "", AT_FDCWD, "named", AT_EMPTY_PATH) == 0);
    mode("named");
    SHOW(linkat(fd, "", AT_FDCWD, "named", AT_EMPTY_PATH));
    SHOW(linkat(fd, "", AT_FDCWD, "second", 0));
    close(fd);
    fd = open(".", O_TMPFILE | O_RDWR | O_EXCL, 0640);
    SHOW(linkat(fd, "", AT_FDCWD, "third", AT_EMPTY_PATH));
    SHOW(open(".", O_TMPFILE | O_RDONLY, 0600));
    SHOW(open("named", O_TMPFILE | O_RDWR, 0600));
    SHOW(open("/proc", O_TMPFILE | O_RDWR, 0600));
    close(fd);
    fd = open("named", O_RDONLY);
    unlink("named");
    SHOW(linkat(fd, "", AT_FDCWD, "again", AT_EMPTY_PATH));
    close(fd);
}

static void renames(void) {
    TITLE("renameat2");
    make("a", 0600), make("b", 0644), mkdir("d", 0755), mkdir("e", 0700), make("d/in", 0600);
    SHOW(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE));
    SHOW(renameat2(AT_FDCWD, "a", AT_FDCWD, "c", RENAME_NOREPLACE));
    SHOW(renameat2(AT_FDCWD, "c", AT_FDCWD, "missing", RENAME_EXCHANGE));
    SHOW(renameat2(AT_FDCWD, "c", AT_FDCWD, "b", RENAME_EXCHANGE));
    mode("b"), mode("c");
    SHOW(renameat2(AT_FDCWD, "c", AT_FDCWD, "d", RENAME_EXCHANGE));
    mode("c"), mode("d"), mode("c/in");
    SHOW(renameat2(AT_FDCWD, "c", AT_FDCWD, "c/in", RENAME_EXCHANGE));
    SHOW(renameat2(AT_FDCWD, "c", AT_FDCWD, "d", RENAME_EXCHANGE | RENAME_NOREPLACE));
    SHOW(renameat2(AT_FDCWD, "c", AT_FDCWD, "d", RENAME_EXCHANGE | RENAME_WHITEOUT));
    SHOW(renameat2(AT_FDCWD, "c", AT_FDCWD, "d", 8));
    SHOW(renameat2(AT_FDCWD, "d", AT_FDCWD, "moved", RENAME_WHITEOUT));
    mode("d"), mode("moved");
    struct stat s;
    lstat("d", &s);
    printf("whiteout is %u:%u\n", major(s.st_rdev), minor(s.st_rdev));
    SHOW(rename("c", "e"));
    SHOW(rename("e", "moved"));
    SHOW(rename("moved", "e"));
    SHOW(rename("e", "e/below"));
    SHOW(rename("e/in", "e"));
    SHOW(rename(".", "x"));
    SHOW(rename("e/..", "x"));
    SHOW(rename("missing", "x"));
    SHOW(rename("moved/", "x"));
    SHOW(rename("e/", "f/"));
    SHOW(rename("moved", "/proc/x"));
    link("moved", "hard");
    SHOW(rename("moved", "hard"));
    mode("moved"), mode("hard");
    unlink("d"), unlink("moved"), unlink("hard"), unlink("b"), unlink("f/in"), rmdir("f");
}

static void of_the_image(void) {
    TITLE("what the image has: hard links, names that come back, directories");
    SHOW(link("/etc/passwd", "/etc/linked"));
    mode("/etc/linked");
    int fd = open("/etc/linked", O_WRONLY | O_APPEND), before = open("/etc/passwd", O_RDONLY);
    SHOW(write(fd, "added\n", 6));
    struct stat s, t;
    fstat(before, &s), fstat(fd, &t);
    printf("%d\n", s.st_size == t.st_size);
    SHOW(unlink("/etc/passwd"));
    mode("/etc/passwd"), mode("/etc/linked");
    SHOW(rename("/etc/linked", "/etc/passwd"));
    mode("/etc/passwd");
    SHOW(unlink("/etc/group"));
    SHOW(unlink("/etc/group"));
    SHOW(access("/etc/group", F_OK));
    make("/etc/group", 0600);
    mode("/etc/group");
    SHOW(rmdir("/var"));
    SHOW(rmdir("/var/tmp"));
    SHOW(rmdir("/var"));
    SHOW(mkdir("/var", 0711));
    SHOW(access("/var/tmp", F_OK));
    SHOW(chmod("/etc/hosts", 04755));
    mode("/etc/hosts");
    close(fd), close(before);
}

static void attributes(void) {
    TITLE("modes");
    umask(027);
    make("m", 0777), mkdir("md", 0777), mkfifo("mf", 0666), mknod("mn", S_IFREG | 04777, 0);
    mode("m"), mode("md"), mode("mf"), mode("mn");
    SHOW(umask(022));
    SHOW(mknod("mc", S_IFCHR | 0600, makedev(1, 3)));
    SHOW(mknod("mx", S_IFLNK | 0600, 0));
    SHOW(mknod("mx", S_IFDIR | 0600, 0));
    SHOW(mknod("mx", 0600, 0));
    SHOW(chmod("m", 07777));
    mode("m");
    SHOW(chown("m", 1, 2));
    mode("m");
    SHOW(chmod("m", 06755));
    SHOW(chown("m", -1, -1));
    mode("m");
    symlink("m", "link");
    SHOW(fchmodat(AT_FDCWD, "link", 0600, AT_SYMLINK_NOFOLLOW));
    SHOW(lchown("link", 5, 6));
    mode("link");
    int path = open("m", O_PATH), fd = open("m", O_RDONLY);
    SHOW(fchmod(path, 0600));
    SHOW(fchown(path, 1, 1));
    SHOW(fchmod(fd, 04711));
    SHOW(fchownat(path, "", 3, 4, AT_EMPTY_PATH));
    mode("m");
    SHOW(fchownat(path, "", 3, 4, 0));
    SHOW(fchownat(AT_FDCWD, "m", 3, 4, 0x8000));
    TITLE("set-group-ID directories, and who may set the bit");
    chown(".", 0, 1000), chmod(".", 02777);
    make("sg", 02775), mkdir("sgd", 0755);
    mode("sg"), mode("sgd");
    CHILD({
        become(1000, 1001);
        make("sg2", 02775), mkdir("sgd2", 0777);
        mode("sg2"), mode("sgd2");
        SHOW(chmod("sg2", 02755));
        mode("sg2");
    });
    CHILD({
        become(1000, 1000);
        SHOW(chmod("sg2", 06755));
        mode("sg2");
        int w = open("sg2", O_WRONLY);
        SHOW(write(w, "x", 1));
        mode("sg2");
        SHOW(chmod("sg2", 06755));
        SHOW(ftruncate(w, 0));
        mode("sg2");
        SHOW(chown("sg2", -1, 1000));
        SHOW(chown("sg2", 1001, -1));
        SHOW(chown("sg2", 1000, -1));
    });
    chmod(".", 0777), chown(".", 0, 0);
    TITLE("permissions");
    mkdir("closed", 0700), make("closed/in", 0666), mkdir("sticky", 01777), make("sticky/roots", 0666);
    make("secret", 0600), make("script", 0744), mkdir("list", 0744), make("list/in", 0666), mkdir("search", 0711),
        make("search/in", 0644);
    CHILD({
        become(1000, 1000);
        SHOW(open("closed/in", O_RDONLY));
        SHOW(open("secret", O_RDONLY));
        SHOW(access("secret", F_OK));
        SHOW(access("secret", R_OK));
        SHOW(access("script", X_OK));
        SHOW(stat("list/in", &(struct stat){}));
        SHOW(open("list", O_RDONLY) >= 0);
        SHOW(open("search", O_RDONLY));
        SHOW(open("search/in", O_RDONLY) >= 0);
        SHOW(open("search/in", O_WRONLY));
        SHOW(open("search/new", O_WRONLY | O_CREAT, 0600));
        SHOW(unlink("search/in"));
        SHOW(unlink("sticky/roots"));
        SHOW(rename("sticky/roots", "sticky/mine"));
        make("sticky/mine", 0600);
        SHOW(rename("sticky/mine", "sticky/roots"));
        SHOW(unlink("sticky/mine"));
        SHOW(chmod("secret", 0666));
        SHOW(utimensat(AT_FDCWD, "secret", NULL, 0));
        SHOW(utimensat(AT_FDCWD, "sticky/roots", NULL, 0));
        SHOW(utimensat(AT_FDCWD, "sticky/roots", (struct timespec[]){{1, 0}, {1, 0}}, 0));
        SHOW(utimensat(AT_FDCWD, "sticky/roots", (struct timespec[]){{0, UTIME_NOW}, {0, UTIME_OMIT}}, 0));
        SHOW(open("sticky/roots", O_RDONLY | O_NOATIME));
        SHOW(truncate("secret", 0));
        SHOW(mknod("sticky/dev", S_IFCHR | 0600, makedev(1, 3)));
        SHOW(chroot("sticky"));
        SHOW(link("secret", "sticky/linked"));
        SHOW(open("mc", O_RDONLY));
    });
    TITLE("times");
    make("t", 0644);
    struct timespec times[2] = {{1000000000, 123456789}, {2000000000, 987654321}};
    struct stat s;
    SHOW(utimensat(AT_FDCWD, "t", times, 0));
    stat("t", &s);
    printf("%ld.%09ld %ld.%09ld\n", (long)s.st_atim.tv_sec, s.st_atim.tv_nsec, (long)s.st_mtim.tv_sec,
           s.st_mtim.tv_nsec);
    times[0].tv_nsec = UTIME_OMIT, times[1] = (struct timespec){-5, 5};
    SHOW(utimensat(AT_FDCWD, "t", times, 0));
    stat("t", &s);
    printf("%ld.%09ld %ld.%09ld\n", (long)s.st_atim.tv_sec, s.st_atim.tv_nsec, (long)s.st_mtim.tv_sec,
           s.st_mtim.tv_nsec);
    times[1].tv_nsec = 1000000000;
    SHOW(utimensat(AT_FDCWD, "t", times, 0));
    SHOW(utimensat(AT_FDCWD, "missing", times, 0));
    times[1].tv_nsec = UTIME_OMIT;
    SHOW(utimensat(AT_FDCWD, "missing", times, 0));
    SHOW(utimensat(AT_FDCWD, "t", times, 0x8000));
    SHOW(utimensat(AT_FDCWD, "link", (struct timespec[]){{7, 0}, {8, 0}}, AT_SYMLINK_NOFOLLOW));
    lstat("link", &s);
    printf("%ld\n", (long)s.st_mtim.tv_sec);
    SHOW(syscall(SYS_utimensat, AT_FDCWD, NULL, NULL, 0));
    int t = open("t", O_RDONLY);
    SHOW(futimens(t, (struct timespec[]){{9, 0}, {10, 0}}));
    SHOW(syscall(SYS_utimensat, path, NULL, NULL, 0));
    SHOW(syscall(SYS_utime, "t", (long[]){11, 12}));
    SHOW(syscall(SYS_futimesat, AT_FDCWD, "t", (long[]){13, 5, 14, 6}));
    SHOW(syscall(SYS_utimes, "t", (long[]){13, 5, 14, 1000000}));
    stat("t", &s);
    printf("%ld.%09ld %ld.%09ld\n", (long)s.st_atim.tv_sec, s.st_atim.tv_nsec, (long)s.st_mtim.tv_sec,
           s.st_mtim.tv_nsec);
    close(t), close(path), close(fd);
    TITLE("statx");
    struct statx x;
    SHOW(statx(AT_FDCWD, "t", 0, STATX_BASIC_STATS, &x));
    printf("%o %lu %u %ld.%u\n", x.stx_mode, (unsigned long)x.stx_size, x.stx_nlink, (long)x.stx_mtime.tv_sec,
           x.stx_mtime.tv_nsec);
    SHOW(statx(AT_FDCWD, "", AT_EMPTY_PATH, STATX_MODE, &x));
    SHOW(statx(AT_FDCWD, "", 0, STATX_MODE, &x));
    SHOW(statx(1000, "t", 0, STATX_MODE, &x));
    SHOW(statx(AT_FDCWD, "t", 0x10, STATX_MODE, &x));
    SHOW(statx(AT_FDCWD, "t", AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC, STATX_MODE, &x));
    SHOW(statx(AT_FDCWD, "t", 0, 0x80000000, &x));
    SHOW(statx(AT_FDCWD, "t", 0, STATX_MODE, (void *)1));
    SHOW(statx(AT_FDCWD, "/", 0, STATX_BASIC_STATS, &x));
    printf("root of a mount: %d\n", !!(x.stx_attributes & STATX_ATTR_MOUNT_ROOT));
    SHOW(statx(AT_FDCWD, "t", 0, STATX_BASIC_STATS, &x));
    printf("root of a mount: %d, known: %d\n", !!(x.stx_attributes & STATX_ATTR_MOUNT_ROOT),
           !!(x.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT));
}

static void extended(void) {
    TITLE("extended attributes");
    make("x", 0644), mkdir("xd", 0755), symlink("x", "xl");
    SHOW(setxattr("x", "user.a", "12345", 5, 0));
    SHOW(setxattr("x", "user.a", "1", 1, XATTR_CREATE));
    SHOW(setxattr("x", "user.b", "1", 1, XATTR_REPLACE));
    SHOW(setxattr("x", "user.b", "", 0, 0));
    SHOW(setxattr("x", "user.b", "", 0, 8));
    SHOW(getxattr("x", "user.a", buffer, 100));
    SHOW(getxattr("x", "user.a", buffer, 3));
    SHOW(getxattr("x", "user.a", NULL, 0));
    SHOW(getxattr("x", "user.b", buffer, 3));
    SHOW(getxattr("x", "user.c", buffer, 3));
    SHOW(getxattr("x", "nothing.c", buffer, 3));
    SHOW(getxattr("x", "user.", buffer, 3));
    SHOW(getxattr("x", "", buffer, 3));
    SHOW(setxattr("x", "nothing.c", "1", 1, 0));
    SHOW(setxattr("x", "trusted.t", "1", 1, 0));
    SHOW(setxattr("x", "user.big", buffer, 65537, 0));
    memset(buffer, 'n', 300);
    memcpy(buffer, "user.", 5);
    buffer[256] = 0;
    SHOW(setxattr("x", buffer, "1", 1, 0) == -1 && errno == ERANGE);
    SHOW(lsetxattr("xl", "user.a", "1", 1, 0));
    SHOW(lgetxattr("xl", "user.a", buffer, 1));
    SHOW(llistxattr("xl", buffer, 100));
    SHOW(setxattr("mf", "user.a", "1", 1, 0));
    SHOW(removexattr("x", "user.a"));
    SHOW(removexattr("x", "user.a"));
    SHOW(removexattr("x", "trusted.t"));
    SHOW(listxattr("x", NULL, 0));
    SHOW(listxattr("x", buffer, 100));
    SHOW(listxattr("x", buffer, 3));
    SHOW(setxattr("xd", "user.d", "1", 1, 0));
    int path = open("x", O_PATH), fd = open("x", O_RDONLY);
    SHOW(fsetxattr(path, "user.a", "1", 1, 0));
    SHOW(fsetxattr(fd, "user.a", "1", 1, 0));
    CHILD({
        become(1000, 1000);
        SHOW(setxattr("x", "user.z", "1", 1, 0));
        SHOW(setxattr("x", "trusted.z", "1", 1, 0));
        SHOW(getxattr("x", "trusted.z", buffer, 1));
        SHOW(getxattr("x", "user.a", buffer, 1));
    });
    close(path), close(fd);
}

static void resolution(void) {
    TITLE("links and O_PATH");
    symlink("loop", "loop"), symlink("/etc", "abs"), symlink("missing", "dangling"), make("r", 0644);
    mkdir("dir", 0755), make("dir/in", 0644), symlink("../r", "dir/up");
    SHOW(open("loop", O_RDONLY));
    SHOW(open("loop", O_RDONLY | O_NOFOLLOW));
    SHOW(open("dangling", O_RDONLY));
    SHOW(open("dangling", O_WRONLY | O_CREAT | O_EXCL, 0600));
    SHOW(close(open("dangling", O_WRONLY | O_CREAT, 0600)));
    mode("missing");
    SHOW(readlink("abs", buffer, 100));
    SHOW(readlink("abs", buffer, 2));
    SHOW(readlink("abs", buffer, 0));
    SHOW(readlink("r", buffer, 100));
    SHOW(readlink("", buffer, 100));
    SHOW(readlink("r/x", buffer, 100));
    int link = open("abs", O_PATH | O_NOFOLLOW), file = open("r", O_PATH), dir = open("dir", O_PATH | O_DIRECTORY);
    SHOW(readlinkat(link, "", buffer, 100));
    SHOW(readlinkat(file, "", buffer, 100));
    SHOW(read(file, buffer, 1));
    SHOW(fcntl(file, F_GETFL) == O_PATH);
    SHOW(fcntl(file, F_SETFL, 0));
    SHOW(ioctl(file, 0x5401, buffer));
    SHOW(fsync(file));
    SHOW(lseek(file, 0, SEEK_CUR));
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED ? -1 : 0);
    SHOW(openat(dir, "in", O_RDONLY) >= 0);
    SHOW(openat(file, "in", O_RDONLY));
    SHOW(fchdir(file));
    SHOW(fchdir(dir));
    SHOW(access("in", F_OK));
    SHOW(chdir(".."));
    SHOW(faccessat(dir, "in", R_OK, AT_EACCESS));
    SHOW(syscall(SYS_faccessat2, dir, "", R_OK, AT_EMPTY_PATH));
    SHOW(syscall(SYS_faccessat2, dir, "in", 8, 0));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    SHOW(open(path, O_RDONLY) >= 0);
    SHOW(open(path, O_RDONLY | O_NOFOLLOW));
    snprintf(path, sizeof path, "/proc/self/fd/%d", link);
    SHOW(open(path, O_RDONLY));
    SHOW(open("r/", O_RDONLY));
    SHOW(open("dir/", O_RDONLY) >= 0);
    SHOW(open("new/", O_RDWR | O_CREAT, 0600));
    SHOW(open("dir", O_RDWR));
    SHOW(open("dir", O_RDONLY | O_CREAT, 0600));
    SHOW(open("r", O_RDONLY | O_DIRECTORY));
    SHOW(open("", O_RDONLY));
    SHOW(open(NULL, O_RDONLY));
    memset(buffer, 'p', 5000), buffer[4096] = 0;
    SHOW(open(buffer, O_RDONLY) == -1 && errno == ENAMETOOLONG);
    buffer[256] = 0;
    SHOW(open(buffer, O_RDONLY) == -1 && errno == ENAMETOOLONG);
    TITLE("openat2");
    struct {
        const char *path;
        unsigned long flags, resolve;
    } cases[] = {
        {"in", O_RDONLY, RESOLVE_BENEATH},         {"../r", O_RDONLY, RESOLVE_BENEATH},
        {"up", O_RDONLY, RESOLVE_BENEATH},         {"/etc/hosts", O_RDONLY, RESOLVE_BENEATH},
        {"up", O_RDONLY, RESOLVE_NO_SYMLINKS},     {"../r", O_RDONLY, RESOLVE_IN_ROOT},
        {"/in", O_RDONLY, RESOLVE_IN_ROOT},        {"/proc/self/exe", O_RDONLY, RESOLVE_NO_MAGICLINKS},
        {"/proc/version", O_RDONLY, RESOLVE_NO_XDEV}, {"in", O_RDONLY, RESOLVE_CACHED},
        {"in", O_RDONLY | O_TRUNC, RESOLVE_CACHED},   {"in", O_RDONLY, RESOLVE_BENEATH | RESOLVE_IN_ROOT},
        {"in", O_RDONLY, 0x1000},                  {"in", 1UL << 40, 0},
        {"in", O_PATH | O_CREAT, 0},               {"in", O_RDONLY, 0},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct open_how how = {.flags = cases[i].flags, .resolve = cases[i].resolve};
        errno = 0;
        int fd = syscall(SYS_openat2, dir, cases[i].path, &how, sizeof how);
        printf("%s %lx %lx: %s\n", cases[i].path, cases[i].flags, cases[i].resolve,
               fd >= 0 ? "opened" : strerrorname_np(errno));
        fflush(stdout);
        close(fd);
    }
    struct open_how how = {.flags = O_RDONLY, .mode = 0600};
    SHOW(syscall(SYS_openat2, dir, "in", &how, sizeof how));
    SHOW(syscall(SYS_openat2, dir, "in", &how, 8));
    SHOW(syscall(SYS_openat2, dir, "in", &how, 1 << 20));
    close(link), close(file), close(dir);
}

static int count(DIR *dir) {
    int n = 0;
    for (struct dirent *e; (e = readdir(dir));)
        n += e->d_name[0] != '.';
    return n;
}

static void directories(void) {
    TITLE("directories");
    mkdir("many", 0755);
    for (int i = 0; i < 500; i++) {
        snprintf(buffer, 100, "many/entry%d", i);
        make(buffer, 0600);
    }
    DIR *dir = opendir("many");
    printf("%d\n", count(dir));
    rewinddir(dir);
    /* Every entry that stays is seen once, whatever becomes of the others. */
    int seen[500] = {0}, n = 0, bad = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        int number;
        if (sscanf(e->d_name, "entry%d", &number) != 1)
            continue;
        seen[number]++;
        if (++n % 3 == 0) {
            snprintf(buffer, 100, "many/new%d", n);
            make(buffer, 0600);
        }
        if (number % 2) {
            snprintf(buffer, 100, "many/entry%d", number);
            unlink(buffer);
        }
    }
    for (int i = 0; i < 500; i++)
        bad += seen[i] != 1;
    printf("seen otherwise than once: %d\n", bad);
    rewinddir(dir);
    printf("%d\n", count(dir) > 250);
    closedir(dir);
    int fd = open("many", O_RDONLY), file = open("r", O_RDONLY);
    SHOW(syscall(SYS_getdents64, fd, buffer, 10));
    SHOW(syscall(SYS_getdents64, file, buffer, 1000));
    SHOW(syscall(SYS_getdents64, fd, 1, 1000));
    SHOW(syscall(SYS_getdents64, fd, buffer, 1000) > 0);
    SHOW(syscall(SYS_getdents, fd, buffer, 1000) > 0);
    SHOW(lseek(fd, 0, SEEK_SET));
    mkdir("gone", 0755);
    int gone = open("gone", O_RDONLY);
    rmdir("gone");
    SHOW(syscall(SYS_getdents64, gone, buffer, 1000));
    SHOW(openat(gone, "new", O_CREAT | O_RDWR, 0600));
    SHOW(mkdirat(gone, "new", 0600));
    SHOW(openat(gone, ".", O_RDONLY) >= 0);
    SHOW(openat(gone, "..", O_RDONLY) >= 0);
    SHOW(fchdir(gone));
    SHOW(getcwd(buffer, 100) == NULL ? -1 : 0);
    SHOW(chdir("/tmp/names"));
    SHOW(getcwd(buffer, 5) == NULL ? -1 : 0);
    SHOW(rmdir("many"));
    SHOW(rmdir("r"));
    SHOW(rmdir("."));
    SHOW(rmdir("many/.."));
    SHOW(rmdir("/"));
    SHOW(unlink("many"));
    SHOW(unlink("r/"));
    SHOW(unlink("missing/x"));
    SHOW(unlinkat(AT_FDCWD, "many", 1));
    SHOW(mkdir("many", 0755));
    SHOW(mkdir("missing2/x", 0755));
    SHOW(link("many", "hard"));
    SHOW(link("r", "many"));
    SHOW(link("abs", "hardlink"));
    mode("hardlink");
    SHOW(linkat(AT_FDCWD, "dangling", AT_FDCWD, "followed", AT_SYMLINK_FOLLOW));
    mode("followed");
    SHOW(symlink("", "empty"));
    SHOW(symlink("x", "r"));
    struct statfs s;
    SHOW(statfs("/tmp", &s));
    printf("%d %ld\n", s.f_blocks > s.f_bfree, (long)s.f_namelen);
    SHOW(fstatfs(fd, &s));
    SHOW(statfs("missing9", &s));
    close(fd), close(gone), close(file);
}

int main(void) {
    chmod("/tmp", 01777);
    mkdir("/tmp/names", 0777), chmod("/tmp/names", 0777), chdir("/tmp/names");
    unnamed();
    renames();
    of_the_image();
    attributes();
    extended();
    resolution();
    directories();
    return 0;
}
