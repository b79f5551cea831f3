"""The steps of an attempt: who asks for them, where they run, and who is told.

Three roles, and every warden of the attempt may play each of them. The *lead* (the first node's) keeps the ledger of
slots. The *origin* has whoever asks: a client at its door, or a rank that spawns; it asks the lead, then has the step's
ranks started on their nodes. A *node* runs ranks of a step, and tells its *watcher*: the origin of a client's step and
of all that descends from it, and the lead for what descends from the job's own ranks (family 0).

The wardens talk by messages that arrive once and in order for each pair of them (peers.py), so no agent's death loses
any. Messages of different pairs may overtake each other: that is why a step may be told to end before it was started.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections import deque

from beo.worker.door import Client
from beo.worker.loop import Loop
from beo.worker.order import Order, whole
from beo.worker.outflow import Outflow, cost_bytes
from beo.worker.pipes import Input, Output
from beo.worker.pmi import Effect, Pmi, Spawn, process_mapping
from beo.worker.request import Refusal, Request, spawn_programs, spawn_wishes
from beo.worker.step import Program, Rank, Step
from beo.worker.steps import Ledger, Placed, Refused, Waiting, Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

SPAWN_WAIT_S = 5.0
"""How long a spawn waits for slots before it is an error: ranks that have called MPI_Finalize take a moment to end."""
KILL_AGAIN_S = 0.2
"""Between two rounds of killing a step: a fork may have slipped by."""
UNDER_WAY_MAX = 64
"""Messages to a node that aren't acknowledged, beyond which no more output is sent there."""
FEEDS_MAX = 8
"""Pieces of a client's stdin under way; beyond that the client isn't listened to."""
EARLY_MAX = 4096
"""Words kept for worlds that have not been started here yet: one fence at most for each world and node."""
DOOMED_MAX = 4096
"""Steps remembered that were told to end before they were started here."""
ENDED_MAX = 1024
"""Worlds remembered whose part here is over, so that a rank elsewhere that waits for it is told."""
STARTS_SIZE_MAX_BYTES = 32 << 20
"""Most bytes of one step's orders to all its nodes: they wait in this warden until they have arrived."""
RESULTS_MAX = 1000
"""Ranks of steps whose results one node keeps: they go into the journal. Of more, those that ended well are counted."""


class Stage:
    """What the attempt does for its conductor.

    post: a message to another node's warden. pending: how many to it are under way. begin: start a step's ranks, return
    those that couldn't be. kill: a step's processes here, now. lose: end the attempt. finish: end it, all is done.
    """

    def __init__(
        self,
        output: Output,
        post: Callable[[str, dict[str, Any]], None],
        pending: Callable[[str], int],
        begin: Callable[[Step], list[Rank]],
        kill: Callable[[Step], None],
        carry_out: Callable[[Step, list[Effect]], None],
        lose: Callable[[str, int | None, int | None], None],
        finish: Callable[[], None],
    ) -> None:
        self.output = output
        self.post = post
        self.pending = pending
        self.begin = begin
        self.kill = kill
        self.carry_out = carry_out
        self.lose = lose
        self.finish = finish


class Family:
    """A client's step and all that descends from it, as its origin knows them. members: step -> nodes not over yet."""

    def __init__(self, number: int, first: int, client: Client, nodes: Iterable[str], home: str) -> None:
        self.number = number
        self.first = first
        self.client: Client | None = client
        self.members: dict[int, set[str]] = {number: set(nodes)}
        self.home = home  # the node of its rank 0
        self.ranks: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.status: int | None = None  # of the rank that ended it
        self.feeds = 0


class Birth:
    """A spawn under way: the caller, and which nodes have not said yet how the start went."""

    def __init__(self, step: Step, wanted: Spawn, programs: list[Program]) -> None:
        self.step = step
        self.rank = wanted.rank
        self.specs = wanted.specs
        self.puts = wanted.puts
        self.programs = programs
        self.nodes: set[str] = set()
        self.codes: list[int] = []
        self.failed = 0


