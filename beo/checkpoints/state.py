"""What a program wants to have kept: arrays by name, which stay where they are, and anything else that can be pickled.

A rank's image has an array's bytes as one part, and a value as a pickle (protocol 5) with its buffers as parts of their
own, so nothing large is copied on the way. What is what stands in the image's *meta*. An array that isn't declared to
be distributed is each rank's own; on another number of ranks it must have been the same on all of them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import msgspec
import numpy as np
import xxhash

from beo.checkpoints.place import raise_first
from beo.checkpoints.plan import layout
from beo.checkpoints.shards import Span, spans
from beo.errors import BeoError, UsageError

FORMAT = 1
ANEW = "name another folder=, or begin anew with fresh=True"

Array = np.ndarray[Any, Any]
Want = tuple[int, int, memoryview]


class Found(Protocol):
    """A checkpoint that can be read (store.Sealed)."""

    @property
    def step(self) -> int:
        """What the program called it."""

    @property
    def metas(self) -> tuple[bytes, ...]:
        """What each of its ranks said of itself."""

    def fetch(self, wants: Sequence[Want]) -> None:
        """Copy ranges of images into this rank's memory. Collective."""


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """How an array is distributed: along which axis, and how many rows are copies of the neighbours' at either end."""

    axis: int
    halo: int = 0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One name of one rank. dtype: "" for a value. parts: which of the image's are its own, from, to."""

    dtype: str
    shape: tuple[int, ...]
    shard: Shard | None
    parts: tuple[int, int]


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """All of one rank. done: steps of the loop. sizes: of the parts, in bytes."""

    format: int
    done: int
    entries: dict[str, Entry]
    sizes: list[int]

    def ranges(self, entry: Entry) -> list[tuple[int, int]]:
        """Return where the parts of an entry begin in the image, and their sizes."""
        starts, _ = layout(self.sizes)
        return [(starts[n], self.sizes[n]) for n in range(*entry.parts)]


@dataclass
class _Plan:
    """What is fetched, and what is to be done with it then."""

    wants: list[Want]
    then: list[Callable[[], None]]


