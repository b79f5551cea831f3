"""Carries plans out: the tree by paths, for whoever has no mount of it."""

from __future__ import annotations

import errno
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from beo import wire
from beo.errors import NoHead
from beo.tree import plans
from beo.tree import words as w
from beo.tree.plans import Plan
from beo.tree.session import Session

PATIENCE_S = 30.0  # for an answer: a take-over, and a slow disk
WIDTH = 64  # plans at a time: what one commit of the log takes in

T = TypeVar("T")


def new_tag() -> str:
    """Return what no other writer of a file has: for `plans.write`."""
    return secrets.token_hex(4)


class _Job:
    """A plan under way."""

    def __init__(self, plan: Plan[Any]) -> None:
        self.plan = plan
        self.numbers: tuple[int, ...] = ()
        self.answers: dict[int, w.Answer] = {}


class Files:
    """A session by plans. For one thread. Raises BeoError where nobody serves the tree for too long."""

    def __init__(self, session: Session, caller: w.Caller, patience_s: float = PATIENCE_S) -> None:
        """Ask by this session, for this caller."""
        self._session = session
        self._caller = caller
        self._patience_s = patience_s
        self._poller = wire.Poller()
        session.register(self._poller)
        self._asked: dict[int, _Job] = {}

    def __enter__(self) -> Files:
        """Return itself, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def do(self, plan: Plan[T]) -> T:
        """Carry one plan out and return what came of it; raises what it raises."""
        ((_, result),) = self.do_all([plan])
        if isinstance(result, OSError):
            raise result
        found: T = result
        return found

    def do_all(self, todo: Iterable[Plan[Any]], width: int = WIDTH) -> Iterator[tuple[Plan[Any], Any]]:
        """Carry plans out, `width` at a time; yield each as it ends, with what came of it or the OSError raised."""
        waiting = iter(todo)
        ended: deque[tuple[Plan[Any], Any]] = deque()
        running = 0
        more = True
        while more or running or ended:
            while more and running < width:
                plan = next(waiting, None)
                if plan is None:
                    more = False
                else:
                    running += 1
                    self._step(_Job(plan), None, ended)
            while ended:
                running -= 1
                yield ended.popleft()
            if running:
                for number, answer in self._receive():
                    self._answered(number, answer, ended)

    def in_order(self, todo: Iterable[Plan[Any]]) -> Iterator[tuple[Plan[Any], Any]]:
        """Carry plans out as `do_all` does, all of them before the first is yielded, which are in their order then."""
        listed = list(todo)
        results = {id(plan): result for plan, result in self.do_all(listed)}
        return ((plan, results[id(plan)]) for plan in listed)

    def space(self) -> w.SpaceIs:
        """Return how much room there is."""
        answer = self.do(plans.ask(w.Space(), "/"))
        assert isinstance(answer, w.SpaceIs)
        return answer

    def stat(self, path: str, follow: bool = True) -> w.Attr:
        """Return what is known of a file."""
        return self.do(plans.look(path, follow))

    def entries(self, path: str) -> list[tuple[str, w.Attr]]:
        """Return (name, what is known) of everything in a directory, by name."""
        return self.do(plans.listing(path))

    def read(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file, in order."""
        attr = self.stat(path)
        if attr.is_dir:
            raise plans.failure(errno.EISDIR, path)
        for start in range(0, attr.size, plans.AHEAD * w.DATA_MAX_BYTES):
            yield from self.do(plans.read(attr, path, start))

    def write(self, path: str, pieces: Iterator[bytes], mode: int = 0o666, mtime_ns: int | None = None) -> int:
        """Let a file hold these bytes and nothing else; return how many they are."""
        return self.do(plans.write(path, pieces, new_tag(), mode, mtime_ns))

    def mkdir(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Make a directory."""
        self.do(plans.make_folder(path, mode, exist_ok))

    def remove(self, path: str) -> None:
        """Remove a name, of an empty directory too."""
        self.do(plans.remove(path))

    def rename(self, old: str, new: str) -> None:
        """Move a name, in the place of another file if there is one."""
        self.do(plans.move(old, new))

    def _step(self, job: _Job, answers: list[w.Answer] | None, ended: deque[tuple[Plan[Any], Any]]) -> None:
        try:
            questions = next(job.plan) if answers is None else job.plan.send(answers)
        except StopIteration as stop:
            ended.append((job.plan, stop.value))
            return
        except OSError as error:
            ended.append((job.plan, error))
            return
        job.numbers = tuple(self._session.ask(self._caller, question) for question in questions)
        job.answers = {}
        for number in job.numbers:
            self._asked[number] = job

    def _answered(self, number: int, answer: w.Answer, ended: deque[tuple[Plan[Any], Any]]) -> None:
        job = self._asked.pop(number)
        job.answers[number] = answer
        if len(job.answers) == len(job.numbers):
            self._step(job, [job.answers[one] for one in job.numbers], ended)

    def _receive(self) -> list[tuple[int, w.Answer]]:
        """Return answers, at least one."""
        deadline_s = time.monotonic() + self._patience_s
        while not (answers := self._session.receive()):
            now = time.monotonic()
            failure = self._session.failure
            if failure and not isinstance(failure, NoHead):  # it is refused, or of a kind that no patience helps
                raise failure
            if now > deadline_s:
                raise self._session.failure or NoHead(
                    "the tree of files doesn't answer", f"tried for {self._patience_s:.0f} s", "see 'beo ha status'"
                )
            self._poller.poll(max(0, int((min(deadline_s, self._session.next_at) - now) * 1000) + 1))
        return answers
