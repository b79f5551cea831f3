"""Checkpoints of all ranks of a program together: saved, found again, made whole again, read.

Everything here is *collective*: all ranks of the communicator call it, in the same order. Where one of them can't do
its part (its memory is full) all of them hear so, and the checkpoint before is untouched.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from beo.checkpoints.combine import SEGMENT_BYTES, Task, combine, wait
from beo.checkpoints.image import Image, Writing, as_bytes, read_header
from beo.checkpoints.manifest import BLOCK_BYTES, FORMAT, Manifest, Whole, digest, spoilt_blocks, sums
from beo.checkpoints.parity import Bytes, Scratch
from beo.checkpoints.plan import (
    IMAGE,
    LEVELS,
    PARITY,
    Piece,
    Stripe,
    default_level,
    is_whole,
    least_nodes,
    place_missing,
    recipe,
)
from beo.checkpoints.slots import Slots
from beo.errors import BeoError, Conflict, UsageError, reason

MESSAGE_BYTES = 4 << 20  # of an image, at a time, on its way to a rank that reads it
TAG_IMAGE = 8
NAMED_MAX = 8  # ranks in one sentence
STEP_MAX = 1 << 62
CURE = "bring back what is lost, or let the program begin anew with fresh=True"
CURE_OF_A_JOB = (
    "beo goes on with the copy at the head, if there is a whole one; else bring a lost node back and say 'beo requeue',"
    " or let the program begin anew with fresh=True"
)
ROOM = "give the job's nodes more memory for checkpoints (worker.checkpoint_max_bytes), or let it keep less"

Unit = tuple[str, int]  # (IMAGE or PARITY, rank of the checkpoint)


class CheckpointFailed(Conflict):
    """It couldn't be written. The one before is as it was."""


class Busy(CheckpointFailed):
    """Not now: what it would overwrite is being copied to the head. A safe point later it may be possible."""


class LostCheckpoint(BeoError):
    """There was a checkpoint, and too much of it is lost or spoilt."""


@dataclass
class Counters:
    """What a store has done, on this rank."""

    saves: int = 0
    saved_bytes: int = 0  # of images
    parity_bytes: int = 0
    save_s: float = 0.0  # the last one
    rebuilt: int = 0  # images and parities that were made again, over all ranks
    mended: int = 0  # spoilt blocks, over all ranks


@dataclass(frozen=True)
class Sealed:
    """A checkpoint that is whole. metas, sizes: of each of its ranks, what it said of itself, and its parts' size."""

    step: int
    metas: tuple[bytes, ...]
    sizes: tuple[int, ...]
    _fetch: Callable[[Sequence[tuple[int, int, memoryview]]], None] = field(repr=False)

    def fetch(self, wants: Sequence[tuple[int, int, memoryview]]) -> None:
        """Copy ranges of images into this rank's memory: (rank of the checkpoint, offset, where to). Collective."""
        self._fetch(wants)


@dataclass
class _Found:
    """A checkpoint of which something is here. at: who keeps which unit, by homes."""

    whole: Whole
    at: dict[Unit, list[int]]


