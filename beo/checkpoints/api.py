"""`beo.checkpoint`: how a program takes part in its checkpoints.

    with beo.checkpoint(comm, u=u, step=0) as ck:      # restores in place if a checkpoint exists
        for ck.step in ck.range(nsteps):               # a safe point: may checkpoint, may end for a drain
            u[1:-1] = ...

At a *safe point* all ranks are between two steps. Every few of them they agree, by one tiny reduction, on the greatest
of what any of them wishes: nothing, a checkpoint (its time has come, SIGUSR1, the agent's word), or to halt (SIGTERM,
the agent's word). To halt is to take a checkpoint and end with `EXIT_HALTED` on every rank.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

from beo.checkpoints.alone import Alone
from beo.checkpoints.place import Place, raise_first
from beo.checkpoints.state import State
from beo.checkpoints.store import Counters, Store
from beo.checkpoints.when import MTBF_S, interval_s, steps_between
from beo.checkpoints.word import GO_ON, HALT, TAKE_ONE, Signals, Told, Word
from beo.errors import EXIT_HALTED, BeoError, UsageError
from beo.units import parse_duration

SAVED = "save()"  # the name of what a program's own function returns: no keyword can be called so
GUESS_BYTES_PER_S = 1e9  # how fast the first checkpoint is taken to be
AGAIN_S = 2.0  # from a halt that failed on: the same signal, sent to many ranks, may arrive over such a time
ENDED_IN_SPITE = HALT + 1  # halt, even without a new checkpoint
SIGTERM_EXIT = 128 + 15
_MPI_MARKS = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")  # of an environment under an MPI launcher


class Checkpoint:
    """A program's state, kept. Its names are attributes: `ck.step`. All its methods are collective."""

    def __init__(
        self,
        comm: Any = None,
        /,
        *,
        every: str | int | None = None,
        level: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        fresh: bool = False,
        save: Callable[[], Any] | None = None,
        restore: Callable[[Any], None] | None = None,
        **names: Any,
    ) -> None:
        """Restore the newest checkpoint, if there is one; else leave everything as it is.

        comm: an mpi4py communicator; None: all ranks of an MPI program, or this process alone. names: what is kept.
        Arrays are restored in place, everything else is pickled and reached as an attribute. save, restore: functions
        that return all that is to be kept, and take it back. every: "30s", "10m" or a number of safe points between
        checkpoints; None: as pays best by what one costs and how often nodes fail. level: "raid0", "raid1", "raid4",
        "raid5", "rs"; None: by the number of nodes. folder: instead of this program's own. fresh: begin anew.

        Raises UsageError where an option is wrong or the checkpoint is of another shape, type or number of ranks;
        store.LostCheckpoint where there was one and too much of it is lost.
        """
        _check(names, save, restore)
        self._every_s, self._every_points = _interval(every)
        self._state = State(names)
        self._extra_save, self._extra_restore = save, restore
        self._comm = _duplicate(comm if comm is not None else _world())
        self._in_range = self._has_ranged = self._asked = False
        self._points = self._saved_at = 0  # safe points so far; and when the last checkpoint was taken
        self._next, self._between = 1, 1  # at which of them the ranks agree next, and every how many
        self._cost_s: list[float] = []  # of the last few agreements, on this rank
        self._has_one = self._has_warned = self._is_over = False
        self._failed_halt_s: float | None = None
        self.restored = False
        self._place = Place(self._comm, folder)
        try:
            self._store = Store(self._comm, self._place.folder, level)
            if fresh:
                self._store.remove()
            if found := self._store.newest():
                self._state.restore(found, self._comm, {SAVED: restore} if restore else {})
                self.restored = self._has_one = True
        except BaseException:
            self._place.close(remove=False)
            raise
        self._save_s = self._state.size_bytes() / GUESS_BYTES_PER_S
        self._mtbf_s = _mtbf_s(self._place.nodes)
        self._saved_s = self._agreed_s = time.monotonic()
        self._word = Word(os.environ.get("BEO_CHECKPOINT_WORD"))
        self._signals = Signals()

    # ---- what is kept

    def __getattr__(self, name: str) -> Any:
        """Return what a name stands for."""
        if not name.startswith("_") and name in self._state.values:
            return self._state.values[name]
        raise AttributeError(f"the checkpoint has no {name!r}: name it in beo.checkpoint(..., {name}=...)")

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a name stand for something else."""
        if name.startswith("_") or name in RESERVED:
            object.__setattr__(self, name, value)
        elif name in self._state.values:
            self._state.values[name] = value
        else:
            raise AttributeError(f"the checkpoint has no {name!r}: name it in beo.checkpoint(..., {name}=...)")

    def shard(self, name: str, axis: int = 0, halo: int = 0) -> Self:
        """Say that an array is distributed: each rank has some rows of `axis`, in the order of the ranks.

        halo: how many rows at either end of each part are copies of its neighbours' rows (or edges): they belong to the
        array that the rank has, and aren't counted twice. So the program can go on with another number of ranks.
        """
        self._state.shard(name, axis, halo)
        return self

    @property
    def folder(self) -> str:
        """Where the checkpoints of this node lie."""
        return str(self._place.folder)

    @property
    def counters(self) -> Counters:
        """What has been done: checkpoints, bytes, seconds."""
        return self._store.counters

    # ---- safe points

    def range(self, *bounds: int) -> Iterator[int]:
        """Count as the built-in range, from where the checkpoint is on; before each step there is a safe point."""
        if self._has_ranged:
            cure = "count the others as a state: while ck.n < N: ck.safe_point(); ...; ck.n += 1"
            raise UsageError("a checkpoint counts one loop", "", cure)
        steps = range(*bounds)
        self._has_ranged = True
        return self._count(steps)

    def _count(self, steps: range) -> Iterator[int]:
        self._in_range = True
        for step in steps[self._state.done :]:
            self.safe_point()
            yield step
            self._state.done += 1
        self.safe_point()
        self._in_range = False

    def safe_point(self) -> None:
        """Say that the state is one from which to go on: a checkpoint is taken if it is time, or asked for.

        Raises SystemExit(EXIT_HALTED), on all ranks, where the program was told to halt.
        """
        self._points += 1
        is_due = self._every_points and self._points - self._saved_at >= self._every_points
        if self._points >= self._next or is_due or self._asked:
            self._agree(bool(is_due))

    def save(self) -> bool:
        """Take a checkpoint now; in a loop of `range`, when the step is done. Returns whether it was taken, or will be.

        A failure is told on standard error, and the checkpoint before stays.
        """
        if self._in_range:
            self._asked = True
            return True
        return self._save()

    def _agree(self, is_due: bool) -> None:
        """Do the greatest of what any rank wishes."""
        began_s = time.monotonic()
        counts, told = self._signals.counts(), self._word.look()
        wish = max(self._signals.wish(counts), told.do if told else GO_ON, TAKE_ONE if is_due or self._asked else GO_ON)
        failed_s = self._failed_halt_s
        if self._signals.wish(counts) == HALT and failed_s is not None and began_s > failed_s + AGAIN_S:
            wish = ENDED_IN_SPITE
        if self._comm.rank == 0 and not self._every_points and began_s - self._saved_s >= self._interval_s():
            wish = max(wish, TAKE_ONE)
        step_s = (began_s - self._agreed_s) / self._between
        do, cost_s, step_s = self._greatest(wish, step_s)
        self._between = steps_between(self._between, cost_s, step_s)
        self._asked = False
        if do >= HALT:
            self._halt(told, in_spite=do == ENDED_IN_SPITE)
        elif do == TAKE_ONE:
            self._save()
        # What came while this was done isn't among these, and counts at the next agreement.
        self._signals.done(counts)
        self._word.done(told)
        self._agreed_s = time.monotonic()
        self._next = self._points + self._between

    def _greatest(self, wish: int, step_s: float) -> tuple[int, float, float]:
        """Return the greatest wish, what it costs to ask, and how long a step takes, the same on all ranks.

        Who comes last waits for nobody: so the least of what the ranks measured is what asking costs.
        """
        if self._comm.size == 1:
            return wish, 0.0, step_s
        from mpi4py import MPI

        all_of = np.array([wish, -min(self._cost_s, default=0.0), step_s])
        began_s = time.perf_counter()
        self._comm.Allreduce(MPI.IN_PLACE, all_of, op=MPI.MAX)
        self._cost_s = [*self._cost_s[-7:], time.perf_counter() - began_s]
        return int(all_of[0]), -float(all_of[1]), float(all_of[2])

    def _interval_s(self) -> float:
        return self._every_s if self._every_s is not None else interval_s(self._save_s, self._mtbf_s)

    # ---- checkpoints

    def _save(self) -> bool:
        step = self._state.done if self._has_ranged else self._state.values.get("step")
        if not isinstance(step, int) or step < 0:
            step = self._points
        try:
            trouble, parts, meta = "", [], b""
            try:
                parts, meta = self._state.pack({SAVED: self._extra_save()} if self._extra_save else {})
            except Exception as error:
                trouble = f"rank {self._comm.rank}: {error!r}"
            if told := next(filter(None, self._comm.allgather(trouble)), ""):
                raise BeoError(f"the checkpoint of step {step} wasn't taken", told, "see what can't be pickled")
            self._store.save(step, parts, meta)
        except BeoError as error:
            if not self._has_warned:
                self._tell(f"{error}; the job goes on")
            self._has_warned = True
            return False
        finally:
            self._saved_at, self._saved_s = self._points, time.monotonic()
        self._has_one, self._has_warned = True, False
        # The first one makes the pages of its slot, as the second does, so only the least counts.
        self._save_s = self._store.counters.save_s if self.counters.saves < 3 else min(
            2 * self._save_s, self._store.counters.save_s
        )
        return True

    def _halt(self, told: Told | None, in_spite: bool) -> None:
        words = [word for word in self._comm.allgather(told) if word]
        why = next((word.why for word in words if word.do == HALT), "SIGTERM")
        leaving = sorted({node for word in words for node in word.leaving})
        is_safe = self._save()
        if is_safe and leaving:
            try:
                self._store.evacuate(leaving)
            except BeoError as error:
                self._tell(str(error))
                is_safe = False
        if not is_safe and not in_spite:
            self._tell(f"told to halt ({why}), which it can't without a checkpoint: it goes on (once more SIGTERM ends it)")
            self._failed_halt_s = time.monotonic()
            return
        self._comm.barrier()
        self._close()
        raise SystemExit(EXIT_HALTED if self._has_one else SIGTERM_EXIT)

    def _tell(self, what: str) -> None:
        if self._comm.rank == 0:
            print(f"beo: {what}", file=sys.stderr, flush=True)

    # ---- the end

    def end(self) -> None:
        """Say that the program has ended: its checkpoints are removed, so it begins anew when it is run again."""
        if not self._is_over:
            self._store.remove()
            self._close(remove=True)

    def _close(self, remove: bool = False) -> None:
        if not self._is_over:
            self._is_over = True
            self._signals.close()
            self._word.close()
            self._place.close(remove)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, where the block has ended well; else keep the checkpoints for the next run."""
        if kind is None:
            self.end()
        else:
            self._close()  # not together: the other ranks may be elsewhere


