"""A bundle: what a job takes along, cut into chunks, and the manifest that says how they go together again. Pure.

A chunk is named by the hash of its bytes. A large file has chunks of its own, small ones travel together in packs. The
manifest stands in chunks too, and the name of its first one is the *bundle's*: who has it has everything, and can check
every byte. A manifest comes from outside: what `read` returns can be written below a folder and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from beo.bulk.words import CHUNK_MAX_BYTES, DIGEST_BYTES, digest

FORMAT = 1
PACKED_MAX_BYTES = 1 << 20  # a file up to this size is packed: it is within one chunk
FILES_MAX = 200_000  # of one bundle, with folders and links: some 200 MB of memory for who reads its manifest
BUNDLE_MAX_BYTES = 1 << 38  # 256 GiB: the heads keep it, and each node of the job has a copy
MANIFEST_MAX_BYTES = 128 << 20
PATH_MAX_BYTES = 4_095  # PATH_MAX, without the zero
PART_MAX_BYTES = 255  # NAME_MAX
LINKS_FOLLOWED_MAX = 40  # on one path, as Linux has it
TIME_MAX_NS = 1 << 62
PERMISSIONS = 0o777  # what is kept of a mode

_WHOLE, _INDEX = b"M", b"I"  # what a manifest's first chunk begins with: is it all of it, or names of chunks that are
_NAME = re.compile(r"[0-9a-f]{64}")


class Damaged(ValueError):
    """What was read is no manifest, or no chunk of that name; the text says why."""


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A chunk by its name (the hash itself, not as a text) and size."""

    name: bytes
    size: int


