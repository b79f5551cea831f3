"""The head: one control loop around the core. ``python -m beo.headnode.server``, with BEO_DIR naming the cluster.

The loop polls the control socket, hands what came to the core, appends what it decides to the journal, and sends what
it releases. A second thread does nothing but commit; a third one serves the bulk plane (streams.py). An error of the
journal ends the process: what it had acknowledged is on disk, and the next head starts from there.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import queue
import secrets
import sys
import threading
import time

import msgspec

from beo import __version__, birth, daemon, events, lockfile, version, wire
from beo import messages as ms
from beo.accounts import Accounts
from beo.config import Home, Place, home
from beo.door import Door
from beo.errors import BeoError, Conflict, Internal
from beo.headnode import acts, core, decide, heads, permissions, views
from beo.headnode.compaction import Compaction
from beo.headnode.model import ENDED, HeadInfo
from beo.headnode.replay import replay
from beo.headnode.state import State
from beo.headnode.streams import Streams
from beo.journal import Journal
from beo.spec import JobSpec

TICK_S = 0.05
DISK_FREE_MIN_BYTES = 64 * 1024 * 1024  # below, no new job is taken: what runs must still be able to end on record
# The commit thread asks for the interpreter a few times per commit; at Python's usual 5 ms each, a control loop that
# never rests would make it wait: time to durable fell from 10.6 ms to 1.6 ms (median), its throughput by a sixth.
# At the rates of docs/performance.md, where the loop does rest, no difference was seen.
SWITCH_S = 0.0005
EVENTS_MAX = 1_000  # journal entries in one answer

log = logging.getLogger("beo.head")


class _Jobs:
    """What the bulk plane may know of the state; asked from its threads, so each answer is one look at a dict."""

    def __init__(self, state: State) -> None:
        self._state = state

    def user_of_key(self, key: str) -> decide.User | None:
        return decide.user_of(self._state, key)

    def speaks_for(self, user: decide.User, node: str) -> bool:
        return permissions.speaks_for(self._state, user, node)

    def owner(self, job: int) -> str | None:
        found = self._state.jobs.get(job)
        return found.user if found else None

    def spec(self, job: int) -> JobSpec | None:
        found = self._state.jobs.get(job)
        return found.spec if found else None

    def ids(self, job: int) -> tuple[int, int, tuple[int, ...]] | None:
        found = self._state.jobs.get(job)
        return (found.uid, found.gid, found.groups) if found else None

    def is_over(self, job: int, attempt: int) -> bool:
        found = self._state.jobs.get(job)
        if not found or found.state in ENDED or attempt < found.attempt_number:
            return True
        last = found.attempt
        return bool(last and last.number == attempt and last.over)

    def rank0_node(self, job: int, attempt: int) -> tuple[str, str] | None:
        found = self._state.jobs.get(job)
        last = found.attempt if found else None
        if not last or last.number != attempt or last.over:
            return None
        return last.parts[0].node, last.parts[0].incarnation


class _Clerk:
    """Writes down where the heads are, in a thread of its own: the loop never waits for a disk."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._places: queue.SimpleQueue[dict[str, Place] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="clerk", daemon=True)
        self._thread.start()

    def put(self, places: dict[str, Place]) -> None:
        self._places.put(places)

    def _run(self) -> None:
        while (places := self._places.get()) is not None:
            try:
                birth.note_heads(self._home, places)
            except (OSError, BeoError) as error:  # a full disk: the next start tries again
                log.error("can't write down where the heads are: %s", error)

    def close(self) -> None:
        self._places.put(None)
        self._thread.join()


