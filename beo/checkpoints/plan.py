"""Who keeps what of a checkpoint: which ranks' bytes are combined into which parity, and where that lies. Pure.

Each rank has an *image*: the bytes of its state, one after another. Images are protected by *stripes*. A stripe takes a
piece of equal length of some images, its data, and combines them into one or two pieces of parity, which lie with other
ranks. All levels are stripes, and differ in which:

    raid0   none: an image is on its own node alone
    raid1   one image each, and its copy with a rank of another node
    raid4   the images of up to 7 nodes, and one parity with a rank of yet another node
    raid5   over sets of up to 8 ranks, each on another node: each image is cut into n - 1 pieces, and each rank has the
            parity of one piece of each other (rotating)
    rs      the same with n - 2 pieces, and two parities: P is the sum, Q the sum with the weights 2**i over GF(256)

So what is lost with a node is made again from the others, as long as no stripe has lost more pieces than it has
parities. The rotating layout is that of SCR's XOR scheme (A. Moody et al., SC 2010).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

Level = Literal["raid0", "raid1", "raid4", "raid5", "rs"]
LEVELS: tuple[str, ...] = get_args(Level)
SET_MAX = 8  # ranks of a set: more save little memory, and make the loss of two of them likelier
ALIGN_BYTES = 64  # of whatever is combined: a cache line
IMAGE, PARITY = "image", "parity"

_POLYNOMIAL = 0x11D  # x^8 + x^4 + x^3 + x^2 + 1, of which 2 is a generator: the usual one of RAID 6


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes: of whose (a rank of the checkpoint) image or parity, from where on."""

    kind: str
    rank: int
    start: int


@dataclass(frozen=True, slots=True)
class Stripe:
    """Pieces of `length` bytes each. data: in the order in which they are combined. parity: P, or P and Q."""

    data: tuple[Piece, ...]
    parity: tuple[Piece, ...]
    length: int

    def weights(self, parity: int) -> tuple[int, ...]:
        """By what each piece of data counts in P (0) or Q (1), such that Horner's rule gives Q in the order of data."""
        last = len(self.data) - 1
        return tuple(1 if not parity else power(last - i) for i in range(len(self.data)))


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where parts of these sizes begin in an image, and its size."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += _aligned(size)
    return starts, end


