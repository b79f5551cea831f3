"""The verb ha: two heads that act as one. Each of its actions is in a module of its own, loaded when it is called."""

from __future__ import annotations

import click

from beo.cli.group import Actions

ACTIONS = {
    "status": ("ha_status", "status", "tell how the two heads fare"),
    "switchover": ("ha_steer", "switchover", "let the heads change their roles, as planned"),
    "takeover": ("ha_steer", "takeover", "let the other head act when the primary is dead"),
    "freeze": ("ha_steer", "freeze", "let no head take over, for a while"),
    "thaw": ("ha_steer", "thaw", "let a head take over again"),
    "set": ("ha_steer", "set_", "change what both heads agree on"),
    "force-primary": ("ha_steer", "force_primary", "go on with one head when the other is gone for good"),
    "rejoin": ("ha_rejoin", "rejoin", "let a head begin anew, from what the other one has"),
    "orphans": ("ha_orphans", "orphans", "list what a head had and the cluster has not"),
    "spof": ("ha_audit", "spof", "list what is still single"),
    "verify": ("ha_audit", "verify", "compare both heads' configurations"),
    "import": ("ha_import", "import_", "make a beo.toml of Heartbeat's files"),
}


@click.command(
    cls=Actions,
    actions=ACTIONS,
    examples=[
        ("beo ha status", "who acts, whether both heads are in step, what that means"),
        ("beo ha switchover", "before the primary's machine is serviced"),
        ("beo ha import /etc/ha.d -o beo.toml", "go on from what Heartbeat was told"),
    ],
)
def ha() -> None:
    """Look after a cluster with two heads: 'beo ha ACTION --help' tells more."""
