"""The file system: the read-only image below, a writable layer above, and their errors."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat

libc = ctypes.CDLL(None, use_errno=True)


def fails(name, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except OSError as error:
        print(name, errno.errorcode[error.errno])
    else:
        print(name, "did not fail")


def show(path):
    status = os.lstat(path)
    print(path, stat.filemode(status.st_mode), status.st_nlink, status.st_uid, status.st_size)


# Files of the image: read, changed, removed, replaced.
print(open("/etc/group").readline().strip())
with open("/etc/group", "a") as file:
    file.write("127.0.0.2\tadded\n")
print(open("/etc/group").read().count("\n"), open("/etc/group").read().split()[-1])
os.chmod("/etc/passwd", 0o600)
os.chown("/etc/group", 5, 6)
show("/etc/passwd")
show("/etc/group")
before = set(os.listdir("/etc"))
os.unlink("/etc/nsswitch.conf")
print(before - set(os.listdir("/etc")))
fails("removed", open, "/etc/nsswitch.conf")
open("/etc/nsswitch.conf", "w").write("new")
print(open("/etc/nsswitch.conf").read())
os.rename("/etc/resolv.conf", "/etc/resolv.conf.old")
print(sorted(set(os.listdir("/etc")) - before), os.path.exists("/etc/resolv.conf"))
held = open("/etc/passwd")
os.unlink("/etc/passwd")
print(held.read(4), os.fstat(held.fileno()).st_nlink)
os.mkdir("/srv/dir")
os.rename("/srv/dir", "/srv/dir2")
print(os.path.isdir("/srv/dir2"))

# Making, linking, renaming.
os.chdir("/tmp")
os.umask(0o027)
os.makedirs("a/b/c")
open("a/file", "w").write("content")
show("a")
show("a/file")
os.link("a/file", "a/hard")
os.symlink("file", "a/soft")
show("a/hard")
show("a/soft")
print(os.readlink("a/soft"), open("a/soft").read(), os.path.samefile("a/file", "a/hard"))
os.rename("a/hard", "a/b/moved")
os.replace("a/b/moved", "a/file")
print(sorted(os.listdir("a")), sorted(os.listdir("a/b")))
os.mkfifo("a/fifo", 0o644)
os.mknod("a/node", 0o644 | stat.S_IFREG)
print(sorted((e.name, e.is_dir(), e.is_symlink()) for e in os.scandir("a")))
fails("exists", os.mkdir, "a")
fails("exclusive", os.open, "a/file", os.O_CREAT | os.O_EXCL)
fails("not empty", os.rmdir, "a")
fails("not a directory", os.listdir, "a/file")
fails("through a file", open, "a/file/x")
fails("is a directory", open, "a", "w")
fails("unlink a directory", os.unlink, "a/b")
fails("rmdir a file", os.rmdir, "a/file")
fails("into itself", os.rename, "a", "a/b/c/d")
fails("link a directory", os.link, "a", "x")
fails("missing", os.stat, "nothing/there")
fails("empty path", os.stat, "")
fails("long name", os.stat, "x" * 256)
fails("long path", os.stat, "x/" * 2500)
os.symlink("loop", "loop")
fails("loop", open, "loop")
fails("no follow", os.open, "a/soft", os.O_RDONLY | os.O_NOFOLLOW)
fails("O_DIRECTORY", os.open, "a/file", os.O_RDONLY | os.O_DIRECTORY)
fails("bad descriptor", os.read, 999, 1)
fails("read of write-only", os.read, os.open("a/file", os.O_WRONLY), 1)
fails("write of read-only", os.write, os.open("a/file", os.O_RDONLY), b"x")

# Content: offsets, holes, appending, truncation, vectors, copies.
fd = os.open("data", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
print(os.write(fd, b"0123456789"), os.lseek(fd, 3, os.SEEK_SET), os.read(fd, 4))
print(os.pwrite(fd, b"XY", 1 << 20), os.fstat(fd).st_size, os.pread(fd, 4, 1 << 19))
print(os.fstat(fd).st_blocks * 512 < 1 << 19)
print(os.lseek(fd, 0, os.SEEK_HOLE) >= 10, os.lseek(fd, 4096 * 3, os.SEEK_DATA) > 4096 * 3)
fails("negative offset", os.lseek, fd, -1, os.SEEK_SET)
os.ftruncate(fd, 5)
os.ftruncate(fd, 12)
print(os.pread(fd, 100, 0))
os.lseek(fd, 0, os.SEEK_SET)
print(os.writev(fd, [b"ab", b"", b"cd"]), os.preadv(fd, [one := bytearray(3), two := bytearray(9)], 0), one, two)
appending = os.open("data", os.O_WRONLY | os.O_APPEND)
os.pwrite(appending, b"end", 0)
print(os.fstat(fd).st_size)
print(os.sendfile(os.open("sent", os.O_WRONLY | os.O_CREAT), fd, 1, 5), open("sent").read())
print(os.copy_file_range(fd, os.open("copied", os.O_WRONLY | os.O_CREAT), 4, 0), open("copied").read())
os.posix_fallocate(fd, 0, 100)
print(os.fstat(fd).st_size)
duplicate = os.dup(fd)
os.lseek(fd, 7, os.SEEK_SET)
print(os.lseek(duplicate, 0, os.SEEK_CUR), os.get_inheritable(duplicate))
os.fsync(fd)
os.fdatasync(fd)

# Times, unnamed files, locks, extended attributes, permissions.
os.utime("data", ns=(10**18 + 1, 10**18 + 2))
print(os.stat("data").st_atime_ns, os.stat("data").st_mtime_ns)
unnamed = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(unnamed, b"unnamed")
print(os.fstat(unnamed).st_nlink)
if libc.linkat(-100, f"/proc/self/fd/{unnamed}".encode(), -100, b"named", 0x400):
    print("linkat", errno.errorcode[ctypes.get_errno()])
print(open("named").read(), os.fstat(unnamed).st_nlink)
first, second = os.open("lock", os.O_RDWR | os.O_CREAT), os.open("lock", os.O_RDWR)
fcntl.flock(first, fcntl.LOCK_EX)
fails("flock", fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.flock(first, fcntl.LOCK_UN)
fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
os.setxattr("data", "user.colour", b"blue")
print(os.getxattr("data", "user.colour"), os.listxattr("data"))
fails("xattr exists", os.setxattr, "data", "user.colour", b"red", os.XATTR_CREATE)
os.removexattr("data", "user.colour")
fails("no xattr", os.getxattr, "data", "user.colour")
os.mkdir("closed", 0o700)
open("closed/secret", "w").write("s")
open("own", "w").write("s")
os.chmod("own", 0o600)
os.chmod("/tmp", 0o1777)
os.setegid(1000)
os.seteuid(1000)
fails("closed directory", os.listdir, "closed")
fails("in a closed directory", open, "closed/secret")
fails("another's file", open, "own")
fails("sticky", os.unlink, "own")
fails("chmod", os.chmod, "own", 0o777)
fails("chown", os.chown, "own", 0, 0)
print(os.access("own", os.R_OK), os.getuid(), os.geteuid())
os.seteuid(0)
os.setegid(0)
print(os.access("own", os.R_OK))

# Directories being read while they change; many entries; descriptors of directories.
os.mkdir("many")
for i in range(1500):
    os.close(os.open(f"many/{i:05}", os.O_CREAT | os.O_WRONLY))
for name in os.listdir("many"):
    if int(name) % 3:
        os.unlink(f"many/{name}")
print(len(os.listdir("many")), sorted(os.listdir("many"))[1])
directory = os.open("many", os.O_RDONLY)
print(os.stat("00003", dir_fd=directory).st_size, os.access("00004", os.F_OK, dir_fd=directory))
os.fchdir(directory)
print(os.getcwd())
print(os.statvfs("/tmp").f_bavail > 0, os.statvfs("/").f_namemax)
print(os.path.realpath("/proc/self/cwd"), os.readlink(f"/proc/self/fd/{directory}"))
with mmap.mmap(os.open("/usr/bin/python3.11", os.O_RDONLY), 4, prot=mmap.PROT_READ) as head:
    print(head[:4])