class Store:
    """The checkpoints of one program in the folders of its nodes."""

    def __init__(self, comm: Any, folder: Path, level: str | None = None, node: str = "") -> None:
        """Take a communicator (mpi4py's, or alone.Alone) and this node's folder.

        level: how it is protected (plan.LEVELS), None: as suits the nodes. node: its name; "": BEO_NODE, or the
        machine's. Raises UsageError for a level that these nodes can't have.
        """
        self._comm = comm
        node = node or os.environ.get("BEO_NODE") or os.uname().nodename
        trouble = ""
        try:
            self._slots = Slots(folder)
        except OSError as error:
            trouble = f"{folder}: {(error.strerror or str(error)).lower()}"
        told = comm.allgather((node, f"{node}:{folder.absolute()}", level, trouble))
        if any(word[3] for word in told):
            raise Conflict(
                "there is no folder for checkpoints", next(w[3] for w in told if w[3]), "see docs/checkpoint.md"
            )
        self._nodes = tuple(word[0] for word in told)
        homes = list(dict.fromkeys(word[1] for word in told))
        self._home_of = [homes.index(word[1]) for word in told]  # of each rank
        self._ranks_at = [[r for r, h in enumerate(self._home_of) if h == n] for n in range(len(homes))]
        self._here = self._home_of[comm.rank]
        self._leads = self._ranks_at[self._here][0] == comm.rank
        self.level = _level(told[0][2], self._nodes)
        self._number: int | None = None  # of the last checkpoint; None: not looked yet
        self._taken_s = 0.0  # when the last was taken of all that were seen
        self.was_busy = False  # the last save
        self.passed_over = ""  # why `newest` took one that isn't the newest
        self._scratch = Scratch(SEGMENT_BYTES)
        self.counters = Counters()

    # ---- saving

    def save(self, step: int, parts: Sequence[Any], meta: bytes = b"") -> None:
        """Make a checkpoint of these contiguous buffers. Raises CheckpointFailed (or Busy), on all ranks or on none."""
        try:
            self._save(step, parts, meta)
        finally:
            self._slots.unlock()

    def _save(self, step: int, parts: Sequence[Any], meta: bytes) -> None:
        began_s = time.perf_counter()
        comm, me = self._comm, self._comm.rank
        what = "the checkpoint wasn't written"
        if self._number is None:
            self._number = self._last()
        size = 0
        with _Agreement(comm, what) as agreed:
            image = Image(meta, parts)
            size = image.size
            if not 0 <= step <= STEP_MAX:
                raise ValueError(f"a step is a number from 0 to {STEP_MAX}, not {step}")
        agreed.settle()
        is_mine = not self._leads or self._slots.lock("ab"[(self._number + 1) % 2])
        told = comm.allgather((size, step, secrets.token_hex(8) if me == 0 else "", is_mine, time.time()))
        self.was_busy = not all(word[3] for word in told)
        if self.was_busy:
            raise Busy(f"the checkpoint of step {step} wasn't written", "its slot is being copied", "wait a little")
        sizes = tuple(word[0] for word in told)
        # The later is the newer, also to the head: so never before the last one, whatever this node's clock says.
        taken_s = max(told[0][4], math.nextafter(self._taken_s, math.inf))
        whole = Whole(self._number + 1, told[0][2], step, self.level, self._nodes, sizes, taken_s)
        made = whole.stripes()
        kept = whole.parity_sizes()[me]
        with _Agreement(comm, what) as agreed:
            if len({at for _, at, *_ in told}) > 1:
                raise ValueError("the ranks are at different steps")
            self._slots.clear(whole.slot, me)
            if self._leads:
                self._slots.drop_others(whole.slot, set(self._ranks_at[self._here]))
            mine = self._slots.make(whole.slot, me, IMAGE, image.size)
            parity = self._slots.make(whole.slot, me, PARITY, kept)
        agreed.settle()
        writing = Writing(image, mine)
        combine(
            comm,
            encoding(made, me),
            lambda piece, length: _padded(writing.piece(piece.start, length), length),
            lambda piece, length: parity[piece.start : piece.start + length],
            lambda piece, total: None,
            self._scratch,
        )
        image_sums = writing.finish()
        parity_sums = sums(parity)
        digests = tuple(comm.allgather((digest(image_sums), digest(parity_sums))))
        whole = msgspec.structs.replace(whole, digests=digests)
        with _Agreement(comm, what) as agreed:
            self._slots.write(Manifest(FORMAT, whole, me, image_sums, parity_sums))
        agreed.settle()  # all have written everything
        with _Agreement(comm, what) as agreed:
            self._slots.seal(whole.slot, me)
        if agreed.failed():
            self._slots.clear(whole.slot, me)
        agreed.settle()  # nobody touches the slot before this one's until it is there everywhere
        self._number, self._taken_s = whole.number, whole.time_s
        self.counters.saves += 1
        self.counters.saved_bytes += image.size
        self.counters.parity_bytes += kept
        self.counters.save_s = time.perf_counter() - began_s

    def evacuate(self, leaving: Collection[str]) -> bool:
        """Copy what these nodes keep of the last checkpoint to those that stay; whether there is any that stays."""
        whole, _ = self._current()
        staying = [n for n, ranks in enumerate(self._ranks_at) if self._nodes[ranks[0]] not in leaving]
        if whole is None or not staying:
            return False
        gone = [rank for rank, node in enumerate(self._nodes) if node in leaving]
        to = {rank: self._ranks_at[staying[n % len(staying)]][0] for n, rank in enumerate(gone)}
        me, size = self._comm.rank, whole.sizes
        with _Agreement(self._comm, "the checkpoint can't be taken away from the nodes that are left") as agreed:
            places = {r: self._slots.make(whole.slot, r, IMAGE, size[r]) for r in gone if to[r] == me}
        agreed.settle()
        units = [(IMAGE, rank) for rank in gone]
        tasks = (
            Task(to[rank], Piece(kind, rank, start), ((rank, Piece(kind, rank, start), 1),), length)
            for kind, rank in units
            for start, length in _segments(size[rank])
        )
        own = self._slots.find(whole.slot, me, IMAGE, size[me])

        def read(piece: Piece, length: int) -> Bytes:
            assert own is not None
            return _padded(own[piece.start : piece.start + length], length)

        combine(self._comm, tasks, read, *_into(lambda piece: places[piece.rank]), self._scratch)
        with _Agreement(self._comm, "the checkpoint can't be taken away from the nodes that are left") as agreed:
            for rank, image in places.items():
                self._slots.write(Manifest(FORMAT, whole, rank, sums(image), b"", has_parity=False))
                self._slots.seal(whole.slot, rank)
        agreed.settle()
        return True

    def remove(self) -> None:
        """Remove all checkpoints: the program has ended, or begins anew."""
        self._comm.barrier()
        if self._leads:
            self._slots.remove()
        self._comm.barrier()

    # ---- finding it again

    def newest(self) -> Sealed | None:
        """Return the newest checkpoint that is whole, or can be made so, which it is then; None: there never was one.

        Raises LostCheckpoint where there was one, and too much of it is missing; Conflict where there is no room to
        make a lost part again.
        """
        found = self._look()
        why = ""
        for one in found:
            whole = one.whole
            lost = _lost(one)
            if not is_whole(whole.stripes(), len(whole.nodes), lost):
                why = why or _too_much(whole, [rank for kind, rank in lost if kind == IMAGE])
                continue
            trouble = self._make_whole(one)
            if trouble:
                why = why or trouble
                continue
            self._number = whole.number
            newest = f"the checkpoint of step {found[0].whole.step} wasn't finished, or is lost ({why})"
            self.passed_over = newest if why else ""
            with _Agreement(self._comm, "what is left of other checkpoints can't be removed") as agreed:
                if self._leads:
                    self._slots.keep_only(whole.name)
            agreed.settle()
            return self._sealed(one)
        if found:
            step = found[0].whole.step
            cure = CURE_OF_A_JOB if "BEO_JOB_ID" in os.environ else CURE
            raise LostCheckpoint(f"the checkpoint of step {step} is lost", why, cure)
        return None

    def scrub(self) -> int:
        """Read all of the last checkpoint, mend what is spoilt; return how many blocks it was.

        Raises LostCheckpoint where more is spoilt than can be mended.
        """
        before = self.counters.mended
        found = [one for one in self._look() if one.whole.number == self._number]
        if found:
            trouble = self._make_whole(found[0])
            if trouble:
                cure = "the running program still has its state: let it take another checkpoint"
                raise LostCheckpoint(f"the checkpoint of step {found[0].whole.step} is spoilt", trouble, cure)
        return self.counters.mended - before

    def _last(self) -> int:
        """Return the number of the newest checkpoint that can be made whole, of the newest at all, or 0."""
        found = self._look()
        for one in found:
            if is_whole(one.whole.stripes(), len(one.whole.nodes), _lost(one)):
                return one.whole.number
        return found[0].whole.number if found else 0

    def _current(self) -> tuple[Whole | None, list[_Found]]:
        found = [one for one in self._look() if one.whole.number == self._number]
        return (found[0].whole, found) if found else (None, [])

    def _look(self) -> list[_Found]:
        """Return all checkpoints of which something is on any node, the newest first; the same on all ranks."""
        wholes: dict[str, Whole] = {}
        here: list[tuple[str, Unit]] = []
        finished: set[str] = set()
        for manifest, sealed in self._slots.manifests() if self._leads else ():
            wholes[manifest.whole.name] = manifest.whole
            finished |= {manifest.whole.name} if sealed else set()
            here += [(manifest.whole.name, (IMAGE, manifest.rank))] if manifest.has_image else []
            here += [(manifest.whole.name, (PARITY, manifest.rank))] if manifest.has_parity else []
        found: dict[str, _Found] = {}
        written_by_all: set[str] = set()
        for rank, (others, units, sealed_there) in enumerate(self._comm.allgather((wholes, here, finished))):
            written_by_all |= sealed_there
            for name, whole in others.items():
                found.setdefault(name, _Found(whole, {}))
            for name, unit in units:
                found[name].at.setdefault(unit, []).append(self._home_of[rank])
        self._taken_s = max((self._taken_s, *(one.whole.time_s for one in found.values())))
        good = (one for name, one in found.items() if name in written_by_all)
        return sorted(good, key=lambda one: (-one.whole.number, one.whole.name))

    def _server(self, unit: Unit, home: int) -> int:
        """Which rank reads a unit for all: the one that had it, if it is still there, or any of its node."""
        ranks = self._ranks_at[home]
        return unit[1] if unit[1] in ranks else ranks[unit[1] % len(ranks)]

    def _make_whole(self, one: _Found) -> str:
        """Check every block of a checkpoint, and make again what is lost or spoilt. Returns why it can't be."""
        whole, comm, me = one.whole, self._comm, self._comm.rank
        keeper = {unit: self._server(unit, homes[0]) for unit, homes in one.at.items()}
        mine: dict[Unit, Bytes] = {}
        expected: dict[Unit, bytes] = {}
        bad: list[tuple[Unit, list[int] | None]] = []
        parities = whole.parity_sizes()
        manifests = {m.rank: m for m, _ in self._slots.manifests() if m.whole.name == whole.name}
        for unit in sorted(u for u, rank in keeper.items() if rank == me):
            kind, rank = unit
            size = whole.sizes[rank] if kind == IMAGE else parities[rank]
            data = self._slots.find(whole.slot, rank, kind, size) if size else np.empty(0, np.uint8)
            manifest = manifests.get(rank)
            if data is None or manifest is None:
                bad.append((unit, None))
                continue
            mine[unit] = data
            expected[unit] = manifest.image if kind == IMAGE else manifest.parity
            if spoilt := spoilt_blocks(data, expected[unit]):
                bad.append((unit, spoilt))
        spoilt_at = {unit: numbers for told in comm.allgather(bad) for unit, numbers in told}
        for unit, numbers in spoilt_at.items():
            if numbers is None:
                del keeper[unit]
        lost = [unit for unit in _units(whole) if unit not in keeper]
        made = whole.stripes()
        if not is_whole(made, len(whole.nodes), lost):
            return _too_much(whole, [rank for kind, rank in lost if kind == IMAGE])
        keeper |= self._place(whole, lost, keeper)
        with _Agreement(comm, "there is no room to make a lost part of the checkpoint again") as agreed:
            for kind, rank in (unit for unit in lost if keeper[unit] == me):
                size = whole.sizes[rank] if kind == IMAGE else parities[rank]
                mine[kind, rank] = self._slots.make(whole.slot, rank, kind, size)
        agreed.settle()
        tasks, trouble = _mending(whole, made, set(lost), spoilt_at, keeper)
        if trouble:
            return trouble

        def read(piece: Piece, length: int) -> Bytes:
            return _padded(mine[piece.kind, piece.rank][piece.start : piece.start + length], length)

        combine(comm, tasks, read, *_into(lambda piece: mine[piece.kind, piece.rank]), self._scratch)
        return self._seal_again(whole, lost, spoilt_at, keeper, mine, expected)

    def _place(self, whole: Whole, lost: Sequence[Unit], keeper: dict[Unit, int]) -> dict[Unit, int]:
        """Which rank makes each lost unit again.

        Its image on its own node, if that is here again, or where there is the most room; its parity beside that.
        """
        names = {self._nodes[ranks[0]]: home for home, ranks in enumerate(self._ranks_at)}
        here: dict[str, list[int]] = {str(n): [] for n in range(len(self._ranks_at))}
        for (kind, rank), at in keeper.items():
            if kind == IMAGE:
                here[str(self._home_of[at])].append(rank)
        images = [rank for kind, rank in lost if kind == IMAGE]
        homes = {rank: names[whole.nodes[rank]] for rank in images if whole.nodes[rank] in names}
        others = place_missing([rank for rank in images if rank not in homes], whole.nodes, here)
        homes |= {rank: int(home) for rank, home in others.items()}
        placed = {(IMAGE, rank): self._server((IMAGE, rank), home) for rank, home in homes.items()}
        for kind, rank in lost:
            if kind == PARITY:
                beside = placed.get((IMAGE, rank), keeper.get((IMAGE, rank), -1))
                placed[kind, rank] = beside
        return placed

    def _seal_again(
        self,
        whole: Whole,
        lost: Sequence[Unit],
        spoilt_at: dict[Unit, list[int] | None],
        keeper: dict[Unit, int],
        mine: dict[Unit, Bytes],
        expected: dict[Unit, bytes],
    ) -> str:
        """Write the manifests of what was made again; check what was mended. Returns what is still spoilt."""
        me = self._comm.rank
        wrong = [
            unit
            for unit, numbers in spoilt_at.items()
            if numbers and keeper[unit] == me and spoilt_blocks(mine[unit], expected[unit])
        ]
        with _Agreement(self._comm, "a lost part of the checkpoint wasn't made again") as agreed:
            for rank in sorted({rank for _, rank in lost}):
                units = [(kind, rank) for kind in (IMAGE, PARITY) if keeper.get((kind, rank)) == me]
                if not units:
                    continue
                have = {unit[0]: expected.get(unit) or sums(mine[unit]) for unit in units}
                image, parity = have.get(IMAGE), have.get(PARITY)
                for unit in units:
                    if digest(have[unit[0]]) != whole.digests[rank][unit[0] == PARITY]:
                        wrong.append(unit)
                        break
                else:
                    made = Manifest(
                        FORMAT, whole, rank, image or b"", parity or b"", image is not None, parity is not None
                    )
                    self._slots.write(made)
                    self._slots.seal(whole.slot, rank)
        agreed.settle()
        wrong_ranks = sorted({rank for told in self._comm.allgather(wrong) for _, rank in told})
        if wrong_ranks:
            return f"rank {wrong_ranks[0]}'s part doesn't come to what its checksum says"
        self.counters.rebuilt += len(lost)
        self.counters.mended += sum(len(numbers) for numbers in spoilt_at.values() if numbers)
        return ""

    # ---- reading

    def _sealed(self, one: _Found) -> Sealed:
        whole, me = one.whole, self._comm.rank
        at = {
            rank: homes[0]
            for found in self._look()
            if found.whole.name == whole.name
            for (kind, rank), homes in found.at.items()
            if kind == IMAGE
        }
        keeper = {rank: self._server((IMAGE, rank), home) for rank, home in at.items()}
        images: dict[int, Bytes] = {}
        heads: dict[int, tuple[bytes, int] | None] = {}
        for rank in (rank for rank, by in keeper.items() if by == me):
            data = self._slots.find(whole.slot, rank, IMAGE, whole.sizes[rank])
            if data is not None:
                images[rank] = data
                heads[rank] = read_header(data)
        known: dict[int, tuple[bytes, int] | None] = {}
        for told in self._comm.allgather(heads):
            known |= told
        metas, starts = [], []
        for rank in range(len(whole.nodes)):
            head = known.get(rank)
            if head is None:
                why = f"rank {rank}'s image has no beginning"
                cure = CURE_OF_A_JOB if "BEO_JOB_ID" in os.environ else CURE
                raise LostCheckpoint(f"the checkpoint of step {whole.step} can't be read", why, cure)
            metas.append(head[0])
            starts.append(head[1])
        sizes = tuple(size - start for size, start in zip(whole.sizes, starts, strict=True))

        def fetch(wants: Sequence[tuple[int, int, memoryview]]) -> None:
            self._fetch(images, keeper, starts, sizes, wants)

        return Sealed(whole.step, tuple(metas), sizes, fetch)

    def _fetch(
        self,
        images: dict[int, Bytes],
        keeper: dict[int, int],
        starts: Sequence[int],
        sizes: Sequence[int],
        wants: Sequence[tuple[int, int, memoryview]],
    ) -> None:
        comm, me = self._comm, self._comm.rank
        asked: list[list[tuple[int, int, int]]] = [[] for _ in range(comm.size)]
        receives: list[tuple[int, Bytes]] = []
        with _Agreement(comm, "that can't be fetched of the checkpoint") as agreed:
            for rank, offset, into in wants:
                view = as_bytes(into)
                if not 0 <= rank < len(sizes) or not 0 <= offset <= offset + len(view) <= sizes[rank]:
                    raise ValueError(f"there are no bytes {offset} to {offset + len(view)} of rank {rank}")
                at = starts[rank] + offset
                if keeper[rank] == me:
                    view[:] = images[rank][at : at + len(view)]
                    continue
                asked[keeper[rank]].append((rank, at, len(view)))
                receives.append((keeper[rank], view))
        agreed.settle()
        given = comm.alltoall(asked)
        pending = []
        for source, view in receives:
            for low, length in _segments(len(view), MESSAGE_BYTES):
                pending.append(comm.Irecv(view[low : low + length], source, TAG_IMAGE))
        for target, ranges in enumerate(given):
            for rank, at, size in ranges:
                for low, length in _segments(size, MESSAGE_BYTES):
                    pending.append(comm.Isend(images[rank][at + low : at + low + length], target, TAG_IMAGE))
        for request in pending:
            wait(request)


