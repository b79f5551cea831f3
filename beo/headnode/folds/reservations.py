"""Reservations."""

from __future__ import annotations

import msgspec

from beo import events as ev
from beo.headnode.known import Folds, Known
from beo.headnode.model import WAITING, Reservation


def _reserved(state: Known, event: ev.Reserved) -> None:
    if event.number != state.next_reservation or event.name in state.reservations:
        return
    state.next_reservation += 1
    whose = (event.number, event.key, event.name, event.user, event.users)
    state.reservations[event.name] = Reservation(
        *whose, event.nodes, event.chosen, event.start_s, event.end_s, event.kill
    )


def _reservation_moved(state: Known, event: ev.ReservationMoved) -> None:
    known = state.reservations.get(event.name)
    if known:
        state.reservations[event.name] = msgspec.structs.replace(known, nodes=event.nodes)


def _reservation_ended(state: Known, event: ev.ReservationEnded) -> None:
    """Its jobs are like any others then, ended ones too: another reservation may get the name."""
    if not state.reservations.pop(event.name, None):
        return
    for job in state.jobs.values():
        if job.spec.reservation != event.name:
            continue
        waits = job.state in WAITING
        if waits:
            state.wait_no_more(job)
        job.spec = msgspec.structs.replace(job.spec, reservation="")
        if waits:
            state.wait(job)
        state.changed.add(job.id)


FOLDS: Folds = {
    ev.Reserved: _reserved,
    ev.ReservationMoved: _reservation_moved,
    ev.ReservationEnded: _reservation_ended,
}
