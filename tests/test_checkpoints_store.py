"""What the store of checkpoints promises: after losses that its level stands, every byte is there again; after more, a
clear refusal. Ranks are threads here (ranks.py); test_checkpoints_mpi.py has real ones."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from beo.checkpoints import plan
from beo.checkpoints.alone import Alone
from beo.checkpoints.slots import Slots
from beo.checkpoints.store import CheckpointFailed, LostCheckpoint, Store
from beo.errors import BeoError, UsageError
from tests.checkpoint_world import SURVIVES, World, flip, image, meta_of, parts_of, read_all

MIB = 1 << 20
SIZES = {
    "nothing": [0, 0, 0, 0, 0],
    "little": [1, 64, 5, 0, 200],
    "unequal": [3 * MIB + 17, 0, MIB, 100, 2 * MIB - 1],
}


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder in memory."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="beo-checkpoints-", dir=where) as path:
        yield Path(path) / "nodes"


def nodes(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


def refused(results: Sequence[object]) -> str:
    """Return the words of a refusal that all ranks got."""
    assert all(isinstance(result, LostCheckpoint) for result in results), results
    (words,) = {str(result) for result in results}
    return words


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("level", plan.LEVELS)
def test_every_loss_that_a_level_stands_gives_back_every_byte_and_one_more_is_refused(
    top: Path, level: str, sizes: str
) -> None:
    world = World(top, nodes(5), level)
    assert world.save(7, SIZES[sizes]) == [None] * 5
    world.keep(top.parent / "kept")
    for count in range(3):
        for lost in itertools.combinations(world.nodes, count):
            world.put_back(top.parent / "kept")
            world.lose(*lost)
            found = world.load()
            if count <= SURVIVES[level]:
                assert found == [7] * 5, (lost, found)
                assert world.load() == [7] * 5  # what was made again is there to stay
            elif any(isinstance(result, Exception) for result in found):
                assert "is lost" in refused(found) and level in refused(found)
            else:
                assert found == [7] * 5  # two that weren't of one stripe


def test_a_later_checkpoint_says_a_later_time_on_a_node_whose_clock_is_behind_too(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that the head knows which nodes have the newest one."""
    world = World(top, nodes(3), "raid5")

    def save(step: int, clock_s: float) -> float:
        monkeypatch.setattr(time, "time", lambda: clock_s)
        world.save(step, [100, 100, 100])
        times = {m.whole.step: m.whole.time_s for node in world.nodes for m, _ in Slots(top / node).manifests()}
        return times[step]

    assert save(1, 5000.0) == 5000.0
    assert 5000.0 < (second := save(2, 60.0)) < 5000.1
    assert second < save(3, 61.0) < 5000.1
    assert save(4, 6000.0) == 6000.0


