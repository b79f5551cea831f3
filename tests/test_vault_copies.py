"""A copy that must be made is tried until it is, any other is given up; it says what is in it, and can be put back."""

import subprocess
from pathlib import Path

import pytest

from beo.bulk.keeper import found_in
from beo.bulk.porter import empty
from beo.checkpoints.slots import Slots
from beo.worker.copies import AGAIN_S, Copied, Copies, Wish
from tests.checkpoint_world import World


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


def test_a_copy_says_which_checkpoints_are_in_it_and_how_much_of_each(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n1", "n2"], "raid1")
    assert found_in(world.folder("n1")) == []  # it has only begun
    world.save(7, [100, 200, 300])
    (one,), (other,) = found_in(world.folder("n1")), found_in(world.folder("n2"))
    assert (one[0], one[1:], other[1:]) == (other[0], (2, 3), (1, 3))
    world.save(8, [100, 200, 300])
    assert len({name for name, *_ in found_in(world.folder("n1"))}) == 2


def test_all_nodes_say_the_same_of_a_checkpoint_when_it_was_taken_above_all(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n2", "n3"], "raid5")
    world.save(7, [100, 200, 300])
    wholes = [manifest.whole for name in ("n1", "n2", "n3") for manifest, _ in Slots(world.folder(name)).manifests()]
    assert len(wholes) == 3
    assert all(whole == wholes[0] for whole in wholes), "where the last one lies is found by that"


def test_a_spoilt_image_doesnt_count_so_that_its_copy_takes_no_good_ones_place(tmp_path: Path) -> None:
    world = World(tmp_path / "nodes", ["n1", "n1", "n2"], "raid1")
    world.save(7, [100, 200, 300])
    image = next(world.folder("n1").rglob("00001.image"))
    data = image.read_bytes()
    image.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    ((_, images, ranks),) = found_in(world.folder("n1"))
    assert (images, ranks) == (1, 3)


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
