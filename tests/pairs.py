"""Two heads, their disks and their voters, without a machine: `Replica` twice, in a time that a test moves.

two = Two()
two.settle()                       # A acts, B is in step, three workers vote
job = two.submit()                 # acknowledged
two.kill("A")
assert two.wait(lambda: two.acting == ["B"])

Whatever a test does, three things are looked at after every event: never do two heads act at once, no epoch has two
primaries, and each head that begins to act knows every job that was acknowledged.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from beo import events as ev
from beo import messages as ms
from beo import votes
from beo.entries import BEGINNING, Entry, Position
from beo.ha import acts as pacts
from beo.ha.log import Log
from beo.ha.register import Acceptor
from beo.headnode import acts
from beo.headnode.model import HeadInfo
from beo.headnode.replica import FetchSnapshot, Input, Me, Rebuilt, Replica, Snapshot, Ticked, Write
from beo.headnode.state import State
from beo.settings import Config
from beo.votes import Cfg
from tests.world import ACCOUNT, START_S, birth, settings, spec

TICK_S = 0.05
PRESENT_S = 0.5
DELAY_S = 0.001
FSYNC_S = 0.004
OTHER = {"A": "B", "B": "A"}
PLACE = {name: HeadInfo(f"{name}:1", f"{name}:2", (f"{name}:3",)) for name in OTHER}


class Voter:
    """A worker's vote: in memory, so that a reboot makes another voter of it."""

    def __init__(self, node: str, rack: str = "") -> None:
        self.node = node
        self.rack = rack
        self.up = True
        self.life = 1
        self.acceptor = Acceptor(self.name)

    @property
    def name(self) -> str:
        """NODE/NONCE."""
        return f"{self.node}/{self.life}"

    def reboot(self) -> None:
        """Forget everything."""
        self.life += 1
        self.up = True
        self.acceptor = Acceptor(self.name)

    def answer(self, message: votes.HeadQuestion, now_s: float) -> Any:
        """What the acceptor says."""
        match message:
            case votes.Prepare():
                return self.acceptor.prepare(message, now_s)
            case votes.Accept():
                return self.acceptor.accept(message)
            case votes.Lease():
                return self.acceptor.lease(message, now_s)


