"""Segments, store and volume on a disk that tears, lies, fills up and is cut off from power: bytes come out right."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo.errors import DamagedJournal
from beo.tree import segments as segments_module
from beo.tree import store as store_module
from beo.tree import volume as volume_module
from beo.tree.changes import Allocated, Change, Changed, Made, Reaped, Removed, Wrote
from beo.tree.segments import Segments
from beo.tree.store import Store
from beo.tree.volume import Volume
from beo.tree.words import ROOT
from tests.cluster import wait_for
from tests.tree_world import do_bytes

BY = ("", 0, 0, 0)
BIG = 20_000  # bytes: more than an entry has in itself


def piece(index: int, size: int = 100) -> bytes:
    return (b"%d " % index * size)[:size]


# ---- segments


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    found = Segments(tmp_path / "data")
    for index in (1, 2, 5, 9):
        found.put(index, piece(index))
    found.sync()
    found.close()
    found = Segments(tmp_path / "data")
    assert [found.size(index) for index in range(1, 10)] == [100, 100, 0, 0, 100, 0, 0, 0, 100]
    assert [found.get(index) for index in (1, 2, 5, 9)] == [piece(index) for index in (1, 2, 5, 9)]
    with pytest.raises(DamagedJournal, match="the data of entry 3 is not in"):
        found.get(3)


def test_a_tail_that_is_torn_at_any_byte_costs_that_record_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    found = Segments(folder)
    for index in (1, 2, 3):
        found.put(index, piece(index, 30))
    found.close()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    record = len(whole) // 3
    for size in range(2 * record, len(whole)):
        for rest in (b"", bytes(len(whole) - size)):  # the end is missing, or its blocks were never written
            path.write_bytes(whole[:size] + rest)
            torn = Segments(folder)
            assert torn.get(1) == piece(1, 30) and torn.get(2) == piece(2, 30)
            torn.truncate_after(2)  # as the journal has no entry 3: its data was not durable
            torn.put(3, piece(33, 20))
            torn.put(4, piece(4, 20))
            torn.close()
            again = Segments(folder)
            assert [again.get(index) for index in (2, 3, 4)] == [piece(2, 30), piece(33, 20), piece(4, 20)]
            again.close()


def test_truncating_drops_what_is_behind_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "SEGMENT_BYTES", 300)
    for index in range(9):
        folder = tmp_path / str(index)
        found = Segments(folder)
        for number in (2, 3, 4, 6, 7, 8):
            found.put(number, piece(number))
        found.truncate_after(index)
        kept = [number for number in (2, 3, 4, 6, 7, 8) if number <= index]
        for _ in range(2):
            assert [number for number in range(10) if found.size(number)] == kept
            found.close()
            found = Segments(folder)
        found.put(index + 1, piece(77))
        assert found.get(index + 1) == piece(77)
        assert all(found.get(number) == piece(number) for number in kept)
        found.close()


def test_only_whole_segments_that_the_store_has_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "SEGMENT_BYTES", 300)
    monkeypatch.setattr(segments_module, "KEPT_BYTES", 0)
    found = Segments(tmp_path)
    for index in range(1, 10):
        found.put(index, piece(index))
    for upto in range(11):
        found.forget(upto)
        assert all(found.get(index) == piece(index) for index in range(upto + 1, 10))
    assert not found.size(1) and found.size(9)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(segments_module, "KEPT_BYTES", 10_000)
    for index in range(10, 20):
        found.put(index, piece(index))
    found.forget(19)
    assert found.get(10) == piece(10)
    found.close()


class Disk:
    """pwrite(2) of a disk that takes little at a time, and nothing once it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 1 << 40, bite: int = 1 << 40) -> None:
        self.room, self.bite = room, bite
        real_pwrite, real_pwritev = os.pwrite, os.pwritev

        def take(size: int) -> int:
            if self.room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = min(size, self.room, self.bite)
            self.room -= taken
            return taken

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            return real_pwrite(fd, bytes(data)[: take(len(data))], offset)

        def pwritev(fd: int, data: list[bytes], offset: int) -> int:
            whole = b"".join(data)
            return real_pwritev(fd, [whole[: take(len(whole))]], offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "pwritev", pwritev)


