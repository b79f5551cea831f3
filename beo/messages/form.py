"""What all messages share: their form, the limits on any of them, and the answers that any request may get."""

from __future__ import annotations

import msgspec

MESSAGE_SIZE_MAX_BYTES = 2 * 1024 * 1024  # the largest spec fits twice; anything larger is refused by the socket itself
LIST_LENGTH_MAX = 10_000  # rows in one answer
WAIT_MAX_S = 10.0  # a long poll is answered after this time at the latest; the client asks again
ID_MAX = 2**32 - 2  # the last uid and gid; the one above means "no change" to the kernel


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A message. It travels as its class's name and its fields, in their order."""


class Failed(Message, frozen=True):
    """Any request can be answered by this: BeoError.to_dict()."""

    error: dict[str, str]


class Done(Message, frozen=True):
    """It is done, durably."""
