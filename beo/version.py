"""Who speaks: the versions of protocol, journal entries and beo, as they stand at the head of every message.

A message begins with a frame like `beo/1/1/0.1.0`. Peers of one protocol understand each other, whatever their beo; a
peer of another one is told so by its reading that frame, which is the one thing that stays the same for ever.
"""

from __future__ import annotations

from beo import __version__
from beo.errors import Internal

PROTOCOL = 1  # of the wire: grows when a peer of the version before would misunderstand
ENTRY_FORMAT = 3  # of the journal: a head refuses a journal with a higher one
STATE_FORMAT = 3  # of the state that entries make: grows when the same entries would make another one
GREETING_LENGTH_MAX = 64
GREETING = f"beo/{PROTOCOL}/{ENTRY_FORMAT}/{__version__}".encode()
_SAME_PROTOCOL = f"beo/{PROTOCOL}/".encode()


def is_understood(greeting: bytes) -> bool:
    """Whether a message that begins with this frame is of our protocol."""
    return greeting == GREETING or (greeting.startswith(_SAME_PROTOCOL) and len(greeting) <= GREETING_LENGTH_MAX)


def is_ours(greeting: bytes) -> bool:
    """Whether it is a beo at all that speaks, be it of another protocol."""
    return greeting.startswith(b"beo") and len(greeting) <= GREETING_LENGTH_MAX


def mismatch(who: str, greeting: bytes) -> Internal:
    """Return the error that says how a peer's version differs from ours, and what to do about it."""
    words = greeting.decode("ascii", "replace").split("/")
    theirs, cure = "an unknown protocol", "install the same beo on both"
    if len(words) == 4:
        theirs = f"protocol {words[1]} (beo {words[3]})"
        cure = f"install beo {words[3]} here, or beo {__version__} there"
    return Internal(f"{who} speaks {theirs}", f"this is protocol {PROTOCOL}, beo {__version__}", cure)
