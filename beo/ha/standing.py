"""When a service address is given to the interface again, taken away, announced: decided here, done in address.py.

The kernel is told each time that the address is good for `VALID_S` more; a daemon that stops, or that may not act any
more, needs to do nothing for it to vanish.
"""

from __future__ import annotations

from enum import Enum

VALID_S = 1  # the shortest that the kernel knows; it takes an address away within 1.1 s
RENEW_S = 0.25  # three may be missed on a busy machine
GRANT_S = 0.25  # how long one `renew` counts: as a loop that hangs must not keep the address
RETRY_S = 1.0  # after a refusal: it is rarely gone in less
# After the address is here: others' notes on where it is are put right at once, and again in case a frame is lost, or
# the machine that had it answered once more before its kernel took it away.
ANNOUNCE_S = (0.0, 0.05, 0.15, 0.4, 0.8, 1.3, 2.0)
PROBE_S = 3.0  # only then is whoever else has it a fault: the last one's second is over
LISTEN_S = 0.3  # for the answer to it
AGAIN_S = 60.0  # until the next look for another who has it

NEVER = float("inf")


class Act(Enum):
    """What is to be done."""

    PUT = "put"
    REMOVE = "remove"
    ANNOUNCE = "announce"
    PROBE = "probe"
    LISTEN = "listen"


class Standing:
    """One address. Times are seconds of any clock that never goes back."""

    def __init__(self) -> None:
        """Begin without it."""
        self._until_s = -NEVER  # we may have it until then
        self._lapses_s = -NEVER  # the kernel takes it away then
        self._put_s = -NEVER  # not before then
        self._told_s: list[tuple[float, Act]] = []  # what follows on getting it
        self._leaving = False

    def renew(self, now_s: float) -> None:
        """Note that we may have it now."""
        self._until_s = now_s + GRANT_S

    def release(self) -> None:
        """Note that we may not have it any more."""
        self._until_s = -NEVER
        self._leaving = self._lapses_s > -NEVER

    def is_held(self, now_s: float) -> bool:
        """Whether it is on the interface."""
        return now_s < self._lapses_s

    def acts(self, now_s: float) -> list[Act]:
        """Return what is to be done now; `put` and `refused` tell how the first of them went."""
        if self._leaving:
            self._leaving, self._lapses_s, self._put_s, self._told_s = False, -NEVER, -NEVER, []
            return [Act.REMOVE]
        if now_s >= self._until_s:
            return []
        due = [Act.PUT] if now_s >= self._put_s else []
        if self.is_held(now_s):
            due += [act for due_s, act in self._told_s if due_s <= now_s]
            self._told_s = [(due_s, act) for due_s, act in self._told_s if due_s > now_s]
            if Act.PROBE in due:
                self._told_s += [(now_s + LISTEN_S, Act.LISTEN), (now_s + AGAIN_S, Act.PROBE)]
        return due

    def put(self, now_s: float) -> None:
        """Note that the kernel has been told at this time."""
        if not self.is_held(now_s):
            self._told_s = [(now_s + after_s, Act.ANNOUNCE) for after_s in ANNOUNCE_S] + [(now_s + PROBE_S, Act.PROBE)]
        self._lapses_s = now_s + VALID_S
        self._put_s = now_s + RENEW_S
        self._leaving = self._until_s == -NEVER  # it was released while the kernel was being told

    def refused(self, now_s: float) -> None:
        """Note that the kernel would not."""
        self._put_s = now_s + RETRY_S

    def due_s(self, now_s: float) -> float:
        """Return when there may be something to do, unless `renew` or `release` comes before."""
        if self._leaving:
            return now_s
        if now_s >= self._until_s:
            return NEVER
        told_s = [due_s for due_s, _ in self._told_s] if self.is_held(now_s) else []
        return min([self._put_s, *told_s])
