"""The agent's core: what a worker does about what it is told. Pure; the agent (agent.py) carries the effects out.

An attempt's part goes through: asked for (START) → at a warden → over (its result or its loss is known, its output is
with the head, and the head is told again and again) → committed, and forgotten. All that must outlive the agent is kept
by others: ranks, output and results by the wardens, the orders and the memory of attempts by files (memory.py).

What is told of a part must be true for ever: *ended* and *gone* are said only when nothing of it is alive, and a node
that isn't sure what it runs (a warden has not told its state, or was told to exit and hasn't gone) says nothing at all.

Of several heads one acts, the *primary*: that from which a command of the highest epoch came last. Every head gets the
signs of life, so that whoever takes over knows at once who is there and what runs; all else is told to the primary.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from beo import messages as ms
from beo.results import PartResult
from beo.settings import WorkerConfig
from beo.worker import told
from beo.worker.acts import (
    Answer,
    Begin,
    Copied,
    Copy,
    Drop,
    Effect,
    Empty,
    Epoch,
    Follow,
    FromHead,
    FromPeer,
    FromWarden,
    Input,
    Launch,
    LaunchFailed,
    Learned,
    LookInside,
    Node,
    Now,
    Reborn,
    Reconnected,
    Remember,
    Rises,
    Say,
    Seen,
    Ship,
    Shipped,
    StdinCame,
    StdinTaken,
    Tick,
    ToHead,
    ToPeer,
    ToWarden,
    WardenClosed,
)

REPORT_S = 1.0  # an end that the head hasn't acknowledged is told again after this
PROBE_S = 1.0  # at most, between two questions to the agents of other parts
PROBES = 4  # questions to an agent before its silence counts
SEEN_MAX = 100_000  # attempts remembered at once; the head's `settled` keeps it near the number of live ones
IDLE_MAX = 64  # wardens kept for reuse
LEASE_MAX_S = 86_400.0  # the longest that a cluster's settings allow
NS = 1_000_000_000


class Held:
    """One part of an attempt, as this node knows it."""

    def __init__(self, order: ms.Start, leashed: bool, here: str, now: Now) -> None:
        """Take its order; here: this node's name."""
        self.order = order
        self.leashed = leashed
        self.key = (order.job, order.attempt)
        self.warden = 0  # 0: none yet, or none any more
        self.end: PartResult | str | None = None  # how it ended, or why it is gone
        self.halts = False  # it is asked to halt: anything else would be in the place of that word
        self.leaves = False  # it is asked to go on where none of its nodes is
        self.copying = False
        self.copied: Copied | None = None
        self.shipping = False
        self.shipped = False
        self.reported_ns = 0
        self.spool_bytes = 0
        self.peers = {peer.node: peer for peer in order.parts}
        self.heard_ns = {name: now.boot_ns for name in self.peers if name != here}  # the other parts' agents

    @property
    def over(self) -> bool:
        """Nothing of it is alive, and everything about it can be told."""
        return self.end is not None and not self.shipping and not self.copying

    @property
    def alive(self) -> bool:
        """Something of it may be alive."""
        return self.end is None


