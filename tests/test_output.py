"""The store of output: nothing lost, nothing doubled, one order, whatever is repeated, late, missing or cut off."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beo import records
from beo.errors import UsageError
from beo.headnode import output
from beo.headnode.output import Full, Output


def lines(node: str, count: int, seed: int = 0) -> bytes:
    """The spool of a node: `count` records of different lengths."""
    dice = random.Random(f"{node}{seed}")
    return b"".join(
        records.pack(n % 5, 1 + n % 2, f"{node} {n} {'x' * dice.randrange(60)}\n".encode()) for n in range(count)
    )


def everything(store: Output, job: int = 1, attempt: int = 1, limit_bytes: int = 1) -> bytes:
    """All that a reader gets, block by block."""
    cursor, found = 0, b""
    while cursor < store.end(job, attempt):
        cursor, data = store.read(job, attempt, cursor, limit_bytes)
        found += data
    return found


def of_node(data: bytes, node: str) -> bytes:
    """The records of one node's `lines` in the order in which they are stored."""
    mark = node.encode() + b" "
    return b"".join(records.pack(*record) for record in records.unpack(data) if record.data.startswith(mark))


def cut(spool: bytes, offset: int, size: int) -> bytes:
    """Whole records from `offset` on, at most `size` bytes and one at least."""
    whole = records.whole_length(spool[offset : offset + max(size, 200)])
    return spool[offset : offset + whole]


def test_a_chunk_is_stored_once_however_often_it_comes(tmp_path: Path) -> None:
    store = Output(tmp_path)
    spool = lines("a", 10)
    assert store.append(1, 1, "a", 0, spool) == len(spool)
    assert store.append(1, 1, "a", 0, spool) == len(spool)
    store.sync()
    assert store.append(1, 1, "a", 0, spool) == len(spool)
    store.sync()
    assert everything(store) == spool


def test_an_overlap_is_skipped_and_a_gap_is_not_taken(tmp_path: Path) -> None:
    store = Output(tmp_path)
    spool = lines("a", 30)
    first = len(cut(spool, 0, 300))
    assert store.append(1, 1, "a", first, spool[first:]) == 0
    assert store.append(1, 1, "a", 0, spool[:first]) == first
    assert store.append(1, 1, "a", 0, spool) == len(spool)
    store.sync()
    assert everything(store) == spool


def test_nothing_is_seen_before_it_is_durable(tmp_path: Path) -> None:
    store = Output(tmp_path)
    store.append(1, 1, "a", 0, lines("a", 3))
    assert store.end(1, 1) == 0
    assert store.read(1, 1, 0, 1000) == (0, b"")
    assert store.sync() == [(1, 1)]
    assert store.read(1, 1, 0, 1000) == (store.end(1, 1), lines("a", 3))


def test_every_reader_sees_one_order_before_and_after_a_restart(tmp_path: Path) -> None:
    store = Output(tmp_path)
    for node in ("b", "a", "c"):
        store.append(1, 1, node, 0, lines(node, 2))
    store.sync()
    before = everything(store)
    store.close()
    store = Output(tmp_path)
    assert everything(store) == before
    assert store.have(1, 1, "c") == len(lines("c", 2))


