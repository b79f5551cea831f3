"""TFTP as a server sends files by it (RFC 1350, 2347-2349, 7440): the packets, and one transfer. Pure.

A `Transfer` says which blocks to send, the shell reads and sends them. Every ROM speaks it a little differently: OVMF
asks once for the size alone and breaks off, then again for the file.
"""

from __future__ import annotations

import struct

import msgspec

from beo.errors import BeoError, NotFound, Refused, UsageError

READ, WRITE, DATA, ACK, ERROR, OPTIONS = range(1, 7)
NOT_FOUND, DENIED, ILLEGAL, BAD_OPTION = 1, 2, 4, 8
NAME_MAX_BYTES = 200
REQUEST_MAX_BYTES = 512  # as RFC 2347 has it
BLOCK_BYTES = 512  # where nothing else is agreed on
BLOCK_MIN_BYTES, BLOCK_MAX_BYTES = 8, 1_468  # of one frame: parts of larger ones are lost together
WINDOW_MAX_BLOCKS = 16
WAIT_S = 1.0  # for an acknowledgement, at first
WAIT_MAX_S = 5.0
TRIES_MAX = 6  # of one window


class Wish(msgspec.Struct, frozen=True):
    """Somebody wants to read a file."""

    name: str
    options: dict[str, str]


class Data(msgspec.Struct, frozen=True):
    """Send this block: `length` bytes of the file from `offset` on."""

    block: int
    offset: int
    length: int


class Raw(msgspec.Struct, frozen=True):
    """Send this packet."""

    data: bytes


def parse(data: bytes) -> Wish:
    """Read what came to the well-known port; raises BeoError for all but a wish to read."""
    if not 4 <= len(data) <= REQUEST_MAX_BYTES:
        raise UsageError("this is no request of TFTP", f"it has {len(data)} bytes", "")
    (op,) = struct.unpack_from("!H", data)
    if op == WRITE:
        raise Refused("nothing can be written here", "this server only gives", "")
    if op != READ or data[-1]:
        raise UsageError("this is no request of TFTP", f"its code is {op}, or it has no end", "")
    words = data[2:-1].split(b"\0")
    try:
        name, mode, *rest = (word.decode("ascii") for word in words)
    except ValueError:
        raise UsageError("this is no request of TFTP", "it has no name and mode in plain letters", "") from None
    if mode.lower() not in ("octet", "netascii") or len(name) > NAME_MAX_BYTES or len(rest) % 2:
        raise UsageError("this request of TFTP can't be served", f"its mode is {mode[:20]!r}, its name is long", "")
    return Wish(name, {key.lower(): value for key, value in zip(rest[::2], rest[1::2], strict=True)})


def plain_name(name: str) -> str:
    """Return the bare name of a file that is asked for; raises Refused for one that leads elsewhere.

    Some ROMs put a slash, or the backslash of another system, before it.
    """
    bare = name.replace("\\", "/").lstrip("/").removeprefix("./")
    if not bare or "/" in bare or bare.startswith(".") or not bare.isprintable():
        raise Refused(f"{name[:NAME_MAX_BYTES]!r} is not served", "only files of one folder are", "")
    return bare


def error(failure: BeoError) -> bytes:
    """Return the packet that says why not."""
    code = NOT_FOUND if isinstance(failure, NotFound) else DENIED if isinstance(failure, Refused) else ILLEGAL
    return struct.pack("!HH", ERROR, code) + str(failure).encode("ascii", "replace")[:400] + b"\0"


def frame(block: int, data: bytes) -> bytes:
    """Return the packet with a block of data."""
    return struct.pack("!HH", DATA, block & 0xFFFF) + data


class Transfer:
    """One file on its way to one client. `done` when all was acknowledged; `failed` says why it ended otherwise."""

    def __init__(self, size_bytes: int, options: dict[str, str], now_s: float) -> None:
        """Agree on what the client has asked for, as far as it can be."""
        self._size = size_bytes
        self.agreed: dict[str, str] = {}
        self._block_bytes = self._agree(options, "blksize", BLOCK_MIN_BYTES, BLOCK_MAX_BYTES, BLOCK_BYTES)
        self._window = self._agree(options, "windowsize", 1, WINDOW_MAX_BLOCKS, 1)
        if "tsize" in options:
            self.agreed["tsize"] = str(size_bytes)
        self._last = size_bytes // self._block_bytes + 1  # the one that is not full, perhaps empty
        self._acked = -1 if self.agreed else 0
        self._sent = max(0, self._acked)
        self._again = -2  # after which block a window was sent again: a doubled ACK mustn't double all that follows
        self._tries = 0
        self._wait_s = WAIT_S
        self.due_s = now_s + WAIT_S
        self.done = False
        self.failed = ""

    def _agree(self, options: dict[str, str], name: str, low: int, high: int, default: int) -> int:
        text = options.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < low:
            return default
        value = min(int(text), high)
        self.agreed[name] = str(value)
        return value

    def begin(self) -> list[Data | Raw]:
        """What to send first."""
        return self._resend() if self.agreed else self._fill()

    def hear(self, data: bytes, now_s: float) -> list[Data | Raw]:
        """Take a packet of the client; return what to send."""
        if len(data) < 4 or self.done or self.failed:
            return []
        op, number = struct.unpack_from("!HH", data)
        if op == ERROR:
            self.failed = "the client broke off: " + data[4:100].rstrip(b"\0").decode("ascii", "replace")
            return []
        if op != ACK:
            return []
        if self._acked < 0:
            if number != 0:
                return []
            block = 0
        else:
            block = self._acked + ((number - self._acked) & 0xFFFF)
        if block > self._sent:
            return []  # an old one: within 2^15 blocks behind, it looks like one far ahead
        if block == self._acked:
            if self._window == 1 or self._again == block or self._sent == block:
                return []
            self._again = block
            return self._resend()
        self._acked = block
        self._tries, self._wait_s = 0, WAIT_S
        self.due_s = now_s + WAIT_S
        if block == self._last:
            self.done = True
            return []
        self._sent = block  # where a part of the window was lost, the rest of it is sent again
        return self._fill()

    def tick(self, now_s: float) -> list[Data | Raw]:
        """Send again what nobody has acknowledged, for a while."""
        if self.done or self.failed or now_s < self.due_s:
            return []
        self._tries += 1
        if self._tries >= TRIES_MAX:
            self.failed = "the client says nothing more"
            return []
        self._wait_s = min(WAIT_MAX_S, self._wait_s * 2)
        self.due_s = now_s + self._wait_s
        return self._resend()

    def _resend(self) -> list[Data | Raw]:
        if self._acked < 0:
            words = [word for pair in self.agreed.items() for word in pair]
            return [Raw(struct.pack("!H", OPTIONS) + "".join(f"{word}\0" for word in words).encode())]
        self._sent = self._acked
        return self._fill()

    def _fill(self) -> list[Data | Raw]:
        end = min(self._last, max(0, self._acked) + self._window)
        first, self._sent = self._sent + 1, end
        size = self._block_bytes
        return [
            Data(block, (block - 1) * size, max(0, min(size, self._size - (block - 1) * size)))
            for block in range(first, end + 1)
        ]
