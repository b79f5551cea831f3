"""The ledger of an attempt's slots: it numbers the steps, places them, and lets those wait that don't fit. Pure.

Only the warden of the attempt's first node (the *lead*) keeps it. A step takes slots on some nodes, or none where it
overlaps with others. Who waits is served in the order of asking: a wide step is never overtaken.
"""

from __future__ import annotations

from collections import deque

from beo.worker.pmi import Effect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STEPS_MAX = 4096
"""Most steps alive at a time: each takes memory and descriptors of the wardens."""
WAITING_MAX = 1024
"""Most steps that wait: whoever starts more than that in the background has made a mistake."""
STEP_RANKS_MAX = 16_384
"""Most ranks of one step, as of a job."""
NUMBERS_MAX = 1 << 31
"""Ranks have numbers that are unique within the attempt; in the records of their output these have 32 bits."""

Who = tuple[str, int]  # the node that asks, and its own number for the request
Run = tuple[str, int]  # a node, and how many ranks in a row it gets


class Wish:
    """Ranks that one program of a step needs.

    counts: how many, the best first. nodes: exactly on so many, 0: as few as will do. cpus: slots per rank. on: only
    there (None: anywhere). overlap: take no slots.
    """

    __slots__ = ("counts", "cpus", "nodes", "on", "overlap")

    def __init__(
        self,
        counts: Sequence[int],
        cpus: int = 1,
        nodes: int = 0,
        on: Sequence[str] | None = None,
        overlap: bool = False,
    ) -> None:
        self.counts = counts
        self.cpus = cpus
        self.nodes = nodes
        self.on = on
        self.overlap = overlap

    def __str__(self) -> str:
        slots = self.counts[0] * self.cpus
        words = f"{slots} slot{'s' * (slots != 1)}"
        if self.nodes:
            words += f" on {self.nodes} node{'s' * (self.nodes != 1)}"
        return words + (f" of {', '.join(self.on)}" if self.on else "")


class Placed(Effect):
    """`who` may start step number `step`: `parts` are its nodes and their ranks in order, `first` its first number."""

    __slots__ = ("who", "step", "first", "parts")

    def __init__(self, who: Who, step: int, first: int, parts: list[Run]) -> None:
        self.who = who
        self.step = step
        self.first = first
        self.parts = parts


class Waiting(Effect):
    """`who` has to wait, and why."""

    __slots__ = ("who", "why")

    def __init__(self, who: Who, why: str) -> None:
        self.who = who
        self.why = why


class Refused(Effect):
    """`who` gets no step: what is wrong, why, and the cure."""

    __slots__ = ("who", "what", "why", "cure")

    def __init__(self, who: Who, what: str, why: str, cure: str) -> None:
        self.who = who
        self.what = what
        self.why = why
        self.cure = cure


class _Request:
    """One that waits."""

    __slots__ = ("family", "who", "wishes")

    def __init__(self, who: Who, wishes: Sequence[Wish], family: int) -> None:
        self.who = who
        self.wishes = wishes
        self.family = family


