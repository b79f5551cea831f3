"""What an agent must still know after it was killed, in small files of its node's folder.

Nothing here is fsynced: it has to outlive the agent, not the machine. A machine that starts anew has another boot id,
and with it another incarnation that knows nothing, which is the truth: whatever ran there is gone.

The files belong together: an incarnation is only as good as the memory of what it has started. Where they are damaged,
the incarnation is given up, and a fresh one goes on with the orders that can still be read.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Annotated

import msgspec

from beo import messages as ms

SEEN_LINES_MAX = 20_000  # before the file is written anew with what is still needed
SEEN_SIZE_MAX_BYTES = 64 * 1024 * 1024  # ten times what SEEN_MAX attempts take before compaction: damaged, not long
IDENTITY_SIZE_MAX_BYTES = 1024 * 1024

_Seen = tuple[tuple[int, int, int], ...]
_LINE = re.compile(rb"(\d{1,19}) (\d{1,19}) (\d{1,19})")
_decoder = msgspec.msgpack.Decoder(ms.Start)


class Identity(msgspec.Struct):
    """Who this node is to the cluster. epoch: the highest one obeyed. told: what the head knows of this incarnation."""

    incarnation: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    boot: str
    epoch: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    told: str = ""


class Memory:
    """The files of one node's folder: identity.json, seen, orders/JOB.ATTEMPT.

    identity: as it stands. seen: (index, job, attempt) of what this incarnation had started or ruled out when the
    memory was opened; an index of 0 is not known.
    """

    def __init__(self, folder: Path, boot: str, fresh: str) -> None:
        """Read what is there. After a boot, the first time, or after damage, the incarnation is `fresh`."""
        self._folder = str(folder)
        self._orders = folder / "orders"
        self._orders.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._identity_file = folder / "identity.json"
        self._seen_file = folder / "seen"
        self._seen_fd = -1
        self._lines = 0
        identity = self._read_identity()
        seen = self._read_seen()
        if identity and identity.boot == boot and seen is not None:
            self.identity = identity
            self.seen = seen
            self._open_seen()
            return
        if identity and identity.boot != boot:
            for path in self._orders.iterdir():
                _remove(path)
        self.identity = Identity(fresh, boot, identity.epoch if identity else 0)
        self._begin_anew()

    def introduce(self, told: str, fresh: str) -> None:
        """Say what the head is about to be told of this node: address, slots, facts.

        All of it stays true for as long as the incarnation: if this one was introduced otherwise, it is replaced by
        `fresh`, which keeps the orders.
        """
        if self.identity.told == told:
            return
        was = self.identity.told
        self.identity.told = told
        if was:
            self.identity.incarnation = fresh
            self._begin_anew()
        else:
            self._write_identity()

    def orders(self) -> tuple[ms.Start, ...]:
        """Every part that was started and not dropped. One that can't be read is dropped: it will count as gone."""
        found = []
        for path in sorted(self._orders.iterdir()):
            try:
                order = _decoder.decode(_read(path, ms.MESSAGE_SIZE_MAX_BYTES))
                if path.name != f"{order.job}.{order.attempt}":
                    raise ValueError("it is another's order")
                found.append(order)
            except (OSError, ValueError):  # those of msgspec are ValueErrors
                _remove(path)
        return tuple(found)

    def remember(self, order: ms.Start) -> None:
        """Write down an order, before it is carried out. OSError where the disk refuses."""
        self.saw(order.index, order.job, order.attempt)  # first: an order without it could be started twice
        _write(self._order_file(order.job, order.attempt), f"{self._folder}/order.new", ms.encode(order))

    def saw(self, index: int, job: int, attempt: int) -> None:
        """Write down that an attempt is never to be started here (again). OSError where the disk refuses."""
        line = b"%d %d %d\n" % (index, job, attempt)
        if os.write(self._seen_fd, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._seen_file))
        self._lines += 1

    def drop(self, job: int, attempt: int) -> None:
        """Forget an order."""
        _remove(self._order_file(job, attempt))

    def _order_file(self, job: int, attempt: int) -> str:
        return f"{self._folder}/orders/{job}.{attempt}"

    def compact(self, seen: dict[tuple[int, int], int]) -> None:
        """Write the file of seen attempts anew when it has grown long; `seen` is all that still matters."""
        if self._lines >= SEEN_LINES_MAX and self._lines > 2 * len(seen):
            self._write_seen(tuple((index, job, attempt) for (job, attempt), index in seen.items()))

    def reborn(self, incarnation: str, seen: dict[tuple[int, int], int]) -> None:
        """Write down a new incarnation, which has seen only this."""
        self.identity.incarnation = incarnation
        self._write_identity()
        self._write_seen(tuple((index, job, attempt) for (job, attempt), index in seen.items()))

    def obey(self, epoch: int) -> None:
        """Write down the highest epoch."""
        self.identity.epoch = epoch
        self._write_identity()

    def close(self) -> None:
        """Close its files."""
        os.close(self._seen_fd)

    # ---- identity.json

    def _read_identity(self) -> Identity | None:
        try:
            return msgspec.json.decode(_read(self._identity_file, IDENTITY_SIZE_MAX_BYTES), type=Identity)
        except (OSError, ValueError):
            return None

    def _write_identity(self) -> None:
        _write(self._identity_file, self._identity_file.with_suffix(".new"), msgspec.json.encode(self.identity))

    def _begin_anew(self) -> None:
        """Write down a fresh incarnation, which has seen what it has orders for."""
        # The identity first: the old incarnation must never be read with less than it has seen.
        self._write_identity()
        self._write_seen(tuple((order.index, order.job, order.attempt) for order in self.orders()))

    # ---- seen

    def _read_seen(self) -> _Seen | None:
        """Read the whole lines; None for a file that isn't there, or isn't what was written."""
        try:
            data = _read(self._seen_file, SEEN_SIZE_MAX_BYTES)
        except (OSError, ValueError):
            return None
        # What has no end was being written when the agent was killed, so nothing had been done about it.
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._seen_file, len(whole))
        found = []
        for line in whole.split(b"\n")[:-1]:
            match = _LINE.fullmatch(line)
            if not match:
                return None
            found.append((int(match[1]), int(match[2]), int(match[3])))
        return tuple(found)

    def _write_seen(self, seen: _Seen) -> None:
        text = "".join(f"{index} {job} {attempt}\n" for index, job, attempt in seen)
        _write(self._seen_file, self._seen_file.with_suffix(".new"), text.encode())
        self.seen = seen
        self._open_seen()

    def _open_seen(self) -> None:
        if self._seen_fd >= 0:
            os.close(self._seen_fd)
        self._seen_fd = os.open(self._seen_file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(self.seen)


def _read(path: Path, limit_bytes: int) -> bytes:
    """Read a file; ValueError for one that is longer than anything this agent writes there."""
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"{path} is over {limit_bytes} bytes")
    return data


def _write(path: Path | str, temporary: Path | str, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)
    os.replace(temporary, path)


def _remove(path: Path | str) -> None:
    try:
        os.unlink(path)
    except (FileNotFoundError, IsADirectoryError):
        pass  # a folder is none of ours
