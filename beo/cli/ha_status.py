"""The action ha status."""

from __future__ import annotations

import sys
import time

import click
import msgspec

from beo import messages as m
from beo import table
from beo.cli.group import Verb, option
from beo.cli.tables import show
from beo.client import Cluster
from beo.errors import BeoError, NoHead
from beo.ha import telling

HEAD_COLUMNS = (
    table.Column("head"),
    table.Column("role"),
    table.Column("state"),
    table.Column("epoch"),
    table.Column("entries"),
    table.Column("behind"),
    table.Column("heard", lambda value: f"{value:.1f} s" if isinstance(value, float) else "-"),
    table.Column("version"),
    table.Column("address"),
    table.Column("why"),
)


@click.command(
    cls=Verb,
    examples=[
        ("beo ha status", "who acts, whether both are in step, what that means"),
        ("beo ha status -q || mail -s 'a head is alone' root </dev/null", "for cron"),
        ("watch -n 1 beo ha status", "see a take-over happen"),
    ],
    exits=[("0", "both heads are in step"), ("1", "a head is alone, or another one is silent"), ("69", "nobody acts")],
)
@option("--json", "as_json", is_flag=True, help="Print one JSON object: the summary, and all that each head tells.")
@option("-q", "--quiet", is_flag=True, help="Print nothing: the exit code says it.")
def status(as_json: bool, quiet: bool) -> int:
    """Tell how the two heads fare: who acts, whether the other one has all that was acknowledged, who takes over when.

    Each head is asked by itself. ENTRIES are those of its journal, BEHIND how many it lacks of the primary's, HEARD how
    long ago the other head answered it. Below the table stands what an acknowledgement is worth at present, what
    happens when the primary dies, and for how much of the time a head acted since the cluster began.
    """
    with Cluster() as cluster:
        found = cluster.pair()
    if not any(isinstance(answer, m.PairIs) for answer in found.values()):
        raise next((error for error in found.values() if isinstance(error, BeoError)), NoHead("no head is known"))
    told = telling.fare(found)
    now_s = time.time()
    if as_json:
        print(msgspec.json.encode(_facts(told, now_s)).decode())
    elif not quiet:
        show(telling.rows(told), HEAD_COLUMNS, "", False, False)
        print()
        for sentence in telling.sentences(told, now_s):
            print(table.escape(sentence))
        for finding in telling.findings(told):
            print(f"! {table.escape(finding)}")
    sys.stdout.flush()
    return telling.exit_code(told)


def _facts(told: telling.Fare, now_s: float) -> dict[str, object]:
    one = told.primary or next(iter(told.answers.values()))
    return {
        "primary": told.primary.name if told.primary else None,
        "in_step": bool(told.primary and told.primary.in_step),
        "promise": telling.promise(told),
        "availability": telling.availability(one, now_s),
        "age_s": round(now_s - one.born_s, 3),
        "down_s": round(one.down_s, 3),
        "takeovers": one.takeovers,
        "findings": telling.findings(told),
        "heads": {name: msgspec.structs.asdict(view) for name, view in told.answers.items()},
        "silent": told.silent,
    }
