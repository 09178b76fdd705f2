"""A program for a VM under test: obeys lines on standard input, one answer each. Ready once /run/torpor/ready exists.

It keeps a counter and a growing map in memory, and a model of what it has mapped, which it compares with its memory.
"""

import ctypes
import hashlib
import json
import mmap
import os
import random
import select
import signal
import sys
import threading
import time
import uuid

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

count = 0
seen = {}
areas = {}  # address: [fill of each page or None where it is protected]
children = []  # (pid, pipe to it, pipe from it, number)
held = []
wiped = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
MADV_WIPEONFORK = 18
libc.madvise(ctypes.addressof(ctypes.c_char.from_buffer(wiped)), PAGE, MADV_WIPEONFORK)
wiped[:6] = b"secret"
timers = []
generation = open("/dev/vmgenid", "rb", buffering=0)
shown = mmap.mmap(generation.fileno(), PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
first_shown = shown[:16].hex()


def page_byte(address, page):
    return ctypes.c_ubyte.from_address(address + page * PAGE)


def do_map(pages, fill):
    address = libc.mmap(None, pages * PAGE, 3, 0x22, -1, 0)
    for page in range(pages):
        page_byte(address, page).value = (fill + page) % 255 + 1
    areas[address] = [(fill + page) % 255 + 1 for page in range(pages)]
    return address


def churn(seed):
    """Maps, unmaps, protects and forks, as the seed says."""
    chance = random.Random(seed)
    for _ in range(chance.randrange(5, 40)):
        what = chance.randrange(10)
        if what < 5 or not areas:
            do_map(chance.choice([1, 2, 17, 64, 600]), chance.randrange(255))
        elif what < 7:
            address = chance.choice(sorted(areas))
            libc.munmap(address, len(areas.pop(address)) * PAGE)
        elif what < 9:
            address = chance.choice(sorted(areas))
            page = chance.randrange(len(areas[address]))
            libc.mprotect(address + page * PAGE, PAGE, 0)
            areas[address][page] = None
        elif len(children) < 4:
            fork(chance.randrange(1 << 30))
    return len(areas)


def fork(number):
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # The child answers with its number and with whether its copy of everything is whole.
        own = bytearray(str(number).encode() * 1000)
        while os.read(to_read, 1):
            whole = own == bytearray(str(number).encode() * 1000) and not check_areas()
            os.write(from_write, f"{number} {whole}\n".encode())
        os._exit(0)
    os.close(to_read)
    os.close(from_write)
    children.append((pid, to_write, from_read, number))


def check_areas():
    wrong = []
    lines = open("/proc/self/maps").read().splitlines()
    ranges = []
    for line in lines:
        span, prot = line.split()[:2]
        start, end = (int(part, 16) for part in span.split("-"))
        ranges.append((start, end, prot))

    def prot_of(address):
        return next((prot for start, end, prot in ranges if start <= address < end), None)

    for address, pages in areas.items():
        for page, fill in enumerate(pages):
            prot = prot_of(address + page * PAGE)
            if fill is None:
                if prot != "---p":
                    wrong.append(f"{address + page * PAGE:#x}: {prot} instead of ---p")
            elif prot != "rw-p" or page_byte(address, page).value != fill:
                wrong.append(f"{address + page * PAGE:#x}: {prot}")
    return wrong


def check():
    wrong = check_areas()
    for _pid, to_child, from_child, number in children:
        os.write(to_child, b"?")
        answer = os.read(from_child, 100).decode().strip()
        if answer != f"{number} True":
            wrong.append(f"child {number}: {answer}")
    if any(seen[n] != (str(n) * 20) for n in seen):
        wrong.append("the map")
    return wrong


def obey(line):
    global count
    command, *args = line.split()
    if command == "count":
        count += 1
        seen[count] = str(count) * 20
        return count
    if command == "churn":
        return churn(int(args[0]))
    if command == "check":
        return {
            "wrong": check(),
            "count": count,
            "seen": len(seen),
            "areas": len(areas),
            "children": len(children),
        }
    if command == "identity":
        return {
            "instance": json.load(open("/run/torpor/instance")),
            "host": os.uname().nodename,
            "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
            "random": os.urandom(16).hex(),
            "uuid4": str(uuid.uuid4()),
            "device": open("/dev/urandom", "rb").read(8).hex(),
            "wiped": wiped[:6].decode("latin-1"),
        }
    if command == "generation":
        changed = bool(select.select([generation], [], [], 0)[0])
        mapped, read = shown[:16].hex(), generation.read(100).hex()
        again = bool(select.select([generation], [], [], 0)[0])
        return {"changed": changed, "mapped": mapped, "read": read, "again": again, "first": first_shown}
    if command == "clocks":
        return [
            time.clock_gettime(c)
            for c in (time.CLOCK_MONOTONIC, time.CLOCK_REALTIME, time.CLOCK_BOOTTIME)
        ]
    if command == "hold":
        held.append(args[0] * 1000)
        return len(held)
    if command == "dirty":
        held.append(os.urandom(int(args[0]) << 20))
        return len(held)
    if command == "noise":
        if args:
            held.append(os.urandom(int(args[0])))
        return hashlib.sha256(held[-1]).hexdigest()
    if command == "spin":
        threading.Thread(target=spin, daemon=True).start()
        return True
    if command == "alarm":
        signal.signal(signal.SIGALRM, lambda *_: timers.append(time.monotonic()))
        signal.setitimer(signal.ITIMER_REAL, float(args[0]))
        return time.monotonic()
    if command == "timers":
        return timers
    raise ValueError(command)


def spin():
    while True:
        pass


def main():
    os.makedirs("/run/torpor", exist_ok=True)
    open("/run/torpor/ready", "w").close()
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                answer = obey(line.decode())
            except Exception as error:
                answer = {"error": repr(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


main()
