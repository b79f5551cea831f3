"""The verbs about jobs that exist: queue, show, wait, cancel."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click

from beo import messages as m
from beo import selector, units
from beo.cli.group import Verb, option
from beo.cli.tables import JOB_COLUMNS, JOB_JSON_ONLY, job_row, listing, moment, span, tell_meant
from beo.cli.tables import show as print_rows
from beo.cli.waiting import Progress, exit_code_of
from beo.client import Cluster
from beo.contact import tell
from beo.errors import UsageError
from beo.table import escape

JOBS_SHOWN = 1_000  # rows of one listing unless told: more is no longer read by anyone
STEP_RANKS_SHOWN = 100  # ranks of an attempt's steps that its page lists; --json has them all

SELECTORS = click.argument("jobs", nargs=-1, metavar="[JOB]...")


@click.command(
    cls=Verb,
    examples=[
        ("beo queue", "what waits and runs"),
        ("beo queue -a", "what ended too"),
        ("beo queue 3-7 --json", "these, for a program"),
        ("beo queue --format '{id} {state}'", "a line of your own"),
    ],
)
@SELECTORS
@option("-a", "--all", "ended", is_flag=True, help="Also the jobs that ended.")
@option("--limit", type=click.IntRange(1, m.LIST_LENGTH_MAX), default=JOBS_SHOWN, help="At most so many rows.")
@listing
def queue(jobs: tuple[str, ...], ended: bool, limit: int, fields: str, as_json: bool, quiet: bool) -> None:
    """List jobs: those that wait or run, or those that are named.

    JOB is an id, a range like 1-3, 'last' or 'all'. TIME is how long a job has run; REASON is why it waits or how it
    ended. In JSON, exit_code comes with origin: 'job', or 'beo' where the job never ended of its own accord.
    """
    if jobs:
        selector.parse(jobs)
    answer = Cluster().jobs(jobs, ended, limit)
    print_rows([job_row(view) for view in answer.jobs], JOB_COLUMNS, fields, as_json, quiet, JOB_JSON_ONLY)
    if answer.more:
        sys.stdout.flush()
        tell(f"{answer.more} more jobs: raise --limit, or name a range")


@click.command(
    cls=Verb,
    examples=[
        ("beo show last", "the newest job"),
        ("beo show 7 --json", "everything, its environment too"),
    ],
)
@SELECTORS
@option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@option("-q", "--quiet", is_flag=True, help="Print the ids only.")
def show(jobs: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Tell everything about jobs: what was asked for, why it waits, and how each attempt went."""
    selector.parse(jobs)
    details = Cluster().show(jobs)
    if as_json:
        from json import dumps

        print(dumps([_as_object(detail) for detail in details], indent=2))
    elif quiet:
        sys.stdout.writelines(f"{detail.view.id}\n" for detail in details)
    else:
        print("\n\n".join("\n".join(_page(detail)) for detail in details))


def _as_object(detail: m.JobDetail) -> dict[str, object]:
    from msgspec import to_builtins

    attempts = [
        {
            "number": attempt.number,
            "started_s": attempt.started_s or None,
            "ended_s": attempt.ended_s or None,
            "outcome": attempt.outcome,
            "parts": [dict(zip(("node", "first_rank", "ranks", "state"), part, strict=True)) for part in attempt.parts],
            "ranks": [
                {
                    "rank": rank.rank,
                    "status": rank.status,
                    "user_s": rank.user_s,
                    "system_s": rank.system_s,
                    "peak_bytes": rank.peak_bytes,
                }
                for result in attempt.results
                for rank in result.ranks
            ],
            "steps": [
                {
                    "step": rank.step,
                    "rank": rank.rank,
                    "status": rank.status,
                    "user_s": rank.user_s,
                    "system_s": rank.system_s,
                    "peak_bytes": rank.peak_bytes,
                    "spawned": rank.spawned,
                }
                for rank in sorted(
                    (rank for result in attempt.results for rank in result.steps), key=lambda rank: rank.rank
                )
            ],
            "steps_more": sum(result.more for result in attempt.results),
        }
        for attempt in detail.attempts
    ]
    row = job_row(detail.view)
    kept = [{"node": node, "size_bytes": size_bytes} for node, size_bytes in detail.vaults]
    spec = to_builtins(detail.spec)
    return {**row, "uid": detail.uid, "why": detail.why, "spec": spec, "kept": kept, "attempts": attempts}


