"""The store of output: one file per attempt, append-only, one total order for every reader.

A file is a sequence of blocks, each with whole records of one node's spool:

    magic, crc32 of all that follows, offset in that node's spool, length of the records, length of the node's name,
    the node's name, the records

Offsets make appending idempotent: a node's bytes are stored once and in order, whatever is repeated, late or missing. A
reader's cursor is the position of a block. Readers see what is durable and nothing else, so a cursor stays good over a
crash: what a crash takes away nobody has seen, and its node still holds it, since it was not acknowledged.

`JOB.ATTEMPT.index` beside the file is a hint (where a block begins, and what was stored up to there), so that opening a
large file means reading its last megabytes. Any doubt about it, and the file is read from its beginning.

Two heads hold the same files. The *chain* at a block's end is a hash over the heads of all blocks before, which hold
the crc of what they carry: files with the same chain at a position are the same up to there. Some chains are kept as
*marks*, at places that follow from the bytes alone, so that the same files have the same marks. A head that stands by
takes raw blocks (`copy`); where its own bytes are others, they give way and are put aside in `JOB.ATTEMPT.cut`.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

from beo.errors import Conflict, Internal, UsageError
from beo.messages import CHUNK_SIZE_MAX_BYTES, Held, Piece
from beo.spec import NODES_MAX

__all__ = ["Full", "Output", "read_blocks"]

FILES_OPEN_MAX = 256  # a quarter of the usual limit of descriptors; others are opened again when they are needed
ATTEMPTS_KNOWN_MAX = 16_384  # whose index stays in memory, at about 1 kB each
READ_SIZE_MAX_BYTES = 1024 * 1024  # of records in one answer: half of the largest message
INDEX_EVERY_BYTES = 16 * 1024 * 1024  # the most that is read to open a file
NAME_SIZE_MAX_BYTES = 255  # a host name has 253 at most
MARK_EVERY_BYTES = 4 * 1024 * 1024  # the most whose heads are read to find a chain between two marks
HEADS_READ_BYTES = 64 * 1024  # at a time, where only the heads of blocks are looked at
PROBES_MAX = 64  # places in a question where two files part: doubling, more than any file has

_MAGIC = b"beo1"
_HEADER = struct.Struct(">4sIQIB")
_CRC_START = 8  # the crc covers everything behind itself
_OVERHEAD_MAX_BYTES = _HEADER.size + NAME_SIZE_MAX_BYTES

log = logging.getLogger("beo.output")


class Full(Conflict):
    """The store can't take more at present; nothing was stored and nothing is lost, for the node keeps it."""


class _Index(msgspec.Struct):
    size: int  # bytes of the file, all blocks whole
    have: dict[str, int]  # by node: bytes of its spool stored
    chain: int  # at `size`
    marks: list[tuple[int, int]]  # (position, chain)


def _link(chain: int, head: bytes) -> int:
    """Return the chain behind a block with this head."""
    return int.from_bytes(blake2b(chain.to_bytes(8) + head, digest_size=8).digest())


def _pack(node: str, offset: int, data: bytes) -> list[bytes]:
    name = node.encode()
    rest = struct.pack(">QIB", offset, len(data), len(name)) + name
    return [_MAGIC + struct.pack(">I", zlib.crc32(data, zlib.crc32(rest))) + rest, data]


def _block(data: bytes, start: int) -> tuple[int, str, int, bytes] | None:
    """Return (position behind it, node, offset, records) of the block at `start`; None where there is no whole one."""
    if start + _HEADER.size > len(data):
        return None
    magic, crc, offset, length, name_length = _HEADER.unpack_from(data, start)
    name_end = start + _HEADER.size + name_length
    end = name_end + length
    if magic != _MAGIC or length > CHUNK_SIZE_MAX_BYTES or end > len(data):
        return None
    if zlib.crc32(memoryview(data)[start + _CRC_START : end]) != crc:
        return None
    return end, data[start + _HEADER.size : name_end].decode(errors="replace"), offset, data[name_end:end]


def _blocks(data: bytes) -> dict[int, tuple[int, str, int, bytes]]:
    """Return all blocks of `data` by where they begin; raises UsageError where it isn't made of whole ones."""
    found: dict[int, tuple[int, str, int, bytes]] = {}
    start = 0
    while start < len(data):
        block = _block(data, start)
        if block is None:
            raise UsageError("a copy of output that is none", f"damaged at byte {start}", "look for a failing disk")
        found[start] = block
        start = block[0]
    return found


