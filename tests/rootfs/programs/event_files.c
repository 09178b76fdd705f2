/* splice and its kind, inotify and memfd at their edges: what is printed must be what it is natively. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static char data[200000];

static void fill(void) {
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = 'a' + i % 26;
}

static void show_data(long n) {
    unsigned sum = 0;
    for (long i = 0; i < n; i++)
        sum = sum * 31 + (unsigned char)data[i];
    printf("  %ld bytes, sum %u\n", n, sum);
}

static void splices(void) {
    TITLE("splice, tee, vmsplice");
    int a[2], b[2], f = open("/tmp/file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    loff_t at = 10, far = 1 << 20;
    pipe2(a, O_NONBLOCK), pipe2(b, O_NONBLOCK);
    fill();
    SHOW(write(f, data, 100000));
    SHOW(splice(f, NULL, f, NULL, 10, 0));
    SHOW(splice(f, &at, a[1], NULL, 5000, 0));
    printf("%ld\n", (long)at);
    SHOW(splice(f, NULL, a[1], NULL, 5000, 0));
    SHOW(splice(f, &far, a[1], NULL, 5000, 0));
    SHOW(splice(f, &at, a[1], &at, 5000, 0));
    SHOW(splice(a[0], &at, f, NULL, 5000, 0));
    SHOW(splice(f, &at, a[1], NULL, 0, 0));
    SHOW(splice(f, &at, a[1], NULL, 10, 0x100));
    SHOW(splice(a[1], NULL, f, NULL, 10, 0));
    SHOW(splice(999, NULL, f, NULL, 10, 0));
    SHOW(write(a[1], data, 10));
    SHOW(tee(a[0], b[1], 3000, 0));
    SHOW(tee(a[0], a[1], 3000, 0));
    SHOW(tee(f, a[1], 3000, 0));
    SHOW(splice(a[0], NULL, b[1], NULL, 4500, 0));
    SHOW(splice(a[0], NULL, a[1], NULL, 4500, 0));
    show_data(SHOW(read(b[0], data, sizeof data)));
    SHOW(tee(a[0], b[1], 3000, 0));
    SHOW(tee(b[0], a[1], 100000, 0));
    show_data(SHOW(read(a[0], data, sizeof data)));
    SHOW(splice(a[0], NULL, b[1], NULL, 10, 0));
    SHOW(splice(a[0], NULL, f, NULL, 10, 0));
    fill();
    SHOW(lseek(f, 50, SEEK_SET));
    SHOW(splice(b[0], NULL, f, NULL, 100000, 0));
    SHOW(lseek(f, 0, SEEK_CUR));
    at = 200000;
    write(b[1], data, 500);
    SHOW(splice(b[0], NULL, f, &at, 100, 0));
    printf("%ld\n", (long)at);
    struct stat s;
    fstat(f, &s);
    printf("size %ld\n", (long)s.st_size);
    at = 0;
    int appending = open("/tmp/file", O_WRONLY | O_APPEND);
    SHOW(splice(b[0], NULL, appending, NULL, 100, 0));
    int e = eventfd(1, 0);
    SHOW(splice(e, NULL, a[1], NULL, 8, 0));
    /* Until the pipe is full. */
    long n, total = 0;
    lseek(f, 0, SEEK_SET);
    while ((n = splice(f, NULL, a[1], NULL, 1000, 0)) > 0)
        total += n;
    printf("%ld in pieces of 1000\n", total);
    SHOW(splice(f, NULL, a[1], NULL, 1000, 0));
    show_data(SHOW(read(a[0], data, 500)));
    SHOW(write(a[1], data, 10));
    show_data(SHOW(read(a[0], data, sizeof data)));
    fill();
    struct iovec v[2] = {{data, 5000}, {data + 6000, 100}};
    SHOW(vmsplice(a[1], v, 2, 0));
    SHOW(vmsplice(f, v, 2, 0));
    SHOW(vmsplice(a[1], v, 2000, 0));
    struct iovec out[2] = {{data + 100000, 10}, {data + 100010, 6000}};
    SHOW(vmsplice(a[0], out, 2, 0));
    SHOW(memcmp(data, data + 100000, 5000));
    SHOW(vmsplice(a[0], out, 2, SPLICE_F_NONBLOCK));
    /* A slot is a page of the program's memory, or a part of one. */
    static char given[5 * 4096] __attribute__((aligned(4096)));
    struct iovec unaligned[2] = {{given + 4000, 4096}, {given + 12000, 10}};
    SHOW(fcntl(a[1], F_SETPIPE_SZ, 4 * 4096));
    SHOW(vmsplice(a[1], unaligned, 2, SPLICE_F_NONBLOCK));
    SHOW(fcntl(a[1], F_SETPIPE_SZ, 2 * 4096));
    SHOW(vmsplice(a[1], unaligned, 1, SPLICE_F_NONBLOCK));
    SHOW(vmsplice(a[1], unaligned, 1, SPLICE_F_NONBLOCK));
    SHOW(read(a[0], data, sizeof data));
    SHOW(fcntl(a[1], F_SETPIPE_SZ, 65536));
    close(a[1]);
    SHOW(splice(a[0], NULL, b[1], NULL, 10, 0));
    SHOW(tee(a[0], b[1], 10, 0));
    SHOW(splice(a[0], NULL, f, NULL, 10, 0));
    close(b[0]);
    signal(SIGPIPE, SIG_IGN);
    lseek(f, 0, SEEK_SET);
    SHOW(splice(f, NULL, b[1], NULL, 10, 0));
}

