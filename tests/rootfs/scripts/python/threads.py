"""threading, queue and concurrent.futures."""

import concurrent.futures
import queue
import sys
import threading
import time

sys.setswitchinterval(1e-5)
total, lock, local = 0, threading.Lock(), threading.local()


def add(step: int) -> None:
    global total
    local.mine = 0
    for _ in range(5000):
        with lock:
            total += step
        local.mine += step
    assert local.mine == 5000 * step


threads = [threading.Thread(target=add, args=(i,), name=f"adder-{i}") for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("total", total)

jobs: queue.Queue[int | None] = queue.Queue(maxsize=4)
done: list[int] = []


def work() -> None:
    while (job := jobs.get()) is not None:
        done.append(job * job)


workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
for i in range(200):
    jobs.put(i)
for _ in workers:
    jobs.put(None)
for worker in workers:
    worker.join()
print("squares", sum(done), len(done))

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print("pool", sum(pool.map(lambda n: n**3, range(100))))

event, order = threading.Event(), []
timer = threading.Timer(0.03, lambda: (order.append("timer"), event.set()))
timer.start()
print("not yet", event.wait(0.001))
print("set", event.wait(10))
condition = threading.Condition()


def wake() -> None:
    time.sleep(0.01)
    with condition:
        condition.notify_all()


waker = threading.Thread(target=wake)
with condition:
    waker.start()
    print("notified", condition.wait(10))
waker.join()
barrier = threading.Barrier(3)
waiters = [threading.Thread(target=barrier.wait) for _ in range(2)]
for waiter in waiters:
    waiter.start()
barrier.wait(10)
for waiter in waiters:
    waiter.join()
print("barrier passed, threads left:", threading.active_count())
print("stack size", threading.stack_size(1 << 20), threading.get_native_id() > 0)
deep = threading.Thread(target=lambda: print("in a thread with its own stack"))
deep.start()
deep.join()
