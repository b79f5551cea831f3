"""What a program keeps comes back as it was, in place, on any number of ranks; what doesn't fit is refused on all."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo.checkpoints.alone import Alone
from beo.checkpoints.image import as_bytes
from beo.checkpoints.plan import layout
from beo.checkpoints.state import State, Want
from beo.checkpoints.store import CheckpointFailed
from beo.errors import BeoError, UsageError
from tests.ranks import together


@dataclass
class InMemory:
    """A checkpoint of some ranks' images."""

    step: int
    metas: tuple[bytes, ...]
    images: list[bytes]

    def fetch(self, wants: Sequence[Want]) -> None:
        """As the store does."""
        for rank, offset, into in wants:
            assert into.c_contiguous
            if not 0 <= offset <= offset + into.nbytes <= len(self.images[rank]):
                raise CheckpointFailed("a range that no checkpoint has was asked for")
            into.cast("B")[:] = self.images[rank][offset : offset + into.nbytes]


def taken(*states: State, extra: dict[str, Any] | None = None) -> InMemory:
    """The checkpoint of these ranks."""
    metas, images = [], []
    for state in states:
        parts, meta = state.pack(extra or {})
        starts, size = layout([memoryview(part).nbytes for part in parts])
        image = bytearray(size)
        for start, part in zip(starts, parts, strict=True):
            image[start : start + memoryview(part).nbytes] = as_bytes(part).tobytes()
        metas.append(meta)
        images.append(bytes(image))
    return InMemory(7, tuple(metas), images)


def state(**values: Any) -> State:
    return State(values, values)


def restored(found: InMemory, *states: State) -> list[str]:
    """Restore these ranks; what each has to say against it."""
    told = together(len(states), lambda comm: states[comm.rank].restore(found, comm, {}))
    assert all(error is None or isinstance(error, UsageError) for error in told), told
    return [str(error or "") for error in told]


def shares(draw: st.DrawFn, rows: int) -> list[tuple[int, int]]:
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=4)))
    bounds = [0, *cuts, rows]
    return list(pairwise(bounds))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, int, int, list[tuple[int, int]], list[tuple[int, int]], bool]:
    """A whole array, the axis and the halo of its distribution, who has which rows before and now, Fortran's order."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axis, halo = draw(st.integers(0, len(shape) - 1)), draw(st.integers(0, 2))
    rows = draw(st.integers(0, 12))
    shape[axis] = rows + 2 * halo
    dtype = draw(st.sampled_from(["u1", "<f8", ">i4", "<c16", "M8[s]", [("a", "<i4"), ("b", "<f8")]]))
    whole = np.zeros(shape, np.dtype(dtype))  # type: ignore[call-overload]
    whole.reshape(-1).view(np.uint8)[:] = np.arange(whole.nbytes) % 251
    return whole, axis, halo, shares(draw, rows), shares(draw, rows), draw(st.booleans())


@settings(max_examples=60)
@given(worlds())
def test_any_numbers_of_ranks_before_and_now_hold_the_same_distributed_array(world: Any) -> None:
    whole, axis, halo, before, now, fortran = world

    def part(low: int, high: int) -> np.ndarray:
        rows = whole[(*(slice(None),) * axis, slice(low, high + 2 * halo))]
        return np.array(rows, order="F" if fortran else "C")

    old = [state(u=part(low, high), n=3) for low, high in before]
    for one in old:
        one.shard("u", axis, halo)
    found = taken(*old)
    arrays = [np.zeros_like(part(low, high)) for low, high in now]
    new = [state(u=array, n=0) for array in arrays]
    assert set(restored(found, *new)) == {""}
    for one, array, (low, high) in zip(new, arrays, now, strict=True):
        assert one.values["u"] is array and array.tobytes("A") == part(low, high).tobytes("A")
        assert one.values["n"] == 3


class Walk:
    """An object of a program's own, with an array within."""

    def __init__(self, length: int) -> None:
        self.path = np.arange(length)


