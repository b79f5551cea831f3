"""What a head's role means for its service address and its programs: decided here, done in resources.py."""

from __future__ import annotations

from typing import NamedTuple

ADDRESS_WAIT_S = 2.0  # programs may want to listen on the service address: so long they wait for it
FALL_S = 2.0  # a primary that may not act for so long is one no more: the other head has long taken over
RECOVER_S = 2.0  # and two leases: until a head that was killed as the primary knows what it is now

NEVER = float("-inf")


class Duties(NamedTuple):
    """What is to be done: None is "leave it as it is"."""

    address: bool | None
    programs: bool | None


class Duty:
    """One head's. Times are seconds of any clock that never goes back."""

    def __init__(self, now_s: float, *, has_address: bool, has_left: bool, lease_s: float) -> None:
        """Begin as nothing. has_left: an earlier life of this head began programs that may still run."""
        self._has_address = has_address
        self._recovers_s = now_s + RECOVER_S + 2 * lease_s if has_left else NEVER
        self._primary_s = NEVER  # since when it is the primary and may act
        self._acted_s = NEVER  # when it last might

    def decide(self, now_s: float, *, primary: bool, may_act: bool, follows: bool, holds: bool) -> Duties:
        """Return what the role of now means.

        primary, may_act: the role and the lease. follows: it hears from another primary. holds: the address is here.
        """
        if not primary:
            self._primary_s = self._acted_s = NEVER
            waits = now_s < self._recovers_s and not follows  # it may be the primary again in a moment
            return Duties(False, None if waits else False)
        if may_act:
            self._acted_s = now_s
            if self._primary_s == NEVER:
                self._primary_s = now_s
        elif now_s >= self._acted_s + FALL_S and self._primary_s > NEVER:
            return Duties(None, False)  # the kernel has taken the address long ago
        if self._primary_s == NEVER:
            return Duties(None, None)
        self._recovers_s = NEVER
        ready = holds or not self._has_address or now_s >= self._primary_s + ADDRESS_WAIT_S
        return Duties(True if may_act else None, True if ready else None)
