"""What a node keeps of its jobs beyond their attempts, for its agent's loop: vaults, their copies at the head, dumps.

The agent's core decides what is to be said, copied and emptied; here it is carried out, by threads and processes of
their own, and what came of it goes back to the core.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable

from beo import messages as ms
from beo.settings import WorkerConfig
from beo.worker import acts
from beo.worker.copies import Copied, Copies, Wish
from beo.worker.core import Held
from beo.worker.moving import Ability, Moving, Ranks
from beo.worker.vaults import Vaults

VAULT_PART = 2  # of the memory for jobs, this part may be in the vault where nothing else is set

GOLDEN = 0.618  # of a round: by so much later does the next job copy

log = logging.getLogger("beo.agent")


class Keeping:
    """What one node keeps."""

    def __init__(
        self,
        path: str,
        config: WorkerConfig,
        mem_bytes: int,
        beo_dir: str | None,
        tell: Callable[[acts.Copied | acts.Learned], None],
    ) -> None:
        """path: of the vault. beo_dir: the cluster's folder; None: there is no tree to copy to. tell: the core."""
        self._config = config
        self._tell = tell
        self._vaults = _open(path, config.checkpoint_max_bytes or mem_bytes // VAULT_PART)
        self._copies = Copies(beo_dir, self._tell_copy) if beo_dir is not None else None
        self._moving = Moving()
        self._ability = Ability()
        self._told_ability = ""
        self.lost: list[tuple[tuple[int, int], str]] = []
        """Attempts of which a part can't be dumped, and why: for the agent to end."""
        self._unsealed: list[ms.Start] = []  # ended, and to be copied when their dumps are sealed
        self._looked_s = time.time()

    def start(self) -> None:
        """Start the threads that look at what is here."""
        self._ability.start()
        if self._vaults:
            self._vaults.start()

    def close(self) -> None:
        """End them, and a copy that is under way."""
        self._ability.stop()
        if self._vaults:
            self._vaults.stop()
        if self._copies:
            self._copies.close()

    # ---- what the head is told

    def report(self, node: str, incarnation: str) -> ms.VaultsAre | None:
        """Return what is to be told to the head now of what is kept, if there is anything to tell."""
        return self._vaults.report(node, incarnation) if self._vaults else None

    def look(self, job: int) -> None:
        """Look now at what is kept of a job, so that the next report has it."""
        if self._vaults:
            self._vaults.look(job)

    def again(self) -> None:
        """Tell it anew: there is another head."""
        if self._vaults:
            self._vaults.again()

    def tick(self, held: Iterable[Held]) -> None:
        """See what there is to do for what runs here."""
        if self._ability.fact != self._told_ability:
            self._told_ability = self._ability.fact
            self._tell(acts.Learned({ms.CRIU: self._told_ability}))
        if self._copies:
            self._copy_now_and_then(self._copies, held)
            unsealed, self._unsealed = self._unsealed, []
            for order in unsealed:
                self.copy(order)
            self._copies.tick(time.monotonic())

    # ---- a job's folders

    def open(self, order: ms.Start) -> tuple[str, str] | None:
        """Return an order's folder and the path of its word; None: there is no vault, or nothing to keep."""
        return self._vaults.open(order.job, order.uid, order.gid) if self._vaults and not order.spec.errand else None

    def dump_folder(self, order: ms.Start) -> str:
        """Where a movable program is dumped to; "" for others. ValueError, in words, where it can't be."""
        if not order.spec.movable:
            return ""
        if self._ability.fact not in ("", ms.CRIU_WORKS):
            raise ValueError(self._ability.fact)
        if not self._vaults:
            raise ValueError("this node has no vault, so a movable program has no place to be dumped to")
        return self._vaults.dump(order.job)

    def is_left(self, job: int) -> bool:
        """Whether a job was asked to go on where none of its nodes is."""
        return bool(self._vaults and self._vaults.is_left(job))

    def put_aside(self, jobs: Iterable[int]) -> list[str]:
        """Keep nothing of these jobs any more. Returns what is to be removed, which may take a while: by a thread."""
        return self._vaults.put_aside(jobs) if self._vaults else []

    def drop(self, job: int, attempt: int, is_last: bool) -> None:
        """Nothing more is to be done for an attempt; is_last: nor for any other of its job."""
        if self._copies:
            self._copies.forget(job, attempt)
        if self._vaults and is_last:
            self._vaults.empty_if_unused(job)

    # ---- words, dumps and copies

    def say(self, said: acts.Say, order: ms.Start | None, node: str) -> None:
        """Tell a job's ranks what to do. A program that knows nothing of it is dumped. node: this one."""
        is_halt = said.do == "halt"
        if self._copies and is_halt:
            self._copies.cancel(said.job)
        if self._vaults:
            if is_halt and order and order.spec.movable:
                ranks = self._ranks(order, node) if order.spec.migratable else None
                self._moving.dump(said.job, self._vaults.dump(said.job), ranks)
            self._vaults.say(said.job, said.do, said.why, said.leaving, said.is_all)

    def _ranks(self, order: ms.Start, node: str) -> Ranks:
        key, here = (order.job, order.attempt), next(part for part in order.parts if part.node == node)
        ranks = range(here.first_rank, here.first_rank + here.ranks)
        return Ranks(order.attempt, ranks, lambda why: self.lost.append((key, why)))

    def copy(self, order: ms.Start) -> None:
        """Copy a job's vault at once, where the tree is ours."""
        folder = ""
        if self._vaults:
            folder = self._vaults.dump(order.job) if order.spec.movable else self._vaults.folder(order.job)
        if self._moving.is_busy(folder):
            self._unsealed.append(order)
            return
        if self._copies is None or not os.path.isdir(folder):  # an empty one counts: nothing is missing of it
            self._tell(acts.Copied(order.job, order.attempt, "", 0, at_end=True))
            return
        self._copies.want(_wish(order, folder, 0, must=True))

    def _copy_now_and_then(self, copies: Copies, running: Iterable[Held]) -> None:
        """Have what has changed since the last time copied, job by job."""
        before_s, self._looked_s = self._looked_s, time.time()
        if not self._vaults:
            return
        kept = self._vaults.jobs()
        for held in running:
            job = held.order.job
            is_due = round_of(job, before_s, self._config) != round_of(job, self._looked_s, self._config)
            if is_due and held.alive and job in kept and not held.order.spec.movable:
                folder = self._vaults.folder(job)
                copies.want(_wish(held.order, folder, self._config.checkpoint_copy_bytes_s, must=False))

    def _tell_copy(self, wish: Wish, told: Copied) -> None:
        self._tell(acts.Copied(wish.job, wish.attempt, told.bundle, told.size_bytes, wish.must, told.checkpoints))


def round_of(job: int, now_s: float, config: WorkerConfig) -> int:
    """Return the number of a job's round of copies at this time; 0: there are none.

    By the wall clock, so that all its nodes copy the same checkpoint; of other jobs at other moments.
    """
    every_s = config.checkpoint_copy_s
    return int((now_s + job * GOLDEN % 1 * every_s) // every_s) if every_s else 0


def _open(path: str, size_max_bytes: int) -> Vaults | None:
    """Make what keeps checkpoints, in the node's memory; without it jobs run all the same."""
    try:
        return Vaults(path, size_max_bytes)
    except OSError as error:
        log.error("no vault for checkpoints: %s", error)
        return None


def _wish(order: ms.Start, folder: str, bytes_s: int, must: bool) -> Wish:
    return Wish(order.job, order.attempt, folder, order.uid, order.gid, order.groups, bytes_s, must, order.spec.movable)