class Box:
    """One head's machine: what its disk holds, and the head that runs now."""

    def __init__(self, two: Two, name: str, kept: pacts.Kept) -> None:
        self._two = two
        self.name = name
        self.kept = kept
        self.snapshot: tuple[Position, bytes] | None = None
        self.entries: dict[int, Entry] = {}
        self.durable = 0
        self.up = False
        self.life = 0  # of the process
        self.hangs = False  # its disk
        self.orphans: list[Entry] = []
        self.output_lag = 0
        self.lacks = 0
        self._writes = 0  # counts how often the journal was cut: what was under way before is void
        self._stores: list[pacts.Store] = []
        self.replica: Replica

    @property
    def pair(self) -> Any:
        """Its role."""
        return self.replica.pair

    @property
    def cut(self) -> Position:
        """Where its journal begins."""
        return self.snapshot[0] if self.snapshot else BEGINNING

    def start(self) -> None:
        """Begin a life with what the disk holds."""
        assert not self.up
        self.life += 1
        self.up = True
        self.hangs = False
        self._stores.clear()
        state = self._state()
        last = max(self.entries, default=self.cut.idx)
        self.durable = last
        log = Log(self.cut, self._locate(last) or self.cut, self._read, self._locate)
        two, name = self._two, self.name
        place = PLACE[name]
        me = Me(name, place.control, place.bulk, place.links, two.nonce(), "test")
        others = {OTHER[name]: PLACE[OTHER[name]]}
        self.replica = Replica(me, others, state, self.kept, log, two.config, two.nonce, two.random.uniform)
        self.do(acts.Begin(birth() if name == "A" else ()))
        self._tick(self.life)

    def kill(self) -> None:
        """The process and what was not durable are gone."""
        self.up = False
        self._writes += 1
        for index in [index for index in self.entries if index > self.durable]:
            del self.entries[index]

    def wipe(self) -> None:
        """Begin anew with an empty disk: the operator's 'beo ha rejoin --wipe'."""
        self.kill()
        self.kept, self.snapshot, self.entries, self.durable = pacts.Kept(), None, {}, 0

    def compact(self) -> None:
        """Cut the journal behind a snapshot of what is committed."""
        index = min(self.pair.commit, self.durable)
        state = self._state(index)
        position = self._locate(index)
        assert position
        self.snapshot = position, state.encode()
        self.entries = {at: entry for at, entry in self.entries.items() if at > index}
        self.pair.log.cut = position

    def _state(self, upto: int | None = None) -> State:
        state = State.decode(self.snapshot[1]) if self.snapshot else State()
        for index in sorted(self.entries):
            if upto is None or index <= upto:
                state.apply(ev.decode(self.entries[index].data))
        state.changed.clear()
        return state

    def _read(self, first: int, limit: int) -> list[Entry]:
        return [self.entries[at] for at in range(first, first + limit) if at in self.entries]

    def _locate(self, index: int) -> Position | None:
        if index == self.cut.idx:
            return self.cut
        entry = self.entries.get(index)
        return Position(entry.index, entry.epoch, entry.hash) if entry else None

    # ---- one life

    def _tick(self, life: int) -> None:
        if self.up and life == self.life:
            self.do(Ticked(pacts.Tick(output_lag_bytes=self.output_lag, lacks=self.lacks)))
            self.do(acts.Turn())
            self._two.after(TICK_S, lambda: self._tick(life))

    def do(self, item: Input) -> None:
        """Give the head an input and carry its effects out."""
        if not self.up:
            return
        two = self._two
        for effect in self.replica.handle(item, acts.Now(two.now_s, START_S + two.now_s)):
            match effect:
                case Write():
                    self.entries[effect.entry.index] = effect.entry
                    two.after(FSYNC_S, partial(self._synced, effect.entry.index, self._writes))
                case pacts.Store():
                    self._stores.append(effect)
                    two.after(FSYNC_S, partial(self._kept, self.life))
                case pacts.Back():
                    self._go_back(effect.position.idx)
                case pacts.Install():
                    self._writes += 1
                    self.snapshot, self.entries = (effect.position, effect.data), {}
                    self.durable = effect.position.idx
                case FetchSnapshot():
                    if self.snapshot:
                        self.do(Snapshot(*self.snapshot))
                case pacts.ToHead():
                    two.send_head(self.name, effect.message)
                case acts.Send():
                    two.send(self.name, effect)
                case acts.Greet():
                    two.greeted.append(effect)
                case pacts.Became():
                    two.became(self, effect)

    def _synced(self, index: int, writes: int) -> None:
        if self.up and writes == self._writes:
            if self.hangs:
                self._two.after(FSYNC_S, lambda: self._synced(index, writes))
                return
            self.durable = max(self.durable, index)
            self.do(pacts.Durable(index))

    def _kept(self, life: int) -> None:
        if self.up and life == self.life and self._stores:
            if self.hangs:
                self._two.after(FSYNC_S, lambda: self._kept(life))
                return
            store = self._stores.pop(0)
            self.kept = store.kept
            self.do(pacts.Stored(store.serial))

    def _go_back(self, index: int) -> None:
        self._writes += 1
        self.orphans += [self.entries[at] for at in sorted(self.entries) if at > index]
        self.entries = {at: entry for at, entry in self.entries.items() if at <= index}
        self.durable = index
        self.do(Rebuilt(self._state()))