static void copies(void) {
    TITLE("sendfile, copy_file_range");
    int a = open("/tmp/from", O_RDWR | O_CREAT | O_TRUNC, 0600), b = open("/tmp/to", O_RDWR | O_CREAT | O_TRUNC, 0600);
    int reading = open("/tmp/to", O_RDONLY), appending = open("/tmp/to", O_WRONLY | O_APPEND), p[2];
    int directory = open("/tmp", O_RDONLY);
    off_t at = 100;
    loff_t in = 5, out = 7;
    pipe2(p, O_NONBLOCK);
    fill();
    write(a, data, 150000);
    SHOW(sendfile(b, a, &at, 1000));
    printf("%ld\n", (long)at);
    SHOW(lseek(a, 0, SEEK_CUR));
    SHOW(sendfile(b, a, NULL, 1000));
    lseek(a, 0, SEEK_SET);
    SHOW(sendfile(b, a, NULL, 1 << 30));
    SHOW(sendfile(b, a, NULL, 10));
    SHOW(sendfile(reading, a, NULL, 10));
    SHOW(sendfile(appending, a, NULL, 10));
    SHOW(sendfile(b, directory, NULL, 10));
    SHOW(sendfile(p[1], a, &at, 100000));
    SHOW(sendfile(p[1], a, &at, 100000));
    SHOW(sendfile(b, p[0], NULL, 10));
    at = -1;
    SHOW(sendfile(b, a, &at, 10));
    SHOW(lseek(b, 0, SEEK_SET));
    show_data(SHOW(read(b, data, sizeof data)));
    SHOW(ftruncate(b, 0));
    SHOW(copy_file_range(a, &in, b, &out, 1000, 0));
    printf("%ld %ld\n", (long)in, (long)out);
    SHOW(copy_file_range(a, &in, a, &in, 1000, 0));
    in = 0, out = 1000;
    SHOW(copy_file_range(a, &in, a, &out, 1000, 0));
    in = 0;
    SHOW(copy_file_range(a, &in, a, &out, 1001, 0) == -1);
    SHOW(copy_file_range(a, &in, b, &out, 10, 1));
    SHOW(copy_file_range(a, &in, reading, NULL, 10, 0));
    SHOW(copy_file_range(a, &in, appending, NULL, 10, 0));
    SHOW(copy_file_range(directory, NULL, b, NULL, 10, 0));
    SHOW(copy_file_range(p[0], NULL, b, NULL, 10, 0));
    in = 1 << 20;
    SHOW(copy_file_range(a, &in, b, NULL, 10, 0));
    SHOW(lseek(b, 0, SEEK_SET));
    show_data(SHOW(read(b, data, sizeof data)));
}

