"""The nodes that jobs run on: how they fare, and what an operator wishes of them."""

from __future__ import annotations

import msgspec

from beo.messages.form import Message

# ---- clients ask -----------------------------------------------------------------------------------------------------


class ListNodes(Message, frozen=True):
    """→ NodesAre"""


class DeclareGone(Message, frozen=True):
    """The operator's word that a silent node's machine is off. → Done"""

    node: str


class Drain(Message, frozen=True):
    """Give these nodes (a node set) no new work, until they are resumed. → NodesAre (those that were meant)"""

    nodes: str
    reason: str = ""


class Resume(Message, frozen=True):
    """Give drained nodes work again. → NodesAre (those that were meant)"""

    nodes: str


class ForgetNodes(Message, frozen=True):
    """Take lost nodes off the record. → NodesAre (none of them)"""

    nodes: str


# ---- the head answers ------------------------------------------------------------------------------------------------


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """Something that is wrong with a machine: which check found it, what it is, and the one line that cures it."""

    check: str
    what: str
    cure: str


class NodeView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo nodes`. state: up, draining (drained, and jobs still run there), drained, silent or lost."""

    name: str
    state: str
    slots: int
    used: int
    mem_bytes: int
    jobs: tuple[int, ...]
    address: str
    facts: dict[str, str]
    silent_s: float  # since the last sign of life
    incarnation: str
    drain: str = ""  # by whom it was drained, and why
    why: str = ""  # it is silent or lost
    clock_s: float = 0.0  # by how much its wall clock is ahead of the head's
    findings: tuple[Finding, ...] = ()  # what its agent found wrong with its machine
    moving: tuple[int, ...] = ()  # of the jobs, those that are asked to go on elsewhere and have a checkpoint
    reserved: str = ""  # for whom, and when


class NodesAre(Message, frozen=True):
    """→ ListNodes."""

    nodes: tuple[NodeView, ...]


NodeRequest = ListNodes | DeclareGone | Drain | Resume | ForgetNodes
