"""What the bulk plane may know of the state; asked from its threads, so each answer is one look at a dict."""

from __future__ import annotations

from collections.abc import Callable

from beo.headnode import decide, permissions
from beo.headnode.model import ENDED
from beo.headnode.state import State
from beo.spec import JobSpec


class Sight:
    """The questions of streams.py and export.py; see `View` there."""

    def __init__(self, state: Callable[[], State]) -> None:
        """Take what returns the present state: another object may be it, later."""
        self._now = state

    @property
    def state(self) -> State:
        """The present state."""
        return self._now()

    def user_of_key(self, key: str) -> decide.User | None:
        """Return who holds a public key, None for an unknown one."""
        return decide.user_of(self.state, key)

    def speaks_for(self, user: decide.User, node: str) -> bool:
        """Whether a worker's key may speak for a node."""
        return permissions.speaks_for(self.state, user, node)

    def owner(self, job: int) -> str | None:
        """Return whose job it is, None for an unknown (or forgotten) one."""
        found = self.state.jobs.get(job)
        return found.user if found else None

    def spec(self, job: int) -> JobSpec | None:
        """Return a job's spec, None where it is unknown."""
        found = self.state.jobs.get(job)
        return found.spec if found else None

    def ids(self, job: int) -> tuple[int, int, tuple[int, ...]] | None:
        """Return a job's (uid, gid, groups), None where it is unknown."""
        found = self.state.jobs.get(job)
        return (found.uid, found.gid, found.groups) if found else None

    def since(self, job: int) -> int:
        """Return the first attempt of which a job's present one is the continuation."""
        found = self.state.jobs.get(job)
        return found.since if found else 1

    def is_over(self, job: int, attempt: int) -> bool:
        """Whether nothing more of an attempt can be printed."""
        found = self.state.jobs.get(job)
        if not found or found.state in ENDED or attempt < found.attempt_number:
            return True
        last = found.attempt
        return bool(last and last.number == attempt and last.over)

    def rank0_node(self, job: int, attempt: int) -> tuple[str, str] | None:
        """Return (node, incarnation) where rank 0 of an attempt runs, None where it doesn't."""
        found = self.state.jobs.get(job)
        last = found.attempt if found else None
        if not last or last.number != attempt or last.over:
            return None
        return last.parts[0].node, last.parts[0].incarnation
