"""The queue: the jobs that wait, in the order of starting.

Jobs of one shape (ranks, nodes, cpus, memory, slots) stand in one lane: where the first of them doesn't fit, none does.
So a thousand jobs that wait for more nodes cost the scheduler one look, and never hide what stands behind them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import merge

from beo.spec import JobSpec

Shape = tuple[int, int, int, int, int]  # ranks, nodes, cpus, mem_bytes, slots
Place = tuple[int, int]  # (-priority, job): sorts in the order of starting


def shape_of(spec: JobSpec) -> Shape:
    """What a job needs, as far as placing it goes."""
    return (spec.ranks, spec.nodes, spec.cpus, spec.mem_bytes, spec.slots)


class Queue:
    """Jobs by their id and spec; a spec never changes while its job waits."""

    def __init__(self) -> None:
        """Make an empty one."""
        self._lanes: dict[Shape, list[Place]] = {}
        self._length = 0

    def __len__(self) -> int:
        """How many jobs wait."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        """All jobs, in the order of starting."""
        return (job for _, job in merge(*self._lanes.values()))

    def add(self, job: int, spec: JobSpec) -> None:
        """Put a job where its priority and its age say."""
        insort(self._lanes.setdefault(shape_of(spec), []), (-spec.priority, job))
        self._length += 1

    def remove(self, job: int, spec: JobSpec) -> None:
        """Take a job out; nothing where it doesn't stand in the queue."""
        lane, place = self._lanes.get(shape_of(spec), []), (-spec.priority, job)
        at = bisect_left(lane, place)
        if at < len(lane) and lane[at] == place:
            del lane[at]
            self._length -= 1
            if not lane:
                del self._lanes[shape_of(spec)]

    def ahead_of(self, job: int, spec: JobSpec) -> int:
        """How many jobs stand before this one."""
        return sum(bisect_left(lane, (-spec.priority, job)) for lane in self._lanes.values())

    def walk(self, hopeless: set[Shape]) -> Iterator[tuple[int, Shape]]:
        """All jobs and their shapes, in the order of starting; a shape that is added to `hopeless` comes no more."""

        def lane(shape: Shape, places: list[Place]) -> Iterator[tuple[Place, Shape]]:
            for place in places:
                if shape in hopeless:
                    return
                yield place, shape

        return ((job, shape) for (_, job), shape in merge(*(lane(*item) for item in self._lanes.items())))
