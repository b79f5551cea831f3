"""Questions that the head passes on to nodes: who is asked, who has answered, and until when. Pure.

Each is answered once: when every node has told, or when the time is over, with the names of those that were silent.
"""

from __future__ import annotations

import msgspec

from beo import messages as ms
from beo import nodeset
from beo.errors import Conflict, NotFound, Refused, UsageError
from beo.headnode.decide import SIGNAL_MAX, User, check_key, find, pick
from beo.headnode.model import ENDED, Job
from beo.headnode.state import State

INQUIRIES_MAX = 256  # at one time: each may bring a megabyte
TARGETS_MAX = 1_000  # of one signal


class Inquiry(msgspec.Struct):
    """One question of a client. open: the nodes that have not told. jobs: those of which rows are wanted."""

    peer: bytes
    request: int
    jobs: dict[int, str]  # with their users
    open: set[str]
    until_s: float
    strikes: bool
    silent: set[str]
    inspected: list[ms.Inspected] = []
    hits: list[ms.Hit] = []

    def answer(self) -> ms.ProcessesAre | ms.HitsAre:
        """What is known now."""
        silent = tuple(sorted(self.silent | self.open, key=nodeset.natural_key))
        if self.strikes:
            return ms.HitsAre(tuple(self.hits), silent)
        nodes, left, more = [], ms.PROCESSES_MAX, 0
        for told in sorted(self.inspected, key=lambda told: nodeset.natural_key(told.node)):
            rows = tuple(row for row in told.processes if row.job in self.jobs)[:left]
            left -= len(rows)
            more += told.more + len(told.processes) - len(rows)
            nodes.append(msgspec.structs.replace(told, processes=rows))
        return ms.ProcessesAre(tuple(nodes), self.jobs, silent, more)


class Inquiries:
    """Every open question of this head."""

    def __init__(self) -> None:
        """Make none."""
        self._serial = 0
        self._open: dict[int, Inquiry] = {}

    def add(self, inquiry: Inquiry, epoch: int) -> int:
        """Take a question and return the number that its answers bear: no other head gives the same."""
        if len(self._open) >= INQUIRIES_MAX:
            raise Conflict(f"{INQUIRIES_MAX} questions to nodes are open already", "", "ask again a little later")
        self._serial += 1
        ask = (epoch << 32) + self._serial
        self._open[ask] = inquiry
        return ask

    def told(self, message: ms.Processes | ms.Hits) -> Inquiry | None:
        """Take a node's answer; returns the question if it was the last one missing."""
        inquiry = self._open.get(message.ask)
        if not inquiry or message.node not in inquiry.open or inquiry.strikes != isinstance(message, ms.Hits):
            return None
        inquiry.open.discard(message.node)
        if isinstance(message, ms.Hits):
            inquiry.hits += [msgspec.structs.replace(hit, node=message.node) for hit in message.hits]
        else:
            rows = message.processes[: ms.PROCESSES_MAX]
            inquiry.inspected.append(ms.Inspected(message.node, message.machine, rows, message.more))
        return self._take(message.ask) if not inquiry.open else None

    def late(self, now_s: float) -> list[Inquiry]:
        """Return those whose time is over."""
        return [self._take(ask) for ask, inquiry in list(self._open.items()) if inquiry.until_s <= now_s]

    def _take(self, ask: int) -> Inquiry:
        return self._open.pop(ask)


Attempts = dict[str, list[tuple[int, int]]]  # per node


def whom_to_inspect(state: State, user: User, wish: ms.ListProcesses) -> tuple[dict[int, str], Attempts]:
    """Return the jobs that are meant, with their users, and what there is of them to be looked at on each node."""
    if wish.user and user.role != "admin" and wish.user != user.name:
        raise Refused(f"the processes of {wish.user} are not yours to see", f"you are {user.name}", "ask an admin")
    chosen = nodeset.expand(wish.nodes) if wish.nodes else sorted(state.nodes)
    for name in chosen:
        if name not in state.nodes:
            raise NotFound.among("node", name, state.nodes, "see 'beo nodes'")
    jobs = pick(state, user, wish.select) if wish.select else list(state.jobs.values())
    meant = {job.id: job.user for job in jobs if _is_meant(job, user, wish.user)}
    attempts: Attempts = {}
    for name in chosen:
        here = sorted(key for key, (_, _, part) in state.live_parts(name).items() if part.state == "live")
        own = [key for key in here if key[0] in meant]
        if own or (wish.machines and state.nodes[name].state == "up"):
            attempts[name] = own
    running = {number for found in attempts.values() for number, _ in found}
    return {number: name for number, name in meant.items() if number in running}, attempts


def _is_meant(job: Job, user: User, wanted: str) -> bool:
    return user.may(job) and job.state not in ENDED and wanted in ("", job.user)


def whom_to_strike(
    state: State, wish: ms.SignalProcesses
) -> tuple[dict[int, str], dict[str, list[tuple[int, ms.Target]]]]:
    """Return the jobs that are meant, and per node the targets that it may know, each with its job's attempt.

    Which node has a rank is the wardens' to say: all nodes of the job are asked.
    """
    check_key(wish.key, "the signal")
    if not 1 <= wish.signal <= SIGNAL_MAX:
        raise UsageError(f"no signal {wish.signal}", f"signals are 1 to {SIGNAL_MAX}", "")
    if not 0 < len(wish.targets) <= TARGETS_MAX:
        raise UsageError(
            f"{len(wish.targets)} processes named", f"it must be 1 to {TARGETS_MAX}", "name fewer at a time"
        )
    jobs: dict[int, str] = {}
    strikes: dict[str, list[tuple[int, ms.Target]]] = {}
    for target in wish.targets:
        job = find(state, target.job)
        if not job.attempt or job.attempt.over:
            raise Conflict(f"job {job.id} doesn't run", f"it is {job.state}", "see 'beo ps'")
        if target.node and target.node not in state.nodes:
            raise NotFound.among("node", target.node, state.nodes, "see 'beo nodes'")
        live = [part.node for part in job.attempt.parts if part.state == "live"]
        if target.node and target.node not in live:
            raise NotFound(f"job {job.id} doesn't run on {target.node}", "", f"see 'beo ps {job.id}'")
        jobs[job.id] = job.user
        for node in [target.node] if target.node else live:
            strikes.setdefault(node, []).append((job.attempt.number, target))
    return jobs, strikes
