"""The verbs about what was: events, from the journal, and history, from the records of ended jobs."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import click

from beo import messages as m
from beo import selector, table, units
from beo.cli.group import Verb, option
from beo.cli.jobs import SELECTORS
from beo.cli.tables import listing, moment, show, span
from beo.client import EVENTS_PAGE, Cluster
from beo.contact import tell
from beo.errors import UsageError

EVENTS_SHOWN = 50  # about a screenful
JOBS_SHOWN = 1_000  # rows unless told: more is no longer read by anyone

EVENT_COLUMNS = (
    table.Column("index"),
    table.Column("epoch"),
    table.Column("time", moment),
    table.Column("kind"),
    table.Column("job"),
    table.Column("node"),
    table.Column("text"),
)


@click.command(
    cls=Verb,
    examples=[
        ("beo events -n 200", "the last 200"),
        ("beo events --job 7", "the life of one job"),
        ("beo events -f --node node03", "what happens to a node, as it happens"),
        ("beo events -f --json | jq .text", "for a program: an object a line"),
    ],
)
@option("-n", "count", type=click.IntRange(1, EVENTS_PAGE), help=f"So many, the last (default {EVENTS_SHOWN}).")
@option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@option("--job", type=click.IntRange(1, selector.JOB_ID_MAX), help="Only those of one job, by default all of them.")
@option("--node", default="", metavar="NODE", help="Only those of one node, by default all of them.")
@listing
def events(
    count: int | None, follow: bool, job: int | None, node: str, fields: str, as_json: bool, quiet: bool
) -> None:
    """List what happened to the cluster, from its journal, the newest last.

    With -f, restarts of the head are waited out, and no entry is lost or doubled; JSON is then an object a line. Of
    others' jobs the words are left out.
    """
    cluster = Cluster()
    if follow:
        _follow(cluster, count, job or 0, node, fields, as_json, quiet)
        return
    found = _last(cluster, count, job or 0, node)
    show(list(map(_event_row, found)), EVENT_COLUMNS, fields, as_json, quiet)


def _last(cluster: Cluster, count: int | None, job: int, node: str) -> Sequence[m.EventView]:
    if not job and not node:
        return cluster.events(limit=count or EVENTS_SHOWN)
    found = list(cluster.journal(job, node))
    return found[-count:] if count else found


def _event_row(event: m.EventView) -> dict[str, object]:
    return {
        "index": event.index,
        "epoch": event.epoch,
        "time": event.time_s,
        "kind": event.kind,
        "job": event.job or None,
        "node": event.node,
        "text": event.text,
    }


def _follow(cluster: Cluster, count: int | None, job: int, node: str, fields: str, as_json: bool, quiet: bool) -> None:
    newest = cluster.events(limit=1)
    after = newest[-1].index if newest else 0
    earlier = [event for event in _last(cluster, count, job, node) if event.index <= after]
    titled = _print_page(earlier, True, fields, as_json, quiet)
    for page in cluster.follow_journal(after, job, node):
        if page.oldest > after + 1:
            tell(f"entries {after + 1} to {page.oldest - 1} are no longer in the journal: this reader was too slow")
        titled = _print_page(page.events, titled, fields, as_json, quiet)
        after = max(after, page.upto)


def _print_page(page: Sequence[m.EventView], titled: bool, fields: str, as_json: bool, quiet: bool) -> bool:
    """Print some entries, headed if they are the first; returns whether the next ones will be the first."""
    if not page:
        return titled
    rows = list(map(_event_row, page))
    if as_json:
        from json import dumps

        sys.stdout.writelines(f"{dumps(row)}\n" for row in rows)
    else:
        text = table.render(rows, EVENT_COLUMNS, fields=fields, quiet=quiet)
        headed = not quiet and "{" not in fields
        sys.stdout.write(text if titled or not headed else text.partition("\n")[2])
    sys.stdout.flush()
    return False


# ---- history


def _size(value: object) -> str:
    return units.approximate_size(value) if isinstance(value, int) and value else "-"


def _cpu(value: object) -> str:
    return units.format_duration(round(value, 1)) if isinstance(value, (int, float)) else "-"


HISTORY_COLUMNS = (
    table.Column("id"),
    table.Column("name"),
    table.Column("user"),
    table.Column("state"),
    table.Column("exit"),
    table.Column("ended", moment),
    table.Column("waited", span),
    table.Column("ran", span),
    table.Column("cpu", _cpu),
    table.Column("peak", _size),
    table.Column("ranks"),
    table.Column("nodes"),
)
HISTORY_JSON_ONLY = ("submitted", "started", "slots", "attempts", "reason", "origin")
SUM_COLUMNS = (
    table.Column("user"),
    table.Column("jobs"),
    table.Column("done"),
    table.Column("failed"),
    table.Column("cancelled"),
    table.Column("lost"),
    table.Column("waited", span),
    table.Column("ran", span),
    table.Column("slottime", span),
    table.Column("cpu", _cpu),
    table.Column("peak", _size),
)
EVERYBODY = "*"  # no user is called so


def _history_row(job: m.JobRecord) -> dict[str, object]:
    return {
        "id": job.id,
        "name": job.name,
        "user": job.user,
        "state": job.state,
        "exit": job.exit_code,
        "ended": job.ended_s,
        "waited": round(job.waited_s, 3),
        "ran": round(job.ran_s, 3),
        "cpu": job.cpu_s,
        "peak": job.peak_bytes,
        "ranks": job.ranks,
        "nodes": job.nodes,
        "submitted": job.submitted_s,
        "started": job.started_s or None,
        "slots": job.slots,
        "attempts": job.attempts,
        "reason": job.reason,
        "origin": job.code_by,
    }


class _Sum:
    """What the jobs of one user took together."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.waited_s = self.ran_s = self.slottime_s = self.cpu_s = 0.0
        self.peak_bytes = 0

    def add(self, job: m.JobRecord) -> None:
        self.states[job.state] += 1
        self.waited_s += job.waited_s
        self.ran_s += job.ran_s
        self.slottime_s += job.ran_s * job.slots
        self.cpu_s += job.cpu_s
        self.peak_bytes = max(self.peak_bytes, job.peak_bytes)

    def row(self, user: str) -> dict[str, object]:
        count = self.states.total()
        return {
            "user": user,
            "jobs": count,
            **{state: self.states[state] for state in ("done", "failed", "cancelled", "lost")},
            "waited": round(self.waited_s / count, 3),
            "ran": round(self.ran_s, 3),
            "slottime": round(self.slottime_s, 3),
            "cpu": round(self.cpu_s, 3),
            "peak": self.peak_bytes,
        }


