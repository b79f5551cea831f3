"""Who should vote: a witness and a few workers of different racks, or the primary itself where there is nobody else.

A *holder* (``holder/A``) is the vote of a pair without workers and witness: it stands on that head's own disk, so that
this head alone goes on when the other is gone, and never the other way round without an operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ALIVE_S = 3.0  # a voter that has been silent for longer is replaced
FEW, MANY = 3, 5  # voters: an odd number, so that one more must die for the same harm
MANY_FROM = 10  # possible voters from which on there are MANY
HOLDER = "holder"  # so no node's name counts


def holder(head: str) -> str:
    """The vote of a head that stands on its own disk."""
    return f"{HOLDER}/{head}"


def is_witness(voter: str) -> bool:
    """Whether a voter is a witness: durable, so its name stays the same."""
    return voter.startswith("witness:")


def number(possible: int) -> int:
    """How many of so many possible voters should vote."""
    if possible >= MANY_FROM:
        return MANY
    return FEW if possible >= FEW else min(possible, 1)


def choose(present: Mapping[str, str], voting: Iterable[str], head: str) -> tuple[str, ...]:
    """Choose from the present ones (voter -> rack): who votes already stays, witnesses first, then over the racks."""
    if not present:
        return (holder(head),)
    votes = set(voting)
    racks: dict[str, int] = {}
    chosen: list[str] = []
    rest = sorted(present, key=lambda voter: (voter not in votes, not is_witness(voter), voter))
    while rest and len(chosen) < number(len(present)):
        best = min(rest, key=lambda voter: (not is_witness(voter), racks.get(present[voter], 0), rest.index(voter)))
        rest.remove(best)
        chosen.append(best)
        if present[best]:
            racks[present[best]] = racks.get(present[best], 0) + 1
    return tuple(sorted(chosen))