class Server:
    """One head over one folder."""

    def __init__(self, where: Home) -> None:
        """Take the lock, open and replay the journal, listen."""
        self._home = where
        self._folder = str(where.head)
        self._config = where.config()
        self._lock = lockfile.hold(where.head / "lock")
        cluster = where.cluster()
        who = where.who()
        secret = where.secret("head")
        self._waker = wire.Waker()
        self._failure: BaseException | None = None
        self._stopping = False
        self._readers_wait = False  # some attempt ended: who reads its output is to be told
        self._disk_full = ""
        self._journal = Journal(where.head, self._durable, self._failed)
        self._compaction = Compaction(self._journal, where.head)
        state = self._replay()
        self._state = state
        birth = () if state.index else self._birth(cluster.cluster)
        if state.index and state.cluster != cluster.cluster:
            raise Conflict(
                f"the journal in {where.head} is of another cluster",
                f"{state.cluster[:8]}… here, not {cluster.cluster[:8]}…",
                "restore cluster.json or the head's folder so that both belong together",
            )
        self._server = self._listen(who.control, secret)
        self._streams = Streams(who.bulk, secret, where.head / "output", _Jobs(state))
        own = ms.HeadView(who.name, who.control, who.bulk, who.links)
        self._core = core.Head(state, self._config, lambda: secrets.token_hex(8), self._streams.address, __version__)
        self._noted: dict[str, HeadInfo] = {}  # of the heads, what this machine's files say
        self._clerk = _Clerk(where)
        self._accounts = Accounts()
        self._knocks: queue.SimpleQueue[tuple[int, acts.Knock]] = queue.SimpleQueue()
        self._door = self._open_door()
        now = self._now()
        news = tuple(heads.begin(state, own, now.wall_s))
        self._perform(self._core.handle(acts.Begin(birth, news=news), now))

    # ---- the journal

    def _replay(self) -> State:
        started_s = time.monotonic()
        state = replay(*self._journal.load())
        log.info("replayed %d entries: %d jobs in %.2f s", state.index, len(state.jobs), time.monotonic() - started_s)
        gc.collect()
        gc.freeze()  # what was loaded stays: the collector needn't look at it again
        return state

    def _birth(self, cluster: str) -> tuple[events.Event, ...]:
        now_s = time.time()
        keys = []
        for name in ("admin", "worker"):
            public = wire.public_of(self._home.secret(name))
            keys.append(events.KeyAuthorized(public, birth.user_name() if name == "admin" else name, name, now_s))
        return (events.Born(cluster, "A", now_s), *keys)

    def _durable(self, index: int) -> None:
        self._waker.wake()

    def _failed(self, error: BaseException) -> None:
        self._failure = error
        self._waker.wake()

    # ---- the loop

    def _listen(self, address: str, secret: str) -> wire.Server:
        try:
            return wire.Server(address, secret, lambda key: decide.user_of(self._state, key) is not None)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise Conflict(
                    str(error),
                    "this machine's address is another now",
                    "'beo down', then 'beo head init --listen' with the new one",
                ) from None
            raise Conflict(
                str(error), "another program has the port", "end it, or set another [head] listen in beo.toml"
            ) from None

    def _open_door(self) -> Door | None:
        """Let local users in, where we can act for them: as root."""
        if os.geteuid() or not self._config.users.door:
            return None
        try:
            return Door(str(self._home.path), self._knock)
        except OSError as error:
            log.error("no door for other users: %s", error)
            return None

    def _knock(self, visitor: int, uid: int, gid: int, groups: tuple[int, ...], key: str) -> None:
        self._knocks.put((visitor, acts.Knock(uid, gid, groups, key)))
        self._waker.wake()

    def _now(self) -> acts.Now:
        return acts.Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())

    def stop(self, *_: object) -> None:
        """Let `run` return; also a signal handler."""
        self._stopping = True
        self._waker.wake()

    def run(self) -> None:
        """Serve until stopped; raises what the journal failed with."""
        poller = wire.Poller()
        self._server.register(poller)
        poller.register(self._waker.fileno(), wire.POLLIN)
        self._streams.start()
        for job in self._state.jobs.values():
            if job.attempt and job.state not in ENDED:
                self._begin_files(job.id, job.attempt.number)
        log.info("head %s serves %s, epoch %d", self._state.head, self._server.address, self._state.epoch)
        next_tick_s = 0.0
        while not self._stopping:
            now = self._now()
            if now.boot_s >= next_tick_s:
                next_tick_s = now.boot_s + TICK_S
                self._disk_full = self._look_at_disk()
                self._perform(self._core.handle(acts.Tick(), now))
                self._compaction.tick(self._journal.durable_index, len(self._state.jobs), now.boot_s)
                self._note_heads()
            self._wake_readers()
            poller.poll(max(0, int((next_tick_s - now.boot_s) * 1000) + 1))
            now = self._now()
            for peer, key, request, body in self._server.receive():
                self._take(peer, key, request, body, now)
            for greeting in self._server.strangers():
                log.warning("%s", version.mismatch("a client or worker", greeting))
            self._waker.clear()
            while not self._knocks.empty():
                visitor, knock = self._knocks.get_nowait()
                self._perform(self._core.handle(acts.Knocked(visitor, knock, self._accounts.look(knock.uid)), now))
            if self._failure:
                raise self._failure
            self._perform(self._core.handle(acts.Turn(), now))
            self._perform(self._core.handle(acts.Durable(self._journal.durable_index), now))

    def close(self) -> None:
        """Release everything; what was appended is committed."""
        if self._door:
            self._door.close()
        self._streams.stop()
        self._clerk.close()
        self._server.close()
        self._compaction.stop()
        self._journal.close()
        self._waker.close()
        os.close(self._lock)

    def _take(self, peer: bytes, key: str, request: int, body: bytes, now: acts.Now) -> None:
        try:
            message = ms.to_head.decode(body)
        except msgspec.MsgspecError as error:
            answer = BeoError("the head can't read this message", str(error).lower(), "use the head's version of beo")
            self._server.send(peer, request, ms.encode(decide.failure(answer)))
            return
        if isinstance(message, ms.ListEvents):
            self._server.send(peer, request, ms.encode(self._events(key, message)))
            return
        if isinstance(message, ms.Submit) and self._disk_full and message.key not in self._state.keys:
            full = Conflict(self._disk_full, "the head takes no new job", "free some space there")
            self._server.send(peer, request, ms.encode(decide.failure(full)))
            return
        if isinstance(message, core.VOTER_WORDS):
            return  # one head alone has no voters
        account = None
        if isinstance(message, ms.Submit | ms.Vouch) and 0 <= message.uid <= decide.ID_MAX:
            account = self._accounts.look(message.uid)
        self._perform(self._core.handle(acts.Asked(peer, request, key, message, account), now))

    def _perform(self, effects: list[acts.Effect]) -> None:
        for effect in effects:
            match effect:
                case acts.Append():
                    index = self._journal.append(self._state.epoch, events.encode(effect.event))
                    if index != effect.index:
                        raise Internal(f"entry {effect.index} became {index}", "state and journal differ", "restart")
                    if isinstance(effect.event, events.Started):
                        self._begin_files(effect.event.job, effect.event.attempt)
                case acts.Send():
                    message = effect.message
                    if isinstance(message, ms.DetailsAre):
                        message = self._with_output_errors(message)
                    elif isinstance(message, ms.HeadJoinedIs):
                        keys = {name: self._home.secret(name) for name in birth.KEYS}
                        message = msgspec.structs.replace(message, keys=keys)
                    self._server.send(effect.peer, effect.request, ms.encode(message))
                case acts.Over():
                    self._readers_wait = self._readers_wait or any(map(self._has_ended, effect.jobs))
                case acts.Greet():
                    if self._door:
                        self._door.answer(effect.visitor, effect.user, effect.error)
                case acts.Forget():
                    self._streams.forget(effect.jobs)

    def _note_heads(self) -> None:
        """Let clients of this machine, and its next head, know where all heads are; not in this thread: it fsyncs."""
        if self._noted != self._state.heads:
            self._noted = dict(self._state.heads)
            places = {name: Place(info.control, info.bulk, info.links) for name, info in self._noted.items()}
            self._clerk.put(places)

    def _has_ended(self, number: int) -> bool:
        """Whether an attempt of the job has ended, be it that a later one has started meanwhile."""
        job = self._state.jobs.get(number)
        attempt = job.attempt if job else None
        return not job or job.state in ENDED or bool(attempt and (attempt.over or attempt.number > 1))

    def _wake_readers(self) -> None:
        # Once for all attempts that ended in a turn, and never for one that starts: it costs a change of threads.
        if self._readers_wait:
            self._readers_wait = False
            self._streams.wake()

    def _begin_files(self, job: int, attempt: int) -> None:
        spec = self._state.jobs[job].spec
        if spec.output or spec.errors:
            self._streams.started(job, attempt)

    def _look_at_disk(self) -> str:
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            return f"can't look at the disk of {self._folder}: {error.strerror}"
        free = disk.f_bavail * disk.f_frsize
        return f"the disk of {self._folder} is full" if free < DISK_FREE_MIN_BYTES else ""

    def _with_output_errors(self, answer: ms.DetailsAre) -> ms.DetailsAre:
        """Add what only the bulk plane knows: why a job's -o or -e file isn't written."""
        details = []
        for detail in answer.jobs:
            error = self._streams.output_error(detail.view.id)
            details.append(msgspec.structs.replace(detail, why=(*detail.why, error)) if error else detail)
        return ms.DetailsAre(tuple(details))

    def _events(self, key: str, message: ms.ListEvents) -> ms.EventsAre | ms.Failed:
        try:
            user = permissions.check(self._state, decide.user_of(self._state, key), message)
        except BeoError as error:
            return decide.failure(error)
        limit = max(1, min(message.limit, EVENTS_MAX))
        last = self._journal.durable_index
        after = min(message.after, last)  # a client may say any number, and SQLite takes 63 bits
        first = max(self._journal.oldest_index, after + 1 if after > 0 else last - limit + 1)
        rows, upto = [], first - 1
        for entry in self._journal.entries(first, limit):
            if entry.index > last:
                break
            upto = entry.index
            event = events.decode(entry.data)
            if views.names(event, message.job, message.node):
                rows.append(views.event_row(entry.index, entry.epoch, event, self._state, user))
        return ms.EventsAre(tuple(rows), self._journal.oldest_index, upto)


def main() -> int:
    """Run a head until SIGTERM or SIGINT; 0 for a clean end."""
    sys.setswitchinterval(SWITCH_S)
    return daemon.main("head", lambda: Server(home()))


if __name__ == "__main__":
    sys.exit(main())