def test_a_disk_that_takes_a_part_each_time_gets_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, bite=33)
    segments = Segments(tmp_path / "data")
    segments.put(1, piece(1, 200))
    assert segments.get(1) == piece(1, 200)
    store = Store(tmp_path / "objects")
    store.apply(1, Wrote(*BY, 7, 10, 200, piece(1, 200)))
    store.put(8, 0, piece(8, 200), 200)
    assert store.read(7, 10, 200, 210) == piece(1, 200)
    assert store.read(8, 0, 200, 200) == piece(8, 200)
    monkeypatch.setattr(store_module, "COPY_MAX_BYTES", 50)
    store_module._zero(store._fd(8), 20, 120)
    assert store.read(8, 0, 200, 200) == piece(8, 200)[:20] + bytes(120) + piece(8, 200)[140:]
    segments.close()
    store.close()


def test_data_that_finds_no_room_leaves_nothing_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    found = Segments(tmp_path)
    found.put(1, piece(1))
    disk.room = 60
    with pytest.raises(OSError, match="No space left"):
        found.put(2, piece(2))
    disk.room = 1 << 20
    found.put(2, piece(22))
    found.close()
    found = Segments(tmp_path)
    assert [found.get(1), found.get(2)] == [piece(1), piece(22)]
    found.close()


# ---- the store

INOS = st.integers(2, 4)
OFFSETS = st.integers(0, 9_000)
WROTE = st.builds(lambda ino, at, data: Wrote(*BY, ino, at, len(data), data), INOS, OFFSETS, st.binary(min_size=1))
CHANGED = st.builds(lambda ino, size: Changed(*BY, ino, size=size), INOS, OFFSETS)
ALLOCATE = st.tuples(INOS, OFFSETS, st.integers(1, 9_000), st.sampled_from(["keep", "grow", "punch"]))


def changes_of(wishes: list[Change | tuple[int, int, int, str]]) -> list[Change]:
    """What a log may say about bytes: sizes as they are decided, and nothing about an inode that is reaped."""
    sizes: dict[int, int] = {}
    found: list[Change] = []
    for wish in wishes:
        if isinstance(wish, tuple):
            ino, offset, length, how = wish
            size = sizes.get(ino, 0)
            size = max(size, offset + length) if how == "grow" else size
            wish = Allocated(*BY, ino, offset, length, size, how == "punch")
            sizes[ino] = size
        elif isinstance(wish, Wrote):
            sizes[wish.ino] = max(sizes.get(wish.ino, 0), wish.offset + wish.size)
        elif isinstance(wish, Changed) and wish.size is not None:
            sizes[wish.ino] = wish.size
        found.append(wish)
    return found


def bytes_of(store: Store, files: dict[int, bytearray]) -> dict[int, bytes]:
    return {ino: store.read(ino, 0, 1 << 20, max(len(data), store.size(ino))) for ino, data in files.items()}


