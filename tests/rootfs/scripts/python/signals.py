"""Signals, interval timers and interrupted calls, as Python uses them."""

import os
import select
import signal
import sys
import threading
import time

seen = []
for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), lambda number, frame: seen.append(signal.Signals(number).name))
os.kill(os.getpid(), signal.SIGUSR1)
signal.raise_signal(signal.SIGTERM)
signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
print(seen)
signal.setitimer(signal.ITIMER_REAL, 0.02)
began = time.monotonic()
time.sleep(0.1)
print(seen[-1], time.monotonic() - began >= 0.1)
signal.alarm(1)
print(signal.alarm(0) == 1, signal.getitimer(signal.ITIMER_REAL)[0])


class Interrupted(Exception):
    pass


def interrupt(number, frame):
    raise Interrupted


signal.signal(signal.SIGALRM, interrupt)
ends = os.pipe()
for call in (lambda: os.read(ends[0], 1), lambda: select.select([ends[0]], [], []), signal.pause):
    try:
        # Once more for a machine that is so slow that the first one comes before the call has begun.
        signal.setitimer(signal.ITIMER_REAL, 0.01, 2)
        call()
    except Interrupted:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("interrupted")
try:
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    while True:
        pass
except Interrupted:
    print("a busy loop too")
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.kill(os.getpid(), signal.SIGUSR2)
print(signal.sigpending() == {signal.SIGUSR2}, signal.sigwait({signal.SIGUSR2}).name)
print(signal.sigtimedwait({signal.SIGUSR2}, 0.01))
read_end, write_end = os.pipe()
os.set_blocking(write_end, False)
signal.set_wakeup_fd(write_end)
os.kill(os.getpid(), signal.SIGUSR1)
print(os.read(read_end, 10))
signal.set_wakeup_fd(-1)
seen.clear()
killer = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGUSR1))
killer.start()
killer.join()
print(seen)
print(signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGPIPE).name)
try:
    signal.signal(signal.SIGKILL, signal.SIG_IGN)
except OSError as error:
    print(error.strerror)
sys.stdout.flush()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
print("still here")
