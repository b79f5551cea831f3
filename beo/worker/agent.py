"""The agent: a worker's daemon. ``python -m beo.worker.agent --node NAME --slots K``, with BEO_DIR naming the cluster.

One loop around the core (core.py): the head's control socket, the other agents' one, and one connection per warden. It
may be killed, restarted or upgraded at any time: what runs is with the wardens, and a new agent finds them again.

SIGTERM ends the agent and leaves its jobs running. SIGINT ends the jobs too.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from beo import address, birth, daemon, doctor, lockfile, nodeset, version, votes, wire
from beo import messages as ms
from beo.accounts import Accounts
from beo.child import Child
from beo.config import Home, home, is_address, write_durably
from beo.door import PATIENCE_S as VISITOR_S
from beo.door import Door
from beo.errors import BeoError, Conflict
from beo.worker import acts, core, launch, mpienv, probe, process, remains
from beo.worker.frames import LOST
from beo.worker.heads import Heads
from beo.worker.health import Checkup
from beo.worker.inspector import Inspector
from beo.worker.keeping import Keeping
from beo.worker.memory import Memory
from beo.worker.moving import PLACES, hold
from beo.worker.shipper import Shipper

MOUNTS_S = 20.0  # for the tree to be mounted, before the node joins without it: a head that starts takes some seconds
MOUNTS_LOOK_S = 0.05
TICK_S = 0.05
SPARE_WARDENS = 1  # started ahead, so that a job needn't wait for one
LISTEN_S = 1.0  # a killed agent's port is free a moment after its lock; longer, and another program has it
WARDEN_PROCESSES = 2  # beside a job's own within its limit: PID 1, and what removes its temporary files
SHM_PART = 4  # of the node's memory, this part may be in an attempt's /dev/shm where nothing else is set
ENVIRONMENT = ".env"  # of a movable program
SCRIPT = ".script"  # behind the name of an attempt's temporary folder: its batch script
WORK = ".work"  # and the files that it has along
WORK_AT = "/run/beo/job"  # where a job sees these, on every node: behind its walls, each has its own there
CHUNKS_ARGV = ("-P", "-m", "beo.bulk.node")
RSH = str(Path(__file__).with_name("beo-rsh"))
COPIER = str(Path(__file__).with_name("copier.py"))
END_S = 5.0  # for the wardens to end when the agent is asked to end its jobs

_Knock = tuple[int, int, int, tuple[int, ...], str]  # visitor, uid, gid, groups, key

log = logging.getLogger("beo.agent")


class Agent:
    """One node's agent."""

    def __init__(self, where: Home, name: str, slots: int, mem_bytes: int, rack: str = "") -> None:
        """Take the node's lock, look at the machine, find the wardens of an earlier agent."""
        self._home = where
        self._config = where.config().worker
        self._folder = where.nodes / name
        self._lock = lockfile.hold(self._folder / "lock")
        self._cluster = where.cluster()
        secret = where.secret("worker")
        public = wire.public_of(secret)
        self._context = wire.new_context()
        self._secret = secret
        self._poller = wire.Poller()
        rack = rack or self._config.rack
        self._heads = Heads(
            self._cluster.heads,
            lambda head: wire.Connection(head, self._cluster.key, secret, self._context),
            self._poller,
            votes.Present(f"{name}/{secrets.token_hex(8)}", name, rack),
        )
        # The other nodes reach this one, and its ranks theirs, by the network in which the head is.
        host = address.own(self._cluster.heads[0].rpartition(":")[0])
        self._server = self._listen(host, public)
        self._interface = address.interface_of(host)
        contain = probe.contain_kind()
        self._memory_kind, self._cgroups = probe.memory_limit()
        processes, self._crowds = probe.process_limit()
        boot = probe.boot_id()
        facts = {
            "contain": contain,
            "memory": self._memory_kind,
            "processes": processes,
            "cores": str(probe.cores()),
            "interface": self._interface or "",
            **doctor.facts(self._interface),
            "uid": str(os.geteuid()),  # only root can run everybody's jobs
            **({"rack": rack} if rack else {}),
            ms.LACKS: doctor.lacks(contain),
        }
        self._contain = contain
        facts |= {ms.VAULT: "tmpfs" if os.geteuid() == 0 else "folder"}
        self._memory = Memory(self._folder, boot, secrets.token_hex(8))
        told = f"{self._server.address} {slots} {mem_bytes} {facts}"
        self._memory.introduce(told, secrets.token_hex(8))
        node = acts.Node(name, boot, self._server.address, public, slots, mem_bytes, facts)
        self._core = core.Worker(node, self._config, lambda: secrets.token_hex(8))
        self._limits = {
            "output_bytes": self._config.output_max_bytes,
            "shm_bytes": self._config.shm_max_bytes or probe.memory_bytes() // SHM_PART,
            "free_bytes": self._config.free_min_bytes,
        }
        # What every job needs, made once: paths as text, since Path takes a twentieth of a short job's time here.
        self._wardens = str(self._folder / "wardens")
        self._accounts = Accounts()
        self._mark = remains.mark(self._cluster.cluster, name)  # begins the names of what an attempt has elsewhere
        self._beo_dir = str(where.path)
        tree = self._beo_dir if where.config().files.backend == "beo" else None
        self._keeping = Keeping(self._private("vaults"), self._config, mem_bytes, tree, self._handle)
        self._links: dict[int, process.Link] = {}
        self._ended: list[process.Link] = []  # closed, but not reaped yet
        self._limbo: set[int] = set()  # wardens that we aren't connected to and that aren't proven dead
        self._next_warden = 1
        self._left: dict[tuple[int, int], str] = {}  # folders of wardens that went before their output was shipped
        self._spares: list[int] = []
        self._peers: dict[str, wire.Connection] = {}  # by address
        self._waker = wire.Waker()
        self._shipper = Shipper(self._cluster, secret, name, self._memory.identity.incarnation, self._waker)
        self._refusal = ""  # the last one, each told once
        self._strangers: set[bytes] = set()  # greetings of other protocols, each told once
        self._chunks = Child("the process for chunks", where, (*CHUNKS_ARGV, name), log)
        self._wants_chunks = False  # from its first job with files along on
        self._checkup = Checkup(lambda: doctor.machine(where, contain, self._memory_kind))
        self._inspector = Inspector(name, self._waker, self._to_warden)
        self._shipping: set[tuple[int, int]] = set()
        self._sweepers: list[threading.Thread] = []
        self._stopping = 0
        self._show_at_s = 0.0
        self._knocks: queue.SimpleQueue[_Knock] = queue.SimpleQueue()
        self._waiting: dict[_Knock, float] = {}  # who has knocked and got no answer -> when he will have gone
        self._door_lock = -1
        self._door = self._open_door()
        self._begin()

    # ---- beginning and ending

    def _open_door(self) -> Door | None:
        """Let this machine's users in, where the head is on another one and believes us: as root."""
        folder = self._home.path
        if os.geteuid() or not self._home.config().users.door or (self._home.keys / "head.secret").exists():
            return None
        try:
            self._door_lock = lockfile.hold(folder / "run" / "door.lock")  # of several agents here, one opens it
            return Door(str(folder), self._knock)
        except Conflict:
            return None
        except OSError as error:
            log.error("no door for this machine's users: %s", error)
            return None

    def _knock(self, visitor: int, uid: int, gid: int, groups: tuple[int, ...], key: str) -> None:
        self._knocks.put((visitor, uid, gid, groups, key))
        self._waker.wake()

    def _vouch(self, again: bool = False) -> None:
        """Tell the head who knocked, and one that begins to act of those whom the last one has not answered."""
        now_s = time.monotonic()
        self._waiting = {knock: until_s for knock, until_s in self._waiting.items() if until_s > now_s}
        knocks = list(self._waiting) if again else []
        while not self._knocks.empty():
            knocks.append(self._knocks.get_nowait())
            self._waiting[knocks[-1]] = now_s + VISITOR_S
        for knock in knocks:
            self._tell(ms.Vouch(self._core.node.name, self._core.incarnation, *knock))

    def _admit(self, answer: ms.Vouched) -> None:
        """Let the door answer a visitor."""
        if self._door:
            self._waiting = {knock: until_s for knock, until_s in self._waiting.items() if knock[0] != answer.visitor}
            self._door.answer(answer.visitor, answer.user, answer.error)

    def _listen(self, host: str, public: str) -> wire.Server:
        """Listen where this node's last agent did: the agents that share an attempt with it know no other address."""
        file = self._folder / "address"
        last = file.read_text(errors="replace") if file.exists() else ""
        deadline_s = time.monotonic() + LISTEN_S
        while True:
            if not is_address(last) or last.rpartition(":")[0] != host or time.monotonic() > deadline_s:
                last = birth.free_address(host)
            try:
                server = wire.Server(last, self._secret, lambda key: key == public or self._core.knows(key))
            except OSError:
                time.sleep(0.01)
                continue
            write_durably(file, last.encode(), 0o600)
            return server

    def _begin(self) -> None:
        os.makedirs(self._wardens, 0o700, exist_ok=True)
        self._limbo = {int(name) for name in os.listdir(self._wardens) if name.isdigit()}
        self._next_warden = max(self._limbo, default=0) + 1
        memory = self._memory
        known = memory.identity
        orders = memory.orders()
        left = frozenset(order.job for order in orders if self._keeping.is_left(order.job))
        wardens = tuple(sorted(self._limbo))
        begin = acts.Begin(known.incarnation, known.epoch, memory.seen, orders, wardens, left)
        self._handle(begin)
        self._look_into_limbo()
        for key in remains.attempts(self._cluster.cluster, self._core.node.name):
            if key not in self._core.held:  # the agent before us was killed while it swept
                self._sweep(*key)
        if self._limbo:
            log.warning("wardens %s live but don't answer: this node joins when they do", sorted(self._limbo))

    def _look_into_limbo(self) -> None:
        """Settle what became of wardens whose connection is closed: dead, or to be connected to again."""
        for number in sorted(self._limbo):
            folder = f"{self._wardens}/{number}"
            if process.is_dead(folder):
                self._limbo.discard(number)
                self._clear_away(number, folder)
            elif link := process.attach(folder):
                self._limbo.discard(number)
                self._links[number] = link
                self._poller.register(link.fileno(), wire.POLLIN)

    def stop(self, number: int, _frame: object = None) -> None:
        """Let `run` return; a signal handler: SIGINT ends the jobs as well."""
        self._stopping = number
        self._waker.wake()

    def close(self) -> None:
        """Release everything; with SIGINT, end the wardens first."""
        if self._stopping == signal.SIGINT:
            for link in self._links.values():
                link.send({"op": "exit"})
            left = [link.folder for link in self._links.values()]
            deadline_s = time.monotonic() + END_S
            while left and time.monotonic() < deadline_s:
                left = [folder for folder in left if not process.is_dead(folder)]
                time.sleep(0.005)
            for key in self._core.held:
                self._sweep(*key)
            for path in remains.found(self._cluster.cluster, [self._core.node.name]):
                if path.startswith(f"{self._crowds}/"):
                    self._sweep_up(probe.remove_cgroup, path)
        for thread in self._sweepers:
            thread.join(END_S)
        self._checkup.stop()
        self._keeping.close()
        self._chunks.close()
        if self._door:
            self._door.close()
        if self._door_lock >= 0:
            os.close(self._door_lock)
        self._shipper.stop()
        self._inspector.stop()
        for link in self._links.values():
            link.close()
        self._memory.close()
        self._server.close()
        self._heads.close()
        for peer in self._peers.values():
            peer.close()
        self._context.destroy(linger=0)
        os.close(self._lock)

    # ---- the loop

    def _now(self) -> acts.Now:
        return acts.Now(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def _handle(self, item: acts.Input) -> None:
        self._perform(self._core.handle(item, self._now()))

    def run(self) -> None:
        """Serve until stopped."""
        poller = self._poller
        self._server.register(poller)
        poller.register(self._waker.fileno(), wire.POLLIN)
        self._shipper.start()
        self._checkup.start()
        self._keeping.start()
        self._inspector.start()
        log.info("%s serves the head at %s", self._core.node.name, " and ".join(self._heads))
        next_tick_s = 0.0
        while not self._stopping:
            now_s = time.monotonic()
            if now_s >= next_tick_s:
                next_tick_s = now_s + TICK_S
                self._handle(acts.Tick())
                self._show(now_s)
                self._housekeep()
            ready = poller.poll(max(0, int((next_tick_s - now_s) * 1000) + 1))
            fds = {item for item, _ in ready if isinstance(item, int)}
            self._read_heads()
            self._read_peers()
            for number, link in list(self._links.items()):
                if link.fileno() in fds:
                    self._read_warden(number, link)
            self._waker.clear()
            self._vouch()
            for news in self._shipper.news():
                if isinstance(news, acts.Shipped):
                    self._shipping.discard((news.job, news.attempt))
                self._handle(news)
            for seen in self._inspector.news():
                self._tell(seen)

    def _tell(self, message: ms.AgentReport) -> None:
        """Say something to the head that acts; it may be lost."""
        self._heads.send(message, self._core.primary)

    def _to_head(self, message: ms.AgentReport, head: str) -> None:
        if isinstance(message, ms.Ended | ms.Gone):  # before it: where the job goes on is decided at once
            self._keeping.look(message.job)
            self._tell_kept()
        self._heads.send(message, head)

    def _tell_kept(self) -> None:
        if kept := self._keeping.report(self._core.node.name, self._core.incarnation):
            self._tell(kept)

    def _show(self, now_s: float) -> None:
        """Tell every head now and then that there is a voter here."""
        if now_s >= self._show_at_s:
            self._show_at_s = now_s + self._config.heartbeat_s
            self._heads.show()

    def _read_heads(self) -> None:
        if self._heads.renewed():
            self._heads.show()
            self._handle(acts.Reconnected())
            self._handle(acts.Tick())
        for head, message in self._heads.receive():
            match message:
                case votes.Accept():
                    self._handle(acts.Rises(head, message.cfg.epoch))
                case votes.Lease():
                    self._handle(acts.Rises(head, message.epoch))
                case votes.Prepare() | ms.Probe() | ms.Relay() | ms.RelayAck():
                    pass
                case ms.Vouched():
                    self._admit(message)
                case ms.Failed():
                    self._refused(message.error.get("what", ""))
                case ms.Elsewhere():
                    self._heads.learn([message.head])
                case _:
                    self._handle(acts.FromHead(message, head))

    def _follow(self, effect: acts.Follow) -> None:
        """A head acts: ship to it; and know all heads, also after a restart."""
        self._shipper.connect(effect.bulk)
        self._vouch(again=True)
        self._keeping.again()
        control, bulk = tuple(head.control for head in effect.heads), tuple(head.bulk for head in effect.heads)
        self._cluster = self._home.learn(self._cluster, control, bulk)
        self._heads.learn(self._cluster.heads)

    def _refused(self, what: str) -> None:
        if what != self._refusal:  # a head that has forgotten this node says so to every sign of life
            self._refusal = what
            log.warning("the head refuses: %s", what)

    def _meet_stranger(self, who: str, greeting: bytes) -> None:
        if greeting not in self._strangers:
            self._strangers.add(greeting)
            log.error("%s", version.mismatch(who, greeting))

    def _read_peers(self) -> None:
        for channel, key, _, body in self._server.receive():
            self._hear_peer(channel, key, body)
        for greeting in self._server.strangers():
            self._meet_stranger("another node's agent", greeting)
        for peer in list(self._peers.values()):
            while received := peer.receive():
                self._hear_peer(b"", peer.server_key, received[1])

    def _hear_peer(self, channel: bytes, key: str, body: bytes) -> None:
        try:
            message = ms.to_agent.decode(body)
        except msgspec.MsgspecError as error:
            log.warning("another agent says what this one can't read: %s", error)
            return
        if isinstance(message, ms.Probe | ms.Relay | ms.RelayAck):
            self._handle(acts.FromPeer(channel, message, key))

    def _read_warden(self, number: int, link: process.Link) -> None:
        for message in link.receive():
            self._inspector.hear(number, message)
            self._handle(acts.FromWarden(number, message))
        if link.closed:
            self._poller.unregister(link.fileno())
            link.close()
            self._ended.append(link)
            del self._links[number]
            if number in self._spares:  # at once: an order may be next in line
                self._spares.remove(number)
            self._inspector.gone(number)
            self._limbo.add(number)
            self._look_into_limbo()

    def _clear_away(self, number: int, folder: str) -> None:
        """A warden has gone: its folder too, unless it holds output that is still to be shipped."""
        spool_bytes = 0
        for key, held in self._core.held.items():
            spool = self._spool(number, *key)
            if not held.shipped and os.path.exists(spool):
                self._left[key] = folder
                self._core.launched(key, number)
                spool_bytes = os.path.getsize(spool)
        self._handle(acts.WardenClosed(number, spool_bytes))
        if not spool_bytes:
            shutil.rmtree(folder, ignore_errors=True)
        if self._crowds and os.path.isdir(self._crowd(number)):
            self._sweep_up(probe.remove_cgroup, self._crowd(number))

    def _housekeep(self) -> None:
        if self._wants_chunks:
            self._chunks.keep(time.monotonic())
        self._ended = [link for link in self._ended if not link.reaped()]
        if health := self._checkup.report(self._core.node.name, self._core.incarnation):
            self._tell(health)
        self._tell_kept()
        self._keeping.tick(self._core.held.values())
        lost, self._keeping.lost = self._keeping.lost, []
        for key, why in lost:
            held = self._core.held.get(key)
            if held and held.alive and held.warden in self._links:
                end = {"op": "end", "job": key[0], "attempt": key[1], "reason": f"{LOST}{why}", "grace_s": 0.0}
                self._links[held.warden].send(end)
        self._look_into_limbo()
        self._memory.compact(self._core.seen)
        for link in self._links.values():
            if link.wants_write:
                link.flush()
        if len(self._spares) < SPARE_WARDENS and not self._stopping:
            with suppress(OSError):  # a full disk, say: tried again, and a job that needs one is told why
                self._spares.append(self._spawn())
        needed = {peer.address for held in self._core.held.values() for peer in held.peers.values()}
        for where in [a for a in self._peers if a not in needed]:
            peer = self._peers.pop(where)
            peer.unregister(self._poller)
            peer.close()

    # ---- effects

    def _perform(self, effects: list[acts.Effect]) -> None:
        for effect in effects:
            match effect:
                case acts.ToHead():
                    self._to_head(effect.message, effect.head)
                case acts.Follow():
                    self._follow(effect)
                case acts.ToWarden():
                    self._to_warden(effect.warden, effect.message)
                case acts.LookInside():
                    self._inspector.look(effect)
                case acts.Launch():
                    self._launch(effect)
                case acts.Ship():
                    self._ship(effect)
                case acts.Say():
                    held = self._core.held.get((effect.job, effect.attempt))
                    self._keeping.say(effect, held.order if held else None, self._core.node.name)
                case acts.Copy():
                    self._keeping.copy(effect.order)
                case acts.Empty():
                    for path in self._keeping.put_aside(effect.jobs):
                        self._sweep_up(shutil.rmtree, path, True)
                case acts.Remember():
                    self._remember(effect.order)
                case acts.Drop():
                    self._drop(effect.job, effect.attempt)
                case acts.ToPeer():
                    self._peer(effect.peer).send(0, ms.encode(effect.message))
                case acts.Answer():
                    self._server.send(effect.channel, 0, ms.encode(effect.message))
                case acts.StdinTaken():
                    self._shipper.stdin_ack(effect.job, effect.attempt, effect.have, effect.closed, effect.window)
                case acts.Seen():
                    self._memory.saw(0, effect.job, effect.attempt)
                case acts.Reborn():
                    self._memory.reborn(effect.incarnation, self._core.seen)
                    self._shipper.rename(effect.incarnation)
                    log.warning("a new incarnation: %s", effect.incarnation)
                case acts.Epoch():
                    self._memory.obey(effect.epoch)

    def _to_warden(self, number: int, message: dict[str, Any]) -> None:
        link = self._links.get(number)
        if link:
            link.send(message)

    def _peer(self, peer: ms.Peer) -> wire.Connection:
        connection = self._peers.get(peer.address)
        if not connection:
            connection = wire.Connection(peer.address, peer.key, self._secret, self._context)
            connection.register(self._poller)
            self._peers[peer.address] = connection
        return connection

    def _spawn(self) -> int:
        number = self._next_warden
        self._next_warden += 1
        crowd = self._make_crowd(number)
        link = process.spawn_warden(f"{self._wardens}/{number}", sys.executable, self._contain, crowd)
        self._links[number] = link
        self._poller.register(link.fileno(), wire.POLLIN)
        return number

    def _crowd(self, warden: int) -> str:
        return f"{self._crowds}/{self._mark}-w{warden}"

    def _make_crowd(self, warden: int) -> str:
        """Make what limits the processes of all that a warden will run: a cgroup, or else a number."""
        most = self._config.processes_max
        if not self._crowds:
            return "" if os.geteuid() == 0 else str(most)
        try:
            return probe.make_crowd(self._crowd(warden), most + WARDEN_PROCESSES)
        except FileExistsError:  # of an agent that was killed just here
            return self._crowd(warden)
        except OSError as error:
            log.warning("no cgroup (%s): the processes of jobs aren't limited", error)
            return ""

    def _ship(self, effect: acts.Ship) -> None:
        key = effect.job, effect.attempt
        self._shipping.add(key)
        self._shipper.ship(*key, Path(self._spool(effect.warden, *key)), effect.length, effect.final)

    def _spool(self, warden: int, job: int, attempt: int) -> str:
        return f"{self._wardens}/{warden}/{job}.{attempt}.spool"

    def _remember(self, order: ms.Start) -> None:
        try:
            self._memory.remember(order)
        except OSError as error:  # a full disk, say: what can't be remembered is not started
            reason = f"can't be started: {error.strerror}"
            self._handle(acts.LaunchFailed(order.job, order.attempt, reason))

    def _launch(self, effect: acts.Launch) -> None:
        order = effect.order
        warden = effect.warden
        held = self._core.held.get((order.job, order.attempt))
        if not held or held.end is not None:
            return  # it couldn't be remembered
        try:
            message = self._start_message(order, effect.leash_until_ns)
            if warden not in self._links:
                warden = self._spares.pop() if self._spares else self._spawn()
            self._core.launched((order.job, order.attempt), warden)
            self._links[warden].send(message)
        except (OSError, ValueError, BeoError) as error:
            self._handle(acts.LaunchFailed(order.job, order.attempt, f"can't be started: {error}"))

    def _start_message(self, order: ms.Start, leash_until_ns: int) -> dict[str, object]:
        spec = order.spec
        if os.geteuid() not in (0, order.uid):
            why = f"its worker runs as uid {os.geteuid()} and not as root"
            raise ValueError(f"this node can't run jobs of {order.user} ({why}): start the worker as root")
        argv = list(spec.argv)
        here = next(part for part in order.parts if part.node == self._core.node.name)
        places = here.ranks + here.more
        hosts = [mpienv.host_of(p.address) for p in order.parts]
        parts = [
            launch.Part(p.node, tuple(range(p.first_rank, p.first_rank + p.ranks)), p.more, host)
            for p, host in zip(order.parts, hosts, strict=True)
        ]
        size = spec.ranks
        if spec.script:
            argv[0] = self._write_script(order)
        if spec.errand:
            who = f"{order.uid}:{order.gid}:{','.join(map(str, order.groups))}"
            argv = [sys.executable, "-I", "-S", COPIER, who, *argv]
        if spec.batch:
            size = 1
            parts = [
                launch.Part(p.node, () if n else (0,), p.ranks + p.more, hosts[n]) for n, p in enumerate(order.parts)
            ]
        attempt = launch.Attempt(
            job=order.job,
            attempt=order.attempt,
            argv=argv,
            cwd=spec.cwd,
            env=self._environment(order),
            size=size,
            parts=parts,
            nodes_folded=here.node if len(order.parts) == 1 else nodeset.fold([part.node for part in order.parts]),
            name=spec.title,
            cpus=spec.cpus,
            batch=spec.batch,
            stdin=spec.stdin,
            terminal=spec.terminal,
            time_limit_s=spec.time_limit_s or None,
            grace_s=self._config.grace_s,
            signal=spec.signal,
            notice_s=spec.notice_s,
            goes_on=spec.goes_on,
            movable=spec.movable,
            migratable=spec.migratable,
            mem_bytes=spec.mem_bytes * places or None,
            uid=None if spec.errand else order.uid,  # a copier becomes the user itself: he may not reach our Python
            gid=None if spec.errand else order.gid,
            groups=None if spec.errand else order.groups,
            bundle=spec.bundle,
            outputs=spec.outputs,
            copies={node: [bundle for other, bundle in order.copies if other == node] for node in dict(order.copies)},
            anew=order.anew,
        )
        if (spec.bundle or order.copies) and not self._wants_chunks:
            self._wants_chunks = True
            self._chunks.keep(time.monotonic())
        tmp = self._tmp(order.job, order.attempt)
        facts = launch.Facts(
            self._cluster.cluster,
            here.node,
            self._interface,
            tmp,
            self._make_cgroup(order, spec.mem_bytes * places),
            self._limits,
            RSH,
            sys.executable,
            f"{tmp}{WORK}",
            WORK_AT if self._contain == "pidns" else None,
            self._beo_dir,
            self._keeping.open(order),
            order.mtbf_s,
            self._keeping.dump_folder(order),
        )
        message = launch.start_message(attempt, facts, order.nonce, leash_until_ns or None)
        if spec.movable:
            hold(order, message, facts.dump, f"{tmp}{ENVIRONMENT}")
        return message

    def _environment(self, order: ms.Start) -> dict[str, str]:
        """What the job brought along, on top of what a login here would say; whose it is, this node knows better."""
        login = self._accounts.look(order.uid).environment()
        name = {key: word for key, word in login.items() if key in ("USER", "LOGNAME")}
        return {**login, **order.spec.env, **name, "BEO_DIR": self._beo_dir}

    def _write_script(self, order: ms.Start) -> str:
        """Write a job's script where its owner can read it, and nobody else."""
        path = f"{self._tmp(order.job, order.attempt)}{SCRIPT}"
        with suppress(FileNotFoundError):
            os.unlink(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o500), "w", encoding="utf-8") as file:
            file.write(order.spec.script)
            if os.geteuid() == 0:
                os.fchown(file.fileno(), order.uid, order.gid)
        return path

    def _tmp(self, job: int, attempt: int) -> str:
        """An attempt's folder in /tmp: by a name that nobody can guess, so nobody can be there before us."""
        return self._private(f"{job}.{attempt}")

    def _private(self, what: str) -> str:
        """A path in /tmp for something of this node, the same in each life of its agent."""
        secret = self._secret.encode()
        tag = blake2b(f"{self._mark} {what}".encode(), digest_size=8, key=secret).hexdigest()
        return f"/tmp/{self._mark}-{what}-{tag}"

    def _cgroup(self, job: int, attempt: int) -> str:
        return f"{self._cgroups}/{self._mark}-{job}.{attempt}"

    def _make_cgroup(self, order: ms.Start, mem_bytes: int) -> str | None:
        if not mem_bytes or not self._cgroups:
            return None
        try:
            return probe.make_cgroup(self._cgroup(order.job, order.attempt), mem_bytes)
        except OSError as error:
            log.warning("job %d: no cgroup (%s): its memory is watched by polling", order.job, error)
            return None

    def _drop(self, job: int, attempt: int) -> None:
        if (job, attempt) in self._shipping:
            self._shipping.discard((job, attempt))
            self._shipper.forget(job, attempt)
        self._memory.drop(job, attempt)
        self._keeping.drop(job, attempt, all(job != other for other, _ in self._core.held))
        self._sweep(job, attempt)
        left = self._left.pop((job, attempt), None)
        if left:
            shutil.rmtree(left, ignore_errors=True)

    def _sweep(self, job: int, attempt: int) -> None:
        """Remove what an attempt has outside the node's folder; its warden has done so unless it was killed.

        By a thread of its own: a million files, or a cgroup that the kernel holds on to, must not delay a heartbeat.
        """
        tmp, cgroup = self._tmp(job, attempt), self._cgroup(job, attempt)
        for name in (SCRIPT, ENVIRONMENT, f"{ENVIRONMENT}{PLACES}"):
            if os.path.lexists(f"{tmp}{name}"):
                os.unlink(f"{tmp}{name}")
        left = [path for path in (tmp, f"{tmp}{WORK}") if os.path.exists(path)]
        if left or (self._cgroups and os.path.isdir(cgroup)):
            self._sweep_up(_remove, cgroup, *left)

    def _sweep_up(self, remove: Callable[..., object], *paths: object) -> None:
        self._sweepers = [thread for thread in self._sweepers if thread.is_alive()]
        thread = threading.Thread(target=remove, args=paths, name="beo-sweeper", daemon=True)
        thread.start()
        self._sweepers.append(thread)


