"""The verb about who may use the cluster: users."""

from __future__ import annotations

import sys

import click

from beo import table
from beo.cli.group import Verb, option
from beo.cli.tables import listing, show
from beo.client import Cluster
from beo.errors import UsageError

KEY_SHOWN = 10  # characters: enough to name a key by


def _limit(value: object) -> str:
    return str(value) if value else "-"


USER_COLUMNS = (
    table.Column("name"),
    table.Column("role"),
    table.Column("uid", lambda value: "-" if value is None else str(value)),
    table.Column("queued"),
    table.Column("running"),
    table.Column("slots"),
    table.Column("running_max", _limit),
    table.Column("slots_max", _limit),
    table.Column("keys", lambda value: table.cell([key[:KEY_SHOWN] for key in _texts(value)])),
)


def _texts(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, (list, tuple)) else []


@click.command(
    cls=Verb,
    examples=[
        ("beo users", "who is known, and what each has"),
        ("beo users revoke ann", "all of ann's keys are void, and no door lets her in"),
        ("beo users revoke 'h2]Nq8w-e%'", "one key, by its first characters"),
        ("beo users allow ann", "she may come again"),
    ],
)
@click.argument("words", nargs=-1, metavar="[revoke NAME|KEY | allow NAME]")
@option("--yes", is_flag=True, help="Don't ask.")
@listing
def users(words: tuple[str, ...], yes: bool, fields: str, as_json: bool, quiet: bool) -> None:
    """List the users of the cluster, or take somebody's keys. For admins.

    Jobs of a user whose keys were revoked go on: end them by 'beo cancel'. A revoked key never connects again.
    """
    with Cluster() as cluster:
        match words:
            case ():
                _list(cluster, fields, as_json, quiet)
            case ("revoke", word):
                if not yes and sys.stdin.isatty():
                    click.confirm(f"Shall {word} lose access?", abort=True, err=True)
                cluster.revoke_keys(word)
                print(f"revoked: {word}")
            case ("allow", name):
                cluster.allow_user(name)
                print(f"allowed: {name}")
            case _:
                raise UsageError("that is none of revoke NAME, revoke KEY, allow NAME", "", "see 'beo users --help'")


def _list(cluster: Cluster, fields: str, as_json: bool, quiet: bool) -> None:
    rows = [
        {
            "name": user.name,
            "role": user.role,
            "uid": user.uid if user.uid >= 0 else None,
            "queued": user.queued,
            "running": user.running,
            "slots": user.slots,
            "running_max": user.running_max,
            "slots_max": user.slots_max,
            "keys": user.keys,
            "queued_max": user.queued_max,
        }
        for user in cluster.users()
    ]
    show(rows, USER_COLUMNS, fields, as_json, quiet, ("queued_max",))