class _Agreement:
    """A block that may fail on some ranks, by what they were given or by the system: `settle` then fails on all."""

    def __init__(self, comm: Any, what: str) -> None:
        self._comm, self._what = comm, what
        self._why = self._cure = ""
        self._all: list[tuple[str, str]] | None = None

    def __enter__(self) -> _Agreement:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, OSError | ValueError | TypeError | BufferError | MemoryError):
            self._why = reason(error) or type(error).__name__
            self._cure = ROOM if isinstance(error, OSError | MemoryError) else "correct what the program gives it"
            return True
        return False

    def failed(self) -> bool:
        """Whether it failed on any rank. Collective."""
        if self._all is None:
            self._all = self._comm.allgather((self._why, self._cure))
        return any(why for why, _ in self._all)

    def settle(self) -> None:
        """Raise CheckpointFailed on all ranks if it failed on any. Collective."""
        if self.failed() and self._all:
            rank, (why, cure) = next((rank, told) for rank, told in enumerate(self._all) if told[0])
            raise CheckpointFailed(self._what, f"rank {rank}: {why}", cure)


def _level(wish: str | None, nodes: Sequence[str]) -> str:
    level = wish or default_level(nodes)
    if level not in LEVELS:
        raise UsageError(f"there is no level {level!r:.22}", f"it is one of {', '.join(LEVELS)}", "change level=")
    number = len(set(nodes))
    if number < least_nodes(level):
        why = f"it needs {least_nodes(level)} nodes, and the job has {number}"
        raise UsageError(f"level {level} isn't possible", why, "leave level= out, or ask for more nodes")
    return level