class Conductor:
    """One node's share in the steps of an attempt. services: the names published in it."""

    def __init__(self, order: Order, loop: Loop, stage: Stage, services: dict[str, str]) -> None:
        self._order = order
        self._here = order.node
        self._lead = order.nodes[0]
        self._loop = loop
        self._stage = stage
        self._services = services
        self.steps: dict[int, Step] = {}  # alive here, but for step 0
        self.results: list[dict[str, Any]] = []
        self.results_more = 0
        self._ended: dict[int, Step] = {}
        self._doomed: dict[int, None] = {}
        self._early: dict[int, list[tuple[str, dict[str, Any]]]] = {}
        self._inbox: deque[tuple[str, dict[str, Any]]] = deque()
        self._busy = False
        self._asks: dict[int, tuple[Client, Request] | Birth] = {}
        self._next_ask = 1
        self._families: dict[int, Family] = {}
        self._births: dict[int, Birth] = {}
        self._done: set[str] = set()  # the lead's: nodes whose ranks of step 0 have ended
        self._ledger: Ledger | None = None
        if self._here == self._lead and order.slots:
            self._ledger = Ledger(order.slots, order.taken, order.size)

    # -- messages --------------------------------------------------------------------------------------------------

    def hear(self, node: str, body: dict[str, Any]) -> None:
        """A message about steps from the warden of `node`."""
        self._inbox.append((node, body))
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:  # one after another, since acting on one may send more to ourselves
                node, body = self._inbox.popleft()
                _VERBS[body["step"]](self, node, body)
        finally:
            self._busy = False

    def _send(self, node: str, verb: str, **words: Any) -> None:
        body = {"step": verb, **words}
        if node == self._here:
            self.hear(node, body)
        else:
            self._stage.post(node, body)

    def hear_world(self, node: str, body: dict[str, Any]) -> None:
        """A fence of another node's ranks of a step."""
        number = whole(body, "world")
        step = self.steps.get(number) or self._ended.get(number)
        if step and step.pmi:
            self._stage.carry_out(step, step.pmi.fence(node, body["fence"], body["puts"]))
        elif sum(map(len, self._early.values())) >= EARLY_MAX:
            self._stage.lose(f"{EARLY_MAX} words wait for steps that were never started", None, None)
        elif not step and number not in self._doomed:
            self._early.setdefault(number, []).append((node, body))

    def flow(self) -> None:
        """There may be room for output again: some messages have arrived."""
        for step in list(self.steps.values()):
            if isinstance(step.output, Outflow):
                step.output.resume()

    # -- the origin: clients ---------------------------------------------------------------------------------------

    def enter(self, client: Client) -> None:
        """Somebody has come to the door."""
        client.hear = lambda message: self._first_word(client, message)

    def _first_word(self, client: Client, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        try:
            request = Request(message, self._order)
        except Refusal as error:
            client.refuse(error.what, error.why, error.cure)
            return
        number = self._ask((client, request), [request.wish], -1)
        client.hear = lambda message: self._waiting_word(number, client, message)

    def _ask(self, ask: tuple[Client, Request] | Birth, wishes: Sequence[Wish], family: int) -> int:
        number = self._next_ask
        self._next_ask += 1
        self._asks[number] = ask
        words = [[list(wish.counts), wish.cpus, wish.nodes, wish.on, wish.overlap] for wish in wishes]
        self._loop.after(0, ("ask", number), lambda: self._send_ask(number, words, family))
        return number

    def _send_ask(self, number: int, wishes: list[Any], family: int) -> None:
        if number in self._asks:
            self._send(self._lead, "ask", id=number, wishes=wishes, family=family)

    def _waiting_word(self, number: int, client: Client, message: dict[str, Any] | None) -> None:
        if message is None:
            if self._asks.pop(number, None):
                self._send(self._lead, "cancel", id=number)
        elif message.get("op") == "stdin":
            client.send({"op": "stdin", "have": 0, "closed": False})  # to be sent again once there is a rank to read it

    def _answer(self, node: str, body: dict[str, Any]) -> None:
        ask = self._asks.get(body["id"])
        if "parts" not in body and "what" not in body:  # it has to wait
            if isinstance(ask, Birth):
                number = body["id"]
                self._loop.after(SPAWN_WAIT_S, ("ask", number), lambda: self._lose_patience(number, body["why"]))
            elif ask:
                ask[0].send({"op": "waiting", "why": body["why"]})
            return
        self._asks.pop(body["id"], None)
        self._loop.forget(("ask", body["id"]))
        if isinstance(ask, Birth):
            if "what" in body:
                self._answer_spawn(ask, trouble=f"{body['what']}: {body['why']}")
            else:
                self._give_birth(ask, body)
        elif not ask:
            if "parts" in body:  # who asked has gone meanwhile
                self._give_back(body)
        elif "what" in body:
            ask[0].refuse(body["what"], body["why"], body["cure"])
        else:
            self._begin(*ask, body)

    def _lose_patience(self, number: int, why: str) -> None:
        """A spawn has waited for long enough: those who hold the slots will not go soon."""
        birth = self._asks.pop(number, None)
        if isinstance(birth, Birth):
            self._send(self._lead, "cancel", id=number)
            self._answer_spawn(birth, trouble=f"no free slots: {why}")

    def _give_back(self, body: dict[str, Any]) -> None:
        self._send(self._lead, "freed", k=body["k"], nodes=_nodes(body["parts"]))

    def _begin(self, client: Client, request: Request, body: dict[str, Any]) -> None:
        """A client's step has its place: start it."""
        number, first, parts = body["k"], body["first"], body["parts"]
        program = request.program
        order = {
            "k": number,
            "first": first,
            "parts": parts,
            "programs": [_program_words(program, request.ranks)],
            "family": number,
            "watcher": self._here,
            "puts": {} if request.mpi else None,
            "stdin": request.stdin,
            "overlap": request.overlap,
        }
        size_bytes = sum(map(len, program.argv)) + sum(len(n) + len(v) for n, v in program.env.items())
        if size_bytes * len(parts) > STARTS_SIZE_MAX_BYTES:
            self._give_back(body)
            why = f"{size_bytes} bytes for each of {len(parts)} nodes, and the limit is {STARTS_SIZE_MAX_BYTES} in all"
            client.refuse("the step's arguments and environment are too long", why, "pass them in a file")
            return
        family = Family(number, first, client, _nodes(parts), parts[0][0])
        self._families[number] = family
        client.hear = lambda message: self._client_word(family, message)
        client.send({"op": "started", "step": number, "first": first, "parts": parts})
        for node in _nodes(parts):
            self._send(node, "start", **order)

    def _client_word(self, family: Family, message: dict[str, Any] | None) -> None:
        client = family.client
        if message is None or not client:
            family.client = None
            self._end_family(family, "its client has gone")
            return
        op = message.get("op")
        try:
            if op == "stdin":
                offset, data = whole(message, "offset"), message.get("data") or ""
                a2b_base64(data)
                family.feeds += 1
                client.pause(family.feeds >= FEEDS_MAX)
                eof = bool(message.get("eof"))
                self._send(family.home, "stdin", k=family.number, offset=offset, data=data, eof=eof)
            elif op == "signal":
                number = whole(message, "signal")
                if not 0 < number < 65:
                    raise ValueError(f"no signal {number}")
                for member, nodes in family.members.items():
                    for node in sorted(nodes):
                        self._send(node, "signal", k=member, signal=number)
            else:
                raise ValueError(f"unknown op {str(op)[:80]!r}")
        except (ValueError, TypeError) as error:
            family.client = None
            client.refuse("that is no message of a step", str(error), "start steps with 'beo run'")
            self._end_family(family, "its client said what is no message")

    def _end_family(self, family: Family, reason: str) -> None:
        family.reason = family.reason or reason
        for member, nodes in list(family.members.items()):
            for node in sorted(nodes):
                self._send(node, "kill", k=member)

    def _output(self, node: str, body: dict[str, Any]) -> None:
        family = self._families.get(body["family"])
        taken = cost_bytes(a2b_base64(body["data"]))

        def sent() -> None:
            self._send(node, "taken", k=body["k"], size=taken)

        if not family or not family.client:
            sent()
            return
        rank = body["number"] - family.first
        family.client.send({"op": "output", "rank": rank, "fd": body["fd"], "data": body["data"]}, sent)

    def _have(self, node: str, body: dict[str, Any]) -> None:
        family = self._families.get(body["k"])
        if family and family.client:
            family.client.send({"op": "stdin", "have": body["have"], "closed": body["closed"]})
            if body["answer"]:
                family.feeds -= 1
                family.client.pause(family.feeds >= FEEDS_MAX)

    def _joined(self, node: str, body: dict[str, Any]) -> None:
        family = self._families.get(body["family"])
        if family:
            family.members[body["k"]] = set(body["nodes"])
            if family.reason is not None:  # it is being ended
                for name in sorted(body["nodes"]):
                    self._send(name, "kill", k=body["k"])

    def _failed(self, node: str, body: dict[str, Any]) -> None:
        family = self._families.get(body["family"])
        if family:
            if family.reason is None:
                family.status = body["status"]
            self._end_family(family, body["reason"])

    def _over(self, node: str, body: dict[str, Any]) -> None:
        family = self._families.get(body["family"])
        if not family:
            return
        family.ranks += [{**rank, "rank": rank["rank"] - family.first} for rank in body["ranks"]]
        family.reason = family.reason or body["reason"]
        nodes = family.members.get(body["k"], set())
        nodes.discard(node)
        if not nodes:
            family.members.pop(body["k"], None)
        if not family.members:
            del self._families[family.number]
            if family.client:
                family.ranks.sort(key=lambda rank: int(rank["rank"]))
                words = {"ranks": family.ranks, "reason": family.reason, "status": family.status}
                family.client.end({"op": "ended", **words})

    # -- the origin: spawns ----------------------------------------------------------------------------------------

    def spawn(self, step: Step, wanted: Spawn) -> None:
        """A rank here has called MPI_Comm_spawn; it waits for the answer."""
        birth = Birth(step, wanted, spawn_programs(wanted.specs, self._order))
        try:
            wishes = spawn_wishes(wanted.specs, self._order)
        except Refusal as error:
            self._answer_spawn(birth, trouble=f"{error.what}: {error.why}")
            return
        self._ask(birth, wishes, step.family)

    def _answer_spawn(self, birth: Birth, codes: Sequence[int] = (), trouble: str = "") -> None:
        if birth.step.pmi:
            self._stage.carry_out(birth.step, birth.step.pmi.spawned(birth.rank, codes, trouble))

    def _give_birth(self, birth: Birth, body: dict[str, Any]) -> None:
        parent, nodes = birth.step, _nodes(body["parts"])
        if birth.rank not in parent.ranks or parent.ranks[birth.rank].status is not None or parent.ending:
            self._give_back(body)  # it has ended meanwhile
            return
        count = sum(ranks for _, ranks in body["parts"])
        wanted = sum(spec.ranks for spec in birth.specs)
        counts = [count] if len(birth.specs) == 1 else [spec.ranks for spec in birth.specs]
        birth.nodes = set(nodes)
        birth.codes = [0] * count + [1] * (wanted - count)
        self._births[body["k"]] = birth
        if parent.family:  # before anything of the parent can be over
            self._send(parent.watcher, "joined", family=parent.family, k=body["k"], nodes=nodes)
        for node in nodes:
            self._send(
                node,
                "start",
                k=body["k"],
                first=body["first"],
                parts=body["parts"],
                programs=[_program_words(*pair) for pair in zip(birth.programs, counts, strict=True)],
                family=parent.family,
                watcher=parent.watcher or self._lead,
                puts=birth.puts,
                tell=self._here,
            )

    def _began(self, node: str, body: dict[str, Any]) -> None:
        birth = self._births.get(body["k"])
        if not birth:
            return
        birth.nodes.discard(node)
        birth.failed += body["failed"]
        if birth.nodes:
            return
        del self._births[body["k"]]
        if not birth.failed:
            self._answer_spawn(birth, birth.codes)
            return
        for name in body["nodes"]:
            self._send(name, "kill", k=body["k"], void=True)
        self._answer_spawn(birth, trouble=f"{birth.failed} of {len(birth.codes)} could not be started")

    # -- the lead --------------------------------------------------------------------------------------------------

    def _asked(self, node: str, body: dict[str, Any]) -> None:
        who = (node, body["id"])
        if self._ledger:
            self._tell(self._ledger.ask(who, [Wish(*w) for w in body["wishes"]], body["family"]))
        else:
            why = "its node runs an older beo"
            self._tell([Refused(who, "this job can't start steps", why, "submit it again")])

    def _cancelled(self, node: str, body: dict[str, Any]) -> None:
        if self._ledger:
            self._tell(self._ledger.cancel((node, body["id"])))

    def _freed(self, node: str, body: dict[str, Any]) -> None:
        if self._ledger:
            self._tell(self._ledger.freed(body["k"], body["nodes"]))
            self._look_for_end()

    def _tell(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Placed):
                to, words = effect.who, {"k": effect.step, "first": effect.first, "parts": effect.parts}
            elif isinstance(effect, Waiting):
                to, words = effect.who, {"why": effect.why}
            elif isinstance(effect, Refused):
                to, words = effect.who, {"what": effect.what, "why": effect.why, "cure": effect.cure}
            else:
                continue
            self._send(to[0], "answer", id=to[1], **words)

    def own_ranks_ended(self) -> None:
        """The last rank of step 0 here has ended, or there never was one."""
        self._send(self._lead, "done")

    def _is_done(self, node: str, body: dict[str, Any]) -> None:
        self._done.add(node)
        self._look_for_end()

    def _look_for_end(self) -> None:
        """The job ends when its own ranks and all that they spawned have ended; its clients' steps die with it."""
        if self._done.issuperset(self._order.nodes) and not (self._ledger and self._ledger.children):
            self._stage.finish()

    # -- a node ----------------------------------------------------------------------------------------------------

    def _start(self, node: str, body: dict[str, Any]) -> None:
        number, family, watcher = whole(body, "k"), whole(body, "family"), str(body["watcher"])
        parts: list[tuple[str, int]] = [(str(name), int(count)) for name, count in body["parts"]]
        programs, appnums = _programs(body["programs"])
        here = _ranks_of(parts, self._here)
        output: Output | Outflow = self._stage.output
        if family:
            output = self._outflow(number, family, watcher, len(programs) > 1)
        else:
            self._stage.output.hold()
        mine = {rank: programs[rank] for rank in here}
        step = Step(
            number,
            whole(body, "first"),
            len(programs),
            mine,
            output,
            self._stage.carry_out,
            family,
            watcher,
            bool(body.get("overlap")),
        )
        step.void = number in self._doomed
        if step.void:
            self._doomed.pop(number)
            self._early.pop(number, None)
        else:
            step.peers = sorted({name for name, _ in parts} - {self._here})
            if body.get("stdin") and 0 in mine:
                step.input = Input(self._loop, lambda: self._tell_have(step, answer=False))
            if body.get("puts") is not None and (len(programs) > 1 or self._order.places > 1 or step.is_spawned):
                step.pmi = self._pmi(step, parts, appnums, body["puts"])
        self.steps[number] = step
        failed = [] if step.void else self._stage.begin(step)
        if body.get("tell"):
            step.void = step.void or bool(failed)
            nodes = sorted({name for name, _ in parts})
            self._send(str(body["tell"]), "began", k=number, failed=len(failed), nodes=nodes)
        for sender, word in self._early.pop(number, []):
            self.hear_world(sender, word)
        if not step.live:
            self._part_ended(step)

    def _outflow(self, number: int, family: int, watcher: str, holding: bool) -> Outflow:
        def send(rank: int, kind: int, data: bytes) -> None:
            text = b2a_base64(data, newline=False).decode()
            self._send(watcher, "output", k=number, family=family, number=rank, fd=kind, data=text)

        return Outflow(self._loop, holding, send, lambda: self._stage.pending(watcher) < UNDER_WAY_MAX)

    def _pmi(self, step: Step, parts: list[tuple[str, int]], appnums: dict[int, int], puts: dict[str, str]) -> Pmi:
        index = {name: n for n, name in enumerate(sorted({name for name, _ in parts}, key=self._order.nodes.index))}
        mapping = process_mapping([(index[name], count) for name, count in parts])
        return Pmi(
            step.ranks,
            step.size,
            step.peers,
            f"{self._order.world}_{step.number}_{self._order.nonce}",
            self._order.places,
            appnums,
            {**puts, "PMI_process_mapping": mapping},
            self._services,
            told=len(self._order.nodes) > 1,
            awaited=step.is_spawned,
        )

    def rank_left(self, step: Step, rank: Rank, killed_by: str) -> None:
        """The process of a rank of a step here was reaped. killed_by: by which signal, if by one."""
        if rank.rank == 0 and step.input:
            step.input.close()
            self._tell_have(step, answer=False)
        step.listen(rank, self._loop)
        if killed_by:
            self.fail(step, f"rank {rank.rank} was killed by {killed_by}", rank.rank)
        if step.pmi:
            self._stage.carry_out(step, step.pmi.left(rank.rank))
        if not step.live:
            self._part_ended(step)

    def fail(self, step: Step, reason: str, culprit: int | None) -> None:
        """A rank's end, or its words, break the step and all that it is connected with."""
        if step.ending or step.void:
            return
        if step.is_spawned:
            reason = f"step {step.number}: {reason}"
        rank = None if culprit is None else step.ranks.get(culprit)
        status = rank.result()["status"] if rank else None
        if step.family == 0:
            self._stage.lose(reason, None if culprit is None else step.first + culprit, status)
            return
        self._end(step)
        self._send(step.watcher, "fail", family=step.family, reason=reason, status=status)

    def _kill(self, node: str, body: dict[str, Any]) -> None:
        step = self.steps.get(body["k"])
        if step:
            step.void = step.void or bool(body.get("void"))
            self._end(step)
        elif body["k"] not in self._ended:
            self._doomed[body["k"]] = None
            if len(self._doomed) > DOOMED_MAX:
                del self._doomed[next(iter(self._doomed))]

    def _end(self, step: Step) -> None:
        if step.number in self.steps:
            step.ending = True
            self._stage.kill(step)
            self._loop.after(KILL_AGAIN_S, ("end", step.number), lambda: self._end(step))

    def _signal(self, node: str, body: dict[str, Any]) -> None:
        step = self.steps.get(body["k"])
        if step:
            step.signal(whole(body, "signal"))

    def _stdin(self, node: str, body: dict[str, Any]) -> None:
        step = self.steps.get(body["k"])
        if step and step.input:
            told, step.quiet = step.quiet, True
            step.input.feed(whole(body, "offset"), a2b_base64(body["data"]), bool(body["eof"]))
            step.quiet = told
        if step:
            self._tell_have(step, answer=True)
        else:
            self._send(node, "have", k=body["k"], have=0, closed=True, answer=True)

    def _tell_have(self, step: Step, answer: bool) -> None:
        if not step.quiet or answer:
            have, closed = (step.input.have, step.input.closed) if step.input else (0, True)
            self._send(step.watcher, "have", k=step.number, have=have, closed=closed, answer=answer)

    def _taken(self, node: str, body: dict[str, Any]) -> None:
        step = self.steps.get(body["k"])
        if step and isinstance(step.output, Outflow):
            step.output.taken(whole(body, "size"))

    def _part_ended(self, step: Step) -> None:
        """No rank of a step is alive here. What else it has started is ended too, unless it took no slots."""
        if step.over:
            return
        step.over = True
        self._loop.forget(("end", step.number))
        if not step.overlap:
            self._stage.kill(step)
        if isinstance(step.output, Outflow):
            step.output.finish(lambda: self._tell_over(step))
        else:
            self._tell_over(step)

    def _tell_over(self, step: Step) -> None:
        del self.steps[step.number]
        step.close(self._loop)
        ranks = [] if step.void else [rank.result() for rank in step.ranks.values()]
        self._keep(ranks, spawned=step.is_spawned)
        if step.pmi and step.peers:
            self._ended[step.number] = step
            if len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]
        if step.family:
            reason = "the job ends" if step.void else None
            self._send(step.watcher, "over", k=step.number, family=step.family, ranks=ranks, reason=reason)
        self._send(self._lead, "freed", k=step.number, nodes=[self._here])

    def _keep(self, ranks: list[dict[str, Any]], spawned: bool) -> None:
        self.results += [{**rank, "spawned": spawned} for rank in ranks]
        over = len(self.results) - RESULTS_MAX
        if over > 0:
            well = [n for n, rank in enumerate(self.results) if rank["status"] == 0][:over]
            dropped = set(well) | set(range(len(self.results) - (over - len(well)), len(self.results)))
            self.results = [rank for n, rank in enumerate(self.results) if n not in dropped]
            self.results_more += len(dropped)

    def close(self) -> None:
        """Everything is dead: let the pipes of the steps go, and note what became of their ranks."""
        for step in list(self.steps.values()):
            self._loop.forget(("end", step.number))
            step.close(self._loop)
            if isinstance(step.output, Outflow):
                step.output.close()
            if not step.void:
                self._keep([rank.result() for rank in step.ranks.values()], step.is_spawned)
        self.steps.clear()