def sums(jobs: Iterable[m.JobRecord]) -> list[dict[str, object]]:
    """Return a row per user, by name, and one of them all; waited is the mean, peak the largest, the rest add up."""
    found: dict[str, _Sum] = {}
    for job in jobs:
        for user in (job.user, EVERYBODY):
            found.setdefault(user, _Sum()).add(job)
    return [found[user].row(user) for user in sorted(found, key=lambda user: (user == EVERYBODY, user))]


_FORMS = "write it as 2026-11-25, '2026-11-25 17:30', today, or 2h for two hours ago"


def parse_date(text: str) -> float | None:
    """Return the seconds since 1970 of a date, with a time or without; None for what doesn't begin like one."""
    if not re.match(r"\d{4}-", text):
        return None
    for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"):
        try:
            return time.mktime((*time.strptime(text, form)[:8], -1))
        except (ValueError, OverflowError):
            continue
    raise UsageError(f"{text[:80]!r} is no moment", "", _FORMS)


def parse_moment(text: str, now_s: float) -> float:
    """Return the seconds since 1970 that `text` means, in local time; a duration is so long ago."""
    if text in ("now", "today"):
        return now_s if text == "now" else time.mktime((*time.localtime(now_s)[:3], 0, 0, 0, 0, 0, -1))
    date_s = parse_date(text)
    if date_s is not None:
        return date_s
    try:
        return now_s - units.parse_duration(text)
    except UsageError:
        raise UsageError(f"{text[:80]!r} is no moment", "", _FORMS) from None


@click.command(
    cls=Verb,
    examples=[
        ("beo history", "the last jobs that ended"),
        ("beo history --since 2d --state failed,lost", "what went wrong in two days"),
        ("beo history --since 2026-11-01 --until 2026-12-01 --sum", "what each user took in November"),
        ("beo history --user ann --format '{id} {cpu}'", "a line of your own"),
    ],
)
@SELECTORS
@option("-n", "count", type=click.IntRange(1), default=JOBS_SHOWN, help=f"So many, the last (default {JOBS_SHOWN}).")
@option("--since", default="", metavar="WHEN", help="Only those that ended since: 2026-11-25, '2026-11-25 17:30', 2h.")
@option("--until", default="", metavar="WHEN", help="Only those that ended before.")
@option("-u", "--user", default="", metavar="USER", help="Only USER's.")
@option("--state", default="", metavar="STATES", help="Only those that ended so: done, failed, cancelled, lost.")
@option("--sum", "summed", is_flag=True, help="Print a row per user and one of all ('*'), over all that are meant.")
@listing
def history(
    jobs: tuple[str, ...],
    count: int,
    since: str,
    until: str,
    user: str,
    state: str,
    summed: bool,
    fields: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """List what ended jobs took, the newest last: how long they waited and ran, CPU time, memory, exit code, nodes.

    RAN and CPU add up over a job's last attempts, CPU over its ranks too; PEAK is the most that one rank held. Sums
    have SLOTTIME, which is RAN times the slots of each job, and the mean of WAITED. Jobs are on record for as long as
    the settings say (finished_keep_s, a week unless changed).
    """
    if jobs:
        selector.parse(jobs)
    now_s = time.time()
    since_s, until_s = (parse_moment(text, now_s) if text else 0.0 for text in (since, until))
    states = [word.strip() for word in state.split(",") if word.strip()]
    found = Cluster().history(jobs, user, states, since_s, until_s)
    if summed:
        show(sums(found), SUM_COLUMNS, fields, as_json, quiet)
        return
    rows, more = _first(found, count)
    show(list(map(_history_row, reversed(rows))), HISTORY_COLUMNS, fields, as_json, quiet, HISTORY_JSON_ONLY)
    if more:
        sys.stdout.flush()
        tell(f"these are the last {count}: raise -n, or ask for less with --since")


def _first(found: Iterator[m.JobRecord], count: int) -> tuple[list[m.JobRecord], bool]:
    rows: list[m.JobRecord] = []
    for job in found:
        if len(rows) == count:
            return rows, True
        rows.append(job)
    return rows, False
