"""How ranks and parts of an attempt ended: words that journal, wire and command line share.

Apart from the events, since a client needs these and none of those.
"""

from __future__ import annotations

import msgspec


class RankResult(msgspec.Struct, frozen=True, array_like=True):
    """How one rank ended: status 0-255, 128 + signal for a killed one; CPU seconds; peak resident bytes."""

    rank: int
    status: int
    user_s: float
    system_s: float
    peak_bytes: int


class StepRank(msgspec.Struct, frozen=True, array_like=True):
    """How one rank of a further step ended. rank: its number within the attempt; spawned: by MPI_Comm_spawn."""

    step: int
    rank: int
    status: int
    user_s: float
    system_s: float
    peak_bytes: int
    spawned: bool = False


class PartResult(msgspec.Struct, frozen=True, array_like=True):
    """How a part ended.

    reason: '' its ranks ended by themselves · 'rank' one failed and took the rest along (`culprit`, else -1) ·
    'time limit' · 'out of memory' · 'peer' another part ended first · 'silence' another part's node was silent ·
    'ended' the head had asked for it · 'lost' beo itself lost the ranks, or couldn't start them · 'staging' the files
    that it was to have can't be had · 'collecting' its ranks ended by themselves, and its results aren't kept. note: a
    sentence for people. steps: ranks of further steps on that node, and how many more there were that ended well.
    """

    ranks: tuple[RankResult, ...]
    reason: str = ""
    culprit: int = -1
    note: str = ""
    steps: tuple[StepRank, ...] = ()
    more: int = 0
