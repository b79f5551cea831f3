"""How an agent and a warden talk: 4 bytes of length (big-endian), then one JSON object in UTF-8.

Pure, and of the standard library's cheapest part alone: a warden is a small process and imports this at its start.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FRAME_BYTES_MAX = 16 << 20
"""Longest message. A fence of 4,096 ranks is about 2 MiB; anything above this is an error, not a message."""

LISTENER = 3
"""The descriptor on which the agent hands a new warden its listening socket."""
PIDS = "pids"
"""The file of a warden's folder in which it names its processes before it serves anyone."""

STAGING = "staging: "
LOST = "lost: "
HALTED = "ended: it was asked to go on elsewhere"
"""What a reason begins with where the ranks were never started: for good, or so that another try may do better."""

_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for every message


class FrameError(ValueError):
    """What came over the connection isn't the protocol; the connection is of no more use."""


def frame(message: dict[str, Any]) -> bytes:
    """One message as it goes over the connection; FrameError if it is longer than FRAME_BYTES_MAX."""
    text = _encode(message).encode()
    if len(text) > FRAME_BYTES_MAX:
        raise FrameError(f"a message of {len(text)} bytes is over the limit of {FRAME_BYTES_MAX}")
    return len(text).to_bytes(4, "big") + text


class Frames:
    """Turns the bytes of a connection, in whatever pieces they come, back into messages of at most `limit_bytes`."""

    def __init__(self, limit_bytes: int = FRAME_BYTES_MAX) -> None:
        self._rest = bytearray()
        self._limit_bytes = limit_bytes

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes, in order; FrameError at the first thing that is none."""
        rest = self._rest
        rest += data
        messages: list[dict[str, Any]] = []
        at = 0
        while len(rest) - at >= 4:
            length = int.from_bytes(rest[at : at + 4], "big")
            if length > self._limit_bytes:
                raise FrameError(f"a message of {length} bytes is over the limit of {self._limit_bytes}")
            if len(rest) - at - 4 < length:
                break
            try:
                message = json.loads(rest[at + 4 : at + 4 + length].decode())
            except (ValueError, RecursionError) as error:
                raise FrameError(f"not JSON: {error}") from None
            if not isinstance(message, dict):
                raise FrameError("a message must be a JSON object")
            messages.append(message)
            at += 4 + length
        del rest[:at]
        return messages
