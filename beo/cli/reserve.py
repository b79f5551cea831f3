"""The verb reserve: nodes for some users at some time. Each of its actions is a command of its own."""

from __future__ import annotations

import click

from beo.cli.group import Actions

ACTIONS = {
    "create": ("reservations", "create", "reserve nodes"),
    "list": ("reservations", "list_", "list the reservations, the next one first"),
    "show": ("reservations", "show", "tell everything about reservations, and what is in their way"),
    "cancel": ("reservations", "cancel", "end reservations"),
}


@click.command(
    cls=Actions,
    actions=ACTIONS,
    examples=[
        ("beo reserve create -N 4 --start 20:00 --for 2h", "four nodes, tonight, for your own jobs"),
        ("beo submit --reservation r1 -n 16 ./fit", "a job that runs there, then"),
        ("beo reserve show r1", "what is in its way"),
    ],
)
def reserve() -> None:
    """Reserve nodes for some users at some time: 'beo reserve ACTION --help' tells more.

    While a reservation is on, its nodes start only jobs that were submitted with --reservation by one of its users, and
    those start nowhere else. Before it, nothing starts there that would reach into it: jobs whose time limit (-t) ends
    before do, and so do jobs that can be moved (--movable, --signal, --continue, or with a checkpoint of beo's in their
    nodes' memory). What still runs there is asked to go on elsewhere, by a checkpoint, as long before the start as its
    notice is (60 s, or what --signal says). A job that takes no checkpoints isn't ended: it holds the reservation up on
    its node, which 'beo reserve show' tells, unless the reservation was made with --kill.

    When it is over, its jobs are like any others: those that run go on where they are, those that wait stay queued.
    """