def test_arrays_come_back_in_place_and_everything_else_by_name() -> None:
    u, strided, number = np.arange(6.0).reshape(2, 3), np.arange(10)[::3], np.array(5)
    kept = state(
        u=u, strided=strided, number=number, empty=np.empty((0, 4)), walk=Walk(1000), step=4, rest=[1, {2: "x"}]
    )
    found = taken(kept)
    new = state(
        u=np.zeros((2, 3)),
        strided=np.zeros(12, int)[::3],
        number=np.array(0),
        empty=np.empty((0, 4)),
        walk=None,
        step=0,
        rest=None,
    )
    arrays = dict(new.values)
    assert restored(found, new) == [""]
    for name in ("u", "strided", "number", "empty"):
        assert new.values[name] is arrays[name] and np.array_equal(new.values[name], kept.values[name])
    assert (new.values["step"], new.values["rest"]) == (4, [1, {2: "x"}])
    assert np.array_equal(new.values["walk"].path, np.arange(1000))
    new.values["walk"].path[0] = 9  # what was pickled out of band can be written to


def test_large_things_are_not_copied_into_the_pickle() -> None:
    walk = Walk(1 << 16)
    parts, _ = state(walk=walk, u=walk.path).pack({})
    assert [np.shares_memory(np.frombuffer(part, np.uint8), walk.path) for part in parts[-2:]] == [True, True]
    assert memoryview(parts[0]).nbytes < 1000


def test_each_rank_gets_its_own_back_where_the_number_is_the_same() -> None:
    found = taken(*(state(u=np.full(2 + rank, rank), seed=rank) for rank in range(3)))
    new = [state(u=np.zeros(2 + rank, int), seed=None) for rank in range(3)]
    assert restored(found, *new) == [""] * 3
    assert [one.values["seed"] for one in new] == [0, 1, 2]
    assert [one.values["u"].tolist() for one in new] == [[0, 0], [1, 1, 1], [2, 2, 2, 2]]


@pytest.mark.parametrize("now", [1, 2, 5])
def test_what_is_the_same_on_all_ranks_goes_to_any_number_of_them(now: int) -> None:
    found = taken(*(state(u=np.arange(4), step=8) for _ in range(3)))
    new = [state(u=np.zeros(4, int), step=0) for _ in range(now)]
    assert set(restored(found, *new)) == {""}
    assert all(one.values["u"].tolist() == [0, 1, 2, 3] and one.values["step"] == 8 for one in new)


@pytest.mark.parametrize("now", [1, 2, 4, 7])
def test_what_differs_between_ranks_and_is_not_declared_is_refused_on_another_number_of_them(now: int) -> None:
    found = taken(*(state(u=np.arange(4) + (rank == 2), step=8) for rank in range(3)))
    new = [state(u=np.zeros(4, int), step=0) for _ in range(now)]
    told = set(restored(found, *new))
    assert len(told) == 1
    (why,) = told
    assert "u differed between its 3 ranks" in why and "ck.shard('u', axis=...)" in why and "fresh=True" in why
    assert not any(one.values["u"].any() for one in new), "a refusal touches nothing"


def test_values_that_differ_are_refused_by_name_too() -> None:
    found = taken(*(state(seed=rank) for rank in range(2)))
    assert all("seed differed" in why for why in restored(found, *(state(seed=0) for _ in range(3))))


def test_a_declaration_is_remembered_by_the_checkpoint() -> None:
    old = [state(u=np.arange(3) + 3 * rank) for rank in range(2)]
    for one in old:
        one.shard("u", 0, 0)
    new = state(u=np.zeros(6, int))
    assert restored(taken(*old), new) == [""]
    assert new.values["u"].tolist() == [0, 1, 2, 3, 4, 5] and new.shards["u"].axis == 0


