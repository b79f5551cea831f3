"""Ranks as threads of one process: what is collective is tried without MPI, and quickly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 20


class Board:
    """What all ranks of one communicator share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT_S)
        self.slots: list[Any] = [None] * size


class ThreadComm:
    """One rank's view: those calls of mpi4py's that take Python's objects."""

    def __init__(self, board: Board, rank: int) -> None:
        self._board, self.rank, self.size = board, rank, board.size

    def allgather(self, value: Any) -> list[Any]:
        """As mpi4py's."""
        self._board.slots[self.rank] = value
        self._board.barrier.wait()
        found = list(self._board.slots)
        self._board.barrier.wait()
        return found

    def bcast(self, value: Any, root: int = 0) -> Any:
        """As mpi4py's."""
        return self.allgather(value)[root]

    def barrier(self) -> None:
        """As mpi4py's."""
        self.allgather(None)


def together(size: int, work: Callable[[ThreadComm], Any]) -> list[Any]:
    """Let each of `size` ranks do something. Returns what each returned, or the exception that it raised."""
    board = Board(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadComm(board, rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    return results