_VERBS: dict[str, Callable[[Conductor, str, dict[str, Any]], None]] = {
    "ask": Conductor._asked,
    "cancel": Conductor._cancelled,
    "answer": Conductor._answer,
    "start": Conductor._start,
    "began": Conductor._began,
    "joined": Conductor._joined,
    "output": Conductor._output,
    "taken": Conductor._taken,
    "stdin": Conductor._stdin,
    "have": Conductor._have,
    "signal": Conductor._signal,
    "kill": Conductor._kill,
    "fail": Conductor._failed,
    "over": Conductor._over,
    "freed": Conductor._freed,
    "done": Conductor._is_done,
}


def _nodes(parts: Sequence[Sequence[Any]]) -> list[str]:
    return list(dict.fromkeys(str(node) for node, _ in parts))


def _program_words(program: Program, count: int) -> list[Any]:
    return [program.argv, program.cwd, program.env, list(program.without), program.path, count]


def _programs(words: Sequence[Sequence[Any]]) -> tuple[list[Program], dict[int, int]]:
    """The program of every rank of a step, and which of the programs it is."""
    programs: list[Program] = []
    appnums: dict[int, int] = {}
    for appnum, (argv, cwd, env, without, path, count) in enumerate(words):
        appnums |= dict.fromkeys(range(len(programs), len(programs) + count), appnum)
        programs += [Program(argv, cwd, env, without, path)] * count
    return programs, appnums


def _ranks_of(parts: Sequence[tuple[str, int]], node: str) -> list[int]:
    ranks: list[int] = []
    first = 0
    for name, count in parts:
        if name == node:
            ranks += range(first, first + count)
        first += count
    return ranks