class Worker:
    """The core. `handle` is its only verb, but for `launched`."""

    def __init__(self, node: Node, config: WorkerConfig, nonce: Callable[[], str]) -> None:
        """nonce(): a fresh random name for an incarnation."""
        self.node = node
        self._config = config
        self._nonce = nonce
        self._effects: list[Effect] = []
        self.incarnation = ""
        self.primary = ""  # by which connection the head that acts is reached
        self._followed = (0, "")  # the epoch whose head has said where its bulk plane is, and where; see _follow
        self._epoch = 0
        self._joined = False
        self._learned = 0  # how often something was learned of this node, see Join
        self._dying = False  # this incarnation is over; waiting for its leashed parts to be gone
        self._lease_ns = 0  # CLOCK_BOOTTIME until which the head counts on this incarnation; 0: it hasn't said
        self._settled = 0  # starts up to this index are all answered,
        self._settled_by = 0  # as the head of this epoch said
        self.seen: dict[tuple[int, int], int] = {}  # (job, attempt) -> index; 0: not known, so kept for good
        self.held: dict[tuple[int, int], Held] = {}
        self._at: dict[int, Held] = {}  # warden -> what it holds
        self._unknown: set[int] = set()  # wardens of which it isn't known whether they hold something
        self.idle: list[int] = []
        self._pinged_ns = 0
        self._probed_ns = 0

    def handle(self, item: Input, now: Now) -> list[Effect]:
        """Take one input, return its effects in order."""
        match item:
            case Tick():
                self._tick(now)
            case FromHead():
                self._from_head(item.message, item.head, now)
            case Rises():
                self._rises(item, now)
            case FromWarden():
                self._from_warden(item.warden, item.message, now)
            case Reconnected():
                self._pinged_ns = 0  # so that the next tick says who and what is here
            case WardenClosed():
                self._closed(item, now)
            case Copied():
                self._copied(item, now)
            case Shipped():
                self._shipped((item.job, item.attempt), now)
            case LaunchFailed():
                self._launch_failed(item, now)
            case FromPeer():
                self._from_peer(item, now)
            case Learned():
                self._learn(item)
            case StdinCame():
                self._stdin(item.message)
            case Begin():
                self._begin(item, now)
        effects, self._effects = self._effects, []
        return effects

    def launched(self, key: tuple[int, int], warden: int) -> None:
        """A `Launch` was carried out by this warden."""
        held = self.held.get(key)
        if held:
            held.warden = warden
            self._at[warden] = held

    def knows(self, key: str) -> bool:
        """Whether a key is that of an agent which has to do with an attempt of this node, so that it may be heard."""
        return any(peer.key == key for held in self.held.values() for peer in held.peers.values())

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    # ---- beginning, joining, being declared dead

    def _begin(self, item: Begin, now: Now) -> None:
        self.incarnation, self._epoch = item.incarnation, item.epoch
        self.seen = {(job, attempt): index for index, job, attempt in item.seen}
        for order in item.orders:
            held = Held(order, self._is_leashed(order), self.node.name, now)
            held.leaves = order.job in item.leaving
            self.held[held.key] = held
            self.seen[held.key] = order.index
        self._unknown = set(item.wardens)
        self._look_for_lost(now)

    def _look_for_lost(self, now: Now) -> None:
        """Once every warden that answers has told what it holds, an order without a warden is certainly gone."""
        if self._unknown:
            return
        for held in list(self.held.values()):
            if not held.warden and held.alive:
                self._finish(held, "its warden has gone", now)

    def _is_leashed(self, order: ms.Start) -> bool:
        return order.spec.requeue == "auto" and self.node.facts.get("contain") in ("pidns", "userns")

    def _running(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(key for key, held in self.held.items() if not held.over))

    def _leashed(self) -> Iterator[Held]:
        return (held for held in self.held.values() if held.leashed and held.alive)

    def _die(self, now: Now) -> None:
        """This incarnation is dead to the cluster: end what it leashed, then come back as another."""
        if not self._dying:
            self._dying, self._joined = True, False
            for held in self._leashed():
                self._do(ToWarden(held.warden, {"op": "exit"}))
        self._come_back(now)

    def _come_back(self, now: Now) -> None:
        """Join as a new incarnation once no leashed part is alive. Everything else is kept, results above all."""
        if any(self._leashed()):
            return
        self._dying = False
        self.incarnation = self._nonce()
        self._lease_ns = self._settled = 0
        self.seen = {key: held.order.index for key, held in self.held.items()}
        self._do(Reborn(self.incarnation))  # before the Join: an incarnation that was told is never forgotten
        self._join(now)

    def _tell(self, message: ms.AgentReport) -> None:
        self._do(ToHead(message, self.primary))

    def _join(self, now: Now, head: str = "") -> None:
        node = self.node
        self._pinged_ns = now.boot_ns
        self._do(
            ToHead(
                ms.Join(
                    node.name,
                    self.incarnation,
                    node.boot,
                    node.address,
                    node.key,
                    node.slots,
                    node.mem_bytes,
                    node.facts,
                    tuple(sorted(self.held)),
                    self._learned,
                ),
                head,
            )
        )

    def _learn(self, item: Learned) -> None:
        """Introduce this incarnation once more, until it is welcomed."""
        self.node = msgspec.structs.replace(self.node, facts={**self.node.facts, **item.facts})
        self._learned += 1
        self._joined, self._pinged_ns = False, 0

    def _tick(self, now: Now) -> None:
        if self._unknown:
            return
        if self._dying:
            self._come_back(now)
            return
        if self._lease_ns and now.boot_ns >= self._lease_ns:
            self._die(now)
            return
        if now.boot_ns - self._pinged_ns >= self._config.heartbeat_s * NS:
            if self._joined:
                self._ping(now)
            else:
                self._join(now)
        for held in self.held.values():
            if held.over and now.boot_ns - held.reported_ns >= REPORT_S * NS:
                self._report(held, now)
        self._look_at_peers(now)

    def _ping(self, now: Now, head: str = "") -> None:
        if not head:
            self._pinged_ns = now.boot_ns
        ended = tuple(sorted(key for key, held in self.held.items() if held.over))
        self._do(ToHead(ms.Ping(self.node.name, self.incarnation, now.boot_ns, self._running(), ended), head))

    def _rises(self, item: Rises, now: Now) -> None:
        """Say at once to a head that begins to act what runs here, instead of at the next heartbeat."""
        if item.epoch > self._epoch and self._joined and not self._unknown:
            self._ping(now, item.head)

    # ---- the head's commands

    def _from_head(self, message: ms.HeadCommand, head: str, now: Now) -> None:
        if message.epoch < self._epoch:
            return  # a head that doesn't know yet that it was followed by another
        self.primary = head
        anew = message.epoch > self._epoch
        if anew:
            self._epoch = message.epoch
            self._do(Epoch(message.epoch))
        if isinstance(message, ms.Welcome):
            self._follow(message, anew, now)
        if isinstance(message, ms.Committed):
            held = self.held.get((message.job, message.attempt))
            if held and not held.alive:
                self._forget(held)
            return
        if message.incarnation != self.incarnation or self._unknown or self._dying:
            return
        match message:
            case ms.Welcome():
                if not self._joined and message.learned in (None, self._learned):  # else it answers an earlier Join
                    self._joined = True
                    self._ping(now)
            case ms.Dead():
                self._die(now)
            case ms.Pong():
                self._pong(message, now)
                if self._followed[0] != self._epoch:
                    self._join(now, head)  # its Welcome was lost
            case ms.Start():
                self._start(message, now)
            case ms.Kill():
                self._kill(message, now)
            case ms.Deliver():
                self._deliver(message)
            case ms.Halt():
                self._halt(message)
            case ms.VaultsOver():
                alive = {job for job, _ in self.held}
                self._do(Empty(tuple(job for job in message.jobs if job not in alive)))
            case ms.Inspect() | ms.Strike():
                self._look_inside(message)

    def _follow(self, message: ms.Welcome, anew: bool, now: Now) -> None:
        """Ship to this head, and tell it what its predecessor has not committed; it may lack output, too."""
        if anew and message.began >= 0:
            self._settled = min(self._settled, message.began)  # what comes behind may be other entries
        moved = message.bulk != self._followed[1]
        self._followed = message.epoch, message.bulk
        self._do(Follow(message.bulk, message.heads))
        for held in self.held.values():
            if moved and held.shipped and held.warden:
                held.shipped = False
                self._ship(held, held.spool_bytes, final=True)
            if held.over and (anew or moved):
                self._report(held, now)

    def _look_inside(self, message: ms.Inspect | ms.Strike) -> None:
        if isinstance(message, ms.Inspect):
            meant = set(message.attempts)
        else:
            meant = {(target.job, attempt) for attempt, target in message.targets}
        found = ((key, self.held.get(key)) for key in sorted(meant))
        wardens = tuple((*key, held.warden) for key, held in found if held and held.alive and held.warden)
        self._do(LookInside(message, wardens))

    def _halt(self, message: ms.Halt) -> None:
        held = self.held.get((message.job, message.attempt))
        if held and held.alive and message.do != "halt":
            if not held.halts:
                self._do(Say(*held.key, message.do, message.why))
        elif held and held.alive:
            held.halts = True
            # Ranks that are moved may change places, so what each node has of them goes by the tree.
            held.leaves = held.order.spec.migratable or set(held.peers) <= set(message.leaving)
            if held.order.spec.signal and held.warden:
                self._to_warden(held, "halt", grace_s=held.order.spec.notice_s)
            self._do(Say(*held.key, "halt", message.why, message.leaving, held.leaves))

    def _deliver(self, message: ms.Deliver) -> None:
        key = (message.job, message.attempt)
        held = self.held.get(key)
        if held and held.alive:
            if not held.warden:
                return  # the head says it again
            self._to_warden(held, "signal", serial=message.serial, signal=message.signal)
        self._tell(ms.Delivered(self.node.name, self.incarnation, *key, message.serial))

    def _pong(self, message: ms.Pong, now: Now) -> None:
        if message.t_ns > now.boot_ns or not 0 < message.lease_s <= LEASE_MAX_S:
            return  # an answer to no question of ours
        until_ns = message.t_ns + int(message.lease_s * NS)
        if until_ns > self._lease_ns:
            self._lease_ns = until_ns
            for held in self.held.values():
                if held.leashed and held.warden and held.alive:
                    self._do(ToWarden(held.warden, {"op": "leash", "until_ns": until_ns}))
        if message.settled >= self._settled:
            self._settled, self._settled_by = message.settled, self._epoch
            self.seen = {
                key: index
                for key, index in self.seen.items()
                if index == 0 or index > self._settled or key in self.held
            }

    def _start(self, order: ms.Start, now: Now) -> None:
        key = (order.job, order.attempt)
        if key in self.held:
            return
        if order.index <= self._settled:
            if order.epoch > self._settled_by:
                # It was over, as an earlier head knew, and this one has lost: it never runs again.
                self._tell(ms.Gone(self.node.name, self.incarnation, *key, "it was over, as an earlier head knew"))
            return
        if now.boot_ns >= self._lease_ns:
            return  # without a lease the head may count this node as lost by now; if it doesn't, it says it again
        if key in self.seen:
            # Started here once and not held any more, or ruled out: it is certainly over, and never runs again.
            self._tell(ms.Gone(self.node.name, self.incarnation, *key, "it was started here before"))
            return
        if len(self.seen) >= SEEN_MAX:
            return  # the head says it again, and by then `settled` has moved
        held = Held(order, self._is_leashed(order), self.node.name, now)
        if self.node.name not in held.peers:
            self._rule_out(key, "its order names no ranks for this node")
            return
        self.seen[key] = order.index
        self.held[key] = held
        self._do(Remember(order))
        # An idle warden may be of an older beo.
        is_plain = order.spec.places == 1 and not order.spec.is_carrying and not order.copies
        is_plain = is_plain and not order.spec.movable  # the numbers of its processes must be free
        warden = self.idle.pop() if self.idle and is_plain else 0
        self._do(Launch(warden, order, self._lease_ns if held.leashed else 0))

    def _launch_failed(self, item: LaunchFailed, now: Now) -> None:
        held = self.held.get((item.job, item.attempt))
        if held and held.alive:
            self._at.pop(held.warden, None)
            held.warden = 0
            self._finish(held, item.reason, now)

    def _kill(self, message: ms.Kill, now: Now) -> None:
        key = (message.job, message.attempt)
        held = self.held.get(key)
        if held and held.warden and held.alive:
            reason, wanted = told.ENDED + message.reason, {"wanted": True} if message.wanted else {}
            self._to_warden(held, "end", reason=reason, grace_s=message.grace_s, **wanted)
        elif not held:
            self._rule_out(key, "it does not run here")

    def _rule_out(self, key: tuple[int, int], reason: str) -> None:
        """Say that a part isn't here, and make sure that it never will be: its START may still be on the way."""
        if key not in self.seen:
            self.seen[key] = 0
            self._do(Seen(*key))
        self._tell(ms.Gone(self.node.name, self.incarnation, *key, reason))

    def _forget(self, held: Held) -> None:
        del self.held[held.key]
        if held.warden:
            self._at.pop(held.warden, None)
            self._to_warden(held, "committed")
        self._do(Drop(*held.key))

    # ---- wardens

    def _to_warden(self, held: Held, op: str, **words: Any) -> None:
        job, attempt = held.key
        self._do(ToWarden(held.warden, {"op": op, "job": job, "attempt": attempt, **words}))

    def _from_warden(self, warden: int, message: dict[str, Any], now: Now) -> None:
        try:
            word = told.read(message)
        except ValueError:  # impossible: what it holds will never be known from it
            self._end_warden(warden)
            return
        match word:
            case None:
                return
            case told.State():
                self._state(warden, word, now)
                return
            case told.Idle():
                if warden not in self._at:
                    self._keep_idle(warden)
                return
        held = self._at.get(warden)
        if not held or (word.job, word.attempt) != held.key:
            return
        match word:
            case told.Output():
                if held.alive:
                    self._ship(held, word.spool_length)
            case told.Ended():
                self._ended(held, word.result, word.spool_length, now)
            case told.Stdin():
                self._do(StdinTaken(*held.key, word.have, word.closed, word.window))
            case told.Peer():
                if word.to in held.heard_ns:
                    body = msgspec.json.encode(word.body)
                    self._do(ToPeer(held.peers[word.to], ms.Relay(self.node.name, *held.key, word.seq, body)))
            case told.PeerAck():
                if word.to in held.heard_ns:
                    self._do(ToPeer(held.peers[word.to], ms.RelayAck(self.node.name, *held.key, word.seq)))

    def _keep_idle(self, warden: int) -> None:
        if len(self.idle) >= IDLE_MAX:
            self._do(ToWarden(warden, {"op": "exit"}))
        elif warden not in self.idle:
            self.idle.append(warden)

    def _end_warden(self, warden: int) -> None:
        """End a warden whose word can't be used. Until it has gone, nothing is said of what runs here."""
        self._unknown.add(warden)
        self._do(ToWarden(warden, {"op": "exit"}))

    def _state(self, warden: int, state: told.State, now: Now) -> None:
        """A warden tells what it holds: first thing on a connection, and in answer to what it can't do."""
        if state.phase == "idle":
            if warden in self._unknown:
                self._keep_idle(warden)
        else:
            held = self.held.get((state.job, state.attempt))
            if not held or isinstance(held.end, str) or held.warden not in (0, warden):
                self._end_warden(warden)  # there is no order for it any more, or it was declared gone
                return
            held.warden = warden
            self._at[warden] = held
            if held.alive:
                if held.leashed and self._lease_ns:
                    self._do(ToWarden(warden, {"op": "leash", "until_ns": self._lease_ns}))
                if state.result:
                    self._ended(held, state.result, state.spool_length, now)
                else:
                    self._ship(held, state.spool_length)
        self._unknown.discard(warden)
        self._look_for_lost(now)

    def _ship(self, held: Held, length: int, final: bool = False) -> None:
        held.spool_bytes = max(held.spool_bytes, length)
        if held.spool_bytes and not held.shipped:
            held.shipping = True
            self._do(Ship(held.warden, *held.key, held.spool_bytes, final))

    def _ended(self, held: Held, result: told.Result, spool_bytes: int, now: Now) -> None:
        if held.alive:
            self._finish(held, told.part_result(result), now, spool_bytes)

    def _finish(self, held: Held, end: PartResult | str, now: Now, spool_bytes: int = 0) -> None:
        held.end = end
        if held.leaves and isinstance(end, PartResult):
            held.copying = True
            self._do(Copy(held.order))
        self._ship(held, spool_bytes, final=True)
        if held.over:
            self._report(held, now)

    def _shipped(self, key: tuple[int, int], now: Now) -> None:
        held = self.held.get(key)
        if held and not held.alive:
            held.shipping, held.shipped = False, True
            if held.over:
                self._report(held, now)

    def _copied(self, item: Copied, now: Now) -> None:
        held = self.held.get((item.job, item.attempt))
        if item.bundle and held:
            held.copied = item
            self._tell_copied(held, item)
        if held and held.copying and item.at_end:  # one of now and then may just have been done, or given up
            held.copying = False
            if held.over:
                self._report(held, now)

    def _tell_copied(self, held: Held, item: Copied) -> None:
        where = self.node.name, self.incarnation, *held.key
        self._tell(ms.VaultCopied(*where, item.bundle, item.size_bytes, item.checkpoints))

    def _report(self, held: Held, now: Now) -> None:
        if not self._joined or self._followed[0] != self._epoch:
            return
        held.reported_ns = now.boot_ns
        if held.copied:  # before the end: the next attempt is decided on at once
            self._tell_copied(held, held.copied)
        if isinstance(held.end, PartResult):
            self._tell(ms.Ended(self.node.name, self.incarnation, *held.key, held.end))
        elif held.end is not None:
            self._tell(ms.Gone(self.node.name, self.incarnation, *held.key, held.end))

    def _closed(self, item: WardenClosed, now: Now) -> None:
        self._unknown.discard(item.warden)
        if item.warden in self.idle:
            self.idle.remove(item.warden)
        held = self._at.pop(item.warden, None)
        if held and held.alive:
            reason = "its node was declared lost" if self._dying else "its warden was killed"
            if held.leashed and self._lease_ns and now.boot_ns >= self._lease_ns:
                reason = "its leash ran out"
            self._finish(held, reason, now, item.spool_bytes)
        if held:
            held.warden = 0
        self._look_for_lost(now)
        if self._dying:
            self._come_back(now)

    # ---- the other parts' agents

    def _from_peer(self, item: FromPeer, now: Now) -> None:
        message = item.message
        if isinstance(message, ms.Probe):
            for held in self.held.values():
                self._heard(held, message.node, item.key, now)
            if item.channel:
                self._do(Answer(item.channel, ms.Probe(self.node.name, self.incarnation)))
            return
        key = (message.job, message.attempt)
        there = self.held.get(key)
        if not there or not self._heard(there, message.node, item.key, now) or not there.warden:
            return
        words: dict[str, Any] = {"from": message.node, "seq": message.seq}
        if isinstance(message, ms.RelayAck):
            self._to_warden(there, "peer_ack", **words)
            return
        try:
            body = msgspec.json.decode(message.body, type=dict[str, Any])
        except ValueError:  # not JSON, or not UTF-8
            return
        self._to_warden(there, "peer", body=body, **words)

    def _heard(self, held: Held, node: str, key: str, now: Now) -> bool:
        """Note a sign of life of the agent of another part; False for a node that has none, or isn't who spoke."""
        if node not in held.heard_ns or held.peers[node].key != key:
            return False
        held.heard_ns[node] = now.boot_ns
        return True

    def _look_at_peers(self, now: Now) -> None:
        """Ask the other parts' agents for a sign of life, and end a part whose peer has been silent for too long."""
        limit_ns = int(self._config.peer_silence_s * NS)
        since_ns = now.boot_ns - self._probed_ns
        if since_ns < min(PROBE_S * NS, limit_ns / PROBES):
            return
        self._probed_ns = now.boot_ns
        asked = set()
        for held in self.held.values():
            if not held.alive or not held.warden:
                continue
            for name, heard_ns in held.heard_ns.items():
                if since_ns > limit_ns / 2:  # it was this agent that didn't run: their words wait to be read
                    held.heard_ns[name] = now.boot_ns
                elif now.boot_ns - heard_ns > limit_ns:
                    self._to_warden(held, "end", reason=f"{told.SILENCE}{name} is silent", grace_s=0.0)
                if name not in asked:
                    asked.add(name)
                    self._do(ToPeer(held.peers[name], ms.Probe(self.node.name, self.incarnation)))

    # ---- input

    def _stdin(self, message: ms.Stdin) -> None:
        key = (message.job, message.attempt)
        held = self.held.get(key)
        if held and held.alive:
            if held.warden:
                data = b64encode(message.data).decode()
                self._to_warden(held, "stdin", offset=message.offset, data=data, eof=message.eof, window=message.window)
        elif key in self.seen:  # else its START is still on the way: input may overtake it
            self._do(StdinTaken(*key, message.offset, True))
