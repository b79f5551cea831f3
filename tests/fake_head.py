"""A head that answers from a table, over real encrypted sockets on both planes: what the client's tests talk to."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from beo import config, wire
from beo import messages as m
from beo.errors import BeoError

Servers = tuple[tuple[wire.Server, Callable[[bytes], object]], ...]
Handler = Callable[[object], object]

POLL_MS = 50


def view(job: int, state: str = "done", code: int = 0, **more: object) -> m.JobView:
    """Return a job's row with sensible times."""
    ended = state in {"done", "failed", "cancelled", "lost"}
    fields: dict[str, object] = {
        "id": job,
        "name": "pi",
        "user": "ada",
        "state": state,
        "ranks": 4,
        "nodes": "" if state in ("queued", "held") else "node[01-02]",
        "attempt": 0 if state in ("queued", "held") else 1,
        "submitted_s": 1000.0,
        "started_s": 0.0 if state in ("queued", "held") else 1001.0,
        "ended_s": 1003.5 if ended else 0.0,
        "exit_code": code if ended else -1,
        "reason": "",
    }
    return m.JobView(**{**fields, **more})  # type: ignore[arg-type]


class FakeHead:
    """A cluster's folder and a thread that answers: `handlers` maps a message's type to what makes its answer.

    A handler that returns None leaves the request unanswered; one that raises a BeoError answers with it.
    """

    def __init__(self, path: Path) -> None:
        self.home = config.Home(path)
        self.handlers: dict[type, Handler] = {}
        self.received: list[object] = []
        self.public, self.secret = wire.new_keypair()
        client_public, client_secret = wire.new_keypair()
        self.authorized = {client_public}
        self.home.write_secret("admin", client_secret)
        self.address = self.bulk = "127.0.0.1:0"
        self._thread: threading.Thread | None = None
        self.start()
        self.home.write_cluster(config.ClusterFile("c" * 32, (self.address,), self.public, (self.bulk,)))

    def start(self) -> None:
        """Answer from here on, at the same address as before."""
        control = wire.Server(self.address, self.secret, lambda key: key in self.authorized)
        bulk = wire.Server(self.bulk, self.secret, lambda key: key in self.authorized)
        self.address, self.bulk = control.address, bulk.address
        self._stopping = threading.Event()
        servers = ((control, m.to_head.decode), (bulk, m.bulk_to_head.decode))
        self._thread = threading.Thread(target=self._serve, args=(servers, self._stopping), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be gone, as after a kill."""
        if self._thread:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def on(self, kind: type, answer: object | Handler) -> None:
        """Answer every message of this kind with `answer`, or with what it returns for the message."""
        self.handlers[kind] = answer if callable(answer) else lambda _: answer

    def messages(self, kind: type) -> list[object]:
        """Return what was received of this kind."""
        return [message for message in self.received if isinstance(message, kind)]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Return as soon as the condition holds; fails after timeout_s."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.01)

    def _serve(self, servers: Servers, stopping: threading.Event) -> None:
        poller = wire.Poller()
        for server, _ in servers:
            server.register(poller)
        while not stopping.is_set():
            poller.poll(POLL_MS)
            for server, decode in servers:
                for peer, _, request, body in server.receive():
                    message = decode(body)
                    self.received.append(message)
                    try:
                        answer = self.handlers[type(message)](message)
                    except BeoError as error:
                        answer = m.Failed(error.to_dict())
                    if answer is not None:
                        server.send(peer, request, m.encode(answer))
        for server, _ in servers:
            server.close()
