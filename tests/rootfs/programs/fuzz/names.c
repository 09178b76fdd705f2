/* Names in directories, and what inodes say of themselves. */
#include "fuzz.h"
#include <dirent.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static const unsigned modes[] = {0, 0644, 0600, 0755, 0444, 0222, 01777, 04755, 02755, 07777};

static void say_inode(const struct stat *s) {
    say(" mode %o links %lu uid %u gid %u size %ld", s->st_mode, s->st_nlink, s->st_uid, s->st_gid, S_ISDIR(s->st_mode) ? 0 : s->st_size);
    if (S_ISREG(s->st_mode))
        say(" blocks %ld", s->st_blocks);
    say(" block size %ld", s->st_blksize);
    if (s->st_rdev)
        say(" device %u:%u", major(s->st_rdev), minor(s->st_rdev));
}

static void look(void) {
    struct stat s;
    int flags = one_in(2) ? AT_SYMLINK_NOFOLLOW : 0;
    if (one_in(3)) {
        int fd = any_fd();
        say("fstat(%d)", fd);
        if (result(fstat(fd, &s)) == 0)
            say_inode(&s);
    } else {
        const char *name = any_name();
        say("fstatat(%s, %x)", name, flags);
        if (result(fstatat(AT_FDCWD, name, &s, flags)) == 0)
            say_inode(&s);
    }
}

static void look_extended(void) {
    struct statx s = {0};
    static const struct named flags[] = {NAMED(AT_SYMLINK_NOFOLLOW), NAMED(AT_EMPTY_PATH), NAMED(AT_STATX_FORCE_SYNC), NAMED(AT_REMOVEDIR)};
    int fd = one_in(3) ? any_fd() : AT_FDCWD;
    long set = pick_flags(flags, COUNT(flags), 4);
    const char *name = any_name();
    say("statx(%d, %s, %s)", fd, name, flag_names);
    if (result(statx(fd, name, set, STATX_BASIC_STATS, &s)) == 0)
        say(" mode %o links %u mask %x", s.stx_mode, s.stx_nlink, s.stx_mask & STATX_BASIC_STATS);
}

static void make(void) {
    const char *name = any_name();
    unsigned mode = PICK(modes);
    if (one_in(4)) {
        static const unsigned kinds[] = {S_IFREG, S_IFIFO, S_IFSOCK, S_IFCHR, 0, S_IFDIR, S_IFLNK};
        unsigned kind = PICK(kinds);
        say("mknod(%s, %o)", name, kind | mode);
        result(mknod(name, kind | mode, makedev(1, 3)));
    } else {
        say("mkdir(%s, %o)", name, mode);
        result(mkdir(name, mode | 0700));
    }
}

static void drop(void) {
    const char *name = any_name();
    switch (below(3)) {
    case 0:
        say("rmdir(%s)", name);
        result(rmdir(name));
        break;
    case 1:
        say("unlink(%s)", name);
        result(unlink(name));
        break;
    default:
        say("unlinkat(%s)", name);
        result(unlinkat(AT_FDCWD, name, one_in(2) ? AT_REMOVEDIR : one_in(4) ? 0x1 : 0));
    }
}

static void move(void) {
    static const unsigned flags[] = {0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_NOREPLACE | RENAME_EXCHANGE, 64};
    unsigned flag = PICK(flags);
    const char *from = any_name(), *to = any_name();
    say("renameat2(%s, %s, %x)", from, to, flag);
    result(renameat2(AT_FDCWD, from, AT_FDCWD, to, flag));
}

static void link_names(void) {
    const char *from = any_name(), *to = any_name();
    char target[100];
    switch (below(5)) {
    case 0:
        say("link(%s, %s)", from, to);
        result(link(from, to));
        break;
    case 1: {
        int flags = one_in(2) ? AT_SYMLINK_FOLLOW : one_in(2) ? AT_EMPTY_PATH : 0;
        int fd = flags == AT_EMPTY_PATH ? any_fd() : AT_FDCWD;
        say("linkat(%d, %s, %s, %x)", fd, flags == AT_EMPTY_PATH ? "" : from, to, flags);
        result(linkat(fd, flags == AT_EMPTY_PATH ? "" : from, AT_FDCWD, to, flags));
        break;
    }
    case 2:
        say("readlink(%s)", from);
        say_bytes(target, result(readlink(from, target, 1 + below(100))));
        break;
    default:
        say("symlink(%s, %s)", from, to);
        result(symlink(from, to));
    }
}

static int is_device(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISCHR(status.st_mode);
}

static void change_mode(void) {
    unsigned mode = PICK(modes);
    if (one_in(2)) {
        int fd = any_fd();
        if (is_device(fd)) /* the machine's own, natively */
            return;
        say("fchmod(%d, %o)", fd, mode);
        result(fchmod(fd, mode));
    } else {
        const char *name = any_name();
        say("chmod(%s, %o)", name, mode);
        result(chmod(name, mode));
    }
}

