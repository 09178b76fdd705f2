"""A CPU-bound program: the same work every time; prints its own duration in ns, then a result."""

import time

began = time.perf_counter_ns()
total, table = 0, {}
for i in range(3_000_000):
    total = (total * 31 + i) & 0xFFFFFFFF
    if not i & 0xFF:
        table[i] = str(total)
print(time.perf_counter_ns() - began, total, len(table))
