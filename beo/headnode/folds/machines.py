"""Machines that boot from the heads."""

from __future__ import annotations

from typing import Any

import msgspec

from beo import events as ev
from beo.headnode.known import Folds, Known
from beo.headnode.model import Ask, Authorized, Machine

BOOTS_KEPT = 16  # of a machine's last boots that have joined: none of them joins again


def _machine_leased(state: Known, event: ev.MachineLeased) -> None:
    known = state.machines.get(event.mac) or Machine(event.mac, event.name)
    _put(state, known, address=event.address, seen_s=event.time_s)


def _machine_opened(state: Known, event: ev.MachineOpened) -> None:
    if known := state.machines.get(event.mac):
        _put(state, known, opened_s=event.time_s, seen_s=event.time_s, opened_from=event.address)


def _machine_asked(state: Known, event: ev.MachineAsked) -> None:
    if known := state.machines.get(event.mac):
        _put(state, known, asked=Ask(event.boot, event.key, event.time_s), seen_s=event.time_s)


def _machine_approved(state: Known, event: ev.MachineApproved) -> None:
    known = state.machines.get(event.mac)
    if known and known.asked and known.asked.key == event.key:
        _put(state, known, approved=event.key)


def _machine_joined(state: Known, event: ev.MachineJoined) -> None:
    known = state.machines.get(event.mac)
    if not known or event.boot in known.boots or event.key in state.authorized:
        return
    state.revoke(known.key)  # its former boot's, be it for another name
    boots = (*known.boots[-(BOOTS_KEPT - 1) :], event.boot)
    words = {"key": event.key, "boots": boots, "joined_s": event.time_s, "seen_s": event.time_s}
    _put(state, known, **words, opened_s=0.0, asked=None, approved="")
    state.authorize(event.key, Authorized("worker", "worker", -1, event.node))


def _machine_set(state: Known, event: ev.MachineSet) -> None:
    known = state.machines.get(event.mac) or Machine(event.mac, event.name)
    words = {"name": event.name, "address": event.address, "image": event.image}
    _put(state, known, **words, policy=event.policy, tag=event.tag, power=event.power)


def _machine_forgotten(state: Known, event: ev.MachineForgotten) -> None:
    if known := state.machines.pop(event.mac, None):
        state.revoke(known.key)


def _put(state: Known, known: Machine, **words: Any) -> None:
    state.machines[known.mac] = msgspec.structs.replace(known, **words)


FOLDS: Folds = {
    ev.MachineLeased: _machine_leased,
    ev.MachineOpened: _machine_opened,
    ev.MachineAsked: _machine_asked,
    ev.MachineApproved: _machine_approved,
    ev.MachineJoined: _machine_joined,
    ev.MachineSet: _machine_set,
    ev.MachineForgotten: _machine_forgotten,
}
