"""Sums pieces that lie with several ranks into one that another rank keeps: all that parity is, in both directions.

A list of tasks is carried out by all ranks of a communicator together. Each rank walks the same list in the same order
and takes part where it is a source or the target; up to WINDOW of its own tasks are under way at a time, with messages
that don't block. The oldest task that isn't done is the oldest of each of its ranks, so all of them have begun it, and
so it ends: there is no order of tasks that could lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from beo.checkpoints.parity import Adder, Bytes, Scratch
from beo.checkpoints.plan import Piece

# Measured with four ranks on two cores: more at a time doesn't fit the caches any more; less, and ranks wait for each
# other's turn at a core.
WINDOW = 4
SEGMENT_BYTES = 2 << 20  # of one message
TAG = 7


@dataclass(frozen=True, slots=True)
class Task:
    """Make `wanted`, of `length` bytes, with rank `target`, from pieces of other ranks: (rank, piece, weight)."""

    target: int
    wanted: Piece
    sources: tuple[tuple[int, Piece, int], ...]
    length: int


class _Underway:
    """A task of which this rank waits for something."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.sends: list[Any] = []
        self.kept: list[Any] = []  # what is being sent
        self.receives: list[tuple[Any, Bytes] | Bytes] = []  # in the order of the sources
        self.adder: Adder | None = None
        self.total: Bytes | None = None


def wait(request: Any) -> None:
    """Wait for a message. MPI's own way keeps the core busy, on which the rank that is waited for may want to run."""
    while not request.Test():
        os.sched_yield()


def combine(
    comm: Any,
    tasks: Iterable[Task],
    read: Callable[[Piece, int], Bytes],
    write: Callable[[Piece, int], Bytes],
    done: Callable[[Piece, Bytes], None],
    scratch: Scratch,
) -> None:
    """Carry out the tasks, which are in the same order on all ranks; one may leave out those that aren't its own.

    read: returns a piece of this rank's, filled up with zeros to the length. write: returns where to make one; it is
    called once for each, and `done` with what it returned when that is the sum. scratch: for SEGMENT_BYTES.
    """
    me = comm.rank
    underway: deque[_Underway] = deque()

    def finish(entry: _Underway) -> None:
        if entry.adder and entry.total is not None:
            adder, total = entry.adder, entry.total
            for received in entry.receives:
                if isinstance(received, tuple):
                    request, buffer = received
                    wait(request)
                    if buffer is total:
                        adder.begin()
                        continue
                    adder.add(buffer[: len(total)])
                    scratch.give(buffer)
                else:
                    adder.add(received)
            done(entry.task.wanted, total)
        for request in entry.sends:
            wait(request)

    for task in tasks:
        is_target = task.target == me
        if not is_target and all(rank != me for rank, _, _ in task.sources):
            continue
        entry = _Underway(task)
        if is_target:
            entry.total = write(task.wanted, task.length)
            entry.adder = Adder([weight for _, _, weight in task.sources], entry.total, scratch)
        for number, (rank, piece, _) in enumerate(task.sources):
            if rank == me:
                data = read(piece, task.length)
                if is_target:
                    entry.receives.append(data)
                else:
                    entry.kept.append(data)
                    entry.sends.append(comm.Isend(data, task.target, TAG))
            elif entry.adder and entry.total is not None and not number and entry.adder.begins_plain:
                entry.receives.append((comm.Irecv(entry.total, rank, TAG), entry.total))
            elif is_target:
                buffer = scratch.take()
                entry.receives.append((comm.Irecv(buffer[: task.length], rank, TAG), buffer))
        underway.append(entry)
        if len(underway) >= WINDOW:
            finish(underway.popleft())
    while underway:
        finish(underway.popleft())
