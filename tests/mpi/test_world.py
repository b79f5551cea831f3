"""What every launcher owes a parallel program: one world, and messages of any size in it.

Run on ranks, in place of a job: ``mpiexec -n 2 python -m pytest --with-mpi --only-mpi tests/mpi``.
"""

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.fixture
def world() -> "Intracomm":
    """The world, entered only here: a test run without ranks collects this file, and must not start MPI by that."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


def test_every_rank_has_a_number_of_its_own_in_one_world(world: "Intracomm") -> None:
    assert world.allgather((world.rank, world.size)) == [(rank, world.size) for rank in range(world.size)]


@pytest.mark.parametrize("size_bytes", [8, 1 << 16, 1 << 20, 1 << 24])
def test_a_message_of_any_size_arrives_whole(world: "Intracomm", size_bytes: int) -> None:
    # From about 1 MB on, ranks of one host read each other's memory: the first thing to break where they are
    # separated too well (a PID namespace for each rank instead of one for all).
    numbers = np.arange(size_bytes // 8, dtype=np.float64)
    arrived = np.empty_like(numbers)
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    world.Sendrecv(numbers + world.rank, dest=right, recvbuf=arrived, source=left)
    assert np.array_equal(arrived, numbers + left)


def test_ranks_of_one_host_share_memory(world: "Intracomm") -> None:
    from mpi4py import MPI

    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    assert isinstance(host, MPI.Intracomm)
    item_bytes = MPI.INT64_T.Get_size()
    window = MPI.Win.Allocate_shared(item_bytes, item_bytes, comm=host)
    shares = [window.Shared_query(rank)[0].cast("q") for rank in range(host.size)]
    window.Fence()
    shares[host.rank][0] = world.rank
    window.Fence()
    seen = [share[0] for share in shares]
    members = host.allgather(world.rank)
    for share in shares:
        share.release()
    window.Free()
    host.Free()
    assert seen == members
