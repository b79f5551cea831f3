"""The actions of ha that look for what is wrong before it hurts: spof, verify."""

from __future__ import annotations

import time

import click

from beo import messages as m
from beo import table
from beo.cli.group import Verb, option
from beo.cli.tables import show
from beo.client import Cluster
from beo.errors import BeoError, NoHead, NotFound
from beo.ha import spof as singles
from beo.ha import telling
from beo.ha import verify as comparison

EXIT_MAX = 99  # more singles than a person counts; codes above have other meanings
QUIET = option("-q", "--quiet", is_flag=True, help="Print nothing: the exit code says it.")


@click.command(
    cls=Verb,
    examples=[("beo ha spof", "what may end, by itself, and take the service with it")],
    exits=[("0", "nothing is single"), ("N", "so many things are")],
)
@option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@QUIET
def spof(as_json: bool, quiet: bool) -> int:
    """List what is still single: whatever, by its end alone, stops the cluster or loses what was acknowledged.

    Each line says what it is, what its end does, and what would make two of it. The exit code is their number.
    """
    with Cluster() as cluster:
        told = telling.fare(cluster.pair())
        view = told.primary or next(iter(told.answers.values()), None)
        if view is None:
            raise NoHead("no head answers", "", "see 'beo ha status'")
        try:
            nodes = cluster.nodes()
        except BeoError:
            nodes = ()
    other = next((found for name, found in told.answers.items() if name != view.name), None)
    racks = {node.address.rpartition(":")[0]: node.facts.get("rack", "") for node in nodes}
    found = singles.singles(singles.site_of(view, other, nodes, racks))
    if as_json:
        show([one._asdict() for one in found], COLUMNS, "", True, False)
    elif not quiet:
        for one in found:
            print(table.escape(str(one)))
        if not found:
            print("nothing is single")
    return min(len(found), EXIT_MAX)


COLUMNS = tuple(map(table.Column, ("what", "why", "cure")))
DIFFERENCE_COLUMNS = tuple(map(table.Column, ("what", "one", "other", "cure")))


@click.command(
    cls=Verb,
    examples=[("beo ha verify", "would the other head do the same?")],
    exits=[("0", "both are alike"), ("1", "something differs"), ("69", "one of them does not answer")],
)
@option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@QUIET
def verify(as_json: bool, quiet: bool) -> int:
    """Compare both heads: their settings, programs of on_promote, versions, keys and clocks; print what differs.

    What belongs to one machine ([head] listen, [ha] links and interface) and what the journal holds for both is left
    out. Settings are those that a head has read when it started.
    """
    with Cluster() as cluster:
        found = cluster.pair()
    asked_s = time.time()
    views = [answer for answer in found.values() if isinstance(answer, m.PairIs)]
    told = telling.fare(found)
    if len(told.heads) < 2:
        raise NotFound("this cluster has one head", "there is nothing to compare", "see 'beo head token'")
    if len(views) < 2:
        name, why = next(iter(told.silent.items()), ("the other", ""))
        raise NoHead(f"head {name} does not answer", why, "see 'beo ha status'")
    one, other = (comparison.told(view, asked_s) for view in sorted(views, key=lambda view: view.name))
    differences = comparison.differences(one, other)
    if as_json:
        show([one_._asdict() for one_ in differences], DIFFERENCE_COLUMNS, "", True, False)
    elif not quiet:
        for difference in differences:
            print(table.escape(str(difference)))
        if not differences:
            print(f"{one.name} and {other.name} are alike")
    return 1 if differences else 0