@settings(max_examples=60)
@given(
    st.lists(WROTE | CHANGED | ALLOCATE, max_size=12),
    st.integers(0, 12),
    st.sets(st.integers(1, 12)),
    st.sets(INOS, max_size=1),
)
def test_what_is_done_again_from_the_mark_on_ends_with_the_same_bytes(
    wishes: list[Change | tuple[int, int, int, str]], marked: int, written: set[int], reaped: set[int]
) -> None:
    """Of what was done after the mark, a power cut leaves any part on the disk."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        log = changes_of(wishes)
        if reaped:
            log.append(Reaped(*BY, tuple(reaped)))
        files: dict[int, bytearray] = {}
        for change in log:
            do_bytes(files, change)
        store = Store(folder)
        for index, change in enumerate(log[:marked], 1):
            store.apply(index, change)
        store.sync()
        for index, change in enumerate(log, 1):
            if index > marked and index in written:
                store.apply(index, change)
        store.close()  # without a sync
        store = Store(folder)
        assert store.applied == min(marked, len(log))
        for index, change in enumerate(log, 1):
            if index > store.applied:
                store.apply(index, change)
        assert bytes_of(store, files) == {ino: bytes(data) for ino, data in files.items()}
        assert set(store.inos()) == files.keys()
        store.sync()
        assert Store(folder).applied == len(log)
        store.close()
    finally:
        shutil.rmtree(folder)


def test_a_store_keeps_few_files_open_and_mixes_none_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FILES_OPEN_MAX", 3)
    store = Store(tmp_path)
    for index in range(1, 50):
        store.apply(index, Wrote(*BY, index % 10, index, 3, b"%3d" % index))
    store.sync()
    assert store.inos() == list(range(10))
    assert store.read(9, 49, 3, 52) == b" 49" and store.read(3, 40, 99, 46) == b"\0\0\0 43"
    store.close()


def test_a_damaged_mark_is_named(tmp_path: Path) -> None:
    Store(tmp_path).mark(5)
    assert Store(tmp_path).applied == 5
    (tmp_path / "applied").write_bytes(b"\0\0")
    with pytest.raises(DamagedJournal, match="applied is damaged"):
        Store(tmp_path)


# ---- the volume


def opened(folder: Path) -> Volume:
    return Volume(folder, lambda index: None, lambda error: None)


def filled(folder: Path, count: int = 4, size: int = BIG) -> Volume:
    """A volume with one file that was written to, of which nothing is in the store yet."""
    volume = opened(folder)
    log: list[Change] = [Made(*BY, ROOT, b"a", 0o100644, 0, 0)]
    log += [Wrote(*BY, 2, number * size, size, piece(number, size)) for number in range(count)]
    for change in log:
        volume.state.apply(change)
        volume.append(1, change)
    wait_for(lambda: volume.journal.durable_index == volume.journal.last_index, "the journal is durable")
    return volume


def test_a_volume_has_after_a_crash_what_was_durable(tmp_path: Path) -> None:
    volume = filled(tmp_path)
    volume.commit(3)
    before = volume.state.encode()
    volume.journal.close()  # nothing else is closed or synced
    volume = opened(tmp_path)
    assert volume.state.encode() == before and volume.store.applied == 0
    volume.commit(5)
    assert volume.store.read(2, 0, 4 * BIG, 4 * BIG) == b"".join(piece(number, BIG) for number in range(4))
    volume.close()
    volume = opened(tmp_path)
    assert volume.store.applied == 5 and not volume.pending_bytes
    volume.close()


@pytest.mark.parametrize("spoil", ["a byte", "the file"])
def test_data_that_is_not_what_was_written_is_named_when_the_volume_is_opened(tmp_path: Path, spoil: str) -> None:
    filled(tmp_path).journal.close()
    (path,) = (tmp_path / "data").iterdir()
    if spoil == "the file":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[BIG + 5_000] ^= 1
        path.write_bytes(data)
    with pytest.raises(DamagedJournal, match="the data of entry"):
        opened(tmp_path)


def test_a_store_that_is_not_of_this_log_is_named(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (tmp_path / "objects" / "applied").write_bytes(b"77\n")
    with pytest.raises(DamagedJournal, match=r"the objects in .* are as of entry 77"):
        opened(tmp_path)


def test_a_full_disk_makes_what_is_committed_wait_and_then_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_module, "RETRY_S", 0.0)
    volume = filled(tmp_path)
    disk = Disk(monkeypatch, room=BIG + 5_000)
    volume.commit(5)
    assert volume.full and volume.store.applied == 2
    volume.commit(5)
    assert volume.full and volume.store.applied == 2
    disk.room = 1 << 30
    volume.commit(5)
    assert not volume.full and volume.store.applied == 5 and not volume.pending_bytes
    assert volume.store.read(2, 0, 4 * BIG, 4 * BIG) == b"".join(piece(number, BIG) for number in range(4))
    volume.close()


def test_any_other_fault_of_the_disk_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = filled(tmp_path)

    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="broken"):
            volume.commit(5)
    volume.close()


def test_a_tail_is_taken_back_with_its_data_and_everything_it_had_done(tmp_path: Path) -> None:
    volume = filled(tmp_path)
    volume.commit(3)
    position = volume.log.position(3)
    assert position
    volume.log.truncate(position)
    volume.back(position)
    assert volume.state.inodes[2].size == 2 * BIG and not volume.segments.size(4) and not volume.pending_bytes
    change = Wrote(*BY, 2, 0, BIG, piece(9, BIG))
    volume.state.apply(change)
    volume.append(3, change)
    wait_for(lambda: volume.journal.durable_index == 4, "it is durable")
    volume.commit(4)
    assert volume.store.read(2, 0, 2 * BIG, 2 * BIG) == piece(9, BIG) + piece(1, BIG)
    volume.close()


def lagged(folder: Path, reaped: bool = False) -> Volume:
    """A volume that has got an entry without its data, as a head that lags gets it."""
    leader = filled(folder / "leader")
    if reaped:
        gone: list[Change] = [Removed(*BY, ROOT, b"a"), Reaped(*BY, (2,))]
        for change in gone:
            leader.state.apply(change)
            leader.append(1, change)
    wait_for(lambda: leader.journal.durable_index == leader.journal.last_index, "it is durable")
    entries = leader.log.entries(1, 100, 1 << 30)
    leader.close()
    volume = opened(folder / "follower")
    for entry in entries:
        volume.log.append(entry.epoch, entry.data)
    data: dict[int, bytes | None] = {3: piece(1, BIG), 4: piece(2, BIG), 5: piece(3, BIG), 2: None}
    assert volume.mark_stale([2]) and volume.copy(entries, data) == [2]
    wait_for(lambda: volume.journal.durable_index == volume.journal.last_index, "it is durable")
    return volume


def test_what_is_stale_is_so_after_a_crash_until_it_is_fetched(tmp_path: Path) -> None:
    volume = lagged(tmp_path)
    volume.commit(3)
    volume.journal.close()
    volume = opened(tmp_path / "follower")
    assert list(volume.stale) == [2]
    volume.commit(5)
    whole = b"".join(piece(number, BIG) for number in range(4))
    volume.store.put(2, 0, whole, len(whole))
    volume.fetched([2])
    volume.journal.close()
    volume = opened(tmp_path / "follower")
    assert not volume.stale and volume.store.read(2, 0, len(whole), len(whole)) == whole
    volume.close()


def test_what_was_stale_and_is_reaped_is_not_missed_after_a_crash(tmp_path: Path) -> None:
    """Its data never came; nobody needs it any more."""
    volume = lagged(tmp_path, reaped=True)
    volume.commit(7)
    assert not volume.stale and not volume.store.inos()
    volume.journal.close()
    volume = opened(tmp_path / "follower")
    volume.commit(7)
    assert not volume.store.inos()
    volume.close()


@pytest.mark.parametrize("then", ["nothing", "a write whose data is gone"])
def test_a_stale_file_that_is_cut_to_nothing_is_whole_unless_what_follows_is_missing(tmp_path: Path, then: str) -> None:
    leader = filled(tmp_path / "leader")
    more: list[Change] = [Changed(*BY, 2, size=0)]
    if then != "nothing":
        more.append(Wrote(*BY, 2, 0, BIG, piece(9, BIG)))
    for change in more:
        leader.state.apply(change)
        leader.append(1, change)
    wait_for(lambda: leader.journal.durable_index == leader.journal.last_index, "it is durable")
    entries = leader.log.entries(1, 100, 1 << 30)
    leader.close()
    volume = opened(tmp_path / "follower")
    for entry in entries:
        volume.log.append(entry.epoch, entry.data)
    volume.mark_stale([2])
    volume.copy(entries, dict.fromkeys(range(1, 10)))
    wait_for(lambda: volume.journal.durable_index == volume.journal.last_index, "it is durable")
    volume.commit(100)
    assert list(volume.stale) == ([] if then == "nothing" else [2])
    volume.journal.close()
    volume = opened(tmp_path / "follower")
    assert list(volume.stale) == ([] if then == "nothing" else [2])
    volume.close()


# ---- a snapshot that stands for all


def installing(folder: Path) -> tuple[Volume, Callable[[Volume], object], bytes]:
    """A volume that is behind, and what lets it take the snapshot of one that is ahead."""
    leader = filled(folder / "leader")
    position, snapshot = leader.log.last, leader.state.encode()
    leader.close()
    volume = filled(folder / "follower", 2)
    return volume, lambda volume: volume.install(position, snapshot, volume.store.applied), snapshot


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_while_a_snapshot_is_installed_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    volume, install, snapshot = installing(tmp_path)
    volume.commit(3)
    before = volume.state.encode()
    real = volume.journal.install

    def crash(*arguments: object) -> None:
        if moment == "after":
            real(*arguments)  # type: ignore[arg-type]
        raise RuntimeError("a crash")

    monkeypatch.setattr(volume.journal, "install", crash)
    with pytest.raises(RuntimeError):
        install(volume)
    volume.journal.close()
    volume = opened(tmp_path / "follower")
    assert volume.state.encode() == (snapshot if moment == "after" else before)
    assert list(volume.stale) == ([2] if moment == "after" else [])
    if moment == "before":
        install(volume)
    assert volume.state.encode() == snapshot and list(volume.stale) == [2] and volume.store.applied == 5
    volume.close()
    volume = opened(tmp_path / "follower")
    assert volume.state.encode() == snapshot and list(volume.stale) == [2] and volume.store.applied == 5
    volume.close()


def test_what_was_committed_and_found_no_room_is_stale_when_a_snapshot_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version is the snapshot's, and its bytes are not in the store all the same."""
    volume = filled(tmp_path, 2)
    snapshot = volume.state.encode()
    disk = Disk(monkeypatch, room=100)
    volume.commit(3)
    assert volume.full and volume.committed == 3
    disk.room = 1 << 30
    leader = opened(tmp_path / "another")
    for entry in volume.log.entries(1, 10, 1 << 30):
        leader.log.append(entry.epoch, entry.data)
    position = leader.log.append(1, b"").index
    volume.install(leader.log.last, snapshot, volume.store.applied)
    assert position == 4 and list(volume.stale) == [2]
    leader.close()
    volume.close()
