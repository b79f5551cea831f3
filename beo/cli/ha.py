"""The verb ha: two heads that act as one. Each of its actions is in a module of its own, loaded when it is called."""

from __future__ import annotations

import click

from beo.cli.group import Actions

ACTIONS = {
    "import": ("ha_import", "import_", "make a beo.toml of Heartbeat's files"),
}


@click.command(
    cls=Actions,
    actions=ACTIONS,
    examples=[("beo ha import /etc/ha.d -o beo.toml", "go on from what Heartbeat was told")],
)
def ha() -> None:
    """Look after a cluster with two heads: 'beo ha ACTION --help' tells more."""
