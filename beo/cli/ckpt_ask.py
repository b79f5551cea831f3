"""The actions of ckpt that a running program carries out: take, scrub."""

from __future__ import annotations

import click

from beo import selector
from beo.cli.change import AS_JSON, QUIET
from beo.cli.group import Verb
from beo.cli.jobs import SELECTORS
from beo.cli.tables import tell_meant
from beo.client import Cluster


@click.command(cls=Verb, examples=[("beo ckpt take 7", "job 7 takes one, and goes on")])
@SELECTORS
@AS_JSON
@QUIET
def take(jobs: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Have running jobs take a checkpoint at their next safe point, and go on.

    They are asked, not waited for; one whose program takes no checkpoints with beo does nothing. The jobs that are
    meant are printed.
    """
    selector.parse(jobs)
    tell_meant(Cluster().ask_ranks(jobs, "checkpoint"), as_json, quiet)


@click.command(cls=Verb, examples=[("beo ckpt scrub all", "all of yours that run")])
@SELECTORS
@AS_JSON
@QUIET
def scrub(jobs: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Have running jobs read all of their last checkpoint at their next safe point, and mend what isn't as it was.

    What is mended, or can't be, they tell on their standard error. The jobs that are meant are printed.
    """
    selector.parse(jobs)
    tell_meant(Cluster().ask_ranks(jobs, "scrub"), as_json, quiet)
