"""Nodes: how they come, go, and are kept from new work."""

from __future__ import annotations

from beo import events as ev
from beo.headnode.folds.attempts import lose_part
from beo.headnode.known import Folds, Known
from beo.headnode.model import Drain, Node

DEAD_KEPT = 64  # former incarnations per node, told "you are dead" for ever
PARTED_MAX = 10_000  # nodes that were forgotten: late words of theirs must not pass for those of a newcomer


def _node_joined(state: Known, event: ev.NodeJoined) -> None:
    old = state.nodes.get(event.node)
    node = Node(
        event.node,
        event.incarnation,
        event.boot,
        event.address,
        event.key,
        event.slots,
        event.mem_bytes,
        event.facts,
        joined_s=event.time_s,
    )
    if state.is_dead(event.node, event.incarnation):
        return
    if not old:
        node.dead = state.parted.pop(event.node, [])
    else:
        node.used_slots, node.used_bytes, node.drain = old.used_slots, old.used_bytes, old.drain
        if event.incarnation == old.incarnation:
            node.joined_s, node.dead = old.joined_s, old.dead
            state.nodes[node.name] = node
            return
        node.dead = [*old.dead[-(DEAD_KEPT - 1) :], old.incarnation]
    state.nodes[node.name] = node
    alive = set(event.running)
    same_boot = bool(old and old.boot == event.boot)
    for key, (job, attempt, part) in list(state.live_parts(node.name).items()):
        if key in alive or (part.state == "reserved" and same_boot):  # reserved slots have nothing that could die
            part.incarnation = node.incarnation
        else:
            lose_part(state, job, attempt, part, f"{node.name} came back without it", event.time_s)


def _node_lost(state: Known, event: ev.NodeLost) -> None:
    node = state.nodes.get(event.node)
    if not node or node.incarnation != event.incarnation or node.state != "up":
        return
    node.state, node.lost = "lost", event.reason
    state.lost += 1
    for job, attempt, part in list(state.live_parts(node.name).values()):
        if attempt.leashed:  # its leash has run out with the node's lease: the kernel has ended it
            lose_part(state, job, attempt, part, f"{node.name} was lost", event.time_s)


def _node_gone(state: Known, event: ev.NodeGone) -> None:
    node = state.nodes.get(event.node)
    if not node or node.incarnation != event.incarnation or node.state != "lost":
        return
    for job, attempt, part in list(state.live_parts(node.name).values()):
        lose_part(state, job, attempt, part, f"{event.user} said that {node.name} is off", event.time_s)


def _node_drained(state: Known, event: ev.NodeDrained) -> None:
    node = state.nodes.get(event.node)
    if node:
        node.drain = Drain(event.user, event.reason, event.time_s)


def _node_resumed(state: Known, event: ev.NodeResumed) -> None:
    node = state.nodes.get(event.node)
    if node:
        node.drain = None


def _node_forgotten(state: Known, event: ev.NodeForgotten) -> None:
    """Nothing of it lives. Its incarnations are remembered: one's late words could replace the next that joins."""
    node = state.nodes.get(event.node)
    if node and node.incarnation == event.incarnation and node.state == "lost" and not state.jobs_with(node.name):
        del state.nodes[event.node]
        state.parted[node.name] = [*node.dead[-(DEAD_KEPT - 1) :], node.incarnation]
        if len(state.parted) > PARTED_MAX:
            del state.parted[next(iter(state.parted))]
        state.revoke(state.node_keys.get(event.node, ""))


FOLDS: Folds = {
    ev.NodeJoined: _node_joined,
    ev.NodeLost: _node_lost,
    ev.NodeGone: _node_gone,
    ev.NodeDrained: _node_drained,
    ev.NodeResumed: _node_resumed,
    ev.NodeForgotten: _node_forgotten,
}
