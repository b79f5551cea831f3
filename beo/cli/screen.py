"""What `beo top` shows: a snapshot of the cluster as lines of text with a style each. No terminal in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from beo import messages as m
from beo import table, units
from beo.cli.processes import clock, identity

BAR_CELLS = 10
JOBS_MIN = 4  # lines that nodes, jobs and processes get at least, where there is so much to show
PLAIN, TITLE, HEADING, GOOD, WARNING, BAD, FAINT = range(7)  # styles
STATE_STYLES = {"up": GOOD, "running": GOOD, "draining": WARNING, "drained": WARNING, "silent": WARNING}
STATE_STYLES |= {"held": WARNING, "ending": WARNING, "lost": BAD}


@dataclass
class Snapshot:
    """What the cluster was like at one moment (monotonic seconds); trouble: why it is not the present one."""

    info: m.InfoIs
    nodes: Sequence[m.NodeView]
    jobs: m.JobsAre
    processes: m.ProcessesAre
    at_s: float
    wall_s: float
    trouble: str = ""


@dataclass
class Line:
    """One line of the screen, and how it looks."""

    text: str
    style: int = PLAIN
    parts: list[tuple[int, int, int]] = field(default_factory=list)  # (column, length, style) that differ


def bar(used: float, whole: float) -> str:
    """Return how much of a whole is in use, drawn."""
    filled = min(BAR_CELLS, max(0, round(BAR_CELLS * used / whole))) if whole > 0 else 0
    if used > 0 and not filled and whole > 0:
        filled = 1  # a little is not nothing
    return "█" * filled + "░" * (BAR_CELLS - filled)


def busy(now: m.ProcessesAre, before: m.ProcessesAre | None, passed_s: float) -> dict[tuple[str, int], float]:
    """Return (node, pid) -> percentage of one processor between two looks; of a new process over its whole life."""
    old = {(told.node, row.pid): row for told in before.nodes for row in told.processes} if before else {}
    found = {}
    for told in now.nodes:
        for row in told.processes:
            known = old.get((told.node, row.pid))
            if known and known.job == row.job and passed_s > 0 and row.age_s > known.age_s:
                percent = 100 * (row.cpu_s - known.cpu_s) / (row.age_s - known.age_s)
            else:
                percent = 100 * row.cpu_s / row.age_s if row.age_s > 0 else 0.0
            found[told.node, row.pid] = max(0.0, percent)
    return found


def lines(now: Snapshot, before: Snapshot | None, width: int, height: int, by_memory: bool = False) -> list[Line]:
    """Return the screen: at most `height` lines of at most `width` characters."""
    head = list(_summary(now))
    nodes = list(_nodes(now))
    jobs = list(_jobs(now))
    processes = list(_processes(now, before, by_memory))
    room = max(0, height - len(head) - sum(2 for block in (nodes, jobs, processes) if block))
    shares = _divide(room, [len(block) - 1 for block in (nodes, jobs, processes)])
    screen = head
    for block, share in zip((nodes, jobs, processes), shares, strict=True):
        if block:
            screen += [Line(""), *block[: share + 1]]
    return [_cut(line, width) for line in screen[:height]]


def _divide(room: int, wanted: list[int]) -> list[int]:
    """Share lines among blocks: each gets JOBS_MIN if it wants them, then the first ones go first."""
    shares = [min(max(0, want), JOBS_MIN) for want in wanted]
    for number, want in enumerate(wanted):
        left = room - sum(shares)
        if left > 0 and want > shares[number]:
            most = max(0, left) if number == len(wanted) - 1 else max(0, left * 2 // 3)
            shares[number] += min(want - shares[number], most)
    return shares


def _cut(line: Line, width: int) -> Line:
    if len(line.text) > width:
        line.text = line.text[: max(0, width - 1)] + "…"
    line.parts = [(at, min(length, width - at), style) for at, length, style in line.parts if at < width]
    return line


def _summary(now: Snapshot) -> Iterator[Line]:
    states = Counter(node.state for node in now.nodes)
    taking = [node for node in now.nodes if node.state != "lost"]
    slots, used = sum(node.slots for node in taking), sum(node.used for node in taking)
    jobs = Counter(job.state for job in now.jobs.jobs)
    named = ", ".join(f"{count} {state}" for state, count in sorted(jobs.items())) or "none"
    more = f" and {now.jobs.more} more" if now.jobs.more else ""
    nodes = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    title = f"beo  cluster {now.info.cluster[:8]}  head {now.info.head}, epoch {now.info.epoch}  user {now.info.user}"
    yield Line(title, TITLE)
    yield Line(f"nodes {nodes}   slots {used} of {slots} {bar(used, slots)}   jobs {named}{more}")
    if now.trouble:
        yield Line(now.trouble, BAD)
    elif now.processes.silent:
        yield Line(f"no answer from {', '.join(now.processes.silent)}", WARNING)


def _rows(columns: Sequence[str], rows: Iterable[Sequence[object]], state: int, right: str = "") -> Iterator[Line]:
    """Yield a heading and the rows, aligned; `state`: the column that is coloured; right: titles to be aligned so."""
    texts = [[table.cell(value) for value in row] for row in rows]
    if not texts:
        return
    widths = [max(len(title), *(len(row[n]) for row in texts)) for n, title in enumerate(columns)]

    def joined(row: Sequence[str]) -> str:
        cells = (
            text.rjust(size) if title in right.split() else text.ljust(size)
            for text, size, title in zip(row, widths, columns, strict=True)
        )
        return "  ".join(cells).rstrip()

    yield Line(joined(columns), HEADING)
    at = sum(size + 2 for size in widths[:state])
    for row in texts:
        style = STATE_STYLES.get(row[state], PLAIN)
        yield Line(joined(row), PLAIN, [(at, len(row[state]), style)] if style else [])


def _nodes(now: Snapshot) -> Iterator[Line]:
    machines = {told.node: told.machine for told in now.processes.nodes}

    def row(node: m.NodeView) -> list[object]:
        machine = machines.get(node.name)
        load = memory = ""
        if machine:
            load = f"{machine.load:.2f} of {machine.cores}"
            used = machine.mem_bytes - machine.mem_free_bytes
            sizes = f"{units.approximate_size(used)} of {units.approximate_size(machine.mem_bytes)}"
            memory = f"{bar(used, machine.mem_bytes)} {sizes}"
        slots = f"{bar(node.used, node.slots)} {node.used} of {node.slots}"
        return [node.name, node.state, slots, load, memory, list(node.jobs), node.drain]

    # The drain in the last column has its own words only where there is one.
    columns: tuple[str, ...] = ("NODE", "STATE", "SLOTS", "LOAD", "MEMORY", "JOBS", "DRAIN")
    rows = [row(node) for node in now.nodes]
    if not any(node.drain for node in now.nodes):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    yield from _rows(columns, rows, 1)


def _jobs(now: Snapshot) -> Iterator[Line]:
    order = {"running": 0, "ending": 0, "queued": 1, "held": 2}
    jobs = sorted(now.jobs.jobs, key=lambda job: (order.get(job.state, 3), job.id))

    def row(job: m.JobView) -> list[object]:
        ran = units.format_duration(int(max(0.0, now.wall_s - job.started_s))) if job.started_s else ""
        return [job.id, job.name, job.user, job.state, job.ranks, job.nodes, ran, job.reason]

    columns = ("JOB", "NAME", "USER", "STATE", "RANKS", "NODES", "TIME", "REASON")
    yield from _rows(columns, map(row, jobs), 3, "JOB RANKS TIME")


def _processes(now: Snapshot, before: Snapshot | None, by_memory: bool) -> Iterator[Line]:
    percent = busy(now.processes, before.processes if before else None, now.at_s - before.at_s if before else 0.0)
    found = [(told.node, row) for told in now.processes.nodes for row in told.processes]
    if by_memory:
        found.sort(key=lambda item: (-item[1].memory_bytes, item[0], item[1].pid))
    else:
        found.sort(key=lambda item: (-percent[item[0], item[1].pid], item[0], item[1].pid))

    def cells(node: str, row: m.Process) -> list[object]:
        return [
            identity(row.job, node, row.pid),
            now.processes.users.get(row.job, ""),
            row.rank if row.rank >= 0 else "",
            row.state,
            f"{percent[node, row.pid]:.1f}",
            units.approximate_size(row.memory_bytes),
            clock(row.cpu_s),
            row.command,
        ]

    columns = ("PROCESS", "USER", "RANK", "STATE", "CPU", "MEMORY", "TIME", "COMMAND")
    yield from _rows(columns, (cells(*item) for item in found), 3, "RANK CPU MEMORY TIME")
