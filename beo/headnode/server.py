"""The head: one control loop around the cores. ``python -m beo.headnode.server``, with BEO_DIR naming the cluster.

The loop polls the control socket and the pair plane, hands what came to `Replica` (this head's state and role, and the
core of a head while it acts), appends what that decides to the journal, and sends what it releases. Other threads do
what may take its time: one commits the journal, one the register, one serves the bulk plane (streams.py). An error of
the disk ends the process: what it had acknowledged is safe, and the next head starts from there.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import queue
import random
import secrets
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from beo import __version__, birth, daemon, events, lockfile, snapshots, version, votes, wire
from beo import messages as ms
from beo.accounts import Accounts
from beo.compaction import Compaction
from beo.config import Home, Place, home
from beo.door import Door
from beo.entries import Entry, Position
from beo.errors import BeoError, Conflict, DamagedJournal
from beo.ha import keep, orphans, pair, verify
from beo.ha.acts import Back, Became, Durable, FromHead, Install, Kept, Store, Stored, ToHead
from beo.ha.acts import Tick as PairTick
from beo.ha.keep import Keep
from beo.ha.log import Log
from beo.ha.resources import Resources, missing_programs
from beo.headnode import acts, booting, consoles, decide, permissions, views
from beo.headnode.alive import Alive
from beo.headnode.boots import Boots
from beo.headnode.clerk import Clerk
from beo.headnode.link import Link
from beo.headnode.model import ENDED, HeadInfo
from beo.headnode.replay import replay
from beo.headnode.replica import Effect, FetchSnapshot, Input, Me, Rebuilt, Replica, Snapshot, Ticked, Write
from beo.headnode.sight import Sight
from beo.headnode.state import State
from beo.headnode.streams import Streams
from beo.headnode.sweeping import Sweeping, needed
from beo.headnode.tree import Tree
from beo.journal import Journal
from beo.snapshots import Stamp
from beo.tree import orphans as file_orphans
from beo.votes import Cfg

TICK_S = 0.05
DISK_FREE_MIN_BYTES = 64 * 1024 * 1024  # below, no new job is taken: what runs must still be able to end on record
# The commit thread asks for the interpreter a few times per commit; at Python's usual 5 ms each, a control loop that
# never rests would make it wait: time to durable fell from 10.6 ms to 1.6 ms (median), its throughput by a sixth.
# At the rates of docs/performance.md, where the loop does rest, no difference was seen.
SWITCH_S = 0.0005
FETCH_AGAIN_S = 10.0  # after a snapshot could not be read: what ails a disk rarely passes within less
EVENTS_MAX = 1_000  # journal entries in one answer
ENTRY_BYTES = 1 << 10  # what an entry of the tree's log that the other head may lack counts as
UNKNOWN_BYTES = 1 << 60  # of output that the other head may lack: far more than lets it in step

log = logging.getLogger("beo.head")


class Server:
    """One head over one folder."""

    def __init__(self, where: Home) -> None:
        """Take the lock, open and replay the journal, listen."""
        self._home = where
        self._folder = str(where.head)
        self._config = where.config()
        self._lock = lockfile.hold(where.head / "lock")
        cluster = where.cluster()
        self._who = where.who()
        self._cluster = cluster.cluster
        self._secret = where.secret("head")
        self._key = cluster.key
        self._waker = wire.Waker()
        self._failure: BaseException | None = None
        self._stopping = False
        self._readers_wait = False  # some attempt ended: who reads its output is to be told
        self._disk_full = ""
        self._stored: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._fetched: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
        self._fetching = False
        self._journal = Journal(where.head, self._durable, self._failed)
        self._compaction = Compaction(self._journal, where.head, "beo.headnode.compactor")
        self._replica = self._make_replica(self._replay())
        if self.state.index and self.state.cluster != self._cluster:
            raise Conflict(
                f"the journal in {where.head} is of another cluster",
                f"{self.state.cluster[:8]}… here, not {self._cluster[:8]}…",
                "restore cluster.json or the head's folder so that both belong together",
            )
        self._keys = self._public_keys()
        self._tree = Tree(where)
        self._boots = Boots(where)
        self._sweeping = Sweeping(where, self._config.files)
        self._server = self._listen(self._who.control)
        self._link = self._open_link()
        self._streams = Streams(self._who.bulk, self._secret, where.head / "output", Sight(lambda: self.state))
        self._keep = Keep(where.head / "register", self._was_stored, self._failed)
        self._noted: dict[str, HeadInfo] = {}  # of the heads, what this machine's files say
        self._directed: tuple[bool, int, str, bool] | None = None  # what the bulk plane was told last
        self._clerk = Clerk(where)
        self._orphans = orphans.Count(where.head / "orphans", orphans.count)
        self._file_orphans = orphans.Count(where.head / "tree" / "orphans", file_orphans.count)
        self._resources = Resources(where, self._who.name, self._config.ha, self._who.control)
        self._own = self._facts()
        self._alive = Alive(where.head / "alive")
        self._accounts = Accounts()
        self._knocks: queue.SimpleQueue[tuple[int, acts.Knock]] = queue.SimpleQueue()
        self._door = self._open_door()

    @property
    def state(self) -> State:
        """The cluster, as this head knows it."""
        return self._replica.state

    def _make_replica(self, state: State) -> Replica:
        who, journal = self._who, self._journal
        kept = keep.read(self._home.head / "register")
        if kept is None:
            kept = self._first_register(state)
        cut = journal.position(journal.oldest_index - 1)
        last = journal.position(journal.last_index)
        assert cut and last
        book = Log(cut, last, journal.entries, journal.position)
        incarnation = secrets.token_hex(8)
        me = Me(who.name, who.control, who.bulk, who.links, incarnation, __version__)
        others = {name: HeadInfo(place.control, place.bulk, place.links) for name, place in who.others.items()}
        chance = random.SystemRandom().uniform
        return Replica(me, others, state, kept, book, self._config, lambda: secrets.token_hex(8), chance)

    @property
    def _is_founder(self) -> bool:
        """Whether a cluster may begin with this head. One that knows another has been wiped, or lost its disk."""
        return self._who.name == pair.FIRST and not self._who.others

    def _first_register(self, state: State) -> Kept:
        """What a head without a register begins with: the first one of a cluster goes on alone, others know nothing."""
        if len(state.heads) > 1 or (state.index and self._who.name != pair.FIRST):
            raise DamagedJournal(
                f"{self._home.head / 'register'} is missing",
                "it holds what this head has promised the other one",
                "restore it, or 'beo ha rejoin --wipe' makes this head begin anew",
            )
        if not self._is_founder:
            return Kept()
        return Kept(state.epoch, Cfg(state.epoch, 0, (pair.FIRST,)), chosen=True)

    # ---- the journal

    def _replay(self) -> State:
        started_s = time.monotonic()
        state = replay(*self._journal.load())
        log.info("replayed %d entries: %d jobs in %.2f s", state.index, len(state.jobs), time.monotonic() - started_s)
        gc.collect()
        gc.freeze()  # what was loaded stays: the collector needn't look at it again
        return state

    def _birth(self) -> tuple[events.Event, ...]:
        """The first entries of a cluster, by its first head."""
        if self.state.index or not self._is_founder:
            return ()
        now_s = time.time()
        keys = []
        for name in ("admin", "worker"):
            public = wire.public_of(self._home.secret(name))
            keys.append(events.KeyAuthorized(public, birth.user_name() if name == "admin" else name, name, now_s))
        ha = self._config.ha
        chosen = votes.PairSettings(ha.level, ha.takeover, ha.failback, False, ha.lease_s, ha.silence_s)
        set_by = (events.PairSet(chosen, birth.user_name(), now_s),) if chosen != votes.PairSettings() else ()
        return (events.Born(self._cluster, pair.FIRST, now_s), *keys, *set_by)

    def _durable(self, index: int) -> None:
        self._waker.wake()

    def _was_stored(self, serial: int) -> None:
        self._stored.put(serial)
        self._waker.wake()

    def _failed(self, error: BaseException) -> None:
        self._failure = error
        self._waker.wake()

    # ---- the loop

    def _is_known(self, key: str) -> bool:
        """Whether a key may connect. Before a cluster's first entries, its own may: who is sent away gives up."""
        return decide.user_of(self.state, key) is not None or (not self.state.index and key in self._keys.values())

    def _listen(self, address: str) -> wire.Server:
        try:
            return wire.Server(address, self._secret, self._is_known)
        except OSError as error:
            raise _taken(error) from None

    def _open_link(self) -> Link:
        try:
            return Link(self._who.links, self._key, self._secret, self._hello)
        except OSError as error:
            raise _taken(error) from None

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
        """Serve until stopped; raises what the journal or the register failed with."""
        poller = wire.Poller()
        self._server.register(poller)
        self._link.register(poller)
        poller.register(self._waker.fileno(), wire.POLLIN)
        poller.register(self._tree.fileno(), wire.POLLIN)
        self._streams.start()
        log.info("head %s listens at %s", self._who.name, self._server.address)
        self._begin()
        next_tick_s = 0.0
        while not self._stopping:
            now_s = self._now().boot_s
            if now_s >= next_tick_s:
                next_tick_s = now_s + TICK_S
                self._tick(now_s)
            self._wake_readers()
            poller.poll(max(0, int((next_tick_s - now_s) * 1000) + 1))
            self._take_all()
            self._waker.clear()
            self._tree.hear()
            while not self._knocks.empty():
                visitor, knock = self._knocks.get_nowait()
                self._handle(acts.Knocked(visitor, knock, self._accounts.look(knock.uid)))
            if self._failure:
                raise self._failure
            self._handle(acts.Turn())
            self._hear_disk()
            self._direct_streams()
            self._direct_tree()
            role = self._replica.pair
            self._streams.act_until(role.acts_until_s)
            acting, follows = role.role == "primary", role.role == "idle" and bool(role.leader)
            self._resources.follow(primary=acting, may_act=role.may_act, epoch=role.epoch, follows=follows)

    def _hear_disk(self) -> None:
        """Tell the core what has become durable."""
        while not self._stored.empty():
            self._handle(Stored(self._stored.get_nowait()))
        self._handle(Durable(self._journal.durable_index))
        while not self._fetched.empty():
            self._fetching = False
            snapshot = self._fetched.get_nowait()
            if snapshot and self._replica.pair.role == "primary":
                self._handle(snapshot)

    def _begin(self) -> None:
        self._handle(acts.Begin(self._birth(), down_s=self._alive.silent_s))

    def _tick(self, now_s: float) -> None:
        self._disk_full = self._look_at_disk()
        self._alive.touch()
        if other := self._other():
            self._link.connect(other.links)
            self._link.greet()
        self._handle(Ticked(PairTick(0.0, *self._lag(other is not None), self._tree.lacks)))
        self._compact(now_s)
        self._note_heads()
        self._tell_facts()
        self._tree.tick(self.state)
        leads = self._replica.pair.role == "primary"
        self._boots.tick(leads, time.monotonic())
        serves = leads and self._tree.is_there
        self._sweeping.tick(serves, lambda: needed(self.state, time.time()), now_s)

    def _lag(self, is_pair: bool) -> tuple[int, float]:
        """What the other head lacks of output and of files, in bytes, and for how long it has taken none of it."""
        if not is_pair:
            return 0, 0.0
        output = self._streams.lag()
        in_step, missing, stalled_s = self._tree.lag()
        worst_s = max(output.stalled_s, stalled_s)
        if self._replica.pair.both:
            lacks = [max(1, output.missing_bytes) * (not output.in_step), max(1, missing) * (not in_step)]
            return sum(lacks), worst_s
        if output.missing_bytes < 0 or missing < 0:
            return UNKNOWN_BYTES, worst_s
        return output.missing_bytes + missing * ENTRY_BYTES, worst_s

    def _compact(self, now_s: float) -> None:
        """Have a snapshot made when it is due, of what can't be taken back, and forget what was cut behind one."""
        journal, pair = self._journal, self._replica.pair
        self._compaction.tick(min(pair.commit, journal.durable_index), len(self.state.jobs), now_s)
        if journal.oldest_index != pair.log.cut.idx + 1 and (cut := journal.position(journal.oldest_index - 1)):
            pair.log.cut = cut

    def _tell_facts(self) -> None:
        facts, standings = self._replica.facts, self._resources.standings()
        own = (self._link.why, self._streams.lag().trouble, self._tree.trouble)
        troubles = (*own, *self._boots.troubles, *standings.troubles)
        facts.findings = tuple(trouble for trouble in troubles if trouble)
        if changes := self._file_orphans.now():
            facts.findings += (f"{changes} changes of files were here alone: see 'beo ha orphans' there",)
        facts.orphans = self._orphans.now()
        facts.config = {**self._own, **standings.facts, verify.CLOCK: f"{time.time():.3f}"}

    def _public_keys(self) -> dict[str, str]:
        """The cluster's first keys, as far as this head has them, by name."""
        keys = {"head": self._key}
        for name in birth.KEYS:
            with suppress(BeoError):  # a second head need not have them all
                keys[name] = wire.public_of(self._home.secret(name))
        return keys

    def _facts(self) -> dict[str, str]:
        """What doesn't change of what `beo ha verify` compares."""
        return verify.facts(self._config, self._keys, missing_programs(self._config.ha))

    def _direct_streams(self) -> None:
        """Let the bulk plane do what the role of now means, if that is another one than before."""
        pair = self._replica.pair
        if pair.role == "primary":
            other = self._other()
            wish = (True, pair.epoch, other.bulk if other else "", pair.both)
        else:
            leader = self._place(pair.leader) if pair.leader and pair.leader != self._who.name else None
            wish = (False, pair.acceptor.epoch, leader.bulk if leader else "", False)
        if wish == self._directed:
            return
        self._directed = wish
        leads, epoch, address, both = wish
        if leads:
            self._streams.lead(epoch, address or None, both)
        else:
            self._streams.follow(epoch, address)

    def _direct_tree(self) -> None:
        """Let the process that serves the tree know what the role of now means."""
        pair = self._replica.pair
        leads = pair.role == "primary"
        epoch = pair.epoch if leads else pair.acceptor.epoch
        other = self._link.tree if leads and self._other() else ""
        if self._link.tree:  # what one head has, the other needs, too
            self._tree.want()
        self._tree.direct(leads, epoch, other, leads and pair.both, pair.acts_until_s)

    def _other(self) -> HeadInfo | None:
        """Where the other head is, if there is one."""
        return self._place(self._replica.pair.other)

    def _place(self, name: str) -> HeadInfo | None:
        """Where a head is reached: as the journal has it, or, before it says so, as who.json does."""
        if name in self.state.heads:
            return self.state.heads[name]
        place = self._who.others.get(name)
        return HeadInfo(place.control, place.bulk, place.links) if place else None

    def _hello(self) -> votes.Hello:
        replica = self._replica
        me, role = replica.me, replica.pair.role
        formats = (version.ENTRY_FORMAT, version.STATE_FORMAT)
        voters = replica.pair.audible(self._now().boot_s)
        tree = self._tree.address
        return votes.Hello(
            me.name, self._cluster, me.incarnation, *formats, me.version, role, replica.pair.epoch, voters, tree
        )

    def _take_all(self) -> None:
        """Hand over what has come: first what the other head says, since everything waits for that."""
        for message in self._link.receive():
            self._handle(FromHead(message))
        for peer, key, request, body in self._server.receive():
            self._take(peer, key, request, body)
        for greeting in self._server.strangers():
            log.warning("%s", version.mismatch("a client or worker", greeting))

    def close(self) -> None:
        """Release everything; what was appended is committed."""
        if self._door:
            self._door.close()
        self._resources.close()
        self._streams.stop()
        self._sweeping.stop()
        self._boots.close()
        self._tree.close()
        self._clerk.close()
        self._server.close()
        self._link.close()
        self._compaction.stop()
        self._journal.close()
        self._keep.close()
        self._waker.close()
        os.close(self._lock)

    def _take(self, peer: bytes, key: str, request: int, body: bytes) -> None:
        try:
            message = ms.to_head.decode(body)
        except msgspec.MsgspecError as error:
            answer = BeoError("the head can't read this message", str(error).lower(), "use the head's version of beo")
            self._server.send(peer, request, ms.encode(decide.failure(answer)))
            return
        if isinstance(message, ms.ListEvents) and self._replica.head:
            self._server.send(peer, request, ms.encode(self._events(key, message)))
            return
        if isinstance(message, ms.AskTree) and self._replica.pair.role == "primary":
            self._server.send(peer, request, ms.encode(self._where_tree(key, message)))
            return
        if isinstance(message, ms.AskConsole) and self._replica.pair.role == "primary":
            self._server.send(peer, request, ms.encode(self._console(key, message)))
            return
        if isinstance(message, ms.Submit) and self._disk_full and message.key not in self.state.keys:
            full = Conflict(self._disk_full, "the head takes no new job", "free some space there")
            self._server.send(peer, request, ms.encode(decide.failure(full)))
            return
        account = None
        if isinstance(message, ms.Submit | ms.Vouch) and 0 <= message.uid <= ms.ID_MAX:
            account = self._accounts.look(message.uid)
        self._handle(acts.Asked(peer, request, key, message, account))

    def _handle(self, item: Input) -> None:
        self._perform(self._replica.handle(item, self._now()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Write():
                    self._journal.append_copy(effect.entry)
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
                case ToHead():
                    self._link.send(effect.message)
                case Store():
                    self._keep.store(effect.serial, effect.kept)
                case Became():
                    self._became(effect)
                case Back():
                    self._go_back(effect.position)
                case Install():
                    self._install(effect)
                case FetchSnapshot():
                    self._fetch_snapshot()

    # ---- the role

    def _became(self, effect: Became) -> None:
        self._link.renew()
        if effect.role != "primary":
            log.warning("head %s doesn't act any more: %s", self._who.name, self._replica.pair.why)
            return
        log.info("head %s acts, epoch %s", self._who.name, votes.epoch_text(effect.epoch))
        self._direct_streams()
        for job in self.state.jobs.values():
            if job.attempt and job.state not in ENDED:
                self._begin_files(job.id, job.attempt.number)

    def _go_back(self, position: Position) -> None:
        """Cut off what the primary doesn't have, with a copy aside, and have the state as it was before."""
        self._put_aside(self._journal.tail(position.idx))
        self._journal.truncate_after(position.idx)
        self._handle(Rebuilt(self._replay()))

    def _install(self, effect: Install) -> None:
        self._put_aside(self._journal.tail(self._replica.pair.commit))
        self._journal.install(effect.position, effect.data)

    def _put_aside(self, tail: list[Entry]) -> None:
        if tail:
            log.warning("entries %d to %d are not the primary's: put aside", tail[0].index, tail[-1].index)
            orphans.put_aside(self._home.head / "orphans", tail, time.time())

    def _fetch_snapshot(self) -> None:
        """Read the newest snapshot for the other head, in a thread: that of a large state outlasts a lease."""
        newest = self._journal.newest_snapshot()
        if newest and not self._fetching:
            self._fetching = True
            threading.Thread(target=self._read_snapshot, args=newest, name="snapshot", daemon=True).start()

    def _read_snapshot(self, stamp: Stamp, path: Path) -> None:
        try:
            self._fetched.put(Snapshot(stamp.position, snapshots.read(path, stamp).state))
        except BeoError as error:  # this head has its state and serves on; the other one goes without
            log.error("the other head can't be sent a snapshot: %s", error)
            time.sleep(FETCH_AGAIN_S)
            self._fetched.put(None)
        self._waker.wake()

    def _note_heads(self) -> None:
        """Let clients of this machine, and its next head, know where all heads are; not in this thread: it fsyncs."""
        if self._noted != self.state.heads:
            self._noted = dict(self.state.heads)
            places = {name: Place(info.control, info.bulk, info.links) for name, info in self._noted.items()}
            self._clerk.put(places)

    def _has_ended(self, number: int) -> bool:
        """Whether an attempt of the job has ended, be it that a later one has started meanwhile."""
        job = self.state.jobs.get(number)
        attempt = job.attempt if job else None
        return not job or job.state in ENDED or bool(attempt and (attempt.over or attempt.number > 1))

    def _wake_readers(self) -> None:
        # Once for all attempts that ended in a turn, and never for one that starts: it costs a change of threads.
        if self._readers_wait:
            self._readers_wait = False
            self._streams.wake()

    def _begin_files(self, job: int, attempt: int) -> None:
        found = self.state.jobs.get(job)
        if found and (found.spec.output or found.spec.errors):
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

    def _where_tree(self, key: str, message: ms.AskTree) -> ms.TreeIs | ms.Failed:
        try:
            permissions.check(self.state, decide.user_of(self.state, key), message)
            if self._config.files.backend == "shared":
                what = f"this cluster's files are at {self._config.files.path} on every machine"
                raise Conflict(what, "", "use them there, with ls and cp")
            self._tree.want()
        except BeoError as error:
            return decide.failure(error)
        return ms.TreeIs(self._tree.address if self._tree.is_there else "")

    def _console(self, key: str, message: ms.AskConsole) -> ms.ConsoleIs | ms.Failed:
        try:
            permissions.check(self.state, decide.user_of(self.state, key), message)
            known = booting.find(self.state, message.mac)
            kept = consoles.read(self._home.head / "consoles", known.mac, message.after)
            return msgspec.structs.replace(kept, head=self._who.name)
        except BeoError as error:
            return decide.failure(error)

    def _events(self, key: str, message: ms.ListEvents) -> ms.EventsAre | ms.Failed:
        try:
            user = permissions.check(self.state, decide.user_of(self.state, key), message)
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
                rows.append(views.event_row(entry.index, entry.epoch, event, self.state, user))
        return ms.EventsAre(tuple(rows), self._journal.oldest_index, upto)


def _taken(error: OSError) -> Conflict:
    if error.errno == errno.EADDRNOTAVAIL:
        return Conflict(
            str(error),
            "this machine's address is another now",
            "'beo down', then 'beo head init --listen' with the new one",
        )
    return Conflict(str(error), "another program has the port", "end it, or set another [head] listen in beo.toml")


def main() -> int:
    """Run a head until SIGTERM or SIGINT; 0 for a clean end."""
    sys.setswitchinterval(SWITCH_S)
    return daemon.main("head", lambda: Server(home()))


if __name__ == "__main__":
    sys.exit(main())
