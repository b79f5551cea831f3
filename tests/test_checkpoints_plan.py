"""How checkpoints are cut, and the arithmetic of parity: what must hold for any ranks, nodes and sizes. Pure."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.checkpoints import manifest, plan
from beo.checkpoints.manifest import FORMAT, Manifest, Spoilt, Whole, digest
from beo.checkpoints.parity import Adder, Bytes, Scratch
from tests.checkpoint_world import SURVIVES

PROTECTED = sorted(set(SURVIVES) - {"raid0"})
SIZE = st.sampled_from([0, 1, 63, 64, 1000, 4096, 100_000])


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """Return the nodes and the sizes of some ranks, and a level that they can have."""
    level = draw(st.sampled_from(PROTECTED))
    number = draw(st.integers(plan.least_nodes(level), 12))
    names = [f"n{n}" for n in range(number)]
    more = draw(st.lists(st.sampled_from(names), max_size=8))
    nodes = draw(st.permutations(names + more))
    return tuple(nodes), tuple(draw(SIZE) for _ in nodes), level


@given(cases())
def test_no_node_has_two_pieces_of_a_stripe(case: tuple[tuple[str, ...], tuple[int, ...], str]) -> None:
    nodes, sizes, level = case
    for stripe in plan.stripes(nodes, sizes, level):
        holders = [nodes[piece.rank] for piece in (*stripe.data, *stripe.parity)]
        assert len(set(holders)) == len(holders)
        assert len(stripe.parity) == SURVIVES[level]
        assert len(stripe.data) <= plan.SET_MAX


@given(cases())
def test_every_byte_is_in_one_stripe_and_parities_lie_side_by_side(
    case: tuple[tuple[str, ...], tuple[int, ...], str],
) -> None:
    nodes, sizes, level = case
    made = plan.stripes(nodes, sizes, level)
    kept = plan.parity_sizes(len(nodes), made)
    for kind, ends in ((plan.IMAGE, sizes), (plan.PARITY, kept)):
        for rank, end in enumerate(ends):
            covered = sorted(
                (piece.start, piece.start + stripe.length)
                for stripe in made
                for piece in (*stripe.data, *stripe.parity)
                if (piece.kind, piece.rank) == (kind, rank)
            )
            assert all(before[1] == after[0] for before, after in itertools.pairwise(covered))
            assert not end or (covered[0][0] == 0 and covered[-1][1] >= end)


@given(cases(), st.data())
def test_as_many_nodes_as_a_level_stands_may_be_lost(
    case: tuple[tuple[str, ...], tuple[int, ...], str], data: st.DataObject
) -> None:
    nodes, sizes, level = case
    count = SURVIVES[level]
    lost = data.draw(st.lists(st.sampled_from(sorted(set(nodes))), min_size=count, max_size=count, unique=True))
    gone = [(kind, rank) for rank, node in enumerate(nodes) if node in lost for kind in (plan.IMAGE, plan.PARITY)]
    made = plan.stripes(nodes, sizes, level)
    if any(sizes):
        ranks_with_data = [(kind, rank) for kind, rank in gone if sizes[rank] or kind == plan.PARITY]
        assert plan.is_whole(made, len(nodes), ranks_with_data)
    for stripe in made:
        pieces = [*stripe.data, *stripe.parity]
        missing = [piece for piece in pieces if nodes[piece.rank] in lost]
        assert all(plan.recipe(stripe, missing, piece) is not None for piece in missing)


def test_parity_costs_what_its_level_says() -> None:
    nodes, sizes = tuple(f"n{n}" for n in range(8)), (7 * 6 * 64_000,) * 8
    costs = {"raid1": 1.0, "raid4": 2 / 8, "raid5": 1 / 7, "rs": 2 / 6}
    for level, cost in costs.items():
        kept = plan.parity_sizes(8, plan.stripes(nodes, sizes, level))
        assert sum(kept) == pytest.approx(cost * sum(sizes), rel=1e-3)
        if level != "raid4":
            assert max(kept) == min(kept)


def test_a_plan_for_a_thousand_ranks_is_made_at_once() -> None:
    nodes = tuple(f"n{rank % 250}" for rank in range(1000))
    for level in PROTECTED:
        assert len(plan.stripes(nodes, (1000,) * 1000, level)) >= 100


def combined(pieces: list[Bytes], weights: list[int]) -> Bytes:
    """Return a sum as the store makes it."""
    total = np.empty_like(pieces[0])
    adder = Adder(weights, total, Scratch(len(total)))
    for piece in pieces:
        adder.add(piece)
    return total


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("parities", [1, 2])
def test_any_pieces_that_may_be_lost_are_made_again_from_the_others(count: int, parities: int) -> None:
    random = np.random.default_rng(count)
    stripe = plan.Stripe(
        tuple(plan.Piece(plan.IMAGE, rank, 0) for rank in range(count)),
        tuple(plan.Piece(plan.PARITY, count + number, 0) for number in range(parities)),
        512,
    )
    data = [random.integers(0, 256, 512, dtype=np.uint8) for _ in range(count)]
    contents = dict(zip(stripe.data, data, strict=True))
    for number, piece in enumerate(stripe.parity):
        contents[piece] = combined(data, list(stripe.weights(number)))
    for losses in range(1, parities + 1):
        for lost in itertools.combinations(contents, losses):
            for wanted in lost:
                terms = plan.recipe(stripe, lost, wanted)
                assert terms and not set(terms) & set(lost)
                made = combined([contents[piece] for piece in terms], list(terms.values()))
                assert np.array_equal(made, contents[wanted])
    too_many = list(contents)[: parities + 1]
    if len(stripe.data) > parities:
        assert plan.recipe(stripe, too_many, too_many[0]) is None


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_multiplication_is_a_fields(a: int, b: int, c: int) -> None:
    assert plan.multiply(a, b) == plan.multiply(b, a)
    assert plan.multiply(a, plan.multiply(b, c)) == plan.multiply(plan.multiply(a, b), c)
    assert plan.multiply(a, b ^ c) == plan.multiply(a, b) ^ plan.multiply(a, c)
    assert plan.multiply(a, 1) == a
    assert not (a and b) or plan.multiply(a, b)


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_parts_lie_one_after_another_at_cache_lines(sizes: list[int]) -> None:
    starts, total = plan.layout(sizes)
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    assert all(start % plan.ALIGN_BYTES == 0 for start in starts)
    assert total >= sum(sizes)
    assert all(0 <= after - end < plan.ALIGN_BYTES for end, after in zip(ends, [*starts[1:], total], strict=False))


def a_manifest() -> Manifest:
    sizes = (3 << 20, 100, 64)
    image, parity = b"\1" * 24, b"\2" * 16
    digests = ((digest(image), digest(parity)), (0, 0), (0, 0))
    return Manifest(FORMAT, Whole(3, "name", 7, "raid5", ("a", "b", "c"), sizes, 0.0, digests), 0, image, parity)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert manifest.decode(manifest.encode(a_manifest())) == a_manifest()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(Spoilt):
        manifest.decode(data)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_wrong_byte_of_a_manifest_is_seen(at: int, change: int) -> None:
    data = bytearray(manifest.encode(a_manifest()))
    data[at % len(data)] ^= change
    with pytest.raises(Spoilt):
        manifest.decode(bytes(data))


@pytest.mark.parametrize(
    "absurd",
    [
        {"sizes": (-1, 100, 64)},
        {"sizes": (1 << 60, 100, 64)},
        {"sizes": (100, 64)},
        {"sizes": (4 << 20, 100, 64)},
        {"nodes": ("a", "b")},
        {"nodes": ("a", "a", "a")},
        {"nodes": ()},
        {"level": "raid9"},
        {"number": 0},
        {"step": -1},
        {"digests": ()},
        {"digests": ((0, 0),) * 3},
    ],
    ids=lambda absurd: "-".join(absurd),
)
def test_a_manifest_that_contradicts_itself_is_refused_though_its_sum_is_right(absurd: dict[str, object]) -> None:
    good = a_manifest()
    bad = msgspec.structs.replace(good, whole=msgspec.structs.replace(good.whole, **absurd))
    with pytest.raises(Spoilt):
        manifest.decode(manifest.encode(bad))
    for wrong in ({"rank": 3}, {"rank": -1}, {"format": 99}, {"image": b"\1" * 16}, {"parity": b""}):
        with pytest.raises(Spoilt):
            manifest.decode(manifest.encode(msgspec.structs.replace(good, **wrong)))
