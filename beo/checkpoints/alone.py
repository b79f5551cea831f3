"""The communicator of a program that is alone: what the store asks of mpi4py's, for one rank."""

from __future__ import annotations

from typing import Any


class Alone:
    """One rank, without MPI."""

    rank = 0
    size = 1

    def allgather(self, value: Any) -> list[Any]:
        """Return what all ranks give."""
        return [value]

    def alltoall(self, values: list[Any]) -> list[Any]:
        """Return what each rank gives this one."""
        return values

    def bcast(self, value: Any, root: int = 0) -> Any:
        """Return what the root gives."""
        return value

    def barrier(self) -> None:
        """Wait for all."""