class Folder(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """A folder. Paths are relative, and stand behind that of their own folder."""

    path: bytes
    mode: int
    mtime_ns: int


class File(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """A file: `size` bytes from `offset` of chunk number `chunk` on; of a large one these are whole chunks."""

    path: bytes
    mode: int
    mtime_ns: int
    size: int
    chunk: int = 0
    offset: int = 0


class Link(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """A symbolic link to something of the same bundle."""

    path: bytes
    target: bytes


Entry = Folder | File | Link


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a bundle is made of."""

    format: int
    chunks: tuple[Chunk, ...]
    entries: tuple[Entry, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(entry.size for entry in self.entries if isinstance(entry, File))


class Cut(msgspec.Struct, frozen=True):
    """A chunk that is ready."""

    name: str
    data: bytes


class Placement(msgspec.Struct, frozen=True):
    """Where bytes of a chunk go: `size` bytes from `start` of it on, to `offset` of a file of the manifest."""

    file: File
    offset: int
    start: int
    size: int


def is_name(text: str) -> bool:
    """Whether a text could be the name of a chunk, and so of a bundle."""
    return bool(_NAME.fullmatch(text))


def check(name: str, data: bytes) -> bytes:
    """Return the bytes of a chunk; raises Damaged where they aren't those of this name."""
    if digest(data) != name:
        raise Damaged(f"chunk {name[:12]}… has other bytes than its name says")
    return data


# ---- making one


class Cutter:
    """Takes entries in the order of their paths and cuts them; every method returns or yields what is ready."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._chunks: list[Chunk] = []
        self._entries: list[Entry] = []
        self._pack = bytearray()
        self._pack_index = -1  # of the pack that is being filled, among the chunks

    def add(self, entry: Folder | Link) -> None:
        """Take a folder or a link."""
        self._entries.append(entry)

    def small(self, path: bytes, mode: int, mtime_ns: int, data: bytes) -> Iterator[Cut]:
        """Take a file of up to PACKED_MAX_BYTES."""
        if data and len(self._pack) + len(data) > CHUNK_MAX_BYTES:
            yield from self._close_pack()
        if data and self._pack_index < 0:
            self._pack_index = len(self._chunks)
            self._chunks.append(Chunk(b"", 0))
        at = (self._pack_index, len(self._pack)) if data else (0, 0)
        self._entries.append(File(path, mode, mtime_ns, len(data), *at))
        self._pack += data

    def large(self, path: bytes, mode: int, mtime_ns: int, cut: Sequence[Chunk]) -> None:
        """Take a file whose bytes were cut by `pieces` into these chunks."""
        self._entries.append(File(path, mode, mtime_ns, sum(chunk.size for chunk in cut), len(self._chunks), 0))
        self._chunks += cut

    def finish(self) -> Iterator[Cut]:
        """Yield the last pack and the chunks of the manifest, whose first one is the last of all: the bundle's."""
        yield from self._close_pack()
        body = msgspec.msgpack.encode(Manifest(FORMAT, tuple(self._chunks), tuple(self._entries)))
        if len(body) < CHUNK_MAX_BYTES:
            data = _WHOLE + body
        else:
            names = []
            for start in range(0, len(body), CHUNK_MAX_BYTES):
                part = _cut(body[start : start + CHUNK_MAX_BYTES])
                names.append(bytes.fromhex(part.name))
                yield part
            data = _INDEX + b"".join(names)
        yield _cut(data)

    def _close_pack(self) -> Iterator[Cut]:
        if self._pack_index >= 0:
            made = _cut(bytes(self._pack))
            self._chunks[self._pack_index] = chunk_of(made)
            self._pack.clear()
            self._pack_index = -1
            yield made


def pieces(blocks: Iterator[bytes]) -> Iterator[Cut]:
    """Cut the bytes of one large file."""
    rest = bytearray()
    for block in blocks:
        if not rest and len(block) == CHUNK_MAX_BYTES:
            yield _cut(block)  # as it is: to put bytes together is to copy them
            continue
        rest += block
        while len(rest) >= CHUNK_MAX_BYTES:
            yield _cut(bytes(rest[:CHUNK_MAX_BYTES]))
            del rest[:CHUNK_MAX_BYTES]
    if rest:
        yield _cut(bytes(rest))


def chunk_of(cut: Cut) -> Chunk:
    """Return a chunk as a manifest has it."""
    return Chunk(bytes.fromhex(cut.name), len(cut.data))


def _cut(data: bytes) -> Cut:
    return Cut(digest(data), data)


# ---- reading one


def parts(first: bytes) -> tuple[str, ...]:
    """Return the names of the chunks in which a manifest goes on; () where its first one has all. Raises Damaged."""
    if first[:1] == _WHOLE:
        return ()
    names = first[1:]
    if first[:1] != _INDEX or not names or len(names) % DIGEST_BYTES:
        raise Damaged("it is no manifest")
    if len(names) // DIGEST_BYTES > MANIFEST_MAX_BYTES // CHUNK_MAX_BYTES:
        raise Damaged(f"its manifest has over {MANIFEST_MAX_BYTES} bytes")
    return tuple(names[start : start + DIGEST_BYTES].hex() for start in range(0, len(names), DIGEST_BYTES))


def read(first: bytes, more: Sequence[bytes] = ()) -> Manifest:
    """Return a manifest from its chunks, checked; raises Damaged for anything that isn't one from end to end."""
    body = first[1:] if first[:1] == _WHOLE else b"".join(more)
    if first[:1] not in (_WHOLE, _INDEX):
        raise Damaged("it is no manifest")
    if len(body) > MANIFEST_MAX_BYTES:
        raise Damaged(f"its manifest has over {MANIFEST_MAX_BYTES} bytes")
    try:
        found = msgspec.msgpack.decode(body, type=Manifest)
    except (ValueError, RecursionError) as error:  # of msgspec, and of texts that aren't UTF-8
        raise Damaged(f"its manifest can't be read ({str(error).lower()})") from None
    if found.format != FORMAT:
        raise Damaged(f"its manifest is of format {found.format}, and this beo reads {FORMAT}")
    if len(found.entries) > FILES_MAX:
        raise Damaged(f"it has over {FILES_MAX} files")
    for chunk in found.chunks:
        if len(chunk.name) != DIGEST_BYTES or not 0 < chunk.size <= CHUNK_MAX_BYTES:
            raise Damaged("it has a chunk that can't be")
    _check_entries(found)
    return found


def _check_entries(manifest: Manifest) -> None:
    kinds: dict[bytes, type[Entry]] = {b"": Folder}
    links = {entry.path: entry.target for entry in manifest.entries if isinstance(entry, Link)}
    total = 0
    for entry in manifest.entries:
        _check_path(entry.path)
        if entry.path in kinds:
            raise Damaged(f"{shown(entry.path)} is there twice")
        if kinds.get(entry.path.rpartition(b"/")[0]) is not Folder:  # so nothing is ever written through a link
            raise Damaged(f"{shown(entry.path)} stands in no folder")
        kinds[entry.path] = type(entry)
        if isinstance(entry, Link):
            target = entry.target
            if not target or b"\0" in target or len(target) > PATH_MAX_BYTES or leads_out(links, entry.path):
                raise Damaged(f"the link {shown(entry.path)} leads out of it")
            continue
        if not 0 <= entry.mode <= PERMISSIONS or not -TIME_MAX_NS < entry.mtime_ns < TIME_MAX_NS:
            raise Damaged(f"{shown(entry.path)} has a mode or time that can't be")
        if isinstance(entry, File):
            _check_file(entry, manifest.chunks)
            total += entry.size
    if total > BUNDLE_MAX_BYTES:
        raise Damaged(f"it has over {BUNDLE_MAX_BYTES} bytes")


def _check_path(path: bytes) -> None:
    names = path.split(b"/")
    if not 0 < len(path) <= PATH_MAX_BYTES or b"\0" in path:
        raise Damaged(f"{shown(path)} is no path")
    if any(name in (b"", b".", b"..") or len(name) > PART_MAX_BYTES for name in names):
        raise Damaged(f"{shown(path)} is no path within a folder")


def _check_file(entry: File, chunks: Sequence[Chunk]) -> None:
    if not 0 <= entry.size <= BUNDLE_MAX_BYTES or entry.chunk < 0 or entry.offset < 0:
        raise Damaged(f"{shown(entry.path)} has a size that can't be")
    if not entry.size:
        return
    mine = chunks[entry.chunk : entry.chunk + _count(entry)]
    if len(mine) != _count(entry):
        raise Damaged(f"{shown(entry.path)} has bytes in no chunk")
    if entry.size <= PACKED_MAX_BYTES:
        if entry.offset + entry.size > mine[0].size:
            raise Damaged(f"{shown(entry.path)} has bytes in no chunk")
    elif entry.offset or any(chunk.size != size for chunk, size in zip(mine, _sizes(entry.size), strict=True)):
        raise Damaged(f"{shown(entry.path)} has other bytes than its chunks")


def _count(entry: File) -> int:
    return -(-entry.size // CHUNK_MAX_BYTES)


def _sizes(size: int) -> Iterator[int]:
    for start in range(0, size, CHUNK_MAX_BYTES):
        yield min(CHUNK_MAX_BYTES, size - start)


def chunks_of(manifest: Manifest, file: File) -> Sequence[Chunk]:
    """Return in which chunks a file of a manifest lies."""
    return manifest.chunks[file.chunk : file.chunk + _count(file)]


def content(manifest: Manifest, file: File, found: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a file. found: its chunks, by their names."""
    data = b"".join(found[chunk.name.hex()] for chunk in chunks_of(manifest, file))
    return data[file.offset : file.offset + file.size]


def placements(manifest: Manifest) -> list[list[Placement]]:
    """Return, for each chunk in order, where its bytes go."""
    found: list[list[Placement]] = [[] for _ in manifest.chunks]
    for entry in manifest.entries:
        if not isinstance(entry, File) or not entry.size:
            continue
        if entry.size <= PACKED_MAX_BYTES:
            found[entry.chunk].append(Placement(entry, 0, entry.offset, entry.size))
            continue
        for number, size in enumerate(_sizes(entry.size)):
            found[entry.chunk + number].append(Placement(entry, number * CHUNK_MAX_BYTES, 0, size))
    return found


def leads_out(links: Mapping[bytes, bytes], path: bytes) -> bool:
    """Whether a link among these leads out of the folder that all are in, or nowhere (in a circle).

    By the links themselves, not by their texts alone: where `a` leads to `b/c`, `a/..` is `b`.
    """
    at: list[bytes] = path.split(b"/")[:-1]
    ahead, followed = _steps(links[path]), 1
    if links[path].startswith(b"/"):
        return True
    while ahead:
        step = ahead.pop()
        if step == b"..":
            if not at:
                return True
            at.pop()
            continue
        at.append(step)
        target = links.get(b"/".join(at))
        if target is not None:
            followed += 1
            if target.startswith(b"/") or followed > LINKS_FOLLOWED_MAX:
                return True
            at.pop()
            ahead += _steps(target)
    return False


def _steps(target: bytes) -> list[bytes]:
    """The names of a path, the last one first."""
    return [step for step in reversed(target.split(b"/")) if step not in (b"", b".")]


def shown(path: bytes) -> str:
    """Return a path as people are told of it."""
    return path[:PART_MAX_BYTES].decode("utf-8", "backslashreplace")
