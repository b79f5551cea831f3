"""Which of the copies of a job's vaults belong together: the newest from which it could go on. Pure.

Nodes don't copy at one moment, and one may take longer than the job's next checkpoint. So a node's copy says which
checkpoints are in it, and copies are *complete* together where one checkpoint has the images of all its ranks in them.
Of a program that writes files of its own nobody knows more than that every node has a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from beo.headnode.model import VaultCopy

RECENT = 2  # copies of a node that are kept beside the complete ones: others may be a round behind


def complete(copies: Sequence[VaultCopy]) -> list[VaultCopy]:
    """Return the newest copies that are complete, one a node, of one attempt; none: there are no such."""
    for attempt in sorted({copy.attempt for copy in copies}, reverse=True):
        if found := _complete([copy for copy in copies if copy.attempt == attempt]):
            return found
    return []


def _complete(copies: Sequence[VaultCopy]) -> list[VaultCopy]:
    """Return those of one attempt. copies: the oldest first."""
    last = {copy.node: copy for copy in copies}
    ranks: dict[str, int] = {}
    having: dict[str, dict[str, tuple[int, int]]] = {}  # checkpoint -> node -> place of its last copy, images in that
    for place, copy in enumerate(copies):
        for name, images, number in copy.checkpoints:
            having.setdefault(name, {})[copy.node] = place, images
            ranks[name] = number
    if not having:
        return list(last.values()) if len(last) == copies[0].nodes else []
    whole = [found for name, found in having.items() if sum(images for _, images in found.values()) >= ranks[name]]
    if not whole:
        return []
    newest = max(whole, key=lambda found: min(found.values()))
    beside = [copy for node, copy in last.items() if node not in newest and not copy.checkpoints]
    return [*(copies[place] for place, _ in newest.values()), *beside]


def kept(copies: Sequence[VaultCopy]) -> list[VaultCopy]:
    """Return what is kept of these copies, in their order: the complete ones, and the last that came after those."""
    whole = complete(copies)
    first = whole[0].attempt if whole else 0
    staying = {id(copy) for copy in whole}
    later: dict[tuple[int, str], list[VaultCopy]] = {}
    for copy in copies:
        if id(copy) in staying:
            later[copy.attempt, copy.node] = []
        elif copy.attempt >= first:
            later.setdefault((copy.attempt, copy.node), []).append(copy)
    staying |= {id(copy) for found in later.values() for copy in found[-RECENT:]}
    return [copy for copy in copies if id(copy) in staying]