class Ledger:
    """slots: of each node of the allocation, in order. taken: those that step 0 holds. first: the first free number."""

    def __init__(self, slots: Mapping[str, int], taken: Mapping[str, int], first: int) -> None:
        self._slots = dict(slots)
        self._taken = {node: taken.get(node, 0) for node in slots}
        self._free = {node: slots[node] - self._taken[node] for node in slots}
        self._room = dict(self._free)  # what there is for steps when none runs
        self._next_step = 1
        self._next_number = first
        self._held: dict[int, dict[str, int]] = {}  # step -> node -> slots; gone when all its nodes have ended it
        self._family: dict[int, int] = {}
        self._waiting: deque[_Request] = deque()

    def ask(self, who: Who, wishes: Sequence[Wish], family: int = -1) -> list[Effect]:
        """Place a step of these programs, one after another in its ranks, or let it wait.

        family: the step that it belongs to; -1: it founds one of its own. (Those of family 0 are step 0's children.)
        """
        trouble = self._trouble(who, wishes)
        if trouble:
            return [trouble]
        if len(self._held) < STEPS_MAX and (not self._waiting or _overlaps(wishes)):
            parts = _place(wishes, self._free)
            if parts:
                return [self._take(who, wishes, parts, family)]
        if len(self._waiting) >= WAITING_MAX:
            return [Refused(who, "too many steps wait", f"the limit is {WAITING_MAX}", "start them one by one")]
        why = self._why(wishes)
        self._waiting.append(_Request(who, wishes, family))
        return [Waiting(who, why)]

    def cancel(self, who: Who) -> list[Effect]:
        """`who` doesn't want to wait any longer; those behind it may have their turn."""
        self._waiting = deque(request for request in self._waiting if request.who != who)
        return self._serve()

    def freed(self, step: int, nodes: Iterable[str]) -> list[Effect]:
        """A step has ended on these nodes."""
        held = self._held.get(step)
        if held is None:
            return []
        for node in nodes:
            self._free[node] += held.pop(node, 0)
        if not held:
            del self._held[step]
            del self._family[step]
        return self._serve()

    @property
    def children(self) -> bool:
        """Whether any step of family 0 is alive."""
        return 0 in self._family.values()

    def _serve(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._waiting and len(self._held) < STEPS_MAX:
            request = self._waiting[0]
            parts = _place(request.wishes, self._free)
            if not parts:
                break
            self._waiting.popleft()
            effects.append(self._take(request.who, request.wishes, parts, request.family))
        return effects

    def _take(self, who: Who, wishes: Sequence[Wish], runs: list[list[Run]], family: int) -> Placed:
        step, first = self._next_step, self._next_number
        held: dict[str, int] = {}
        parts: list[Run] = []
        for wish, placed in zip(wishes, runs, strict=True):
            for node, count in placed:
                slots = 0 if wish.overlap else count * wish.cpus
                held[node] = held.get(node, 0) + slots
                self._free[node] -= slots
            parts += placed
        self._held[step] = held
        self._family[step] = step if family < 0 else family
        self._next_step += 1
        self._next_number += sum(count for _, count in parts)
        return Placed(who, step, first, parts)

    def _trouble(self, who: Who, wishes: Sequence[Wish]) -> Refused | None:
        """Say why a step can never be."""
        ranks = sum(wish.counts[0] for wish in wishes)
        if ranks > STEP_RANKS_MAX:
            return Refused(who, f"a step of {ranks} ranks", f"the limit is {STEP_RANKS_MAX}", "start fewer")
        if self._next_number + ranks > NUMBERS_MAX:
            why = f"its steps have had {self._next_number} ranks"
            return Refused(who, "the job can't have more steps", why, "submit what is left as another job")
        for wish in wishes:
            for node in wish.on or ():
                if node not in self._slots:
                    return Refused(who, f"{node} is no node of this job", "", f"it has {', '.join(self._slots)}")
        if _place(wishes, self._room):
            return None
        total, own = sum(self._slots.values()), sum(self._taken.values())
        why = f"the job has {total} slot{'s' * (total != 1)} on {len(self._slots)} node{'s' * (len(self._slots) != 1)}"
        if own:
            why += f", and its own ranks hold {own} of them"
        wanted = " and ".join(str(wish) for wish in wishes)
        return Refused(who, f"the step needs {wanted}", why, "ask for less, or submit the job with more --slots")

    def _why(self, wishes: Sequence[Wish]) -> str:
        why = f"it needs {' and '.join(map(str, wishes))}, free are {sum(self._free.values())}"
        return why + (f", and {len(self._waiting)} wait before it" if self._waiting else "")


def _overlaps(wishes: Sequence[Wish]) -> bool:
    return all(wish.overlap for wish in wishes)


def _place(wishes: Sequence[Wish], free: Mapping[str, int]) -> list[list[Run]] | None:
    """Where the ranks of each program go; None where there is no room for all of them."""
    left = dict(free)
    runs = []
    for wish in wishes:
        placed = next(filter(None, (_place_one(wish, count, left) for count in wish.counts)), None)
        if placed is None:
            return None
        if not wish.overlap:
            for node, count in placed:
                left[node] -= count * wish.cpus
        runs.append(placed)
    return runs


def _place_one(wish: Wish, ranks: int, free: Mapping[str, int]) -> list[Run] | None:
    names = list(wish.on) if wish.on else list(free)
    if wish.overlap:
        names = names[: wish.nodes or len(names)]
        if len(names) < wish.nodes or ranks < wish.nodes:
            return None
        least, more = divmod(ranks, len(names))
        return [(name, least + (n < more)) for n, name in enumerate(names) if least + (n < more)]
    room = {name: max(0, free[name]) // wish.cpus for name in names}
    if wish.nodes:
        widest = sorted(room, key=lambda name: -room[name])[: wish.nodes]
        room = {name: room[name] for name in room if name in widest}
        if len(room) < wish.nodes or ranks < wish.nodes or not all(room.values()) or sum(room.values()) < ranks:
            return None
        return _spread(ranks, room)
    whole = next((name for name in room if room[name] >= ranks), None)
    if whole is not None:
        return [(whole, ranks)]
    if sum(room.values()) < ranks:
        return None
    placed = []
    for name, fit in room.items():
        if min(fit, ranks):
            placed.append((name, min(fit, ranks)))
            ranks -= min(fit, ranks)
    return placed


def _spread(ranks: int, room: Mapping[str, int]) -> list[Run]:
    """Divide ranks evenly over nodes with limited room, one at least for each."""
    shares = dict.fromkeys(room, 0)
    while ranks:
        open_ones = [name for name in shares if shares[name] < room[name]]
        each = max(1, ranks // len(open_ones))
        for name in open_ones:
            more = min(each, room[name] - shares[name], ranks)
            shares[name] += more
            ranks -= more
    return list(shares.items())
