"""Bundles: any tree of files comes out as it went in, and what is spoilt or hostile is refused before it is written."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beo.bulk import chunks, results, words
from beo.bulk.chunks import Chunk, Damaged, Entry, File, Folder, Link, Manifest
from beo.bulk.snapshot import Snapshot
from beo.bulk.unpacking import Unpacking
from beo.errors import BeoError

NAMES = st.sampled_from([b"a", b"b", b"data", b"sim.py", b"caf\xe9", "ünï".encode(), b"x y\n", b"-rf"])
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([0, 1, chunks.PACKED_MAX_BYTES, chunks.PACKED_MAX_BYTES + 1, words.CHUNK_MAX_BYTES + 7]).map(
        lambda size: Random(size).randbytes(size)
    ),
)
TREES = st.recursive(
    st.one_of(CONTENTS, st.just("link")), lambda below: st.dictionaries(NAMES, below, max_size=4), max_leaves=8
)


def snapped(folder: Path, inputs: Sequence[str] = (".",)) -> tuple[str, dict[str, bytes]]:
    """Take a snapshot; return the bundle and its chunks."""
    snapshot = Snapshot(inputs, str(folder))
    found = {cut.name: cut.data for cut in snapshot.cuts()}
    return snapshot.bundle, found


def read(bundle: str, found: dict[str, bytes]) -> Manifest:
    names = chunks.parts(chunks.check(bundle, found[bundle]))
    return chunks.read(found[bundle], [chunks.check(name, found[name]) for name in names])


def unpack(bundle: str, found: dict[str, bytes], folder: Path) -> None:
    folder.mkdir()
    unpacking = Unpacking(read(bundle, found), str(folder))
    for name in sorted(unpacking.missing):  # in any order
        unpacking.take(name, found[name])
    unpacking.finish()


def facts(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that there is below a folder: kinds, modes, times, bytes, targets."""
    found: dict[bytes, tuple[object, ...]] = {}
    for at, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = os.path.join(at, name)
            known = os.lstat(path)
            what: object = os.readlink(path) if stat.S_ISLNK(known.st_mode) else None
            if stat.S_ISREG(known.st_mode):
                what = Path(os.fsdecode(path)).read_bytes()
            times = () if stat.S_ISLNK(known.st_mode) else (known.st_mtime_ns,)
            found[os.path.relpath(path, os.fsencode(folder))] = (known.st_mode, what, *times)
    return found


def grow(path: bytes, tree: object, dice: Random) -> None:
    if isinstance(tree, dict):
        os.makedirs(path, exist_ok=True)
        for name, below in tree.items():
            grow(os.path.join(path, name), below, dice)
        os.chmod(path, dice.choice([0o755, 0o700, 0o775]))
    elif tree == "link":
        os.symlink(b"nowhere", path)
        return
    else:
        assert isinstance(tree, bytes)
        Path(os.fsdecode(path)).write_bytes(tree)
        os.chmod(path, dice.choice([0o644, 0o400, 0o755]))
    os.utime(path, ns=(0, dice.randrange(10**18)))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(NAMES, TREES, max_size=5), seed=st.integers(0, 99))
def test_any_tree_of_files_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[bytes, object], seed: int
) -> None:
    top = tmp_path_factory.mktemp("tree")
    grow(os.fsencode(top / "in"), tree, Random(seed))
    bundle, found = snapped(top / "in")
    unpack(bundle, found, top / "out")
    assert facts(top / "in") == facts(top / "out")
    assert all(len(data) <= words.CHUNK_MAX_BYTES for data in found.values())
    assert snapped(top / "in") == (bundle, found), "the same files have the same name"


def test_small_files_travel_together_and_large_ones_keep_their_chunks_when_others_change(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(1_000):
        (tmp_path / "many" / f"{number}").write_bytes(b"%d" % number * 100)
    (tmp_path / "large").write_bytes(Random(1).randbytes(9 << 20))
    _, before = snapped(tmp_path)
    assert len(before) == 3 + 1 + 1, "three of the large file, a pack, the manifest"
    (tmp_path / "many" / "0").write_text("another")
    _, after = snapped(tmp_path)
    assert len(after.keys() - before.keys()) == 2, "a pack and the manifest"


def test_a_long_manifest_stands_in_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        (tmp_path / f"{number:0200}").write_text(str(number))
    whole = read(*snapped(tmp_path))
    monkeypatch.setattr(chunks, "CHUNK_MAX_BYTES", 10_000)
    bundle, found = snapped(tmp_path)
    assert len(chunks.parts(found[bundle])) > 3
    assert len(read(bundle, found).entries) == len(whole.entries) == 200
    for name in chunks.parts(found[bundle]):
        missing = {**found, name: found[name][:-1]}
        with pytest.raises(Damaged):
            read(bundle, missing)


# ---- spoilt


def test_a_flipped_byte_or_a_cut_anywhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "file").write_bytes(b"something" * 9)
    (tmp_path / "in" / "link").symlink_to("sub/file")
    bundle, found = snapped(tmp_path / "in")
    for name, data in found.items():
        for at in range(len(data)):
            for spoilt in (data[:at], data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]):
                with pytest.raises(Damaged):
                    chunks.check(name, spoilt)
                if name == bundle:  # and where somebody made the name fit, it is read or refused, and nothing else
                    _read_or_refuse(spoilt)
    unpacking = Unpacking(read(bundle, found), str(_empty(tmp_path / "out")))
    (name,) = unpacking.missing
    with pytest.raises(Damaged):
        unpacking.take(name, found[name][:-1] + b"?")