static void change_owner(void) {
    static const int ids[] = {-1, 0, 1000, 1001, 65534};
    const char *name = any_name();
    int uid = PICK(ids), gid = PICK(ids), flags = one_in(2) ? AT_SYMLINK_NOFOLLOW : 0;
    say("fchownat(%s, %d, %d, %x)", name, uid, gid, flags);
    result(fchownat(AT_FDCWD, name, uid, gid, flags));
}

static void check_access(void) {
    const char *name = any_name();
    int mode = below(9), flags = one_in(3) ? AT_EACCESS : one_in(3) ? AT_SYMLINK_NOFOLLOW : 0;
    say("faccessat2(%s, %d, %x)", name, mode, flags);
    result(faccessat(AT_FDCWD, name, mode, flags));
}

static void set_times(void) {
    static const long fractions[] = {0, 1, 999999999, 1000000000, UTIME_NOW, UTIME_OMIT, -1};
    const char *name = any_name();
    struct timespec times[2] = {{below(1 << 30), PICK(fractions)}, {below(1 << 30), PICK(fractions)}};
    say("utimensat(%s, %ld.%lx, %ld.%lx)", name, times[0].tv_sec, times[0].tv_nsec, times[1].tv_sec, times[1].tv_nsec);
    struct stat s;
    if (result(utimensat(AT_FDCWD, name, times, one_in(2) ? AT_SYMLINK_NOFOLLOW : 0)) == 0 && lstat(name, &s) == 0) {
        if (s.st_atim.tv_sec < 1 << 30)
            say(" accessed %ld.%09ld", s.st_atim.tv_sec, s.st_atim.tv_nsec);
        if (s.st_mtim.tv_sec < 1 << 30)
            say(" modified %ld.%09ld", s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
    }
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(void) {
    static const char *const places[] = {".", "d", "e", "l", "a"};
    const char *place = PICK(places);
    say("opendir(%s)", place);
    DIR *directory = opendir(place);
    result(directory ? 0 : -1);
    if (directory == NULL)
        return;
    char *found[100];
    unsigned count = 0;
    for (struct dirent *entry; count < COUNT(found) && (entry = readdir(directory));)
        if (asprintf(&found[count], "%s/%u", entry->d_name, entry->d_type) > 0)
            count++;
    closedir(directory);
    qsort(found, count, sizeof *found, by_name);
    for (unsigned i = 0; i < count; i++) {
        say(" %s", found[i]);
        free(found[i]);
    }
}

static void go(void) {
    static const char *const places[] = {".", "..", "/", "/", "d", "e", "a", "l", "missing"};
    char path[300];
    if (one_in(2)) {
        say("getcwd() %s", getcwd(path, sizeof path) ? path : strerrorname_np(errno));
    } else if (one_in(2)) {
        int fd = any_fd();
        say("fchdir(%d)", fd);
        result(fchdir(fd));
    } else {
        const char *place = PICK(places);
        say("chdir(%s)", place);
        result(chdir(place));
    }
}

static void set_umask(void) {
    static const unsigned masks[] = {022, 022, 0, 077, 0777, 07777};
    unsigned mask = PICK(masks);
    say("umask(%o) = %o", mask, umask(mask));
}

static void attributes(void) {
    static const char *const keys[] = {"user.a", "user.b", "trusted.a", "security.a", "system.a", "user.", "nothing"};
    const char *name = any_name(), *key = PICK(keys);
    char value[200];
    switch (below(4)) {
    case 0: {
        int flags = one_in(2) ? 0 : one_in(2) ? XATTR_CREATE : XATTR_REPLACE;
        unsigned size = below(50);
        say("setxattr(%s, %s, %u, %x)", name, key, size, flags);
        result(setxattr(name, key, some_bytes(50), size, flags));
        break;
    }
    case 1:
        say("getxattr(%s, %s)", name, key);
        say_bytes(value, result(getxattr(name, key, value, one_in(4) ? 3 : sizeof value)));
        break;
    case 2:
        say("listxattr(%s)", name);
        result(listxattr(name, value, one_in(4) ? 0 : sizeof value));
        break;
    default:
        say("removexattr(%s, %s)", name, key);
        result(removexattr(name, key));
    }
}

static const struct choice choices[] = {
    {look, 8}, {look_extended, 2}, {make, 8}, {drop, 5}, {move, 6}, {link_names, 8}, {change_mode, 3}, {change_owner, 2},
    {check_access, 3}, {set_times, 2}, {list, 4}, {go, 3}, {set_umask, 1}, {attributes, 4},
};
const struct subject names = {"names", choices, COUNT(choices)};
