"""Traces a child that makes system calls: for each line on standard input it goes on to the next stop, and tells of it."""

import ctypes
import json
import os
import signal
import sys

TRACEME, PEEKUSER, SYSCALL = 0, 3, 24
RAX, ORIG_RAX = 80, 120
ptrace = ctypes.CDLL(None).ptrace
ptrace.restype = ctypes.c_long
ptrace.argtypes = [ctypes.c_long] * 4

child = os.fork()
if child == 0:
    ptrace(TRACEME, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        os.getppid()
os.waitpid(child, 0)
for _ in sys.stdin:
    ptrace(SYSCALL, child, 0, 0)
    status = os.waitpid(child, 0)[1]
    rax, number = (ptrace(PEEKUSER, child, at, 0) for at in (RAX, ORIG_RAX))
    print(json.dumps([os.WSTOPSIG(status), number, rax]), flush=True)