def _page(detail: m.JobDetail) -> Iterator[str]:
    from shlex import join

    view, spec = detail.view, detail.spec
    row = job_row(view)
    asked = [f"{spec.ranks} rank{'s' * (spec.ranks != 1)}"]
    asked += [f"{spec.nodes} node{'s' * (spec.nodes != 1)}"] if spec.nodes else []
    asked += [f"{spec.cpus} cpus per rank"] if spec.cpus > 1 else []
    asked += [f"{spec.slots_in_all} slots in all"] if spec.slots else []
    asked += [f"{units.format_size(spec.mem_bytes)} per rank"] if spec.mem_bytes else []
    asked += [f"{units.format_duration(spec.time_limit_s)} at most"] if spec.time_limit_s else []
    asked += [f"priority {spec.priority}"] if spec.priority else []
    whose = "the job's own" if row["origin"] == "job" else "beo's"
    code = "" if row["exit_code"] is None else f", exit code {row['exit_code']} ({whose})"
    facts = [
        ("state", view.state + code),
        ("user", f"{view.user} (uid {detail.uid})"),
        ("command", join(spec.argv) + (" (the script as it was at submission)" if spec.script else "")),
        ("folder", "" if spec.bundle else spec.cwd),
        ("inputs", f"a snapshot of files in {spec.cwd}, {spec.bundle[:12]}" if spec.bundle else ""),
        ("results", f"{' '.join(spec.outputs)} to /jobs/{view.id} in the tree" if spec.outputs else ""),
        ("asked for", ", ".join(asked) + f", requeue {spec.requeue}"),
        ("submitted", moment(view.submitted_s)),
        ("started", moment(row["started_s"])),
        ("ended", moment(row["ended_s"])),
        ("time", span(row["time"])),
        ("output", spec.output),
        ("errors", spec.errors),
        ("kept", ", ".join(f"{units.approximate_size(size)} on {node}" for node, size in detail.vaults)),
    ]
    yield f"job {view.id}  {escape(view.name)}"
    for name, value in facts:
        if value and value != "-":
            yield f"  {name:<10} {escape(value)}"
    for number, sentence in enumerate(detail.why):
        yield f"  {'why' if not number else '':<10} {escape(sentence)}"
    for attempt in detail.attempts:
        yield from _attempt_lines(attempt)


def _attempt_lines(attempt: m.AttemptView) -> Iterator[str]:
    took = f", {span(attempt.ended_s - attempt.started_s)}" if attempt.ended_s else ""
    outcome = escape(attempt.outcome) or ("ended" if attempt.ended_s else "under way")
    yield f"  attempt {attempt.number:<2} {moment(attempt.started_s)}{took}: {outcome}"
    for node, first, ranks, state in attempt.parts:
        which = f"rank {first}" if ranks == 1 else f"ranks {first}-{first + ranks - 1}"
        yield f"             {escape(node)}: {which if ranks else 'no rank'}, {state}"
    rows = sorted((rank for result in attempt.results for rank in result.ranks), key=lambda rank: rank.rank)
    for rank in rows:
        used = f"{rank.user_s + rank.system_s:.2f} s of cpu, {units.approximate_size(rank.peak_bytes)} at most"
        yield f"             rank {rank.rank}: status {rank.status}, {used}"
    steps = sorted((rank for result in attempt.results for rank in result.steps), key=lambda rank: rank.rank)
    for step_rank in steps[:STEP_RANKS_SHOWN]:
        used = f"{step_rank.user_s + step_rank.system_s:.2f} s of cpu"
        used += f", {units.approximate_size(step_rank.peak_bytes)} at most"
        how = ", spawned" if step_rank.spawned else ""
        yield f"             step {step_rank.step}{how}, rank {step_rank.rank}: status {step_rank.status}, {used}"
    more = sum(result.more for result in attempt.results) + len(steps[STEP_RANKS_SHOWN:])
    if more:
        yield f"             and {more} more ranks of steps"


@click.command(
    cls=Verb,
    examples=[
        ("beo wait last", "the newest job; exits with its code"),
        ("beo wait 1-10 -t 1h", "ten jobs, for an hour at most"),
    ],
    exits=[
        ("job's", "the job's own exit code, 128 + signal for a killed one; of several jobs the first that isn't 0"),
        ("124", "the jobs had not ended within -t"),
    ],
)
@SELECTORS
@option("-t", "--timeout", default="", metavar="TIME", help="Give up after this time (90, 30s, 1h30m).")
@option("--json", "as_json", is_flag=True, help="Print the jobs as a list of JSON objects when they ended.")
@option("-q", "--quiet", is_flag=True, help="Show no progress; say nothing about jobs that failed.")
def wait(jobs: tuple[str, ...], timeout: str, as_json: bool, quiet: bool) -> int:
    """Wait until jobs ended, and exit with their exit code.

    Restarts of the head are waited out. 'all' are the jobs that have not ended when the verb begins.
    """
    timeout_s = units.parse_duration(timeout) if timeout else None
    cluster = Cluster()
    ids = ids_of(cluster, jobs)
    with Progress(quiet) as progress:
        views = cluster.wait(ids, timeout_s, progress.on_progress)
    if as_json:
        print_rows([job_row(view) for view in views], JOB_COLUMNS, "", True, False, JOB_JSON_ONLY)
    return exit_code_of(views, quiet)


def ids_of(cluster: Cluster, words: Sequence[str]) -> list[int]:
    """Return the ids that are meant; ids that are named one by one are the head's to know or not."""
    picked = selector.parse(words)
    if not picked.word and all(low == high for low, high in picked.ranges):
        return [low for low, _ in picked.ranges]
    answer = cluster.jobs(() if picked.word == "all" else words, False, m.LIST_LENGTH_MAX)
    if answer.more:
        raise UsageError(f"over {m.LIST_LENGTH_MAX} jobs named", "", "name fewer at a time")
    return [view.id for view in answer.jobs]


@click.command(
    cls=Verb,
    examples=[
        ("beo cancel 7", "this one"),
        ("beo cancel all", "all of yours that have not ended"),
    ],
)
@SELECTORS
@option("--json", "as_json", is_flag=True, help="Print the jobs as a list of JSON objects.")
@option("-q", "--quiet", is_flag=True, help="Print the ids only.")
def cancel(jobs: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """End jobs: those that wait leave the queue, those that run get SIGTERM, and SIGKILL a little later.

    The jobs that are meant are printed. One that has ended already is left as it is.
    """
    selector.parse(jobs)
    tell_meant(Cluster().cancel(jobs), as_json, quiet)
