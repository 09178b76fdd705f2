"""Two processes and one SQLite database, in both journal modes: nothing is lost, nobody is refused."""

import os
import sqlite3

TRANSACTIONS = 60
WRITERS = 2

os.chdir("/tmp")
for mode in ("delete", "wal"):
    path = f"{mode}.db"
    with sqlite3.connect(path) as db:
        print(db.execute(f"pragma journal_mode={mode}").fetchone())
        db.execute("create table counter (value integer)")
        db.execute("insert into counter values (0)")
    db.close()
    children = []
    for _ in range(WRITERS):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        db = sqlite3.connect(path, timeout=60, isolation_level=None)
        for _ in range(TRANSACTIONS):
            db.execute("begin immediate")
            (value,) = db.execute("select value from counter").fetchone()
            db.execute("update counter set value = ?", (value + 1,))
            db.execute("commit")
        db.close()
        os._exit(0)
    print([os.waitpid(pid, 0)[1] for pid in children])
    db = sqlite3.connect(path)
    print(db.execute("select value from counter").fetchone() == (WRITERS * TRANSACTIONS,))
    print(db.execute("pragma integrity_check").fetchone())
    # What a lock of another process means.
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    other.execute("begin exclusive")
    if os.fork() == 0:
        try:
            sqlite3.connect(path, timeout=0).execute("insert into counter values (7)")
        except sqlite3.OperationalError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
    other.execute("rollback")
