"""A head's machine: the real Replica, its disk, and what a shell does for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beo import events as ev
from beo import messages as ms
from beo import votes
from beo.entries import Entry, Snapshot
from beo.errors import BeoError
from beo.ha import acts as pacts
from beo.ha.log import Log
from beo.headnode import acts
from beo.headnode import replica as rep
from beo.headnode.core import VOTER_WORDS
from beo.headnode.model import HeadInfo
from beo.headnode.state import State
from tests.sim.clock import BootTime, Violation
from tests.sim.disk import Disk, DiskError
from tests.world import ACCOUNT, START_S

if TYPE_CHECKING:
    from tests.sim.world import Simulation

TICK_S = 0.05
READ_S = 0.08  # at most, to read a snapshot


def info(name: str) -> HeadInfo:
    """Where a head is reached."""
    return HeadInfo(f"{name}:1", f"{name}:2", (f"{name}:3",))


class HeadHost:
    """One head. `replica` is None while its process doesn't run."""

    def __init__(self, sim: Simulation, name: str, kept: pacts.Kept) -> None:
        self.sim = sim
        self.name = name
        self.other = {"A": "B", "B": "A"}[name]
        self.time = BootTime(sim.clock, sim.rate())
        self.disk = Disk(sim.clock, sim.random, kept)
        self.disk.told_durable = self._durable
        self.disk.told_stored = self._stored
        self.disk.ended = self.crash
        self.replica: rep.Replica | None = None
        self.life = 0
        self.incarnation = ""
        self.powered = True
        self.paused = False
        self._inbox: list[Any] = []
        self._snapshot_every = sim.random.choice([15, 40, 100, 10_000])
        self._snapshots: list[Snapshot] = []  # taken of the tip; they are kept when that is committed
        self._snapshot_at = 0

    @property
    def runs(self) -> bool:
        """Whether its process runs, paused or not."""
        return self.replica is not None

    # ---- starting and dying

    def start(self) -> None:
        """Start the process, if the machine is on and its disk is whole."""
        if self.replica or not self.powered:
            return
        state = self.disk.load()
        if state is None:
            self.sim.say(f"{self.name} refuses to start: its disk is damaged")
            return
        sim = self.sim
        self.life += 1
        self.incarnation = sim.nonce()
        self.paused = False
        self._inbox.clear()
        self._snapshots.clear()
        self._snapshot_at = state.index
        me = rep.Me(self.name, *_me(self.name), self.incarnation, "test")
        others = {self.other: info(self.other)} if self.other in sim.head_names else {}
        log = Log(self.disk.cut, self.disk.last, self.disk.read, self.disk.locate)
        sim.say(f"{self.name} starts with {self.disk.last.idx} entries, {self.disk.kept}")
        sim.truth.starts_with(self)
        self.replica = rep.Replica(me, others, state, self.disk.kept, log, sim.config, sim.nonce, sim.random.uniform)
        self.tell(acts.Begin(sim.birth() if self.name == "A" else ()))
        self._tick(self.life)

    def _end(self, power: bool) -> None:
        if self.replica:
            self.sim.truth.ends(self)
            self.replica = None
            self.paused = False
            lost = self.disk.crash(power)
            self.sim.truth.lost(self, lost)

    def kill(self) -> None:
        """Kill the process."""
        self.sim.say(f"{self.name} is killed")
        self._end(False)

    def crash(self, why: str) -> None:
        """End the process."""
        if self.replica:
            self.sim.say(f"{self.name} dies: {why}")
            self._end(False)
            self.sim.clock.after(self.sim.random.choice([0.1, 0.3, 1.0, 5.0]), self.start)

    def power_off(self) -> None:
        """Switch the machine off, at once."""
        self.sim.say(f"{self.name} loses power")
        self._end(True)
        self.powered = False

    def power_on(self) -> None:
        """Switch it on; its head starts."""
        if not self.powered:
            self.powered = True
            self.time.boot()
            self.start()

    def wipe(self) -> None:
        """Begin anew, by an operator's hand: `beo ha rejoin --wipe`."""
        self.sim.say(f"{self.name} is wiped")
        self._end(False)
        self.disk.format(pacts.Kept())
        self.sim.truth.wiped(self)
        self.start()

    def pause(self, for_s: float) -> None:
        """Stop the process; what comes waits."""
        if self.replica and not self.paused:
            self.sim.say(f"{self.name} is stopped for {for_s} s")
            self.paused = True
            life = self.life
            self.sim.clock.after(for_s, lambda: self._resume(life))

    def _resume(self, life: int) -> None:
        if life != self.life or not self.paused:
            return
        self.paused = False
        self.sim.say(f"{self.name} goes on")
        if self.sim.random.random() < 0.5:
            self._beat()
        while self._inbox and self.replica and not self.paused:
            inbox, self._inbox = self._inbox, []
            for item in inbox:
                self.tell(item)
        self._tick(self.life)

    # ---- the loop

    def _tick(self, life: int) -> None:
        if life == self.life and self.replica and not self.paused:
            self._beat()
            self.sim.clock.after(TICK_S, lambda: self._tick(life))

    def _beat(self) -> None:
        self.tell(rep.Ticked(pacts.Tick(self.disk.waiting_s())))
        self.tell(acts.Turn())

    def asked(self, peer: bytes, key: str, message: Any, request: int = 0) -> None:
        """A message reaches the control plane."""
        if self.replica:
            message = ms.to_head.decode(ms.encode(message))
            self.sim.overhear(message)
            self.tell(acts.Asked(peer, request, key, message, ACCOUNT))
            if self.replica and self.replica.head and not isinstance(message, VOTER_WORDS):
                self.tell(acts.Turn())

    def heard(self, data: bytes) -> None:
        """A message reaches the pair plane."""
        if self.replica:
            self.tell(pacts.FromHead(votes.decode(data)))

    def tell(self, item: Any) -> None:
        """Hand something to the head, now or when it goes on."""
        if self.paused:
            self._inbox.append(item)
        elif self.replica:
            try:
                effects = self.replica.handle(item, acts.Now(self.time.s, START_S + self.sim.clock.s))
                life = self.life
                for effect in effects:
                    if life == self.life and self.replica:  # else it died over the one before
                        self._perform(effect)
            except DiskError as error:
                self.crash(str(error))
            except BeoError as error:
                raise Violation(f"{self.name} ends: {error}") from error
            self._keep_snapshots()
            self.sim.truth.look(self)

    def wish(self, word: str) -> None:
        """An operator's, at this machine; a refusal is fine."""
        if self.replica:
            self.sim.say(f"somebody wishes a {word} at {self.name}")
            self.asked(b"operator", "root", ms.Steer(word), 1)

    def _durable(self, index: int) -> None:
        self.tell(pacts.Durable(index))

    def _stored(self, serial: int) -> None:
        self.sim.truth.starts_with(self)
        self.tell(pacts.Stored(serial))

    def _perform(self, effect: Any) -> None:
        sim = self.sim
        match effect:
            case rep.Write():
                self.disk.append(effect.entry)
                sim.truth.writes(self, effect.entry, effect.event)
            case acts.Send():
                sim.deliver(self, effect)
            case pacts.ToHead():
                sim.truth.shows(self, effect.message)
                data = votes.encode(effect.message)
                if self.other in sim.heads:
                    sim.net.send(self.name, self.other, lambda: sim.heads[self.other].heard(data))
            case pacts.Store():
                self.disk.store(effect.serial, effect.kept)
            case pacts.Became():
                sim.truth.became(self, effect)
            case pacts.Back():
                sim.say(f"{self.name} goes back to {effect.position.idx}")
                self._snapshots.clear()
                self.disk.truncate(effect.position)
                self.tell(rep.Rebuilt(self.disk.replay()))
            case pacts.Install():
                sim.say(f"{self.name} takes a snapshot at {effect.position.idx}")
                self._snapshots.clear()
                self.disk.install(effect.position, effect.data)
                self._snapshot_at = effect.position.idx
            case rep.FetchSnapshot():
                life = self.life
                sim.clock.after(sim.random.uniform(0.0, READ_S), lambda: self._fetched(life))

    def _fetched(self, life: int) -> None:
        if life == self.life and self.replica and self.disk.snapshots:
            newest = self.disk.snapshots[-1]
            position = self.disk.locate(newest.index)
            assert position
            self.tell(rep.Snapshot(position, newest.state))

    # ---- snapshots

    def _keep_snapshots(self) -> None:
        """Take a snapshot of the tip now and then, and keep it when all that it holds is committed and durable."""
        if not self.replica:
            return
        state, pair = self.replica.state, self.replica.pair
        if state.index - self._snapshot_at >= self._snapshot_every and state.index == self.disk.last.idx:
            last = self.disk.last
            self._snapshots.append(Snapshot(last.idx, last.epoch, last.hash, state.encode()))
            self._snapshot_at = state.index
        while self._snapshots and self._snapshots[0].index <= min(pair.commit, self.disk.durable):
            self.disk.snapshot(self._snapshots.pop(0))
            pair.log.cut = self.disk.cut


def _me(name: str) -> tuple[str, str, tuple[str, ...]]:
    found = info(name)
    return found.control, found.bulk, found.links


def submitted(entry: Entry) -> str:
    """The key of the submission that an entry is, "" if it is none."""
    event = ev.decode(entry.data)
    return event.key if isinstance(event, ev.Submitted) else ""


def state_of(host: HeadHost) -> State | None:
    """What a head knows, or would know if it were started; None where its disk is damaged."""
    return host.replica.state if host.replica else host.disk.load()