class Two:
    """The whole: time, the wires, two boxes and the workers that vote."""

    def __init__(self, voters: int = 3, seed: int = 1, config: Config | None = None) -> None:
        self.now_s = 100.0
        self.random = random.Random(seed)
        self.config = config or settings()
        self.voters = {f"n{at}": Voter(f"n{at}") for at in range(1, voters + 1)}
        self.cuts: set[tuple[str, str]] = set()  # (from, to) of heads and nodes
        self.said: list[tuple[str, votes.PairMessage]] = []  # by heads to each other: who, what
        self.answers: list[tuple[str, Any]] = []  # to clients: by whom, what
        self.greeted: list[acts.Greet] = []
        self.became_log: list[tuple[float, str, pacts.Became]] = []
        self.acknowledged: dict[int, str] = {}  # job -> its key
        self.delay: Callable[[str, votes.PairMessage], float] = lambda sender, message: DELAY_S
        self._primaries: dict[int, str] = {}
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = self._nonces = self._requests = 0
        self.boxes = {
            "A": Box(self, "A", pacts.Kept(0, Cfg(0, 0, ("A",)), True)),
            "B": Box(self, "B", pacts.Kept()),
        }
        self._present()
        for box in self.boxes.values():
            box.start()

    def __getitem__(self, name: str) -> Any:
        """A head's `Pair`, for reading."""
        return self.boxes[name].pair

    def nonce(self) -> str:
        """A name that nobody else has."""
        self._nonces += 1
        return f"nonce{self._nonces}"

    # ---- time

    def after(self, delay_s: float, do: Callable[[], object]) -> None:
        """Do something later."""
        self._serial += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._serial, do))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.wait(lambda: False, seconds)

    def wait(self, done: Callable[[], bool], seconds: float = 10.0) -> bool:
        """Let time pass until something is so; say whether it came to be."""
        until_s = self.now_s + seconds
        while not done():
            if self._events[0][0] > until_s:
                self.now_s = until_s
                return done()
            self.now_s, _, do = heapq.heappop(self._events)
            do()
            self._look()
        return True

    def settle(self) -> None:
        """Wait until one head acts, both are in step, and three workers vote."""
        assert self.wait(lambda: self.primary != "" and self[self.primary].in_step and self._voted(), 120.0), (
            self.story()
        )
        self.run(0.2)

    def _voted(self) -> bool:
        acc = self[self.primary].acceptor.acc
        alive = {voter.name for voter in self.voters.values() if voter.up}
        return len(acc.voters) == 1 and (not alive or set(acc.voters[0]) <= alive)

    # ---- what a test looks at

    @property
    def acting(self) -> list[str]:
        """Heads that may act now."""
        return [name for name, box in self.boxes.items() if box.up and self.now_s < box.pair.acts_until_s]

    @property
    def primary(self) -> str:
        """The head in that role that may act, or ""."""
        return next(iter(self.acting), "")

    def story(self) -> str:
        """How both heads see it."""
        return "\n".join(
            f"{self.now_s:.2f} {name} {'up' if box.up else 'down'} {box.pair.role} epoch={box.pair.epoch}"
            f" kept={box.kept} last={box.pair.log.last.idx} commit={box.pair.commit} in_step={box.pair.in_step}"
            f" why={box.pair.why!r}"
            for name, box in self.boxes.items()
        )

    def _look(self) -> None:
        assert len(self.acting) < 2, f"two heads act at once\n{self.story()}"

    def became(self, box: Box, effect: pacts.Became) -> None:
        """A head has another role."""
        self.became_log.append((self.now_s, box.name, effect))
        if effect.role == "primary":
            assert self._primaries.setdefault(effect.epoch, box.name) == box.name, f"epoch {effect.epoch} has two"
            known = box.replica.state.jobs
            lost = [job for job in self.acknowledged if job not in known]
            assert not lost, f"{box.name} acts without the acknowledged jobs {lost}\n{self.story()}"

    # ---- the wires

    def send_head(self, sender: str, message: votes.PairMessage) -> None:
        """From one head to the other."""
        self.said.append((sender, message))
        if (sender, OTHER[sender]) not in self.cuts:
            self.after(self.delay(sender, message), lambda: self.deliver(sender, message))

    def deliver(self, sender: str, message: votes.PairMessage) -> None:
        """A message of this head arrives at the other one, whatever is cut."""
        self.boxes[OTHER[sender]].do(pacts.FromHead(votes.decode(votes.encode(message))))

    def send(self, head: str, effect: acts.Send) -> None:
        """From a head to a worker or client."""
        peer = effect.peer.decode()
        if peer in self.voters:
            if (head, peer) not in self.cuts:
                self.after(DELAY_S, lambda: self._asked(head, peer, effect.message))
            return
        if isinstance(effect.message, ms.SubmittedIs):
            self.acknowledged[effect.message.job] = peer
        self.answers.append((head, effect.message))

    def _asked(self, head: str, node: str, message: Any) -> None:
        voter = self.voters[node]
        if voter.up and isinstance(message, votes.Prepare | votes.Accept | votes.Lease):
            answer = voter.answer(message, self.now_s)
            if (node, head) not in self.cuts:
                self.after(DELAY_S, lambda: self.tell(head, node, answer))

    def tell(self, head: str, node: str, message: Any, key: str = "worker") -> None:
        """A worker says something to a head."""
        self.boxes[head].do(acts.Asked(node.encode(), 0, key, message))

    def _present(self) -> None:
        for node, voter in self.voters.items():
            for head in self.boxes:
                if voter.up and (node, head) not in self.cuts:
                    present = votes.Present(voter.name, node, voter.rack)
                    self.after(DELAY_S, partial(self.tell, head, node, present))
        self.after(PRESENT_S, self._present)

    # ---- what a test does

    def new_voter(self, node: str, rack: str = "") -> Voter:
        """A worker more, which votes if it is wanted."""
        self.voters[node] = Voter(node, rack)
        return self.voters[node]

    def kill(self, *names: str) -> None:
        """Heads or workers die at once."""
        for name in names:
            if name in self.boxes:
                self.boxes[name].kill()
            else:
                self.voters[name].up = False

    def restart(self, *names: str) -> None:
        """Heads begin another life; workers too, under another name."""
        for name in names:
            if name in self.boxes:
                self.boxes[name].start()
            else:
                self.voters[name].reboot()

    def cut(self, one: str, *others: str, back: bool = True) -> None:
        """Nothing goes from one to the others, nor (back) the other way."""
        for other in others:
            self.cuts.add((one, other))
            if back:
                self.cuts.add((other, one))

    def heal(self) -> None:
        """All wires are whole again."""
        self.cuts.clear()

    def isolate(self, head: str) -> None:
        """Cut a head off from everything."""
        self.cut(head, OTHER[head], *self.voters)

    def ask(self, head: str, message: Any, key: str = "ann") -> list[Any]:
        """Ask a head something as a client; what it has answered when a while has passed."""
        self._requests += 1
        before = len(self.answers)
        self.boxes[head].do(acts.Asked(b"cli", self._requests, key, message, ACCOUNT))
        self.wait(lambda: len(self.answers) > before, 1.0)
        return [message for _, message in self.answers[before:]]

    def submit(self, head: str = "", count: int = 1) -> int:
        """Submit jobs; the number of the last one, 0 where it was not acknowledged within a second."""
        head = head or self.primary
        for _ in range(count - 1):
            self.post(head)
        answer = self.ask(head, ms.Submit(self.nonce(), spec(), 1000, 1000, ()))
        return answer[-1].job if answer and isinstance(answer[-1], ms.SubmittedIs) else 0

    def post(self, head: str) -> None:
        """Submit a job and don't wait."""
        self._requests += 1
        submit = ms.Submit(self.nonce(), spec(), 1000, 1000, ())
        self.boxes[head].do(acts.Asked(b"cli", self._requests, "ann", submit, ACCOUNT))

    def stream(self, head: str, per_s: float, seconds: float) -> None:
        """Submit jobs steadily from now on."""
        for at in range(int(per_s * seconds)):
            self.after(at / per_s, lambda: self.post(head))

    def set_pair(self, **wishes: Any) -> None:
        """Change the settings of the pair at whoever acts."""
        assert self.ask(self.primary, ms.SetPair(**wishes), "root") == [ms.Done()]

    def steer(self, head: str, word: str) -> Any:
        """An operator's wish; the head's answer."""
        answers = self.ask(head, ms.Steer(word), "root")
        return answers[-1] if answers else None

    def when(self, role: str, since_s: float = 0.0) -> list[tuple[float, str]]:
        """Who came to this role, and when."""
        return [(at, name) for at, name, effect in self.became_log if effect.role == role and at >= since_s]


def of(kind: type, said: Iterable[tuple[str, Any]]) -> list[Any]:
    """The messages of one kind."""
    return [message for _, message in said if isinstance(message, kind)]
