"""Keeps a copy of what a job has in its node's vault, in the tree: ``python -m beo.bulk.keeper``, started by an agent.

It is told what by one line of JSON on its input and answers with one on its output. As a porter does (porter.py), it
opens its session by the node's key and then becomes the job's owner, for good.

The folder is cut into chunks as a job's inputs are, so what hasn't changed since the last copy is not sent again. What
of a program's checkpoints is copied, and read for it, is said in vouched.py. Their slots are locked meanwhile
(beo/checkpoints/slots.py): it takes its next one when they are free. Of other files, one that changes while it is read
is read again.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from beo import messages as ms
from beo import question
from beo.bulk.chunks import Cut, Damaged, File
from beo.bulk.snapshot import Snapshot
from beo.bulk.store import Store, contents, manifest
from beo.bulk.vouched import Vouched
from beo.checkpoints.slots import SLOTS, places
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
NICE = 10  # a tenth of a job's share where it needs all cores: no more, and the slot isn't locked for ever


def _lock(slot: Path) -> int | None:
    """Keep a program from overwriting a slot of its checkpoints; None where there is no such."""
    try:
        fd = os.open(slot, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def spare(store: Store, bundle: str, vouched: Vouched) -> None:
    """Let not be read again what a copy has that was made before, where its chunks are still in the tree."""
    try:
        last = manifest(store.fetch, bundle)
        known = [file for file in last.entries if isinstance(file, File) and file.path in vouched.manifests]
        unchanged = vouched.unchanged(last, contents(store.fetch, last, known))
    except Damaged:  # nobody needs it any more, so it isn't all there
        return
    gone = store.hold(chunk for chunks in unchanged.values() for chunk in chunks)
    vouched.spare({path: chunks for path, chunks in unchanged.items() if gone.isdisjoint(c.name for c in chunks)})


def slowly(cuts: Iterator[Cut], sent: Callable[[], int], bytes_s: int) -> Iterator[Cut]:
    """Pass cuts on, so that no more than so many bytes a second are `sent`: a job must not feel it."""
    began_s = time.monotonic()
    for cut in cuts:
        yield cut
        ahead_s = sent() / bytes_s - (time.monotonic() - began_s) if bytes_s else 0.0
        if ahead_s > PAUSE_MIN_S:
            time.sleep(ahead_s)


def give_way(task: Copying) -> None:
    """Leave the cores to the job, unless somebody waits for the copy."""
    if task.bytes_s:
        os.nice(NICE)


def copy(task: Copying) -> Copied:
    """Do it. Raises BeoError or OSError."""
    where = home()
    cluster, secret = where.cluster(), where.secret("worker")
    person = Person(task.uid, task.gid, list(task.groups))
    if not person.is_us and not task.as_root:
        person.become()

    def locate() -> str:
        return question.ask(cluster.heads, cluster.key, secret, ms.AskTree(), ms.TreeIs, LOCATE_S).address

    caller = w.Caller(person.uid, person.gid, tuple(person.groups))
    with Files(Session(locate, cluster.key, secret), caller, float("inf")) as files:
        store = Store(files, person.uid)
        store.prepare()
        programs = places(Path(task.folder))
        locks = [_lock(place / slot) for place in programs for slot in SLOTS]
        vouched = Vouched(Path(task.folder), programs)
        if programs and not vouched.manifests:
            return Copied()  # it has only begun: a copy of that would take the place of one that is worth something
        began_s = time.monotonic()
        if task.last and programs:
            spare(store, task.last, vouched)
        snapshot = Snapshot(["."], task.folder, vouched)
        store.keep(slowly(snapshot.cuts(), lambda: store.sent_bytes, task.bytes_s))
        for fd in filter(None, locks):
            os.close(fd)
        if time.monotonic() - began_s > FRESH_S and store.keep_again():
            return Copied(failed="some of it was taken away meanwhile")
    return Copied(snapshot.bundle, snapshot.size_bytes, checkpoints=vouched.checkpoints())


def main() -> int:
    """Copy one folder; 0 where that was done."""
    if not end_with_parent():
        return 1
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Copying)
    give_way(task)
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