@pytest.mark.parametrize(
    ("mine", "why"),
    [
        ({"u": np.zeros((2, 4)), "step": 0}, "it has u of 2 x 3, and the program one of 2 x 4"),
        ({"u": np.zeros(6), "step": 0}, "it has u of 2 x 3, and the program one of 6"),
        ({"u": np.zeros((2, 3), "f4"), "step": 0}, "u is an array of float64 in it, and an array of float32"),
        ({"u": 3, "step": 0}, "u is an array of float64 in it, and no array in the program"),
        ({"u": np.zeros((2, 3)), "step": np.zeros(1)}, "step is no array in it"),
        ({"u": np.zeros((2, 3)), "stop": 0}, "it has step where the program has stop"),
        ({"u": np.zeros((2, 3))}, "it has step where the program has none"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_of_another_program_is_refused_with_the_cure(mine: dict[str, Any], why: str, ranks: int) -> None:
    found = taken(*(state(u=np.ones((2, 3)), step=1) for _ in range(ranks)))
    for told in restored(found, *(state(**mine) for _ in range(ranks))):
        assert why in told and told.endswith("name another folder=, or begin anew with fresh=True")


def test_one_rank_that_doesnt_fit_is_heard_on_all() -> None:
    found = taken(*(state(u=np.ones(3)) for _ in range(2)))
    told = restored(found, state(u=np.zeros(3)), state(u=np.zeros(4)))
    assert told[0] == told[1] and "the program one of 4" in told[0]


@pytest.mark.parametrize("shapes", [[(3, 4), (3, 5)], [(3, 4), (4, 4)]])
def test_rows_that_are_more_in_all_are_refused(shapes: list[tuple[int, int]]) -> None:
    old = [state(u=np.ones((3, 4))) for _ in range(2)]
    for one in old:
        one.shard("u", 0, 0)
    assert all("doesn't fit" in told for told in restored(taken(*old), *(state(u=np.zeros(s)) for s in shapes)))


@pytest.mark.parametrize("spoilt", [b"", b"\xff", b"\x94\x02\x00\x80\x90", b"\x94\x01\x00\x80"])
def test_a_description_that_is_spoilt_is_refused(spoilt: bytes) -> None:
    assert "doesn't fit" in restored(InMemory(1, (spoilt,), [b""]), state(u=1))[0]


@given(st.integers(0, 200), st.binary(min_size=1, max_size=3), st.sampled_from([1, 2]))
def test_a_spoilt_description_leads_to_a_refusal_or_to_nothing_worse(at: int, spoilt: bytes, before: int) -> None:
    found = taken(*(state(u=np.arange(5), step=1) for _ in range(before)))
    meta = found.metas[0]
    at %= len(meta)
    found.metas = (meta[:at] + spoilt + meta[at + len(spoilt) :], *found.metas[1:])
    with suppress(BeoError):
        state(u=np.zeros(5, int), step=0).restore(found, Alone(), {})


def test_a_program_that_keeps_and_takes_back_its_own() -> None:
    found = taken(state(step=3), extra={"save()": {"grid": np.arange(5)}})
    back: list[Any] = []
    new = state(step=0)
    new.restore(found, Alone(), {"save()": back.append})
    assert back[0]["grid"].tolist() == [0, 1, 2, 3, 4] and new.values["step"] == 3


@pytest.mark.parametrize(
    ("name", "axis", "halo", "why"),
    [
        ("v", 0, 0, "there is no array 'v' (there is u)"),
        ("step", 0, 0, "there is no array 'step'"),
        ("u", 2, 0, "u has no axis 2 (its shape is 4 x 3)"),
        ("u", -3, 0, "u has no axis -3"),
        ("u", 0, 3, "u can't have a halo of 3"),
        ("u", 0, -1, "u can't have a halo of -1"),
    ],
)
def test_a_declaration_that_cant_be_is_refused(name: str, axis: int, halo: int, why: str) -> None:
    with pytest.raises(UsageError) as told:
        state(u=np.zeros((4, 3)), step=0).shard(name, axis, halo)
    assert why in str(told.value)


def test_what_cant_be_kept_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="file can't be kept"):
        state(file=(n for n in range(3)))
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        state(u=fixed)
