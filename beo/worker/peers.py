"""Reliable messages between the wardens of one attempt, over agents that may forget, repeat or reorder them.

Numbers per destination, kept until acknowledged, told again now and then; a receiver takes only the next number of each
sender and so needs no memory of what it has seen. Pure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

UNACKNOWLEDGED_MAX = 4096
"""Most messages kept for one node. Fences come one at a time for each world, names at most 1,024, and output waits when
64 are under way: more is a runaway."""


class Peers:
    """What this warden has said to the other nodes of its attempt and not seen acknowledged, and what it has heard."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes = sorted(nodes)
        self._said: dict[str, int] = dict.fromkeys(self.nodes, 0)
        self._heard: dict[str, int] = dict.fromkeys(self.nodes, 0)
        self._kept: dict[str, dict[int, dict[str, Any]]] = {node: {} for node in self.nodes}

    def post(self, body: dict[str, Any], nodes: Iterable[str] | None = None) -> list[tuple[str, int, dict[str, Any]]]:
        """Give `body` a number for each of `nodes` (None: all); what to send, as (to, seq, body)."""
        messages = []
        for node in self.nodes if nodes is None else nodes:
            if len(self._kept[node]) >= UNACKNOWLEDGED_MAX:
                raise OverflowError(f"{UNACKNOWLEDGED_MAX} messages to {node} are unacknowledged")
            self._said[node] += 1
            self._kept[node][self._said[node]] = body
            messages.append((node, self._said[node], body))
        return messages

    def pending(self, node: str | None = None) -> int:
        """How many messages to a node (None: to all) are not acknowledged."""
        return sum(map(len, self._kept.values())) if node is None else len(self._kept.get(node, ()))

    def acknowledged(self, node: str, seq: int) -> None:
        """`node` has everything up to `seq`."""
        for kept in [number for number in self._kept.get(node, {}) if number <= seq]:
            del self._kept[node][kept]

    def again(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Everything not acknowledged yet, in the order it was said, as (to, seq, body)."""
        return [(node, seq, body) for node in self.nodes for seq, body in sorted(self._kept[node].items())]

    def heard(self, node: str, seq: int) -> tuple[bool, int]:
        """Whether `seq` is the next message of `node`, and the number to acknowledge; ValueError for a stranger."""
        if node not in self._heard:
            raise ValueError(f"{node!r} isn't a node of this attempt")
        new = seq == self._heard[node] + 1
        if new:
            self._heard[node] = seq
        return new, self._heard[node]
