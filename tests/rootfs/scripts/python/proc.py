"""What programs read in /proc, /dev and /sys: its form, and what must agree with the rest."""

import ctypes
import errno
import mmap
import os
import re
import signal
import sys
import threading

status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
print(status["Name"], int(status["Pid"]) == os.getpid(), status["Uid"].split(), status["Threads"])
print(status["VmRSS"].endswith(" kB"), int(status["VmSize"].split()[0]) >= int(status["VmRSS"].split()[0]))
maps = [line.split(None, 5) for line in open("/proc/self/maps")]
print(all(re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", m[0]) and re.fullmatch(r"[r-][w-][x-][ps]", m[1]) for m in maps))
spans = [tuple(int(x, 16) for x in m[0].split("-")) for m in maps]
print(spans == sorted(spans), any("[stack]" in m[-1] for m in maps), any("[heap]" in m[-1] for m in maps))
print(any(m[-1].strip() == os.path.realpath(sys.executable) for m in maps), any("[vdso]" in m[-1] for m in maps))
print(os.readlink("/proc/self/exe") == os.path.realpath(sys.executable), os.readlink("/proc/self") == str(os.getpid()))
stat = open("/proc/self/stat").read()
print(stat.split()[0] == str(os.getpid()), stat[stat.rindex(")") + 2], len(stat.split()))
file = open("/etc/hosts")
print(os.readlink(f"/proc/self/fd/{file.fileno()}"), {"0", "1", "2"} <= set(os.listdir("/proc/self/fd")))
started, stop = threading.Barrier(4), threading.Event()
for _ in range(3):
    threading.Thread(target=lambda: (started.wait(), stop.wait())).start()
started.wait()
print(len(os.listdir("/proc/self/task")), open(f"/proc/self/task/{threading.get_native_id()}/comm").read())
stop.set()
print(open("/proc/self/cmdline", "rb").read().split(b"\0")[1:3], open("/proc/self/comm").read().strip())
print(b"HOME=/root" in open("/proc/self/environ", "rb").read().split(b"\0"))
print("processor" in open("/proc/cpuinfo").read(), "flags" in open("/proc/cpuinfo").read())
memory = dict(line.split(":") for line in open("/proc/meminfo"))
print({"MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapTotal"} <= set(memory))
print(len(open("/proc/loadavg").read().split()), float(open("/proc/uptime").read().split()[0]) > 0)
print(open("/proc/sys/kernel/ostype").read().strip(), open("/proc/version").read().startswith("Linux version"))
print(len(open("/proc/sys/kernel/random/boot_id").read()), int(open("/proc/sys/kernel/pid_max").read()) > 1000)
print(open("/proc/sys/vm/overcommit_memory").read().strip() in "012", "btime" in open("/proc/stat").read())
print(any(line.split()[1] == "/" for line in open("/proc/self/mounts")))
print(len(open("/proc/self/statm").read().split()), open("/proc/self/limits").readline().split()[0])
print(len(os.sched_getaffinity(0)) >= 1, (os.cpu_count() or 0) >= 1)
open("/dev/null", "w").write("x")
print(open("/dev/null").read() == "", open("/dev/zero", "rb").read(4), len(open("/dev/urandom", "rb").read(8)))
print(os.path.samefile("/dev/stdin", "/proc/self/fd/0"), os.path.isdir("/dev/shm"))
try:
    open("/dev/full", "w").write("x" * 100000)
except OSError as error:
    print(error.strerror)
for missing in ("/proc/999999", "/proc/self/nothing", "/sys/nothing"):
    print(missing, os.path.exists(missing))
print(os.uname().sysname, os.uname().machine, os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK"))


def attempt(work, *arguments):
    try:
        return work(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
page, prot_none = mmap.PAGESIZE, 0
at = libc.mmap(None, ctypes.c_size_t(2 * page), 3, 0x22, -1, ctypes.c_long(0))
libc.munmap(ctypes.c_void_p(at + page), ctypes.c_size_t(page))
ctypes.memmove(at, b"before", 6)
memory = os.open("/proc/self/mem", os.O_RDWR)
print(oct(os.fstat(memory).st_mode), os.fstat(memory).st_size, os.pread(memory, 6, at), os.pwrite(memory, b"after!", at))
print(ctypes.string_at(at, 6), len(os.pread(memory, 100, at + page - 10)), os.pwrite(memory, bytes(100), at + page - 10))
libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), prot_none)
print(os.pread(memory, 6, at), os.pwrite(memory, b"forced", at), os.pread(memory, 6, at))
print(attempt(os.pread, memory, 6, at + page), attempt(os.pwrite, memory, b"x", at + page), os.pread(memory, 0, 0))
print(os.lseek(memory, at, os.SEEK_SET) == at, os.read(memory, 6), attempt(os.lseek, memory, 0, os.SEEK_END))
child = os.fork()
if child == 0:
    os.setgroups([])
    os.setgid(1000)
    os.setuid(1000)
    print(attempt(os.open, f"/proc/{os.getppid()}/mem", os.O_RDONLY), attempt(os.open, "/proc/self/mem", os.O_RDONLY))
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
child = os.fork()
if child == 0:
    signal.pause()
other = os.open(f"/proc/{child}/mem", os.O_RDWR)
print(os.pwrite(other, b"theirs", at), os.pread(other, 6, at), os.pread(memory, 6, at))
os.kill(child, 9)
os.waitpid(child, 0)
print(os.pread(other, 6, at), os.pwrite(other, b"x", at))
