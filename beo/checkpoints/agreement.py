"""How the ranks of a program agree, at a safe point, on what is to be done there.

Each wishes something: to go on, to have the last checkpoint read and mended (the agent's word), to have one taken (its
time has come, the program or the agent asks for it, SIGUSR1), or to halt (SIGTERM, the agent). One tiny reduction gives
the greatest wish of any. It is done every few safe points, as many as make it cheap, and all ranks know which.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from beo.checkpoints.when import interval_s, steps_between
from beo.checkpoints.word import GO_ON, HALT, TAKE_ONE, Signals, Told, Word

IN_SPITE = HALT + 1  # halt, even without a new checkpoint
AGAIN_S = 2.0  # a signal that is sent to many ranks arrives over such a time: later, it is another
BUSY_S = 1.0  # until another try, where the last one came while its place was being copied
COSTS_KEPT = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all ranks do now. do: as in word.py, or IN_SPITE. why, leaving: of the agents' words, to halt."""

    do: int
    why: str
    leaving: tuple[str, ...]


class Agreement:
    """One rank's part in it. points: how many safe points there were."""

    def __init__(self, comm: Any, every_s: float | None, every_points: int, mtbf_s: float, word: str | None) -> None:
        """Listen from now on. every_s, every_points: between two checkpoints; neither: as it pays."""
        self.points = 0
        self._next = 1  # at which of them to agree
        self._between = 1
        self._comm, self._every_s, self._every_points, self._mtbf_s = comm, every_s, every_points, mtbf_s
        self._word, self._signals = Word(word), Signals()
        self._counts = self._signals.counts()  # what is being done
        self._told: Told | None = None
        self._asked = False
        self._costs_s: list[float] = []  # of the last few, on this rank
        self._save_s = 0.0  # what a checkpoint costs
        self._failed_s: float | None = None
        self._again_s: float | None = None
        self._agreed_at, self._saved_at = 0, 0
        self._agreed_s = self._saved_s = time.monotonic()

    def is_now(self) -> bool:
        """Count a safe point. Returns whether the ranks agree at this one: the same on all."""
        self.points += 1
        return self.points >= self._next

    def ask(self) -> None:
        """Let the next safe point take a checkpoint. Collective."""
        self._asked, self._next = True, 0

    def reach(self) -> Verdict:
        """Agree. Collective. What it says is to be done at once, and then `settle`d."""
        now_s = time.monotonic()
        self._counts, self._told = self._signals.counts(), self._word.look()
        signalled = self._signals.wish(self._counts)
        again = signalled == HALT and self._failed_s is not None and now_s > self._failed_s + AGAIN_S
        wish = max(
            IN_SPITE if again else signalled,
            self._told.do if self._told else GO_ON,
            TAKE_ONE if self._asked or self._is_due(now_s) else GO_ON,
        )
        step_s = (now_s - self._agreed_s) / max(1, self.points - self._agreed_at)
        do, cost_s, step_s = self._greatest(wish, step_s)
        self._costs_s = [*self._costs_s[1 - COSTS_KEPT :], time.monotonic() - now_s]
        self._between = steps_between(self._between, cost_s, step_s)
        words: list[Told] = [told for told in self._comm.allgather(self._told) if told] if do >= HALT else []
        why = next((told.why for told in words if told.do == HALT), "SIGTERM")
        return Verdict(do, why, tuple(sorted({node for told in words for node in told.leaving})))

    def _is_due(self, now_s: float) -> bool:
        """Whether it is time for a checkpoint: by number on all ranks, by the first one's clock on that alone."""
        if self._again_s is not None and self._comm.rank == 0 and now_s >= self._again_s:
            return True
        if self._every_points:
            return self.points >= self._saved_at + self._every_points
        every_s = self._every_s if self._every_s is not None else interval_s(self._save_s, self._mtbf_s)
        return bool(self._comm.rank == 0 and now_s >= self._saved_s + every_s)

    def _greatest(self, wish: int, step_s: float) -> tuple[int, float, float]:
        """Return the greatest wish, what it costs to ask, and how long a step takes: the same on all ranks.

        Who comes last waits for nobody, so the least of what the ranks measured is what asking costs.
        """
        if self._comm.size == 1:
            return wish, min(self._costs_s, default=0.0), step_s
        from mpi4py import MPI

        all_of = np.array([wish, -min(self._costs_s, default=0.0), step_s])
        self._comm.Allreduce(MPI.IN_PLACE, all_of, op=MPI.MAX)
        return int(all_of[0]), -float(all_of[1]), float(all_of[2])

    def settle(self) -> None:
        """Take for done what was agreed on. What has come since then isn't, and counts at the next agreement."""
        self._signals.done(self._counts)
        self._word.done(self._told)
        self._asked = False
        self._agreed_at, self._agreed_s = self.points, time.monotonic()
        self._plan()

    def saved(self, cost_s: float | None) -> None:
        """Say that a checkpoint was taken just now, and what it cost; None: it failed, and may be tried again later.

        The first two make new pages of memory for their slots, so a lower cost is believed at once.
        """
        if cost_s is not None:
            self._save_s = min(cost_s, 2 * self._save_s) if self._save_s else cost_s
            self._failed_s = None
        self._again_s = None
        self._saved_at, self._saved_s = self.points, time.monotonic()
        self._plan()

    def postponed(self) -> None:
        """Say that a checkpoint couldn't be taken just now: it is tried again soon."""
        self._saved_at = self.points
        self._again_s = time.monotonic() + BUSY_S
        self._plan()

    def guess(self, cost_s: float) -> None:
        """Say what the first checkpoint may cost."""
        self._save_s = cost_s

    def failed_to_halt(self) -> None:
        """Remember that it was told to halt and couldn't: SIGTERM once more ends it in spite."""
        self._failed_s = time.monotonic()

    def _plan(self) -> None:
        self._next = self.points + self._between
        if self._every_points:
            self._next = min(self._next, self._saved_at + self._every_points)

    def close(self) -> None:
        """Give the signals back."""
        self._signals.close()
        self._word.close()