def _remove(cgroup: str, *folders: str) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    probe.remove_cgroup(cgroup)


def main(arguments: list[str] | None = None) -> int:
    """Run an agent until SIGTERM or SIGINT; 0 for a clean end."""
    parser = argparse.ArgumentParser(prog="python -m beo.worker.agent", description=__doc__)
    parser.add_argument("--node", required=True, help="this node's name")
    parser.add_argument("--slots", type=int, default=probe.cores(), help="ranks at one time (default: the cores)")
    parser.add_argument("--mem", type=int, default=probe.memory_bytes(), metavar="BYTES", help="memory for jobs")
    parser.add_argument("--rack", default="", help="where it stands: voters are spread over racks")
    chosen = parser.parse_args(arguments)

    def make() -> Agent:
        _wait_for_mounts(tuple(home().config().files.mounts))
        return Agent(home(), chosen.node, chosen.slots, chosen.mem, chosen.rack)

    return daemon.main("agent", make)


def _wait_for_mounts(folders: tuple[str, ...]) -> None:
    """No job is to find an empty folder where the tree should be; but a node without the tree is still a node."""
    if not folders or os.geteuid():
        return
    from beo.tree.mount import KIND, mounted  # not at the top: most nodes need none of it

    deadline_s = time.monotonic() + MOUNTS_S
    while missing := [folder for folder in folders if mounted(Path(folder)) != KIND]:
        if time.monotonic() > deadline_s:
            log.error("no tree is mounted at %s: see log/mount.log", ", ".join(missing))
            return
        time.sleep(MOUNTS_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