def _units(whole: Whole) -> list[Unit]:
    """All that a checkpoint consists of."""
    kept = whole.parity_sizes()
    ranks = range(len(whole.nodes))
    return [(IMAGE, rank) for rank in ranks] + [(PARITY, rank) for rank in ranks if kept[rank]]


def _lost(one: _Found) -> list[Unit]:
    return [unit for unit in _units(one.whole) if unit not in one.at]


def _too_much(whole: Whole, ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:NAMED_MAX])) + (" …" if len(ranks) > NAMED_MAX else "")
    which = f"rank{'s' * (len(ranks) != 1)} {named}"
    makes_up = {"raid0": "makes up for none", "rs": "makes up for two nodes"}.get(whole.level, "makes up for one node")
    return f"what {which} of {len(whole.nodes)} kept is gone, and {whole.level} {makes_up}"


def _segments(size: int, at_most: int = SEGMENT_BYTES) -> Iterator[tuple[int, int]]:
    for start in range(0, size, at_most):
        yield start, min(at_most, size - start)


def _shifted(piece: Piece, start: int) -> Piece:
    return Piece(piece.kind, piece.rank, piece.start + start)


def encoding(made: Sequence[Stripe], me: int) -> Iterator[Task]:
    """The tasks that make all parity in which this rank has a part, segment by segment, so that all are busy."""
    mine = [stripe for stripe in made if any(piece.rank == me for piece in (*stripe.data, *stripe.parity))]
    for start, _ in _segments(max((stripe.length for stripe in mine), default=0)):
        for stripe in mine:
            length = min(SEGMENT_BYTES, stripe.length - start)
            if length <= 0:
                continue
            for number, parity in enumerate(stripe.parity):
                weights = stripe.weights(number)
                sources = tuple(
                    (piece.rank, _shifted(piece, start), weight)
                    for piece, weight in zip(stripe.data, weights, strict=True)
                )
                yield Task(parity.rank, _shifted(parity, start), sources, length)