static int instance;

static void show_events(const char *what) {
    char buffer[4096] __attribute__((aligned(8)));
    int waiting = 0;
    ioctl(instance, FIONREAD, &waiting);
    long n = read(instance, buffer, sizeof buffer);
    printf("%s: %d bytes waiting, %ld read\n", what, waiting, n);
    for (long at = 0; at < n;) {
        struct inotify_event *event = (void *)(buffer + at);
        printf("  %d %x %s %s\n", event->wd, event->mask, event->cookie ? "cookie" : "-", event->len ? event->name : "");
        at += sizeof *event + event->len;
    }
    fflush(stdout);
}

static void watches(void) {
    TITLE("inotify");
    SHOW(inotify_init1(1));
    instance = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    mkdir("/tmp/watched", 0700), mkdir("/tmp/elsewhere", 0700);
    SHOW(inotify_add_watch(instance, "/tmp/watched", 0));
    SHOW(inotify_add_watch(instance, "/tmp/missing", IN_ALL_EVENTS));
    SHOW(inotify_add_watch(0, "/tmp/watched", IN_ALL_EVENTS));
    SHOW(inotify_add_watch(instance, "/tmp/watched", IN_ALL_EVENTS | IN_MASK_ADD | IN_MASK_CREATE));
    SHOW(inotify_add_watch(instance, "/tmp/watched", IN_ALL_EVENTS));
    SHOW(inotify_add_watch(instance, "/tmp/watched", IN_ALL_EVENTS | IN_MASK_CREATE));
    SHOW(inotify_add_watch(instance, "/tmp/file", IN_ALL_EVENTS | IN_ONLYDIR));
    show_events("nothing");
    int f = open("/tmp/watched/one", O_RDWR | O_CREAT, 0600);
    show_events("create");
    write(f, "abc", 3), write(f, "abc", 3);
    show_events("write");
    pread(f, data, 1, 0);
    show_events("read");
    fchmod(f, 0644), ftruncate(f, 1);
    show_events("chmod, truncate");
    close(f);
    show_events("close");
    rename("/tmp/watched/one", "/tmp/watched/two");
    show_events("rename");
    rename("/tmp/watched/two", "/tmp/elsewhere/three");
    show_events("move out");
    rename("/tmp/elsewhere/three", "/tmp/watched/a_name_of_more_than_sixteen_bytes");
    show_events("move in");
    link("/tmp/watched/a_name_of_more_than_sixteen_bytes", "/tmp/watched/link");
    show_events("link");
    symlink("nowhere", "/tmp/watched/symlink");
    show_events("symlink");
    mkdir("/tmp/watched/sub", 0700);
    show_events("mkdir");
    rmdir("/tmp/watched/sub");
    show_events("rmdir");
    unlink("/tmp/watched/link");
    show_events("unlink");
    int wd = SHOW(inotify_add_watch(instance, "/tmp/watched/a_name_of_more_than_sixteen_bytes", IN_ALL_EVENTS));
    f = open("/tmp/watched/a_name_of_more_than_sixteen_bytes", O_WRONLY);
    show_events("open twice watched");
    close(f);
    show_events("close twice watched");
    unlink("/tmp/watched/a_name_of_more_than_sixteen_bytes");
    show_events("unlink the watched file");
    SHOW(inotify_rm_watch(instance, wd));
    SHOW(inotify_rm_watch(instance, 1));
    show_events("removed");
    SHOW(inotify_rm_watch(instance, 1));
    SHOW(inotify_add_watch(instance, "/tmp/watched", IN_CREATE | IN_ONESHOT));
    close(open("/tmp/watched/four", O_CREAT | O_WRONLY, 0600));
    close(open("/tmp/watched/five", O_CREAT | O_WRONLY, 0600));
    show_events("oneshot");
    SHOW(inotify_add_watch(instance, "/tmp/watched", IN_DELETE_SELF | IN_MOVE_SELF));
    rename("/tmp/watched", "/tmp/renamed");
    show_events("move the directory");
    unlink("/tmp/renamed/four"), unlink("/tmp/renamed/five"), unlink("/tmp/renamed/symlink"), rmdir("/tmp/renamed");
    show_events("remove the directory");
    mkdir("/tmp/watched", 0700);
    SHOW(inotify_add_watch(instance, "/tmp/watched", IN_CREATE));
    close(open("/tmp/watched/six", O_CREAT | O_WRONLY, 0600));
    char small[16];
    SHOW(read(instance, small, sizeof small));
    struct pollfd p = {instance, POLLIN | POLLOUT, 0};
    SHOW(poll(&p, 1, 0));
    printf("%x\n", p.revents);
}

