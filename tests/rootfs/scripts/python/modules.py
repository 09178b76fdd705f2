"""Extension modules and what they need of the kernel: sqlite3, ctypes, mmap, decimal, zlib, ..."""

import bz2
import ctypes
import decimal
import hashlib
import json
import lzma
import mmap
import os
import sqlite3
import ssl
import struct
import tempfile
import uuid
import zlib

with sqlite3.connect("/tmp/test.db") as db:
    print(db.execute("pragma journal_mode=wal").fetchone())
    db.execute("create table t (id integer primary key, text text)")
    db.executemany("insert into t (text) values (?)", [(f"row {i}",) for i in range(1000)])
    db.commit()
    other = sqlite3.connect("/tmp/test.db", timeout=0.05)
    print(other.execute("select count(*), max(text) from t").fetchone())
    db.execute("begin immediate")
    try:
        other.execute("begin immediate")
    except sqlite3.OperationalError as error:
        print(error)
    db.rollback()
    other.execute("delete from t where id % 2")
    other.commit()
    print(db.execute("select count(*) from t").fetchone())
    db.execute("vacuum")
print(sqlite3.connect(":memory:").execute("select 6 * 7, sqlite_version() > '3'").fetchone())

libc = ctypes.CDLL(None, use_errno=True)
print(libc.abs(-5), libc.getpid() == os.getpid(), libc.close(999), ctypes.get_errno())
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
numbers = (ctypes.c_int * 6)(5, 1, 4, 2, 6, 3)
libc.qsort(numbers, 6, ctypes.sizeof(ctypes.c_int), compare(lambda a, b: a[0] - b[0]))
print(list(numbers))

with tempfile.TemporaryFile() as file:
    file.write(b"hello world" * 1000)
    file.flush()
    with mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:5] = b"HELLO"
        print(mapped.find(b"world"), mapped[:11], len(mapped))
        mapped.flush()
        mapped.resize(20000)
        print(mapped[11000:11005], os.fstat(file.fileno()).st_size)
    file.seek(0)
    print(file.read(11))
with mmap.mmap(-1, 1 << 20) as anonymous:
    anonymous[-1] = 7
    anonymous.madvise(mmap.MADV_DONTNEED)
    print(anonymous[-1])

decimal.getcontext().prec = 60
print(decimal.Decimal(2).sqrt(), decimal.Decimal(1) / 7)
data = bytes(range(256)) * 4096
for module in (zlib, bz2, lzma):
    packed = module.compress(data)
    print(module.__name__, len(packed) < 20000, module.decompress(packed) == data)
print(zlib.crc32(data), hashlib.sha256(data).hexdigest(), hashlib.blake2b(data).hexdigest()[:16])
print(struct.pack("<dQ", 0.1, 1 << 60).hex(), json.dumps({"a": [1, 2.5, None, "é"]}))
print(len(os.urandom(32)), os.urandom(16) != os.urandom(16), uuid.uuid4() != uuid.uuid4())
print(0.1 + 0.2, 1e308 * 10, (2**0.5).hex(), 10**40 // 7)

incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="example.org")
try:
    client.do_handshake()
except ssl.SSLWantReadError:
    print("client hello", outgoing.pending > 100)
