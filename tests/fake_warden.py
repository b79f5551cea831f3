"""A warden's door in the hands of a test: it hears what a client of steps says, and answers as the test wants.

    with FakeWarden(folder, handler) as warden: ...

`handler(talk)` is called in a thread of its own for each connection.
"""

from __future__ import annotations

import os
import socket
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beo.worker.frames import Frames, frame

PATIENCE_S = 20.0


class Talk:
    """One connection, from the warden's side."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(PATIENCE_S)
        self._frames = Frames()
        self._ahead: list[dict[str, Any]] = []

    def hear(self) -> dict[str, Any] | None:
        """The client's next message; None when it has hung up."""
        while not self._ahead:
            try:
                data = self.connection.recv(65536)
            except ConnectionResetError:  # so the kernel says it of one that was killed with something unread
                return None
            if not data:
                return None
            self._ahead += self._frames.feed(data)
        return self._ahead.pop(0)

    def say(self, op: str, **words: Any) -> None:
        """Send a message."""
        self.connection.sendall(frame({"op": op, **words}))

    def begin(self) -> dict[str, Any]:
        """Hear what is wanted, and say that it has started."""
        request = self.hear()
        assert request and request["op"] == "run"
        self.say("started", step=1, first=1, parts=[["node01", request["ranks"]]])
        return request

    def output(self, rank: int, fd: int, data: bytes) -> None:
        """Send what a rank has printed."""
        self.say("output", rank=rank, fd=fd, data=b64encode(data).decode())

    def end(self, *statuses: int, reason: str | None = None, **words: Any) -> None:
        """Say how each rank ended."""
        ranks = [{"rank": rank, "status": status} for rank, status in enumerate(statuses)]
        self.say("ended", ranks=ranks, reason=reason, **words)

    def read_input(self, room_bytes: int = 1 << 20) -> bytes:
        """Take standard input to its end, at most `room_bytes` of each piece, as a rank does that reads slowly."""
        have = b""
        while message := self.hear():
            assert message["op"] == "stdin"
            data, offset = b64decode(message["data"]), message["offset"]
            assert offset == len(have)
            have += data[:room_bytes]
            whole = offset + len(data) == len(have)
            self.say("stdin", have=len(have), closed=whole and message["eof"])
            if not whole:
                self.say("stdin", have=len(have), closed=False)  # there is room again
            elif message["eof"]:
                break
        return have


class FakeWarden:
    """Listens in `folder` for as long as the block lasts; what a handler raised is raised at the end."""

    def __init__(self, folder: Path, handler: Callable[[Talk], None]) -> None:
        job = {"BEO_JOB_ID": "1", "BEO_NODE": "node01", "BEO_STEPS": str(folder / "steps"), "TMPDIR": str(folder)}
        self.env = {**os.environ, **job}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.env["BEO_STEPS"])
        self._listener.listen()
        self._handler = handler
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> FakeWarden:
        self._threads[0].start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        self._listener.close()
        if self._errors and not kind:
            raise self._errors[0]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._handler(Talk(connection))
            except BaseException as error:
                self._errors.append(error)
