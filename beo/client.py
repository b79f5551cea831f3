"""How programs speak to the head: `Cluster`, with a request and its answer, and a method per verb.

Every request may be repeated: the head answers a submission or signal that it knows by its key with what it did the
first time. So a request that gets no answer is simply sent again, under the same key, over as many restarts of the head
as the caller's patience covers, and happens once. Of several heads the one is asked that acts (line.py).
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import msgspec

from beo import config, spec, units, version, wire
from beo import messages as m
from beo.errors import BeoError, Internal, NoHead, NotFound, Refused, TimedOut, UsageError, from_dict, reason
from beo.table import escape

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is
if TYPE_CHECKING:
    from typing import TypeVar

    from beo.line import Line

    Answer = TypeVar("Answer")
    Channel = wire.Connection | Line

PATIENCE_S = 2.0  # a killed head is back in less; longer, and a person wonders whether anything happens
SUBMIT_PATIENCE_S = 10.0  # a submission also rides out a head that replays a long journal
PAIR_PATIENCE_S = 1.0  # for each head to say how it fares: longer than a take-over
RESEND_S = 1.0  # an answer that is overdue by so much was lost with the head that owed it
LEARN_PATIENCE_S = 0.5  # for the list of heads, which nobody waits for
CONNECT_POLL_S = 0.25  # how often an absent head's connection is looked at
NOBODY_S = 0.05  # before a head is asked again that doesn't act, and knows of nobody who does
LEARN_S = 600.0  # how old a user's own list of heads may get
# A head that dies takes its parked polls along; their client asks again when they are overdue, so they are kept short.
WAIT_SLICE_S = 2.0
FOLLOW_S = 0.3  # between looks at a journal that has not grown
EVENTS_PAGE = 1_000  # entries in one answer: the head's limit
PACE_S = 0.1  # between polls that a busy head answers at once instead of keeping them
PROGRESS_SLICE_S = 1.0  # the same where somebody watches

ENDED = frozenset({"done", "failed", "cancelled", "lost"})
FOREIGN_ENVIRONMENT = ("BEO_", "PMI_")  # set anew for each job: those of the submitter would lie

OnProgress = Callable[[Sequence[m.JobView]], None]


class Unanswered(NoHead):
    """A request was sent and no answer came: what became of it is not known."""


def new_key() -> str:
    """Return a fresh idempotency key: the time, so that the head can tell its age, and 96 random bits."""
    return spec.submission_key(time.time(), os.urandom(12).hex())


def tell(text: str) -> None:
    """Say one line on standard error, as beo."""
    try:
        print(f"beo: {escape(text)}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody can hear it, which must not change what is done or how it ends


# One for all connections of the process: each context has an I/O thread of its own.
_context = functools.cache(wire.new_context)


# Connections that were made before they were asked for, with whom they are to: address, the head's key, our secret.
_ahead: list[tuple[tuple[str, str, str], wire.Connection]] = []


def open_ahead(home: config.Home, control: int, bulk: int = 0) -> None:
    """Have so many connections to the control and the bulk plane of a cluster for those who will want one soon.

    They are made while this process goes on with something else. Whoever takes one has read the cluster's address and
    keys anew, and takes none that was made with others. Raises what reading them raises.
    """
    cluster = home.cluster()
    _, secret = _identity(home)
    if not secret:
        return  # a user's first word is at the door
    for addresses, count in ((cluster.heads, control), (cluster.bulk, bulk)):
        for address in addresses:
            whom = (address, cluster.key, secret)
            missing = count - sum(known == whom for known, _ in _ahead)
            _ahead.extend((whom, wire.Connection(*whom, _context())) for _ in range(missing))


def _identity(home: config.Home) -> tuple[str, str]:
    """Where our secret key is, and the key: the cluster's own for who may read it, else one of this user, if any."""
    if home.is_ours:
        return str(home.keys / "admin.secret"), home.secret("admin")
    from beo import keyring

    path = keyring.path_of(home.cluster().cluster)
    return path, keyring.read(path)


def close_ahead() -> None:
    """Close those that nobody wanted."""
    for _, connection in _ahead:
        connection.close()
    _ahead.clear()