class State:
    """The names of one rank's program, and what they stand for. done: how many steps of its loop are done."""

    def __init__(self, names: Collection[str], values: dict[str, Any]) -> None:
        """Take arrays and values: those of these names, as they are in `values` whenever they are wanted.

        Raises UsageError for what can't be kept.
        """
        self._names = tuple(names)
        self.values = values
        self.shards: dict[str, Shard] = {}
        self.done = 0
        for name, value in self.kept().items():
            if isinstance(value, np.ma.MaskedArray):
                cure = f"keep {name}.data and {name}.mask, each by its own name"
                raise UsageError(f"{name} can't be restored", "the array has a mask, which isn't kept with it", cure)
            if is_array(value):
                if not value.flags.writeable:
                    raise UsageError(f"{name} can't be restored", "the array is read-only", "give a copy of it")
                continue
            try:
                pickle.dumps(value, 5, buffer_callback=lambda buffer: None)
            except Exception as error:
                cure = "keep what it is made from, and make it anew"
                raise UsageError(f"{name} can't be kept in a checkpoint", str(error), cure) from None

    def kept(self) -> dict[str, Any]:
        """Return what the names stand for now."""
        return {name: self.values[name] for name in self._names}

    def shard(self, name: str, axis: int, halo: int) -> None:
        """Declare that an array is distributed along an axis. Raises UsageError where it can't be."""
        arrays: dict[str, Array] = {known: value for known, value in self.kept().items() if is_array(value)}
        if name not in arrays:
            raise UsageError(
                f"there is no array {name!r}", f"there is {', '.join(arrays) or 'none'}", "name one of these"
            )
        array = arrays[name]
        for what, number in (("axis", axis), ("halo", halo)):
            if isinstance(number, bool) or not isinstance(number, Integral):
                raise UsageError(f"{what}={number!r} is no whole number", "", "write one, as axis=0, halo=1")
        if not -array.ndim <= axis < array.ndim:
            raise UsageError(f"{name} has no axis {axis}", f"its shape is {_times(array.shape)}", "name another axis")
        if halo < 0 or array.shape[axis] < 2 * halo:
            why = f"along its axis {axis} there are {array.shape[axis]} rows, the halos' among them"
            raise UsageError(f"{name} can't have a halo of {halo}", why, "give the rows that are copied at *each* end")
        self.shards[name] = Shard(int(axis) % array.ndim, int(halo))

    def size_bytes(self) -> int:
        """How large its arrays are."""
        return sum(value.nbytes for value in self.values.values() if is_array(value))

    def pack(self, extra: Mapping[str, Any]) -> tuple[list[Any], bytes]:
        """Return the parts of the image, uncopied where they are contiguous, and the meta."""
        parts: list[Any] = []
        entries: dict[str, Entry] = {}
        for name, value in {**self.kept(), **extra}.items():
            first = len(parts)
            if is_array(value):
                parts.append(_bytes(np.ascontiguousarray(value)))
                told = _dtype(value), value.shape, self.shards.get(name)
            else:
                buffers: list[pickle.PickleBuffer] = []
                parts.append(pickle.dumps(value, 5, buffer_callback=buffers.append))
                parts += [buffer.raw() for buffer in buffers]
                told = "", (), None
            entries[name] = Entry(*told, (first, len(parts)))
        sizes = [memoryview(part).nbytes for part in parts]
        return parts, msgspec.msgpack.encode(Meta(FORMAT, self.done, entries, sizes))

    def restore(self, found: Found, comm: Any, extra: Mapping[str, Callable[[Any], Any]]) -> None:
        """Take everything from a checkpoint: arrays in place. Collective. extra: who wants what isn't a name's.

        Raises UsageError, on all ranks, where it is another program's or doesn't fit this number of ranks.
        """
        metas, plan = [], _Plan([], [])
        trouble: BeoError | None = None
        lengths = comm.allgather({name: value.shape for name, value in self.kept().items() if is_array(value)})
        try:
            metas = [_decode(meta) for meta in found.metas]
            self._check(metas, comm.rank, lengths, extra)
            self._plan(metas, comm.rank, lengths, plan)
        except (ValueError, LookupError) as error:
            trouble = UsageError(f"the checkpoint of step {found.step} doesn't fit", str(error), ANEW)
        raise_first(comm, trouble)
        if len(metas) != comm.size:
            self._check_replicated(found, comm, metas)
        found.fetch(plan.wants)
        values: dict[str, Any] = {}
        wanted = {name: e for name, e in metas[comm.rank % len(metas)].entries.items() if not e.dtype}
        buffers = self._fetch_parts(found, metas, comm.rank % len(metas), wanted)
        try:
            for then in plan.then:
                then()
            for name, (data, *rest) in buffers.items():
                values[name] = pickle.loads(data, buffers=rest)
            for name, value in values.items():
                if name in extra:
                    extra[name](value)
                else:
                    self.values[name] = value
        except Exception as error:
            trouble = UsageError(f"the checkpoint of step {found.step} can't be read", repr(error), ANEW)
        raise_first(comm, trouble)
        self.done = metas[0].done
        for name, entry in metas[0].entries.items():
            if entry.shard:
                self.shards.setdefault(name, entry.shard)

    # ---- whether it fits

    def _check(
        self,
        metas: Sequence[Meta],
        me: int,
        shapes: Sequence[Mapping[str, tuple[int, ...]]],
        extra: Iterable[str],
    ) -> None:
        """Raise ValueError, in words, where this program has other names, types or shapes than the checkpoint."""
        mine, there = {*self._names, *extra}, set(metas[0].entries)
        if mine != there:
            only_there, only_here = (" and ".join(sorted(some)) or "none" for some in (there - mine, mine - there))
            raise ValueError(f"it has {only_there} where the program has {only_here}")
        same = len(metas) == len(shapes)
        for name, value in self.kept().items():
            shard = self._shard_of(name, metas)
            now = _dtype(value) if is_array(value) else ""
            for meta in metas if shard or not same else (metas[me],):
                entry = meta.entries[name]
                if entry.dtype != now:
                    raise ValueError(f"{name} is {_noun(entry.dtype)} in it, and {_noun(now)} in the program")
                old, new = list(entry.shape), list(value.shape) if now else []
                if shard and len(old) == len(new) and shard.axis < len(old):
                    old[shard.axis] = new[shard.axis]  # these are compared in all, not by rank
                if old != new:
                    why = f"it has {name} of {_times(entry.shape)}, and the program one of {_times(value.shape)}"
                    raise ValueError(why + ("" if shard or same else _undeclared(len(metas), len(shapes), name)))

    def _shard_of(self, name: str, metas: Sequence[Meta]) -> Shard | None:
        return self.shards.get(name) or metas[0].entries[name].shard

    def _check_replicated(self, found: Found, comm: Any, metas: Sequence[Meta]) -> None:
        """Raise UsageError where something differed between ranks that isn't declared to be distributed. Collective."""
        names = [name for name in metas[0].entries if not self._shard_of(name, metas)]
        digests: dict[str, set[bytes]] = {name: set() for name in names}
        for first in range(0, len(metas), comm.size):
            rank = min(first + comm.rank, len(metas) - 1)
            entries = {name: metas[rank].entries[name] for name in names}
            for name, parts in self._fetch_parts(found, metas, rank, entries).items():
                told = xxhash.xxh3_128()
                for part in parts:
                    told.update(part)
                digests[name].add(told.digest())
        differ = [name for name in names if len(set().union(*comm.allgather(digests[name]))) > 1]
        if differ:
            why = f"{differ[0]} differed between its {len(metas)} ranks{_undeclared(len(metas), comm.size, differ[0])}"
            cure = f"run it on {len(metas)} ranks, or {ANEW}"
            raise UsageError(f"the checkpoint of step {found.step} doesn't fit", why, cure)

    # ---- from where

    def _fetch_parts(
        self, found: Found, metas: Sequence[Meta], rank: int, entries: Mapping[str, Entry]
    ) -> dict[str, list[bytearray]]:
        """Return the parts of these entries of one rank. Collective."""
        parts: dict[str, list[bytearray]] = {}
        wants: list[Want] = []
        for name, entry in entries.items():
            for start, size in metas[rank].ranges(entry):
                part = bytearray(size)
                parts.setdefault(name, []).append(part)
                wants.append((rank, start, memoryview(part)))
        found.fetch(wants)
        return parts

    def _plan(
        self, metas: Sequence[Meta], me: int, shapes: Sequence[Mapping[str, tuple[int, ...]]], plan: _Plan
    ) -> None:
        for name, array in self.kept().items():
            if not is_array(array):
                continue
            into = array
            if not array.flags.c_contiguous:
                into = np.empty(array.shape, array.dtype)
                plan.then.append(lambda array=array, into=into: np.copyto(array, into))  # type: ignore[misc]
            shard = self._shard_of(name, metas)
            if shard is None:
                self._take_whole(metas, name, me % len(metas), into, plan)
                continue
            axis = shard.axis
            old = [meta.entries[name].shape[axis] for meta in metas]
            new = [shape[name][axis] for shape in shapes]
            try:
                found = spans(old, new, me, shard.halo)
            except ValueError as error:
                raise ValueError(f"{name}, along its axis {axis}: {error}") from None
            for span in found:
                self._take_rows(metas, name, span, axis, into, plan)

    def _take_whole(self, metas: Sequence[Meta], name: str, rank: int, into: Array, plan: _Plan) -> None:
        ((start, _),) = metas[rank].ranges(metas[rank].entries[name])
        plan.wants.append((rank, start, _bytes(into).data))

    def _take_rows(self, metas: Sequence[Meta], name: str, span: Span, axis: int, into: Array, plan: _Plan) -> None:
        """Rows that lie in one piece are taken as they lie; of others, all of the old rank's part comes along."""
        entry = metas[span.rank].entries[name]
        ((start, _),) = metas[span.rank].ranges(entry)
        before = (slice(None),) * axis
        rows = into[(*before, slice(span.to, span.to + span.count))]
        if rows.flags.c_contiguous and (not axis or span.count == entry.shape[axis]):
            row_bytes = rows.nbytes // span.count
            plan.wants.append((span.rank, start + span.start * row_bytes * (not axis), _bytes(rows).data))
            return
        part: Array = np.empty(entry.shape, into.dtype)
        plan.wants.append((span.rank, start, _bytes(part).data))
        taken = part[(*before, slice(span.start, span.start + span.count))]
        # What isn't contiguous itself is filled from `into` afterwards, so these come first.
        plan.then.insert(0, lambda: np.copyto(rows, taken))