def _mending(
    whole: Whole,
    made: Sequence[Stripe],
    lost: set[Unit],
    spoilt_at: dict[Unit, list[int] | None],
    keeper: dict[Unit, int],
) -> tuple[list[Task], str]:
    """Return the tasks that make again what is lost or spoilt, or why that can't be done."""
    tasks: list[Task] = []
    blocks = {unit: set(numbers) for unit, numbers in spoilt_at.items() if numbers}
    step = BLOCK_BYTES if blocks else SEGMENT_BYTES  # two spoilt blocks of a stripe can't be mended in one segment
    known: dict[tuple[int, frozenset[Piece], Piece], dict[Piece, int] | None] = {}
    for index, stripe in enumerate(made):
        pieces = (*stripe.data, *stripe.parity)
        if not any((piece.kind, piece.rank) in lost or (piece.kind, piece.rank) in blocks for piece in pieces):
            continue
        for start, length in _segments(stripe.length, step):
            gone = frozenset(p for p in pieces if _is_gone(p, start, length, lost, blocks))
            for wanted in sorted(gone, key=lambda piece: (piece.kind, piece.rank, piece.start)):
                key = index, gone, wanted
                if key not in known:
                    known[key] = recipe(stripe, gone, wanted)
                terms = known[key]
                if terms is None:
                    return [], f"more blocks are spoilt than {whole.level} makes up for, at rank {wanted.rank}"
                sources = tuple(
                    (keeper[piece.kind, piece.rank], _shifted(piece, start), weight) for piece, weight in terms.items()
                )
                tasks.append(Task(keeper[wanted.kind, wanted.rank], _shifted(wanted, start), sources, length))
    if not made and blocks:
        rank = min(rank for _, rank in blocks)
        return [], f"a block of rank {rank} is spoilt, and {whole.level} makes up for none"
    return tasks, ""


def _is_gone(piece: Piece, start: int, length: int, lost: set[Unit], blocks: dict[Unit, set[int]]) -> bool:
    unit = piece.kind, piece.rank
    if unit in lost:
        return True
    spoilt = blocks.get(unit)
    if not spoilt:
        return False
    first, last = piece.start + start, piece.start + start + length - 1
    return any(number in spoilt for number in range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1))


def _padded(found: Bytes, length: int) -> Bytes:
    """Bytes of a unit, with zeros behind its end."""
    if len(found) == length:
        return found
    whole = np.zeros(length, np.uint8)
    whole[: len(found)] = found
    return whole


def _into(at: Callable[[Piece], Bytes]) -> tuple[Callable[[Piece, int], Bytes], Callable[[Piece, Bytes], None]]:
    """How `combine` writes a unit that may end within a piece."""

    def write(piece: Piece, length: int) -> Bytes:
        place = at(piece)[piece.start : piece.start + length]
        return place if len(place) == length else np.empty(length, np.uint8)

    def done(piece: Piece, total: Bytes) -> None:
        place = at(piece)[piece.start : piece.start + len(total)]
        if len(place) < len(total):
            place[:] = total[: len(place)]

    return write, done
