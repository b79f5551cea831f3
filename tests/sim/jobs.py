"""What is really so about jobs (I3): the wardens tell what they start, and here is known whether they may."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beo import messages as ms
from beo.headnode.model import ENDED, WAITING, Job
from beo.headnode.state import State
from tests.sim.clock import Violation
from tests.sim.head import state_of

if TYPE_CHECKING:
    from tests.sim.worker import Machine, Warden
    from tests.sim.world import Simulation


class Jobs:
    """The observer of all wardens."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.started: set[tuple[str, int, int]] = set()  # (node, job, attempt)
        self.ends = 0  # parts that ended by themselves and are on record

    def starts(self, machine: Machine, order: ms.Start) -> None:
        """A warden starts a part: it may, if that never happened before and no other attempt of the job lives."""
        if order.job in self._sim.truth.lost_jobs:
            return
        what = (machine.name, order.job, order.attempt)
        if what in self.started:
            raise Violation(f"I3: {what} is started twice")
        self.started.add(what)
        for other in self._sim.machines.values():
            for warden in other.wardens.values():
                if warden.alive and warden.alive[0] == order.job and warden.alive[1] != order.attempt:
                    raise Violation(f"I3: {what} starts while {warden.alive} lives on {other.name}")
        job = self._on_record(order.job)
        if job and (job.state in ENDED | WAITING or job.attempt_number > order.attempt):
            raise Violation(f"I3: {what} starts though the job is {job.state}, attempt {job.attempt_number}")

    def forgets(self, warden: Warden) -> None:
        """A warden is told that its result is safe: then it is on record, or nobody needs it any more."""
        order = warden.order
        assert order and warden.result
        if order.job in self._sim.truth.lost_jobs:
            return
        job = self._on_record(order.job)
        attempt = job.attempt if job else None
        if not job or not attempt or attempt.number != order.attempt or job.state in ENDED:
            return
        part = next(part for part in attempt.parts if part.node == warden.machine.name)
        if part.state == "live":
            raise Violation(f"I3: {warden.machine.name} forgot the end of job {order.job}, which is on no record")
        self.ends += 1

    def state(self) -> State | None:
        """What the head that became primary last knows. Its tip is ahead by what nobody has seen: near enough."""
        sim = self._sim
        last = sim.truth.primary or sim.heads["A"]
        state = state_of(last)
        if state or sim.level == "A":
            return state
        return state_of(sim.heads[last.other])  # its disk is damaged; where that may happen, the other has it all

    def _on_record(self, number: int) -> Job | None:
        state = self.state()
        if state is None:
            return None
        job = state.jobs.get(number)
        if job is None and number not in self._sim.truth.lost_jobs:
            raise Violation(f"I3: job {number} runs, and is on no record")
        return job
