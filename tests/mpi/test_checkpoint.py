"""What `beo.checkpoint` promises two ranks and more: they agree, and one speaks for all."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import beo
from beo.errors import UsageError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from beo.checkpoints.api import Checkpoint

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.fixture
def world() -> "Intracomm":
    """The world, entered only here, as in test_world.py."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def folder(world: "Intracomm", monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One for all ranks."""
    for name in ("BEO_CHECKPOINT_WORD", "BEO_MTBF_S", "BEO_NODE"):
        monkeypatch.delenv(name, raising=False)
    top = world.bcast(tempfile.mkdtemp() if world.rank == 0 else "")
    monkeypatch.setenv("BEO_CHECKPOINT_DIR", f"{top}/vault")
    yield Path(top, "vault")
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(top)


def left(ck: "Checkpoint") -> None:
    """Let the program end as if it had been killed."""
    ck._close()
    ck._comm.barrier()


def until_agreed(ck: "Checkpoint") -> None:
    """Pass safe points until the next at which the ranks agree, that included."""
    before = ck._agreement._agreed_at
    while ck._agreement._agreed_at == before:
        ck.safe_point()


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_any_one_rank_counts_for_all(who: int, world: "Intracomm", folder: Path) -> None:
    with beo.checkpoint(world, n=0, every="1h") as ck:
        if world.rank == who:
            os.kill(os.getpid(), signal.SIGUSR1)
        until_agreed(ck)
        assert ck.counters.saves == 1
        until_agreed(ck)
        assert ck.counters.saves == 1
        ck.n = 7
        if world.rank == who:
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as told:
            until_agreed(ck)
        assert told.value.code == 85
    with beo.checkpoint(world, n=0) as ck:
        assert ck.n == 7


def test_a_signal_in_the_middle_of_the_agreement_is_not_lost(
    world: "Intracomm", folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with beo.checkpoint(world, n=0, every="1h") as ck:
        greatest = ck._agreement._greatest

        def late(*args: Any) -> Any:
            found = greatest(*args)
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)  # after this rank has said that it wishes nothing
            monkeypatch.undo()
            return found

        monkeypatch.setattr(ck._agreement, "_greatest", late)
        until_agreed(ck)
        assert ck.counters.saves == 0
        until_agreed(ck)
        assert ck.counters.saves == 1


def test_a_number_of_steps_between_checkpoints_is_kept_whatever_asking_costs(world: "Intracomm", folder: Path) -> None:
    with beo.checkpoint(world, n=0, every=7) as ck:
        for number in range(1, 50):
            ck.safe_point()
            assert ck.counters.saves == number // 7


def test_arrays_come_back_in_place_on_every_rank(world: "Intracomm", folder: Path) -> None:
    u = np.full((world.rank + 2, 3), float(world.rank))
    ck = beo.checkpoint(world, u=u, step=0)
    u += 10
    ck.step = 4
    assert ck.save()
    left(ck)
    again = np.zeros_like(u)
    with beo.checkpoint(world, u=again, step=0) as ck:
        assert ck.restored and ck.u is again and ck.step == 4
        assert np.array_equal(again, u)


def test_it_goes_on_with_one_rank_and_with_all_again(world: "Intracomm", folder: Path) -> None:
    from mpi4py import MPI

    rows = 4
    whole = np.arange(rows * world.size * 2.0).reshape(-1, 2)
    mine = slice(rows * world.rank, rows * (world.rank + 1))
    ck = beo.checkpoint(world, u=whole[mine].copy(), step=3).shard("u", axis=0)
    assert ck.save()
    left(ck)
    if world.rank == 0:
        everything = np.zeros_like(whole)
        ck = beo.checkpoint(MPI.COMM_SELF, u=everything, step=0)
        assert np.array_equal(everything, whole) and ck.step == 3
        everything += 1
        ck.step = 5
        assert ck.save()
        left(ck)
    world.barrier()
    part = np.zeros((rows, 2))
    with beo.checkpoint(world, u=part, step=0).shard("u", axis=0) as ck:
        assert np.array_equal(part, whole[mine] + 1) and ck.step == 5


def test_what_isnt_declared_and_differs_is_refused_on_another_number_of_ranks(world: "Intracomm", folder: Path) -> None:
    from mpi4py import MPI

    ck = beo.checkpoint(world, u=np.full(3, float(world.rank)))
    assert ck.save()
    left(ck)
    if world.rank == 0:
        with pytest.raises(UsageError, match=r"u differed between its \d+ ranks.*ck.shard\('u', axis=...\)"):
            beo.checkpoint(MPI.COMM_SELF, u=np.zeros(3))
    world.barrier()
    with beo.checkpoint(world, u=np.zeros(3)) as ck:
        assert ck.restored


def test_what_one_rank_cant_do_none_does_and_all_go_on(
    world: "Intracomm", folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with beo.checkpoint(world, big=b"") as ck:
        ck.big = bytes(1 << 16)
        with monkeypatch.context() as patch:
            if world.rank == 1:

                def full(*_: int) -> None:
                    raise OSError(28, "No space left on device")

                patch.setattr(os, "posix_fallocate", full)
            assert not ck.save()
        assert ck.save()
    told = world.allgather(capsys.readouterr().err)
    assert "rank 1: no space left on device" in told[0] and not any(told[1:])


def test_the_parts_of_a_split_world_have_folders_of_their_own(
    world: "Intracomm", folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = world.Split(world.rank % 2)
    with beo.checkpoint(own, n=world.rank % 2) as ck:
        assert len(set(world.allgather(ck.folder))) == 2
        assert ck.save()
        left(ck)
    world.barrier()
    with beo.checkpoint(own, n=-1) as ck:
        assert ck.n == world.rank % 2
        world.barrier()
    assert "runs already" not in capsys.readouterr().err, "they aren't each other's twins"
    own.Free()


def test_without_a_communicator_it_is_the_whole_world(world: "Intracomm", folder: Path) -> None:
    with beo.checkpoint(n=world.rank) as ck:
        assert ck.save()
        assert len(list(Path(ck.folder).rglob("*.manifest"))) == world.size
        world.barrier()
    assert not folder.exists() or not list(folder.iterdir())