def _read_or_refuse(data: bytes) -> None:
    try:
        chunks.read(data)
    except Damaged:
        return


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


PACK = b"evil bytes"
NAMED = Chunk(bytes.fromhex(words.digest(PACK)), len(PACK))


def evil(path: bytes) -> File:
    return File(path, 0o644, 0, len(PACK))


HOSTILE: dict[str, Iterable[Entry]] = {
    "above": [evil(b"../evil")],
    "above within": [Folder(b"a", 0o755, 0), evil(b"a/../../evil")],
    "absolute": [evil(b"/tmp/evil")],
    "empty": [evil(b"")],
    "itself": [Folder(b".", 0o755, 0)],
    "double": [Folder(b"a", 0o755, 0), evil(b"a//evil")],
    "a NUL": [evil(b"evil\0")],
    "through a link": [Link(b"a", b"/tmp"), evil(b"a/evil")],
    "through a link inside": [Folder(b"d", 0o755, 0), Link(b"a", b"d"), evil(b"a/evil")],
    "through a link that was a folder": [Folder(b"a", 0o755, 0), Link(b"a", b"/tmp"), evil(b"a/evil")],
    "a file that is a link": [Link(b"a", b"b"), evil(b"a")],
    "through a file": [evil(b"a"), evil(b"a/b")],
    "no folder": [evil(b"a/b")],
    "a folder that comes later": [evil(b"a/b"), Folder(b"a", 0o755, 0)],
    "a link out": [Link(b"a", b"../evil")],
    "an absolute link": [Link(b"a", b"/tmp/evil")],
    "a link out by another": [
        Folder(b"d", 0o755, 0),
        Folder(b"d/e", 0o755, 0),
        Link(b"d/e/top", b"../.."),
        Link(b"k", b"d/e/top/../evil"),
    ],
    "links in a circle": [Link(b"a", b"b"), Link(b"b", b"a")],
    "a set-id bit": [File(b"a", 0o4755, 0, len(PACK))],
    "a size that isn't there": [File(b"a", 0o644, 0, len(PACK) + 1)],
    "bytes before the pack": [File(b"a", 0o644, 0, 1, 0, -1)],
    "bytes behind the pack": [File(b"a", 0o644, 0, 4, 0, 8)],
    "a chunk that isn't there": [File(b"a", 0o644, 0, 4, 1)],
    "a chunk from behind": [File(b"a", 0o644, 0, 4, -1)],
    "a large file of one small chunk": [File(b"a", 0o644, 0, 9 << 20)],
    "an endless file": [File(b"a", 0o644, 0, 1 << 60)],
    "a name without end": [evil(b"x" * 256)],
    "a time without end": [File(b"a", 0o644, 1 << 63, 4)],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_writes_nothing(what: str) -> None:
    manifest = Manifest(chunks.FORMAT, (NAMED,), tuple(HOSTILE[what]))
    with pytest.raises(Damaged):
        chunks.read(b"M" + msgspec.msgpack.encode(manifest))


def test_what_is_no_manifest_is_refused() -> None:
    good = msgspec.msgpack.encode(Manifest(chunks.FORMAT, (NAMED,), (evil(b"a"),)))
    chunks.read(b"M" + good)
    later = msgspec.msgpack.encode(Manifest(chunks.FORMAT + 1, (NAMED,), (evil(b"a"),)))
    for data in (
        b"",
        b"M",
        b"X" + good,
        b"M" + later,
        b"M" + good + b"\0",
        b"I",
        b"I" + bytes(31),
        b"M" + b"\x91" * 5_000,
    ):
        with pytest.raises(Damaged):
            chunks.read(data, [bytes(1) for _ in chunks.parts(data)])
    with pytest.raises(Damaged):
        chunks.parts(b"I" + bytes(words.DIGEST_BYTES) * 1_000)


def test_a_chunk_of_two_sizes_is_a_contradiction(tmp_path: Path) -> None:
    other = msgspec.structs.replace(NAMED, size=NAMED.size + 1)
    manifest = Manifest(chunks.FORMAT, (NAMED, other), (evil(b"a"), File(b"b", 0o644, 0, len(PACK) + 1, 1)))
    with pytest.raises(Damaged):
        Unpacking(manifest, str(tmp_path))


# ---- taking the snapshot


def test_what_is_named_keeps_its_path_and_what_is_outside_its_last_name(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "b" / "in").write_text("1")
    (here / "a" / "not").write_text("2")
    (tmp_path / "else" / "where").mkdir(parents=True)
    (tmp_path / "else" / "where" / "out").write_text("3")
    (here / "led").symlink_to("../else/where")
    found = read(*snapped(here, ["a/b", "../else/where", "led", "./a/b/in"]))
    assert [entry.path for entry in found.entries] == [
        b"a",
        b"a/b",
        b"a/b/in",
        b"led",
        b"led/out",
        b"where",
        b"where/out",
    ]
    assert [entry.path for entry in read(*snapped(here, ["../else/where/out"])).entries] == [b"out"]


def test_the_source_may_change_afterwards_and_while_it_is_read_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").write_text("before")
    bundle, found = snapped(tmp_path)
    (tmp_path / "log").write_text("after")
    unpack(bundle, found, tmp_path / "out")
    assert (tmp_path / "out" / "log").read_text() == "before"
    from beo.bulk import snapshot

    def growing(file: object, size: int) -> list[bytes]:
        with (tmp_path / "log").open("a") as more:
            more.write("more")
        return [b"x" * size]

    monkeypatch.setattr(snapshot, "_blocks", growing)
    with pytest.raises(BeoError, match=r"log changes while it is read: wait until it is written"):
        snapped(tmp_path, ["log"])


def test_what_can_t_be_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    (tmp_path / "sub").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(here)
        server.bind("sock")
        for inputs, text in (
            (["sock"], "sock is a socket (only files, folders and symbolic links can be taken along)"),
            (["."], "sock is a socket"),
            (["gone"], "--in gone (there is no"),
            (["/"], "--in /: that is the whole machine"),
            (
                ["sub", "../sub"],
                "sub and ../sub would both be sub (what is outside this folder comes in under its last",
            ),
        ):
            with pytest.raises(BeoError) as raised:
                snapped(here, inputs)
            assert text in str(raised.value)
    (here / "sock").unlink()
    os.mkfifo(here / "pipe")
    with pytest.raises(BeoError, match=r"pipe is a pipe"):
        snapped(here)
    (here / "pipe").unlink()
    (here / "link").symlink_to("/etc/passwd")
    with pytest.raises(
        BeoError, match=r"the link .*/link leads out of what is taken along .to /etc/passwd.: name what"
    ):
        snapped(here)
    (here / "link").unlink()
    (here / "file").write_text("x")
    snapshot = Snapshot(["file"], str(here))
    (here / "file").unlink()
    with pytest.raises(BeoError, match=r"there is no .*/file .any more."):
        list(snapshot.cuts())
    monkeypatch.setattr("beo.bulk.snapshot.FILES_MAX", 3)
    for number in range(4):
        (here / str(number)).touch()
    with pytest.raises(BeoError, match=r"the inputs are too many files .the limit is 3 of one job."):
        snapped(here)
    monkeypatch.setattr("beo.bulk.snapshot.BUNDLE_MAX_BYTES", 3)
    (here / "0").write_text("four")
    with pytest.raises(BeoError, match=r"the inputs are too large .the limit is 3B of one job."):
        snapped(here, ["0"])


# ---- results


def test_results_are_what_the_patterns_mean_and_what_is_new_or_changed(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    for name in ("out/a", "out/deep/b", "c.log", "d.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "out" / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "out" / "pipe")

    def found(*patterns: str) -> list[str]:
        return sorted(map(os.fsdecode, results.listing(str(tmp_path), patterns)))

    assert found("out") == found("out/*") == ["out/a", "out/deep/b", "out/link"]
    assert found("*.log", "out/deep") == ["c.log", "out/deep/b"]
    assert found("*") == ["c.log", "d.txt", "out/a", "out/deep/b", "out/link"]
    assert found("d.txt", "nothing/*", "d.txt/x") == ["d.txt"]
    before = results.listing(str(tmp_path), ["*"])
    (tmp_path / "c.log").write_text("C.LOG")
    (tmp_path / "out" / "new").touch()
    (tmp_path / "out" / "a").unlink()
    assert results.changed(before, results.listing(str(tmp_path), ["*"])) == [b"c.log", b"out/new"]


def test_of_several_nodes_the_first_keeps_the_name_and_what_is_the_same_is_kept_once() -> None:
    first, second, third = {b"a": b"1", b"s": b"="}, {b"a": b"2", b"b": b"2", b"s": b"="}, {b"a": b"1", b"b": b"3"}
    assert results.names(first, [], "n1") == {b"a": b"a", b"s": b"s"}
    assert results.names(second, [first], "n2") == {b"a": b"a.n2", b"b": b"b"}
    assert results.names(third, [first, second], "n3") == {b"b": b"b.n3"}
