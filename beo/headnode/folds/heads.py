"""The cluster and its heads."""

from __future__ import annotations

from beo import events as ev
from beo.errors import Internal
from beo.headnode.known import Folds, Known
from beo.headnode.model import HeadInfo


def _born(state: Known, event: ev.Born) -> None:
    if state.index != 1:
        raise Internal(f"entry {state.index} says that the cluster is born", "only entry 1 can", "restore the journal")
    if event.format > ev.FORMAT:
        raise Internal(
            f"the journal has format {event.format}", f"this beo reads up to {ev.FORMAT}", "install a newer beo"
        )
    state.cluster, state.head, state.born_s = event.cluster, event.head, event.time_s


def _epoch_began(state: Known, event: ev.EpochBegan) -> None:
    if event.epoch > state.epoch:
        state.takeovers += event.head != state.head
        state.down_s += max(0.0, event.down_s)
        state.epoch, state.head = event.epoch, event.head


def _head_joined(state: Known, event: ev.HeadJoined) -> None:
    state.heads[event.head] = HeadInfo(event.control, event.bulk, event.links, event.key)


def _head_left(state: Known, event: ev.HeadLeft) -> None:
    if event.head != state.head:
        state.heads.pop(event.head, None)


def _pair_set(state: Known, event: ev.PairSet) -> None:
    state.pair = event.settings


FOLDS: Folds = {
    ev.Born: _born,
    ev.EpochBegan: _epoch_began,
    ev.HeadJoined: _head_joined,
    ev.HeadLeft: _head_left,
    ev.PairSet: _pair_set,
}