def _forgotten(job: int) -> NotFound:
    return NotFound(f"no job {job}", "never submitted here, or ended long ago", "see 'beo queue --all'")


class Cluster:
    """A connection to the cluster in `home` (by default `BEO_DIR`), made when first needed. For one thread at a time.

    Every method raises `BeoError`: `NoHead` where nobody answers, `Refused` for a foreign key, or what the head says.
    """

    def __init__(self, home: config.Home | None = None, secret: str = "") -> None:
        """Take the cluster's folder; nothing is read yet. secret: a key to be known by, other than this user's."""
        self.home = home or config.home()
        self._secret = secret
        self._connection: Channel | None = None
        self._is_due = False  # cluster.json is old
        self._known: config.ClusterFile | None = None  # what it should say, once a head has told
        self._requests = 0
        self._introduced = False  # at the door, by this object

    def __enter__(self) -> Cluster:
        """Return the cluster, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens it anew."""
        if self._connection:
            self._connection.close()
            self._connection = None

    # ---- one request ----------------------------------------------------------------------------------------------

    def request(self, message: object, patience_s: float | None = PATIENCE_S, wait_s: float = 0.0) -> object:
        """Send one message of `ClientRequest` and return its answer; raises the error that a `Failed` carries.

        The message is sent again, as it is, until it is answered or the head was silent for `patience_s` (None: for
        ever, with a line on standard error). `wait_s` is how long the head may keep a long poll.
        """
        connection = self._connected()
        self._requests += 1
        try:
            body = m.encode(message)
        except UnicodeEncodeError as error:  # what the shell hands over of a word that is no UTF-8 has surrogates
            raise UsageError(f"{error.object[:80]!r} is not UTF-8", "beo keeps text only", "write it as text") from None
        began_s = time.monotonic()
        sent, told = 0, False
        waits = 0  # answers that may have taken wait_s
        while True:
            silent_s = time.monotonic() - began_s - waits * wait_s
            left_s = PATIENCE_S if patience_s is None else patience_s - silent_s
            if patience_s is None and silent_s >= PATIENCE_S and not told:
                tell(f"no head answers at {connection.address}: waiting")
                told = True
            if left_s <= 0 and patience_s is not None:
                if connection.refusing:
                    raise self._refused(connection.refusing)
                raise self._unanswered(connection.address, patience_s, sent > 0)
            connection.wait_s = wait_s
            if connection.send(self._requests, body, min(CONNECT_POLL_S, left_s)):
                sent += 1
                answer = self._receive(connection, wait_s + min(RESEND_S, left_s))
                if isinstance(answer, m.Elsewhere):
                    connection = self._widen(connection, answer.head)
                    continue
                waits += 1
                if answer is not None:
                    if told:
                        tell("a head answers again")
                    self._learn(connection)
                    return answer
            if connection.refused:
                if not self._introduce():
                    raise self._refused(connection.refusing)
                connection = self._connected()

    def _connected(self) -> Channel:
        if not self._connection:
            heads = (self._known or self.home.cluster()).heads
            self._is_due = self.home.is_due(LEARN_S)
            self._connection = self._connect(heads[0]) if len(heads) == 1 else self._line(heads)
        return self._connection

    def _line(self, addresses: Sequence[str], names: Mapping[str, str] | None = None) -> Line:
        from beo.line import Line  # here: with one head, nobody needs it

        return Line(addresses, self._connect, names)

    def _widen(self, connection: Channel, head: str) -> Channel:
        """The one head that we know doesn't act: go on with the one that it names, too."""
        if not config.is_address(head) or head == connection.address:
            time.sleep(NOBODY_S)
            return connection
        connection.close()
        self._connection = self._line((head, connection.address))
        self._is_due = True
        return self._connection

    def _learn(self, connection: Channel) -> None:
        """Ask which heads there are, if there is news of it or it is time to."""
        if self._is_due or getattr(connection, "has_learned", False):
            self._is_due = connection.has_learned = False  # type: ignore[union-attr]
            self.learn_heads()

    def learn_heads(self) -> None:
        """Ask which heads there are now, and write it down where that may be done; no answer is no harm."""
        with suppress(BeoError):
            self.info(LEARN_PATIENCE_S)

    def _connect(self, address: str) -> wire.Connection:
        whom = (address, self.home.cluster().key, self.secret())
        for number, (known, connection) in enumerate(_ahead):
            if known == whom and not connection.refused:
                del _ahead[number]
                return connection
        return wire.Connection(*whom, _context())

    def secret(self) -> str:
        """Our secret key; a user who has none gets one here, by knocking at the door."""
        if self._secret:
            return self._secret
        path, secret = _identity(self.home)
        if not secret:
            from beo import door, keyring

            door.find(str(self.home.path))  # first: no key is made for a cluster that lets nobody in
            secret = keyring.keep(path, wire.new_keypair()[1])
            door.knock(str(self.home.path), wire.public_of(secret))
            self._introduced = True
        return secret

    def _introduce(self) -> bool:
        """Say the key of this user at the cluster's door, once; whether that may have helped."""
        if self._introduced or self._secret or self.home.is_ours:
            return False
        self._introduced = True
        from beo import door

        door.knock(str(self.home.path), wire.public_of(self.secret()))
        self.close()
        return True

    def bulk(self) -> Channel:
        """Return a new connection to the bulk plane of the head that acts, where output and input go."""
        cluster = self._known or self.home.cluster()
        if not cluster.bulk:
            return self._connect(self.info().bulk)
        if len(cluster.bulk) == 1:
            return self._connect(cluster.bulk[0])
        return self._line(cluster.bulk, dict(zip(cluster.heads, cluster.bulk, strict=False)))

    def _receive(self, connection: Channel, timeout_s: float) -> object | None:
        deadline_s = time.monotonic() + timeout_s
        while received := connection.receive(max(0.0, deadline_s - time.monotonic())):
            request, body = received
            if not request and not body:
                raise version.mismatch("the head", connection.stranger)
            if request != self._requests:
                continue  # the late answer to a request that was given up
            try:
                answer: object = m.to_client.decode(body)
            except msgspec.DecodeError as error:
                why = reason(error)
                raise Internal("the head's answer makes no sense", why, "install the same beo on both") from None
            if isinstance(answer, m.Failed):
                raise from_dict(answer.error)
            return answer
        return None

    def _refused(self, address: str) -> Refused:
        return Refused(
            f"the head at {address} does not know this key",
            _identity(self.home)[0],
            "set BEO_DIR to the cluster that you mean, or ask its operator for a key",
        )

    def _unanswered(self, address: str, patience_s: float, sent: bool) -> NoHead:
        kind = Unanswered if sent else NoHead
        cure = "start one with 'beo up', or set BEO_DIR to the cluster that you mean"
        return kind(f"no head answers at {address}", f"tried for {units.format_duration(patience_s)}", cure)

    def _ask(
        self, message: object, kind: type[Answer], patience_s: float | None = PATIENCE_S, wait_s: float = 0.0
    ) -> Answer:
        answer = self.request(message, patience_s, wait_s)
        if isinstance(answer, kind):
            return answer
        raise Internal(f"the head answered with {type(answer).__name__}", f"asked for {kind.__name__}")

    # ---- verbs ----------------------------------------------------------------------------------------------------

    def info(self, patience_s: float | None = PATIENCE_S) -> m.InfoIs:
        """Return which cluster, head and epoch answers, and as whom it knows us."""
        answer = self._ask(m.Info(), m.InfoIs, patience_s)
        control, bulk = tuple(head.control for head in answer.heads), tuple(head.bulk for head in answer.heads)
        self._known = self.home.learn(self._known or self.home.cluster(), control, bulk)
        return answer

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


