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
    names = {name: ranks for copy in copies for name, _, ranks in copy.checkpoints}
    if not names:
        return list(last.values()) if len(last) == copies[0].nodes else []
    whole: list[dict[str, int]] = []  # node -> place of its copy
    for name, ranks in names.items():
        images = {
            copy.node: (place, here)
            for place, copy in enumerate(copies)
            for other, here, _ in copy.checkpoints
            if other == name
        }
        if sum(here for _, here in images.values()) >= ranks:
            whole.append({node: place for node, (place, _) in images.items()})
    if not whole:
        return []
    newest = max(whole, key=lambda places: min(places.values()))
    beside = {node: copy for node, copy in last.items() if node not in newest and not copy.checkpoints}
    return [*(copies[place] for place in newest.values()), *beside.values()]


def kept(copies: Sequence[VaultCopy]) -> list[VaultCopy]:
    """Return what is kept of these copies, in their order: the complete ones, and the last that came after those."""
    whole = complete(copies)
    first = whole[0].attempt if whole else 0
    staying = {id(copy) for copy in whole}
    for attempt, node in dict.fromkeys((copy.attempt, copy.node) for copy in copies if copy.attempt >= first):
        own = [copy for copy in copies if (copy.attempt, copy.node) == (attempt, node)]
        after = next((place + 1 for place, copy in enumerate(own) if id(copy) in staying), 0)
        staying |= {id(copy) for copy in own[after:][-RECENT:]}
    return [copy for copy in copies if id(copy) in staying]