@pytest.mark.parametrize("seed", range(8))
def test_the_file_equals_the_spools_through_any_delivery_and_crashes(tmp_path: Path, seed: int) -> None:
    """Chunks doubled, dropped, late, of any cut; at times the process dies, or a power cut tears what wasn't synced."""
    dice = random.Random(seed)
    spools = {node: lines(node, 150, seed) for node in "abc"}
    store, durable, had = Output(tmp_path, files_open_max=1), 0, b""
    late: list[tuple[str, int, bytes]] = []
    for _ in range(20_000):
        node = dice.choice("abc")
        spool = spools[node]
        have = store.have(1, 1, node)
        offset = have if dice.random() < 0.6 else dice.choice([0, *(o for n, o, _ in late if n == node)])
        chunk = node, offset, cut(spool, offset, dice.randrange(1, 2000))
        late = [*late, chunk][-20:]
        for arrived in dice.choices([[chunk], [], [chunk, chunk], dice.sample(late, len(late))], [6, 1, 1, 1])[0]:
            store.append(1, 1, *arrived)
        if dice.random() < 0.2:
            store.append(2, 1, "a", store.have(2, 1, "a"), lines("a", 1))  # takes the one open file away
        if dice.random() < 0.2:
            store.sync()
            durable = store.end(1, 1)
            had = everything(store)
        if dice.random() < 0.05:
            store.close()
            if dice.random() < 0.5 and store.path(1, 1).exists():
                size = store.path(1, 1).stat().st_size
                os.truncate(store.path(1, 1), dice.randint(durable, size))
            store = Output(tmp_path, files_open_max=1)
            assert store.end(1, 1) >= durable
            assert everything(store).startswith(had)
            durable = store.end(1, 1)
        if all(store.have(1, 1, node) == len(spools[node]) for node in "abc"):
            break
    store.sync()
    found = everything(store, limit_bytes=dice.choice([1, 500, 100_000]))
    assert {node: of_node(found, node) for node in "abc"} == spools


def test_a_torn_tail_is_cut_and_everything_before_it_stands(tmp_path: Path) -> None:
    store = Output(tmp_path / "whole")
    first, second = lines("a", 2), lines("a", 4)
    store.append(1, 1, "a", 0, first)
    store.sync()
    before = store.end(1, 1)
    store.append(1, 1, "a", 0, second)
    store.sync()
    whole = store.path(1, 1).read_bytes()
    store.close()
    for size in range(before, len(whole)):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "1.1.log").write_bytes(whole[:size])
        store = Output(folder)
        assert store.have(1, 1, "a") == len(first)
        assert everything(store) == first
        assert store.append(1, 1, "a", 0, second) == len(second)
        store.sync()
        assert everything(store) == second
        store.close()


def test_a_flipped_bit_in_the_tail_is_cut_too_and_what_was_cut_is_kept_aside(tmp_path: Path) -> None:
    store = Output(tmp_path)
    for count in (2, 4):
        store.append(1, 1, "a", 0, lines("a", count))
        store.sync()
    store.close()
    whole = bytearray(store.path(1, 1).read_bytes())
    whole[-3] ^= 1
    store.path(1, 1).write_bytes(whole)
    store = Output(tmp_path)
    assert everything(store) == lines("a", 2)
    assert (tmp_path / "1.1.cut").read_bytes() == whole[store.end(1, 1) :]
    assert store.path(1, 1).stat().st_size == store.end(1, 1)


def test_a_cursor_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    store = Output(tmp_path)
    store.append(1, 1, "a", 0, lines("a", 3))
    store.sync()
    end = store.end(1, 1)
    assert store.read(1, 1, end, 100) == (end, b"")
    for cursor in (-1, 1, end - 1, end + 1, 1 << 70):
        with pytest.raises(UsageError, match=f"no output begins at cursor {cursor}"):
            store.read(1, 1, cursor, 100)


def test_an_answer_has_whole_blocks_within_its_limit(tmp_path: Path) -> None:
    store = Output(tmp_path)
    piece = records.pack(0, 1, b"x" * 991)
    for n in range(10):
        store.append(1, 1, "a", n * len(piece), piece)
    store.sync()
    assert [len(store.read(1, 1, 0, limit)[1]) for limit in (0, 1, 1000, 1999, 2000, 10**9)] == [
        1000,
        1000,
        1000,
        1000,
        2000,
        10_000,
    ]


