"""A copy that must be made is tried until it is, any other is given up; it says what is in it, and can be put back.

Of a program's checkpoints it has what can be begun with, and what hasn't changed since the last copy isn't read again.
"""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from beo.bulk import chunks
from beo.bulk.chunks import File, Manifest
from beo.bulk.keeper import copy
from beo.bulk.porter import empty
from beo.bulk.snapshot import Snapshot
from beo.bulk.store import Store, manifest
from beo.bulk.unpacking import Unpacking
from beo.bulk.vouched import Vouched
from beo.checkpoints.manifest import encode
from beo.checkpoints.offline import summaries
from beo.checkpoints.slots import Slots, places
from beo.client import Cluster as Client
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.locate import session
from beo.worker.copies import AGAIN_S, Copied, Copies, Copying, Wish
from tests.checkpoint_world import World, flip
from tests.cluster import running

MIB = 1 << 20
LARGE = [5 * MIB + 100, 200, 2 * MIB + 9]  # of more than a chunk, of a pack, of a chunk
LEVELS = {"raid1": 2, "raid4": 3, "raid5": 3, "rs": 3}  # and how many nodes


class Bundle:
    """What a copy came to: its manifest and the bytes of its chunks, and which checkpoints it says are in it."""

    def __init__(self, folder: Path, last: "Bundle | None" = None) -> None:
        """Copy a folder as the node's process does, with the tree in memory. last: the copy before."""
        vouched = Vouched(folder, places(folder))
        if last:
            vouched.spare(vouched.unchanged(last.manifest, last.contents(".manifest", ".new")))
        snapshot = Snapshot(["."], str(folder), vouched)
        self.read = {cut.name: cut.data for cut in snapshot.cuts()}
        self.data: dict[str, bytes] = {**(last.data if last else {}), **self.read}
        first = self.data[snapshot.bundle]
        self.manifest: Manifest = chunks.read(first, [self.data[name] for name in chunks.parts(first)])
        self.checkpoints = vouched.checkpoints()

    def contents(self, *endings: str) -> dict[bytes, bytes]:
        """The bytes of its files with these endings, by their paths."""
        files = [entry for entry in self.manifest.entries if isinstance(entry, File)]
        return {
            file.path: chunks.content(self.manifest, file, self.data)
            for file in files
            if file.path.decode().endswith(endings)
        }

    def put_back(self, folder: Path) -> None:
        """Write it out."""
        folder.mkdir(parents=True)
        unpacking = Unpacking(self.manifest, str(folder))
        for name in unpacking.missing:
            unpacking.take(name, self.data[name])
        unpacking.finish()


def names_of(manifest: Manifest) -> set[str]:
    return {os.fsdecode(entry.path) for entry in manifest.entries if isinstance(entry, File)}


def flip_in_memory(path: Path) -> None:
    """Change one bit, or change it back, with no time that tells of it."""
    times = path.stat()
    flip(path, MIB)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def images(world: World, node: str) -> list[Path]:
    return sorted(world.folder(node).rglob("*.image"))


def test_a_copy_that_must_be_made_is_tried_again_where_no_process_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[float] = []

    def refuse(*_: object, **__: object) -> None:
        tries.append(1.0)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    told: list[tuple[bool, Copied]] = []
    copies = Copies("/nowhere", lambda wish, copied: told.append((wish.must, copied)))
    copies.want(Wish(1, 1, "/nowhere", 0, 0, (), must=True))
    copies.tick(0.0)
    copies.tick(AGAIN_S / 2)
    assert (len(tries), told) == (1, [])
    copies.tick(AGAIN_S)
    assert (len(tries), told) == (2, [])
    copies.forget(1, 1)
    copies.want(Wish(2, 1, "/nowhere", 0, 0, ()))
    copies.tick(2 * AGAIN_S)
    assert [must for must, copied in told if copied.failed] == [False]


def test_a_copy_is_told_of_the_last_one_of_its_job_until_nobody_wants_more_of_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks: list[Copying] = []
    answers = iter([Copied("a" * 64), Copied(failed="no head"), Copied("b" * 64), Copied("c" * 64)])

    class Input(io.BytesIO):
        def close(self) -> None:
            tasks.append(msgspec.json.decode(self.getvalue(), type=Copying))
            super().close()

    class Done:
        """A process that has copied."""

        def __init__(self, *_: object, **__: object) -> None:
            self.stdin, self.stdout = Input(), io.BytesIO(msgspec.json.encode(next(answers)))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Done)
    copies = Copies("/nowhere", lambda wish, copied: None)

    def last(job: int) -> str:
        copies.want(Wish(job, 1, "/nowhere", 0, 0, ()))
        copies.tick(0.0)
        copies.tick(0.0)
        return tasks[-1].last

    assert [last(1), last(1), last(1)] == ["", "a" * 64, "a" * 64]
    copies.forget(1, 1)
    assert last(1) == ""


