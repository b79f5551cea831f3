"""Journals for tests: their bytes, who watches them, and what is right about them."""

import hashlib
import inspect
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beo import snapshots
from beo.journal import Entry, Journal, Snapshot
from beo.snapshots import Stamp

WAIT_S = 30  # how long a condition may take on a busy machine; nothing waits that long
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def payload(index: int) -> bytes:
    """Return the bytes of entry `index`: each different, none so small that a flip would always miss it."""
    return b"%d " % index * (index % 40 + 1)


PAYLOAD = inspect.getsource(payload)  # begins each writer process, so that parent and child agree on the bytes


class Watch:
    """Records what a journal reports, and can hold its commit thread in `on_durable`."""

    def __init__(self) -> None:
        self.durable: list[int] = []
        self.threads: set[str] = set()
        self.failures: list[BaseException] = []
        self.changed = threading.Condition()
        self.free = threading.Event()
        self.free.set()

    def on_durable(self, index: int) -> None:
        with self.changed:
            self.durable.append(index)
            self.threads.add(threading.current_thread().name)
            self.changed.notify_all()
        assert self.free.wait(WAIT_S)

    def on_failure(self, error: BaseException) -> None:
        with self.changed:
            self.failures.append(error)
            self.changed.notify_all()

    def until(self, index: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.failures or self.durable[-1:] >= [index], WAIT_S)
            assert not self.failures


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Journal, Watch]]:
    watch = Watch()
    journal = Journal(folder, watch.on_durable, watch.on_failure)
    try:
        yield journal, watch
    finally:
        watch.free.set()
        journal.close()


def fill(journal: Journal, watch: Watch, last: int, step: int = 10) -> None:
    """Append up to entry `last`, `step` entries to a commit (or more, where the commit thread is slower)."""
    for index in range(journal.last_index + 1, last + 1):
        assert journal.append(1, payload(index)) == index
        if index % step == 0 or index == last:
            watch.until(index)


def make_snapshot(journal: Journal, folder: Path, index: int) -> Stamp:
    """Make the file as another process would; it doesn't count yet."""
    position = journal.position(index)
    assert position
    return snapshots.write(folder, Snapshot(*position, b"state %d" % index))


def take_snapshot(journal: Journal, watch: Watch, index: int) -> None:
    make_snapshot(journal, journal._folder, index)
    journal.adopt_snapshot(index)
    with watch.changed:
        assert watch.changed.wait_for(lambda: journal.snapshot_index == index, WAIT_S)


def assert_right(journal: Journal, last: int) -> None:
    """Everything that is kept up to entry `last` has the right bytes, in order, and the chain of hashes holds."""
    snapshot, tail = journal.load()
    if snapshot:
        assert snapshot.state == b"state %d" % snapshot.index
    entries = journal.entries(journal.oldest_index, 1_000_000)
    assert [e.index for e in entries] == list(range(journal.oldest_index, last + 1))
    assert [e.data for e in entries] == [payload(e.index) for e in entries]
    assert list(tail) == [e for e in entries if not snapshot or e.index > snapshot.index]
    for before, after in itertools.pairwise(entries):
        assert after.hash == chained(before.hash, after)
    assert (journal.last_index, journal.durable_index, journal.last_hash) == (last, last, entries[-1].hash)


def chained(previous: bytes, entry: Entry) -> bytes:
    header = entry.index.to_bytes(8, "big") + entry.epoch.to_bytes(8, "big")
    return hashlib.blake2b(previous + header + entry.data, digest_size=16).digest()


def contents(folder: Path) -> dict[str, bytes]:
    """What a refusal or a failure must leave alone; the -shm is an index that SQLite makes anew at each opening."""
    names = ("journal.db", "journal.db-wal", "journal.mark", "snapshot-*")
    return {p.name: p.read_bytes() for name in names for p in folder.glob(name)}
