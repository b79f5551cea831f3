"""`beo.checkpoint`: how a program takes part in its checkpoints.

    with beo.checkpoint(comm, u=u, step=0) as ck:      # restores in place if a checkpoint exists
        for ck.step in ck.range(nsteps):               # a safe point: may checkpoint, may end for a drain
            u[1:-1] = ...

At a *safe point* all ranks are between two steps. Every few of them they agree whether to take a checkpoint, or to
halt: to take one and end with `EXIT_HALTED` on every rank (agreement.py).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from types import TracebackType
from typing import Any, Self

from beo.checkpoints.agreement import IN_SPITE, Agreement, Verdict
from beo.checkpoints.alone import Alone
from beo.checkpoints.place import Place
from beo.checkpoints.state import State
from beo.checkpoints.store import Busy, Counters, LostCheckpoint, Store
from beo.checkpoints.when import MTBF_S
from beo.checkpoints.word import HALT, SCRUB, TAKE_ONE
from beo.errors import EXIT_HALTED, EXIT_UNRESTORED, BeoError, UsageError
from beo.units import parse_duration

SAVED = "save()"  # the name of what a program's own function returns: no keyword can be called so
BUSY_TRIES, BUSY_S = 100, 0.1  # to take the last checkpoint
GUESS_BYTES_PER_S = 1e9  # how fast the first checkpoint is taken to be
ONE_EACH = "give each a folder= of its own, see docs/checkpoint.md"
SIGTERM_EXIT = 128 + 15  # of a program that was told to end twice, and has no checkpoint
_MPI_MARKS = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")  # of an environment under an MPI launcher


class Checkpoint:
    """A program's state, kept. Its names are attributes: `ck.step`. All its methods are collective."""

    _ended = 0  # of this process, in the folder that all of them are given

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
        SystemExit(EXIT_UNRESTORED), on all ranks, where there was one and too much of it is lost: the head may have a
        copy with which the job can be started again.
        """
        _check(comm, names, save, restore, folder, fresh)
        every_s, every_points = _interval(every)
        self._names = frozenset(names)
        self.__dict__.update(names)  # found as quickly as any attribute
        self._state = State(names, self.__dict__)
        self._extra_save, self._extra_restore = save, restore
        self._comm = _duplicate(comm if comm is not None else _world())
        self._in_range = self._has_ranged = self._has_one = self._has_warned = self._is_over = False
        self._restored = False
        self._place = Place(self._comm, folder)
        try:
            self._store = Store(self._comm, self._place.folder, level)
            if fresh:
                self._store.remove()
            if found := self._store.newest():
                self._state.restore(found, self._comm, {SAVED: restore} if restore else {})
                self._restored = self._has_one = True
                if self._store.passed_over:
                    self._tell(f"{self._store.passed_over}: it goes on with the one of step {found.step}")
        except BaseException as error:
            self._place.close()
            if not isinstance(error, LostCheckpoint):
                raise
            self._tell(str(error))
            raise SystemExit(EXIT_UNRESTORED) from None
        if self._place.is_own and Checkpoint._ended == 1:  # told once
            self._tell(f"one checkpoint after another: started again, it can't tell them apart: {ONE_EACH}")
            Checkpoint._ended += 1
        word = os.environ.get("BEO_CHECKPOINT_WORD")
        self._agreement = Agreement(self._comm, every_s, every_points, _mtbf_s(self._place.nodes), word)
        self._agreement.guess(self._state.size_bytes() / GUESS_BYTES_PER_S)

    # ---- what is kept

    def __getattr__(self, name: str) -> Any:
        """Say that there is no such name."""
        raise AttributeError(f"the checkpoint has no {name!r}: name it in beo.checkpoint(..., {name}=...)")

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a name stand for something else."""
        if name[0] != "_" and name not in self._names:
            raise AttributeError(f"the checkpoint has no {name!r}: name it in beo.checkpoint(..., {name}=...)")
        object.__setattr__(self, name, value)

    def shard(self, name: str, axis: int = 0, halo: int = 0) -> Self:
        """Say that an array is distributed: each rank has some rows of `axis`, in the order of the ranks.

        halo: how many rows at either end of each part are copies of its neighbours' rows (or edges): they belong to the
        array that the rank has, and aren't counted twice. So the program can go on with another number of ranks.
        """
        self._state.shard(name, axis, halo)
        return self

    @property
    def restored(self) -> bool:
        """Whether there was a checkpoint to go on from."""
        return self._restored

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

    def _count(self, steps: Sequence[int]) -> Iterator[int]:
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
        if self._agreement.is_now():
            self._check_is_open()
            verdict = self._agreement.reach()
            if verdict.do >= HALT:
                self._halt(verdict)
            elif verdict.do == TAKE_ONE:
                self._save()
            elif verdict.do == SCRUB:
                self._scrub()
            self._agreement.settle()

    def save(self) -> bool:
        """Take a checkpoint now; in a loop of `range`, when the step is done. Returns whether it was taken, or will be.

        A failure is told on standard error, and the checkpoint before stays.
        """
        self._check_is_open()
        if self._in_range:
            self._agreement.ask()
            return True
        return self._save()

    def _check_is_open(self) -> None:
        if self._is_over:
            raise UsageError("the checkpoint has ended", "by end(), or with its block", "make another one")

    # ---- checkpoints

    def _save(self) -> bool:
        step = self._state.done if self._has_ranged else self.__dict__.get("step")
        if not isinstance(step, int) or step < 0:
            step = self._agreement.points
        try:
            self._store.save(step, *self._packed(step))
        except Busy:
            self._agreement.postponed()
            return False
        except BeoError as error:
            if not self._has_warned:
                self._tell(f"{error}; the program goes on")
            self._has_warned = True
            self._agreement.saved(None)
            return False
        self._has_one, self._has_warned = True, False
        self._agreement.saved(self._store.counters.save_s)
        return True

    def _scrub(self) -> None:
        """Read all of the last checkpoint; what is spoilt is mended, or, where that can't be, another is taken."""
        try:
            if mended := self._store.scrub():
                self._tell(f"{mended} spoilt blocks of the last checkpoint were mended")
        except BeoError as error:
            self._tell(f"{error}: another is taken")
            self._save()

    def _packed(self, step: int) -> tuple[list[Any], bytes]:
        """Return the image of this rank. Collective. Raises BeoError, on all ranks, where one of them can't."""
        trouble, parts, meta = "", list[Any](), b""
        try:
            parts, meta = self._state.pack({SAVED: self._extra_save()} if self._extra_save else {})
        except Exception as error:  # whatever a program's own objects raise
            trouble = f"rank {self._comm.rank}: {error!r}"
        for told in self._comm.allgather(trouble):
            if told:
                cure = "keep what it is made from, and make it anew"
                raise BeoError(f"the checkpoint of step {step} wasn't taken", told, cure)
        return parts, meta

    def _halt(self, verdict: Verdict) -> None:
        is_safe = self._save_at_last()
        if is_safe and verdict.leaving:
            try:
                self._store.evacuate(verdict.leaving)
            except BeoError as error:
                self._tell(str(error))
                is_safe = False
        if not is_safe and verdict.do != IN_SPITE:
            self._tell(f"it was to halt ({verdict.why}), but has no checkpoint and goes on: one more SIGTERM ends it")
            self._agreement.failed_to_halt()
            return
        self._comm.barrier()
        self._close()
        raise SystemExit(EXIT_HALTED if self._has_one else SIGTERM_EXIT)

    def _save_at_last(self) -> bool:
        """Take the last checkpoint; who is copying the one before is ended by the agent, so wait for that."""
        for _ in range(BUSY_TRIES):
            taken, busy = self._save(), self._store.was_busy
            if taken or not busy:
                return taken
            time.sleep(BUSY_S)
        return False

    def _tell(self, what: str) -> None:
        if self._comm.rank == 0:
            print(f"beo: {what}", file=sys.stderr, flush=True)

    # ---- the end

    def end(self) -> None:
        """Say that the program has ended: its checkpoints are removed, so it begins anew when it is run again."""
        if not self._is_over:
            self._store.remove()
            self._close()
            Checkpoint._ended += self._place.is_own
            self._comm.barrier()  # who comes out of it finds nothing left

    def _close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._agreement.close()
            self._place.close()

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


RESERVED = {name for name in vars(Checkpoint) if not name.startswith("_")}


def checkpoint(comm: Any = None, /, **options: Any) -> Checkpoint:
    """Return the `Checkpoint` of this program, restored if there is one to go on from. See `Checkpoint`."""
    return Checkpoint(comm, **options)


def _check(comm: object, names: dict[str, Any], save: object, restore: object, folder: object, fresh: object) -> None:
    if comm is not None and not hasattr(comm, "allgather"):
        cure = "write beo.checkpoint(comm, u=u, step=0), or leave comm out"
        raise UsageError(f"{comm!r:.40} is no communicator", "it has no ranks", cure)
    if folder is not None and not (isinstance(folder, str | os.PathLike) and os.fspath(folder)):
        raise UsageError(f"folder={folder!r} is no folder", "", "name one, or leave it out")
    if fresh not in (0, 1):  # "no" would count as true, and remove all
        raise UsageError(f"fresh={fresh!r:.40} is neither True nor False", "", "fresh=True begins anew")
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
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise UsageError(f"every={every!r} is no interval", "", 'write "30s", "10m", or a number of steps')
    return None, int(every)


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
