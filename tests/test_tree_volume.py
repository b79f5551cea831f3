"""Two volumes, one leading and one following: what was said is on both, whoever leads next, and they end the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tree_pair import Clock, World, small


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place: much is synced."""
    found = Path(tempfile.mkdtemp(prefix="beo-tree-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield found
    shutil.rmtree(found)


def run(folder: Path, seed: int, steps: int) -> Counter[str]:
    """One world, from its beginning through trouble to its end; return what has happened in it."""
    happened: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        small(patch, clock, happened)
        world = World(folder / str(seed), seed, clock)
        try:
            for _ in range(steps):
                world.step()
            world.calm_down()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            world.close()
        shutil.rmtree(folder / str(seed))
        return happened


def test_what_was_said_is_on_both_whatever_happens(folder: Path) -> None:
    happened: Counter[str] = Counter()
    for seed in range(30):
        happened += run(folder, seed, 400)
    print(happened)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_what_was_said_is_on_both_whatever_happens_for_a_long_time(folder: Path, part: int) -> None:
    for seed in range(1_000 + 20 * part, 1_020 + 20 * part):
        run(folder, seed, 1_000)