def _sync_folder(folder: Path) -> None:
    """Make durable which files are in a folder. Raises OSError: end then."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_blocks(fd: int, cursor: int, end: int, limit_bytes: int) -> tuple[int, bytes]:
    """Return (next cursor, records) of whole blocks from `cursor` on: at most limit_bytes of records, but one block.

    `end` is where the durable part ends. Raises UsageError for a cursor at which no whole block begins.
    """
    data = os.pread(fd, min(end - cursor, max(limit_bytes, CHUNK_SIZE_MAX_BYTES) + _OVERHEAD_MAX_BYTES), cursor)
    taken: list[bytes] = []
    start = size = 0
    while block := _block(data, start):
        if taken and size + len(block[3]) > limit_bytes:
            break
        start = block[0]
        size += len(block[3])
        taken.append(block[3])
    if not taken and cursor < end:
        raise UsageError(f"no output begins at cursor {cursor}", "", "begin at cursor 0, or at one that the head gave")
    return cursor + start, b"".join(taken)


class _File:
    """One attempt's file: its index, and its descriptor while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = _Index(0, {}, 0, [])
        self.durable = 0
        self.hinted = 0
        self.fd = -1
        self.agreed = 0  # up to here it is the leader's too, as far as this process knows

    def open(self) -> None:
        if self.fd < 0:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def recover(self) -> None:
        """Find the last whole block and cut what is behind it."""
        self.open()
        size = os.fstat(self.fd).st_size
        self.index = self._hint(size) or self.index
        self.hinted = self.index.size
        data, start = b"", 0
        while True:
            block = _block(data, start)
            if block is None:
                position = self.index.size
                data, start = os.pread(self.fd, 4 * CHUNK_SIZE_MAX_BYTES, position), 0
                block = _block(data, start)
                if block is None:
                    break
            end, node, offset, records = block
            self._add(data[start : end - len(records)], node, offset + len(records), end - start)
            start = end
        if self.index.size < size:
            log.warning("cut the torn tail of %s: %d bytes", self.path.name, size - self.index.size)
            self._cut(self.index.size, size)

    def _add(self, head: bytes, node: str, behind: int, size: int) -> None:
        """Take a block that is there now into the index."""
        index = self.index
        index.have[node] = behind
        index.chain = _link(index.chain, head)
        index.size += size
        if index.size // MARK_EVERY_BYTES > (index.size - size) // MARK_EVERY_BYTES:
            index.marks.append((index.size, index.chain))

    def settle(self) -> None:
        """Make durable what recovery found: what a killed process left in the page cache is not yet. Raises OSError."""
        os.fdatasync(self.fd)
        self.durable = self.index.size

    def _cut(self, start: int, size: int) -> None:
        at = start
        try:  # a torn tail is nobody's, but after a damage in the middle whole blocks may follow: a person can look
            with self.path.with_suffix(".cut").open("ab") as cut:
                while at < size and (data := os.pread(self.fd, CHUNK_SIZE_MAX_BYTES, at)):
                    at += cut.write(data)
        except OSError as error:
            log.warning("can't keep what is cut off %s: %s", self.path.name, error.strerror)
        os.ftruncate(self.fd, start)

    def heads(self, start: int, end: int) -> Iterator[tuple[int, int, bytes, str, int]]:
        """Yield (position, position behind it, head, node, offset) of the blocks from `start`, where one begins."""
        at, base, data = start, start, b""
        while at < end:
            if at + _OVERHEAD_MAX_BYTES > base + len(data) and base + len(data) < end:
                base, data = at, os.pread(self.fd, min(end - at, HEADS_READ_BYTES), at)
            begin = at - base
            if begin + _HEADER.size > len(data):
                return
            magic, _, offset, length, name_length = _HEADER.unpack_from(data, begin)
            name_end = begin + _HEADER.size + name_length
            if magic != _MAGIC or name_end > len(data):
                return
            node = data[begin + _HEADER.size : name_end].decode(errors="replace")
            behind = base + name_end + length
            yield at, behind, data[begin:name_end], node, offset
            at = behind

    def chain_at(self, position: int) -> int | None:
        """Return the chain at the end of a block; None where there is none."""
        if position == self.index.size:
            return self.index.chain
        mark = bisect_right(self.index.marks, position, key=lambda mark: mark[0])
        start, chain = self.index.marks[mark - 1] if mark else (0, 0)
        for at, _, head, _, _ in self.heads(start, self.index.size):
            if at >= position:
                return chain if at == position else None
            chain = _link(chain, head)
        return None

    def cut_to(self, position: int) -> None:
        """Put aside what is behind the end of a block, where another head's file goes on otherwise."""
        chain, size, whole = self.chain_at(position), self.index.size, position
        first: dict[str, int] = {}
        for _, behind, _, node, offset in self.heads(position, size):
            first.setdefault(node, offset)
            whole = behind
        log.warning("%d bytes of %s from %d on are not the leader's", size - position, self.path.name, position)
        if self.hinted > position:  # durably, before other bytes come to stand where it says what is
            self.path.with_suffix(".index").unlink(missing_ok=True)
            _sync_folder(self.path.parent)
            self.hinted = 0
        self._cut(position, size)
        self.durable = min(self.durable, position)
        self.agreed = min(self.agreed, position)
        if whole != size or chain is None:  # damaged between: what there is can only be found from the beginning on
            self.index = _Index(0, {}, 0, [])
            self.recover()
            return
        have = self.index.have
        for node, offset in first.items():
            have[node] = offset
            if not offset:
                del have[node]
        self.index = _Index(position, have, chain, [mark for mark in self.index.marks if mark[0] <= position])

    def probes(self) -> tuple[tuple[int, int], ...]:
        """Return (position, chain) of the end, and of marks further and further before it."""
        marks = self.index.marks
        back = (marks[-(1 << n)] for n in range(PROBES_MAX) if 1 << n <= len(marks))
        return ((self.index.size, self.index.chain), *back)

    def common(self, probes: Iterable[tuple[int, int]]) -> int:
        """Return the last of these places of another's file up to which this one is the same; 0 where none is."""
        marks = dict(self.index.marks)
        for number, (position, chain) in enumerate(probes):
            # Only the end may be anywhere: the other places are marks, which are marks here too if all before is.
            found = marks.get(position) if number else self.chain_at(position)
            if found == chain and 0 <= position <= self.index.size:
                return position
        return 0

    def _hint(self, size: int) -> _Index | None:
        try:
            crc, _, text = self.path.with_suffix(".index").read_bytes().partition(b" ")
            index = msgspec.json.decode(text, type=_Index)
            return index if int(crc, 16) == zlib.crc32(text) and index.size <= size else None
        except (OSError, ValueError, msgspec.DecodeError):
            return None

    def write_hint(self) -> None:
        """Write the index, if the file has grown enough since it was last written."""
        if self.durable - self.hinted < INDEX_EVERY_BYTES:
            return
        text = msgspec.json.encode(self.index)
        new = self.path.with_suffix(".new")
        try:
            new.write_bytes(b"%08x %b" % (zlib.crc32(text), text))
            new.replace(self.path.with_suffix(".index"))
        except OSError:
            return  # only a hint
        self.hinted = self.durable

    def write(self, node: str, offset: int, data: bytes) -> None:
        """Append a block; raises Full, and then the file is as before."""
        parts = _pack(node, offset, data)
        self._put(parts)
        self._add(parts[0], node, offset + len(data), len(parts[0]) + len(data))

    def copy(self, piece: Piece) -> bool:
        """Take blocks of the leader's file; return whether they are known to go on from what is here.

        Raises UsageError where they are none, and Full: then the file is as before, but for what had to go.
        """
        if piece.position > self.agreed:
            if self.chain_at(piece.position) != piece.chain:
                return False
            self.agreed = piece.position
        data = piece.data[self.agreed - piece.position :]
        blocks = _blocks(data)
        start = 0
        while start < len(data) and self.agreed < self.index.size:
            end = blocks[start][0]
            if os.pread(self.fd, end - start, self.agreed) != data[start:end]:
                self.cut_to(self.agreed)
                break
            self.agreed += end - start
            start = end
        if start < len(data):
            self._put([data[start:] if start else data])
            while start < len(data):
                end, node, offset, records = blocks[start]
                self._add(data[start : end - len(records)], node, offset + len(records), end - start)
                start = end
            self.agreed = self.index.size
        behind = piece.position + len(piece.data)
        if piece.tail and self.agreed == behind < self.index.size and self.index.chain == piece.tail:
            self.cut_to(behind)
        return True

    def _put(self, parts: list[bytes]) -> None:
        """Write at the end; raises Full, and then the file is as before."""
        size = sum(map(len, parts))
        try:
            done = os.pwritev(self.fd, parts, self.index.size)
            while done < size:  # a full disk takes a part first and tells the reason to the next call
                done += os.pwrite(self.fd, b"".join(parts)[done:], self.index.size + done)
        except OSError as error:
            os.ftruncate(self.fd, self.index.size)
            raise Full(f"can't write {self.path}", (error.strerror or "").lower(), "free space on that disk") from None


