"""How programs speak to the head: `Cluster`, with a method per verb. How it is reached is in contact.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from beo import messages as m
from beo import spec, units
from beo.contact import PATIENCE_S, Contact, Unanswered, new_key, tell
from beo.errors import BeoError, NotFound, TimedOut

SUBMIT_PATIENCE_S = 10.0  # a submission also rides out a head that replays a long journal
PAIR_PATIENCE_S = 1.0  # for each head to say how it fares: longer than a take-over
# A head that dies takes its parked polls along; their client asks again when they are overdue, so they are kept short.
WAIT_SLICE_S = 2.0
FOLLOW_S = 0.3  # between looks at a journal that has not grown
EVENTS_PAGE = 1_000  # entries in one answer: the head's limit
PACE_S = 0.1  # between polls that a busy head answers at once instead of keeping them
PROGRESS_SLICE_S = 1.0  # the same where somebody watches

ENDED = frozenset({"done", "failed", "cancelled", "lost"})

OnProgress = Callable[[Sequence[m.JobView]], None]


class Cluster(Contact):
    """The cluster in `home` (by default `BEO_DIR`), reached when first needed. For one thread at a time.

    Every method raises `BeoError`: `NoHead` where nobody answers, `Refused` for a foreign key, or what the head says.
    """

    def machines(self, patience_s: float | None = PATIENCE_S) -> tuple[m.MachineView, ...]:
        """Return the machines that boot from the heads."""
        return self._ask(m.ListMachines(), m.MachinesAre, patience_s).machines

    def lease_machine(self, mac: str, hostname: str = "", patience_s: float | None = PATIENCE_S) -> m.MachineView:
        """Put a machine on record that asks for something to boot with, if it isn't yet; return it."""
        return self._ask(m.LeaseMachine(mac, hostname), m.MachineIs, patience_s).machine

    def open_machine(self, mac: str, address: str = "", patience_s: float | None = PATIENCE_S) -> m.MachineView:
        """A machine fetches its boot script, from this address: it is expected to join within the next minutes."""
        return self._ask(m.OpenMachine(mac, address), m.MachineIs, patience_s).machine

    def approve_machine(self, mac: str, key: str) -> m.MachineView:
        """Say that this key, whose words were compared, is that machine's."""
        return self._ask(m.ApproveMachine(mac, key), m.MachineIs).machine

    def set_machine(self, mac: str, **words: str | None) -> m.MachineView:
        """Change what is on record of a machine: name, address, image, policy, tag, power; None leaves it."""
        return self._ask(m.SetMachine(mac, **words), m.MachineIs).machine

    def forget_machine(self, mac: str) -> None:
        """Take a machine off the record."""
        self._ask(m.ForgetMachine(mac), m.Done)

    def console(self, mac: str, after: int = -1) -> m.ConsoleIs:
        """Return what a machine's console has said from byte `after` on; -1: the last of it."""
        return self._ask(m.AskConsole(mac, after), m.ConsoleIs)

    def tree(self, patience_s: float | None = PATIENCE_S) -> str:
        """Return where the tree of files is served, host:port; "" where it is just being started."""
        return self._ask(m.AskTree(), m.TreeIs, patience_s).address

    def submit(
        self,
        job: spec.JobSpec,
        key: str | None = None,
        on_warning: Callable[[str], None] = tell,
        patience_s: float = SUBMIT_PATIENCE_S,
        hold: bool = False,
    ) -> int:
        """Hand a job to the cluster and return its id; from then on it is durable. `hold`: it waits for `release`.

        The same `key` gives the same job, however often it is sent. Where nobody answered in the end, the error tells
        the key, since the job may exist.
        """
        key = key or new_key()
        message = m.Submit(key, spec.check(job), os.getuid(), os.getgid(), tuple(os.getgroups()), hold)
        try:
            answer = self._ask(message, m.SubmittedIs, patience_s)
        except Unanswered as error:
            cure = f"submit again with --key {key}, which gives this job and never a second one"
            raise Unanswered(f"{error.what}, so the job may exist or not", error.why, cure) from None
        for warning in answer.warnings:
            on_warning(warning)
        return answer.job

    def jobs(self, select: Iterable[str] = (), ended: bool = False, limit: int = 1_000) -> m.JobsAre:
        """Return the selected jobs by ascending id; without selectors the unended ones, or all with `ended`."""
        return self._ask(m.ListJobs(tuple(select), ended, limit), m.JobsAre)

    def show(self, select: Iterable[str], patience_s: float | None = PATIENCE_S) -> tuple[m.JobDetail, ...]:
        """Return everything about the selected jobs."""
        return self._ask(m.ShowJob(tuple(select)), m.DetailsAre, patience_s).jobs

    def look(self, job: int, known: str = "", wait_s: float = 0.0, attached: bool = False) -> m.JobView:
        """Return one job as soon as it ended or its "state/attempt" differs from `known`, or after `wait_s`.

        Waits for a head for ever. `attached` tells the head that the job's client is alive.
        """
        answer = self._ask(m.WaitJobs((job,), wait_s, attached, known), m.JobsAre, None, wait_s)
        if not answer.jobs:
            raise _forgotten(job)
        return answer.jobs[0]

    def wait(
        self, jobs: Iterable[int], timeout_s: float | None = None, on_progress: OnProgress | None = None
    ) -> list[m.JobView]:
        """Wait until all of these ended and return them as they were given.

        Rides out any restart of the head. `on_progress` gets the present rows about once a second. Raises `TimedOut`
        after `timeout_s`, and `NotFound` for a job that the head does not know.
        """
        order = list(jobs)
        views: dict[int, m.JobView] = {}
        rest = list(dict.fromkeys(order))
        slice_s = PROGRESS_SLICE_S if on_progress else WAIT_SLICE_S
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while rest:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            wait_s = slice_s if left_s is None else min(slice_s, left_s)
            asked = rest[: m.LIST_LENGTH_MAX]
            patience_s = None if left_s is None else left_s + PATIENCE_S
            asked_s = time.monotonic()
            answer = self._ask(m.WaitJobs(tuple(asked), wait_s), m.JobsAre, patience_s, wait_s)
            views.update((view.id, view) for view in answer.jobs)
            for job in asked:
                if job not in views:
                    raise _forgotten(job)
            rest = [job for job in rest if job not in views or views[job].state not in ENDED]
            if on_progress:
                on_progress([views[job] for job in order if job in views])
            if rest and time.monotonic() - asked_s < min(PACE_S, wait_s):
                time.sleep(PACE_S)
            if rest and left_s == 0.0:
                which = f"job {rest[0]}" if len(order) == 1 else f"{len(rest)} of {len(order)} jobs"
                cure = "'beo wait' again, or 'beo queue' to see what it does"
                raise TimedOut(f"{which} had not ended after {units.format_duration(timeout_s or 0.0)}", "", cure)
        return [views[job] for job in order]

    def cancel(self, select: Iterable[str], patience_s: float = SUBMIT_PATIENCE_S) -> tuple[m.JobView, ...]:
        """End the selected jobs; returns those that were meant."""
        return self._ask(m.Cancel(tuple(select)), m.JobsAre, patience_s).jobs

    def hold(self, select: Iterable[str], patience_s: float = SUBMIT_PATIENCE_S) -> tuple[m.JobView, ...]:
        """Let the selected jobs, as far as they wait, not start until released; returns those that were meant."""
        return self._ask(m.Hold(tuple(select)), m.JobsAre, patience_s).jobs

    def release(self, select: Iterable[str], patience_s: float = SUBMIT_PATIENCE_S) -> tuple[m.JobView, ...]:
        """Let the selected jobs start that are held; returns those that were meant."""
        return self._ask(m.Release(tuple(select)), m.JobsAre, patience_s).jobs

    def requeue(
        self, select: Iterable[str], hold: bool = False, patience_s: float = SUBMIT_PATIENCE_S
    ) -> tuple[m.JobView, ...]:
        """Queue the selected jobs again, as new attempts: what runs is ended first. 'all' are those that run.

        `hold`: until they are released. Returns those that were meant. A job whose input came from `beo run` can't be
        run again: raises `Conflict`.
        """
        words = tuple(select)
        found = self._ask(m.ListJobs(words, limit=m.LIST_LENGTH_MAX), m.JobsAre, patience_s).jobs
        jobs = tuple((job.id, job.attempt) for job in found if words != ("all",) or job.state == "running")
        return self._ask(m.Requeue(jobs, hold), m.JobsAre, patience_s).jobs if jobs else ()

    def migrate(
        self, select: Iterable[str], nodes: str = "", patience_s: float = SUBMIT_PATIENCE_S
    ) -> tuple[m.JobView, ...]:
        """Have the selected jobs, which run, go on elsewhere: on `nodes`, or on any that they aren't on.

        Each does so at its next safe point, as a further attempt that goes on where it was. Returns those that were
        meant. Raises `Conflict` where one doesn't run, or can't be placed there. 'all' are those that run.
        """
        words = tuple(select)
        found = self._ask(m.ListJobs(words, limit=m.LIST_LENGTH_MAX), m.JobsAre, patience_s).jobs
        jobs = tuple((job.id, job.attempt) for job in found if words != ("all",) or job.state == "running")
        return self._ask(m.Migrate(jobs, nodes), m.JobsAre, patience_s).jobs if jobs else ()

    def ask_ranks(self, select: Iterable[str], do: str, patience_s: float = SUBMIT_PATIENCE_S) -> tuple[m.JobView, ...]:
        """Ask the ranks of the selected jobs, as far as they run, to "checkpoint" or to "scrub" at a safe point."""
        return self._ask(m.AskRanks(tuple(select), do), m.JobsAre, patience_s).jobs

    def set_priority(
        self, select: Iterable[str], priority: int, patience_s: float = SUBMIT_PATIENCE_S
    ) -> tuple[m.JobView, ...]:
        """Give the selected jobs, as far as they wait, another priority; returns those that were meant."""
        return self._ask(m.SetPriority(tuple(select), priority), m.JobsAre, patience_s).jobs

    def signal(self, job: int, number: int, key: str | None = None, patience_s: float = SUBMIT_PATIENCE_S) -> None:
        """Send a signal to every rank of a job, once per key."""
        self._ask(m.Signal(job, number, key or new_key()), m.Done, patience_s)

    def processes(
        self, select: Iterable[str] = (), nodes: str = "", user: str = "", machines: bool = False
    ) -> m.ProcessesAre:
        """Return the processes of the selected jobs, by default of all that run and are one's own (an admin: of all).

        `nodes` and `user` narrow them down; with `machines`, nodes are told of on which nothing of them runs, too.
        Nodes that don't answer within `messages.INSPECT_S` are named in `silent`.
        """
        message = m.ListProcesses(tuple(select), nodes, user, machines)
        return self._ask(message, m.ProcessesAre, wait_s=m.INSPECT_S)

    def kill(self, targets: Iterable[m.Target], number: int, key: str | None = None) -> m.HitsAre:
        """Send a signal to single processes or ranks, once per key; returns what was hit and what was not."""
        message = m.SignalProcesses(tuple(targets), number, key or new_key())
        return self._ask(message, m.HitsAre, SUBMIT_PATIENCE_S, m.INSPECT_S)

    def nodes(self) -> tuple[m.NodeView, ...]:
        """Return the nodes."""
        return self._ask(m.ListNodes(), m.NodesAre).nodes

    def events(self, after: int = 0, limit: int = 100) -> tuple[m.EventView, ...]:
        """Return the journal entries behind index `after`, at most `limit`; with 0 the last ones."""
        return self._ask(m.ListEvents(after, limit), m.EventsAre).events

    def journal(self, job: int = 0, node: str = "") -> Iterator[m.EventView]:
        """Yield all journal entries that the head still has, the oldest first; only those that name `job` or `node`."""
        after = 1  # an `after` of 0 means the newest; entry 1 is the birth of the cluster
        while True:
            page = self._ask(m.ListEvents(after, EVENTS_PAGE, job, node), m.EventsAre)
            yield from page.events
            if page.upto <= after:
                return
            after = page.upto

    def follow_journal(self, after: int = 0, job: int = 0, node: str = "") -> Iterator[m.EventsAre]:
        """Yield what the journal says behind index `after` (0: from now on), page by page, for ever and without a gap.

        Restarts of the head are waited out. A page may have no events. One that begins behind its `oldest` entry tells
        of a gap all the same: the reader was so slow that entries were dropped.
        """
        if not after:
            after = self._ask(m.ListEvents(0, 1), m.EventsAre, None).upto
        while True:
            page = self._ask(m.ListEvents(after, EVENTS_PAGE, job, node), m.EventsAre, None)
            yield page
            if page.upto > after:
                after = page.upto
            else:
                time.sleep(FOLLOW_S)

    def history(
        self,
        select: Iterable[str] = (),
        user: str = "",
        states: Iterable[str] = (),
        since_s: float = 0.0,
        until_s: float = 0.0,
    ) -> Iterator[m.JobRecord]:
        """Yield what ended jobs took, the newest first, as far as they are on record.

        `since_s` and `until_s` (seconds since 1970) bound when they ended.
        """
        before = 0
        wish = (tuple(select), user, tuple(states), since_s, until_s)
        while True:
            page = self._ask(m.ListHistory(*wish, before), m.HistoryAre)
            yield from page.jobs
            if not page.next:
                return
            before = page.next

    def drain(self, nodes: str, reason: str = "") -> tuple[m.NodeView, ...]:
        """Give the nodes of a node set no new work until they are resumed; what runs there goes on. Returns them."""
        return self._ask(m.Drain(nodes, reason), m.NodesAre, SUBMIT_PATIENCE_S).nodes

    def resume(self, nodes: str) -> tuple[m.NodeView, ...]:
        """Give drained nodes work again; returns them."""
        return self._ask(m.Resume(nodes), m.NodesAre, SUBMIT_PATIENCE_S).nodes

    def forget(self, nodes: str) -> None:
        """Take lost nodes off the record; raises `Conflict` where something of one may be alive."""
        self._ask(m.ForgetNodes(nodes), m.NodesAre, SUBMIT_PATIENCE_S)

    def tokens(self) -> tuple[m.TokenView, ...]:
        """Return the tokens that newcomers may join with, or could."""
        return self._ask(m.ListTokens(), m.TokensAre).tokens

    def revoke_tokens(self, numbers: Iterable[int]) -> tuple[m.TokenView, ...]:
        """End tokens by number; what joined by them stays."""
        return self._ask(m.RevokeTokens(tuple(numbers)), m.TokensAre, SUBMIT_PATIENCE_S).tokens

    def reserve(
        self,
        for_s: float,
        *,
        start_s: float = 0.0,
        after_s: float = 0.0,
        nodes: str = "",
        count: int = 0,
        users: Sequence[str] = (),
        name: str = "",
        kill: bool = False,
    ) -> tuple[m.ReservationView, ...]:
        """Reserve the nodes of a node set, or `count` that the head chooses; for admins. Returns the reservation.

        It begins at start_s (since 1970), or after_s from now where that is 0.
        """
        wish = m.Reserve(new_key(), for_s, start_s, after_s, nodes, count, tuple(users), name, kill)
        return self._ask(wish, m.ReservationsAre, SUBMIT_PATIENCE_S).reservations

    def reservations(self, names: Iterable[str] = ()) -> tuple[m.ReservationView, ...]:
        """Return reservations by name, or all, the next to begin first."""
        return self._ask(m.ListReservations(tuple(names)), m.ReservationsAre).reservations

    def cancel_reservations(self, names: Iterable[str]) -> tuple[m.ReservationView, ...]:
        """End reservations; for admins. Returns them as they were."""
        return self._ask(m.CancelReservations(tuple(names)), m.ReservationsAre, SUBMIT_PATIENCE_S).reservations

    def users(self) -> tuple[m.UserView, ...]:
        """Return everybody with a key, and those who are barred; for admins."""
        return self._ask(m.ListUsers(), m.UsersAre).users

    def revoke_keys(self, word: str) -> None:
        """Take a key, by its first characters, or all keys of a user and bar him from the doors; for admins."""
        self._ask(m.RevokeKeys(word), m.Done, SUBMIT_PATIENCE_S)

    def allow_user(self, name: str) -> None:
        """Let a barred user come to the doors again; for admins."""
        self._ask(m.AllowUser(name), m.Done, SUBMIT_PATIENCE_S)

    def pair(self, patience_s: float = PAIR_PATIENCE_S) -> dict[str, m.PairIs | BeoError]:
        """Return what each head of the cluster says of the pair, by its address, or why it says nothing.

        Every head is asked by itself, whether it acts or not, and those too that only the others know of.
        """
        from beo import question

        known, secret = self.home.cluster(), self.secret()
        found = question.look(known.heads, known.key, secret, m.AskPair(), m.PairIs, patience_s)
        told = {head.control for view in found.values() if isinstance(view, m.PairIs) for head in view.heads}
        if more := sorted(told - found.keys()):
            found |= question.look(more, known.key, secret, m.AskPair(), m.PairIs, patience_s)
        return found

    def steer(self, head: str, wish: str) -> None:
        """Say to the head at an address what an operator wishes of it: switchover, takeover or force. For admins."""
        self._order((head,), m.Steer(wish))

    def freeze(self, frozen: bool) -> None:
        """Let no head take over, or let it again; for admins."""
        self._order(self.home.cluster().heads, m.Steer("freeze" if frozen else "thaw"))

    def set_pair(self, **settings: object) -> None:
        """Change what both heads agree on: level, takeover, failback, lease_s, silence_s; for admins."""
        self._order(self.home.cluster().heads, m.SetPair(**settings))  # type: ignore[arg-type]

    def leave_head(self, name: str) -> None:
        """Let a head that doesn't act belong to the cluster no more; for admins."""
        self._order(self.home.cluster().heads, m.LeaveHead(name))

    def _order(self, heads: Sequence[str], wish: object) -> None:
        from beo import question

        question.ask(heads, self.home.cluster().key, self.secret(), wish, m.Done, SUBMIT_PATIENCE_S)

    def gone(self, node: str) -> None:
        """Give the operator's word that a silent node's machine is off, so that what ran there may run again."""
        self._ask(m.DeclareGone(node), m.Done, SUBMIT_PATIENCE_S)


def _forgotten(job: int) -> NotFound:
    return NotFound(f"no job {job}", "never submitted here, or ended long ago", "see 'beo queue --all'")