RESERVED = {name for name in vars(Checkpoint) if not name.startswith("_")} | {"restored"}


def checkpoint(comm: Any = None, /, **options: Any) -> Checkpoint:
    """Return the `Checkpoint` of this program, restored if there is one to go on from. See `Checkpoint`."""
    return Checkpoint(comm, **options)


def _check(names: dict[str, Any], save: object, restore: object) -> None:
    for name in names:
        if name in RESERVED or name.startswith("_"):
            raise UsageError(f"{name!r} can't be the name of a state", "a checkpoint has that already", "rename it")
    for what, function in (("save", save), ("restore", restore)):
        if function is not None and not callable(function):
            raise UsageError(f"{what}= is no function", f"it is {function!r}"[:80], f"a state can't be called {what!r}")
    if (save is None) != (restore is None):
        raise UsageError("save= and restore= belong together", "", "give both")


def _interval(every: str | int | None) -> tuple[float | None, int]:
    """Return the seconds, or the number of safe points, between two checkpoints."""
    if isinstance(every, str):
        return parse_duration(every), 0
    if every is None:
        return None, 0
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise UsageError(f"every={every!r} is no interval", "", 'write "30s", "10m", or a number of steps')
    return None, every


def _mtbf_s(nodes: int) -> float:
    try:
        given_s = float(os.environ.get("BEO_MTBF_S", ""))
    except ValueError:
        given_s = 0.0
    return given_s if 0 < given_s < float("inf") else MTBF_S / nodes


def _world() -> Any:
    """Return the communicator of all ranks; of a process alone where no MPI is in use."""
    if "mpi4py.MPI" not in sys.modules and not any(mark in os.environ for mark in _MPI_MARKS):
        return Alone()
    try:
        from mpi4py import MPI
    except ImportError:
        return Alone()
    return MPI.COMM_WORLD


def _duplicate(comm: Any) -> Any:
    """Return a communicator of the same ranks whose messages nobody else receives."""
    return comm.Dup() if hasattr(comm, "Dup") else comm
