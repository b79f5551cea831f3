"""Keeps a copy of what a job has in its node's vault, in the tree: ``python -m beo.bulk.keeper``, started by an agent.

It is told what by one line of JSON on its input and answers with one on its output. As a porter does (porter.py), it
opens its session by the node's key and then becomes the job's owner, for good.

The folder is cut into chunks as a job's inputs are, so what hasn't changed since the last copy is not sent again. A
program may write meanwhile: a file that changes while it is read is read again, and two slots of checkpoints are copied
together, of which one is not being written to (beo/checkpoints/slots.py); whoever reads such a copy checks every block.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import msgspec

from beo import messages as ms
from beo import question
from beo.bulk.chunks import Cut
from beo.bulk.snapshot import Snapshot
from beo.bulk.store import Store
from beo.child import end_with_parent
from beo.config import home
from beo.errors import BeoError
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.session import Session
from beo.worker.copies import Copied, Copying
from beo.worker.ranks import Person

LOCATE_S = 5.0
FRESH_S = 600.0  # chunks that were sent longer ago are touched again: far less than they are spared
PAUSE_MIN_S = 0.005  # shorter ones are saved up


def slowly(cuts: Iterator[Cut], bytes_s: int) -> Iterator[Cut]:
    """Pass cuts on, so many bytes a second at most: a copy in the background must not slow the job down."""
    began_s, passed = time.monotonic(), 0
    for cut in cuts:
        yield cut
        passed += len(cut.data)
        ahead_s = passed / bytes_s - (time.monotonic() - began_s) if bytes_s else 0.0
        if ahead_s > PAUSE_MIN_S:
            time.sleep(ahead_s)


def copy(task: Copying) -> Copied:
    """Do it. Raises BeoError or OSError."""
    where = home()
    cluster, secret = where.cluster(), where.secret("worker")
    person = Person(task.uid, task.gid, list(task.groups))
    if not person.is_us:
        person.become()

    def locate() -> str:
        return question.ask(cluster.heads, cluster.key, secret, ms.AskTree(), ms.TreeIs, LOCATE_S).address

    snapshot = Snapshot(["."], task.folder)
    caller = w.Caller(person.uid, person.gid, tuple(person.groups))
    with Files(Session(locate, cluster.key, secret), caller, float("inf")) as files:
        store = Store(files, person.uid)
        store.prepare()
        began_s = time.monotonic()
        store.keep(slowly(snapshot.cuts(), task.bytes_s))
        if time.monotonic() - began_s > FRESH_S and store.keep_again():
            return Copied(failed="some of it was taken away meanwhile")
    return Copied(snapshot.bundle, snapshot.size_bytes)


def main() -> int:
    """Copy one folder; 0 where that was done."""
    if not end_with_parent():
        return 1
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Copying)
    try:
        told = copy(task)
    except BeoError as error:
        told = Copied(failed=f"{error.what} ({error.why})" if error.why else error.what)
    except OSError as error:
        told = Copied(failed=(error.strerror or str(error)).lower())
    print(msgspec.json.encode(told).decode(), flush=True)
    return bool(told.failed)


if __name__ == "__main__":
    sys.exit(main())
