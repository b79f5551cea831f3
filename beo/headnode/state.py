"""The cluster's state, and `apply`: the only thing that changes it.

`apply(event)` never decides. It re-validates what it is told: an event that doesn't fit any more (a start for an
incarnation that has been replaced) is void, not an error. Whoever applies the same events in the same order, a
restarted head, a standby or a test, has the same state, byte for byte (`encode`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from beo import events as ev
from beo.errors import EXIT_HALTED, EXIT_UNRESTORED, Internal
from beo.headnode import bundles
from beo.headnode.model import (
    ENDED,
    LEASHABLE,
    WAITING,
    Ask,
    Attempt,
    Authorized,
    Drain,
    HeadInfo,
    Holding,
    Job,
    Machine,
    Move,
    Node,
    PartState,
    Reservation,
    Signal,
    Submission,
    Token,
    VaultCopy,
)
from beo.headnode.queue import Queue
from beo.votes import PairSettings

LOSSES_MAX = 50  # a job that loses its nodes so often is itself the likely cause; then it is 'lost'
ATTEMPTS_KEPT = 8  # records of the last attempts per job; older ones are only counted
SIGNALS_KEPT = 32  # per job: to be delivered again, and to recognise a repeated request
BOOTS_KEPT = 16  # of a machine's last boots that have joined: none of them joins again
DEAD_KEPT = 64  # former incarnations per node, told "you are dead" for ever
PARTED_MAX = 10_000  # nodes that were forgotten: late words of theirs must not pass for those of a newcomer
KEYS_KEEP_S = 7 * 86_400.0  # a submission key is remembered for so long, and as long as its job's record
KEYS_MAX = 1_000_000  # about 300 MB; beyond, the oldest are forgotten, and nothing as old as they is taken any more
REVOKED_MAX = 10_000  # of the last keys that were revoked: a door must not let one in again
KEYS_DROPPED = 10_000  # at a time: forgetting them one by one would search the table's emptied front each time

DIGEST_ENTRIES = 1_000  # after so many the states of two heads are compared
DIGESTS_KEPT = 4

TOKENS_KEEP_S = 7 * 86_400.0  # beyond its end, so that who comes too late is told why
TOKENS_MAX = 10_000  # about 3 MB; beyond, the oldest are forgotten

CODE_TIME_LIMIT = 124  # as timeout(1)
CODE_CANCELLED = 143  # as if ended by SIGTERM, which is what happened
CODE_LOST = 75  # EX_TEMPFAIL: not the job's own failure
CODE_FILES = 74  # EX_IOERR: of the files that it was to have, or has made
CODE_OUT_OF_MEMORY = 137  # the kernel's SIGKILL


class Image(msgspec.Struct, array_like=True):
    """What a snapshot holds."""

    format: int
    index: int
    cluster: str
    head: str
    epoch: int
    next_job: int
    jobs: list[Job]
    nodes: list[Node]
    authorized: dict[str, Authorized]
    keys: dict[str, Submission]
    keys_from_s: float
    tokens: dict[str, Token] = {}
    next_token: int = 1
    revoked: dict[str, float] = {}
    barred: dict[str, float] = {}
    heads: dict[str, HeadInfo] = {}
    pair: PairSettings = PairSettings()
    born_s: float = 0.0
    down_s: float = 0.0
    takeovers: int = 0
    parted: dict[str, list[str]] = {}
    lost: int = 0
    reservations: list[Reservation] = []
    next_reservation: int = 1
    machines: dict[str, Machine] = {}


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Image)


class State:
    """The whole cluster after the first `index` events."""

    def __init__(self) -> None:
        """Make the state before the first event."""
        self.index = 0
        self.cluster = ""
        self.head = ""
        self.epoch = 0
        self.next_job = 1
        self.jobs: dict[int, Job] = {}
        self.nodes: dict[str, Node] = {}
        self.authorized: dict[str, Authorized] = {}
        self.tokens: dict[str, Token] = {}  # by public key, the oldest first
        self.next_token = 1
        self.keys: dict[str, Submission] = {}  # in the order of submission
        self.revoked: dict[str, float] = {}  # key -> when, the oldest first
        self.barred: dict[str, float] = {}  # user whom no door lets in -> since when
        self.keys_from_s = 0.0  # keys made before this may have been forgotten
        self.heads: dict[str, HeadInfo] = {}
        self.pair = PairSettings()
        self.born_s = 0.0  # wall clock
        self.down_s = 0.0  # in all: nobody acted
        self.takeovers = 0  # how often another head has begun to act than the one before
        self.parted: dict[str, list[str]] = {}  # node that was forgotten -> its incarnations, the oldest first
        self.lost = 0  # how often a node was lost, since the cluster began
        self.reservations: dict[str, Reservation] = {}  # by name, in the order of making
        self.next_reservation = 1
        self.machines: dict[str, Machine] = {}  # that boot from the heads, by MAC address
        # Derived, rebuilt from the above:
        self.queue = Queue()
        self.live: dict[str, dict[tuple[int, int], tuple[Job, Attempt, PartState]]] = {}  # per node, not over
        self.held = 0  # jobs that wait to be released
        self.node_keys: dict[str, str] = {}  # node -> the key that speaks for it alone
        self.running = 0
        self.priorities: Counter[int] = Counter()  # of the jobs that run
        self.making_room: dict[int, tuple[int, float]] = {}  # job that is to halt -> for which one, since when
        self.admins: set[str] = set()
        self.holdings: dict[str, Holding] = {}  # by user, of those who have jobs that run or wait
        # To be compared with the other head's: what was touched since the last whole DIGEST_ENTRIES, and its digests.
        self.digests: dict[int, bytes] = {}
        self._touched: tuple[set[int], set[str]] = set(), set()
        self._touched_from = 0
        self.changed: set[int] = set()  # jobs that changed since the core looked last
        self._environments: dict[frozenset[tuple[str, str]], dict[str, str]] = {}

    # ---- snapshots

    def encode(self) -> bytes:
        """Encode everything that isn't derived; equal states give equal bytes."""
        return _encoder.encode(
            Image(
                ev.FORMAT,
                self.index,
                self.cluster,
                self.head,
                self.epoch,
                self.next_job,
                list(self.jobs.values()),
                list(self.nodes.values()),
                self.authorized,
                self.keys,
                self.keys_from_s,
                self.tokens,
                self.next_token,
                self.revoked,
                self.barred,
                self.heads,
                self.pair,
                self.born_s,
                self.down_s,
                self.takeovers,
                self.parted,
                self.lost,
                list(self.reservations.values()),
                self.next_reservation,
                self.machines,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> State:
        """Rebuild a state from `encode`'s bytes; raises msgspec.MsgspecError for others."""
        try:
            image = _decoder.decode(data)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(f"no snapshot: {error}") from None
        state = cls()
        state.index, state.cluster, state.head = image.index, image.cluster, image.head
        state.epoch, state.next_job = image.epoch, image.next_job
        state.authorized, state.keys_from_s = image.authorized, image.keys_from_s
        state.admins = {found.user for found in image.authorized.values() if found.role == "admin"}
        state.revoked, state.barred = dict(sorted(image.revoked.items(), key=lambda item: item[1])), image.barred
        state.keys = dict(sorted(image.keys.items(), key=lambda item: item[1].job))
        state.tokens = dict(sorted(image.tokens.items(), key=lambda item: item[1].number))
        state.next_token, state._touched_from = image.next_token, image.index
        state.heads, state.pair = dict(sorted(image.heads.items())), image.pair
        state.born_s, state.down_s, state.takeovers = image.born_s, image.down_s, image.takeovers
        state.parted, state.lost = image.parted, image.lost
        state.reservations = {one.name: one for one in image.reservations}
        state.next_reservation = image.next_reservation
        state.machines = image.machines
        state.node_keys = {known.node: key for key, known in state.authorized.items() if known.node}
        state.nodes = {node.name: node for node in image.nodes}
        for job in image.jobs:
            state._share_environment(job)
            state.jobs[job.id] = job
            if job.state in WAITING:
                state._await(job)
            elif job.state not in ENDED:
                state.running += 1
                state.priorities[job.spec.priority] += 1
                if job.move and job.move.for_job and job.state == "running":
                    state.making_room[job.id] = job.move.for_job, job.move.time_s
                state._count(job.user, jobs=1)
            if job.attempt and job.state not in ENDED:
                for part in job.attempt.parts:
                    if part.state in ("live", "reserved"):
                        state.live.setdefault(part.node, {})[job.id, job.attempt.number] = (job, job.attempt, part)
                        state._count(job.user, slots=part.places * job.spec.slots_per_place)
        return state

    def _share_environment(self, job: Job) -> None:
        # Most jobs of a user have the same environment: kept once, it is the greater part of a queue's memory.
        env = job.spec.env
        if env:
            shared = self._environments.setdefault(frozenset(env.items()), env)
            if shared is not env:
                job.spec = msgspec.structs.replace(job.spec, env=shared)
            if len(self._environments) > 1_000:  # of distinct ones; those in use stay alive through their jobs
                self._environments.clear()

    # ---- questions

    @property
    def waiting(self) -> int:
        """How many jobs wait, held ones too."""
        return len(self.queue) + self.held

    def is_dead(self, name: str, incarnation: str) -> bool:
        """Whether an incarnation of a node is over: lost, followed by another one, or forgotten with its node."""
        node = self.nodes.get(name)
        if not node:
            return incarnation in self.parted.get(name, ())
        return incarnation in node.dead or (incarnation == node.incarnation and node.state != "up")

    def live_parts(self, node: str) -> dict[tuple[int, int], tuple[Job, Attempt, PartState]]:
        """Return what is placed on a node and not over, by (job, attempt)."""
        return self.live.get(node, {})

    def jobs_with(self, node: str) -> list[int]:
        """Return the jobs that have not ended and need a node on record: START names all nodes of an attempt."""
        return [
            job.id
            for job in self.jobs.values()
            if job.attempt and job.state in ("running", "ending") and any(p.node == node for p in job.attempt.parts)
        ]

    # ---- changes

    def apply(self, event: ev.Event) -> None:
        """Take the next event. Deterministic; void where it doesn't fit any more."""
        self.index += 1
        _APPLY[type(event)](self, event)
        jobs, nodes = self._touched
        if job := getattr(event, "job", 0):
            jobs.add(job)
        elif node := getattr(event, "node", ""):
            nodes.add(node)
        if not self.index % DIGEST_ENTRIES:
            self._digest()

    def _digest(self) -> None:
        """Take the digest of what the last entries have touched: cheap, and any difference is in what they touched."""
        jobs = [self.jobs[number] for number in sorted(self._touched[0]) if number in self.jobs]
        nodes = [self.nodes[name] for name in sorted(self._touched[1]) if name in self.nodes]
        rest: tuple[object, ...] = (self.epoch, self.next_job, len(self.jobs), len(self.keys), self.running, self.held)
        rest = (*rest, self.pair, *self.reservations.values())
        if self._touched_from == self.index - DIGEST_ENTRIES:  # else it doesn't know all of them
            digest = blake2b(_encoder.encode((jobs, nodes, rest)), digest_size=16).digest()
            self.digests[self.index] = digest
            for old in sorted(self.digests)[:-DIGESTS_KEPT]:
                del self.digests[old]
        self._touched = set(), set()
        self._touched_from = self.index

    def _born(self, event: ev.Born) -> None:
        if self.index != 1:
            raise Internal(
                f"entry {self.index} says that the cluster is born", "only entry 1 can", "restore the journal"
            )
        if event.format > ev.FORMAT:
            raise Internal(
                f"the journal has format {event.format}", f"this beo reads up to {ev.FORMAT}", "install a newer beo"
            )
        self.cluster, self.head, self.born_s = event.cluster, event.head, event.time_s

    def _epoch_began(self, event: ev.EpochBegan) -> None:
        if event.epoch > self.epoch:
            self.takeovers += event.head != self.head
            self.down_s += max(0.0, event.down_s)
            self.epoch, self.head = event.epoch, event.head

    def _head_joined(self, event: ev.HeadJoined) -> None:
        self.heads[event.head] = HeadInfo(event.control, event.bulk, event.links, event.key)

    def _head_left(self, event: ev.HeadLeft) -> None:
        if event.head != self.head:
            self.heads.pop(event.head, None)

    def _pair_set(self, event: ev.PairSet) -> None:
        self.pair = event.settings

    def _key_authorized(self, event: ev.KeyAuthorized) -> None:
        gids = (event.gid, *(gid for gid in event.groups if gid != event.gid)) if event.gid >= 0 else ()
        self._authorize(event.key, Authorized(event.user, event.role, event.uid, event.node, gids))

    def _authorize(self, key: str, whom: Authorized) -> None:
        self._revoke(key)
        if whom.node:
            self._revoke(self.node_keys.get(whom.node, ""))
            self.node_keys[whom.node] = key
        self.authorized[key] = whom
        if whom.role == "admin":
            self.admins.add(whom.user)

    def _revoke(self, key: str) -> None:
        known = self.authorized.pop(key, None)
        if known and known.node:
            del self.node_keys[known.node]
        if known and known.role == "admin":
            self.admins = {found.user for found in self.authorized.values() if found.role == "admin"}

    def _key_revoked(self, event: ev.KeyRevoked) -> None:
        self._revoke(event.key)
        token = self.tokens.get(event.key)
        if token:
            self.tokens[event.key] = msgspec.structs.replace(token, gone=True)

    def _keys_revoked(self, event: ev.KeysRevoked) -> None:
        for key in event.keys:
            if key in self.authorized:
                self._revoke(key)
                self.revoked[key] = event.time_s
        for key in list(islice(self.revoked, max(0, len(self.revoked) - REVOKED_MAX))):
            del self.revoked[key]
        if event.barred:
            self.barred[event.user] = event.time_s

    def _user_allowed(self, event: ev.UserAllowed) -> None:
        self.barred.pop(event.user, None)

    def _token_made(self, event: ev.TokenMade) -> None:
        if event.number != self.next_token or event.key in self.tokens or event.key in self.authorized:
            return
        self.next_token += 1
        old = [key for key, token in self.tokens.items() if token.expires_s < event.time_s - TOKENS_KEEP_S]
        for key in [*old, *islice(self.tokens, max(0, len(self.tokens) - len(old) + 1 - TOKENS_MAX))]:
            self.tokens.pop(key, None)
        self.tokens[event.key] = Token(
            event.number, event.role, event.user, event.uid, event.uses, event.expires_s, event.maker
        )

    def _enrolled(self, event: ev.Enrolled) -> None:
        token = self.tokens.get(event.token)
        if not token or token.gone or len(token.used) >= token.uses or event.key in token.used:
            return
        self.tokens[event.token] = msgspec.structs.replace(token, used=(*token.used, event.key))
        self._authorize(event.key, Authorized(token.user, token.role, token.uid, event.node))

    def _machine_leased(self, event: ev.MachineLeased) -> None:
        known = self.machines.get(event.mac) or Machine(event.mac, event.name)
        self._put_machine(known, address=event.address, seen_s=event.time_s)

    def _machine_opened(self, event: ev.MachineOpened) -> None:
        if known := self.machines.get(event.mac):
            self._put_machine(known, opened_s=event.time_s, seen_s=event.time_s, opened_from=event.address)

    def _machine_asked(self, event: ev.MachineAsked) -> None:
        if known := self.machines.get(event.mac):
            self._put_machine(known, asked=Ask(event.boot, event.key, event.time_s), seen_s=event.time_s)

    def _machine_approved(self, event: ev.MachineApproved) -> None:
        known = self.machines.get(event.mac)
        if known and known.asked and known.asked.key == event.key:
            self._put_machine(known, approved=event.key)

    def _machine_joined(self, event: ev.MachineJoined) -> None:
        known = self.machines.get(event.mac)
        if not known or event.boot in known.boots or event.key in self.authorized:
            return
        self._revoke(known.key)  # its former boot's, be it for another name
        boots = (*known.boots[-(BOOTS_KEPT - 1) :], event.boot)
        words = {"key": event.key, "boots": boots, "joined_s": event.time_s, "seen_s": event.time_s}
        self._put_machine(known, **words, opened_s=0.0, asked=None, approved="")
        self._authorize(event.key, Authorized("worker", "worker", -1, event.node))

    def _machine_set(self, event: ev.MachineSet) -> None:
        known = self.machines.get(event.mac) or Machine(event.mac, event.name)
        words = {"name": event.name, "address": event.address, "image": event.image}
        self._put_machine(known, **words, policy=event.policy, tag=event.tag, power=event.power)

    def _machine_forgotten(self, event: ev.MachineForgotten) -> None:
        if known := self.machines.pop(event.mac, None):
            self._revoke(known.key)

    def _put_machine(self, known: Machine, **words: Any) -> None:
        self.machines[known.mac] = msgspec.structs.replace(known, **words)

    def _submitted(self, event: ev.Submitted) -> None:
        if event.job != self.next_job or event.key in self.keys:
            return
        self.next_job += 1
        job = Job(event.job, event.key, event.user, event.uid, event.gid, event.groups, event.spec, event.time_s)
        self._share_environment(job)
        self.jobs[job.id] = job
        self.keys[event.key] = Submission(job.id, event.time_s)
        if len(self.keys) > KEYS_MAX:
            self._drop_keys(list(islice(self.keys, KEYS_DROPPED)))
        if event.hold:
            job.hold, job.held_by = "owner", job.user
        self.changed.add(job.id)
        self._await(job)

    def _await(self, job: Job) -> None:
        """Let a job wait: in the queue, or to be released."""
        self._count(job.user, waiting=1)
        if job.hold:
            job.state = "held"
            self.held += 1
        else:
            job.state = "queued"
            self.queue.add(job)

    def _await_no_more(self, job: Job) -> None:
        self._count(job.user, waiting=-1)
        if job.state == "held":
            self.held -= 1
        else:
            self.queue.remove(job)

    def _drop_keys(self, keys: list[str]) -> None:
        for key in keys:
            self.keys_from_s = max(self.keys_from_s, self.keys.pop(key).time_s)

    def _started(self, event: ev.Started) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state != "queued" or event.attempt != job.attempt_number + 1:
            return
        for placed in event.parts:
            node = self.nodes.get(placed.node)
            if not node or node.state != "up" or node.incarnation != placed.incarnation:
                return
        parts = [
            PartState(
                p.node,
                p.incarnation,
                p.first_rank,
                p.ranks,
                "reserved" if job.spec.batch and n and not event.whole else "live",
                more=p.more,
            )
            for n, p in enumerate(event.parts)
        ]
        leashed = job.spec.requeue == "auto" and all(
            self.nodes[p.node].facts.get("contain") in LEASHABLE for p in event.parts
        )
        if not job.attempt or not job.attempt.moved:
            job.since = event.attempt
        attempt = Attempt(event.attempt, self.index, event.nonce, event.time_s, parts, leashed)
        job.attempts = [*job.attempts[-(ATTEMPTS_KEPT - 1) :], attempt]
        job.state, job.reason, job.move = "running", "", None
        self.changed.add(job.id)
        self._await_no_more(job)
        self.running += 1
        self.priorities[job.spec.priority] += 1
        self._count(job.user, jobs=1)
        for part in parts:
            self._hold(job, attempt, part)

    def _hold(self, job: Job, attempt: Attempt, part: PartState) -> None:
        node = self.nodes[part.node]
        node.used_slots += part.places * job.spec.slots_per_place
        node.used_bytes += part.places * job.spec.mem_bytes
        self.live.setdefault(part.node, {})[job.id, attempt.number] = (job, attempt, part)
        self._count(job.user, slots=part.places * job.spec.slots_per_place)

    def _count(self, user: str, jobs: int = 0, slots: int = 0, waiting: int = 0) -> None:
        held = self.holdings.setdefault(user, Holding())
        held.jobs += jobs
        held.slots += slots
        held.waiting += waiting
        if not held.jobs and not held.slots and not held.waiting:
            del self.holdings[user]

    def _release(self, job: Job, attempt: Attempt, part: PartState) -> None:
        node = self.nodes[part.node]
        node.used_slots -= part.places * job.spec.slots_per_place
        node.used_bytes -= part.places * job.spec.mem_bytes
        self._count(job.user, slots=-part.places * job.spec.slots_per_place)
        placed = self.live[part.node]
        del placed[job.id, attempt.number]
        if not placed:
            del self.live[part.node]

    def _find_part(self, job_id: int, number: int, node: str) -> tuple[Job, Attempt, PartState] | None:
        found = self.live_parts(node).get((job_id, number))
        return found if found and found[2].state == "live" else None

    def _part_ended(self, event: ev.PartEnded) -> None:
        found = self._find_part(event.job, event.attempt, event.node)
        if not found:
            return
        job, attempt, part = found
        part.result = event.result
        told, ranks = len(event.result.ranks), part.ranks
        if job.spec.batch:  # its script runs on the first node; the others have a warden for its steps
            ranks = 1 if part is attempt.parts[0] else 0
        cause = _cause(event.result, event.node)
        if not event.result.reason and told < ranks:  # a job is done when every rank was seen to end well
            cause = ("lost", CODE_LOST, f"{event.node} told the end of {told} ranks of {ranks}")
        self._end_part(job, attempt, part, "ended", cause, event.time_s)

    def _part_gone(self, event: ev.PartGone) -> None:
        found = self._find_part(event.job, event.attempt, event.node)
        if found:
            self._lose(*found, f"{event.node}: {event.reason}", event.time_s)

    def _lose(self, job: Job, attempt: Attempt, part: PartState, reason: str, time_s: float) -> None:
        self._end_part(job, attempt, part, "gone", ("lost", CODE_LOST, reason), time_s)

    def _end_part(
        self, job: Job, attempt: Attempt, part: PartState, state: str, cause: tuple[str, int, str] | None, time_s: float
    ) -> None:
        part.state = state
        self._release(job, attempt, part)
        if cause:
            _blame(attempt, cause)
        self.changed.add(job.id)
        if not attempt.over:
            if attempt.cause:
                job.state = "ending"
            return
        for other in attempt.parts:
            if other.state == "reserved":
                other.state = "ended"
                self._release(job, attempt, other)
        self._conclude(job, attempt, time_s)

    def _conclude(self, job: Job, attempt: Attempt, time_s: float) -> None:
        attempt.ended_s = time_s
        self.running -= 1
        self.priorities[job.spec.priority] -= 1
        if not self.priorities[job.spec.priority]:
            del self.priorities[job.spec.priority]
        self.making_room.pop(job.id, None)
        self._count(job.user, jobs=-1)
        kind, code, text = attempt.cause or _verdict(attempt)
        attempt.outcome = text or kind
        job.losses += kind == "lost"
        is_unrestored = attempt.number > 1 and kind in ("", "rank") and code == EXIT_UNRESTORED
        move, job.move = job.move, None  # one that isn't done is off: what the attempt leaves behind is where it was
        if job.requeue and not job.cancel:
            attempt.outcome = job.reason = job.requeue
            job.requeue = ""
            self._await(job)
        elif job.cancel:
            self._end_job(job, "cancelled", CODE_CANCELLED, job.cancel, "beo", time_s)
        elif reason := _goes_on(job, attempt, move, kind, code):
            attempt.outcome = job.reason = reason
            attempt.moved = True
            if move and move.attempt == attempt.number:
                attempt.left, job.move = move.leave, move
            self._await(job)
        elif is_unrestored and _has_copies(job, attempt) and job.losses < LOSSES_MAX:
            attempt.outcome = job.reason = "its checkpoint was lost: it goes on with the copy at the head"
            attempt.void = True
            job.losses += 1
            self._await(job)
        elif kind != "lost":
            text = "its checkpoint is lost, and no whole copy of it is at the head" if is_unrestored else text
            by = "beo" if kind in ("time limit", "staging", "collecting") else "job"
            self._end_job(job, "failed" if code else "done", code, text, by, time_s)
        elif job.spec.requeue == "never" or job.losses >= LOSSES_MAX:
            self._end_job(job, "lost", CODE_LOST, text, "beo", time_s)
        else:
            job.reason = f"attempt {attempt.number} was lost ({text})"
            self._await(job)

    def _end_job(self, job: Job, state: str, code: int, reason: str, by: str, time_s: float) -> None:
        job.state, job.exit_code, job.reason, job.code_by, job.ended_s = state, code, reason, by, time_s
        if job.hold == "owner":
            job.hold = job.held_by = ""

    def _cancel_requested(self, event: ev.CancelRequested) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state in ENDED or job.cancel:
            return
        job.cancel = event.reason
        self.changed.add(job.id)
        if job.state in WAITING:
            self._await_no_more(job)
            self._end_job(job, "cancelled", CODE_CANCELLED, event.reason, "beo", event.time_s)
        else:
            job.state = "ending"

    def _job_held(self, event: ev.JobHeld) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state not in WAITING or job.hold == "admin":
            return
        self._await_no_more(job)
        job.hold, job.held_by = event.by, event.user
        self._await(job)
        self.changed.add(job.id)

    def _job_released(self, event: ev.JobReleased) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state != "held":
            return
        self._await_no_more(job)
        job.hold = job.held_by = ""
        self._await(job)
        self.changed.add(job.id)

    def _requeue_requested(self, event: ev.RequeueRequested) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state in WAITING or job.attempt_number != event.attempt or job.requeue:
            return
        if job.state not in ENDED and job.cancel:
            return
        if event.hold:
            job.hold, job.held_by = event.hold, event.user
        self.changed.add(job.id)
        reason = event.reason or f"requeued by {event.user}"
        if job.state not in ENDED:
            job.state, job.requeue = "ending", reason
            return
        job.cancel, job.reason, job.exit_code, job.code_by, job.ended_s = "", reason, -1, "job", 0.0
        self._await(job)

    def _move_requested(self, event: ev.MoveRequested) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state != "running" or job.attempt_number != event.attempt:
            return
        if event.for_job:
            self.making_room[job.id] = event.for_job, event.time_s
        job.move = Move(event.attempt, event.leave, event.to, event.why, event.user, event.for_job, event.time_s)
        self.changed.add(job.id)

    def _vault_copied(self, event: ev.VaultCopied) -> None:
        job = self.jobs.get(event.job)
        attempt = next((one for one in job.attempts if one.number == event.attempt), None) if job else None
        if not job or not attempt or not any(part.node == event.node for part in attempt.parts):
            return
        where = event.attempt, len(attempt.parts), event.node
        one = VaultCopy(*where, event.bundle, event.size_bytes, event.time_s, event.checkpoints)
        job.copies = bundles.kept([*job.copies, one])
        self.changed.add(job.id)

    def _process_signalled(self, event: ev.ProcessSignalled) -> None:
        """Nothing changes: the entry says who did it."""

    def _priority_set(self, event: ev.PrioritySet) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state not in WAITING:
            return
        self._await_no_more(job)
        job.spec = msgspec.structs.replace(job.spec, priority=event.priority)
        self._await(job)
        self.changed.add(job.id)

    def _signal_requested(self, event: ev.SignalRequested) -> None:
        job = self.jobs.get(event.job)
        if not job or job.state in ENDED or event.attempt != job.attempt_number:
            return
        if event.serial != job.signal_serial + 1:
            return
        asked = Signal(event.serial, event.attempt, event.signal, event.key)
        job.signals = [*job.signals[-(SIGNALS_KEPT - 1) :], asked]
        self.changed.add(job.id)

    def _node_joined(self, event: ev.NodeJoined) -> None:
        old = self.nodes.get(event.node)
        node = Node(
            event.node,
            event.incarnation,
            event.boot,
            event.address,
            event.key,
            event.slots,
            event.mem_bytes,
            event.facts,
            joined_s=event.time_s,
        )
        if self.is_dead(event.node, event.incarnation):
            return
        if not old:
            node.dead = self.parted.pop(event.node, [])
        else:
            node.used_slots, node.used_bytes, node.drain = old.used_slots, old.used_bytes, old.drain
            if event.incarnation == old.incarnation:
                node.joined_s, node.dead = old.joined_s, old.dead
                self.nodes[node.name] = node
                return
            node.dead = [*old.dead[-(DEAD_KEPT - 1) :], old.incarnation]
        self.nodes[node.name] = node
        alive = set(event.running)
        same_boot = bool(old and old.boot == event.boot)
        for key, (job, attempt, part) in list(self.live_parts(node.name).items()):
            if key in alive or (part.state == "reserved" and same_boot):  # reserved slots have nothing that could die
                part.incarnation = node.incarnation
            else:
                self._lose_part(job, attempt, part, f"{node.name} came back without it", event.time_s)

    def _lose_part(self, job: Job, attempt: Attempt, part: PartState, reason: str, time_s: float) -> None:
        if part.state == "live":
            self._lose(job, attempt, part, reason, time_s)
        elif part.state == "reserved" and not attempt.over:  # a batch job's further node: the allocation is broken
            _blame(attempt, ("lost", CODE_LOST, reason))
            job.state = "ending"
            self.changed.add(job.id)

    def _node_lost(self, event: ev.NodeLost) -> None:
        node = self.nodes.get(event.node)
        if not node or node.incarnation != event.incarnation or node.state != "up":
            return
        node.state, node.lost = "lost", event.reason
        self.lost += 1
        for job, attempt, part in list(self.live_parts(node.name).values()):
            if attempt.leashed:  # its leash has run out with the node's lease: the kernel has ended it
                self._lose_part(job, attempt, part, f"{node.name} was lost", event.time_s)

    def _node_gone(self, event: ev.NodeGone) -> None:
        node = self.nodes.get(event.node)
        if not node or node.incarnation != event.incarnation or node.state != "lost":
            return
        for job, attempt, part in list(self.live_parts(node.name).values()):
            self._lose_part(job, attempt, part, f"{event.user} said that {node.name} is off", event.time_s)

    def _node_drained(self, event: ev.NodeDrained) -> None:
        node = self.nodes.get(event.node)
        if node:
            node.drain = Drain(event.user, event.reason, event.time_s)

    def _node_resumed(self, event: ev.NodeResumed) -> None:
        node = self.nodes.get(event.node)
        if node:
            node.drain = None

    def _node_forgotten(self, event: ev.NodeForgotten) -> None:
        """Nothing of it lives. Its incarnations are remembered: one's late words could replace the next that joins."""
        node = self.nodes.get(event.node)
        if node and node.incarnation == event.incarnation and node.state == "lost" and not self.jobs_with(node.name):
            del self.nodes[event.node]
            self.parted[node.name] = [*node.dead[-(DEAD_KEPT - 1) :], node.incarnation]
            if len(self.parted) > PARTED_MAX:
                del self.parted[next(iter(self.parted))]
            self._revoke(self.node_keys.get(event.node, ""))

    def _reserved(self, event: ev.Reserved) -> None:
        if event.number != self.next_reservation or event.name in self.reservations:
            return
        self.next_reservation += 1
        whose = (event.number, event.key, event.name, event.user, event.users)
        self.reservations[event.name] = Reservation(
            *whose, event.nodes, event.chosen, event.start_s, event.end_s, event.kill
        )

    def _reservation_moved(self, event: ev.ReservationMoved) -> None:
        known = self.reservations.get(event.name)
        if known:
            self.reservations[event.name] = msgspec.structs.replace(known, nodes=event.nodes)

    def _reservation_ended(self, event: ev.ReservationEnded) -> None:
        """Its jobs are like any others then, ended ones too: another reservation may get the name."""
        if not self.reservations.pop(event.name, None):
            return
        for job in self.jobs.values():
            if job.spec.reservation != event.name:
                continue
            waits = job.state in WAITING
            if waits:
                self._await_no_more(job)
            job.spec = msgspec.structs.replace(job.spec, reservation="")
            if waits:
                self._await(job)
            self.changed.add(job.id)

    def _forgotten(self, event: ev.Forgotten) -> None:
        for number in event.jobs:
            job = self.jobs.get(number)
            if job and job.state in ENDED:
                del self.jobs[number]
        stale = []
        for key, submission in self.keys.items():
            if submission.job in self.jobs or submission.time_s > event.time_s - KEYS_KEEP_S:
                break  # what stands behind it may go another time: there is a limit on them all
            stale.append(key)
        self._drop_keys(stale)


def _has_copies(job: Job, attempt: Attempt) -> bool:
    """Whether an attempt could begin with copies at the head, and this one hasn't begun with the same in vain."""
    whole = bundles.complete(job.copies)
    before = next((one for one in job.attempts if one.number == attempt.number - 1), None)
    return bool(whole) and not (before and before.void and whole[0].attempt < attempt.number)


def _goes_on(job: Job, attempt: Attempt, move: Move | None, kind: str, code: int) -> str:
    """Why a job goes on as another attempt, though nothing was lost; "": it doesn't.

    A program that takes checkpoints with beo says so by its exit code. One that has its own gets a signal, and goes on
    unless it says that it is done.
    """
    if kind not in ("", "rank", "time limit"):
        return ""
    has_halted = code == EXIT_HALTED or (job.spec.signal and code)
    if has_halted and move and move.attempt == attempt.number:
        return move.reason
    if has_halted and job.spec.goes_on and (kind == "time limit" or code == EXIT_HALTED):
        return "its time was up: it goes on"
    return ""


def _blame(attempt: Attempt, cause: tuple[str, int, str]) -> None:
    """Note what ended an attempt: the first thing, or a loss, by which MPI ends other ranks before a lease is over."""
    if not attempt.cause or (cause[0], attempt.cause[0]) == ("lost", "rank"):
        attempt.cause = cause


def _cause(result: ev.PartResult, node: str) -> tuple[str, int, str] | None:
    """Say what a part's end means for the attempt, or None: nothing by itself."""
    if result.reason in ("", "peer", "ended"):
        return None
    if result.reason in ("silence", "lost"):
        return ("lost", CODE_LOST, result.note or f"{node}: {result.reason}")
    if result.reason == "time limit":
        return ("time limit", CODE_TIME_LIMIT, result.note or "time limit")
    if result.reason in ("staging", "collecting"):
        return (result.reason, CODE_FILES, result.note or f"{node}: {result.reason}")
    if result.reason == "out of memory":
        return ("out of memory", CODE_OUT_OF_MEMORY, result.note or f"out of memory on {node}")
    statuses = {r.rank: r.status for r in result.steps} | {r.rank: r.status for r in result.ranks}
    status = statuses.get(result.culprit) or 1
    return ("rank", status, result.note or f"rank {result.culprit} ended with {status}")


def _verdict(attempt: Attempt) -> tuple[str, int, str]:
    """The outcome of an attempt that nothing ended: the lowest failed rank's status, or 0. Spawned ones count too."""
    results = [part.result for part in attempt.parts if part.result]
    failed = [(r.rank, r.status) for result in results for r in result.ranks if r.status]
    failed += [(r.rank, r.status) for result in results for r in result.steps if r.status and r.spawned]
    if not failed:
        return ("", 0, "")
    rank, status = min(failed)
    ranks = sum(part.ranks for part in attempt.parts)
    ranks += any(r.spawned for result in results for r in result.steps)
    return ("", status, f"rank {rank} exited with {status}" if ranks > 1 else f"exit code {status}")


_APPLY: dict[type, Callable[[State, Any], None]] = {
    ev.Born: State._born,
    ev.EpochBegan: State._epoch_began,
    ev.KeyAuthorized: State._key_authorized,
    ev.KeysRevoked: State._keys_revoked,
    ev.UserAllowed: State._user_allowed,
    ev.Submitted: State._submitted,
    ev.Started: State._started,
    ev.PartEnded: State._part_ended,
    ev.PartGone: State._part_gone,
    ev.CancelRequested: State._cancel_requested,
    ev.SignalRequested: State._signal_requested,
    ev.NodeJoined: State._node_joined,
    ev.NodeLost: State._node_lost,
    ev.NodeGone: State._node_gone,
    ev.Forgotten: State._forgotten,
    ev.JobHeld: State._job_held,
    ev.JobReleased: State._job_released,
    ev.RequeueRequested: State._requeue_requested,
    ev.PrioritySet: State._priority_set,
    ev.NodeDrained: State._node_drained,
    ev.NodeResumed: State._node_resumed,
    ev.NodeForgotten: State._node_forgotten,
    ev.KeyRevoked: State._key_revoked,
    ev.TokenMade: State._token_made,
    ev.Enrolled: State._enrolled,
    ev.ProcessSignalled: State._process_signalled,
    ev.HeadJoined: State._head_joined,
    ev.HeadLeft: State._head_left,
    ev.PairSet: State._pair_set,
    ev.MoveRequested: State._move_requested,
    ev.VaultCopied: State._vault_copied,
    ev.Reserved: State._reserved,
    ev.ReservationMoved: State._reservation_moved,
    ev.ReservationEnded: State._reservation_ended,
    ev.MachineLeased: State._machine_leased,
    ev.MachineOpened: State._machine_opened,
    ev.MachineAsked: State._machine_asked,
    ev.MachineApproved: State._machine_approved,
    ev.MachineJoined: State._machine_joined,
    ev.MachineSet: State._machine_set,
    ev.MachineForgotten: State._machine_forgotten,
}
