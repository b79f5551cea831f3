"""The action ha rejoin."""

from __future__ import annotations

import click

from beo import config
from beo.cli.group import Verb, option


@click.command(
    cls=Verb,
    examples=[("beo ha rejoin --wipe", "on the machine of the head that was shut out")],
    exits=[("75", "this head acts, or no other one has what it has"), ("124", "not in step yet; it goes on trying")],
)
@click.argument("name", default="", metavar="[HEAD]")
@option("--wipe", is_flag=True, help="Put aside what this head has, journal and output, and copy the other one's.")
def rejoin(name: str, wipe: bool) -> None:
    """Let HEAD (default: this machine's) begin anew, and copy all that the other head has.

    It is for a head that was shut out since the other one was forced to go on without it, or whose files are damaged.
    What it has goes to head.old-1 (or -2 ...) beside it; keys and addresses stay. Of its files, 'beo ha orphans' lists
    what the cluster has not; in its journal it does not look for more than was put aside before.
    The other head must act: without that, what is here may be the only copy.
    """
    from beo import pairing

    home = config.home()
    pairing.rejoin(home, name, wipe, click.echo)
