"""The verb ckpt: the checkpoints of jobs. Each of its actions is a command of its own."""

from __future__ import annotations

import click

from beo.cli.group import Actions

ACTIONS = {
    "list": ("ckpt_look", "list_", "list the checkpoints of jobs, and where they are"),
    "show": ("ckpt_look", "show", "tell what a job's copy at the head holds"),
    "verify": ("ckpt_look", "verify", "read all of a job's copy at the head, and check it"),
    "export": ("ckpt_look", "export", "write a job's copy at the head into a folder"),
    "take": ("ckpt_ask", "take", "have running jobs take a checkpoint now"),
    "scrub": ("ckpt_ask", "scrub", "have running jobs read their checkpoints, and mend them"),
}


@click.command(
    cls=Actions,
    actions=ACTIONS,
    examples=[
        ("beo ckpt list", "which of your jobs keep something, and how much"),
        ("beo ckpt take 7", "before you do something risky"),
        ("beo ckpt export 7 saved", "job 7's last copy, into the folder saved"),
    ],
)
def ckpt() -> None:
    """Look after the checkpoints of jobs: 'beo ckpt ACTION --help' tells more."""