static void unmounted(void) {
    TITLE("inotify and a file system that ends");
    instance = inotify_init1(IN_NONBLOCK);
    mkdir("/tmp/mounted", 0700), mkdir("/tmp/bound", 0700);
    SHOW(mount("none", "/tmp/mounted", "tmpfs", 0, NULL));
    close(open("/tmp/mounted/file", O_CREAT | O_WRONLY, 0600));
    SHOW(inotify_add_watch(instance, "/tmp/mounted", IN_CREATE));
    SHOW(inotify_add_watch(instance, "/tmp/mounted/file", IN_MODIFY));
    SHOW(inotify_add_watch(instance, "/tmp", IN_CREATE));
    SHOW(mount("/tmp/mounted", "/tmp/bound", NULL, MS_BIND, NULL));
    SHOW(umount("/tmp/bound"));
    show_events("mounted elsewhere");
    SHOW(umount("/tmp/mounted"));
    show_events("mounted nowhere");
    SHOW(inotify_rm_watch(instance, 1));
}

static void memfds(void) {
    TITLE("memfd");
    char path[64], text[64], name[300];
    memset(name, 'x', sizeof name);
    name[250] = 0;
    SHOW(memfd_create(name, 0));
    name[249] = 0;
    SHOW(memfd_create(name, 0) >= 0);
    SHOW(memfd_create("x", 0x100));
    SHOW(syscall(SYS_memfd_create, 1, 0));
    int plain = memfd_create("plain", 0), fd = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    text[readlink(path, text, sizeof text - 1)] = 0;
    printf("%s\n", text);
    struct stat s;
    fstat(fd, &s);
    printf("mode %o links %d size %ld\n", s.st_mode, (int)s.st_nlink, (long)s.st_size);
    SHOW(fcntl(plain, F_GET_SEALS));
    SHOW(fcntl(plain, F_ADD_SEALS, F_SEAL_WRITE));
    SHOW(fcntl(fd, F_GET_SEALS));
    SHOW(write(fd, data, 5000));
    SHOW(fcntl(fd, F_ADD_SEALS, 0x1000));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
    SHOW(write(fd, data, 1));
    SHOW(ftruncate(fd, 6000));
    SHOW(ftruncate(fd, 4500));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    SHOW(ftruncate(fd, 4000));
    SHOW(fallocate(fd, 0, 0, 8192));
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    printf("mapped %d\n", map != MAP_FAILED);
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    map[1] = '!';
    munmap(map, 4096);
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    SHOW(pwrite(fd, "x", 1, 0));
    SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    errno = 0;
    map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    printf("shared and writable: %s\n", map == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    printf("shared: %s\n", map == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    SHOW(mprotect(map, 4096, PROT_READ | PROT_WRITE));
    map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    printf("private: %s %c\n", map == MAP_FAILED ? strerrorname_np(errno) : "mapped", map[1]);
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
    SHOW(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
    SHOW(fcntl(fd, F_GET_SEALS));
    int again = open(path, O_RDONLY);
    SHOW(fcntl(again, F_GET_SEALS));
    SHOW(fcntl(open("/tmp/file", O_RDWR), F_GET_SEALS));
    SHOW(fcntl(open("/tmp/file", O_RDWR), F_ADD_SEALS, F_SEAL_WRITE));
    int pipes[2];
    pipe(pipes);
    SHOW(fcntl(pipes[0], F_GET_SEALS));
}

int main(void) {
    splices();
    copies();
    watches();
    unmounted();
    memfds();
    return 0;
}