def test_a_copy_says_which_checkpoints_are_in_it_and_how_much_of_each(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n1", "n2"], "raid1")
    world.save(7, [100, 200, 300])
    (one,), (other,) = (Bundle(world.folder(node)).checkpoints for node in ("n1", "n2"))
    assert (one[0], one[1:], other[1:]) == (other[0], (2, 3), (1, 3))
    world.save(8, [100, 200, 300])
    assert len({name for name, *_ in Bundle(world.folder("n1")).checkpoints}) == 2


def test_all_nodes_say_the_same_of_a_checkpoint_when_it_was_taken_above_all(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n2", "n3"], "raid5")
    world.save(7, [100, 200, 300])
    wholes = [manifest.whole for name in ("n1", "n2", "n3") for manifest, _ in Slots(world.folder(name)).manifests()]
    assert len(wholes) == 3
    assert all(whole == wholes[0] for whole in wholes), "where the last one lies is found by that"


def test_a_spoilt_image_doesnt_count_so_that_its_copy_takes_no_good_ones_place(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n1", "n2"], "raid1")
    world.save(7, [100, 200, 300])
    flip(next(world.folder("n1").rglob("00001.image")), 50)
    copied = Bundle(world.folder("n1"))
    ((_, there, ranks),) = copied.checkpoints
    assert (there, ranks) == (1, 3)
    assert {Path(name).name for name in names_of(copied.manifest)} == {
        "00000.image",
        "00000.manifest",
        "00001.manifest",
    }


@pytest.mark.parametrize("level", LEVELS)
def test_who_begins_with_copies_alone_has_every_byte_and_all_that_its_level_promises(
    level: str, tmp_path: Path
) -> None:
    nodes = [f"n{number}" for number in range(LEVELS[level])]
    world = World(tmp_path / "nodes", nodes, level)
    world.save(7, LARGE[: len(nodes)])
    world.save(8, LARGE[: len(nodes)])
    copies = {node: Bundle(world.folder(node)) for node in nodes}
    kinds = {Path(name).suffix for copied in copies.values() for name in names_of(copied.manifest)}
    assert kinds == {".image", ".manifest"}, "both slots, and no parity"
    assert all(len(copied.checkpoints) == 2 for copied in copies.values())
    world.lose(*nodes)
    for node in nodes:
        copies[node].put_back(world.folder(node))
    newest, before = summaries([world.folder(node) for node in nodes])
    assert (newest.whole.step, before.whole.step) == (8, 7)
    assert newest.is_whole and before.is_whole and not newest.lost
    assert sum(part.spoilt for one in (newest, before) for part in one.parts) == 0
    assert world.load() == [8] * len(nodes)
    assert world.files("parity"), "made anew"
    world.lose(nodes[0])
    assert world.load() == [8] * len(nodes), "a loss right after is borne"


def test_a_checkpoint_that_hasnt_changed_since_the_last_copy_isnt_read_again(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n1", "n2"], "raid1")
    world.save(7, LARGE)
    first = Bundle(world.folder("n1"))
    large = images(world, "n1")[0]
    flip_in_memory(large)  # it would be seen by whoever reads
    again = Bundle(world.folder("n1"), first)
    assert again.checkpoints == first.checkpoints
    assert again.contents(".image") == first.contents(".image")
    assert sum(map(len, again.read.values())) < MIB
    world.save(8, LARGE)
    after = Bundle(world.folder("n1"), again)
    assert [there for _, there, _ in after.checkpoints] == [2, 2]
    assert LARGE[0] < sum(map(len, after.read.values())) < 2 * LARGE[0]
    world.save(9, LARGE)
    world.save(10, LARGE)
    assert names_of(Bundle(world.folder("n1"), after).manifest) == names_of(after.manifest)
    assert Bundle(world.folder("n1"), after).contents(".image") == Bundle(world.folder("n1")).contents(".image")


def test_what_was_spoilt_when_it_was_copied_is_read_again_when_it_is_mended(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n2"], "raid1")
    world.save(7, LARGE[:2])
    flip(images(world, "n1")[0], MIB)
    spoilt = Bundle(world.folder("n1"))
    assert [there for _, there, _ in spoilt.checkpoints] == [0]
    assert world.load() == [7, 7]  # which mends it, and its manifest is the same
    mended = Bundle(world.folder("n1"), spoilt)
    assert [there for _, there, _ in mended.checkpoints] == [1]
    assert len(mended.contents(".image")) == 1


def test_a_manifest_that_is_replaced_while_its_image_is_copied_vouches_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n2"], "raid1")
    world.save(7, LARGE[:2])
    folder = world.folder("n1")
    ((path, manifest, _),) = Slots(folder).contents()
    vouched = Vouched(folder, places(folder))
    path.write_bytes(encode(msgspec.structs.replace(manifest, has_parity=False)))
    snapshot = Snapshot(["."], str(folder), vouched)
    assert path.read_bytes() not in b"".join(cut.data for cut in snapshot.cuts())
    assert [there for _, there, _ in vouched.checkpoints()] == [0]


def test_of_two_manifests_of_an_image_the_one_that_isnt_sealed_yet_is_of_what_was_written_last(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1"], "raid0")
    world.save(7, [100])
    ((path, _, old),) = Slots(world.folder("n1")).contents()
    world.save(8, [100])
    world.save(9, [100])  # into the same slot
    path.rename(path.with_suffix(".new"))
    path.write_bytes(old)
    steps = {manifest.whole.name: manifest.whole.step for _, manifest, _ in Slots(world.folder("n1")).contents()}
    there = {steps[name]: images for name, images, _ in Bundle(world.folder("n1")).checkpoints}
    assert there == {7: 0, 8: 1, 9: 1}


def test_what_no_manifest_vouches_for_is_not_copied_but_other_files_are(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1"], "raid0")
    world.save(7, [3 * MIB])
    folder = world.folder("n1")
    slot = next(folder.rglob("*.image")).parent
    (slot / "00005.image").write_bytes(b"of a checkpoint that was never finished")
    (slot / "restart.dat").write_bytes(b"of a program's own")
    (folder / "00006.image").write_bytes(b"of a program's own, outside its slots")
    names = names_of(Bundle(folder).manifest)
    assert {f"{slot.name}/restart.dat", "00006.image"} <= names
    assert f"{slot.name}/00005.image" not in names


def test_parity_is_copied_where_several_programs_have_checkpoints_since_copies_are_matched_by_one(
    tmp_path: Path,
) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    for program in ("one", "other"):
        world = World(tmp_path / program, ["n1", "n2"], "raid1")
        world.save(7, [100, 200])
        world.folder("n1").rename(vault / program)
    copied = Bundle(vault)
    assert len(copied.checkpoints) == 2
    assert len([name for name in names_of(copied.manifest) if name.endswith(".parity")]) == 2


def test_who_copies_begins_without_what_only_computing_needs() -> None:
    program = "import sys; sys.argv = ['x']; import beo.bulk.keeper; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """A tree of files that a head serves, and BEO_DIR for who copies into it."""
    with (
        running(tmp_path_factory.mktemp("copies") / "beo", workers=1) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("BEO_DIR", str(cluster.home.path))
        client = Client()
        with Files(session(client.home, client.secret()), w.Caller(os.geteuid(), os.getegid(), ())) as files:
            yield files


def test_chunks_of_the_last_copy_that_are_gone_from_the_tree_are_sent_again(tree: Files, tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n2"], "raid1")
    world.save(7, LARGE[:2])
    task = Copying(str(world.folder("n1")), os.geteuid(), os.getegid(), (), 0)
    first = copy(task)
    assert not first.failed
    assert [found[1:] for found in first.checkpoints] == [(1, 2)]
    uid, store = os.geteuid(), Store(tree, os.geteuid())
    (file,) = [e for e in manifest(store.fetch, first.bundle).entries if isinstance(e, File) and e.size > LARGE[0]]
    names = [c.name.hex() for c in chunks.chunks_of(manifest(store.fetch, first.bundle), file)]
    assert len(names) == 2
    told = msgspec.structs.replace(task, last=first.bundle)
    flip_in_memory(images(world, "n1")[0])
    assert copy(told) == first, "it isn't read"
    flip_in_memory(images(world, "n1")[0])
    tree.remove(f"/.chunks/{uid}/{names[1][:2]}/{names[1]}")
    assert copy(told) == first
    assert dict(store.fetch(names)).keys() == set(names), "it was read, and sent"
    tree.remove(f"/.chunks/{uid}/{first.bundle[:2]}/{first.bundle}")
    assert copy(told) == first, "the bundle itself is gone"
    assert manifest(store.fetch, first.bundle)


def test_a_vault_that_is_emptied_takes_nothing_along_that_links_lead_to(tmp_path: Path) -> None:
    vault, outside = tmp_path / "vault", tmp_path / "outside"
    for folder in (vault / "program.1" / "a", outside):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (vault / "link").symlink_to(outside)
    (vault / "program.1" / "link").symlink_to(outside)
    empty(str(vault))
    assert list(vault.iterdir()) == []
    assert (outside / "file").exists()
