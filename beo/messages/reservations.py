"""Reservations: nodes that are kept for somebody's jobs from one time to another."""

from __future__ import annotations

import msgspec

from beo.messages.form import Message

# ---- clients ask -----------------------------------------------------------------------------------------------------


class Reserve(Message, frozen=True):
    """Reserve nodes, once per key: those of a node set, or `count` that the head chooses. → ReservationsAre

    start_s: since 1970; 0: `after_s` from now, by the head's clock. users: whose jobs run there; none: who asks.
    """

    key: str
    for_s: float
    start_s: float = 0.0
    after_s: float = 0.0
    nodes: str = ""
    count: int = 0
    users: tuple[str, ...] = ()
    name: str = ""  # "": the head gives it one
    kill: bool = False  # what is still in the way at the start is ended


class ListReservations(Message, frozen=True):
    """Reservations by name, or all. → ReservationsAre"""

    names: tuple[str, ...] = ()


class CancelReservations(Message, frozen=True):
    """End reservations: their jobs are like any others then. → ReservationsAre (those that were)"""

    names: tuple[str, ...]


# ---- the head answers ------------------------------------------------------------------------------------------------


class InTheWay(msgspec.Struct, frozen=True, array_like=True):
    """A job that isn't a reservation's and runs on nodes of it, and what will become of it, in words."""

    job: int
    nodes: str
    why: str


class ReservationView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo reserve list`. state: planned, or on: its time has come."""

    name: str
    state: str
    user: str  # who made it
    users: tuple[str, ...]
    nodes: str
    chosen: bool  # by the head
    start_s: float
    end_s: float
    kill: bool
    jobs: tuple[int, ...]  # of it, that have not ended
    in_the_way: tuple[InTheWay, ...] = ()
    missing: str = ""  # nodes of it that are lost or drained
    slots: int = 0
    starts_in_s: float = 0.0  # by the head's clock; below 0: it is on
    ends_in_s: float = 0.0


class ReservationsAre(Message, frozen=True):
    """→ Reserve, ListReservations, CancelReservations."""

    reservations: tuple[ReservationView, ...]


ReservationRequest = Reserve | ListReservations | CancelReservations
