"""The queue: the jobs that wait, in the order of starting.

Jobs of one user and one shape (ranks, nodes, cpus, memory, slots, uid, what else it needs) stand in one lane: where the
first of them doesn't fit, none does. So a thousand jobs that wait for more nodes cost the scheduler one look, and never
hide what stands behind them; and a user who may not have more costs it no look at all.

The order: by priority; among jobs of one priority the user first who holds the fewest slots; then by age. So users who
wait have equal shares of the cluster in the end, however many jobs each has handed in, and one alone has all of it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heapreplace, merge

from beo.headnode.model import Job

# user, uid, ranks, nodes, cpus, mem_bytes, slots, movable, in_tree, reservation
Shape = tuple[str, int, int, int, int, int, int, bool, bool, str]
Place = tuple[int, int]  # (-priority, job): sorts in the order of starting, within one user
Walk = Iterator[tuple[int, Shape]]


def shape_of(job: Job) -> Shape:
    """What a job needs, as far as placing it goes. Whose it is counts: not every node may run everybody's jobs."""
    spec = job.spec
    size = (spec.ranks, spec.nodes, spec.cpus, spec.mem_bytes, spec.slots)
    return (job.user, job.uid, *size, spec.movable, spec.in_tree, spec.reservation)


class Queue:
    """The waiting jobs; a job's spec and owner never change while it waits."""

    def __init__(self) -> None:
        """Make an empty one."""
        self._lanes: dict[str, dict[Shape, list[Place]]] = {}  # by user
        self._length = 0
        self.errands: dict[int, str] = {}  # job -> node, in the order of coming: they stand beside the queue

    def __len__(self) -> int:
        """How many jobs wait."""
        return self._length + len(self.errands)

    def __iter__(self) -> Iterator[int]:
        """All jobs: errands, then by priority and age."""
        yield from self.errands
        yield from (job for _, job in merge(*(lane for lanes in self._lanes.values() for lane in lanes.values())))

    def add(self, job: Job) -> None:
        """Put a job where its priority and its age say."""
        if job.spec.errand:
            self.errands[job.id] = job.spec.errand
            return
        insort(self._lanes.setdefault(job.user, {}).setdefault(shape_of(job), []), (-job.spec.priority, job.id))
        self._length += 1

    def remove(self, job: Job) -> None:
        """Take a job out; nothing where it doesn't stand in the queue."""
        if job.spec.errand:
            self.errands.pop(job.id, None)
            return
        lanes, shape = self._lanes.get(job.user, {}), shape_of(job)
        lane, place = lanes.get(shape, []), (-job.spec.priority, job.id)
        at = bisect_left(lane, place)
        if at >= len(lane) or lane[at] != place:
            return
        del lane[at]
        self._length -= 1
        if not lane:
            del lanes[shape]
        if not lanes:
            del self._lanes[job.user]

    def ahead_of(self, job: Job) -> int:
        """How many jobs surely stand before this one: its user's own, and others' of a higher priority."""
        place, higher = (-job.spec.priority, job.id), (-job.spec.priority, 0)
        return sum(
            bisect_left(lane, place if user == job.user else higher)
            for user, lanes in self._lanes.items()
            for lane in lanes.values()
        )

    def walk(self, hopeless: set[Shape], closed: set[str], held: Callable[[str], int]) -> Walk:
        """All jobs and their shapes, in the order of starting.

        A shape that is added to `hopeless` meanwhile comes no more, nor does a user who is added to `closed`. held: how
        many slots a user holds now; whoever walks changes that as he goes.
        """

        def lane(shape: Shape, places: list[Place]) -> Iterator[tuple[Place, Shape]]:
            for place in places:
                if shape in hopeless:
                    return
                yield place, shape

        def ranked(user: str, place: Place) -> tuple[int, int, int, str]:
            return (place[0], held(user), place[1], user)

        rows = {user: merge(*(lane(*item) for item in lanes.items())) for user, lanes in self._lanes.items()}
        first = {user: found for user in rows if user not in closed and (found := next(rows[user], None))}
        users = [ranked(user, place) for user, (place, _) in first.items()]
        heapify(users)
        while users:
            user = users[0][-1]
            place, shape = first[user]
            if user not in closed and shape not in hopeless:
                yield place[1], shape
            following = next(rows[user], None) if user not in closed else None
            if following is None:
                heappop(users)
            else:
                first[user] = following
                heapreplace(users, ranked(user, following[0]))