@pytest.mark.parametrize("level", ["raid1", "raid4", "raid5", "rs"])
def test_a_flipped_bit_anywhere_is_found_and_mended(top: Path, level: str) -> None:
    world = World(top, nodes(4), level)
    world.save(3, [2 * MIB + 9, 70, MIB, 300_000])
    for kind in (plan.IMAGE, plan.PARITY):
        for path in world.files(kind):
            before = path.read_bytes()
            for at in {0, len(before) // 2, len(before) - 1}:
                flip(path, at)
                mended = world.run(lambda store: (read_all(store), store.counters.mended))
                assert mended == [(3, 1)] * 4
                assert path.read_bytes() == before


def test_scrub_mends_two_spoilt_blocks_of_a_stripe_with_rs_and_refuses_with_raid5(top: Path) -> None:
    for level in ("rs", "raid5"):
        world = World(top / level, nodes(4), level)
        world.save(3, [MIB] * 4)

        def body(store: Store, world: World = world) -> int:
            assert store.newest()
            store._comm.barrier()
            if store._comm.rank == 0:
                for path in world.files(plan.IMAGE)[:2]:
                    for at in range(0, MIB, 1000):
                        flip(path, at)
            store._comm.barrier()
            return store.scrub()

        found = world.run(body)
        if level == "rs":
            assert found == [2] * 4
        else:
            assert "more blocks are spoilt than raid5" in refused(found)


def test_a_flipped_bit_without_parity_is_refused(top: Path) -> None:
    world = World(top, nodes(2), "raid0")
    world.save(3, [1000, 1000])
    flip(world.files(plan.IMAGE)[1], 900)
    assert "a block of rank 1 is spoilt" in refused(world.load())


@pytest.mark.parametrize("level", plan.LEVELS)
@pytest.mark.parametrize("after", [1, 2, 6])
def test_another_number_of_ranks_on_other_nodes_reads_it_and_goes_on(top: Path, level: str, after: int) -> None:
    world = World(top, ["n0", "n0", "n1", "n2", "n3"], level)
    sizes = [100, 2 * MIB, MIB + 1, 0, 12345]
    assert world.save(1, sizes) == [None] * 5
    world.nodes, world.level = tuple(f"n{rank}" for rank in range(after)), None
    if after < 4:
        for rest in range(after, 4):  # the nodes that remain are there, and nobody is on them
            world.folder(f"n{rest}").rename(world.folder(f"n{rest}").with_name(f"away{rest}"))
    found = world.load()
    if any(isinstance(result, Exception) for result in found):
        refused(found)
        assert 4 - min(after, 4) > SURVIVES[level]
        return
    assert found == [1] * after
    for step in (2, 3, 4):
        assert world.save(step, list(range(1000, 1000 + after))) == [None] * after
        assert world.load() == [step] * after
    assert len(world.files(plan.IMAGE)) <= 2 * after + 4  # nothing of the five ranks stays for ever


@pytest.mark.parametrize("layout", [["a", "a", "b", "b"], ["a", "a", "a", "b", "c"], ["a", "b", "c", "a", "b", "c"]])
def test_several_ranks_on_a_node_are_lost_together_and_come_back(top: Path, layout: list[str]) -> None:
    for level in ("raid1", "raid4", "raid5", "rs"):
        if len(set(layout)) < plan.least_nodes(level):
            continue
        world = World(top / level, layout, level)
        assert world.save(5, [rank * 400_000 for rank in range(len(layout))]) == [None] * len(layout)
        for lost in sorted(set(layout)):
            world.lose(lost)
            assert world.load() == [5] * len(layout), (level, lost)


@pytest.mark.parametrize("level", plan.LEVELS)
def test_what_leaving_nodes_keep_is_copied_to_those_that_stay(top: Path, level: str) -> None:
    world = World(top, nodes(4), level)
    sizes = [100, MIB + 5, 0, 2 * MIB]

    def body(store: Store) -> bool:
        rank = store._comm.rank
        store.save(4, parts_of(image(rank, 4, sizes[rank])), meta_of(rank, 4, sizes[rank]))
        assert not store.evacuate(world.nodes)  # nobody stays
        return store.evacuate(["n1", "n3"])

    assert world.run(body) == [True] * 4
    world.lose("n1", "n3")
    world.nodes, world.level = ("n0", "n2"), None
    assert world.load() == [4] * 2


def test_a_new_checkpoint_replaces_the_one_before_and_takes_no_more_files(top: Path) -> None:
    world = World(top, nodes(3), None)
    counts = []
    for step in range(6):
        assert world.save(step, [1000 + step] * 3) == [None] * 3
        assert world.load() == [step] * 3
        counts.append(len(list(top.glob("*/*/*"))))
    assert counts[2:] == [counts[2]] * 4


def test_the_newest_is_found_by_a_store_that_saved_without_looking(top: Path) -> None:
    world = World(top, nodes(3), None)
    for step in range(3):
        world.save(step, [100] * 3)  # each by a new store, which must not take the slot of the last
        world.keep(top.parent / f"kept{step}")
    sealed = [manifest for manifest, _ in Slots(world.folder("n0")).manifests()]
    assert sorted(manifest.whole.step for manifest in sealed) == [1, 2]


@pytest.mark.parametrize("level", ["raid0", "raid1", "raid5"])
def test_a_crash_between_the_manifests_leaves_the_new_checkpoint_or_the_one_before(top: Path, level: str) -> None:
    for former in (False, True):
        world = World(top / f"{level}{former}", nodes(3), level)
        if former:
            world.save(1, [5000] * 3)
        world.save(2, [7000] * 3)
        sealed = [path for path in world.files("manifest") if path.parent.name == ("a" if former else "b")]
        assert len(sealed) == 3
        for path in sealed:  # one after another as it was before its rename; the last: nobody had been told
            path.rename(path.with_suffix(".new"))
            world.keep(top.parent / "kept")
            left = 2 if path != sealed[-1] else 1 if former else None
            assert world.load() == [left] * 3
            world.put_back(top.parent / "kept")
            shutil.rmtree(top.parent / "kept")


def test_a_crash_while_images_are_written_leaves_the_one_before(top: Path) -> None:
    world = World(top, nodes(3), "raid5")
    world.save(1, [MIB] * 3)
    world.save(2, [MIB] * 3)
    for folder in sorted(top.iterdir()):  # as step 3 begins: slot b is overwritten
        for path in (folder / "b").glob("*.manifest"):
            path.unlink()
        for path in (folder / "b").glob("*.image"):
            path.write_bytes(os.urandom(MIB))
        assert world.load() == [2] * 3


@pytest.mark.parametrize("what", ["parts", "meta", "step", "steps"])
def test_what_one_rank_gives_wrongly_is_refused_on_all_and_nothing_is_lost(top: Path, what: str) -> None:
    world = World(top, nodes(3), None)
    world.save(1, [100] * 3)

    def body(store: Store) -> None:
        rank = store._comm.rank
        wrong = rank == 1
        parts: list[object] = [np.zeros((4, 4), np.uint8).T[1:3] if wrong and what == "parts" else b"abc"]
        meta = b"x" * (1 << 27) if wrong and what == "meta" else b""
        step = -1 if wrong and what == "step" else rank if what == "steps" else 2
        store.save(step, parts, meta)

    results = world.run(body)
    assert all(isinstance(result, CheckpointFailed) for result in results), results
    assert len({str(result) for result in results}) == 1
    assert world.load() == [1] * 3


def test_levels_that_nodes_cannot_have_are_refused_in_words(top: Path) -> None:
    for level, count in (("raid1", 1), ("raid5", 1), ("rs", 2), ("raid6", 4)):
        results = World(top, nodes(count), level).run(lambda store: None)
        assert all(isinstance(result, UsageError) and level in str(result) for result in results)


def test_the_level_follows_from_the_nodes(top: Path) -> None:
    for count, level in ((1, "raid0"), (2, "raid1"), (3, "raid5"), (5, "raid5")):
        assert World(top, nodes(count), None).run(lambda store: store.level) == [level] * count


def test_what_no_checkpoint_has_is_not_fetched(top: Path) -> None:
    world = World(top, nodes(2), None)
    world.save(1, [100] * 2)
    for want in ((2, 0, 1), (-1, 0, 1), (0, -1, 2), (0, 0, 1 << 20), (0, 1 << 60, 1)):

        def body(store: Store, want: tuple[int, int, int] = want) -> None:
            sealed = store.newest()
            assert sealed
            sealed.fetch([(want[0], want[1], memoryview(bytearray(want[2])))] if store._comm.rank else [])

        results = world.run(body)
        assert all(isinstance(result, BeoError) for result in results), results


def test_a_program_without_mpi_has_checkpoints_too(top: Path) -> None:
    store = Store(Alone(), top, None, "here")
    assert store.newest() is None
    own = image(0, 4, 3_000_000)
    store.save(4, parts_of(own), meta_of(0, 4, len(own)))
    assert read_all(Store(Alone(), top, None, "here")) == 4


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spoilt_manifests_count_as_missing_and_never_raise_anything_else(top: Path, data: st.DataObject) -> None:
    shutil.rmtree(top, ignore_errors=True)
    world = World(top, nodes(3), "raid5")
    world.save(1, [100, 2000, 50])
    kept = world.files("manifest")
    path = data.draw(st.sampled_from(kept))
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut] + data.draw(st.binary(max_size=30)))
    assert world.load() == [1] * 3