def _aligned(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


def default_level(nodes: Sequence[str]) -> Level:
    """What suits these nodes of the ranks: raid5 from three on, a copy with two, nothing with one."""
    number = len(set(nodes))
    return "raid5" if number > 2 else "raid1" if number == 2 else "raid0"


def least_nodes(level: str) -> int:
    """How many nodes a level needs at least."""
    return {"raid0": 1, "rs": 3}.get(level, 2)


@lru_cache(maxsize=4)  # each rank asks for the same several times in each checkpoint
def stripes(nodes: tuple[str, ...], sizes: tuple[int, ...], level: str) -> tuple[Stripe, ...]:
    """Return the stripes that protect these images. nodes, sizes: of each rank, its node and its image's size in bytes.

    Raises ValueError for a level that there is none of, or that needs more nodes.
    """
    if level not in LEVELS:
        raise ValueError(f"there is no level {level!r}: it is one of {', '.join(LEVELS)}")
    number = len(set(nodes))
    if number < least_nodes(level):
        raise ValueError(f"{level} needs {least_nodes(level)} nodes, and the job has {number}")
    if level == "raid0":
        return ()
    keepers = _Keepers(nodes)
    found: list[Stripe] = []
    rotates = {"raid5": 2, "rs": 3}
    for members in _sets(nodes, level):
        if level in rotates and len(members) >= rotates[level]:
            found += _rotating(members, sizes, rotates[level] - 1, keepers)
            continue
        # A rank that is left over of its node is copied, as all are with raid1.
        for few in [members] if level == "raid4" else [[rank] for rank in members]:
            found += _outside(few, sizes, 2 if level == "rs" else 1, keepers)
    return tuple(found)


class _Keepers:
    """Whose parity is how long already, by rank."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes = nodes
        self._ends = [0] * len(nodes)
        self._at: dict[str, list[int]] = {}
        for rank, node in enumerate(nodes):
            self._at.setdefault(node, []).append(rank)
        self._ring = list(self._at)
        self._place = {node: place for place, node in enumerate(self._ring)}
        self._turns = dict.fromkeys(self._ring, 0)

    def take(self, rank: int, size: int) -> int:
        """Return where more parity with a rank begins."""
        start = self._ends[rank]
        self._ends[rank] += size
        return start

    def outside(self, members: Sequence[int], count: int) -> list[int]:
        """Return ranks for the parity of these, on the next nodes that they and each other aren't on, in turn."""
        taken = {self._nodes[rank] for rank in members}
        place = self._place[self._nodes[members[-1]]]
        chosen: list[int] = []
        while len(chosen) < count:
            place = (place + 1) % len(self._ring)
            node = self._ring[place]
            if node not in taken:
                ranks = self._at[node]
                chosen.append(ranks[self._turns[node] % len(ranks)])
                self._turns[node] += 1
        return chosen


def _sets(nodes: Sequence[str], level: str) -> list[list[int]]:
    """Divide the ranks into sets of which no two ranks are on one node."""
    if level == "raid1":
        return [[rank] for rank in range(len(nodes))]
    rows: list[list[int]] = []  # the first rank of each node, the second of each, ...
    seen: dict[str, int] = {}
    for rank, node in enumerate(nodes):
        row = seen.get(node, 0)
        seen[node] = row + 1
        if row == len(rows):
            rows.append([])
        rows[row].append(rank)
    most = SET_MAX if level != "raid4" else min(SET_MAX - 1, max(1, len(seen) - 1))
    found = []
    for row_ranks in rows:
        parts = -(-len(row_ranks) // most)
        bounds = [len(row_ranks) * n // parts for n in range(parts + 1)]
        found += [row_ranks[low:high] for low, high in pairwise(bounds)]
    return found


def _outside(members: Sequence[int], sizes: Sequence[int], parities: int, keepers: _Keepers) -> list[Stripe]:
    size = _aligned(max(sizes[rank] for rank in members))
    if not size:
        return []
    holders = keepers.outside(members, parities)
    data = tuple(Piece(IMAGE, rank, 0) for rank in members)
    parity = tuple(Piece(PARITY, rank, keepers.take(rank, size)) for rank in holders)
    return [Stripe(data, parity, size)]


def _rotating(members: Sequence[int], sizes: Sequence[int], parities: int, keepers: _Keepers) -> list[Stripe]:
    n, size = len(members), _aligned(max(sizes[rank] for rank in members))
    if not size:
        return []
    length = _aligned(-(-size // (n - parities)))
    found = []
    for t in range(n):
        holders = [members[(t + i) % n] for i in range(parities)]
        # The rank t - s gives its piece number s - 1: so each gives each of its pieces once.
        data = tuple(Piece(IMAGE, members[(t - s) % n], (s - 1) * length) for s in range(1, n - parities + 1))
        parity = tuple(Piece(PARITY, rank, keepers.take(rank, length)) for rank in holders)
        found.append(Stripe(data, parity, length))
    return found


def parity_sizes(ranks: int, made: Sequence[Stripe]) -> list[int]:
    """Return how many bytes of parity each rank keeps."""
    ends = [0] * ranks
    for stripe in made:
        for piece in stripe.parity:
            ends[piece.rank] = max(ends[piece.rank], piece.start + stripe.length)
    return ends


def is_whole(made: Sequence[Stripe], ranks: int, lost: Collection[tuple[str, int]]) -> bool:
    """Whether everything can be made again where these (kind, rank) are lost."""
    images = {rank for kind, rank in lost if kind == IMAGE}
    seen: set[int] = set()
    for stripe in made:
        gone = [piece for piece in stripe.data if piece.rank in images]
        left = [piece for piece in stripe.parity if (PARITY, piece.rank) not in lost]
        if len(gone) > len(left):
            return False
        seen.update(piece.rank for piece in stripe.data)
    return images <= seen or not images


def recipe(stripe: Stripe, lost: Collection[Piece], wanted: Piece) -> dict[Piece, int] | None:
    """Return of which pieces that are left, by which weights, a lost one is the sum; None where it can't be made."""
    gone = [i for i, piece in enumerate(stripe.data) if piece in lost]
    left = [p for p, piece in enumerate(stripe.parity) if piece not in lost]
    if len(gone) > len(left):
        return None
    known = [i for i in range(len(stripe.data)) if i not in gone]
    used = left[: len(gone)]
    # Each parity used says: sum over gone of w * data = parity + sum over known of w * data. Solve for what is gone.
    rows = [[stripe.weights(p)[i] for i in gone] for p in used]
    inverse = _invert(rows)
    made: dict[int, dict[Piece, int]] = {}
    for row, i in enumerate(gone):
        terms: dict[Piece, int] = {}
        for column, p in enumerate(used):
            weight = inverse[row][column]
            _add(terms, stripe.parity[p], weight)
            for k in known:
                _add(terms, stripe.data[k], multiply(weight, stripe.weights(p)[k]))
        made[i] = terms
    if wanted in stripe.data:
        return made[stripe.data.index(wanted)]
    terms = {}
    for i, weight in enumerate(stripe.weights(stripe.parity.index(wanted))):
        for piece, factor in (made[i] if i in made else {stripe.data[i]: 1}).items():
            _add(terms, piece, multiply(weight, factor))
    return terms


def _add(terms: dict[Piece, int], piece: Piece, weight: int) -> None:
    total = terms.get(piece, 0) ^ weight
    if total:
        terms[piece] = total
    else:
        terms.pop(piece, None)


def multiply(a: int, b: int) -> int:
    """Return the product of two numbers of GF(256)."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1, b >> 1
        if a & 0x100:
            a ^= _POLYNOMIAL
    return product


def power(exponent: int) -> int:
    """Return 2 ** exponent in GF(256)."""
    value = 1
    for _ in range(exponent):
        value = multiply(value, 2)
    return value


def _inverse(value: int) -> int:
    return next(other for other in range(1, 256) if multiply(value, other) == 1)


def _invert(rows: list[list[int]]) -> list[list[int]]:
    """Invert a matrix of none, one or two rows over GF(256)."""
    if len(rows) < 2:
        return [[_inverse(rows[0][0])]] if rows else []
    (a, b), (c, d) = rows
    scale = _inverse(multiply(a, d) ^ multiply(b, c))
    return [[multiply(scale, d), multiply(scale, b)], [multiply(scale, c), multiply(scale, a)]]


def place_missing(missing: Sequence[int], nodes: Sequence[str], here: Mapping[str, Collection[int]]) -> dict[int, str]:
    """Return on which node each image that is lost is to be made again.

    nodes: of the checkpoint's ranks. here: node of today -> ranks whose images it has. The one that has the least gets
    it, so a spare in the place of a lost node; two that were on different nodes go to different ones where they can.
    """
    load = {node: len(ranks) for node, ranks in here.items()}
    given: dict[str, set[str]] = {node: set() for node in here}
    placed = {}
    for rank in missing:
        node = min(load, key=lambda name: (bool(given[name] - {nodes[rank]}), load[name], name))
        placed[rank] = node
        load[node] += 1
        given[node].add(nodes[rank])
    return placed
