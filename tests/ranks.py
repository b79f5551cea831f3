"""Ranks that are threads: what beo/checkpoints uses of MPI, in one process, so that a thousand cases take seconds."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from beo.checkpoints.parity import Bytes

PATIENCE_S = 30.0  # for any other rank: a deadlock ends as an error

Result = TypeVar("Result")
Channel = tuple[int, int, int]  # source, destination, tag


class World:
    """What the ranks share."""

    def __init__(self, size: int) -> None:
        """Make a world of so many."""
        self.size = size
        self.barrier = threading.Barrier(size)
        self.brought: list[Any] = [None] * size
        self.channels: dict[Channel, SimpleQueue[Bytes]] = defaultdict(SimpleQueue)
        self.lock = threading.Lock()

    def channel(self, source: int, dest: int, tag: int) -> SimpleQueue[Bytes]:
        """Return the messages of one kind between two ranks."""
        with self.lock:
            return self.channels[source, dest, tag]


class Sent:
    """A message that has gone."""

    def Test(self) -> bool:
        """Say so."""
        return True


@dataclass
class Awaited:
    """A message that may come."""

    into: Bytes
    channel: SimpleQueue[Bytes]
    before: Awaited | None
    done: bool = False

    def Test(self) -> bool:
        """Take it when it comes, those before it on its channel first, as MPI matches them."""
        if self.before:
            self.before.Test()
            self.before = None
        if not self.done:
            message = self.channel.get(timeout=PATIENCE_S)
            assert len(message) == len(self.into), f"{len(message)} bytes came for {len(self.into)}"
            self.into[:] = message
            self.done = True
        return True


class ThreadComm:
    """One of them: what the store asks of mpi4py's communicators."""

    def __init__(self, world: World, rank: int) -> None:
        """Take a place in a world."""
        self._world = world
        self.rank = rank
        self.size = world.size
        self._last: dict[Channel, Awaited] = {}

    def allgather(self, sendobj: Any) -> list[Any]:
        """Return what all bring."""
        self._world.brought[self.rank] = sendobj
        self._world.barrier.wait(PATIENCE_S)
        found = list(self._world.brought)
        self._world.barrier.wait(PATIENCE_S)
        return found

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Return what the root has."""
        return self.allgather(obj)[root]

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """Return what each has for this rank."""
        return [row[self.rank] for row in self.allgather(sendobj)]

    def barrier(self) -> None:
        """Wait for all."""
        self._world.barrier.wait(PATIENCE_S)

    def Isend(self, buf: Bytes, dest: int, tag: int = 0) -> Sent:
        """Send a copy."""
        assert len(buf), "an empty message is a waste"
        self._world.channel(self.rank, dest, tag).put(np.array(buf))
        return Sent()

    def Irecv(self, buf: Bytes, source: int, tag: int = 0) -> Awaited:
        """Await a message into an array."""
        channel = (source, self.rank, tag)
        awaited = Awaited(buf, self._world.channel(*channel), self._last.get(channel))
        self._last[channel] = awaited
        return awaited


def together(size: int, program: Callable[[ThreadComm], Result]) -> list[Result | Exception]:
    """Run a program on so many ranks, and return what each returns or raises."""
    world = World(size)
    results: list[Any] = [None] * size

    def body(rank: int) -> None:
        try:
            results[rank] = program(ThreadComm(world, rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [channel for channel, queue in world.channels.items() if not queue.empty()]
    assert not left or any(isinstance(result, Exception) for result in results), f"nobody took {left}"
    return results


def all_good(results: Sequence[Result | Exception]) -> list[Result]:
    """Return what all ranks returned; raises what one raised."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [result for result in results if not isinstance(result, Exception)]
