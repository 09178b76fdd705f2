"""Threads that call often, one at a time."""

import os
import threading


def work():
    for _ in range(300):
        os.getppid()


for _ in range(5):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print("done")
