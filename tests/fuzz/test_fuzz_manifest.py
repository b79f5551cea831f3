"""Spoilt manifests: each is read or refused, and what is read can be written below its folder and nowhere else."""

from __future__ import annotations

import os
import posixpath
from contextlib import suppress
from pathlib import Path

import msgspec

from beo.bulk import chunks, words
from beo.bulk.chunks import Chunk, Damaged, File, Folder, Link, Manifest
from beo.bulk.unpacking import Unpacking
from tests.fuzz.bytes import bend, dice, rounds, spoilt

PACK = b"some bytes of files"
LARGE = bytes(chunks.PACKED_MAX_BYTES + 1)
MADE = [
    Manifest(chunks.FORMAT, (), ()),
    Manifest(
        chunks.FORMAT,
        (
            Chunk(bytes.fromhex(words.digest(PACK)), len(PACK)),
            Chunk(bytes.fromhex(words.digest(LARGE)), len(LARGE)),
        ),
        (
            Folder(b"data", 0o755, 10**18),
            File(b"data/a", 0o644, 10**18, 4, 0, 5),
            Link(b"data/up", b"../sim"),
            File(b"data/z", 0o400, -1, len(LARGE), 1, 0),
            File(b"empty", 0o600, 0, 0),
            File(b"sim", 0o755, 0, 5, 0, 0),
        ),
    ),
]
SAMPLES = [b"M" + msgspec.msgpack.encode(manifest) for manifest in MADE]


def put(data: bytes, folder: Path) -> bool:
    """Read a manifest and write what it says; whether it was read."""
    try:
        manifest = chunks.read(data, [b"" for _ in chunks.parts(data)])
    except Damaged:
        return False
    assert all(entry.path == posixpath.normpath(entry.path) and entry.path[:1] != b"/" for entry in manifest.entries)
    held = {words.digest(data): data for data in (PACK, LARGE)}
    folder.mkdir()
    with suppress(Damaged):
        unpacking = Unpacking(manifest, str(folder))
        for name in unpacking.missing:
            if name in held:
                unpacking.take(name, held[name])
    return True


def below(folder: Path) -> list[str]:
    """Everything that there is in a folder, but in `out` below it."""
    return sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if "/out" not in at)


def test_a_spoilt_manifest_is_read_or_refused_and_writes_nothing_outside(tmp_path: Path) -> None:
    around = tmp_path / "around"
    around.mkdir()
    (around / "kept").write_text("kept")
    before, taken = below(around), 0
    for number, data in enumerate(spoilt("manifest", SAMPLES, 2_000)):
        taken += put(data, around / f"out{number}")
    assert taken > 20, "some are good still"
    assert below(around) == before


def test_a_manifest_of_odd_values_is_read_or_refused_and_writes_nothing_outside(tmp_path: Path) -> None:
    random, taken = dice("manifest values"), 0
    around = tmp_path / "around"
    around.mkdir()
    for number in range(rounds(1_000)):
        value = bend(random, msgspec.to_builtins(MADE[1], builtin_types=(bytes,)))
        try:
            data = b"M" + msgspec.msgpack.encode(value)
        except (OverflowError, RecursionError):  # what msgpack itself can't hold
            continue
        taken += put(data, around / f"out{number}")
    assert taken > 10, "some are good still"
    assert below(around) == []