def is_array(value: Any) -> bool:
    """Whether it is restored in place: an array of plain numbers or bytes."""
    return isinstance(value, np.ndarray) and not value.dtype.hasobject


def _bytes(array: Array) -> Array:
    """Return a contiguous array as bytes, uncopied."""
    return array.reshape(-1).view(np.uint8) if array.nbytes else np.empty(0, np.uint8)


def _dtype(array: Array) -> str:
    return str(np.lib.format.dtype_to_descr(array.dtype))


def _noun(dtype: str) -> str:
    if not dtype:
        return "no array"
    try:
        return f"an array of {np.dtype(dtype)}"
    except TypeError:
        return f"an array of {dtype}"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _undeclared(before: int, now: int, name: str) -> str:
    return f"; it ran on {before} ranks, now it is {now}, and nobody has said ck.shard({name!r}, axis=...)"


def _decode(data: bytes) -> Meta:
    """Read a rank's meta. ValueError where it isn't one."""
    try:
        meta = msgspec.msgpack.decode(data, type=Meta)
    except msgspec.MsgspecError as error:
        raise ValueError(f"what it says of itself can't be read: {error}") from None
    if meta.format != FORMAT:
        raise ValueError(f"its format is {meta.format}, and this beo reads {FORMAT}")
    for name, entry in meta.entries.items():
        first, last = entry.parts
        if not 0 <= first < last <= len(meta.sizes) or (entry.dtype and last - first != 1):
            raise ValueError(f"it contradicts itself about {name}")
    if meta.done < 0 or any(size < 0 for size in meta.sizes):
        raise ValueError("it has sizes that can't be")
    return meta
