"""Counts in a file, in a process of its own: ``counter.py DATABASE make|look|zero``, ``DATABASE count N``, and
``FILE fcntl|flock|lockf N`` for a number in a plain file, under a lock. Prints a line for each increment that it made.
"""

import fcntl
import os
import sqlite3
import struct
import sys

PATIENCE_S = 60.0
VALUE = "SELECT value FROM counter"


def database(path: str, verb: str, times: int) -> None:
    """One table with one number, by transactions and a rollback journal."""
    base = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)
    assert base.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    if verb == "make":
        base.execute("CREATE TABLE counter (value INTEGER, filler BLOB)")
        base.execute("INSERT INTO counter VALUES (0, zeroblob(9000))")
    elif verb == "zero":
        base.execute("UPDATE counter SET value = 0")
    elif verb == "look":
        value, state = (base.execute(what).fetchone()[0] for what in (VALUE, "PRAGMA integrity_check"))
        print(value, state)
    for _ in range(times):
        base.execute("BEGIN IMMEDIATE")
        value = base.execute(VALUE).fetchone()[0]
        base.execute("UPDATE counter SET value = ?, filler = randomblob(9000)", (value + 1,))
        base.execute("COMMIT")
        print(value + 1, flush=True)


def plain(path: str, kind: str, times: int) -> None:
    """Eight digits. fcntl: a lock on their bytes alone, which belongs to the open file (F_OFD_SETLKW)."""
    file = os.open(path, os.O_RDWR)
    for _ in range(times):
        if kind == "flock":
            fcntl.flock(file, fcntl.LOCK_EX)
        elif kind == "lockf":
            fcntl.lockf(file, fcntl.LOCK_EX, 8, 0)
        else:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 8, 0))
        value = int(os.pread(file, 8, 0))
        os.pwrite(file, b"%08d" % (value + 1), 0)
        if kind == "flock":
            fcntl.flock(file, fcntl.LOCK_UN)
        elif kind == "lockf":
            fcntl.lockf(file, fcntl.LOCK_UN, 8, 0)
        else:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 8, 0))
        print(value + 1, flush=True)


if __name__ == "__main__":
    where, how, *number = sys.argv[1:]
    do = plain if how in ("fcntl", "flock", "lockf") else database
    do(where, how, int(number[0]) if number else 0)