class Output:
    """All attempts' files in one folder. For one thread; an OSError from `sync` must end the process (law 3)."""

    def __init__(self, folder: Path, files_open_max: int = FILES_OPEN_MAX) -> None:
        """Take the folder, made if it is missing. Nothing is read yet: each file is when it is first asked for."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._files_open_max = files_open_max
        self._files: OrderedDict[tuple[int, int], _File] = OrderedDict()
        self._open: OrderedDict[tuple[int, int], _File] = OrderedDict()
        self._unsynced: dict[tuple[int, int], _File] = {}
        _sync_folder(self.folder)  # files of a process that was killed may not be in it durably

    def path(self, job: int, attempt: int) -> Path:
        """Return where an attempt's output is, or would be."""
        return self.folder / f"{job}.{attempt}.log"

    def append(self, job: int, attempt: int, node: str, offset: int, data: bytes) -> int:
        """Store whole records of a node's spool; return how much of the spool is stored (durable after `sync`).

        What is stored already is skipped, and what lies beyond is ignored: the answer tells from where to go on.
        Raises Full where the disk is.
        """
        have = self.have(job, attempt, node)
        if offset > have or offset + len(data) <= have:
            return have
        if len(data) > CHUNK_SIZE_MAX_BYTES or len(node.encode()) > NAME_SIZE_MAX_BYTES:
            raise UsageError(f"a chunk of {len(data)} bytes of {node!r}", "too large", "send smaller ones")
        file = self._file(job, attempt, make=True)
        assert file is not None
        if node not in file.index.have and len(file.index.have) >= NODES_MAX:
            raise UsageError(f"output of over {NODES_MAX} nodes for one attempt", "", "look for a faulty worker")
        file.write(node, have, data[have - offset :])
        self._unsynced[job, attempt] = file
        return file.index.have[node]

    def sync(self) -> list[tuple[int, int]]:
        """Make everything appended durable, and so visible; return the attempts that grew. Raises OSError: end then."""
        grown = list(self._unsynced)
        for file in self._unsynced.values():
            os.fdatasync(file.fd)
        if any(file.durable == 0 for file in self._unsynced.values()):
            _sync_folder(self.folder)
        for file in self._unsynced.values():
            file.durable = file.index.size
            file.write_hint()
        self._unsynced.clear()
        self._close_some()
        return grown

    def have(self, job: int, attempt: int, node: str) -> int:
        """Return how many bytes of a node's spool are stored."""
        file = self._file(job, attempt)
        return file.index.have.get(node, 0) if file else 0

    def end(self, job: int, attempt: int) -> int:
        """Return the cursor behind everything that is durable; 0 where there is no output."""
        file = self._files.get((job, attempt)) or self._file(job, attempt)
        return file.durable if file else 0

    def read(
        self, job: int, attempt: int, cursor: int, limit_bytes: int, shown: int | None = None
    ) -> tuple[int, bytes]:
        """Return (next cursor, records) from `cursor` on; raises UsageError for a cursor that is none.

        Whole blocks are given, at least one and at most limit_bytes; no records where nothing is behind the cursor yet.
        shown: what is behind it is nobody's to see yet, durable as it may be.
        """
        end = self.end(job, attempt)
        if cursor < 0 or cursor > end:
            raise UsageError(f"no output begins at cursor {cursor}", f"it ends at {end}", "begin at cursor 0")
        end = end if shown is None else min(shown, end)
        file = self._file(job, attempt)
        if file is None or cursor >= end:
            return cursor, b""
        try:
            return read_blocks(file.fd, cursor, end, max(1, min(limit_bytes, READ_SIZE_MAX_BYTES)))
        except OSError as error:
            why = (error.strerror or "").lower()
            raise Internal(f"can't read {file.path}", why, "look for a failing disk in the head") from None

    def size(self, job: int, attempt: int) -> int:
        """Return the cursor behind everything that was appended, durable or not."""
        file = self._files.get((job, attempt)) or self._file(job, attempt)
        return file.index.size if file else 0

    # ---- two heads

    def files(self) -> list[tuple[int, int]]:
        """Return all attempts that have a file, in order."""
        names = (entry.name.split(".") for entry in os.scandir(self.folder))
        return sorted(
            (int(name[0]), int(name[1])) for name in names if name[2:] == ["log"] and "".join(name[:2]).isdecimal()
        )

    def mark(self, job: int, attempt: int) -> tuple[int, int]:
        """Return (size, chain) of an attempt's file; (0, 0) where there is none."""
        file = self._files.get((job, attempt)) or self._file(job, attempt)
        return (file.index.size, file.index.chain) if file else (0, 0)

    def chain_at(self, job: int, attempt: int, position: int) -> int | None:
        """Return the chain at the end of a block; None where there is none."""
        file = self._file(job, attempt)
        return file.chain_at(position) if file else None if position else 0

    def blocks(self, job: int, attempt: int, position: int, chain: int, limit_bytes: int) -> tuple[bytes, int]:
        """Return (whole blocks from `position` on, the chain behind them), durable or not; one block at least.

        Raises Internal where the file is damaged.
        """
        file = self._file(job, attempt)
        if file is None or position >= file.index.size:
            return b"", chain
        size = min(file.index.size - position, max(limit_bytes, CHUNK_SIZE_MAX_BYTES + _OVERHEAD_MAX_BYTES))
        end = position
        for _, behind, head, _, _ in file.heads(position, position + size):
            if behind > position + size:
                break
            end, chain = behind, _link(chain, head)
        if end == position:
            raise Internal(f"no output begins at byte {position} of {file.path}", "", "look for a failing disk")
        return os.pread(file.fd, end - position, position), chain

    def copy(self, piece: Piece) -> Held:
        """Take blocks of the leader's file, durable after `sync`. Raises UsageError where they are none, and Full."""
        file = self._file(piece.job, piece.attempt, make=bool(piece.data))
        if file is None:
            return Held(piece.job, piece.attempt, 0, ((0, 0),) if piece.position else ())
        before = file.index.size, file.index.chain
        try:
            fits = file.copy(piece)
        finally:
            if (file.index.size, file.index.chain) != before:
                self._unsynced[piece.job, piece.attempt] = file
        return Held(piece.job, piece.attempt, file.agreed, () if fits else file.probes())

    def compare(self, job: int, attempt: int, size: int, chain: int) -> Held | None:
        """Return None where the file is like the leader's, else what this head has of it."""
        file = self._file(job, attempt)
        if file is None:
            return Held(job, attempt, 0, ((0, 0),)) if size else None
        if (file.index.size, file.index.chain) == (size, chain):
            file.agreed = size
            return None
        return Held(job, attempt, file.agreed, file.probes())

    def common(self, held: Held) -> int:
        """Return up to where the other head's file is known to be the same as this one."""
        file = self._file(held.job, held.attempt)
        return file.common(held.probes) if file else 0

    def put_aside(self, job: int, attempt: int) -> None:
        """Empty a file that the leader doesn't have."""
        file = self._file(job, attempt)
        if file and file.index.size:
            self._unsynced[job, attempt] = file
            file.cut_to(0)

    def distrust(self) -> None:
        """Forget what is known to be like the leader's: there is another one."""
        for file in self._files.values():
            file.agreed = 0

    def delete(self, jobs: Collection[int]) -> None:
        """Remove all output of these jobs."""
        gone = {str(job) for job in jobs}
        for key in [key for key in self._files if str(key[0]) in gone]:
            self._unsynced.pop(key, None)
            self._open.pop(key, None)
            self._files.pop(key).close()
        for entry in list(os.scandir(self.folder)):
            if entry.name.split(".", 1)[0] in gone:
                Path(entry.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files; what was not synced may or may not be there next time."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._open.clear()
        self._unsynced.clear()

    def _file(self, job: int, attempt: int, make: bool = False) -> _File | None:
        """Return an attempt's file, open and recovered; None where there is none and it is not to be made."""
        key = job, attempt
        file = self._files.get(key)
        try:
            if file is None:
                path = self.path(job, attempt)
                if not make and not path.exists():
                    return None
                file = _File(path)
                file.recover()
            else:
                file.open()
        except OSError as error:
            if file:
                file.close()
            why = (error.strerror or "").lower()
            raise Full(f"can't open {self.path(job, attempt)}", why, "free space or mend that disk") from None
        if key not in self._files:
            file.settle()
        self._files[key] = file
        self._files.move_to_end(key)
        self._open[key] = file
        self._open.move_to_end(key)
        if len(self._open) > 2 * self._files_open_max:
            self._close_some()
        return file

    def _close_some(self) -> None:
        for bound, files in ((self._files_open_max, self._open), (ATTEMPTS_KNOWN_MAX, self._files)):
            for key in list(files)[: max(0, len(files) - bound)]:
                if key not in self._unsynced:
                    files.pop(key).close()
                    self._open.pop(key, None)