def test_links_pipes_and_folders_in_place_of_files_count_as_missing(top: Path) -> None:
    for name in ("image", "parity", "manifest"):
        for turn in ("pipe", "link"):
            world = World(top / f"{name}-{turn}", nodes(3), "raid5")
            world.save(1, [5000] * 3)
            path = world.files(name)[1]
            path.unlink()
            if turn == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to("/dev/zero")
            results = world.load()
            assert results == [1] * 3 or all(isinstance(result, BeoError) for result in results), results


NODES = nodes(4)


class Life(RuleBasedStateMachine):
    """A job that saves, loses nodes, has bits flipped and starts again on other nodes, beside a plain model.

    The model: the step of the last checkpoint, and whether what has befallen it since is within what its level stands.
    """

    @initialize(level=st.sampled_from(["raid1", "raid4", "raid5", "rs"]))
    def begin(self, level: str) -> None:
        self._kept = tempfile.TemporaryDirectory(
            prefix="beo-life-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
        )
        self.world = World(Path(self._kept.name) / "nodes", NODES, level)
        self.step: int | None = None
        self.next = 1
        self.harmed: set[str] = set()  # nodes

    @rule(sizes=st.lists(st.sampled_from([0, 1, 100, MIB, MIB + 1, 300_000]), min_size=6, max_size=6))
    def save(self, sizes: list[int]) -> None:
        assert self.world.save(self.next, sizes) == [None] * len(self.world.nodes)
        self.step, self.harmed = self.next, set()
        self.next += 1

    @precondition(lambda self: self.step is not None and len(self.harmed) < SURVIVES[self.world.level])
    @rule(node=st.sampled_from(NODES))
    def lose(self, node: str) -> None:
        if node in self.world.nodes:
            self.world.lose(node)
            self.harmed.add(node)

    @precondition(lambda self: self.step is not None and len(self.harmed) < SURVIVES[self.world.level])
    @rule(node=st.sampled_from(NODES), kind=st.sampled_from(["image", "parity"]), where=st.floats(0, 0.999))
    def flip(self, node: str, kind: str, where: float) -> None:
        for path in self.world.files(kind):
            if path.parent.parent.name == node:
                flip(path, int(path.stat().st_size * where))
                self.harmed.add(node)

    @rule(ranks=st.sampled_from([NODES, [*NODES, "n0"], [*NODES, "n1", "n0"], NODES[::-1]]))
    def start_again(self, ranks: list[str]) -> None:
        self.world.nodes = tuple(ranks)
        self.read()

    @rule()
    def read(self) -> None:
        assert self.world.load() == [self.step] * len(self.world.nodes)
        self.harmed = set()

    def teardown(self) -> None:
        if hasattr(self, "_kept"):
            self._kept.cleanup()


Life.TestCase.settings = settings(max_examples=25, stateful_step_count=12)
TestLife = Life.TestCase
