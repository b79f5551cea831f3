"""Readers of output that wait for more: long polls of the bulk plane, each answered when there is something to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from beo import messages
from beo.errors import Conflict

__all__ = ["Readers"]

POLLS_MAX = 10_000  # readers that wait at once, at about 0.5 kB each
POLLS_PER_PEER_MAX = 64  # attempts that one connection may follow

Key = tuple[int, int]  # job, attempt
# Answer a reader (peer, request, its question) if there is something to say, or at once; return whether it was.
Answer = Callable[[bytes, int, messages.Fetch, bool], bool]


@dataclass(frozen=True)
class _Poll:
    """A reader that waits for output."""

    request: int
    fetch: messages.Fetch
    deadline: float


class Readers:
    """Who waits for what. For one thread."""

    def __init__(self, answer: Answer) -> None:
        """Begin with nobody."""
        self._answer = answer
        self._polls: dict[Key, dict[bytes, _Poll]] = {}
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """How many wait."""
        return sum(self._counts.values())

    def take(self, peer: bytes, request: int, fetch: messages.Fetch, now: float) -> None:
        """Answer a question, now or later; raises Conflict where too many wait."""
        key = fetch.job, fetch.attempt
        self._drop(key, peer)  # who asks again doesn't wait for the earlier answer
        if self._answer(peer, request, fetch, not fetch.wait_s > 0):
            return
        if len(self) >= POLLS_MAX or self._counts[peer] >= POLLS_PER_PEER_MAX:
            raise Conflict("too many readers wait for output", f"{POLLS_PER_PEER_MAX} a connection", "try again later")
        deadline = now + min(fetch.wait_s, messages.WAIT_MAX_S)
        self._polls.setdefault(key, {})[peer] = _Poll(request, fetch, deadline)
        self._counts[peer] += 1

    def look(self, keys: Iterable[Key] | None = None) -> None:
        """Answer who waits for these attempts, by default for any, if there is something to say."""
        for key in list(self._polls) if keys is None else keys:
            for peer, poll in list(self._polls.get(key, {}).items()):
                if self._answer(peer, poll.request, poll.fetch, False):
                    self._drop(key, peer)

    def forget(self, jobs: frozenset[int]) -> None:
        """Answer who waits for these jobs."""
        self.look([key for key in self._polls if key[0] in jobs])

    def expire(self, now: float, latest: float) -> float:
        """Answer whose time is up; return when the next one's is, `latest` at the latest."""
        soonest = latest
        for key, polls in list(self._polls.items()):
            for peer, poll in list(polls.items()):
                if poll.deadline <= now:
                    self._answer(peer, poll.request, poll.fetch, True)
                    self._drop(key, peer)
                else:
                    soonest = min(soonest, poll.deadline)
        return soonest

    def dismiss(self) -> list[tuple[bytes, int]]:
        """Return (peer, request) of all who wait, and forget them."""
        found = [(peer, poll.request) for polls in self._polls.values() for peer, poll in polls.items()]
        self._polls.clear()
        self._counts.clear()
        return found

    def _drop(self, key: Key, peer: bytes) -> None:
        polls = self._polls.get(key, {})
        if polls.pop(peer, None) is None:
            return
        if not polls:
            del self._polls[key]
        self._counts[peer] -= 1
        if not self._counts[peer]:
            del self._counts[peer]