def test_a_large_file_is_opened_from_its_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "INDEX_EVERY_BYTES", 1000)
    store = Output(tmp_path)
    spool = lines("a", 300)
    offset = 0
    while offset < len(spool):
        offset = store.append(1, 1, "a", offset, cut(spool, offset, 300))
        store.sync()
    assert (tmp_path / "1.1.index").exists()
    store.close()
    read = []
    real = os.pread

    def watched(fd: int, size: int, at: int) -> bytes:
        read.append(at)
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", watched)
    store = Output(tmp_path)
    assert store.have(1, 1, "a") == len(spool)
    assert min(read) > store.end(1, 1) - 2500
    store.close()
    for damage in (b"", b"0 {}", b"00000000 {}", b"zzz"):
        (tmp_path / "1.1.index").write_bytes(damage)
        store = Output(tmp_path)
        assert everything(store) == spool
        store.close()


def test_more_attempts_than_descriptors(tmp_path: Path) -> None:
    store = Output(tmp_path, files_open_max=4)
    before = len(os.listdir("/proc/self/fd"))
    for n in range(3):
        for job in range(1, 51):
            have = store.have(job, 1, "a")
            store.append(job, 1, "a", have, records.pack(n, 1, b"line\n"))
            if job % 7 == 0:
                store.sync()
        store.sync()
        assert len(os.listdir("/proc/self/fd")) <= before + 4
    for job in range(1, 51):
        assert [record.rank for record in records.unpack(everything(store, job))] == [0, 1, 2]
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_forgotten_jobs_leave_nothing(tmp_path: Path) -> None:
    store = Output(tmp_path)
    for job in (1, 11, 2):
        for attempt in (1, 2):
            store.append(job, attempt, "a", 0, lines("a", 2))
    store.sync()
    store.delete({1, 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["11.1.log", "11.2.log", "2.1.log", "2.2.log"]
    assert store.have(1, 1, "a") == store.end(1, 1) == 0
    store.delete({2, 11})
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_a_full_disk_takes_nothing_by_halves_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "beo-test", disk], check=True)
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(100_000))
        store = Output(disk / "output")
        spool = b"".join(records.pack(0, 1, bytes([n]) * 30_000) for n in range(6))
        have = store.append(1, 1, "a", 0, spool[:30_009])
        while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 31_000:
            have = store.append(1, 1, "a", have, spool[have : have + 30_009])
        with pytest.raises(Full, match=r"no space left.*free space"):
            store.append(1, 1, "a", have, spool[have : have + 30_009])
        assert 0 < have < len(spool)
        store.sync()
        assert store.path(1, 1).stat().st_size == store.end(1, 1)
        assert everything(store) == spool[:have]
        with pytest.raises(Full):
            store.append(1, 1, "a", have, spool[have : have + 30_009])
        ballast.unlink()
        while have < len(spool):
            have = store.append(1, 1, "a", have, spool[have : have + 30_009])
        store.sync()
        assert everything(store) == spool
        store.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_killed_writer_leaves_all_that_it_acknowledged(tmp_path: Path) -> None:
    """A real process that appends and prints what is durable, and is killed, again and again."""
    program = (
        "import sys; from pathlib import Path; from beo.headnode.output import Output; from beo import records\n"
        "store = Output(Path(sys.argv[1])); n = store.have(1, 1, 'a') // 19\n"
        "while True:\n"
        "    for _ in range(7):\n"
        "        store.append(1, 1, 'a', n * 19, records.pack(0, 1, b'%010d' % n)); n += 1\n"
        "    store.sync(); print(n, flush=True)\n"
    )
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        acknowledged = 0
        deadline = time.monotonic() + 0.15
        for line in process.stdout:
            acknowledged = int(line)
            if time.monotonic() > deadline:
                process.kill()
                break
        for line in process.stdout:
            acknowledged = int(line) if line.endswith("\n") else acknowledged
        process.wait()
        process.stdout.close()
        store = Output(tmp_path)
        found = [int(record.data) for record in records.unpack(everything(store, limit_bytes=10**6))]
        store.close()
        assert found == list(range(len(found)))
        assert len(found) >= acknowledged > 0
