"""What a machine without a monitor says, said to the heads as well. ``python -m beo.boot.console MAC HOST:PORT…``

The head keeps the last of it (headnode/consoles.py). Nothing waits for it: where no head takes it, it is dropped. Once
a machine has joined, a process of its own goes on with what the kernel and the worker's daemons have to say, which is
what one wants to read when a machine has died.
"""

from __future__ import annotations

import errno
import http.client
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

KERNEL = "/dev/kmsg"
PIECE_BYTES = 32 * 1024  # in one message: half of what the head takes
WAIT_S = 2.0  # for a head: this machine has better things to do
GATHER_S = 1.0  # before what came is sent, so that a burst is one message
KEPT_MAX_BYTES = 256 * 1024  # while no head takes it
RECORD_BYTES = 8 * 1024  # of one line of the kernel's


class Console:
    """Says lines on this machine's own console, and to the heads."""

    def __init__(self, boots: Sequence[str], mac: str) -> None:
        """Take where the servers of boots are, and which machine this is."""
        self._boots = tuple(boots)
        self._mac = mac
        self._kept = b""

    def say(self, text: str) -> None:
        """Print a line, and have it kept."""
        line = f"beo: {text}\n"
        with suppress(OSError):
            print(line, end="", flush=True)
        self.keep(line.encode(errors="replace"))

    def keep(self, data: bytes) -> None:
        """Have this kept by a head, now or with what comes next."""
        self._kept = (self._kept + data)[-KEPT_MAX_BYTES:]
        while self._kept and self._send(self._kept[:PIECE_BYTES]):
            self._kept = self._kept[PIECE_BYTES:]

    def _send(self, data: bytes) -> bool:
        for address in self._boots:
            host, _, port = address.rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)
            try:
                connection.request("POST", f"/console/{self._mac}", data)
                if connection.getresponse().status < http.client.BAD_REQUEST:
                    return True
            except (OSError, http.client.HTTPException):
                continue
            finally:
                connection.close()
        return False

    def follow(self) -> None:
        """Start the process that goes on with what the kernel and the daemons here say, until this one ends."""
        from beo.config import home  # here: the process that follows does without all of this, and its memory
        from beo.supervisor import environment

        where = home()
        with suppress(OSError):  # what nobody has taken yet goes on with the logs
            (where.logs / "boot.log").write_bytes(self._kept)
        argv = [sys.executable, "-P", "-m", "beo.boot.console", self._mac, *self._boots]
        with suppress(OSError):
            subprocess.Popen(
                argv,
                env=environment(where),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )


class Logs:
    """What is new in the logs of a folder. A log that was emptied meanwhile begins anew."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; what is in its logs by now is new, too."""
        self._folder = folder
        self._read: dict[Path, int] = {}

    def news(self) -> bytes:
        """Return what has come since the last call, each log's lines behind its name; a long one comes in pieces."""
        found = b""
        for path in sorted(self._folder.glob("*.log")):
            with suppress(OSError), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begin = self._read.get(path, 0) if size >= self._read.get(path, 0) else 0
                file.seek(begin)
                data = file.read(PIECE_BYTES)
                whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == PIECE_BYTES else b"")
                self._read[path] = begin + len(whole)
                found += b"".join(b"%s: %s\n" % (path.stem.encode(), line) for line in whole.splitlines())
        return found


class Kernel:
    """What is new in the kernel's own log, from the machine's first moment on; nothing, where it may not be read."""

    def __init__(self, path: str = KERNEL) -> None:
        """Open it."""
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def news(self) -> bytes:
        """Return the lines that have come since the last call; of very many the last, which go into one message."""
        found: deque[bytes] = deque()
        size = 0
        while self._fd >= 0:
            try:
                record = os.read(self._fd, RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # it has overwritten what we hadn't read
                    continue
                break
            if not record:
                break
            found.append(line_of(record))
            size += len(found[-1])
            while size > PIECE_BYTES:
                size -= len(found.popleft())
        return b"".join(found)


def line_of(record: bytes) -> bytes:
    """Return a record of /dev/kmsg, `priority,number,microseconds,flags;text`, as dmesg prints it."""
    head, _, text = record.partition(b";")
    words = head.split(b",")
    if len(words) < 3 or not words[2].isdigit():
        return record.rstrip(b"\n") + b"\n"
    return b"[%12.6f] %s\n" % (int(words[2]) / 1e6, text.split(b"\n")[0])


def main(argv: Sequence[str]) -> int:
    """Follow until whoever has started this ends."""
    mac, *boots = argv
    parent = os.getppid()
    console, kernel, logs = Console(boots, mac), Kernel(), Logs(Path(os.environ["BEO_DIR"], "log"))
    while os.getppid() == parent:
        if news := kernel.news() + logs.news():
            console.keep(news)
        time.sleep(GATHER_S)
    console.keep(logs.news())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