# ---- a job from here -----------------------------------------------------------------------------------------


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a job takes over of the submitter's environment: all but what beo and MPI set for each job anew.

    Variables that are not UTF-8 are left out, since an entry of the journal is text.
    """
    return {k: v for k, v in environ.items() if not k.startswith(FOREIGN_ENVIRONMENT) and _is_text(k) and _is_text(v)}


def _is_text(word: str) -> bool:
    return word.isascii() or not any("\ud800" <= c <= "\udfff" for c in word)


def notice(text: str) -> tuple[int, float]:
    """Return the number and the seconds of a text like "USR1@60", or "TERM" alone. Raises BeoError."""
    name, at, span = text.partition("@")
    return signal_number(name), units.parse_duration(span) if at else spec.NOTICE_S


def signal_number(word: str) -> int:
    """Return the number of a signal: TERM, SIGTERM or 15."""
    from signal import Signals  # here: most verbs need no names of signals

    if word.isdecimal() and len(word) < 4:
        return int(word)
    names = {number.name.removeprefix("SIG"): int(number) for number in Signals}
    name = word.upper().removeprefix("SIG")
    if name not in names:
        raise NotFound.among("signal", word, names, "see 'kill -l'")
    return names[name]


def new_spec(
    argv: Sequence[str],
    *,
    ranks: int = 1,
    nodes: int = 0,
    cpus: int = 1,
    mem: int | str = 0,
    time_limit: float | str = 0.0,
    name: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    requeue: spec.Requeue = "confirm",
    priority: int = 0,
    output: str = "",
    errors: str = "",
    script: str = "",
    stdin: bool = False,
    attached: bool = False,
    slots: int = 0,
    terminal: tuple[int, int] | None = None,
    outputs: Sequence[str] = (),
    signal: str = "",
    goes_on: bool = False,
    movable: bool = False,
    reservation: str = "",
    migratable: bool = False,
) -> spec.JobSpec:
    """Return a checked spec for `argv`, run in `cwd` (default: here) with this process's environment and `env` on top.

    `mem` is bytes per rank or a text like "4GiB", `time_limit` seconds or a text like "1h30m". Paths are taken relative
    to `cwd`. With a `terminal` of (rows, columns), one process has it and all the slots. `outputs` are patterns of the
    files that are kept when it ends. `signal` is what its ranks get before their time is up, like "USR1@60" (seconds).
    With `goes_on` it halts then at a checkpoint, and goes on as another attempt. What is `movable` is moved by CRIU,
    and what is `migratable` too: the ranks of an MPI program (experimental).
    With a `reservation` it runs on its nodes, while that is on.
    Raises `UsageError` that names the option at fault.
    """
    if isinstance(argv, str):
        raise UsageError("the command is one text", "a job takes a list of words", 'write ["sh", "-c", text]')
    if isinstance(outputs, str):
        raise UsageError("outputs is one text", "it is a list of patterns", "write [text]")
    words = tuple(map(str, argv))
    for word in words:
        if not _is_text(word):
            raise UsageError(f"a word of the command is not UTF-8: {word!r}", "", "name the file otherwise")
    try:
        folder = os.path.abspath(cwd)
    except FileNotFoundError:
        cure = "go to one that is there, or use --chdir"
        raise UsageError("this folder is gone", "the job would run in it", cure) from None
    if len(folder) <= spec.PATH_LENGTH_MAX and not os.path.isdir(folder):  # what is longer, spec.check refuses
        raise UsageError(f"no folder {folder}", "the job would run there", "make it, or change --chdir")
    own = environment(os.environ)
    if terminal is not None:
        for name_of_size in ("LINES", "COLUMNS"):  # programs believe these more than the terminal, which may change
            own.pop(name_of_size, None)
    number, notice_s = notice(signal) if signal else (0, spec.NOTICE_S)
    return spec.check(
        spec.JobSpec(
            argv=words,
            cwd=folder,
            env={**own, **(env or {})},
            name=name,
            ranks=ranks,
            nodes=nodes,
            cpus=cpus,
            mem_bytes=units.parse_size(mem) if isinstance(mem, str) else mem,
            time_limit_s=units.parse_duration(time_limit) if isinstance(time_limit, str) else time_limit,
            requeue=requeue,
            priority=priority,
            output=output and os.path.join(folder, output),
            errors=errors and os.path.join(folder, errors),
            script=script,
            batch=(bool(script) and spec.is_shell(script)) or (terminal is not None and ranks > 1),
            stdin=stdin,
            attached=attached,
            slots=slots,
            terminal=terminal,
            outputs=tuple(map(spec.pattern, outputs)),
            signal=number,
            notice_s=notice_s,
            goes_on=goes_on,
            movable=movable or migratable,
            reservation=reservation,
            migratable=migratable,
        )
    )
