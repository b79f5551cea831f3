"""A head that answers from a table, over real encrypted sockets on both planes: for tests of clients and agents.

Two of them are a pair: `FakeHead(path, other)` has the keys of the first, and both stand in cluster.json.
"""

import queue
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

    A handler that returns None leaves the request unanswered, one that returns a list gives several answers; one that
    raises a BeoError answers with it.
    """

    def __init__(self, path: Path, other: "FakeHead | None" = None) -> None:
        self.home = config.Home(path)
        self.handlers: dict[type, Handler] = {}
        self.received: list[object] = []
        self.address = self.bulk = "127.0.0.1:0"
        self.public = self.secret = ""
        self.authorized: set[str] = set()
        self._thread: threading.Thread | None = None
        self._frozen = threading.Event()
        self._waker = wire.Waker()
        self._words: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._listeners: set[bytes] = set()  # who has said something unasked: agents
        if other:
            self.public, self.secret, self.authorized = other.public, other.secret, other.authorized
        else:
            self.public, self.secret = wire.new_keypair()
            for name in ("admin", "worker"):
                public, secret = wire.new_keypair()
                self.authorized.add(public)
                self.home.write_secret(name, secret)
        self.start()
        heads = [*([other] if other else []), self]
        addresses = tuple(head.address for head in heads), tuple(head.bulk for head in heads)
        self.home.write_cluster(config.ClusterFile("c" * 32, addresses[0], self.public, addresses[1]))

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

    def freeze(self) -> None:
        """Stand still, as a stopped machine does: it is there, takes what is sent, and says nothing."""
        self._frozen.set()

    def thaw(self) -> None:
        """Go on where it stood."""
        self._frozen.clear()

    def say(self, message: object) -> None:
        """Say something unasked to every agent that has been heard."""
        self._words.put(message)
        self._waker.wake()

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
        poller.register(self._waker.fileno(), wire.POLLIN)
        while not stopping.is_set():
            if self._frozen.is_set():
                time.sleep(0.01)
                continue
            poller.poll(POLL_MS)
            self._waker.clear()
            while not self._words.empty():
                word = m.encode(self._words.get_nowait())
                for listener in self._listeners:
                    servers[0][0].send(listener, 0, word)
            for server, decode in servers:
                for peer, _, request, body in server.receive():
                    message = decode(body)
                    if not request and server is servers[0][0]:
                        self._listeners.add(peer)
                    self.received.append(message)
                    try:
                        answer = self.handlers[type(message)](message)
                    except BeoError as error:
                        answer = m.Failed(error.to_dict())
                    answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
                    for one in answers:
                        server.send(peer, request, m.encode(one))
        for server, _ in servers:
            server.close()
